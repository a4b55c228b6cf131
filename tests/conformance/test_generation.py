"""Generation with prompts: cached = uncached, batched and left-padded = alone, and no state left behind."""

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from assertions import assert_same

NEW_TOKENS = 8


def _generate(network, batch, **options):
    """Token ids (batch, NEW_TOKENS) and, greedily, the logits they were taken from."""
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, **options}
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    outputs = network.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)
    return outputs.sequences[:, batch["input_ids"].shape[1] :], torch.stack(outputs.logits, 1)


OPTIONS = {
    "static": {"generator": "static"},
    "appg": {"generator": "appg"},
    "appg search": {"generator": "appg", "prompt_layers": "search"},
    "appg first": {"generator": "appg", "prompt_layers": [0]},
}
GENERATORS = pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))


@GENERATORS
def test_greedy_cached_is_uncached(build_network, build_batch, causal_case, options):
    network = build_network(causal_case, **options)
    batch = build_batch(causal_case, side="left")
    cached, cached_logits = _generate(network, batch, use_cache=True)
    uncached, uncached_logits = _generate(network, batch, use_cache=False)
    assert torch.equal(cached, uncached)
    assert_same(cached_logits, uncached_logits)


@GENERATORS
def test_beams_cached_are_uncached(build_network, build_batch, causal_case, options):
    network = build_network(causal_case, **options)
    batch = build_batch(causal_case, side="left")
    cached, _ = _generate(network, batch, use_cache=True, num_beams=3, num_return_sequences=2)
    uncached, _ = _generate(network, batch, use_cache=False, num_beams=3, num_return_sequences=2)
    assert torch.equal(cached, uncached)


@pytest.mark.parametrize("num_beams", [1, 3])
@GENERATORS
def test_a_left_padded_batch_is_each_text_alone(build_network, build_batch, causal_case, options, num_beams):
    network = build_network(causal_case, **options)
    batch = build_batch(causal_case, side="left", extra=3)
    together, _ = _generate(network, batch, num_beams=num_beams)
    for row in range(len(together)):
        real = batch["attention_mask"][row].bool()
        alone = {name: tensor[row][real][None] for name, tensor in batch.items()}
        assert torch.equal(together[row], _generate(network, alone, num_beams=num_beams)[0][0])


def test_every_generator_is_frozen_at_the_instruction(build_network, build_batch, some_causal_case, generator):
    network = build_network(some_causal_case, generator=generator)
    batch = build_batch(some_causal_case, side="left")
    cached, cached_logits = _generate(network, batch, use_cache=True)
    uncached, uncached_logits = _generate(network, batch, use_cache=False)
    assert torch.equal(cached, uncached)
    assert_same(cached_logits, uncached_logits)


def test_generation_sees_what_training_saw(build_network, build_batch, causal_case):
    """Logits of generated tokens equal those of a training pass with the instruction as source."""
    network = build_network(causal_case)
    batch = build_batch(causal_case, side="left")
    tokens, logits = _generate(network, batch)
    source_width = batch["input_ids"].shape[1]
    mask = torch.cat([batch["attention_mask"], torch.ones_like(tokens)], 1)
    labels = torch.cat([torch.full_like(batch["input_ids"], -100), tokens], 1)
    with torch.no_grad():
        trained = network(
            input_ids=torch.cat([batch["input_ids"], tokens], 1),
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).masked_fill(mask == 0, 1),
            labels=labels,
        ).logits
    assert_same(trained[:, source_width - 1 : -1], logits)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_without_a_mask(build_network, build_batch, causal_case, num_beams):
    network = build_network(causal_case)
    batch = build_batch(causal_case, (8, 8))
    expected, _ = _generate(network, batch, num_beams=num_beams)
    tokens = network.generate(
        input_ids=batch["input_ids"],
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        num_beams=num_beams,
    )
    assert torch.equal(tokens[:, 8:], expected)


def test_generation_leaves_no_state_behind(build_network, build_batch, logits_of, causal_case):
    network = build_network(causal_case)
    batch, other = build_batch(causal_case, side="left"), build_batch(causal_case, (4, 6), side="left")
    logits, (tokens, _) = logits_of(network, batch), _generate(network, batch)
    _generate(network, other)
    assert torch.equal(logits_of(network, batch), logits)
    assert torch.equal(_generate(network, batch)[0], tokens)


def test_generation_that_breaks_off_leaves_no_state_behind(build_network, build_batch, logits_of, llama):
    class BreakOffError(Exception):
        pass

    def stop(input_ids, scores, **kwargs):
        raise BreakOffError

    network, batch = build_network(llama), build_batch(llama)
    before = logits_of(network, batch)
    with pytest.raises(BreakOffError):
        _generate(network, build_batch(llama, (4, 6), side="left"), stopping_criteria=[stop])
    assert torch.equal(logits_of(network, batch), before)


def test_sampling_with_several_sequences_a_text(build_network, build_batch, causal_case):
    network = build_network(causal_case)
    batch = build_batch(causal_case, side="left")
    samples = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        options = {"do_sample": True, "num_return_sequences": 2, "top_k": 0}
        samples.append(_generate(network, batch, use_cache=use_cache, **options)[0])
    assert torch.equal(*samples)


@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no mask"])
@pytest.mark.parametrize("chunks", [(5, 3), (3, 1, 4), (1, 7)], ids=str)
@pytest.mark.parametrize("prompt_layers", ["search", [1, 3]], ids=str)
def test_prefill_in_chunks_is_prefill_at_once(build_network, build_batch, causal_case, prompt_layers, chunks, masked):
    network = build_network(causal_case, generator="static", prompt_layers=prompt_layers)
    token_ids = build_batch(causal_case, (8, 8))["input_ids"]
    with torch.no_grad():
        at_once = network(input_ids=token_ids).logits
        parts, cache, start = [], None, 0
        for size in chunks:
            mask = torch.ones(2, start + size, dtype=torch.long) if masked else None
            outputs = network(
                input_ids=token_ids[:, start : start + size],
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
            )
            parts.append(outputs.logits)
            cache, start = outputs.past_key_values, start + size
    assert_same(torch.cat(parts, 1), at_once)


@pytest.mark.parametrize("width", [4, 2], ids=["some text first", "padding alone first"])
def test_prefill_of_a_left_padded_batch_in_chunks(build_network, build_batch, causal_case, width):
    network = build_network(causal_case, generator="static")
    batch = build_batch(causal_case, (8, 5), side="left", positions=True)
    with torch.no_grad():
        at_once = network(**batch).logits
        first = {name: tensor[:, :width] for name, tensor in batch.items()}
        second = {name: tensor[:, width:] for name, tensor in batch.items()}
        second["attention_mask"] = batch["attention_mask"]
        outputs = network(**first, use_cache=True)
        parts = [outputs.logits, network(**second, past_key_values=outputs.past_key_values).logits]
    real = batch["attention_mask"].bool()
    assert_same(torch.cat(parts, 1)[real], at_once[real])


def test_generation_with_prefill_in_chunks(build_network, build_batch, causal_case):
    """Without padding, which transformers 4.57 gets wrong here by itself."""
    network = build_network(causal_case, generator="static")
    batch = build_batch(causal_case, (8, 8))
    at_once, _ = _generate(network, batch)
    assert torch.equal(_generate(network, batch, prefill_chunk_size=3)[0], at_once)


@pytest.mark.parametrize("option", [{"prefill_chunk_size": 3}, {"guidance_scale": 1.5}], ids=str)
def test_generators_that_read_the_text_refuse_it_in_pieces(build_network, build_batch, causal_case, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        _generate(build_network(causal_case), build_batch(causal_case, (8, 8)), **option)


def test_the_cache_reports_the_length_of_the_text(build_network, build_batch, causal_case):
    network = build_network(causal_case, prompt_layers=[0, 2])
    with torch.no_grad():
        outputs = network(**build_batch(causal_case, (8, 8)), use_cache=True)
    assert [outputs.past_key_values.get_seq_length(layer) for layer in range(4)] == [8] * 4


@pytest.mark.parametrize("generator_name", ["static", "appg"])
def test_guessing_ahead_is_greedy(build_network, build_batch, causal_case, generator_name):
    """Prompt look-up drafts several tokens and crops the cache where they were wrong."""
    network = build_network(causal_case, generator=generator_name)
    batch = build_batch(causal_case, (9,))
    batch["input_ids"] = batch["input_ids"][:, :3].repeat(1, 3)
    greedy, _ = _generate(network, batch, max_new_tokens=16, min_new_tokens=16)
    ahead, _ = _generate(network, batch, max_new_tokens=16, min_new_tokens=16, prompt_lookup_num_tokens=3)
    # Transformers 4.57 may accept one drafted token too many at the end.
    assert torch.equal(ahead[:, : greedy.shape[1]], greedy)


def test_a_conversation_goes_on_from_its_cache(build_network, build_batch, causal_case):
    network = build_network(causal_case, generator="static")
    batch = build_batch(causal_case, (6,))
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    first = network.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        return_dict_in_generate=True,
        **options,
    )
    longer = torch.cat([first.sequences, build_batch(causal_case, (3,))["input_ids"]], 1)
    mask = torch.ones_like(longer)
    expected = network.generate(input_ids=longer, attention_mask=mask, **options)
    continued = network.generate(
        input_ids=longer, attention_mask=mask, past_key_values=first.past_key_values, **options
    )
    assert torch.equal(continued, expected)


def test_generation_with_the_adapter_disabled_is_the_backbones(build_network, build_backbone, build_batch, causal_case):
    network = build_network(causal_case)
    batch = build_batch(causal_case, side="left")
    expected, expected_logits = _generate(build_backbone(causal_case), batch)
    with network.disable_adapter():
        tokens, logits = _generate(network, batch)
    assert torch.equal(tokens, expected)
    assert_same(logits, expected_logits)
    assert (_generate(network, batch)[1] - expected_logits).abs().max() > 1e-2


def test_another_text_asked_about_inside_generation_is_read_whole(build_network, build_batch, some_causal_case):
    network = build_network(some_causal_case)
    other = build_batch(some_causal_case, (12, 12))
    other["input_ids"] = other["input_ids"].flip(1)  # texts of a fixture begin alike
    with torch.no_grad():
        expected = network(**other).logits
    asked = []

    class Ask(LogitsProcessor):
        def __call__(self, input_ids, scores):
            with torch.no_grad():
                asked.append(network(**other).logits)
            return scores

    tokens = build_batch(some_causal_case, (5, 5))["input_ids"]
    network.generate(
        input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=3, min_new_tokens=3, do_sample=False,
        logits_processor=LogitsProcessorList([Ask()]),
    )  # fmt: skip
    assert len(asked) == 3
    for logits in asked:
        assert_same(logits, expected)
