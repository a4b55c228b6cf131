"""sptune learns at which layers of a frozen transformer a prompt helps. Importing it registers SPT with PEFT."""

from sptune.config import SPTConfig
from sptune.errors import InputError, SptuneError
from sptune.model import SPTModel, discretize
from sptune.registration import register

__version__ = "0.1.0"
__all__ = ["InputError", "SPTConfig", "SPTModel", "SptuneError", "discretize"]

register(SPTConfig, SPTModel)
