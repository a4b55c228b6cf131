from peft_tests import test_seq_classifier as theirs
from peft_tests import test_token_classification_qa as theirs_of_tokens
from peft_tests import testing_common

from retarget import adapt, retarget
from settings import methods
from tiny_models import CLASSIFIERS

for module in (testing_common, theirs, theirs_of_tokens):
    adapt(module)


@retarget({"model_id": CLASSIFIERS.values(), "config_cls,config_kwargs": methods(task_type="SEQ_CLS")})
class TestClassifiers(theirs.TestSequenceClassificationModels):
    pass


@retarget({"model_id": [CLASSIFIERS["Bert"]], "config_cls,config_kwargs": methods(task_type="TOKEN_CLS")})
class TestTokenClassifiers(theirs_of_tokens.TestTokenClassificationModels):
    pass


@retarget({"model_id": [CLASSIFIERS["Bert"]], "config_cls,config_kwargs": methods(task_type="QUESTION_ANS")})
class TestQuestionAnswering(theirs_of_tokens.TestQuestionAnsweringModels):
    pass
