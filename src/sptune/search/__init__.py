"""The search for the prompt layers: configuration, searchers, selection, and the result."""

from typing import TYPE_CHECKING

from sptune.lazy_names import lazy_names

if TYPE_CHECKING:
    from sptune.search.bilevel_trainer import SPTSearchTrainer
    from sptune.search.layer_search import search_prompt_layers
    from sptune.search.layer_selection import select_layers
    from sptune.search.search_config import SearchConfig
    from sptune.search.search_result import SearchResult

__all__ = ["SPTSearchTrainer", "SearchConfig", "SearchResult", "search_prompt_layers", "select_layers"]

# Options and help texts need the configuration alone.
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "SPTSearchTrainer": "sptune.search.bilevel_trainer",
        "SearchConfig": "sptune.search.search_config",
        "SearchResult": "sptune.search.search_result",
        "search_prompt_layers": "sptune.search.layer_search",
        "select_layers": "sptune.search.layer_selection",
    },
)
