"""Makes SPT known to PEFT, so that get_peft_model, PeftModel.from_pretrained and load_adapter understand it."""

from __future__ import annotations

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method

PEFT_TYPE = "SPT"


def register(config_class: type[PeftConfig], model_class: type[BaseTuner]) -> None:
    """Register SPT with PEFT; a second call does nothing.

    PEFT's registration asks for a member of its `PeftType` enumeration and offers no way to add one.
    """
    if PEFT_TYPE not in PeftType.__members__:
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
    if PeftType(PEFT_TYPE) not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name="spt", config_cls=config_class, model_cls=model_class, prefix="spt_")
