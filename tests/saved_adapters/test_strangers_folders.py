"""Folders from strangers: adapters, backbones, options and checkpoints that are damaged, or made to do harm.

Whatever their files hold, there is a result or an InputError.
"""

import contextlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM

from reliability.campaign import tries
from sptune import SPTConfig, evaluate, fit, predict
from sptune.cli.commands import main
from sptune.errors import InputError
from sptune.modeling.loading import BackboneSource, load_config, load_tokenizer
from sptune.runs.output_folder import read_config
from sptune.runs.progress import Monitor
from sptune.saved_adapters.adapter_pool import AdapterPool
from sptune.saved_adapters.inference import inspect
from sptune.serve.adapter_store import AdapterStore
from tiny_adapters import write_tiny_adapter, write_tiny_writer

CONFIG, TASK, WEIGHTS = "adapter_config.json", "task.json", "adapter_model.safetensors"
DEEP = "[" * 100_000


class Harm:
    """What a pickle does when it is loaded: it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (open, (str(self.marker), "w"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, masked_lm: str) -> Path:
    """A classifier."""
    return write_tiny_adapter(tmp_path_factory.mktemp("adapters") / "films", masked_lm, 0)


@pytest.fixture
def folder(adapter: Path, tmp_path: Path) -> Path:
    """A copy of it, to damage."""
    return shutil.copytree(adapter, tmp_path / "films")


@pytest.fixture
def ways_in(tmp_path: Path) -> list[Callable[[Path], Any]]:
    """All functions that load an adapter folder."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a film", "label": "good", "prompt": "a film", "completion": "."}\n', encoding="utf-8")
    return [
        inspect,
        AdapterPool,
        lambda folder: predict(folder, rows),
        lambda folder: evaluate(folder, rows),
        lambda folder: AdapterStore.create(tmp_path / "store", {"films": folder}),
    ]


def change(folder: Path, file: str, **values: Any) -> None:
    """Replace values of a JSON file; those of "backbone" and "task" one by one."""
    document = json.loads((folder / file).read_text(encoding="utf-8"))
    for name, value in values.items():
        parent, _, key = name.rpartition("__")
        (document[parent] if parent else document)[key] = value
    (folder / file).write_text(json.dumps(document), encoding="utf-8")


def header(folder: Path, text: str | bytes, length: int | None = None, weights: int = 0) -> None:
    """Replace the weights by a header and zeros, which take no room on the disk."""
    encoded = text.encode() if isinstance(text, str) else text
    size = len(encoded) if length is None else length
    with (folder / WEIGHTS).open("wb") as file:
        file.write(size.to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + weights)


def tensor(shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


# -- weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "pytorch_model.bin"])
def test_pickles_are_loaded_by_no_way_in(
    folder: Path, ways_in: list[Callable[[Path], Any]], tmp_path: Path, name: str, masked_lm: str
) -> None:
    (folder / name).write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    (folder / WEIGHTS).unlink()
    for load in ways_in:
        with pytest.raises(InputError, match=r"adapter_model.safetensors"):
            load(folder)
    with contextlib.suppress(Exception):
        PeftModel.from_pretrained(AutoModelForMaskedLM.from_pretrained(masked_lm), folder)
    assert not (tmp_path / "harm").exists()


def test_a_pickle_with_the_name_of_safetensors_is_no_safetensors(
    folder: Path, ways_in: list[Callable[[Path], Any]], tmp_path: Path
) -> None:
    (folder / WEIGHTS).write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    for load in ways_in[:-1]:
        with pytest.raises(InputError, match=WEIGHTS):
            load(folder)
    assert not (tmp_path / "harm").exists()


HEADERS: dict[str, Callable[[Path], None]] = {
    "longer than the file": lambda folder: header(folder, "{}", 10**6),
    "of a terabyte": lambda folder: header(folder, "{}", 10**12),
    "of more than is read": lambda folder: header(folder, b" " * (2**24 + 8)),
    "not JSON": lambda folder: header(folder, b"\x80\x04\x95" * 9),
    "nested deeply": lambda folder: header(folder, DEEP),
    "huge shape": lambda folder: header(folder, json.dumps({"a": tensor([10**12], 0, 4)}), weights=4),
    "sizes beyond 64 bits": lambda folder: header(folder, json.dumps({"a": tensor([2**62, 2**62], 0, 4)}), weights=4),
    "overlapping tensors": lambda folder: header(
        folder, json.dumps({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}), weights=12
    ),
    "beyond the end": lambda folder: header(folder, json.dumps({"a": tensor([2], 0, 8)}), weights=4),
    "backwards": lambda folder: header(folder, json.dumps({"a": tensor([2], 8, 0)}), weights=8),
    "negative": lambda folder: header(folder, json.dumps({"a": tensor([-2], 0, 8)}), weights=8),
    "empty": lambda folder: (folder / WEIGHTS).write_bytes(b""),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_lying_headers_are_refused(folder: Path, ways_in: list[Callable[[Path], Any]], kind: str) -> None:
    HEADERS[kind](folder)
    for load in ways_in[:-1]:  # the store only copies
        with pytest.raises(InputError, match=rf"{WEIGHTS}.*(safetensors|header)"):
            load(folder)


def test_weights_beyond_those_of_the_backbone_are_not_read(folder: Path) -> None:
    header(folder, json.dumps({"a": tensor([2**38], 0, 2**40)}), weights=2**40)  # a terabyte of zeros
    assert inspect(folder)["parameters"]["total"] == 2**38
    with pytest.raises(InputError, match=r"274,877,906,944 weights .* more than the backbone"):
        AdapterPool(folder)


def test_a_writer_whose_weights_are_incomplete_is_refused(
    tmp_path: Path, causal_lm: str, ways_in: list[Callable[[Path], Any]]
) -> None:
    writer = write_tiny_writer(tmp_path / "writer", causal_lm, 0)
    weights = load_file(writer / WEIGHTS)
    weights.pop(next(iter(weights)))
    save_file(weights, writer / WEIGHTS)
    for load in ways_in[1:4]:
        with pytest.raises(InputError, match="do not fit"):
            load(writer)


# -- documents ----------------------------------------------------------------------------------------------------

VALUES: dict[str, tuple[str, dict[str, Any], str]] = {
    "a huge bottleneck": (CONFIG, {"bottleneck_dim": 10**9}, "bottleneck_dim"),
    "a bottleneck beyond all numbers": (CONFIG, {"bottleneck_dim": 10**4000}, "bottleneck_dim"),
    "a text for a number": (CONFIG, {"bottleneck_dim": "4"}, "bottleneck_dim"),
    "a million prompt layers": (CONFIG, {"prompt_layers": list(range(10**5))}, "prompt_layers names 100,000 layers"),
    "a layer beyond all numbers": (CONFIG, {"prompt_layers": [10**4000]}, "layer"),
    "an activation that is a list": (CONFIG, {"activation": ["relu"]}, "activation"),
    "an activation that is no name": (CONFIG, {"activation": "__class__"}, "activation"),
    "a path that is a number": (CONFIG, {"layers_path": 3}, "layers_path"),
    "a path to something else": (CONFIG, {"layers_path": "__class__.__init__.__globals__"}, "layers_path"),
    "an unknown task type": (CONFIG, {"task_type": "SHELL"}, "task type"),
    "a million modules": (CONFIG, {"modules_to_save": ["a"] * 10**5}, "modules_to_save has 100,000 names"),
    "another method": (CONFIG, {"peft_type": ["SPT"]}, "not an SPT adapter"),
    "a dtype that is a function": (TASK, {"backbone__dtype": "load"}, "dtype"),
    "a head that is no head": (TASK, {"backbone__head": "__class__"}, "head"),
    "a pooling that is a number": (TASK, {"backbone__pooling": 3}, "pooling"),
    "a model that is a list": (TASK, {"backbone__model": ["a"]}, "model"),
    "a model with NUL": (TASK, {"backbone__model": "a\0b"}, "model"),
    "a GGUF file elsewhere": (TASK, {"backbone__gguf_file": "../../model.gguf"}, "gguf_file"),
    "a million classes": (TASK, {"backbone__labels": [str(one) for one in range(10**5)]}, "classes"),
    "a negative length": (TASK, {"max_length": -1}, "max_length"),
    "a length that is true": (TASK, {"max_length": True}, "max_length"),
    "an endless text": (TASK, {"max_new_tokens": 1e99}, "max_new_tokens"),
    "a label column that is a list": (TASK, {"task__label_field": [None]}, "label_field is .*not text"),
    "a name that is a number": (TASK, {"task__name": 3}, "name is 3, not text"),
    "a template that is a number": (TASK, {"task__template": 3}, "template is 3, not text"),
    "an attribute in a template": (
        TASK,
        {"task__kind": "verbalizer", "task__template": "{text.__class__} [MASK]", "task__label_words": ["a", "b"]},
        "text.__class__",
    ),
    "an item in a template": (
        TASK,
        {"task__kind": "verbalizer", "task__template": "{text[0]} [MASK]", "task__label_words": ["a", "b"]},
        "text",
    ),
}


@pytest.mark.parametrize("kind", VALUES)
def test_values_that_no_run_writes_are_refused(folder: Path, kind: str) -> None:
    file, values, message = VALUES[kind]
    change(folder, file, **values)
    with pytest.raises(InputError, match=message) as refusal:
        AdapterPool(folder)
    assert len(str(refusal.value)) < 1000


@pytest.mark.parametrize("field", ["name", "prompt_field", "completion_field", "messages_field"])
def test_columns_of_a_writer_are_texts(tmp_path: Path, causal_lm: str, field: str) -> None:
    writer = write_tiny_writer(tmp_path / "writer", causal_lm, 0)
    change(writer, TASK, **{f"task__{field}": [None]})
    with pytest.raises(InputError, match=rf"task.json: .*{field} is \[None\], not text"):
        AdapterPool(writer)


@pytest.mark.parametrize("file", [CONFIG, TASK])
@pytest.mark.parametrize("text", [DEEP, "", "null", '"text"', "3", "[]", "{}", "NaN", "9" * 10_000, "\ud800", "{" * 9])
def test_documents_that_are_no_adapter_are_refused(
    folder: Path, ways_in: list[Callable[[Path], Any]], file: str, text: str
) -> None:
    (folder / file).write_text(text, encoding="utf-8", errors="surrogatepass")
    for load in ways_in[:-1]:
        with pytest.raises(InputError):
            load(folder)


def test_documents_that_are_too_large_are_not_read(folder: Path, ways_in: list[Callable[[Path], Any]]) -> None:
    with (folder / TASK).open("a") as file:
        file.truncate(2**40)
    for load in ways_in:
        with pytest.raises(InputError, match=r"task.json: has 1,099,511,627,776 bytes; at most"):
            load(folder)


def test_generators_take_no_memory_before_their_sizes_are_checked(masked_lm: str) -> None:
    backbone = AutoModelForMaskedLM.from_pretrained(masked_lm)
    wide = {"prompt_layers": "all", "bottleneck_dim": 2**20}
    for config, message in (
        (SPTConfig(**wide, generator="npg", placement="prepend"), "weights with bottleneck_dim=1048576"),
        (SPTConfig(prompt_layers=[0], placement="prepend", num_virtual_tokens=2**20), "more than the 40 tokens"),
    ):
        with pytest.raises(InputError, match=message):
            get_peft_model(backbone, config)


def test_texts_of_strangers_do_not_act_on_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attack = "\x1b]0;title\x07\x1b[2J\u202e[bold]name"
    change(folder, CONFIG, base_model_name_or_path=attack)
    change(folder, TASK, task__name=attack)
    with contextlib.suppress(SystemExit):
        main(["inspect", "--adapter", str(folder)])
    change(folder, TASK, task__kind="other")
    with pytest.raises(SystemExit):
        main(["evaluate", "--adapter", str(folder), "--test-file", "none.csv"])
    printed = capsys.readouterr()
    assert r"\x1b]0;title\x07\x1b[2J\u202e[bold]name" in printed.out
    assert "kind is 'other'" in printed.err
    assert not {"\x1b", "\x07", "\u202e"} & set(printed.out + printed.err)


# -- paths --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", [CONFIG, TASK, WEIGHTS])
def test_links_out_of_the_folder_are_not_followed(
    folder: Path, ways_in: list[Callable[[Path], Any]], tmp_path: Path, file: str
) -> None:
    shutil.move(folder / file, tmp_path / "elsewhere")
    (folder / file).symlink_to(tmp_path / "elsewhere")
    for load in ways_in:
        with pytest.raises(InputError, match=rf"{file}: is a link out of the folder"):
            load(folder)


def test_links_of_the_cache_of_the_hub_are_followed(adapter: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "12ab"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in (CONFIG, TASK, WEIGHTS):
        shutil.copy(adapter / file, blobs / file)
        (snapshot / file).symlink_to(f"../../blobs/{file}")
    assert AdapterPool(snapshot).predict([("12ab", "a film")])


@pytest.mark.parametrize("file", [TASK, WEIGHTS])
@pytest.mark.parametrize("kind", ["pipe", "folder", "broken link", "device"])
def test_files_that_are_no_files_are_refused(
    folder: Path, ways_in: list[Callable[[Path], Any]], file: str, kind: str
) -> None:
    (folder / file).unlink()
    if kind == "pipe":
        os.mkfifo(folder / file)
    elif kind == "folder":
        (folder / file).mkdir()
    else:
        (folder / file).symlink_to("/nowhere" if kind == "broken link" else "/dev/zero")
    for load in ways_in:
        with pytest.raises(InputError, match=rf"{file}: is missing or no ordinary file"):
            load(folder)


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000, "../" * 2000, ""])
def test_names_that_are_no_paths_are_refused(ways_in: list[Callable[[Path], Any]], name: str) -> None:
    for load in ways_in:
        with pytest.raises(InputError):
            load(Path(name))


# -- code ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def backbone_with_code(masked_lm: str, tmp_path: Path) -> Path:
    """A backbone whose files bring code, which makes a file when it runs."""
    folder = shutil.copytree(masked_lm, tmp_path / "own_model")
    (folder / "own_model.py").write_text(
        f"open({str(tmp_path / 'harm')!r}, 'w')\n"
        "from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast\n"
        "class OwnConfig(BertConfig):\n    model_type = 'own'\n"
        "class OwnModel(BertForMaskedLM):\n    config_class = OwnConfig\n"
    )
    own = {"AutoConfig": "own_model.OwnConfig", "AutoModel": "own_model.OwnModel"}
    own |= {"AutoModelForMaskedLM": "own_model.OwnModel"}
    change(folder, "config.json", model_type="own", auto_map=own)
    return folder


def test_code_of_a_backbone_does_not_run(
    backbone_with_code: Path, folder: Path, data: dict[str, str], tmp_path: Path, ways_in: list[Callable[[Path], Any]]
) -> None:
    change(folder, TASK, backbone__model=str(backbone_with_code))
    change(
        folder, CONFIG, base_model_name_or_path=str(backbone_with_code), auto_map={"AutoModel": "own_model.OwnModel"}
    )
    for load in ways_in[1:4]:
        with pytest.raises(InputError, match=r"own_model.*Python code.*does not run"):
            load(folder)
    with pytest.raises(InputError, match=r"Python code"):
        fit(**data, model=str(backbone_with_code), output_dir=str(tmp_path / "run"), max_steps=1)
    assert not (tmp_path / "harm").exists()


def test_code_beside_a_known_architecture_does_not_run(
    backbone_with_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(backbone_with_code, "config.json", model_type="bert")
    monkeypatch.setattr("builtins.input", None)  # nobody is asked
    source = BackboneSource(str(backbone_with_code))
    load_config(source)
    load_tokenizer(source)
    assert not (tmp_path / "harm").exists()


OPTIONS = {
    "a Python object": "model: !!python/object/apply:os.system ['touch {marker}']\n",
    "a Python name": "model: !!python/name:os.system\n",
    "a module": "model: !!python/module:this\n",
    "an impossible date": "seed: 2024-13-45\n",
    "an impossible number": "seed: !!int ''\n",
    "a number of many digits": "seed: " + "9" * 10_000 + "\n",
    "brackets": "model: " + "[" * 10_000,
    "a list that holds itself": "labels: &a [*a]\n",
    "a billion values": "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}' if n else 'a'] * 10)}]\n" for n in range(10)),
    "a hexadecimal number of many digits": "seed: 0x" + "f" * 10_000 + "\n",
    "bytes": "model: !!binary AAAA\n",
    "a key that is a list": "? [a]\n: b\n",
    "NUL": "model: a\0b\n",
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_options_of_strangers_run_nothing(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, marker = tmp_path / "run.yaml", tmp_path / "harm"
    file.write_text(OPTIONS[kind].replace("{marker}", str(marker)), encoding="utf-8")
    with pytest.raises(SystemExit) as left:
        main(["fit", "--config", str(file), "--output", str(tmp_path / "run")])
    assert left.value.code == 2
    assert len(capsys.readouterr().err) < 5000
    assert not marker.exists()


def test_options_may_use_aliases(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("labels: &all [a, b]\ntext_columns: *all\n", encoding="utf-8")
    assert read_config(tmp_path / "run.yaml") == {"labels": ["a", "b"], "text_columns": ["a", "b"]}


class Interrupter(Monitor):
    """Stops a run in the last of its stages."""

    def stage(self, title: str, steps: int | None = None) -> None:
        self.training = "prompts" in title

    def step(self) -> None:
        self.steps = getattr(self, "steps", 0) + self.training
        if self.steps == 8:
            raise KeyboardInterrupt


def test_a_checkpoint_with_a_pickle_is_not_resumed(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(**options, output_dir=tmp_path / "run", linear_probe=False, monitor=Interrupter())
    checkpoints = list((tmp_path / "run" / "checkpoints" / "train").glob("checkpoint-*"))
    assert checkpoints
    for checkpoint in checkpoints:
        (checkpoint / "adapter_model.bin").write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
        (checkpoint / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"adapter_model.bin: is a pickle.*remove"):
        fit(output_dir=tmp_path / "run", resume=True)
    assert not (tmp_path / "harm").exists()


# -- generated damage ---------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**12, -1, "../x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(document: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value of a document."""
    yield before
    keys = document if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in keys:
        yield from places(document[key], (*before, key))


def with_value(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A document with another value at a place; `...` removes it."""
    if not place:
        return {} if value is ... else value
    copy = json.loads(json.dumps(document))
    holder = copy
    for key in place[:-1]:
        holder = holder[key]
    if value is ...:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    return copy


@st.composite
def damage(draw: st.DrawFn) -> tuple[str, str, Any, Any]:
    """A file of an adapter folder and what becomes of it."""
    file = draw(st.sampled_from([CONFIG, TASK, WEIGHTS]))
    kinds = ["truncate", "flip", "replace", "swap"] + ["value"] * 6 * (file != WEIGHTS)
    kind = draw(st.sampled_from(kinds))
    return file, kind, draw(st.floats(0, 1, exclude_max=True)), draw(JSON if kind == "value" else st.integers(0, 7))


def damaged(folder: Path, file: str, kind: str, place: float, value: Any) -> None:
    """Damage a file at a place, a share of its length or of its values."""
    content = (folder / file).read_bytes()
    at = int(place * len(content))
    if kind == "value":
        document = json.loads(content)
        paths = list(places(document))
        changed = with_value(document, paths[int(place * len(paths))], value)
        (folder / file).write_text(json.dumps(changed), encoding="utf-8")
        return
    other = {CONFIG: TASK, TASK: WEIGHTS, WEIGHTS: CONFIG}[file]
    (folder / file).write_bytes(
        {
            "truncate": content[:at],
            "flip": content[:at] + bytes([content[at] ^ 1 << value]) + content[at + 1 :],
            "replace": content[:at] + bytes([value]) * 8 + content[at + 8 :],
            "swap": (folder / other).read_bytes(),
        }[kind]
    )


@pytest.fixture(scope="module", params=["classifier", "words", "writer", "prepended"])
def valid(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AdapterPool]:
    """An adapter folder, and a pool that holds it."""
    folder, model = tmp_path_factory.mktemp("valid") / request.param, request.getfixturevalue("masked_lm")
    if request.param == "writer":
        write_tiny_writer(folder, request.getfixturevalue("causal_lm"), 0)
    elif request.param == "prepended":
        write_tiny_adapter(folder, model, 0, placement="prepend", num_virtual_tokens=2, generator="appg")
    else:
        write_tiny_adapter(folder, model, 0, label_words=("good", "bad") if request.param == "words" else None)
    return folder, AdapterPool(folder)


@tries(400)
@given(damage())
@example((CONFIG, "value", 0.5, {"a": [1e400]}))
def test_a_damaged_adapter_gives_a_result_or_a_clear_error(
    valid: tuple[Path, AdapterPool], tmp_path: Path, how: tuple[str, str, Any, Any]
) -> None:
    folder, pool = valid
    broken = tmp_path / "broken"
    shutil.rmtree(broken, ignore_errors=True)
    shutil.copytree(folder, broken)
    damaged(broken, *how)
    with contextlib.suppress(InputError):
        assert inspect(broken)["parameters"]
    with contextlib.suppress(InputError):
        pool.put("broken", broken)
        task: Any = pool["broken"].folder.task
        text = "a film" if pool["broken"].writes else dict.fromkeys(task.text_fields, "a film")
        (row,) = pool.predict([("broken", text)], max_new_tokens=2)
        assert {"prediction", "generated"} & set(row)
    with contextlib.suppress(InputError):
        pool.remove("broken")
    assert len(pool.model.peft_config) == len(pool.adapters) == 1
