"""Makes SPT known to PEFT, so that get_peft_model, PeftModel.from_pretrained and load_adapter understand it."""

from __future__ import annotations

import importlib
from types import ModuleType

from wrapt import register_post_import_hook

PEFT_TYPE = "SPT"


def register_with_peft() -> None:
    """Register SPT as soon as PEFT is imported; now, if it is already.

    Importing `sptune.config` imports PEFT, whose import hook then finds the module unfinished and does nothing. That is
    why the registration itself waits for `sptune.config`.
    """
    register_post_import_hook(_register, "sptune.config")
    register_post_import_hook(lambda _: importlib.import_module("sptune.config"), "peft")


def _register(config_module: ModuleType) -> None:
    """Register the classes of SPT, unless they are registered already."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import PeftType, register_peft_method

    from sptune.modeling.model import SPTModel

    _add_peft_type()
    if PeftType(PEFT_TYPE) not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name="spt", config_cls=config_module.SPTConfig, model_cls=SPTModel, prefix="spt_")


def _add_peft_type() -> None:
    """Add SPT to the enumeration that PEFT's registration asks for, and which offers no way to do so."""
    from peft.utils import PeftType

    if PEFT_TYPE in PeftType.__members__:
        return
    member = str.__new__(PeftType, PEFT_TYPE)
    member._name_ = PEFT_TYPE
    member._value_ = PEFT_TYPE
    member._sort_order_ = len(PeftType.__members__)  # type: ignore[attr-defined]
    member.__objclass__ = PeftType  # type: ignore[attr-defined]
    PeftType._member_names_.append(PEFT_TYPE)
    PeftType._member_map_[PEFT_TYPE] = member
    PeftType._value2member_map_[PEFT_TYPE] = member
    # An enumeration refuses new attributes from Python 3.12 on, unless they are set past it.
    type.__setattr__(PeftType, PEFT_TYPE, member)
