"""Measures what it costs to share the runs of a comparison on one machine: by lock files, and by Ray.

    python benchmarks/scheduling.py --json benchmarks/results/scheduling.json

Processor time does not depend on other load as seconds do; both are written. Needs the extra `ray`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from sptune.compare.run_log import RunLog

CLAIMS = 200


def measure_locks() -> dict[str, Any]:
    """Claim and release runs of a study."""
    with tempfile.TemporaryDirectory() as folder:
        log = RunLog(Path(folder))
        wall, processor = time.monotonic(), time.process_time()
        for run in range(CLAIMS):
            lock = log.claim(f"run-{run}")
            assert lock is not None
            lock.release()
        return {
            "seconds_per_run": (time.monotonic() - wall) / CLAIMS,
            "processor_seconds_per_run": (time.process_time() - processor) / CLAIMS,
            "processes": 0,
            "memory_mb": 0,
            "installed_mb": installed_mb("filelock"),
        }


def measure_ray() -> dict[str, Any]:
    """Start Ray on this machine and do one empty task."""
    import ray

    wall = time.monotonic()
    ray.init(num_cpus=1, log_to_driver=False, include_dashboard=False)
    task: Any = ray.remote(num_cpus=1, max_calls=1)(nothing)
    ray.get(task.remote())
    seconds = time.monotonic() - wall
    started = psutil.Process().children(recursive=True)
    times = [one.cpu_times() for one in started]
    found = {
        "seconds_to_first_task": round(seconds, 2),
        "processor_seconds_to_first_task": round(sum(one.user + one.system for one in times), 2),
        "processes": len(started),
        "memory_mb": round(sum(one.memory_full_info().uss for one in started) / 1e6),
        "installed_mb": installed_mb("ray"),
    }
    ray.shutdown()
    return found


def nothing() -> None:
    """An empty task."""


def installed_mb(name: str) -> float:
    """The size of an installed package, without what it depends on."""
    files = [Path(str(one.locate())) for one in importlib.metadata.files(name) or []]
    return round(sum(file.stat().st_size for file in files if file.exists()) / 1e6, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, required=True, help="Where to write the results.")
    arguments = parser.parse_args()
    results = {
        "locks": measure_locks(),
        "ray": measure_ray(),
        "versions": {name: importlib.metadata.version(name) for name in ("ray", "filelock")},
        "load": [round(one, 1) for one in os.getloadavg()],
    }
    arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
