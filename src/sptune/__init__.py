"""sptune learns at which layers of a frozen transformer a prompt helps. Importing it registers SPT with PEFT."""

from typing import TYPE_CHECKING

from sptune.lazy_names import lazy_names
from sptune.registration import register_with_peft

if TYPE_CHECKING:
    from sptune.config import SPTConfig
    from sptune.errors import InputError, SptuneError
    from sptune.modeling.final_network import discretize
    from sptune.modeling.mean_pooling import MeanPooledClassifier
    from sptune.modeling.model import SPTModel
    from sptune.runs.run import Run, fit
    from sptune.saved_adapters.adapter_pool import AdapterPool
    from sptune.saved_adapters.inference import evaluate, predict
    from sptune.search.bilevel_trainer import SPTSearchTrainer
    from sptune.search.layer_search import search_prompt_layers
    from sptune.search.search_config import SearchConfig
    from sptune.search.search_result import SearchResult
    from sptune.training.caching.cache_settings import ActivationCacheSettings
    from sptune.training.caching_trainer import ActivationCachingTrainer
    from sptune.training.trainer import SPTTrainer

__version__ = "0.1.0"
__all__ = [
    "ActivationCacheSettings",
    "ActivationCachingTrainer",
    "AdapterPool",
    "InputError",
    "MeanPooledClassifier",
    "Run",
    "SPTConfig",
    "SPTModel",
    "SPTSearchTrainer",
    "SPTTrainer",
    "SearchConfig",
    "SearchResult",
    "SptuneError",
    "discretize",
    "evaluate",
    "fit",
    "predict",
    "search_prompt_layers",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ActivationCacheSettings": "sptune.training.caching.cache_settings",
        "ActivationCachingTrainer": "sptune.training.caching_trainer",
        "AdapterPool": "sptune.saved_adapters.adapter_pool",
        "InputError": "sptune.errors",
        "MeanPooledClassifier": "sptune.modeling.mean_pooling",
        "Run": "sptune.runs.run",
        "SPTConfig": "sptune.config",
        "SPTModel": "sptune.modeling.model",
        "SPTSearchTrainer": "sptune.search.bilevel_trainer",
        "SPTTrainer": "sptune.training.trainer",
        "SearchConfig": "sptune.search.search_config",
        "SearchResult": "sptune.search.search_result",
        "SptuneError": "sptune.errors",
        "discretize": "sptune.modeling.final_network",
        "evaluate": "sptune.saved_adapters.inference",
        "fit": "sptune.runs.run",
        "predict": "sptune.saved_adapters.inference",
        "search_prompt_layers": "sptune.search.layer_search",
    },
    renamed={
        "PrefixCacheSettings": "ActivationCacheSettings",
        "PrefixCachingTrainer": "ActivationCachingTrainer",
    },
)

register_with_peft()
