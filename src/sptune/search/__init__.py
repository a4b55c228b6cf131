"""The search for the prompt layers: configuration, searchers, selection, and the result."""

from sptune.search.gate_trainer import SPTSearchTrainer
from sptune.search.layer_search import search_prompt_layers
from sptune.search.layer_selection import select_layers
from sptune.search.search_config import SearchConfig
from sptune.search.search_result import SearchResult

__all__ = ["SPTSearchTrainer", "SearchConfig", "SearchResult", "search_prompt_layers", "select_layers"]
