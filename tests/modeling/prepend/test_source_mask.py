"""The source mask: generators never see padding or targets, and in generation only the instruction."""

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from sptune import SPTTrainer
from sptune.modeling.prepend.source_mask import instruction_length, real_tokens, source_tokens

REAL = torch.tensor([[True, True, True, True], [False, True, True, True]])
TARGETS = torch.tensor([[-100, -100, 7, -100], [-100, -100, -100, -100]])


def _tokens():
    return torch.randint(5, 90, (2, 9), generator=torch.Generator().manual_seed(0))


def test_all_tokens_are_real_without_a_mask_and_a_mask_is_read_at_its_end():
    states = torch.zeros(2, 4, 8)
    assert real_tokens(None, states).all()
    covers_a_cache = torch.cat([torch.zeros(2, 3, dtype=torch.long), REAL.long()], dim=1)
    assert torch.equal(real_tokens(covers_a_cache, states), REAL)


def test_the_source_ends_before_the_first_target():
    source = source_tokens(REAL, targets=TARGETS)
    assert source.tolist() == [[True, True, False, False], [False, True, True, True]]


def test_a_given_source_mask_comes_before_targets_and_never_adds_padding():
    given = torch.tensor([[0, 0, 0, 1], [1, 1, 0, 0]])
    source = source_tokens(REAL, source_mask=given, targets=TARGETS)
    assert source.tolist() == [[False, False, False, True], [False, True, False, False]]


def test_labels_of_whole_texts_are_no_targets():
    assert torch.equal(source_tokens(REAL, targets=torch.tensor([1, 0])), REAL)


def test_the_instruction_keeps_its_length_while_text_and_beams_are_added():
    instruction = torch.tensor([[5, 6, 7], [8, 9, 3]])
    beams = torch.cat([instruction.repeat_interleave(2, 0), torch.ones(4, 2, dtype=torch.long)], dim=1)
    assert instruction_length(instruction, beams) == 3
    assert instruction_length(instruction, instruction[:, -1:]) == 3  # a step with a cache
    assert instruction_length(instruction, beams.flip(0)) is None  # another text, asked for by a logits processor
    assert instruction_length(None, beams) is None


@pytest.mark.parametrize("generator", ["npg", "appg", "attention"])
def test_an_instruction_behind_a_target_is_no_source(build_network, some_causal_case, generator):
    network = build_network(some_causal_case, generator=generator)
    tokens = _tokens()
    labels = torch.full_like(tokens, -100)
    labels[:, 4:7] = tokens[:, 4:7]
    changed = tokens.clone()
    changed[:, 6] = (changed[:, 6] + 1) % 90
    with torch.no_grad():
        before = network(input_ids=tokens, labels=labels).logits
        after = network(input_ids=changed, labels=torch.where(labels == -100, labels, changed)).logits
    assert torch.equal(before[:, :6], after[:, :6])


def test_label_smoothing_does_not_show_targets_to_the_generators(build_network, some_causal_case, tmp_path):
    network = build_network(some_causal_case)
    arguments = TrainingArguments(str(tmp_path), label_smoothing_factor=0.1, report_to="none", use_cpu=True)
    trainer = SPTTrainer(network, arguments)
    tokens = _tokens()
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 90
    logits = []
    for ids in (tokens, changed):
        labels = ids.clone()
        labels[:, :4] = -100
        with torch.no_grad():
            _, outputs = trainer.compute_loss(network, {"input_ids": ids, "labels": labels}, return_outputs=True)
        logits.append(outputs["logits"])
    assert torch.equal(logits[0][:, :-1], logits[1][:, :-1])


def test_a_source_mask_column_reaches_the_model(build_network, some_causal_case, tmp_path):
    network = build_network(some_causal_case)
    rows = [{"input_ids": row, "labels": row, "source_mask": [1] * 3 + [0] * 6} for row in _tokens().tolist()]
    seen = []
    network.get_base_model().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append("source_mask" in kwargs), with_kwargs=True, prepend=True
    )
    arguments = TrainingArguments(str(tmp_path), max_steps=1, report_to="none", save_strategy="no", use_cpu=True)
    SPTTrainer(network, arguments, train_dataset=Dataset.from_list(rows)).train()
    assert seen
    assert all(seen)  # the activation cache makes two checks before it is used


def test_static_prompts_are_made_from_the_first_piece_of_a_text(build_network, some_causal_case):
    network, tokens = build_network(some_causal_case, generator="static"), _tokens()
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    mask = torch.ones_like(tokens)
    whole = network.generate(input_ids=tokens, attention_mask=mask, **options)
    pieces = network.generate(input_ids=tokens, attention_mask=mask, prefill_chunk_size=3, **options)
    assert torch.equal(whole, pieces)


def test_plain_trainer_warns_where_generators_would_see_targets(build_network, some_causal_case, tmp_path, caplog):
    network, tokens = build_network(some_causal_case), _tokens()
    arguments = TrainingArguments(str(tmp_path), label_smoothing_factor=0.1, report_to="none", use_cpu=True)
    Trainer(network.train(), arguments).compute_loss(network, {"input_ids": tokens, "labels": tokens})
    assert "targets" in caplog.text
