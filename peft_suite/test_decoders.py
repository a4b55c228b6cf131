from peft_tests import test_decoder_models as theirs
from peft_tests import testing_common

from retarget import adapt, retarget
from settings import methods
from tiny_models import DECODERS

adapt(testing_common)
adapt(theirs)
theirs.check_beft_config = lambda *args: None  # written for BEFT, it skips Llama whatever the method


@retarget(
    {"model_id": DECODERS.values(), "config_cls,config_kwargs": methods(task_type="CAUSAL_LM")},
    without=["test_set_requires_grad_prompt_learning_raises", "test_prompt_learning_with_gradient_checkpointing"],
)
class TestDecoders(theirs.TestDecoderModels):
    pass
