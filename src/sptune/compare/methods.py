"""The table of methods of `sptune compare`: their settings, and the learning rates that are tried.

What is trained is one of five kinds: prompts of sptune, a PEFT method, an adapter of the library `adapters`, weights of
the backbone itself, or nothing but the head.

To add a method of one of these kinds: add a row to `_TABLE`. Another kind also needs a branch in
`sptune.compare.networks`, which builds what is trained.
"""

from __future__ import annotations

import dataclasses
import difflib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sptune.errors import InputError
from sptune.runs.options.run_options import PROMPT_OPTIONS

PROMPTS, PEFT, ADAPTERS, WEIGHTS = "prompts", "peft", "adapters", "weights"
LINEAR_PROBE, ZERO_SHOT = "linear-probe", "zero-shot"

# Old names by which methods go for one more version.
RENAMED_METHODS = {"head": "linear-probe"}

GENERATOR_RATES = (2e-3, 5e-3, 1e-2)
# As others published them: prompts made anew, not changed pieces of the text.
PUBLISHED = {"placement": "prepend", "residual": False, "bottleneck_dim": 64}
STATIC_RATES = (2e-2, 5e-2, 1e-1)
ADAPTER_RATES = (5e-4, 1e-3, 3e-3)
LORA = {"peft_type": "LORA", "r": 8, "lora_alpha": 16}
LORA_RATES = (1e-3, 2e-3, 5e-3)
VERA_RATES = (1e-2, 3e-2, 1e-1)
# Of `from_layer`: the lowest layer of those that sptune takes without a search.
SPACED = "spaced"


@dataclass(frozen=True)
class Method:
    """What is trained, and how fast.

    Attributes:
        name: in the table.
        kind: which of the kinds it is.
        learning_rates: those that are tried on development data; with a single one nothing is tried.
        settings: of prompts, options of `sptune train` or `fit`; of PEFT, `peft_type`, fields of its configuration, and
            `from_layer`, the lowest layer that is changed (an index, or "spaced" for the lowest prompt layer that `spt`
            takes without a search); of adapters, `config` and fields of it; of weights, `train`, "all" or "bias".
        about: one line for people.
    """

    name: str
    kind: str
    learning_rates: tuple[float, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""

    @property
    def searches(self) -> bool:
        """Whether prompt layers are searched for."""
        return self.kind == PROMPTS and "prompt_layers" not in self.settings


_TABLE = (
    Method(
        "spt",
        PROMPTS,
        GENERATOR_RATES,
        {},
        "Selective Prompt Tuning: prompts added to the tokens, at layers as sptune fit chooses them",
    ),
    Method(
        "spt-prepend",
        PROMPTS,
        GENERATOR_RATES,
        {"placement": "prepend"},
        "the same with prompts in front of the text",
    ),
    Method("zero-shot", ZERO_SHOT, (1.0,), {}, "the language model as it is; verbalizer tasks only"),
    Method("linear-probe", LINEAR_PROBE, (3e-3, 1e-2, 3e-2), {}, "the head of a classifier on the frozen backbone"),
    Method("full", WEIGHTS, (2e-5, 5e-5, 2e-4), {"train": "all"}, "all weights of the backbone"),
    Method("bitfit", WEIGHTS, (1e-3, 3e-3, 1e-2), {"train": "bias"}, "BitFit: the biases of the backbone"),
    Method("lora", PEFT, LORA_RATES, LORA, "LoRA (PEFT)"),
    Method(
        "lora-upper",
        PEFT,
        LORA_RATES,
        {**LORA, "from_layer": SPACED},
        "LoRA from the first prompt layer of spt on, with the activation cache (PEFT)",
    ),
    Method("dora", PEFT, LORA_RATES, {**LORA, "use_dora": True}, "DoRA (PEFT)"),
    # What is saved and trained are scales; the random matrices are drawn again from a seed.
    Method("vera", PEFT, VERA_RATES, {"peft_type": "VERA", "save_projection": False}, "VeRA (PEFT)"),
    Method("ln-tuning", PEFT, (3e-3, 1e-2, 3e-2), {"peft_type": "LN_TUNING"}, "LayerNorm tuning (PEFT)"),
    Method(
        "adalora",
        PEFT,
        (2e-3, 5e-3, 1e-2),
        {"peft_type": "ADALORA", "init_r": 12, "target_r": 8, "lora_alpha": 16},
        "AdaLoRA (PEFT)",
    ),
    Method("ia3", PEFT, (3e-3, 1e-2, 3e-2, 1e-1), {"peft_type": "IA3"}, "IA3 (PEFT)"),
    Method(
        "prompt-tuning",
        PEFT,
        (1e-1, 3e-1, 1.0, 3.0),
        {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 10},
        "prompt tuning (PEFT)",
    ),
    Method(
        "p-tuning",
        PEFT,
        (1e-3, 5e-3, 2e-2),
        {"peft_type": "P_TUNING", "num_virtual_tokens": 10, "encoder_hidden_size": 128},
        "P-tuning (PEFT)",
    ),
    Method(
        "prefix-tuning",
        PEFT,
        (3e-3, 1e-2, 3e-2),
        {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 10},
        "prefix tuning, as P-tuning v2 (PEFT)",
    ),
    Method("houlsby", ADAPTERS, ADAPTER_RATES, {"config": "double_seq_bn"}, "Houlsby adapters (adapters)"),
    Method("pfeiffer", ADAPTERS, ADAPTER_RATES, {"config": "seq_bn"}, "Pfeiffer adapters (adapters)"),
    Method(
        "adapterdrop",
        ADAPTERS,
        ADAPTER_RATES,
        {"config": "seq_bn", "drop": 0.5},
        "Pfeiffer adapters in the upper half (adapters)",
    ),
    Method("compacter", ADAPTERS, (1e-3, 3e-3, 1e-2), {"config": "compacter"}, "Compacter (adapters)"),
    Method(
        "lpt",
        PROMPTS,
        GENERATOR_RATES,
        {**PUBLISHED, "prompt_layers": "middle", "generator": "npg"},
        "Late Prompt Tuning: naive generator at the middle layer",
    ),
    Method(
        "lpt-appg",
        PROMPTS,
        GENERATOR_RATES,
        {**PUBLISHED, "prompt_layers": "middle", "generator": "appg"},
        "Late Prompt Tuning: pooled generator at the middle layer",
    ),
    Method(
        "idpg",
        PROMPTS,
        GENERATOR_RATES,
        {**PUBLISHED, "prompt_layers": "first", "generator": "npg"},
        "IDPG: generator at the input layer",
    ),
    Method(
        "idpg-phm",
        PROMPTS,
        GENERATOR_RATES,
        {**PUBLISHED, "prompt_layers": "first", "generator": "npg", "projection": "phm"},
        "IDPG with parameterized hypercomplex multiplication",
    ),
    Method(
        "instance-prompts",
        PROMPTS,
        GENERATOR_RATES,
        {**PUBLISHED, "prompt_layers": "all", "generator": "appg"},
        "instance prompts at all layers",
    ),
    Method(
        "static-prompts",
        PROMPTS,
        STATIC_RATES,
        {"placement": "prepend", "prompt_layers": "all", "generator": "static"},
        "static prompts at all layers",
    ),
)
METHODS = {method.name: method for method in _TABLE}

DEFAULT_METHODS = ("spt", "lora", "prompt-tuning", "bitfit", "linear-probe", "zero-shot")


def with_new_name(name: str) -> str:
    """The present name of a method; an old one gives a `FutureWarning`."""
    new = RENAMED_METHODS.get(name, name)
    if new != name:
        warnings.warn(f"The method {name!r} is now {new!r}; the old name will be removed.", FutureWarning, 3)
    return new


def _number(value: Any) -> Any:
    """YAML reads 1e-3 as a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _peft_fields(method: Method) -> tuple[str, ...]:
    """The fields of a PEFT method's configuration, and `from_layer` where it can leave layers out."""
    if method.kind != PEFT:
        return ()
    import peft  # takes seconds, which a command's --help need not wait for

    config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(method.settings["peft_type"])]
    names = sorted(one.name for one in dataclasses.fields(config))
    return (*names, *(["from_layer"] if "layers_to_transform" in names else []))


def _check_from_layer(settings: Mapping[str, Any], where: str) -> None:
    layer = settings["from_layer"]
    if layer != SPACED and (type(layer) is not int or layer < 0):
        raise InputError(
            f"{where}: from_layer={layer!r} is not allowed; give the lowest layer to change, from 0, or {SPACED!r} for "
            "the lowest prompt layer of spt."
        )
    for other in ("layers_to_transform", "layer_replication"):
        if other in settings:
            raise InputError(
                f"{where}: from_layer={layer!r} and {other}={settings[other]!r} both say which layers are changed; "
                f"give {other} with from_layer: null, or leave it out."
            )


def _is_plain(value: Any) -> bool:
    """Whether JSON, which tells the identity of a run, and YAML both have such a value."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(one) for key, one in value.items())
    return value is None or type(value) in (str, int, float, bool)  # YAML has none of their subclasses


def _check_plain(name: str, settings: Mapping[str, Any], where: str) -> None:
    for key, value in settings.items():
        if not _is_plain({key: value}):
            raise InputError(
                f"{where}: {key}={value!r} of {name!r} is not allowed; give texts, numbers, true, false, lists of "
                "these, or mappings with texts as names."
            )


def find_method(name: str, changes: Mapping[str, Any] | None, where: str) -> Method:
    """A method of the table, or a variant of one.

    Args:
        name: under which results are shown; names the method itself unless `changes` does.
        changes: `method`, `learning_rates`, and settings that differ from the table's.
        where: named in errors.

    Raises:
        InputError: no such method or setting, learning rates that are not numbers above 0, or a value that no file
            of options can hold.
    """
    changes = dict(changes or {})
    base_name = with_new_name(str(changes.pop("method", name)))
    if base_name not in METHODS:
        close = difflib.get_close_matches(base_name, METHODS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise InputError(f"{where}: {base_name!r} is an unknown method.{hint} Methods are: {', '.join(METHODS)}.")
    base = METHODS[base_name]
    rates = changes.pop("learning_rates", base.learning_rates)
    rates = [_number(rate) for rate in (rates if isinstance(rates, list | tuple) else [rates])]
    if not rates or not all(
        isinstance(rate, float | int) and not isinstance(rate, bool) and rate > 0 for rate in rates
    ):
        raise InputError(f"{where}: learning_rates={list(rates)!r} of {name!r} is not allowed; give numbers above 0.")
    takers = {PROMPTS: PROMPT_OPTIONS, PEFT: _peft_fields(base), WEIGHTS: ("train",), LINEAR_PROBE: (), ZERO_SHOT: ()}
    unknown = [key for key in changes if key not in takers.get(base.kind, changes)]  # adapters knows its own
    if unknown:
        takes = ("method", "learning_rates", *takers[base.kind])
        close = difflib.get_close_matches(unknown[0], takes, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise InputError(f"{where}: {unknown[0]!r} is not a setting of {name!r}.{hint} It takes {', '.join(takes)}.")
    settings = {key: value for key, value in {**base.settings, **changes}.items() if value is not None}
    _check_plain(name, settings, where)
    if base.kind == PROMPTS and settings.get("prompt_layers") == "search":
        del settings["prompt_layers"]  # as where it is left out: the same runs
    if base.kind == PEFT and "from_layer" in settings:
        _check_from_layer(settings, f"{where}: {name}")
    # A rate that is listed twice would count with twice the runs where rates are compared.
    return Method(base_name, base.kind, tuple(dict.fromkeys(map(float, rates))), settings, base.about)
