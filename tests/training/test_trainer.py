"""`SPTTrainer`: class scores, two learning rates, losses that add up, and an order of the data that can be repeated."""

import logging

import numpy as np
import optuna
import pytest
import torch
import transformers
from datasets import Dataset
from peft import get_peft_model
from torch.nn import functional
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput

from sptune import InputError, SptuneError
from sptune.training.attention_kernel import LONGEST_WITHOUT_FLASH, fast_attention
from sptune.training.class_loss import ClassLoss
from sptune.training.trainer import SPTTrainer


def build_examples(size, causal=False):
    noise = torch.Generator().manual_seed(5)
    examples = []
    for index in range(size):
        tokens = torch.randint(5, 100, (3 + index % 6,), generator=noise).tolist()
        labels = [-100, *tokens[1:]] if causal else index % 3
        examples.append({"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": labels})
    return examples


def pad_batch(examples):
    width = max(len(example["input_ids"]) for example in examples)
    filler = {"labels": -100}
    return {
        name: torch.tensor(
            [
                value if isinstance(value, int) else value + [filler.get(name, 0)] * (width - len(value))
                for value in (example[name] for example in examples)
            ]
        )
        for name in examples[0]
    }


def first_two_scores(model, batch):
    """Scores that the model's own loss knows nothing of."""
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, [1, 0, 2]] * 2


class Gradients(TrainerCallback):
    def __init__(self):
        self.steps, self.rates = [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        self.rates.append([group["lr"] for group in optimizer.param_groups])


@pytest.fixture
def build_trainer(build_backbone, build_config, bert, llama, tmp_path):
    """``build_trainer(examples, head="classifier", **options)``: on a tiny network with prompts at layers 1 and 3."""

    def build(examples, head="classifier", *, trainer=None, callbacks=None, kind=SPTTrainer, backbone=None, **options):
        case = llama if head == "lm" else bert
        torch.manual_seed(3)
        network = get_peft_model(build_backbone(case, head, **(backbone or {})), build_config(case, head))
        silent = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
        usual = {"max_steps": 2, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "max_grad_norm": 0.0}
        options = {"output_dir": str(tmp_path), **silent, **usual, **options}
        args = TrainingArguments(use_cpu=True, **options)
        return kind(
            network, args, train_dataset=examples, data_collator=pad_batch, callbacks=callbacks, **(trainer or {})
        )

    return build


def trained(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def gradients_of(trainer):
    trainer.train()
    (recorder,) = [one for one in trainer.callback_handler.callbacks if isinstance(one, Gradients)]
    return recorder.steps


def test_the_loss_is_the_cross_entropy_of_the_class_scores(build_trainer):
    examples = build_examples(8)
    gradients = Gradients()
    trainer = build_trainer(examples, max_steps=1, callbacks=[gradients], trainer={"class_scores": first_two_scores})
    batch = pad_batch(examples)
    trainer.model.train()
    loss = functional.cross_entropy(first_two_scores(trainer.model, batch), batch["labels"])
    loss.backward()
    expected = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    assert trainer.train().training_loss == pytest.approx(loss.item(), rel=1e-5)
    assert gradients.steps[0].keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients.steps[0][name], gradient, atol=1e-6, rtol=1e-4)


NUMBERS = [0.5 * index - 100 for index in range(8)]
LABEL_SETS = [[float(index % 2), float(index % 3 == 0), 0.0] for index in range(8)]


@pytest.mark.parametrize(
    ("problem_type", "labels", "size"), [("regression", NUMBERS, 1), ("multi_label_classification", LABEL_SETS, 3)]
)
def test_numbers_and_several_labels_have_the_loss_of_transformers(build_trainer, problem_type, labels, size):
    examples = build_examples(8)
    batch = {**pad_batch(examples), "labels": torch.tensor(labels)}

    def scores(model, given):
        return model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits

    backbone = {"num_labels": size, "problem_type": problem_type}
    trainer = build_trainer(
        examples, backbone=backbone, trainer={"class_scores": scores, "problem_type": problem_type}, max_steps=1
    )
    trainer.data_collator = lambda rows: batch
    own = trainer.model(**batch).loss.item()
    trainer.eval_dataset = examples
    assert trainer.evaluate()["eval_loss"] == pytest.approx(own, rel=1e-5)
    assert trainer.train().training_loss == pytest.approx(own, rel=1e-5)


def test_problem_types_that_cannot_be_are_refused(build_trainer):
    with pytest.raises(InputError, match="choose one of single_label_classification, multi_label"):
        build_trainer(build_examples(8), trainer={"class_scores": first_two_scores, "problem_type": "ranking"})
    with pytest.raises(InputError, match=r"label_smoothing_factor=0\.1 has no effect"):
        build_trainer(build_examples(8), trainer={"problem_type": "regression"}, label_smoothing_factor=0.1)


@pytest.mark.parametrize("bf16", [True, False])
def test_short_bfloat16_batches_train_without_flash_attention_on_a_cpu(build_trainer, bf16):
    with_flash = []

    def scores(model, batch):
        with_flash.append(torch.backends.cuda.flash_sdp_enabled())
        return first_two_scores(model, batch)

    trainer = build_trainer(build_examples(8), bf16=bf16, max_steps=1, trainer={"class_scores": scores})
    trainer.train()
    assert with_flash[-1] is not bf16
    assert torch.backends.cuda.flash_sdp_enabled()
    long = {"input_ids": torch.zeros(2, LONGEST_WITHOUT_FLASH + 1)}
    with fast_attention(trainer, long):
        assert torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize("launched", [True, False], ids=["accelerate launch --dynamo_backend", "torch_compile"])
def test_a_compiled_network_keeps_no_attention_kernel_of_its_first_batch(build_trainer, monkeypatch, launched):
    # TrainingArguments(torch_compile=True) sets the variable, too, and would leave it to later tests.
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    compiled = {} if launched else {"torch_compile": True, "torch_compile_backend": "eager"}
    trainer = build_trainer(build_examples(8), bf16=True, **compiled)
    with fast_attention(trainer, pad_batch(build_examples(2))):
        assert torch.backends.cuda.flash_sdp_enabled()


def test_a_compiled_language_model_counts_the_labels_of_a_language_model(build_trainer):
    plain = build_trainer(build_examples(8, causal=True), "lm")
    compiled = SPTTrainer(torch.compile(plain.model, backend="eager"), plain.args, train_dataset=plain.train_dataset)
    assert compiled.items.shifted
    assert plain.items.shifted


@pytest.mark.parametrize("labeled", [True, False])
def test_predictions_are_the_class_scores(build_trainer, labeled):
    examples = build_examples(10)
    trainer = build_trainer(examples, trainer={"class_scores": first_two_scores}, per_device_eval_batch_size=4)
    given = examples if labeled else [{k: v for k, v in example.items() if k != "labels"} for example in examples]
    output = trainer.predict(given)
    trainer.model.eval()
    with torch.no_grad():
        expected = first_two_scores(trainer.model, pad_batch(examples)).numpy()
    np.testing.assert_allclose(output.predictions, expected, atol=1e-5)
    assert ("test_loss" in output.metrics) is labeled
    if labeled:
        assert output.label_ids.tolist() == [example["labels"] for example in examples]


@pytest.mark.parametrize("preprocess", [lambda scores, labels: scores.argmax(-1), lambda scores, _: scores.softmax(-1)])
def test_the_loss_is_that_of_the_scores_before_they_are_preprocessed(build_trainer, preprocess):
    examples, seen = build_examples(10), []
    expected = build_trainer(examples, trainer={"class_scores": first_two_scores}).evaluate(examples)["eval_loss"]
    options = {
        "class_scores": first_two_scores,
        "preprocess_logits_for_metrics": preprocess,
        "compute_metrics": lambda outcome: {"size": seen.append(outcome.predictions) or len(outcome.predictions)},
    }
    metrics = build_trainer(examples, trainer=options, per_device_eval_batch_size=4).evaluate(examples)
    assert (metrics["eval_loss"], metrics["eval_size"]) == (pytest.approx(expected, rel=1e-5), 10)
    scores = build_trainer(examples, trainer={"class_scores": first_two_scores}).predict(examples).predictions
    np.testing.assert_allclose(seen[0], preprocess(torch.tensor(scores), None), atol=1e-5)


def test_evaluation_reports_the_mean_loss(build_trainer):
    examples = build_examples(10)
    trainer = build_trainer(examples, per_device_eval_batch_size=10)
    trainer.model.eval()
    with torch.no_grad():
        expected = trainer.model(**pad_batch(examples)).loss.item()
    assert trainer.evaluate(examples)["eval_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("head", ["classifier", "lm"])
def test_gradient_accumulation_equals_one_large_batch(build_trainer, head):
    """A language model's micro-batches hold unequal numbers of label tokens, a last micro-batch fewer examples."""
    examples = build_examples(12, causal=head == "lm")
    records = []
    for batch_size, accumulation in ((8, 1), (4, 2), (2, 4)):
        gradients = Gradients()
        trainer = build_trainer(
            examples,
            head,
            callbacks=[gradients],
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
        )
        loss = trainer.train().training_loss
        records.append((loss, gradients.steps))
    (large_loss, large), *others = records
    for loss, steps in others:
        assert loss == pytest.approx(large_loss, rel=1e-4)
        for step, expected in zip(steps, large, strict=True):
            for name, gradient in expected.items():
                scale = gradient.abs().max().item()
                torch.testing.assert_close(step[name], gradient, atol=2e-3 * scale, rtol=1e-3)


def test_each_trial_of_optuna_trains_a_network_of_its_own_with_the_cache(build_backbone, build_config, bert, tmp_path):
    """The space sets arguments, and `model_init` the network; a trial gives what a training with its values gives."""
    examples = build_examples(8)

    def network_of(trial):
        torch.manual_seed(3)
        size = 2 if trial is None else trial.suggest_categorical("bottleneck_dim", [2, 4])
        config = build_config(bert, bottleneck_dim=size, prompt_layers=[2, 3])
        return get_peft_model(build_backbone(bert, "classifier"), config)

    def build(model_init, **own):
        args = TrainingArguments(
            output_dir=str(tmp_path), report_to="none", use_cpu=True, num_train_epochs=3, disable_tqdm=True,
            per_device_train_batch_size=4, eval_strategy="epoch", save_strategy="no", **own,
        )  # fmt: skip
        data = {"train_dataset": examples, "eval_dataset": examples, "data_collator": pad_batch}
        return SPTTrainer(args=args, model_init=model_init, **data)

    trainer, objectives, cached = build(network_of), [], []

    class Cached(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            cached.append(trainer.caching._cache is not None and not trainer.caching._cache.given_up)

    def objective(metrics):
        objectives.append(metrics["eval_loss"])
        return metrics["eval_loss"]

    trainer.add_callback(Cached())
    sampler = optuna.samplers.GridSampler({"bottleneck_dim": [2, 4], "learning_rate": [1e-3, 1e-2]})
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-2)},
        compute_objective=objective, n_trials=4, direction="minimize", backend="optuna", sampler=sampler,
    )  # fmt: skip
    assert all(cached)
    assert len(cached) == 12
    trial = optuna.trial.FixedTrial(best.hyperparameters)
    alone = build(lambda: network_of(trial), learning_rate=best.hyperparameters["learning_rate"])
    alone.train()
    assert best.objective == pytest.approx(alone.evaluate()["eval_loss"], rel=1e-5)
    assert best.objective == pytest.approx(min(objectives[2::3]))


def test_a_class_loss_adds_up_over_micro_batches_of_unequal_classes(build_trainer):
    examples, weights = build_examples(8), (0.2, 1.0, 5.0)
    records = []
    for batch_size in (8, 2):
        gradients = Gradients()
        how = {"class_scores": first_two_scores, "class_loss": ClassLoss(weights, 2.0)}
        size = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": 8 // batch_size}
        trainer = build_trainer(examples, trainer=how, callbacks=[gradients], max_steps=1, **size)
        loss = trainer.evaluate(examples)["eval_loss"]
        batch = pad_batch(examples)
        with torch.no_grad():
            scores = first_two_scores(trainer.model, batch)
        p = scores.softmax(-1).gather(1, batch["labels"][:, None])[:, 0]
        expected = -torch.tensor(weights)[batch["labels"]] * (1 - p) ** 2 * p.log()
        assert loss == pytest.approx(expected.mean().item(), rel=1e-4)
        trainer.train()
        records.append(gradients.steps[0])
    torch.testing.assert_close(*records, atol=1e-5, rtol=1e-3)


def test_a_class_loss_without_effect_is_refused(build_trainer):
    with pytest.raises(InputError, match="class_loss is a function of class scores"):
        build_trainer(build_examples(4), trainer={"class_loss": ClassLoss()})
    how = {"class_scores": first_two_scores, "class_loss": ClassLoss()}
    with pytest.raises(InputError, match=r"label_smoothing_factor=0.1 has no effect with class_loss"):
        build_trainer(build_examples(4), trainer=how, label_smoothing_factor=0.1)


LOSSES = {
    "own loss": {},
    "class scores": {"class_scores": first_two_scores},
    "class loss": {"class_scores": first_two_scores, "class_loss": ClassLoss((1.0, 2.0, 3.0), focal_gamma=2.0)},
    "function": {
        "compute_loss_func": lambda outputs, labels, num_items_in_batch=None: (
            functional.cross_entropy(outputs.logits.flatten(0, -2), labels.flatten(), reduction="sum")
            / num_items_in_batch
        )
    },
}


@pytest.mark.parametrize(("head", "loss"), [*(("classifier", loss) for loss in LOSSES), ("lm", "own loss")])
def test_a_step_without_labels_has_the_loss_0_and_changes_nothing(build_trainer, head, loss):
    examples = build_examples(8, causal=head == "lm")
    for example in examples:
        example["labels"] = [-100] * len(example["labels"]) if head == "lm" else -100
    options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "logging_nan_inf_filter": False}
    trainer = build_trainer(examples, head, trainer=LOSSES[loss], logging_strategy="steps", logging_steps=1, **options)
    before = trained(trainer)
    trainer.train()
    assert [entry["loss"] for entry in trainer.state.log_history if "loss" in entry] == [0.0, 0.0]
    torch.testing.assert_close(trained(trainer), before, atol=0, rtol=0)


def test_the_head_has_a_learning_rate_of_its_own(build_trainer):
    gradients = Gradients()
    trainer = build_trainer(
        build_examples(8), max_steps=2, weight_decay=0.1, callbacks=[gradients], trainer={"head_learning_rate": 0.5}
    )
    trainer.train()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    for group in trainer.optimizer.param_groups:
        in_head = ["modules_to_save" in names[id(parameter)] for parameter in group["params"]]
        assert all(in_head) or not any(in_head)
        assert group["initial_lr"] == (0.5 if in_head[0] else 1e-2)
        assert {"bias" in names[id(parameter)] for parameter in group["params"]} == {group["weight_decay"] == 0}
    grouped = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    assert len(grouped) == len(set(map(id, grouped))) == sum(p.requires_grad for p in trainer.model.parameters())
    assert gradients.rates[0] == [group["initial_lr"] / 2 for group in trainer.optimizer.param_groups]


def test_without_a_rate_of_its_own_the_head_learns_as_the_prompts_do(build_trainer):
    trainer = build_trainer(build_examples(8))
    trainer.train()
    assert {group["initial_lr"] for group in trainer.optimizer.param_groups} == {1e-2}


def test_a_model_without_an_adapter_trains_too(build_backbone, bert, tmp_path):
    model = build_backbone(bert, "classifier")
    args = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, max_steps=2, save_strategy="no"
    )
    trainer = SPTTrainer(
        model, args, train_dataset=build_examples(8), data_collator=pad_batch, class_scores=first_two_scores
    )
    before = model.classifier.weight.clone()
    trainer.train()
    assert not torch.equal(model.classifier.weight, before)


def test_grouping_by_length_is_repeatable_and_changes_with_the_epoch(build_trainer):
    """What the order depends on is the seed and the epoch, not the global random state."""
    name = "train_sampling_strategy" if transformers.__version__ >= "5" else "group_by_length"
    value = "group_by_length" if transformers.__version__ >= "5" else True
    data = Dataset.from_list(build_examples(600))
    lengths = [len(ids) for ids in data["input_ids"]]

    def order(trainer, epoch):
        loader = trainer.get_train_dataloader()
        loader.set_epoch(epoch)
        return [tuple(batch["input_ids"][:, 0].tolist()) for batch in loader]

    trainer = build_trainer(data, **{name: value})
    first = order(trainer, 0)
    torch.rand(7)
    assert order(trainer, 0) == first
    assert order(trainer, 1) != first
    padded = sum(batch["input_ids"].numel() for batch in trainer.get_train_dataloader())
    assert padded < 1.1 * sum(lengths), "batches hold texts of like length"


# Going on


LONGER = {"steps": {"max_steps": 5}, "epochs": {"max_steps": -1, "num_train_epochs": 3}}
SHORT = {"steps": {"max_steps": 3}, "epochs": {"max_steps": -1, "num_train_epochs": 2}}


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
@pytest.mark.parametrize("counted", ["steps", "epochs"])
def test_a_finished_training_goes_on_for_longer_as_with_trainer(build_trainer, tmp_path, counted, optim):
    examples, same = build_examples(16), {"save_strategy": "steps", "optim": optim, "lr_scheduler_type": "cosine"}
    build_trainer(examples, **SHORT[counted], **same, save_steps=1).train()
    steps = SHORT[counted].get("num_train_epochs", 1.5) * 2
    checkpoint = str(tmp_path / f"checkpoint-{steps:.0f}")
    expected = build_trainer(
        examples, **LONGER[counted], **same, save_steps=4, kind=Trainer, output_dir=str(tmp_path / "plain")
    )
    expected.train(resume_from_checkpoint=checkpoint)
    longer = build_trainer(examples, **LONGER[counted], **same, save_steps=4, output_dir=str(tmp_path / "longer"))
    longer.train(resume_from_checkpoint=checkpoint)
    assert longer.state.global_step == expected.state.global_step > steps
    assert longer.state.epoch == expected.state.epoch
    torch.testing.assert_close(trained(longer), trained(expected), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "options", [{"max_steps": 2}, {"max_steps": 1}, {"max_steps": -1, "num_train_epochs": 1}], ids=str
)
def test_a_training_with_all_its_steps_is_only_loaded(build_trainer, options):
    examples = build_examples(16)
    whole = build_trainer(examples, save_strategy="steps", save_steps=2)
    whole.train()
    again = build_trainer(examples, save_strategy="steps", save_steps=2, **options)
    assert again.train(resume_from_checkpoint=True).global_step == 2
    torch.testing.assert_close(trained(again), trained(whole), atol=0, rtol=0)


def test_trainer_goes_on_from_a_checkpoint_of_ours_and_we_from_its(build_trainer, tmp_path):
    examples, same = build_examples(16), {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    networks = []
    for first, second in ((SPTTrainer, Trainer), (Trainer, SPTTrainer)):
        folder = str(tmp_path / first.__name__)
        build_trainer(examples, kind=first, output_dir=folder, **same).train()
        other = build_trainer(examples, kind=second, output_dir=folder, **{**same, "max_steps": 6})
        other.train(resume_from_checkpoint=f"{folder}/checkpoint-4")
        networks.append(trained(other))
    torch.testing.assert_close(*networks, atol=1e-5, rtol=1e-4)


def test_a_resumed_training_takes_the_batches_of_its_own_arguments(build_trainer):
    """As when a training of two processes is resumed by one, with batches twice as large."""
    sizes = []

    def collate(examples):
        sizes.append(len(examples))
        return pad_batch(examples)

    same = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    build_trainer(build_examples(16), **{**same, "max_steps": 2}, per_device_train_batch_size=4).train()
    resumed = build_trainer(build_examples(16), **same, per_device_train_batch_size=8)
    resumed.data_collator = collate
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    assert set(sizes) == {8}


# Language models that learn completions


def build_completions(size):
    """Texts of six to eight tokens, of which all but the first four have labels."""
    examples = [one for one in build_examples(2 * size, causal=True) if len(one["labels"]) >= 6]
    for example in examples:
        example["labels"] = [-100] * 4 + example["labels"][4:]
    return examples


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_completions_are_learned_and_measured_as_with_trainer(build_trainer, smoothing):
    examples, networks, losses = build_completions(12), [], []
    for kind in (SPTTrainer, Trainer):
        # The prompts in front of the text must not see the targets, which Trainer takes away to smooth them.
        masked = [one | {"source_mask": [label == -100 for label in one["labels"]]} for one in examples]
        trainer = build_trainer(
            masked if kind is Trainer else examples,
            "lm",
            kind=kind,
            per_device_train_batch_size=3,
            gradient_accumulation_steps=1 if smoothing else 2,  # Transformers 4 sums smoothed losses
            label_smoothing_factor=smoothing,
            remove_unused_columns=False,
        )
        trainer.train()
        networks.append(trained(trainer))
        losses.append(trainer.evaluate(trainer.train_dataset)["eval_loss"])
    torch.testing.assert_close(*networks, atol=1e-5, rtol=1e-4)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_head_runs_in_training_only_where_a_label_is_predicted(build_trainer):
    examples, positions = build_completions(8), []
    trainer = build_trainer(examples, "lm", max_steps=1)
    head = trainer.model.get_base_model().lm_head
    head.register_forward_hook(lambda module, args, output: positions.append(output.shape[1]))
    trainer.train()
    assert set(positions) == {5}  # of eight, of which four predict a label


@pytest.mark.parametrize("at_labels", [False, True])
def test_predictions_are_those_of_all_positions_unless_those_of_labels_are_asked_for(build_trainer, at_labels):
    examples = [one for one in build_completions(12) if len(one["labels"]) == 8]
    batch = pad_batch(examples)
    trainer = build_trainer(examples, "lm", trainer={"predict_at_labels": at_labels})
    outcome = trainer.predict(examples)
    logits, labels = torch.tensor(outcome.predictions), torch.tensor(outcome.label_ids)
    assert (logits.shape[1] == labels.shape[1] == 8) is not at_labels
    predicted = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    with torch.no_grad():
        expected = trainer.model(**batch).loss
    assert float(predicted) == pytest.approx(float(expected), rel=1e-5)
    assert outcome.metrics["test_loss"] == pytest.approx(float(expected), rel=1e-5)


# Losses of the user's own


def squared(outputs, labels, num_items_in_batch=None):
    """Not the cross entropy, and summed over the batch as transformers asks for."""
    wanted = functional.one_hot(labels, outputs.logits.shape[-1]).to(outputs.logits.dtype)
    return (outputs["logits"] - wanted).square().sum() / num_items_in_batch


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_function_is_given_the_class_scores(build_trainer, accumulation):
    examples = build_examples(8)
    trainer = build_trainer(
        examples,
        max_steps=1,
        callbacks=[Gradients()],
        trainer={"class_scores": first_two_scores, "compute_loss_func": squared},
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
    )
    batch = pad_batch(examples)
    trainer.model.train()
    loss = squared(SequenceClassifierOutput(logits=first_two_scores(trainer.model, batch)), batch["labels"], 8)
    loss.backward()
    expected = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    assert trainer.evaluate(examples)["eval_loss"] == pytest.approx(loss.item(), rel=1e-5)
    (gradients,) = gradients_of(trainer)
    torch.testing.assert_close(gradients, expected, atol=1e-5, rtol=1e-3)


def test_a_loss_function_does_as_with_trainer(build_trainer):
    examples = build_examples(12)
    networks = []
    for kind in (SPTTrainer, Trainer):
        trainer = build_trainer(
            examples,
            kind=kind,
            trainer={"compute_loss_func": squared},
            per_device_train_batch_size=2,
            gradient_accumulation_steps=3,
        )
        trainer.train()
        networks.append(trained(trainer))
    torch.testing.assert_close(*networks, atol=1e-5, rtol=1e-4)


def test_evaluation_smooths_labels_as_training_and_trainer_do(build_trainer):
    def scores(model, batch):
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits

    examples, options = build_examples(8), {"label_smoothing_factor": 0.3}
    losses = [
        trainer.evaluate(examples)["eval_loss"]
        for trainer in (
            build_trainer(examples, trainer={"class_scores": scores}, **options),
            build_trainer(examples, kind=Trainer, **options),
        )
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_class_scores_are_compared_with_the_labels_that_are_named(build_trainer):
    examples = build_examples(8)
    renamed = [{"target" if name == "labels" else name: value for name, value in one.items()} for one in examples]
    results = []
    for data, options in ((examples, {}), (renamed, {"label_names": ["target"]})):
        trainer = build_trainer(
            data,
            trainer={
                "class_scores": first_two_scores,
                "compute_metrics": lambda outcome: {"labels": outcome.label_ids.sum()},
            },
            **options,
        )
        trainer.train()
        results.append((trainer.evaluate(data), trained(trainer)))
    for name in ("eval_loss", "eval_labels"):
        assert results[0][0][name] == pytest.approx(results[1][0][name])
    torch.testing.assert_close(results[0][1], results[1][1])


@pytest.mark.parametrize("label_names", [[], ["labels", "target"]], ids=str)
def test_class_scores_without_one_column_of_labels_are_refused(build_trainer, label_names):
    with pytest.raises(InputError, match="compared with one column of labels"):
        build_trainer(build_examples(8), trainer={"class_scores": first_two_scores}, label_names=label_names)


def test_a_batch_without_the_labels_that_class_scores_need_says_so(build_trainer):
    examples = [{name: value for name, value in one.items() if name != "labels"} for one in build_examples(8)]
    trainer = build_trainer(examples, trainer={"class_scores": first_two_scores})
    with pytest.raises(InputError, match="no 'labels' to compare class_scores with"):
        trainer.train()


def test_a_rate_of_the_head_is_refused_where_the_optimizer_is_given(build_trainer):
    with pytest.raises(InputError, match=r"head_learning_rate=0\.1 has no effect"):
        build_trainer(
            build_examples(8),
            trainer={
                "head_learning_rate": 0.1,
                "optimizers": (torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1), None),
            },
        )


# Persistent workers


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "in-full"])
def test_persistent_workers_change_nothing(build_trainer, cached):
    """The head's dropout draws from the random state that loaders draw from, too."""
    examples, results = build_examples(12), []
    for persistent in (False, True):
        trainer = build_trainer(
            examples,
            trainer={"eval_dataset": examples[:5], **({} if cached else {"activation_cache": None})},
            backbone={"classifier_dropout": 0.3},
            max_steps=-1,
            num_train_epochs=3,
            eval_strategy="epoch",
            dataloader_num_workers=1,
            dataloader_persistent_workers=persistent,
        )
        trainer.train()
        losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        others = [trainer.evaluate(data)["eval_loss"] for data in (examples[5:], examples[:5], None)]
        results.append((losses + others, trained(trainer)))
    assert results[0][0] == pytest.approx(results[1][0], abs=0)
    torch.testing.assert_close(results[0][1], results[1][1], atol=0, rtol=0)


def test_persistent_workers_read_the_data_that_are_evaluated(build_trainer):
    examples = build_examples(12)
    parts = {"one": examples[:5], "two": examples[5:]}
    options = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    trainer = build_trainer(examples, trainer={"eval_dataset": parts}, **options)
    expected = {name: build_trainer(examples).evaluate(part)["eval_loss"] for name, part in parts.items()}
    for _ in range(2):
        losses = trainer.evaluate()
        assert {name: losses[f"eval_{name}_loss"] for name in parts} == pytest.approx(expected)
    assert trainer.evaluate(parts["two"])["eval_loss"] == pytest.approx(expected["two"])
    assert trainer.evaluate(parts["one"])["eval_loss"] == pytest.approx(expected["one"])
    trainer.eval_dataset = parts["two"]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected["two"])
    trainer.eval_dataset = parts["one"]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected["one"])


def test_a_gradient_that_overflows_is_told_once(build_network, build_batch, bert, tmp_path, caplog):
    trainer = _trainer_with_gradients(build_network(bert, "classifier"), build_batch(bert), tmp_path, 1e30)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert caplog.text.count("gradient norm of step") == 1


def test_a_training_whose_weights_are_no_numbers_stops(build_network, build_batch, bert, tmp_path):
    trainer = _trainer_with_gradients(build_network(bert, "classifier"), build_batch(bert), tmp_path, float("inf"))
    with pytest.raises(SptuneError, match=r"(?s)diverged.*step 1.*spt_generator.*learning_rate"):
        trainer.train()


def _trainer_with_gradients(network, batch, folder, value):
    """A trainer of three steps in which a generator's gradient is `value` everywhere."""
    parameter = next(p for name, p in network.named_parameters() if "spt_generator" in name)
    parameter.register_hook(lambda gradient: torch.full_like(gradient, value))
    rows = [{"input_ids": ids, "labels": 1} for ids in batch["input_ids"].tolist()]
    options = {"report_to": "none", "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}
    return SPTTrainer(network, TrainingArguments(str(folder), max_steps=3, **options), train_dataset=rows)
