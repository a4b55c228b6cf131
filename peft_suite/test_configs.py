from peft_tests import test_config as theirs

from retarget import adapt, retarget
from settings import methods

adapt(theirs)


# SPT names its layers with prompt_layers.
@retarget({"config_class,mandatory_kwargs": methods()}, without=["test_config_layers_to_transform_index_zero"])
class TestConfigs(theirs.TestPeftConfig):
    pass
