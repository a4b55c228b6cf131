"""A running `sptune serve`, started as users start it, and its client."""

import json
import os
import queue
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

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

    def wait_for(self, text: str) -> None:
        """Read what the command prints on standard error until it prints a text."""
        lines: queue.Queue[str | None] = queue.Queue()

        def read() -> None:
            assert self.process.stderr is not None
            for line in self.process.stderr:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        printed = ""
        while text not in printed:
            line = lines.get(timeout=START_SECONDS)
            assert line is not None, printed
            printed += line


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def start_server(
    adapters: dict[str, Path],
    root: Path,
    port: int,
    options: Sequence[str] = (),
    *,
    stdout: Any = subprocess.DEVNULL,
    stderr: Any = subprocess.PIPE,
    variables: Mapping[str, str] | None = None,
) -> Server:
    """Start `sptune serve` in a session of its own; it does not answer yet."""
    command = [sys.executable, "-m", "sptune", "serve", *map(str, adapters.values()), "--port", str(port),
               "--root", str(root), *options]  # fmt: skip
    process = subprocess.Popen(
        command,
        stdout=stdout,
        stderr=stderr,
        text=True,
        start_new_session=True,
        env={**os.environ, **(variables or {})},
    )
    return Server(process, f"http://127.0.0.1:{port}", adapters, root)
