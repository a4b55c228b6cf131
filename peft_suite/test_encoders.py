from peft_tests import test_feature_extraction_models as theirs
from peft_tests import testing_common

from retarget import adapt, retarget
from settings import methods
from tiny_models import ENCODERS

adapt(testing_common)
adapt(theirs)
theirs.skip_non_prompt_learning = lambda config_cls: None  # what it skips works for other methods, too


@retarget({"model_id": ENCODERS.values(), "config_cls,config_kwargs": methods(task_type="FEATURE_EXTRACTION")})
class TestEncoders(theirs.TestPeftFeatureExtractionModel):
    pass
