"""sptune learns at which layers of a frozen transformer a prompt helps. Importing it registers SPT with PEFT."""

from sptune.config import SPTConfig
from sptune.errors import InputError, SptuneError
from sptune.modeling.mean_pooling import MeanPooledClassifier
from sptune.modeling.model import SPTModel, discretize
from sptune.registration import register
from sptune.runs.run import Run, evaluate, fit, predict
from sptune.search import SearchConfig, SearchResult, SPTSearchTrainer, search_prompt_layers
from sptune.training.activation_cache import PrefixCacheSettings
from sptune.training.caching_trainer import PrefixCachingTrainer
from sptune.training.trainer import SPTTrainer

__version__ = "0.1.0"
__all__ = [
    "InputError",
    "MeanPooledClassifier",
    "PrefixCacheSettings",
    "PrefixCachingTrainer",
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

register(SPTConfig, SPTModel)
