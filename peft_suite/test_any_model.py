"""PEFT's tests of custom models, which take a tensor X and return a tensor; classifiers are dressed up as such."""

import pytest
import torch
from peft_tests import test_custom_models as theirs
from peft_tests import testing_common
from transformers import AutoConfig

from retarget import adapt, retarget
from settings import methods
from tiny_models import configuration, model_class

adapt(testing_common)
adapt(theirs)
FAMILIES = ["Bert", "DebertaV2", "Llama"]


def _dressed(family):
    base = model_class(family, "ForSequenceClassification")

    def forward(self, X=None, **kwargs):  # noqa: N803 (PEFT's name)
        if X is None:
            return base.forward(self, **kwargs)
        return torch.log_softmax(base.forward(self, input_ids=X.long() + 1, **kwargs).logits, dim=-1)

    # PEFT's tests set this attribute, which transformers computes.
    dtype = property(lambda self: next(self.parameters()).dtype, lambda self, value: None)
    return type(base.__name__, (base,), {"forward": forward, "dtype": dtype})


class DressedModel:
    """Stands where PEFT has the class of its custom models."""

    @staticmethod
    def from_pretrained(model_id, dtype=torch.float32):
        if model_id not in FAMILIES:  # a folder that a test has saved a model in
            architecture = AutoConfig.from_pretrained(model_id).architectures[0]
            return _dressed(architecture.removesuffix("ForSequenceClassification")).from_pretrained(model_id)
        torch.manual_seed(0)
        model = _dressed(model_id)(configuration(model_id)).to(dtype)
        model.config._name_or_path = model_id
        return model.eval()


CASES = [
    pytest.param(case.id, family, *case.values, id=f"{case.id}-{family}") for family in FAMILIES for case in methods()
]


@retarget({"test_name,model_id,config_cls,config_kwargs": CASES})
class TestAnyModel(theirs.TestPeftCustomModel):
    transformers_class = DressedModel

    def check_modelcard(self, folder, model):
        """These models have no place on the hub that a card could name."""

    check_config_json = check_modelcard
