"""The search for the prompt layers: configuration, searchers, selection, and the result."""

from sptune.search.config import SearchConfig
from sptune.search.gate_training import SPTSearchTrainer
from sptune.search.result import SearchResult
from sptune.search.search import search_prompt_layers
from sptune.search.selection import select_layers

__all__ = ["SPTSearchTrainer", "SearchConfig", "SearchResult", "search_prompt_layers", "select_layers"]
