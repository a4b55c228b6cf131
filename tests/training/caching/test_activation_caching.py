"""Trainings with the activation cache have the losses of those without, and nothing is read where it is not exact."""

import contextlib

import pytest
import torch
from datasets import Dataset as HubDataset
from peft import LoraConfig, get_peft_model
from peft.helpers import rescale_adapter_scale
from torch.utils.data import Dataset, IterableDataset
from transformers import (
    BatchEncoding,
    TrainerCallback,
    TrainingArguments,
)

from cached_training import BlocksRun, build_examples
from sptune import ActivationCachingTrainer, SearchConfig, SPTTrainer, search_prompt_layers
from sptune.tasks import PaddingCollator
from sptune.training.caching.cache_settings import ActivationCacheSettings


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
    data = HubDataset.from_list(build_examples(16))
    values = []
    for cache in (None, ActivationCacheSettings()):
        trainer = build_trainer(bert, cache, examples=data)
        trainer.train()
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
            assert set(inputs) == {"input_ids", "attention_mask", "labels"}
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


def test_a_stream_of_evaluation_data_is_left_alone(build_trainer, bert):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(build_examples(4))

    trainer = build_trainer(bert, ActivationCacheSettings(), eval_strategy="epoch")
    trainer.eval_dataset = {"table": build_examples(4), "stream": Stream()}
    trainer.train()
    assert sum("eval_stream_loss" in entry for entry in trainer.state.log_history) == 3


class ByEpoch(Dataset):
    """Examples with another first token in every epoch, if `changing`."""

    def __init__(self, changing):
        self.changing, self.epoch, self.epochs = changing, 0, set()

    def set_epoch(self, epoch):
        self.epoch = epoch if self.changing else 0
        self.epochs.add(epoch)

    def __len__(self):
        return 16

    def __getitem__(self, index):
        first, *others = build_examples(16)[index]["input_ids"]
        return {**build_examples(16)[index], "input_ids": [first + self.epoch, *others]}


@pytest.mark.parametrize("changing", [True, False])
def test_examples_of_each_epoch_are_those_that_are_trained_on(build_trainer, bert, changing):
    values = []
    for cache in (None, ActivationCacheSettings()):
        trainer = build_trainer(bert, cache, examples=ByEpoch(changing))
        runs = BlocksRun(trainer.model)
        trainer.add_callback(runs)
        trainer.train()
        assert trainer.train_dataset.epochs == {0, 1, 2}
        values.append(trainer.losses.values)
    torch.testing.assert_close(torch.tensor(values[0]), torch.tensor(values[1]), rtol=1e-5, atol=0)
    assert (runs.by_epoch[1] > 0) == changing


def test_equal_texts_share_their_states(build_trainer, bert):
    examples = build_examples(4)
    again = [{**one, "labels": (one["labels"] + 1) % 3} for one in examples]
    assert_same_losses(build_trainer, bert, lambda trainer: None, examples=[*examples, *again])


class Batches(TrainerCallback):
    """Takes the batches of the trainer's data loaders, as a callback that generates texts does."""

    def __init__(self):
        self.names = set()

    def on_epoch_end(self, args, state, control, train_dataloader=None, **kwargs):
        for batch in train_dataloader:
            self.names.update(batch)

    def on_evaluate(self, args, state, control, eval_dataloader=None, **kwargs):
        for batch in eval_dataloader:
            self.names.update(batch)


@pytest.mark.parametrize(("workers", "dispatch"), [(0, False), (2, False), (2, True)])
def test_batches_are_those_of_the_collator(build_trainer, bert, workers, dispatch):
    trainer = build_trainer(
        bert, ActivationCacheSettings(), examples=build_examples(8), eval_strategy="epoch",
        accelerator_config={"dispatch_batches": dispatch}, dataloader_num_workers=workers, num_train_epochs=2,
    )  # fmt: skip
    batches, runs = Batches(), BlocksRun(trainer.model)
    trainer.add_callback(batches)
    trainer.add_callback(runs)
    trainer.train()
    assert batches.names == {"input_ids", "attention_mask", "labels"}
    assert runs.by_epoch[1] == 0, "the texts of the evaluation are some of the training"


class TeacherTrainer(SPTTrainer):
    """Asks the adapter "teacher", whose prompts begin lower, about each batch before the student trains on it."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        model.set_adapter("teacher")
        with torch.no_grad():
            model(**{name: value for name, value in inputs.items() if name != "labels"})
        model.set_adapter("default")
        return super().compute_loss(model, inputs, *args, **kwargs)


@pytest.mark.parametrize("placement", ["add", "prepend"])
def test_states_of_another_adapter_are_not_kept(build_backbone, build_config, bert, randomize, tmp_path, placement):
    trained = []
    for cache in (None, ActivationCacheSettings()):
        options = {"placement": placement, "prompt_layers": [3]}
        network = get_peft_model(build_backbone(bert, "classifier"), build_config(bert, "classifier", **options))
        network.add_adapter("teacher", build_config(bert, "classifier", **{**options, "prompt_layers": [1]}))
        network.set_adapter("teacher")
        randomize(network)
        network.set_adapter("default")
        randomize(network)
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


class EvaluateTwice(TrainerCallback):
    """After some epochs, evaluates the network as it is, with other adapters, and as it is again."""

    def __init__(self, change):
        self.change, self.losses = change, []

    def on_epoch_end(self, args, state, control, **kwargs):
        for context in (contextlib.nullcontext(), self.change(self.trainer), contextlib.nullcontext()):
            with context:
                self.losses.append(self.trainer.evaluate()["eval_loss"])


@contextlib.contextmanager
def with_names(trainer):
    trainer.names = ["__base__", "other"]
    yield
    trainer.names = None


@contextlib.contextmanager
def merged(trainer):
    trainer.model.merge_adapter(["other"])
    yield
    trainer.model.unmerge_adapter()


CHANGES = {
    "disabled": lambda trainer: trainer.model.disable_adapter(),
    "mixed": with_names,
    "merged": merged,
    "scaled": lambda trainer: rescale_adapter_scale(trainer.model, 5.0),
}


class NamingTrainer(ActivationCachingTrainer):
    """Evaluates with `adapter_names`, if it has some."""

    names = None

    def compute_loss(self, model, inputs, *args, **kwargs):
        size = len(inputs["input_ids"])
        more = {"adapter_names": (self.names * size)[:size]} if self.names and not model.training else {}
        return super().compute_loss(model, {**inputs, **more}, *args, **kwargs)


def frozen_below(network):
    """Adapters at all layers, of which those of the layers 0 and 1 do not learn."""
    network.set_adapter("default")
    for name, parameter in network.named_parameters():
        if any(f"layer.{layer}." in name for layer in (0, 1)):
            parameter.requires_grad_(False)
    return network


@pytest.mark.parametrize(
    ("method", "change"), [("spt", "disabled"), ("spt", "mixed"), *(("lora", change) for change in CHANGES)]
)
def test_states_with_other_adapters_below_are_neither_read_nor_kept(
    build_backbone, build_config, bert, randomize, tmp_path, method, change
):
    losses = []
    for cache in (None, ActivationCacheSettings()):
        torch.manual_seed(3)
        config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], init_lora_weights=False)
        if method == "spt":
            config = build_config(bert, "classifier", placement="add", prompt_layers=[1, 3])
        network = get_peft_model(build_backbone(bert, "classifier"), config)
        network.add_adapter("other", config)
        for name in ("other", "default"):
            network.set_adapter(name)
            randomize(network)
        args = TrainingArguments(
            str(tmp_path), num_train_epochs=1, per_device_train_batch_size=4, learning_rate=1e-2, use_cpu=True,
            report_to="none", save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        evaluate = EvaluateTwice(CHANGES[change])
        evaluate.trainer = NamingTrainer(
            frozen_below(network), args, train_dataset=build_examples(12), eval_dataset=build_examples(20)[8:],
            data_collator=PaddingCollator(0, left=False), activation_cache=cache, callbacks=[evaluate],
        )  # fmt: skip
        assert cache is None or evaluate.trainer.plan_activation_cache().reason is None
        evaluate.trainer.train()
        losses.append(evaluate.losses)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[0][1] != pytest.approx(losses[0][0], rel=1e-3), "the adapters below change the loss"


def compile_whole(trainer):
    trainer.model = trainer.model_wrapped = torch.compile(trainer.model, backend="eager")


def compile_block(trainer):
    layers = trainer.model.base_model.backbone.layers
    layers[3] = torch.compile(layers[3], backend="eager")


def compile_forward(trainer):
    base_model = trainer.model.base_model.backbone.base_model
    base_model.forward = torch.compile(base_model.forward, backend="eager")


COMPILED = {
    "whole": compile_whole,
    "in place": lambda trainer: trainer.model.compile(backend="eager"),
    "block": compile_block,
    "block in place": lambda trainer: trainer.model.base_model.backbone.layers[3].compile(backend="eager"),
    "forward": compile_forward,
}


@pytest.mark.parametrize("compiled", COMPILED)
def test_a_network_that_the_user_has_compiled_trains_without_the_cache(build_trainer, bert, compiled):
    values = []
    for cache in (None, ActivationCacheSettings()):
        trainer = build_trainer(bert, cache, max_steps=6, remove_unused_columns=False)
        COMPILED[compiled](trainer)
        trainer.train()
        values.append(trainer.losses.values)
    assert "torch.compile" in trainer.plan_activation_cache().reason
    assert values[0] == values[1]


def test_a_head_that_reads_padding_gives_the_cache_up(build_trainer, bert, caplog):
    trainer = build_trainer(bert, ActivationCacheSettings())
    model = trainer.model.get_base_model()
    model.bert.pooler.forward = lambda hidden_states: hidden_states.mean(1)
    trainer.train()
    assert "states at padding" in caplog.text
