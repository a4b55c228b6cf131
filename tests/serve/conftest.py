"""A server of tiny adapters, started as users start it, and a client."""

import signal
from collections.abc import Iterator

import psutil
import pytest

from running_server import Server, free_port, start_server
from tiny_adapters import write_answerer, write_tiny_adapter, write_tiny_writer
from tiny_runs import causal_lm, masked_lm  # noqa: F401

NUM_ADAPTERS = 32


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
    printed = tmp_path_factory.mktemp("printed") / "stdout"
    with printed.open("w") as stdout:
        server = start_server(adapters, root, free_port(), ["--replicas", "2"], stdout=stdout)
    try:
        server.wait_for("Serving at")
        yield server
    finally:
        children = psutil.Process(server.process.pid).children(recursive=True)
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(120)
        _, alive = psutil.wait_procs(children, 60)
        assert not alive
    assert server.process.returncode == 0
    assert "ServeController" not in printed.read_text()  # which Ray kills as it shuts down
