"""The activation cache in training: the same losses, what it keeps where, and when it is not used."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import IA3Config, LNTuningConfig, LoraConfig, PromptTuningConfig, get_peft_model
from torch.utils.data import IterableDataset
from transformers import (
    AutoModelForCausalLM,
    BatchEncoding,
    MixtralConfig,
    T5Config,
    T5ForSequenceClassification,
    T5ForTokenClassification,
    TrainerCallback,
    TrainingArguments,
)

from sptune import ActivationCachingTrainer, SearchConfig, SPTTrainer, search_prompt_layers
from sptune.errors import InputError
from sptune.tasks import PaddingCollator
from sptune.training.activation_cache import ABOUT_FILE, ActivationCache
from sptune.training.cache_fingerprint import fingerprint
from sptune.training.cache_settings import ActivationCacheSettings
from sptune.training.token_table import TokenTable

FILE_LIMIT = 4_000


def build_examples(size, causal=False):
    noise = torch.Generator().manual_seed(5)
    rows = []
    for index in range(size):
        tokens = torch.randint(5, 100, (3 + index % 6,), generator=noise).tolist()
        rows.append({"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": index % 3})
    return rows


class Losses(TrainerCallback):
    """Keeps the training loss of every step."""

    def __init__(self):
        self.values = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.values += [logs[name] for name in ("loss", "eval_loss") if name in logs]


class BlocksRun(TrainerCallback):
    """Counts, epoch by epoch, how often the lowest block ran."""

    def __init__(self, network):
        self.by_epoch = [0]
        network.base_model.backbone.layers[0].base_layer.register_forward_hook(self.count)

    def count(self, *args):
        self.by_epoch[-1] += 1

    def on_epoch_end(self, args, state, control, **kwargs):
        self.by_epoch.append(0)


@pytest.fixture
def build_trainer(build_backbone, build_config, tmp_path):
    """``build_trainer(case, activation_cache, **options)``: on a tiny classifier with prompts at layers 2 and 3."""

    def build(
        case, activation_cache, *, examples=None, head="classifier", prompt_layers=(2, 3), trainer=None, **options
    ):
        torch.manual_seed(3)
        network = get_peft_model(build_backbone(case, head), build_config(case, head, prompt_layers=[*prompt_layers]))
        usual = {"num_train_epochs": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1}
        silent = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True}
        args = TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, **{**usual, **silent, **options})
        examples = build_examples(16) if examples is None else examples
        losses = Losses()
        made = SPTTrainer(
            network, args, train_dataset=examples, eval_dataset=examples[:6] if isinstance(examples, list) else None,
            data_collator=PaddingCollator(0, left=False), callbacks=[losses], activation_cache=activation_cache,
            **(trainer or {}),
        )  # fmt: skip
        made.losses = losses
        return made

    return build


@pytest.mark.parametrize(
    "settings", [ActivationCacheSettings(), ActivationCacheSettings(memory=0)], ids=["memory", "file"]
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_with_and_without_gives_the_same_losses(build_trainer, some_case, settings, accumulate):
    values = []
    for cache in (None, settings):
        trainer = build_trainer(some_case, cache, gradient_accumulation_steps=accumulate, eval_strategy="epoch")
        runs = BlocksRun(trainer.model)
        trainer.add_callback(runs)
        trainer.train()
        values.append(trainer.losses.values)
        # The first evaluation comes after the end of the first epoch.
        assert (runs.by_epoch[2] == 0) == (cache is not None), "texts seen before leave the lower layers alone"
    torch.testing.assert_close(torch.tensor(values[0]), torch.tensor(values[1]), rtol=1e-5, atol=0)


def test_a_table_of_datasets_is_cached_too(build_trainer, bert):
    data = Dataset.from_list(build_examples(16))
    values = []
    for cache in (None, ActivationCacheSettings()):
        trainer = build_trainer(bert, cache, examples=data)
        trainer.train()
        assert trainer.train_dataset is data
        values.append(trainer.losses.values)
    torch.testing.assert_close(torch.tensor(values[0]), torch.tensor(values[1]), rtol=1e-5, atol=0)


def test_a_language_models_own_loss_is_cached_too(build_trainer, some_causal_case):
    examples = build_examples(8)
    for example in examples:
        example["labels"] = [-100, *example["input_ids"][1:]]

    def collate(rows):
        batch = PaddingCollator(0, left=False)([{**row, "labels": 0} for row in rows])
        labels = [torch.tensor(row["labels"]) for row in rows]
        return {**batch, "labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)}

    values = []
    for cache in (None, ActivationCacheSettings()):
        trainer = build_trainer(some_causal_case, cache, examples=examples, head="lm")
        trainer.data_collator = collate
        trainer.train()
        values.append(trainer.losses.values)
    torch.testing.assert_close(torch.tensor(values[0]), torch.tensor(values[1]), rtol=1e-5, atol=0)


def test_bf16_autocast_gives_the_same_losses_with_and_without(build_trainer, some_case):
    values = []
    for cache in (None, ActivationCacheSettings()):
        trainer = build_trainer(some_case, cache, bf16=True)
        trainer.train()
        values.append(trainer.losses.values)
    torch.testing.assert_close(torch.tensor(values[0]), torch.tensor(values[1]), rtol=2e-2, atol=0)


@pytest.mark.parametrize("searcher", ["spt_darts", "darts"])
def test_a_search_reads_below_its_lowest_candidate(build_backbone, build_config, bert, tmp_path, searcher):
    histories, runs = [], []
    for cache in (None, ActivationCacheSettings()):
        torch.manual_seed(3)
        config = build_config(bert, "classifier", prompt_layers="search", candidate_layers=[2, 3])
        network = get_peft_model(build_backbone(bert, "classifier"), config)
        runs.append(BlocksRun(network))
        args = TrainingArguments(
            str(tmp_path), num_train_epochs=3, per_device_train_batch_size=4, report_to="none", use_cpu=True,
            save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        result = search_prompt_layers(
            network, build_examples(16), args, SearchConfig(searcher=searcher, num_prompt_layers=1),
            data_collator=PaddingCollator(0, left=False), activation_cache=cache,
        )  # fmt: skip
        histories.append([entry["gates"] + [entry["weight_loss"]] for entry in result.history])
    torch.testing.assert_close(torch.tensor(histories[0]), torch.tensor(histories[1]), rtol=1e-5, atol=1e-7)
    assert sum(runs[1].by_epoch) < sum(runs[0].by_epoch)


def test_an_interrupted_training_resumes_with_its_file(build_trainer, bert, tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 6:
                raise KeyboardInterrupt

    settings, saving = ActivationCacheSettings(memory=0), {"save_strategy": "steps", "save_steps": 2, "seed": 1}
    whole = build_trainer(bert, None, **saving)
    whole.train()
    broken = build_trainer(bert, settings, **saving)
    broken.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    (kept,) = (tmp_path / "out").glob("prefix-cache-*")
    assert (kept / ABOUT_FILE).is_file()
    resumed = build_trainer(bert, settings, **saving)
    runs = BlocksRun(resumed.model)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-6"))
    assert sum(runs.by_epoch) <= 2, "only the check of the first batch runs the lower layers"
    assert not kept.exists(), "a finished training leaves no cache behind"
    torch.testing.assert_close(
        torch.tensor(resumed.losses.values), torch.tensor(whole.losses.values[-len(resumed.losses.values) :]),
        rtol=1e-5, atol=0,
    )  # fmt: skip


def test_a_kept_file_serves_the_next_training(build_trainer, bert, tmp_path):
    settings, values = ActivationCacheSettings(memory=0, folder=str(tmp_path / "shared"), keep=True), []
    for _ in range(2):
        trainer = build_trainer(bert, settings)
        runs = BlocksRun(trainer.model)
        trainer.add_callback(runs)
        trainer.train()
        values.append(trainer.losses.values)
    assert sum(runs.by_epoch) <= 2, "only the check of the first batch runs the lower layers"
    torch.testing.assert_close(torch.tensor(values[0]), torch.tensor(values[1]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("change", ["weights", "tokens", "layer"])
def test_a_stale_file_is_not_used(build_network, bert, tmp_path, change):
    def key(network, examples):
        backbone = network.base_model.backbone
        return fingerprint(
            backbone.base_model, network.base_model.candidate_layers[0], TokenTable.of([examples]), backbone.layers
        )

    examples = build_examples(4)
    before = key(build_network(bert, prompt_layers=[2]), examples)
    assert key(build_network(bert, prompt_layers=[2], generator="static"), examples) == before
    network = build_network(bert, prompt_layers=[1 if change == "layer" else 2])
    if change == "weights":
        with torch.no_grad():
            next(network.base_model.backbone.layers[0].parameters()).view(-1)[0] += 1e-3
    if change == "tokens":
        examples[3]["input_ids"][0] += 1
    assert key(network, examples) != before


def test_a_file_without_its_description_is_made_anew(tmp_path):
    table = TokenTable.of([build_examples(3)])
    first = ActivationCache(2, table, 4, torch.float32, tmp_path, "key")
    first.write(torch.tensor([1]), first.table.starts[1] + torch.arange(4), torch.ones(4, 4))
    first.close(remove=False)
    again = ActivationCache(2, table, 4, torch.float32, tmp_path, "key")
    assert again.filled.tolist() == [False, True, False]
    assert again.states[again.table.starts[1]].tolist() == [1.0] * 4
    again.close(remove=False)
    (again.folder / ABOUT_FILE).write_text(json.dumps({"key": "other"}))
    assert not ActivationCache(2, table, 4, torch.float32, tmp_path, "key").filled.any()


class FullDisk(TrainerCallback):
    """Lets no file grow once training has begun."""

    def on_train_begin(self, args, state, control, **kwargs):
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_full_disk_leaves_training_as_it_was(build_trainer, bert, caplog, when):
    expected = build_trainer(bert, None)
    expected.train()
    trainer = build_trainer(bert, ActivationCacheSettings(memory=0))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if when == "before":
            FullDisk().on_train_begin(None, None, None)
        else:
            trainer.add_callback(FullDisk())
        trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "training goes on without" in caplog.text
    torch.testing.assert_close(
        torch.tensor(trainer.losses.values), torch.tensor(expected.losses.values), rtol=1e-5, atol=0
    )


def test_a_shorter_number_format_takes_less(build_trainer, bert):
    exact, short = (build_trainer(bert, ActivationCacheSettings(dtype=dtype)) for dtype in (None, "bfloat16"))
    assert short.plan_activation_cache().size * 2 == exact.plan_activation_cache().size
    for trainer in (exact, short):
        trainer.train()
    torch.testing.assert_close(torch.tensor(short.losses.values), torch.tensor(exact.losses.values), rtol=0.05, atol=0)


def test_the_plan_says_how_much_and_where(build_trainer, bert, tmp_path):
    tokens = sum(len(example["input_ids"]) for example in build_examples(16) + build_examples(16)[:6])
    plan = build_trainer(bert, ActivationCacheSettings(memory=0)).plan_activation_cache()
    assert plan.size == tokens * 32 * 4
    assert "layers 0 to 1 run once for each text" in str(plan)
    assert str(tmp_path) in str(plan)


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"prompt_layers": [0, 2]}, "layer 0"), ({"activation_cache": None}, "turned off")],
    ids=str,
)
def test_why_there_is_no_cache(build_trainer, bert, options, reason):
    trainer = build_trainer(bert, options.pop("activation_cache", ActivationCacheSettings()), **options)
    assert reason in str(trainer.plan_activation_cache())


def test_noise_below_the_prompts_gives_the_cache_up(build_trainer, bert, caplog):
    trainer = build_trainer(bert, ActivationCacheSettings())
    embeddings = trainer.model.base_model.backbone.base_model.embeddings
    embeddings.register_forward_hook(lambda module, args, output: output + torch.randn_like(output))
    runs = BlocksRun(trainer.model)
    trainer.add_callback(runs)
    trainer.train()
    assert "other states each time" in caplog.text
    assert runs.by_epoch[1] > 0


def test_trained_embeddings_give_the_cache_up(build_trainer, bert, caplog):
    trainer = build_trainer(bert, ActivationCacheSettings())
    trainer.model.get_base_model().bert.embeddings.requires_grad_(True)
    runs = BlocksRun(trainer.model)
    trainer.add_callback(runs)
    trainer.train()
    assert "is trained" in caplog.text
    assert runs.by_epoch[1] > 0


def test_tokens_that_change_from_epoch_to_epoch_are_computed(build_trainer, bert):
    """A collator that masks at random must not be answered from the cache."""
    values = []
    for cache in (None, ActivationCacheSettings()):
        trainer = build_trainer(bert, cache)
        noise, collate = torch.Generator().manual_seed(0), trainer.data_collator

        def masking(rows, collate=collate, noise=noise):
            batch = collate(rows)
            drawn = torch.rand(batch["input_ids"].shape, generator=noise) < 0.3
            return {**batch, "input_ids": batch["input_ids"].masked_fill(drawn, 4)}

        trainer.data_collator = masking
        trainer.train()
        values.append(trainer.losses.values)
    torch.testing.assert_close(torch.tensor(values[0]), torch.tensor(values[1]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("wrong", [{"memory": -1}, {"dtype": "int8"}], ids=str)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))}="):
        ActivationCacheSettings(**wrong)


def test_the_table_knows_padded_examples_and_token_types():
    rows = [
        {"input_ids": [5, 6, 0, 0], "attention_mask": [1, 1, 0, 0], "token_type_ids": [0, 1, 0, 0]},
        {"input_ids": [0, 7, 8, 9], "attention_mask": [0, 1, 1, 1], "token_type_ids": [0, 0, 0, 1]},
    ]
    for dataset in (rows, Dataset.from_list(rows), Dataset.from_list(rows).with_format("torch")):
        table = TokenTable.of([dataset, rows[:1]])
        assert table.tokens.tolist() == [5, 6, 7, 8, 9, 5, 6]
        assert table.types.tolist() == [0, 1, 0, 0, 1, 0, 1]
        assert (table.starts.tolist(), table.lengths.tolist()) == ([0, 2, 5], [2, 3, 2])


# -- what must not be answered from the cache ---------------------------------------------------------------------


def assert_same_losses(build_trainer, case, change, **options):
    """Train with and without a cache after the same change to the trainer; the losses must be the same."""
    values = []
    for cache in (None, ActivationCacheSettings()):
        trainer = build_trainer(case, cache, **options)
        change(trainer)
        trainer.train()
        values.append(trainer.losses.values)
    torch.testing.assert_close(torch.tensor(values[0]), torch.tensor(values[1]), rtol=1e-5, atol=0)


def test_padding_in_front_moves_absolute_positions(build_trainer, some_case):
    def pad_left(trainer):
        trainer.data_collator = PaddingCollator(0, left=True)

    # Rotary positions are relative, so states of Llama may be kept; Adam makes much of their rounding, so few steps.
    assert_same_losses(build_trainer, some_case, pad_left, max_steps=6, learning_rate=1e-4)


@pytest.mark.parametrize("name", ["position_ids", "token_type_ids"])
def test_inputs_that_a_collator_draws(build_trainer, bert, name):
    def draw(trainer):
        collate, noise = trainer.data_collator, torch.Generator().manual_seed(0)

        def collator(rows):
            batch = collate(rows)
            drawn = torch.randint(0, 2, batch["input_ids"].shape, generator=noise)
            return {**batch, name: drawn if name == "token_type_ids" else (1 + drawn).cumsum(-1)}

        trainer.data_collator = collator

    assert_same_losses(build_trainer, bert, draw)


def test_an_example_without_tokens(build_trainer, bert):
    examples = build_examples(8)
    for place in (3, 7):
        examples[place] |= {"input_ids": [], "attention_mask": []}
    assert_same_losses(build_trainer, bert, lambda trainer: None, examples=examples)


def test_layers_that_begin_to_learn_on_the_way(build_trainer, bert, caplog):
    class Unfreeze(TrainerCallback):
        def on_epoch_end(self, args, state, control, model=None, **kwargs):
            model.base_model.backbone.layers[0].base_layer.requires_grad_(True)

    assert_same_losses(build_trainer, bert, lambda trainer: trainer.add_callback(Unfreeze()))
    assert "is trained" in caplog.text


def test_hidden_states_that_are_asked_for_are_computed(build_trainer, bert):
    trainer = build_trainer(bert, ActivationCacheSettings())
    trainer.model.config.output_hidden_states = True
    runs = BlocksRun(trainer.model)
    trainer.add_callback(runs)
    trainer.train()
    assert runs.by_epoch[1] == 4, "every step of the second epoch runs the lowest layer"


def test_a_loss_of_the_users_own_sees_only_the_batch(build_backbone, build_config, bert, tmp_path):
    class Own(SPTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            assert "prefix_row" not in inputs
            outputs = model(**inputs)
            return (outputs.loss, outputs) if return_outputs else outputs.loss

    torch.manual_seed(3)
    network = get_peft_model(build_backbone(bert, "classifier"), build_config(bert, "classifier", prompt_layers=[2]))
    runs = BlocksRun(network)
    args = TrainingArguments(str(tmp_path), num_train_epochs=2, report_to="none", use_cpu=True, save_strategy="no")
    Own(
        network, args, train_dataset=build_examples(8), data_collator=PaddingCollator(0, left=False), callbacks=[runs]
    ).train()
    assert runs.by_epoch[1] == 0


def test_items_of_another_mapping_type_stay_what_they_are(build_trainer, bert):
    collate = PaddingCollator(0, left=False)

    def by_attribute(rows):
        return collate([{**row, "input_ids": row.input_ids} for row in rows])

    examples = [BatchEncoding(example) for example in build_examples(8)]
    trainer = build_trainer(bert, ActivationCacheSettings(), examples=examples)
    trainer.data_collator = by_attribute
    runs = BlocksRun(trainer.model)
    trainer.add_callback(runs)
    trainer.train()
    assert runs.by_epoch[1] == 0
    assert "prefix_row" not in examples[0]


def test_a_stream_of_evaluation_data_is_left_alone(build_trainer, bert):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(build_examples(4))

    def evaluate_stream(trainer):
        trainer.eval_dataset = {"table": build_examples(4), "stream": Stream(), "none": []}

    trainer = build_trainer(bert, ActivationCacheSettings())
    evaluate_stream(trainer)
    datasets = trainer.eval_dataset
    trainer.train()
    assert trainer.eval_dataset is datasets


def test_a_stream_with_a_length_is_no_table(build_trainer, bert):
    class Stream(IterableDataset):
        def __len__(self):
            return 4

        def __iter__(self):
            return iter(build_examples(4))

    trainer = build_trainer(bert, ActivationCacheSettings(), examples=Stream())
    assert "length and index" in str(trainer.plan_activation_cache())
    trainer.train()
    assert trainer.losses.values


def test_states_beyond_a_number_format_are_not_kept(build_trainer, bert, caplog):
    def grow(trainer):
        with torch.no_grad():
            trainer.model.base_model.backbone.layers[1].base_layer.output.LayerNorm.weight.fill_(1e6)

    values = []
    for cache in (None, ActivationCacheSettings(dtype="float16")):
        trainer = build_trainer(bert, cache)
        grow(trainer)
        trainer.train()
        values.append(trainer.losses.values)
    assert values[0] == values[1]
    assert "too large" in caplog.text


def test_what_another_layer_left_behind_is_cleared_away(build_trainer, bert, tmp_path):
    stale = tmp_path / "out" / "prefix-cache-0123456789abcdef"
    stale.mkdir(parents=True)
    build_trainer(bert, ActivationCacheSettings(memory=0)).train()
    assert not stale.exists()


def test_two_processes_share_a_file_and_agree_where_there_is_no_room(tmp_path):
    script, losses = Path(__file__).with_name("train_in_processes.py"), {}
    for cache in ("none", "file", "full disk"):
        output = tmp_path / f"{cache}.json"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        run = subprocess.run(
            [*launch, str(script), str(output), cache, str(tmp_path / "shared")],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr[-3000:]
        losses[cache] = json.loads(output.read_text())
    assert losses["file"] == pytest.approx(losses["none"], rel=1e-4)
    assert losses["full disk"] == pytest.approx(losses["none"], rel=1e-4)


# -- other methods that train upper layers alone ------------------------------------------------------------------

UPPER = {
    "lora": lambda model: get_peft_model(
        model,
        LoraConfig(
            task_type="SEQ_CLS",
            r=4,
            target_modules=["query", "value", "q_proj", "v_proj"],
            layers_to_transform=[2, 3],
        ),
    ),
    "ia3": lambda model: get_peft_model(
        model,
        IA3Config(
            task_type="SEQ_CLS", target_modules=r".*\.[23]\..*\.(query|value|q_proj|v_proj)", feedforward_modules=[]
        ),
    ),
    "layer norms": lambda model: get_peft_model(
        model, LNTuningConfig(task_type="SEQ_CLS", target_modules=r".*\.[23]\..*([lL]ayer_?[nN]orm)")
    ),
    "blocks": lambda model: train_only(model, lambda name: True),
    "biases": lambda model: train_only(model, lambda name: "bias" in name),
}


def train_only(model, wanted):
    """Train the weights of layers 2 and 3 whose names are wanted, and the head."""
    for name, parameter in model.named_parameters():
        upper = any(f".{layer}." in name for layer in (2, 3))
        parameter.requires_grad_((upper and wanted(name)) or name.split(".")[0] in ("classifier", "score"))
    return model


def lowest_block(model):
    return next(one for one in model.modules() if isinstance(one, torch.nn.ModuleList) and len(one) == 4)[0]


@pytest.fixture
def train_upper(build_backbone, bert, tmp_path):
    """``train_upper(attach, activation_cache, case=bert, config={}, collator=None, examples=None, **options)``.

    Trains what ``attach(model)`` makes of a tiny classifier; gives the trainer, with ``losses`` and ``runs``: how often
    the lowest block ran in each epoch.
    """

    def train(attach, activation_cache, *, case=bert, config=(), collator=None, examples=None, model=None, **options):
        torch.manual_seed(3)
        network = attach(build_backbone(case, "classifier", **dict(config)) if model is None else model())
        usual = {"num_train_epochs": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1}
        silent = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "eval_strategy": "epoch"}
        args = TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, **{**usual, **silent, **options})
        examples, losses = build_examples(16) if examples is None else examples, Losses()
        trainer = ActivationCachingTrainer(
            network, args, train_dataset=examples, eval_dataset=examples[:6], activation_cache=activation_cache,
            data_collator=collator or PaddingCollator(0, left=False), callbacks=[losses],
        )  # fmt: skip
        trainer.losses, trainer.runs = losses, [0]
        inside = next(one for one in lowest_block(network).modules() if isinstance(one, torch.nn.Linear))
        inside.register_forward_hook(lambda *args: trainer.runs.__setitem__(-1, trainer.runs[-1] + 1))

        class NextEpoch(TrainerCallback):
            def on_epoch_end(self, args, state, control, **kwargs):
                trainer.runs.append(0)

        trainer.add_callback(NextEpoch())
        trainer.train()
        return trainer

    return train


def assert_cached_alike(train_upper, attach, *, rtol=1e-5, **options):
    """Losses and weights are the same with the cache, and layers below run for no text a second time."""
    plain, cached = (train_upper(attach, cache, **options) for cache in (None, ActivationCacheSettings()))
    torch.testing.assert_close(
        torch.tensor(cached.losses.values), torch.tensor(plain.losses.values), rtol=rtol, atol=rtol * 1e-2
    )
    weights = dict(plain.model.named_parameters())
    for name, weight in cached.model.named_parameters():
        torch.testing.assert_close(weight, weights[name], rtol=rtol, atol=rtol, msg=name)
    assert plain.runs[2] > 0
    assert cached.runs[2] == 0, "texts seen before leave the lower layers alone, in evaluation too"


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("method", UPPER)
def test_methods_of_others_train_upper_layers_as_without_a_cache(train_upper, method, dropout):
    config = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    assert_cached_alike(train_upper, UPPER[method], config=config)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("method", ["lora", "ia3", "layer norms", "blocks"])
def test_methods_of_others_on_a_decoder(train_upper, llama, method, left):
    # Rotary positions are relative up to rounding, of which Adam makes much.
    options = {"learning_rate": 1e-4, "rtol": 1e-3} if left else {}
    options |= {"case": llama, "config": {"attention_dropout": 0.2}, "collator": PaddingCollator(0, left=left)}
    assert_cached_alike(train_upper, UPPER[method], **options)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method", ["lora", "blocks"])
def test_gradient_checkpointing_goes_with_the_cache_of_other_methods(train_upper, method, reentrant):
    assert_cached_alike(
        train_upper, UPPER[method], gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant}, config={"hidden_dropout_prob": 0.1},
    )  # fmt: skip


def test_bf16_goes_with_the_cache_of_other_methods(train_upper):
    assert_cached_alike(train_upper, UPPER["lora"], bf16=True, rtol=2e-2)


def test_weights_in_bfloat16_are_cached_as_they_are(train_upper):
    def attach(model):
        return UPPER["lora"](model.to(torch.bfloat16))

    assert_cached_alike(train_upper, attach)
    assert train_upper(attach, ActivationCacheSettings()).plan_activation_cache().dtype == torch.bfloat16


def test_weights_that_are_no_floating_numbers_do_not_choose_the_dtype(train_upper):
    """As in models quantized to 8 or 4 bits, whose first parameter may be of bytes."""

    def attach(model):
        model = UPPER["lora"](model)
        lowest_block(model).register_parameter("packed", torch.nn.Parameter(torch.zeros(2).byte(), requires_grad=False))
        block = lowest_block(model)
        block._parameters.move_to_end("packed", last=False) if hasattr(block._parameters, "move_to_end") else None
        return model

    assert train_upper(attach, ActivationCacheSettings()).plan_activation_cache().dtype == torch.float32
    assert_cached_alike(train_upper, attach)


def test_dropout_comes_back_after_training(train_upper):
    trainer = train_upper(UPPER["lora"], None, config={"hidden_dropout_prob": 0.1})
    trainer.model.train()
    assert all(module.training for module in trainer.model.modules())


def test_a_cached_training_evaluates_before_its_first_step(train_upper):
    assert_cached_alike(train_upper, UPPER["lora"], eval_on_start=True, config={"hidden_dropout_prob": 0.3})


def with_embeddings(model):
    model = UPPER["blocks"](model)
    model.get_input_embeddings().requires_grad_(True)
    return model


def with_lora_on_embeddings(model):
    """Its factors are in a `ParameterDict`, which is never called."""
    names = r".*word_embeddings|.*layer\.[23]\..*query"
    return get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=names))


def with_trained_tokens(model):
    tokens = {"word_embeddings": list(range(5, 50))}
    return get_peft_model(
        model, LoraConfig(task_type="SEQ_CLS", r=2, layers_to_transform=[2, 3], trainable_token_indices=tokens)
    )


@pytest.mark.parametrize(
    ("attach", "reason"),
    [
        (lambda model: train_only(model, lambda name: False), "nothing is trained in the blocks"),
        (lambda model: get_peft_model(model, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)), "nothing"),
        (lambda model: get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2)), "layer 0 is trained"),
        (with_embeddings, "something below it is trained"),
        (with_lora_on_embeddings, "something below it is trained"),
        (with_trained_tokens, "something below it is trained"),
        (
            lambda model: get_peft_model(
                model, LoraConfig(task_type="SEQ_CLS", layers_to_transform=[2, 3], modules_to_save=["embeddings"])
            ),
            "something below it is trained",
        ),
        (
            lambda model: get_peft_model(
                model, LoraConfig(task_type="SEQ_CLS", layers_to_transform=[2], modules_to_save=["layer.1.attention"])
            ),
            "",
        ),
    ],
    ids=["head", "prompt tuning", "layer 0", "embeddings", "LoRA on embeddings", "tokens", "saved", "layer 1"],
)
def test_what_learns_below_is_not_cached(train_upper, attach, reason, caplog):
    caplog.set_level("INFO", logger="sptune")
    plain, cached = (train_upper(attach, cache) for cache in (None, ActivationCacheSettings()))
    assert cached.losses.values == pytest.approx(plain.losses.values, rel=1e-5)
    if reason:
        assert reason in caplog.text
        assert cached.runs[1] >= 4, "every step of the second epoch runs the lowest layer"


def test_relative_positions_that_learn_are_not_cached(train_upper, family_case, caplog):
    """DeBERTa's blocks use their weights, of a module that is never called."""

    def attach(model):
        UPPER["blocks"](model).deberta.encoder.rel_embeddings.requires_grad_(True)
        return model

    case = family_case("deberta-v3")
    plain, cached = (train_upper(attach, cache, case=case) for cache in (None, ActivationCacheSettings()))
    assert cached.losses.values == pytest.approx(plain.losses.values, rel=1e-5)
    assert "something below it is trained" in caplog.text


T5_SHAPE = {
    "vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 4, "num_heads": 4, "num_labels": 3,
    "dropout_rate": 0.0, "pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


def test_blocks_that_pass_on_positions_are_not_cached(train_upper, caplog):
    def attach(model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".block.2." in name or ".block.3." in name or "classifier" in name)
        return model

    def build():
        return T5ForTokenClassification(T5Config(**T5_SHAPE))

    examples = [{**row, "labels": [row["labels"]] * len(row["input_ids"])} for row in build_examples(16)]

    def collate(rows):
        batch = PaddingCollator(0, left=False)([{**row, "labels": 0} for row in rows])
        labels = [torch.tensor(row["labels"]) for row in rows]
        return {**batch, "labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)}

    options = {"model": build, "examples": examples, "collator": collate}
    plain, cached = (train_upper(attach, cache, **options) for cache in (None, ActivationCacheSettings()))
    assert cached.losses.values == pytest.approx(plain.losses.values, rel=1e-5)
    assert "the blocks pass on more than hidden states" in caplog.text


def test_two_lists_of_blocks_are_not_cached(train_upper, caplog):
    caplog.set_level("INFO", logger="sptune")

    def attach(model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".block.3." in name or "classification_head" in name)
        return model

    examples = [{**row, "input_ids": [*row["input_ids"], 1], "attention_mask": [1] * (len(row["input_ids"]) + 1)}
                for row in build_examples(8)]  # fmt: skip
    trainer = train_upper(
        attach, ActivationCacheSettings(), model=lambda: T5ForSequenceClassification(T5Config(**T5_SHAPE)),
        examples=examples,
    )  # fmt: skip
    assert "no single list of blocks" in caplog.text
    assert trainer.runs[1] > 0


def test_a_loss_of_the_experts_of_all_layers_is_computed(train_upper, decoder_shape, caplog):
    """With `output_router_logits` the loss depends on the routers of all layers."""
    config = MixtralConfig(**{**decoder_shape, "num_local_experts": 4, "output_router_logits": True})

    def build():
        return AutoModelForCausalLM.from_config(config)

    def attach(model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".2." in name or ".3." in name)
        return model

    examples = [{**row, "labels": row["input_ids"]} for row in build_examples(16)]

    def collate(rows):
        batch = PaddingCollator(0, left=False)([{**row, "labels": 0} for row in rows])
        return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}

    options = {"model": build, "examples": examples, "collator": collate}
    plain, cached = (train_upper(attach, cache, **options) for cache in (None, ActivationCacheSettings()))
    assert cached.losses.values == pytest.approx(plain.losses.values, rel=1e-5)
    assert cached.runs[1] >= 4


# What a cache must not serve


class TeacherTrainer(SPTTrainer):
    """Asks the adapter "teacher", whose prompts begin lower, about each batch before the student trains on it."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        model.set_adapter("teacher")
        with torch.no_grad():
            model(**{name: value for name, value in inputs.items() if name != "labels"})
        model.set_adapter("default")
        return super().compute_loss(model, inputs, *args, **kwargs)


@pytest.mark.parametrize("placement", ["add", "prepend"])
def test_states_of_another_adapter_are_not_kept(build_backbone, build_config, bert, randomise, tmp_path, placement):
    trained = []
    for cache in (None, ActivationCacheSettings()):
        options = {"placement": placement, "prompt_layers": [3]}
        network = get_peft_model(build_backbone(bert, "classifier"), build_config(bert, "classifier", **options))
        network.add_adapter("teacher", build_config(bert, "classifier", **{**options, "prompt_layers": [1]}))
        network.set_adapter("teacher")
        randomise(network)
        network.set_adapter("default")
        randomise(network)
        args = TrainingArguments(
            str(tmp_path), num_train_epochs=3, per_device_train_batch_size=4, learning_rate=1e-2, use_cpu=True,
            report_to="none", save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        TeacherTrainer(
            network, args, train_dataset=build_examples(16), data_collator=PaddingCollator(0, left=False),
            activation_cache=cache,
        ).train()  # fmt: skip
        trained.append({name: p.detach() for name, p in network.named_parameters() if ".default." in name})
    torch.testing.assert_close(*trained, atol=1e-5, rtol=1e-4)


def test_a_head_that_reads_padding_gives_the_cache_up(build_trainer, bert, caplog):
    trainer = build_trainer(bert, ActivationCacheSettings())
    model = trainer.model.get_base_model()
    model.bert.pooler.forward = lambda hidden_states: hidden_states.mean(1)
    trainer.train()
    assert "states at padding" in caplog.text


@pytest.mark.parametrize(
    ("options", "config", "reason"),
    [
        ({"neftune_noise_alpha": 5.0}, {}, "noise to the embeddings"),
        ({}, {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}, "rotary positions"),
    ],
    ids=["neftune", "dynamic rope"],
)
def test_what_changes_states_with_each_batch_is_not_cached(
    build_backbone, build_config, llama, tmp_path, options, config, reason
):
    if config and not hasattr(build_backbone(llama).config, "rope_parameters"):
        config = {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
    network = get_peft_model(
        build_backbone(llama, "classifier", **config), build_config(llama, "classifier", placement="add")
    )
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", **options)
    trainer = SPTTrainer(network, args, train_dataset=build_examples(4))
    assert reason in str(trainer.plan_activation_cache())
