"""The gate gradient of DARTS and SPT-DARTS, and what keeps it right: accumulation, clipping, warm-up, precision."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch.nn import functional
from torch.utils.data import IterableDataset
from transformers import BertConfig, BertForMultipleChoice, BertForQuestionAnswering, BertModel, TrainerCallback

from sptune import SPTConfig
from sptune.errors import InputError
from sptune.modeling.mean_pooling import MeanPooledClassifier
from sptune.search import SearchConfig, SPTSearchTrainer


class Recorder(TrainerCallback):
    """Keeps gradients and learning rates of every step as the optimizer finds them."""

    def __init__(self):
        self.gate_gradients, self.gradients, self.rates, self.weights, self.gates = [], [], [], [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        alphas = list(model.base_model.gate_parameters().values())
        self.gate_gradients.append([None if alpha.grad is None else alpha.grad.item() for alpha in alphas])
        self.gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.rates.append([group["lr"] for group in optimizer.param_groups])
        self.gates.append(model.base_model.gate_values())
        self.weights.append(torch.cat([p.detach().flatten() for p in model.base_model.generator_parameters()[0]]))


class RecordingTrainer(SPTSearchTrainer):
    """Keeps the layer masks that were drawn, in order."""

    def _draw_masks(self, size):
        self.masks = [*getattr(self, "masks", []), super()._draw_masks(size)]
        return self.masks[-1]


class Batches:
    """A collator that keeps the batches it made, in order."""

    def __init__(self, collate):
        self.collate, self.made = collate, []

    def __call__(self, examples):
        self.made.append(self.collate(examples))
        return self.made[-1]


@pytest.fixture
def train(build_args, collate):
    """``train(network, examples, search, class_scores=None, **args)``: trains and returns the trainer and records."""

    def run(network, examples, search, trainer_class=RecordingTrainer, class_scores=None, **options):
        recorder, batches = Recorder(), Batches(collate)
        trainer = trainer_class(
            network,
            build_args(**options),
            train_dataset=examples,
            search=search,
            class_scores=class_scores,
            data_collator=batches,
            callbacks=[recorder],
            head_learning_rate=options.get("learning_rate"),
        )
        trainer.train()
        return trainer, recorder, batches

    return run


def model_scores(model, batch):
    return model(**{name: value for name, value in batch.items() if name != "labels"}).logits


def separate_losses(network, batch, masks, search, shifted):
    """Task loss and consistency by two forwards, one for each mask, in plain code."""
    size = len(batch["input_ids"])
    task, predictions, states = [], [], []
    for run_masks in (masks[:size], masks[size:]):
        tuner = network.base_model
        alphas = torch.cat(list(tuner.gate_parameters().values()))
        with tuner.gating(alphas.sigmoid() * run_masks), network.base_model.record_final_states() as final:
            logits = network(**batch).logits
        labels = batch["labels"]
        if shifted:
            logits, labels = logits[:, :-1], labels[:, 1:]
        predicted = labels != -100
        task.append(functional.cross_entropy(logits[predicted], labels[predicted]))
        predictions.append(logits[predicted].log_softmax(-1))
        states.append(final[-1])
    if search.consistency == "kl":
        p, q = predictions
        consistency = sum(
            functional.kl_div(one, other, log_target=True, reduction="batchmean") / 2 for one, other in ((p, q), (q, p))
        )
    else:
        apart = (states[0] - states[1]).square().mean(-1)
        real = batch["attention_mask"].bool()
        consistency = torch.stack([row[mask].mean() for row, mask in zip(apart, real, strict=True)]).mean()
    return (task[0] + task[1]) / 2, consistency


def finite_differences(loss, alphas, width=0.05):
    """Central differences, extrapolated from two widths; their error in float32 is of the order of 1e-5."""

    def difference(alpha, middle, width):
        ends = []
        for end in (middle + width, middle - width):
            alpha.data.fill_(end)
            with torch.no_grad():
                ends.append(loss().item())
        alpha.data.fill_(middle)
        return (ends[0] - ends[1]) / (2 * width)

    slopes = []
    for alpha in alphas:
        middle = alpha.item()
        wide, narrow = difference(alpha, middle, width), difference(alpha, middle, width / 2)
        slopes.append((4 * narrow - wide) / 3)
    return slopes


CASES = {
    "class scores, kl": ("bert", "classifier", "kl", model_scores),
    "model's own loss, mse": ("bert", "classifier", "mse", None),
    "causal language model, kl": ("llama", "lm", "kl", None),
}


@pytest.mark.parametrize("case", CASES)
def test_spt_darts_gate_gradient_against_finite_differences(case, build_supernet, randomize, examples, train, request):
    family, head, consistency, class_scores = CASES[case]
    if head == "lm":  # the first two tokens are the instruction
        for example in examples:
            example["labels"] = [-100, -100, *example["input_ids"][2:]]
    network = build_supernet(request.getfixturevalue(family), head, activation="tanh")  # smooth, unlike relu
    randomize(network)
    before = copy.deepcopy(network.state_dict())
    search = SearchConfig(
        "spt_darts",
        consistency=consistency,
        consistency_weight=0.7,
        mask_probability=0.4,
        mixed_level_weight=0.6,
        warmup_ratio=0.0,
        seed=11,
    )
    options = {"max_steps": 1, "per_device_train_batch_size": 12, "learning_rate": 0.0, "max_grad_norm": 0.0}
    trainer, recorder, batches = train(network, examples, search, class_scores=class_scores, **options)

    network.load_state_dict(before)
    network.eval()  # there is no dropout in this model, and evaluation must not change the gates
    gate_masks, weight_masks = trainer.masks
    assert len(gate_masks) == len(weight_masks) == 24, "one batch of 2B for each split"
    weight_batch, gate_batch = batches.made

    def losses(batch, masks):
        return separate_losses(network, batch, masks, search, shifted=head == "lm")

    def gate_objective():
        gate_task, gate_apart = losses(gate_batch, gate_masks)
        weight_task, weight_apart = losses(weight_batch, weight_masks)
        return gate_task + 0.7 * gate_apart + 0.6 * (weight_task + 0.7 * weight_apart)

    with torch.no_grad():
        gate_task, _ = losses(gate_batch, gate_masks)
        weight_task, weight_apart = losses(weight_batch, weight_masks)
    recorded = trainer.history.entries[0]
    assert recorded["gate_loss"] == pytest.approx(gate_task.item(), rel=1e-5)
    assert recorded["weight_loss"] == pytest.approx(weight_task.item(), rel=1e-5)
    assert recorded["consistency"] == pytest.approx(weight_apart.item(), rel=1e-5)
    assert weight_apart > 1e-3, "the two masks must make a difference, or the test shows nothing"

    expected = finite_differences(gate_objective, list(network.base_model.gate_parameters().values()))
    assert recorder.gate_gradients[0] == pytest.approx(expected, rel=2e-3, abs=3e-5)
    assert max(map(abs, expected)) > 1e-2


def test_darts_gate_gradient_is_that_of_the_architecture_split_alone(build_supernet, randomize, examples, train):
    network = build_supernet(activation="tanh")
    randomize(network)
    before = copy.deepcopy(network.state_dict())
    search = SearchConfig(searcher="darts", warmup_ratio=0.0, mixed_level_weight=1.0)
    options = {"max_steps": 1, "per_device_train_batch_size": 12, "learning_rate": 0.0, "max_grad_norm": 0.0}
    trainer, recorder, batches = train(network, examples, search, **options)
    network.load_state_dict(before)
    network.eval()
    gate_batch = batches.made[1]
    alphas = list(network.base_model.gate_parameters().values())
    expected = finite_differences(lambda: network(**gate_batch).loss, alphas)
    assert recorder.gate_gradients[0] == pytest.approx(expected, rel=2e-3, abs=3e-5)
    assert trainer.history.entries[0]["consistency"] is None
    assert not hasattr(trainer, "masks"), "DARTS draws no masks"


def test_weights_learn_from_the_weight_split_and_gates_from_the_architecture_split(
    build_supernet, examples, train, collate
):
    """The weights' gradient is that of the weight batch alone, though the gate batch went backward first."""
    network = build_supernet()
    start = copy.deepcopy(network)
    search = SearchConfig(searcher="darts", warmup_ratio=0.0)
    trainer, recorder, _ = train(
        network, examples, search, max_steps=1, per_device_train_batch_size=12, max_grad_norm=0.0
    )
    weight_split = [trainer.train_dataset[index] for index in range(12)]
    architecture_split = [trainer.architecture_dataset[index] for index in range(12)]
    assert sorted(map(str, weight_split + architecture_split)) == sorted(map(str, examples))
    assert [sum(e["labels"] == label for e in architecture_split) for label in range(3)] == [4, 4, 4]

    start.train()
    start(**collate(weight_split)).loss.backward()
    for name, parameter in start.named_parameters():
        if parameter.grad is not None and "spt_gate" not in name:
            torch.testing.assert_close(recorder.gradients[0][name], parameter.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("searcher", ["darts", "spt_darts"])
@pytest.mark.parametrize("head", ["classifier", "lm"])
def test_gradient_accumulation_equals_one_large_batch(
    searcher, head, build_supernet, randomize, examples, train, bert, llama
):
    """Also where micro-batches differ in size (12 examples in fours, two at a time) and in labels."""
    if head == "lm":
        for example in examples:
            example["labels"] = [-100, *example["input_ids"][1:]]
    runs = []
    for batch_size, accumulation in ((8, 1), (4, 2), (2, 4)):
        network = build_supernet(llama if head == "lm" else bert, head)
        randomize(network)
        masks = {"mask_probability": 0.0} if searcher == "spt_darts" else {}
        search = SearchConfig(searcher=searcher, warmup_ratio=0.0, **masks)
        options = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        runs.append(train(network, examples, search, max_steps=2, max_grad_norm=0.0, **options)[:2])
    (large, large_record), *others = runs
    for trainer, record in others:
        for step in range(2):
            assert record.gradients[step].keys() == large_record.gradients[step].keys()
            for name, gradient in large_record.gradients[step].items():
                scale = gradient.abs().max().item()
                torch.testing.assert_close(record.gradients[step][name], gradient, atol=2e-3 * scale, rtol=1e-3)
        for entry, large_entry in zip(trainer.history.entries, large.history.entries, strict=True):
            assert entry["weight_loss"] == pytest.approx(large_entry["weight_loss"], rel=1e-3)
            assert entry["gate_loss"] == pytest.approx(large_entry["gate_loss"], rel=1e-3)


def test_gates_rest_while_the_weights_warm_up(build_supernet, examples, train):
    network = build_supernet()
    trainer, recorder, _ = train(network, examples, SearchConfig("spt_darts", warmup_ratio=0.5), max_steps=6)
    start = torch.full((4,), 0.5)
    for step in range(3):
        assert torch.equal(recorder.gates[step], start)
        assert recorder.gate_gradients[step] == [None] * 4
    assert not torch.equal(recorder.weights[0], recorder.weights[1]), "weights learn from the first steps on"
    assert all((recorder.gates[step] - recorder.gates[step - 1]).abs().min() > 0 for step in range(3, 6))
    assert [entry["gate_loss"] is None for entry in trainer.history.entries] == [True] * 3 + [False] * 3


def test_history_has_one_entry_a_step_and_ends_where_the_gates_are(build_supernet, examples, train):
    network = build_supernet()
    trainer, recorder, _ = train(
        network, examples, SearchConfig("spt_darts"), max_steps=5, gradient_accumulation_steps=2
    )
    entries = trainer.history.entries
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5]
    assert entries[-1]["gates"] == network.base_model.gate_values().tolist()
    assert [entry["gates"] for entry in entries] == [gates.tolist() for gates in recorder.gates]


def test_the_gates_keep_their_learning_rate_and_the_head_has_its_own(build_supernet, examples, build_args, collate):
    recorder = Recorder()
    trainer = SPTSearchTrainer(
        build_supernet(),
        build_args(max_steps=4, learning_rate=1e-3),
        train_dataset=examples,
        search=SearchConfig("spt_darts", gate_learning_rate=0.02, warmup_ratio=0.0),
        data_collator=collate,
        callbacks=[recorder],
        head_learning_rate=8e-3,
    )
    trainer.train()
    groups = trainer.optimizer.param_groups
    kinds = ["gates" if group.get("gates") else round(group["initial_lr"], 6) for group in groups]
    assert set(kinds) == {1e-3, 8e-3, "gates"}
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in trainer.model.parameters())
    gates = groups[kinds.index("gates")]
    assert gates["betas"] == (0.5, 0.999)
    assert gates["weight_decay"] == 0.0
    for kind, rates in zip(kinds, zip(*recorder.rates, strict=True), strict=True):
        expected = [0.02] * 4 if kind == "gates" else [kind * share for share in (0.75, 0.5, 0.25, 0.0)]
        assert list(rates) == pytest.approx(expected)


def test_clipping_takes_in_the_gate_gradient(build_supernet, examples, train):
    _, recorder, _ = train(
        build_supernet(), examples, SearchConfig("spt_darts", warmup_ratio=0.0), max_steps=1, max_grad_norm=1e-3
    )
    norm = torch.stack([gradient.norm() for gradient in recorder.gradients[0].values()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-2)
    assert any("spt_gate" in name for name in recorder.gradients[0])


def test_bf16_autocast_keeps_gates_in_full_precision(build_supernet, examples, train, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # transformers 4.57 sets it and leaves it so
    network = build_supernet()
    _, recorder, _ = train(network, examples, SearchConfig("spt_darts", warmup_ratio=0.0), max_steps=2, bf16=True)
    for alpha in network.base_model.gate_parameters().values():
        assert alpha.dtype == torch.float32
        assert alpha.isfinite().all()
        assert alpha.item() != 0
    assert all(torch.isfinite(torch.tensor(gradients)).all() for gradients in recorder.gate_gradients)


def test_gradient_checkpointing_gives_the_same_gradients(build_supernet, randomize, examples, train):
    records = []
    for checkpointing in (False, True):
        network = build_supernet()
        randomize(network)
        search = SearchConfig("spt_darts", consistency="mse", warmup_ratio=0.0)
        options = {"gradient_checkpointing": checkpointing, "max_grad_norm": 0.0}
        if checkpointing:
            options["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
        records.append(train(network, examples, search, max_steps=1, **options)[1])
    assert records[1].gate_gradients[0] == pytest.approx(records[0].gate_gradients[0], rel=1e-3, abs=1e-6)


def test_the_same_seed_gives_the_same_gates_and_another_seed_others(build_supernet, examples, train):
    def search(seed):
        network = build_supernet(backbone={"hidden_dropout_prob": 0.1})
        trainer, _, _ = train(network, examples, SearchConfig("spt_darts", seed=seed), max_steps=6)
        return trainer.history.entries

    first = search(1)
    assert search(1) == first
    assert search(2) != first


def test_evaluation_runs_without_masks_and_leaves_the_search_alone(build_supernet, examples, train, collate):
    network = build_supernet()
    trainer, _, _ = train(network, examples, SearchConfig("spt_darts"), max_steps=2)
    entries = copy.deepcopy(trainer.history.entries)
    drawn = len(trainer.masks)
    loss = trainer.evaluate(examples)["eval_loss"]
    network.eval()
    with torch.no_grad():
        expected = network(**collate(examples)).loss.item()
    assert loss == pytest.approx(expected, rel=1e-4)
    assert len(trainer.masks) == drawn
    assert trainer.history.entries == entries


def test_two_processes_equal_one_with_twice_the_batch(tmp_path):
    """Each process draws the layers of its own examples, and gradients are averaged over all of them."""
    script = Path(__file__).with_name("search_in_processes.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    results = []
    for processes, batch_size in ((1, 4), (2, 2)):
        output = tmp_path / f"{processes}.pt"
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        run = subprocess.run(
            [sys.executable, *(launch if processes > 1 else []), str(script), str(output), str(batch_size)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert run.returncode == 0, run.stderr[-3000:]
        results.append(torch.load(output))
    for searcher, one in results[0].items():
        two = results[1][searcher]
        gradients = torch.tensor(one["gate_gradients"])
        assert torch.tensor(two["gate_gradients"]) == pytest.approx(gradients, rel=1e-3, abs=1e-6), searcher
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-4), searcher
        assert two["scores"] == pytest.approx(one["scores"], rel=1e-4), searcher


def test_a_final_network_cannot_be_searched(build_backbone, build_config, build_args, bert, examples):
    network = get_peft_model(build_backbone(bert, "classifier"), build_config(bert, "classifier", prompt_layers=[1]))
    with pytest.raises(InputError, match="prompt_layers='search'"):
        SPTSearchTrainer(network, build_args(), train_dataset=examples, search=SearchConfig("spt_darts"))
    with pytest.raises(InputError, match="has no gates to learn"):
        SPTSearchTrainer(
            build_backbone(bert, "classifier"), build_args(), train_dataset=examples, search=SearchConfig("spt_darts")
        )


def test_the_old_name_of_the_architecture_split(build_supernet, build_args, examples):
    trainer = SPTSearchTrainer(build_supernet(), build_args(), train_dataset=examples, search=SearchConfig("spt_darts"))
    with pytest.warns(FutureWarning, match="gate_dataset was renamed to architecture_dataset"):
        assert trainer.gate_dataset is trainer.architecture_dataset


def test_a_trainer_refuses_another_searcher(build_supernet, build_args, examples):
    with pytest.raises(InputError, match="SPTSearchTrainer does not train for searcher='all'"):
        SPTSearchTrainer(build_supernet(), build_args(), train_dataset=examples, search=SearchConfig(searcher="all"))


def test_data_that_cannot_be_split_is_refused(build_supernet, build_args, examples):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(examples)

    for data, complaint in ((Stream(), "cannot split a Stream"), (examples[:1], r"holds 1 example")):
        with pytest.raises(InputError, match=complaint):
            SPTSearchTrainer(build_supernet(), build_args(), train_dataset=data, search=SearchConfig("spt_darts"))


def test_kl_of_a_single_score_is_refused(build_supernet, examples, train):
    network = build_supernet(backbone={"num_labels": 1})
    for example in examples:
        example["labels"] = 0
    with pytest.raises(InputError, match="choose 'mse'"):
        train(network, examples, SearchConfig("spt_darts"), class_scores=model_scores)


def tiny_bert(model_class, **options):
    shape = {"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    return model_class(BertConfig(**shape, intermediate_size=32, max_position_embeddings=16, **options))


def test_kl_of_a_model_without_logits_is_refused(examples, train):
    """A model for question answering has two kinds."""
    network = get_peft_model(tiny_bert(BertForQuestionAnswering), SPTConfig(task_type="QUESTION_ANS"))
    for example in examples:
        del example["labels"]
        example |= {"start_positions": 0, "end_positions": 1}
    with pytest.raises(InputError, match="gives only loss, start_logits, end_logits; choose 'mse'"):
        train(network, examples, SearchConfig("spt_darts"))


def test_kl_of_a_number_that_a_mean_pooled_model_gives(examples, train):
    model = MeanPooledClassifier.from_backbone(tiny_bert(BertModel), num_labels=1)
    trainer, *_ = train(get_peft_model(model, SPTConfig(task_type="SEQ_CLS")), examples, SearchConfig("spt_darts"))
    assert trainer.history.entries[-1]["consistency"] > 0  # prompts begin with 0


@pytest.mark.parametrize("placement", ["add", "prepend"])
@pytest.mark.parametrize("consistency", ["kl", "mse"])
def test_the_choices_of_an_example_share_its_masks(build_args, examples, collate, randomize, placement, consistency):
    """A model of multiple choice makes a row of each choice."""

    def choices(rows):
        batch = collate(rows)
        pairs = {name: torch.stack([batch[name], batch[name].flip(1)], 1) for name in ("input_ids", "attention_mask")}
        return {**pairs, "labels": batch["labels"] % 2}

    config = SPTConfig(prompt_layers="search", placement=placement, bottleneck_dim=4)
    network = get_peft_model(tiny_bert(BertForMultipleChoice), config)
    randomize(network)
    network.eval()
    search = SearchConfig("spt_darts", consistency=consistency)
    trainer = RecordingTrainer(network, build_args(), train_dataset=examples, search=search, data_collator=choices)
    batch = choices(examples[:3])
    with torch.no_grad():
        loss, distance, _ = trainer._masked_loss(network, batch)
        gates = trainer.alphas.sigmoid() * trainer.masks[0]
        alone = []
        for row, gate in enumerate(gates):
            one = {name: value[row % 3][None] for name, value in batch.items()}
            with network.base_model.gating(gate[None]):
                alone.append(network(**one).loss)
    torch.testing.assert_close(loss, torch.stack(alone).mean())
    assert distance > 0
    trainer.train()


def test_an_architecture_split_below_one_batch_is_refused(build_supernet, examples, train):
    with pytest.raises(InputError, match="fewer examples than one batch of 8"):
        train(
            build_supernet(),
            examples,
            SearchConfig("spt_darts", gate_fraction=0.2),
            per_device_train_batch_size=8,
            dataloader_drop_last=True,
        )


def test_between_gate_steps_the_gates_rest_and_no_gate_batch_is_drawn(build_supernet, bert, examples, train):
    search = SearchConfig("spt_darts", gate_interval=3, warmup_ratio=0.2, num_prompt_layers=1)
    trainer, recorder, _ = train(build_supernet(bert, "classifier"), examples, search, max_steps=10)
    before = [torch.full_like(recorder.gates[0], 0.5), *recorder.gates]
    moved = [not torch.equal(now, then) for then, now in zip(before, recorder.gates, strict=False)]
    assert moved == [step in (2, 5, 8) for step in range(10)]
    assert trainer.history.gate_batches == 3


def test_pricing_a_search_leaves_no_trace(build_supernet, bert, examples, train, build_args, collate):
    class Priced(RecordingTrainer):
        def train(self, *args, **kwargs):
            self.cost = self.estimate_seconds()
            return super().train(*args, **kwargs)

    search, gates = SearchConfig("spt_darts", num_prompt_layers=1), []
    for kind in (RecordingTrainer, Priced):
        trainer, recorder, _ = train(build_supernet(bert, "classifier"), examples, search, kind, max_steps=4)
        gates.append(torch.stack(recorder.gates))
    assert trainer.cost > 0
    assert torch.equal(*gates)


def test_pricing_a_search_leaves_a_split_model_where_it_is(build_supernet, build_args, examples, collate, monkeypatch):
    network = build_supernet()
    network.hf_device_map = {"embeddings": 0, "encoder": 1}
    trainer = SPTSearchTrainer(
        network, build_args(), train_dataset=examples, search=SearchConfig("darts"), data_collator=collate
    )
    monkeypatch.setattr(network, "to", lambda *args: pytest.fail("the model was moved"))
    assert trainer.estimate_seconds() > 0


def test_an_optimizer_of_ones_own_is_refused(build_supernet, build_args, examples, collate):
    """It would have no rate for the gates."""
    network = build_supernet()
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    with pytest.raises(InputError, match="makes its own optimizer"):
        SPTSearchTrainer(
            network,
            build_args(),
            train_dataset=examples,
            search=SearchConfig("darts"),
            data_collator=collate,
            optimizers=(optimizer, None),
        )
