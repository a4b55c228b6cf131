"""A batch whose rows have adapters of their own (`adapter_names`): each row is what it is alone."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForSeq2SeqLM, T5Config

from sptune import MeanPooledClassifier, SPTConfig

# Adapters that differ in everything that `placement="add"` lets differ.
ADAPTERS = {
    "wide": {"prompt_layers": [1, 3], "bottleneck_dim": 8},
    "narrow": {"prompt_layers": [0, 1], "bottleneck_dim": 3},
    "phm": {"prompt_layers": [1, 2], "projection": "phm", "phm_dim": 2, "bottleneck_dim": 4},
    "gelu": {"prompt_layers": [3], "activation": "gelu"},
    "static": {"prompt_layers": [0, 3], "generator": "static"},
    "still": {"prompt_layers": [3], "generator": "static"},
    "search": {"prompt_layers": "search", "candidate_layers": [0, 1, 2, 3], "bottleneck_dim": 5},
}
# The same of `placement="prepend"`, and some that are added.
IN_FRONT = {
    "appg": {"prompt_layers": [1, 3], "num_virtual_tokens": 4, "bottleneck_dim": 8},
    "appg-narrow": {"prompt_layers": [1, 2], "num_virtual_tokens": 4, "bottleneck_dim": 3, "mixing_rate": 0.5},
    "mppg": {"prompt_layers": [2], "num_virtual_tokens": 2, "generator": "mppg", "residual": False},
    "npg": {"prompt_layers": [1], "num_virtual_tokens": 3, "generator": "npg", "projection": "phm", "phm_dim": 2},
    "npg-wide": {"prompt_layers": [1, 3], "num_virtual_tokens": 3, "generator": "npg", "bottleneck_dim": 12},
    "attention": {"prompt_layers": [0, 3], "num_virtual_tokens": 5, "generator": "attention", "bottleneck_dim": 4},
    "attention-wide": {"prompt_layers": [0], "num_virtual_tokens": 5, "generator": "attention", "bottleneck_dim": 9},
    "static": {"prompt_layers": [3], "num_virtual_tokens": 1, "generator": "static"},
    "gates": {"prompt_layers": "search", "candidate_layers": [1, 2, 3], "num_virtual_tokens": 3},
    "always": {"prompt_layers": "search", "candidate_layers": [2, 3], "visibility": "always", "mixing_rate": 0.7},
}
IN_FRONT = {name: {"placement": "prepend", **options} for name, options in IN_FRONT.items()}
IN_FRONT |= {name: ADAPTERS[name] for name in ("wide", "search")}
NAMES_IN_FRONT = [*IN_FRONT, "__base__", "appg"]
LENGTHS_IN_FRONT = (9, 5, 7, 3, 8, 4, 6, 9, 2, 1, 5, 8, 7, 9)

NAMES = ["wide", "__base__", "narrow", "phm", "wide", "gelu", "static", "search", "still"]
LENGTHS = (9, 5, 7, 3, 8, 4, 6, 9, 2)
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture
def attach(randomize):
    """``attach(model, adapters=ADAPTERS, **options)``: a network with these adapters, all of them random."""

    def build(model, adapters=ADAPTERS, **options):
        network = None
        for seed, (name, own) in enumerate(adapters.items()):
            config = SPTConfig(**{**options, **own})
            if network is None:
                network = get_peft_model(model, config, adapter_name=name)
            else:
                network.add_adapter(name, config)
            network.set_adapter(name)
            randomize(network, seed)
        return network.eval()

    return build


def _alone(network, name, run):
    """What `run` gives with one adapter for all rows, chosen as without `adapter_names`."""
    if name == "__base__":
        with network.disable_adapter():
            return run()
    network.set_adapter(name)
    return run()


@pytest.fixture
def build_t5():
    """``build_t5()``: an encoder-decoder with four blocks each."""

    def build():
        torch.manual_seed(1)
        sizes = {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 4, "num_heads": 4}
        return AutoModelForSeq2SeqLM.from_config(T5Config(**sizes, dropout_rate=0.0, decoder_start_token_id=0)).eval()

    return build


@torch.no_grad()
def _assert_each_row_is_as_alone(network, batch, names=NAMES):
    mixed = network(**batch, adapter_names=names).logits
    real = batch["attention_mask"].bool()
    for row, name in enumerate(names):
        alone = _alone(network, name, lambda: network(**batch).logits)[row]
        chosen = slice(None) if mixed.dim() == 2 else real[row]
        torch.testing.assert_close(mixed[row][chosen][..., : alone.shape[-1]], alone[chosen], **CLOSE)
        assert (mixed[row][chosen][..., alone.shape[-1] :] == -torch.inf).all()
    return mixed


@pytest.mark.parametrize("head", ["lm", "classifier"])
def test_each_row_is_as_alone(attach, build_backbone, build_batch, some_case, head):
    task_type = {"classifier": "SEQ_CLS", "lm": "CAUSAL_LM" if some_case.causal else None}[head]
    network = attach(build_backbone(some_case, head), task_type=task_type)
    batch = build_batch(some_case, LENGTHS, side="left" if some_case.causal else "right", extra=2)
    network.set_adapter("gelu")
    mixed = _assert_each_row_is_as_alone(network, batch)
    assert len({row.sum().item() for row in mixed}) == len(NAMES)


@pytest.mark.parametrize(("head", "side"), [("lm", "left"), ("lm", "right"), ("classifier", "right")])
def test_each_row_is_as_alone_with_prompts_in_front(attach, build_backbone, build_batch, some_case, head, side):
    task_type = {"classifier": "SEQ_CLS", "lm": "CAUSAL_LM" if some_case.causal else None}[head]
    network = attach(build_backbone(some_case, head), IN_FRONT, task_type=task_type)
    batch = build_batch(some_case, LENGTHS_IN_FRONT, side=side, extra=2)
    network.set_adapter("wide")
    mixed = _assert_each_row_is_as_alone(network, batch, NAMES_IN_FRONT)
    assert len({row.sum().item() for row in mixed}) == len(NAMES_IN_FRONT)


def test_rows_of_no_adapter_are_the_backbone_bit_for_bit(attach, build_backbone, build_batch, bert):
    network, batch = attach(build_backbone(bert)), build_batch(bert, LENGTHS)
    with torch.no_grad(), network.disable_adapter():
        bare = network(**batch).logits
    with torch.no_grad():
        assert torch.equal(network(**batch, adapter_names=["__base__"] * 9).logits, bare)
        assert torch.equal(network(**batch, adapter_names=NAMES).logits[1], bare[1])


@pytest.mark.parametrize("name", ADAPTERS)
def test_one_adapter_for_all_rows_is_that_adapter(attach, build_backbone, build_batch, bert, name):
    network, batch = attach(build_backbone(bert)), build_batch(bert)
    network.set_adapter("gelu" if name != "gelu" else "wide")
    active = network.active_adapter
    with torch.no_grad():
        mixed = network(**batch, adapter_names=[name] * 3).logits
        assert network.active_adapter == active
        assert torch.equal(mixed, _alone(network, name, lambda: network(**batch).logits))


def test_modules_inside_and_outside_of_blocks(attach, build_backbone, build_batch, bert):
    network = attach(
        build_backbone(bert),
        {
            "one": {"prompt_layers": [1], "modules_to_save": ["2.output.dense", "word_embeddings"]},
            "two": {"prompt_layers": [2], "modules_to_save": ["2.output.dense", "1.output.LayerNorm"]},
            "none": {"prompt_layers": [3]},
        },
    )
    _assert_each_row_is_as_alone(network, build_batch(bert, (4, 5, 6, 4)), ["one", "two", "__base__", "none"])


def test_modules_whose_input_has_no_rows_are_refused(attach, build_t5, build_backbone, build_batch, bert, family_case):
    """The lengths and sizes are such that the input's first dimension is a multiple of the rows."""
    t5, t5_batch = build_t5(), build_batch(bert, (9, 5, 6))
    t5_batch["decoder_input_ids"] = torch.randint(5, 100, (3, 3))
    t5_batch.pop("position_ids")
    case = family_case("deberta-v3")
    deberta, deberta_batch = build_backbone(case), build_batch(case, (4, 5))
    for model, batch, module, options in (
        (t5, t5_batch, "relative_attention_bias", {"layers_path": "encoder.block", "task_type": "SEQ_2_SEQ_LM"}),
        (deberta, deberta_batch, "encoder.LayerNorm", {}),
    ):
        own = {"prompt_layers": [1], "modules_to_save": [module]}
        network = attach(model, {"one": own, "two": own, "none": {"prompt_layers": [1]}}, **options)
        rows = len(batch["input_ids"])
        for names in (["one", "two", "one"][:rows], ["none", "two", "two"][:rows]):
            with torch.no_grad(), pytest.raises(ValueError, match=r"no row for each example.*set_adapter"):
                network(**batch, adapter_names=names)
        with torch.no_grad():
            mixed = network(**batch, adapter_names=["two"] * rows).logits
            network.set_adapter("two")
            torch.testing.assert_close(mixed, network(**batch).logits, **CLOSE)


@pytest.mark.parametrize("dtypes", [(torch.float64, torch.float32)], ids=str)
def test_generators_of_several_dtypes(attach, build_backbone, build_batch, bert, dtypes):
    network, batch = attach(build_backbone(bert)), build_batch(bert, LENGTHS)
    for block in network.base_model.backbone.layers:
        for name, generator in block.spt_generator.items():
            generator.to(dtypes[name in ("wide", "static")])
    _assert_each_row_is_as_alone(network, batch)


@torch.no_grad()
def test_half_precision(attach, build_backbone, build_batch, llama):
    network, batch = attach(build_backbone(llama).to(torch.bfloat16)), build_batch(llama, LENGTHS, side="left")
    mixed = network(**batch, adapter_names=NAMES).logits
    assert mixed.dtype == torch.bfloat16
    for row, name in enumerate(NAMES):
        alone = _alone(network, name, lambda: network(**batch).logits)[row]
        torch.testing.assert_close(mixed[row], alone, atol=0.1, rtol=0.1)


# -- heads


@pytest.fixture
def build_classifier(build_backbone, bert):
    """``build_classifier(num_labels)``: a mean-pooled classifier with the same backbone at every call."""

    def build(num_labels):
        torch.manual_seed(num_labels)
        return MeanPooledClassifier.from_backbone(build_backbone(bert, "none"), num_labels=num_labels)

    return build


def _save(network, folder):
    network.save_pretrained(folder)
    return str(folder / network.active_adapter)


def test_mean_pooled_heads_of_several_sizes(attach, build_classifier, build_batch, bert, tmp_path):
    batch = build_batch(bert, (4, 5, 6))
    folders, expected = {}, {}
    for labels in (6, 2, 3):
        network = attach(build_classifier(labels), {f"of{labels}": ADAPTERS["wide"]}, task_type="SEQ_CLS")
        folders[f"of{labels}"] = _save(network, tmp_path)
        with torch.no_grad():
            expected[f"of{labels}"] = network(**batch).logits
    network = PeftModel.from_pretrained(build_classifier(2), folders["of6"], adapter_name="of6").eval()
    for name in ("of2", "of3"):
        network.load_adapter(folders[name], name)
    for name, logits in expected.items():
        with torch.no_grad():
            torch.testing.assert_close(_alone(network, name, lambda: network(**batch).logits), logits, **CLOSE)
    mixed = _assert_each_row_is_as_alone(network, batch, ["of2", "of6", "of3"])
    assert mixed.isfinite().sum(-1).tolist() == [2, 6, 3]
    assert mixed.argmax(-1).tolist() == [
        expected[name][row].argmax().item() for row, name in enumerate(["of2", "of6", "of3"])
    ]
    _assert_each_row_is_as_alone(network, batch, ["of2", "__base__", "of3"])


@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
def test_heads_of_transformers_of_several_sizes(attach, build_backbone, build_batch, family_case, family, tmp_path):
    case = family_case(family)
    batch = build_batch(case, (4, 5, 6))
    folders = {}
    for labels in (6, 2):
        model = build_backbone(case, "classifier", num_labels=labels)
        network = attach(model, {f"of{labels}": ADAPTERS["wide"]}, task_type="SEQ_CLS")
        folders[f"of{labels}"] = _save(network, tmp_path)
    network = PeftModel.from_pretrained(
        build_backbone(case, "classifier", num_labels=2), folders["of2"], adapter_name="of2"
    ).eval()
    network.load_adapter(folders["of6"], "of6")
    mixed = _assert_each_row_is_as_alone(network, batch, ["of2", "of6", "of2"])
    assert mixed.isfinite().sum(-1).tolist() == [2, 6, 2]


def test_a_language_model_head_of_another_size_is_refused(attach, build_backbone, llama, tmp_path):
    options = {"prompt_layers": [1], "modules_to_save": ["lm_head"]}
    folder = _save(attach(build_backbone(llama, vocab_size=120), {"lm": options}), tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(build_backbone(llama), folder)


# -- generation

SHORT = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}


def _generated(network, batch, names, **options):
    return network.generate(**batch, **SHORT, **options, adapter_names=names)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("in_front", [False, True], ids=["add", "prepend"])
def test_generate(attach, build_backbone, build_batch, family_case, family, in_front, options):
    if in_front and "cache_implementation" in options:
        pytest.skip("static caches hold no prompts")
    case = family_case(family)
    network = attach(build_backbone(case), IN_FRONT if in_front else ADAPTERS, task_type="CAUSAL_LM")
    names = NAMES_IN_FRONT if in_front else NAMES
    batch = build_batch(case, LENGTHS_IN_FRONT if in_front else LENGTHS, side="left")
    batch.pop("position_ids", None)
    mixed = _generated(network, batch, names, **options)
    copies = len(mixed) // len(names)
    for row, name in enumerate(names):
        alone = _alone(network, name, lambda: network.generate(**batch, **SHORT, **options))
        assert torch.equal(mixed[row * copies : (row + 1) * copies], alone[row * copies : (row + 1) * copies])
    assert copies == options.get("num_return_sequences", 1)


def test_beams_of_a_generation_config(attach, build_backbone, build_batch, llama):
    network, batch = attach(build_backbone(llama), task_type="CAUSAL_LM"), build_batch(llama, LENGTHS, side="left")
    expected = _generated(network, batch, NAMES, num_beams=3)
    network.generation_config.num_beams = 3
    assert torch.equal(_generated(network, batch, NAMES), expected)


def test_assisted_generation(attach, build_backbone, build_batch, llama):
    network, batch = attach(build_backbone(llama), task_type="CAUSAL_LM"), build_batch(llama, (9,))
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": -1}
    expected = _alone(network, "narrow", lambda: network.generate(**batch, **options))
    network.set_adapter("wide")
    for more in ({}, {"prompt_lookup_num_tokens": 2}, {"assistant_model": build_backbone(llama)}):
        assert torch.equal(network.generate(**batch, **options, **more, adapter_names=["narrow"]), expected)


@pytest.mark.parametrize("layers_path", ["encoder.block", "decoder.block"])
@pytest.mark.parametrize("beams", [1, 3])
def test_encoder_decoders(attach, build_t5, build_batch, bert, layers_path, beams):
    network = attach(build_t5(), task_type="SEQ_2_SEQ_LM", layers_path=layers_path)
    batch = build_batch(bert, LENGTHS)
    batch.pop("position_ids")
    mixed = _generated(network, batch, NAMES, num_beams=beams)
    for row, name in enumerate(NAMES):
        alone = _alone(network, name, lambda: network.generate(**batch, **SHORT, num_beams=beams))
        assert torch.equal(mixed[row], alone[row])
    answers = torch.randint(5, 100, (len(NAMES), 4))
    with torch.no_grad():
        mixed = network(**batch, decoder_input_ids=answers, adapter_names=NAMES).logits
        for row, name in enumerate(NAMES):
            alone = _alone(network, name, lambda: network(**batch, decoder_input_ids=answers).logits)
            torch.testing.assert_close(mixed[row], alone[row], atol=1e-4, rtol=1e-5)


# -- calls that are refused


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["wide", "wde", "narrow"], r"non-existing adapter\(s\) wde; the model has wide, narrow.*still"),
        (["wide", "narrow"], "2 names, but the batch has 3 rows"),
        (["wide"] * 6, "6 names, but the batch has 3 rows"),
        ("wide", "is one name"),
        ([], "empty"),
        ([None, "wide", "wide"], "None"),
    ],
    ids=str,
)
@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
def test_names_that_do_not_fit_are_refused_at_once(attach, build_backbone, build_batch, llama, names, words, task_type):
    network, batch = attach(build_backbone(llama), task_type=task_type), build_batch(llama)
    network.base_model.backbone.layers[0].register_forward_pre_hook(lambda *_: pytest.fail("a block ran"))
    with pytest.raises(ValueError, match=words):
        network(**batch, adapter_names=names)
    with pytest.raises(ValueError, match=words):
        network.generate(**batch, **SHORT, adapter_names=names)


def test_training_mode_and_gates_of_one_adapter_are_refused(attach, build_backbone, build_batch, bert):
    network, batch = attach(build_backbone(bert)), build_batch(bert)
    with network.base_model.gating(torch.ones(1, 4)), pytest.raises(ValueError, match="gating"):
        network(**batch, adapter_names=["search"] * 3)
    with pytest.raises(ValueError, match="training mode"):
        network.train()(**batch, adapter_names=["wide"] * 3)


def test_a_disabled_model_is_the_backbone(attach, build_backbone, build_batch, bert):
    network, batch = attach(build_backbone(bert)), build_batch(bert)
    with torch.no_grad(), network.disable_adapter():
        assert torch.equal(network(**batch, adapter_names=["wide"] * 3).logits, network(**batch).logits)


@pytest.mark.parametrize("adapters", [ADAPTERS, IN_FRONT], ids=["add", "prepend"])
def test_disabled_layers_are_the_backbone(attach, build_backbone, build_batch, bert, adapters):
    head = {"head": {"prompt_layers": [1], "modules_to_save": ["2.output.dense"]}}
    network, batch = attach(build_backbone(bert), adapters | head), build_batch(bert)
    names = ["head", "wide", "search"]
    with torch.no_grad():
        expected = network(**batch, adapter_names=names).logits
        network.base_model.disable_adapter_layers()
        assert torch.equal(network(**batch, adapter_names=names).logits, network(**batch).logits)
        network.base_model.enable_adapter_layers()
        assert torch.equal(network(**batch, adapter_names=names).logits, expected)


def test_a_cache_of_other_rows_is_refused(attach, build_backbone, build_batch, llama):
    network, batch = attach(build_backbone(llama), IN_FRONT), build_batch(llama, (3, 3))
    with torch.no_grad():
        cache = network(**batch, use_cache=True, adapter_names=["appg", "npg"]).past_key_values
        for names in (["npg", "appg"], ["__base__", "__base__"]):
            with pytest.raises(ValueError, match="cache was filled"):
                network(input_ids=batch["input_ids"][:, :1], past_key_values=cache, adapter_names=names)


# -- compiled models and threads


@pytest.mark.parametrize("adapters", [ADAPTERS, IN_FRONT], ids=["add", "prepend"])
def test_compiled(attach, build_backbone, build_batch, llama, adapters):
    torch._dynamo.reset()
    names = ["__base__", *list(adapters)[:4]]
    network, batch = attach(build_backbone(llama), adapters), build_batch(llama, LENGTHS[:5])
    with torch.no_grad():
        expected = network(**batch, adapter_names=names).logits
        compiled = torch.compile(network, backend="eager")(**batch, adapter_names=names).logits
    torch.testing.assert_close(compiled, expected, **CLOSE)


MIXTURES = {
    "add": [["wide", "narrow", "__base__"], ["phm", "static", "wide"], ["search"] * 3, ["gelu", "search", "wide"]],
    "prepend": [["appg", "npg", "__base__"], ["mppg", "static", "wide"], ["gates"] * 3, ["always", "search", "wide"]],
}


@pytest.mark.parametrize("placement", MIXTURES)
def test_adapters_come_and_go_while_others_answer(attach, build_backbone, build_batch, bert, placement, tmp_path):
    adapters = {"add": ADAPTERS, "prepend": IN_FRONT | {"still": ADAPTERS["still"], "narrow": ADAPTERS["narrow"]}}
    network = attach(build_backbone(bert, "classifier"), adapters[placement], task_type="SEQ_CLS")
    network.save_pretrained(tmp_path)
    batch, ended = build_batch(bert, (4, 5, 6)), threading.Event()
    mixtures = MIXTURES[placement]

    @torch.no_grad()
    def answer(names):
        return network(**batch, adapter_names=names).logits

    expected = [answer(names) for names in mixtures]

    def answer_on(number):
        answers = []
        while not ended.is_set() or not answers:
            answers.append(torch.equal(answer(mixtures[number]), expected[number]))
        return answers

    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(answer_on, number) for number in range(4)]
        for turn in range(6):
            network.load_adapter(str(tmp_path / "still"), f"new{turn}")
            network.load_adapter(str(tmp_path / "narrow"), f"newer{turn}")
            network.delete_adapter(f"new{turn}")
        ended.set()
        assert all(all(result.result()) for result in results)
    with pytest.raises(ValueError, match="new0"):
        answer(["wide", "new0", "wide"])
    assert torch.equal(answer(["newer0"] * 3), answer(["narrow"] * 3))


def test_an_adapter_that_is_deleted_during_a_call_answers_it(attach, build_backbone, build_batch, bert):
    network, batch = attach(build_backbone(bert, "classifier"), task_type="SEQ_CLS"), build_batch(bert)
    names = ["wide", "narrow", "static"]
    with torch.no_grad():
        expected = network(**batch, adapter_names=names).logits
    first = network.base_model.backbone.layers[0]
    handle = first.register_forward_pre_hook(lambda *_: network.delete_adapter("narrow"))
    with torch.no_grad():
        assert torch.equal(network(**batch, adapter_names=names).logits, expected)
    handle.remove()
    with pytest.raises(ValueError, match="narrow"):
        network(**batch, adapter_names=names)
