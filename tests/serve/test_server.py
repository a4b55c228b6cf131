"""`sptune serve` with a real client: answers, errors, and adapters that change while hundreds of requests are open."""

import json
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sptune import predict
from sptune.cli.commands import main
from sptune.saved_adapters.adapter_pool import AdapterPool
from tiny_adapters import write_answerer

pytest.importorskip("ray.serve")

TEXTS = ["a lovely film", "the scenes was dull and the actors tired", "it", "this story moving moving moving"]
CLIENTS = 200


def same(answer: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether two rows of predictions differ by rounding at most."""
    others = {**answer, "scores": None} == {**expected, "scores": None}
    return others and answer.get("scores") == pytest.approx(expected.get("scores"), abs=1e-5)


def test_answers_are_those_of_predict(server: Any, tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    for name in ("adapter-0", "adapter-1"):
        for text, row in zip(TEXTS, predict(server.adapters[name], file), strict=True):
            status, answer = server.classify(name, text)
            assert status == 200
            assert same(answer, row)
            assert list(answer) == list(row)
    pair = {"one": "a lovely film", "two": "it"}
    file.write_text(json.dumps(pair))
    assert same(server.classify("pairs", pair)[1], predict(server.adapters["pairs"], file)[0])


def test_generated_texts_are_those_of_predict(server: Any, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS))
    for name in ("writer-0", "writer-1"):
        assert [server.generate(name, text) for text in TEXTS] == [
            (200, row) for row in predict(server.adapters[name], file)
        ]
    status, short = server.generate("writer-0", TEXTS[0], max_new_tokens=1)
    assert status == 200
    assert len(short["generated"].split()) <= 1


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (
            {"adapter": "adapter-0", "prompt": "it"},
            422,
            "Adapter 'adapter-0' predicts classes; send the request to POST /classify",
        ),
        ({"adapter": "other", "prompt": "it"}, 404, "No adapter 'other'"),
        ({"adapter": "writer-0", "prompt": ""}, 422, "empty text"),
        ({"adapter": "writer-0", "prompt": "it " * 24}, 413, "The text has 24 tokens, and at most 23 are read"),
        ({"adapter": "writer-0", "prompt": [{"role": "user", "content": "it"}]}, 422, "a list of messages"),
        ({"adapter": "writer-0", "prompt": "it", "max_new_tokens": 0}, 422, "max_new_tokens"),
        ({"adapter": "writer-0", "prompt": "it", "max_new_tokens": "5"}, 422, "max_new_tokens"),
        ({"adapter": "writer-0", "text": "it"}, 422, "'prompt' is missing: add this field to the body."),
    ],
)
def test_wrong_prompts_are_told_what_is_wrong(server: Any, body: Any, status: int, message: str) -> None:
    answered, content = server.request("POST", "/generate", body)
    assert answered == status
    assert message in content["error"]


def test_adapters_and_health_are_listed(server: Any) -> None:
    status, listed = server.request("GET", "/adapters")
    assert status == 200
    about = {one["name"]: one for one in listed["adapters"]}
    assert set(about) == set(server.adapters)
    assert about["adapter-1"]["labels"] == ["good", "bad", "so so"]
    assert about["pairs"]["text_columns"] == ["one", "two"]
    assert about["writer-0"]["max_new_tokens"] == 6
    assert server.request("GET", "/health") == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"adapter": "other", "text": "it"}, 404, "No adapter 'other' is loaded; loaded are: adapter-0, adapter-1"),
        ({"adapter": "adapter-0", "text": " \n"}, 422, "empty text"),
        ({"adapter": "adapter-0", "text": "it " * 60}, 413, "The text has 62 tokens, and at most 24 are read"),
        ({"adapter": "adapter-0", "text": 3}, 422, "'text' is wrong: input should be a valid string"),
        ({"adapter": None, "text": "it"}, 422, "'adapter' is wrong: input should be a valid string"),
        ({"adapter": "adapter-0"}, 422, "'text' is missing"),
        (
            {"adapter": "adapter-0", "text": "it", "txt": "it"},
            422,
            "'txt' is not a field of this request: leave it out.",
        ),
        ({"adapter": "pairs", "text": "it"}, 422, "the adapter reads the columns 'one', 'two'"),
        ({"adapter": "pairs", "text": {"one": "it", "three": "it"}}, 422, "'one', 'three' were given"),
        (
            {"adapter": "writer-0", "text": "it"},
            422,
            "Adapter 'writer-0' writes text; send the request to POST /generate",
        ),
        ({"adapter": "adapter-0", "text": "\ud800"}, 422, "half a surrogate pair"),
        (["it"], 422, "not a JSON object"),
        (b'{"adapter": "adapter-0", ', 400, "not JSON"),
        (b'{"adapter": "\xff"}', 400, "parsing"),
        (b"", 422, "not a JSON object"),
    ],
)
def test_wrong_requests_are_told_what_is_wrong(server: Any, body: Any, status: int, message: str) -> None:
    answered, content = server.request("POST", "/classify", body)
    assert answered == status
    assert message in content["error"]


def test_errors_for_machines(server: Any) -> None:
    assert server.classify("other", "it")[1]["adapters"] == sorted(server.adapters)
    long = server.classify("adapter-0", "it " * 60)[1]
    assert (long["length"], long["maximum"]) == (62, 24)
    status, content = server.request("GET", "/classify")
    assert (status, content["error"]) == (405, "/classify does not take GET; use POST.")
    status, content = server.request("GET", "/nothing")
    assert status == 404
    assert content["error"].startswith("There is no /nothing; send requests to /classify,")


def test_adapters_come_and_go(server: Any, causal_lm: str) -> None:
    new = write_answerer(server.root / "run" / "adapter", causal_lm, 50)
    other = write_answerer(server.root / "other", causal_lm, 51, ("x", "y", "z"))
    expected, changed = (AdapterPool({"new": folder}).predict([("new", "it")])[0] for folder in (new, other))
    status, about = server.request("POST", "/adapters", {"name": "new one", "folder": "run"})
    assert (status, about["name"]) == (201, "new one")
    for _ in range(8):  # whichever replica answers
        assert same(server.classify("new one", "it")[1], expected)
    assert server.request("POST", "/adapters", {"name": "new one", "folder": "run"})[0] == 409
    status, replaced = server.request("PUT", "/adapters/new%20one", {"folder": "other"})
    assert (status, replaced["labels"]) == (200, ["x", "y", "z"])
    assert replaced["version"] > about["version"]
    for _ in range(8):
        assert same(server.classify("new one", "it")[1], changed)
    assert server.request("DELETE", "/adapters/new%20one")[0] == 200
    for _ in range(8):
        assert server.classify("new one", "it")[0] == 404
    for method, body in (("DELETE", None), ("PUT", {"folder": "run"})):
        assert server.request(method, "/adapters/new%20one", body)[0] == 404


def test_only_checked_folders_of_the_root_are_loaded(server: Any, causal_lm: str, tmp_path: Path) -> None:
    outside = write_answerer(tmp_path / "outside", causal_lm, 52)
    (server.root / "link").symlink_to(outside)
    mixed = write_answerer(server.root / "mixed", causal_lm, 52)
    (mixed / "adapter_model.safetensors").unlink()
    (mixed / "adapter_model.safetensors").symlink_to(outside / "adapter_model.safetensors")
    pickled = write_answerer(server.root / "pickled", causal_lm, 52)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    pipe = write_answerer(server.root / "pipe", causal_lm, 52)
    (pipe / "task.json").unlink()
    os.mkfifo(pipe / "task.json")
    up = os.path.relpath(outside, server.root)
    for folder in (str(outside), up, "link", "mixed", "pickled", "pipe", "none", "", "a\0b", "\ud800", "x" * 5000):
        status, content = server.request("POST", "/adapters", {"name": "new", "folder": folder})
        assert (status, "error" in content) == (422, True), folder
    for name in ("", "a/b", " a", "a\n", "\ud800", 3):
        assert server.request("POST", "/adapters", {"name": name, "folder": "run"})[0] == 422
    assert len(server.request("GET", "/adapters")[1]["adapters"]) == len(server.adapters)


def test_no_answer_is_wrong_or_lost_while_an_adapter_is_replaced_and_a_replica_dies(
    server: Any, causal_lm: str
) -> None:
    """200 clients at 32 adapters; an answer is that of the version before or after, or an error with a status."""
    changed = write_answerer(server.root / "changed", causal_lm, 60, ("p", "q", "r", "s"))
    requests = [(name, {"one": text, "two": "it"} if name == "pairs" else text)
                for text in TEXTS for name in server.adapters]  # fmt: skip
    before = AdapterPool(server.adapters).predict(requests)
    after = AdapterPool({**server.adapters, "adapter-0": changed}).predict(requests)
    halfway, done = threading.Barrier(CLIENTS + 1), threading.Event()
    outcomes: list[tuple[int, int, Any]] = []

    def client(number: int) -> None:
        for turn in range(3):
            if turn == 1:
                halfway.wait()
            index = (number + turn * 37) % len(requests)
            outcomes.append((index, *server.ask(*requests[index])))
        done.wait()

    with ThreadPoolExecutor(CLIENTS) as clients:
        futures = [clients.submit(client, number) for number in range(CLIENTS)]
        halfway.wait()
        victim = server.replicas()[0]
        assert server.request("PUT", "/adapters/adapter-0", {"folder": "changed"})[0] == 200
        os.kill(victim, signal.SIGKILL)
        done.set()
        for future in futures:
            future.result()
    assert len(outcomes) == 3 * CLIENTS
    lost = [status for _, status, _ in outcomes if status != 200]
    assert all(status >= 500 for status in lost)
    assert len(lost) < CLIENTS
    for index, status, answer in outcomes:
        assert status != 200 or same(answer, before[index]) or same(answer, after[index])
    # The new replica serves what is served now, not what was served at the start.
    deadline = time.monotonic() + 300
    while len([one for one in server.replicas() if one != victim]) < 2:
        assert time.monotonic() < deadline
        status, answer = server.classify("adapter-0", "it")
        assert status >= 500 or same(answer, after[requests.index(("adapter-0", "it"))])
    for _ in range(40):
        status, answer = server.classify("adapter-0", "it")
        assert status == 200
        assert same(answer, after[requests.index(("adapter-0", "it"))])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{adapter}", "{adapter}"], "both named"),
        (["{folder}"], "holds no adapter"),
        (["{adapter}", "--replicas", "0"], "choose at least 1"),
        (["{adapter}", "--root", "{folder}/none"], "no such folder"),
        (["{adapter}", "--port", "99999"], "choose another"),
        (["{adapter}", "--port", "0"], "choose another"),
        (["a/b={adapter}"], "'a/b' cannot be a part of a URL"),
    ],
)
def test_wrong_calls_leave_with_2_before_anything_starts(
    arguments: list[str], message: str, causal_lm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = write_answerer(tmp_path / "adapters" / "films", causal_lm, 0)
    given = [part.format(adapter=adapter, folder=tmp_path) for part in arguments]
    with pytest.raises(SystemExit) as left:
        main(["serve", *given])
    assert left.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_without_ray_serve_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(SystemExit) as left:
        main(["serve", "no-folder"])
    assert left.value.code == 2
    assert "pip install 'sptune[serve]'" in " ".join(capsys.readouterr().err.split())
