"""The search for the prompt layers: configuration, SPT-DARTS, selection, and the result."""

from sptune.search.config import SearchConfig
from sptune.search.result import SearchResult
from sptune.search.search import search_prompt_layers
from sptune.search.selection import select_layers

__all__ = ["SearchConfig", "SearchResult", "search_prompt_layers", "select_layers"]
