"""Servers that are killed at random moments: every answer is right, and the same command serves again at once.

`make campaign` kills 50 times, the test suite twice: under load while an adapter is replaced, and during the start.
"""

import contextlib
import hashlib
import http.client
import itertools
import os
import random
import signal
import subprocess
import threading
import urllib.error
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from reliability.campaign import FULL, SCALE
from running_server import Server, free_port, start_server
from sptune.saved_adapters.adapter_pool import AdapterPool
from tiny_adapters import write_answerer
from tiny_runs import causal_lm  # noqa: F401

pytest.importorskip("ray.serve")

KILLS = 50 if SCALE == FULL else 2
ENDS = 10 if SCALE == FULL else 1
CLIENTS = 8
# At most so many answers before a kill under load; at most so many seconds after a line of the start.
ANSWERS, SECONDS = 200, 10
# Ray and its replicas take longer to start.
RAY_SECONDS = 10
# Tells a server's processes from all others.
MARK = "SPTUNE_KILLED_SERVER"
TEXTS = ["a lovely film", "the scenes was dull and the actors tired", "it", "this story moving moving moving"]


def same(answer: Any, expected: dict[str, Any]) -> bool:
    """Whether two rows of predictions differ by rounding at most."""
    others = {**answer, "scores": None} == {**expected, "scores": None}
    return others and answer.get("scores") == pytest.approx(expected.get("scores"), abs=1e-5)


class Campaign:
    """Starts servers with one command, kills them, and counts what clients got."""

    def __init__(self, folder: Path, model: str) -> None:
        self.adapters = {name: write_answerer(folder / name, model, seed) for seed, name in enumerate(("a", "b"))}
        self.root = folder / "root"
        self.versions = [write_answerer(self.root / name, model, 7 + n) for n, name in enumerate(("new", "newer"))]
        self.temporary, self.log, self.port = folder / "temporary", folder / "log", free_port()
        self.temporary.mkdir()
        self.requests = [(name, text) for name in self.adapters for text in TEXTS]
        pools = [AdapterPool({**self.adapters, "a": one}) for one in (self.adapters["a"], *self.versions)]
        # By request, the answers of the versions that the server may have at the time.
        self.answers = [*zip(*(pool.predict(self.requests) for pool in pools), strict=True)]
        self.counts: Counter[str] = Counter()
        self.draw = random.Random(0)
        self.marks: list[str] = []

    def start(self) -> Server:
        """The same command each time."""
        self.marks.append(uuid.uuid4().hex)
        # Ray's sockets need a short path.
        variables = {MARK: self.marks[-1], "TMPDIR": str(self.temporary), "RAY_TMPDIR": "/tmp"}
        with self.log.open("w") as log:
            return start_server(self.adapters, self.root, self.port, stderr=log, variables=variables)

    def wait_for_line(self, server: Server, text: str) -> None:
        """Wait until the command has printed a text."""
        while text not in self.log.read_text():
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.process.wait(timeout=0.05)
            assert server.process.poll() is None, self.log.read_text()

    def check_answers(self, server: Server) -> None:
        """Each request is answered as by the adapters of the command."""
        for (name, text), expected in zip(self.requests, self.answers, strict=True):
            status, answer = server.classify(name, text)
            assert status == 200
            assert same(answer, expected[0])

    def kill_under_load(self, server: Server) -> None:
        """Clients ask and an adapter is replaced over and over, until the server is killed in the middle of it."""
        answered, killed = threading.Semaphore(0), threading.Event()

        def client(number: int) -> None:
            draw, outcome = random.Random(number), "answers"
            while outcome == "answers":
                index = draw.randrange(len(self.requests))
                outcome = self.outcome(index, server.classify, *self.requests[index])
                self.counts[outcome] += 1
                answered.release()
            assert killed.is_set()

        def changer() -> None:
            versions = itertools.cycle(("new", "newer"))
            while self.outcome(None, server.request, "PUT", "/adapters/a", {"folder": next(versions)}) == "answers":
                pass

        with ThreadPoolExecutor(CLIENTS + 1) as threads:
            futures = [*(threads.submit(client, number) for number in range(CLIENTS)), threads.submit(changer)]
            for _ in range(self.draw.randrange(1, ANSWERS)):
                assert answered.acquire(timeout=300)
            killed.set()
            self.kill(server)
            for future in futures:
                future.result()

    def outcome(self, index: int | None, ask: Callable[..., tuple[int, Any]], *request: Any) -> str:
        """What became of a request; one that never ends fails the test by a TimeoutError.

        Args:
            index: of a request whose answer is known.
            ask: sends the request.
            request: what is sent.
        """
        try:
            status, answer = ask(*request)
        except (ConnectionError, http.client.HTTPException):
            return "errors"
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionError):
                raise
            return "errors"
        if status != 200:
            assert status >= 500, answer
            return "errors"
        if index is not None:
            assert any(same(answer, one) for one in self.answers[index]), answer
        return "answers"

    def kill_during_start(self, server: Server) -> None:
        """At a moment between the first line of the command and its last, or some seconds after that."""
        self.wait_after_line(server, self.draw.choice(["Loading PyTorch", "Starting Ray"]), SECONDS)
        self.kill(server)

    def wait_after_line(self, server: Server, text: str, seconds: float) -> None:
        """Wait until the command has printed a text, and then for a part of the seconds."""
        self.wait_for_line(server, text)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(timeout=seconds * self.draw.random())
        assert server.process.poll() is None, self.log.read_text()

    def kill(self, server: Server) -> None:
        """Kill the command alone, or with its process group."""
        self.draw.choice([os.kill, os.killpg])(server.process.pid, signal.SIGKILL)
        server.process.wait()

    def processes(self, mark: str) -> list[psutil.Process]:
        """The processes of a server that are still there."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == mark:
                    found.append(process)
        return found


def digests(folder: Path) -> dict[str, str]:
    """What the files of a folder hold."""
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def test_killed_servers_serve_again(
    causal_lm: str,  # noqa: F811
    record: Callable[..., None],
    tmp_path: Path,
) -> None:
    campaign = Campaign(tmp_path, causal_lm)
    before = {**digests(tmp_path / "a"), **digests(tmp_path / "b"), **digests(campaign.root)}
    for number in range(KILLS):
        server = campaign.start()
        if number % 2:
            campaign.kill_during_start(server)
        else:
            campaign.wait_for_line(server, "Serving at")
            campaign.check_answers(server)
            campaign.kill_under_load(server)
    server = campaign.start()  # at once
    campaign.wait_for_line(server, "Serving at")
    campaign.check_answers(server)
    last = campaign.marks.pop()
    left = [process for mark in campaign.marks for process in campaign.processes(mark)]
    _, alive = psutil.wait_procs(left, 60)
    assert not alive
    assert len(list(campaign.temporary.glob("sptune-serve-*"))) == 1
    running = campaign.processes(last)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(120) == 0
    _, alive = psutil.wait_procs(running, 60)
    assert not alive
    assert list(campaign.temporary.glob("sptune-serve-*")) == []
    assert {**digests(tmp_path / "a"), **digests(tmp_path / "b"), **digests(campaign.root)} == before
    record("kill -9: serve", kills=KILLS, **campaign.counts)


def test_servers_that_are_asked_to_end_while_ray_starts_leave_nothing(
    causal_lm: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    campaign = Campaign(tmp_path, causal_lm)
    for _ in range(ENDS):
        server = campaign.start()
        campaign.wait_after_line(server, "Starting Ray", RAY_SECONDS)
        running = campaign.processes(campaign.marks[-1])
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(120) == 143
        assert "Terminated (Starting Ray Serve" in campaign.log.read_text()
        _, alive = psutil.wait_procs(running, 60)
        assert not alive
        assert list(campaign.temporary.glob("sptune-serve-*")) == []
