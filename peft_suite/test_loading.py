"""PEFT's tests of loading, adapter names, attaching, injection and model cards; most name LoRA in a fixture."""

import copy

import peft
import pytest
from peft_tests import test_hub_features as theirs_of_hub
from peft_tests import test_initialization as theirs
from peft_tests import test_low_level_api as theirs_of_injection
from peft_tests import test_mapping as theirs_of_mapping
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from retarget import adapt, retarget
from settings import configurations
from tiny_models import CLASSIFIERS, DECODERS, ENCODERS

for module in (theirs, theirs_of_hub, theirs_of_injection):
    adapt(module)
LLAMA = DECODERS["Llama"]


@pytest.fixture(scope="class", params=configurations())
def config(request):
    return copy.deepcopy(request.param)  # PEFT writes what it finds out into a configuration


class TestLowCpuMemUsage(theirs.TestLowCpuMemUsage):
    model_id = LLAMA
    # These have LoRA in their bodies.
    test_get_peft_model_low_cpu_mem_usage_works = None
    test_get_peft_model_with_task_type_low_cpu_mem_usage_works = None

    @pytest.fixture(scope="class")
    def lora_config(self, config):
        return config


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
def test_get_peft_model_leaves_the_adapter_on_meta(config, task_type):
    config.task_type = task_type
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(LLAMA), config, low_cpu_mem_usage=True)
    devices = {name: parameter.device.type for name, parameter in model.named_parameters()}
    assert {device for name, device in devices.items() if model.base_model.prefix in name} == {"meta"}


class TestAdapterNames(theirs.TestNamingConflictWarning):
    @pytest.fixture(autouse=True)
    def setup(self, config):
        self.peft_config = copy.deepcopy(config)
        self.prefix = theirs.PEFT_TYPE_TO_PREFIX_MAPPING[config.peft_type]
        self.base_model = AutoModelForCausalLM.from_pretrained(LLAMA)


class TestGetPeftModel(theirs_of_mapping.TestGetPeftModel):
    test_get_peft_model_repeated_invocation = None  # names a layer of its own model

    @pytest.fixture
    def base_model(self):
        return AutoModelForCausalLM.from_pretrained(LLAMA)

    @pytest.fixture
    def lora_config_0(self, config):
        return config


MODELS = [
    (AutoModelForCausalLM, LLAMA),
    (AutoModelForCausalLM, DECODERS["GPT2"]),
    (AutoModel, ENCODERS["Bert"]),
    (AutoModel, ENCODERS["DebertaV2"]),
    (AutoModelForSequenceClassification, CLASSIFIERS["Roberta"]),
]


@retarget({"model_cls_and_id": MODELS, "config": configurations()})
class TestInjection(theirs_of_injection.TestInjectAdapterFromStateDict):
    pass


CARDS = [
    pytest.param(LLAMA, case.values[0], ["transformers", f"base_model:adapter:{LLAMA}"], [], pipeline, id=case.id)
    for task_type, pipeline in ((None, None), ("CAUSAL_LM", "text-generation"))
    for case in configurations(task_type=task_type)
]


@retarget({"model_id,peft_config,tags,excluded_tags,pipeline_tag": CARDS})
class TestModelCard(theirs_of_hub.TestModelCard):
    pass
