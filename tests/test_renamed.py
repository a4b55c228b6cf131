"""Old names work for one version, with a warning that names the new one."""

import pytest
from peft import LoraConfig, get_peft_model
from transformers import TrainingArguments

import sptune
from sptune import ActivationCacheSettings, ActivationCachingTrainer, SearchConfig, SPTTrainer, search_prompt_layers

EXAMPLES = [{"input_ids": [5, 6, 7 + index % 3], "labels": index % 3} for index in range(8)]


@pytest.mark.parametrize("kind", ["Settings", "Trainer"])
def test_old_class_names(kind):
    old, new = {
        "Settings": ("PrefixCacheSettings", ActivationCacheSettings),
        "Trainer": ("PrefixCachingTrainer", ActivationCachingTrainer),
    }[kind]
    with pytest.warns(FutureWarning, match=f"{old} was renamed to {new.__name__}"):
        assert getattr(sptune, old) is new
    with pytest.raises(AttributeError, match="NoSuchName"):
        _ = sptune.NoSuchName


@pytest.mark.parametrize("trainer_class", [ActivationCachingTrainer, SPTTrainer])
def test_the_old_keyword_and_method_of_trainers(build_backbone, bert, tmp_path, trainer_class):
    lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], layers_to_transform=[2, 3])
    network = get_peft_model(build_backbone(bert, "classifier"), lora)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.warns(FutureWarning, match="prefix_cache= was renamed to activation_cache="):
        trainer = trainer_class(network, args, train_dataset=EXAMPLES, prefix_cache=None)
    with pytest.warns(FutureWarning, match="plan_prefix_cache.. was renamed to plan_activation_cache.."):
        plan = trainer.plan_prefix_cache()
    assert plan == trainer.plan_activation_cache()
    assert "turned off" in str(plan)


def test_the_old_keyword_of_the_search(build_network, bert, tmp_path):
    network = build_network(bert, "classifier", prompt_layers="search")
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.warns(FutureWarning, match="prefix_cache= was renamed to activation_cache="):
        result = search_prompt_layers(
            network, EXAMPLES, args, SearchConfig("spaced", num_prompt_layers=2), prefix_cache=None
        )
    assert len(result.prompt_layers) == 2


@pytest.mark.parametrize(("prompt_layers", "layers"), [("search", [0, 1, 2, 3]), ([1, 3], [1, 3])])
def test_the_old_name_of_the_layers_with_a_generator(build_network, bert, prompt_layers, layers):
    tuner = build_network(bert, prompt_layers=prompt_layers).base_model
    assert tuner.generator_layers == layers
    with pytest.warns(FutureWarning, match="candidate_layers was renamed to generator_layers"):
        assert tuner.candidate_layers == layers
