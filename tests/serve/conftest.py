"""A server of tiny adapters, started as users start it, and a client."""

import json
import queue
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tiny_adapters import write_answerer, write_tiny_adapter, write_tiny_writer
from tiny_runs import causal_lm, masked_lm  # noqa: F401

NUM_ADAPTERS = 32
START_SECONDS = 300


@dataclass
class Server:
    """A running `sptune serve`.

    Attributes:
        process: the command.
        url: where it answers.
        adapters: the folder of each adapter that it started with, by name.
        root: the folder that adapters may be added from.
    """

    process: subprocess.Popen[str]
    url: str
    adapters: dict[str, Path]
    root: Path

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """The status and the JSON of an answer; `body` is sent as JSON unless it is bytes."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Content-Type": "application/json", **headers}
        asked = urllib.request.Request(self.url + path, data, given, method=method)
        try:
            with urllib.request.urlopen(asked, timeout=120) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            content = error.read()
            is_json = error.headers.get_content_type() == "application/json"
            return error.code, json.loads(content) if is_json else content.decode()

    def classify(self, adapter: Any, text: Any) -> tuple[int, Any]:
        """The answer to a text."""
        return self.request("POST", "/classify", {"adapter": adapter, "text": text})

    def generate(self, adapter: str, prompt: Any, **options: Any) -> tuple[int, Any]:
        """The answer to a prompt."""
        return self.request("POST", "/generate", {"adapter": adapter, "prompt": prompt, **options})

    def ask(self, adapter: str, text: Any) -> tuple[int, Any]:
        """The answer to a text or a prompt, as the adapter's name says."""
        return (self.generate if adapter.startswith("writer") else self.classify)(adapter, text)

    def replicas(self) -> list[int]:
        """The ids of the processes that hold the model."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if "ServeReplica" in " ".join(child.cmdline()):
                    found.append(child.pid)
            except psutil.Error:
                continue
        return found


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory, causal_lm: str) -> Iterator[Server]:  # noqa: F811
    """Two replicas with 32 adapters: 29 of two or three classes, one that reads pairs, and two that write."""
    folder = tmp_path_factory.mktemp("served")
    adapters = {
        f"adapter-{number}": write_answerer(
            folder / f"adapter-{number}", causal_lm, number, ("good", "bad", "so so")[: 2 + number % 2]
        )
        for number in range(NUM_ADAPTERS - 3)
    }
    adapters["pairs"] = write_tiny_adapter(
        folder / "pairs", causal_lm, 99, text_fields=("one", "two"), label_words=("good", "bad"), head="causal_lm"
    )
    for seed, name in enumerate(("writer-0", "writer-1")):
        adapters[name] = write_tiny_writer(folder / name, causal_lm, seed)
    root = tmp_path_factory.mktemp("root")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "sptune", "serve", *map(str, adapters.values()), "--port", str(port),
               "--replicas", "2", "--root", str(root)]  # fmt: skip
    printed = tmp_path_factory.mktemp("printed") / "stdout"
    with printed.open("w") as stdout:
        process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True)
    try:
        _wait_for(process, "Serving at")
        yield Server(process, f"http://127.0.0.1:{port}", adapters, root)
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        process.wait(120)
        _, alive = psutil.wait_procs(children, 60)
        assert not alive
    assert process.returncode == 0
    assert "ServeController" not in printed.read_text()  # which Ray kills as it shuts down


def _wait_for(process: subprocess.Popen[str], text: str) -> None:
    """Read what a process prints on standard error until it prints a text."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    printed = ""
    while text not in printed:
        line = lines.get(timeout=START_SECONDS)
        assert line is not None, printed
        printed += line
