"""Does the runs of a study: in this process, together with other processes, or on a Ray cluster.

Processes claim runs by lock files, with Ray, too. Ray alone would not replace them. Its claims are in the memory of a
cluster that all processes must join, while a lock file needs a shared folder only: processes started by hand or by a
cluster's queue share a study, a process that is killed leaves no claim, and no run is done twice by two calls. On one
machine Ray is also an installation of 236 MB that starts eight processes with 430 MB of memory before the first run
(benchmarks/results/scheduling.json, written by benchmarks/scheduling.py).
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sptune.compare.run_log import RUNS_FOLDER, RunLog
from sptune.compare.run_spec import Row, RunSpec
from sptune.compare.study import Study
from sptune.compare.study_run import execute, failed
from sptune.errors import InputError
from sptune.extras import require

# How long to wait for runs of other processes before looking again.
WAIT_SECONDS = 2.0


class Watcher:
    """Receives progress events of a study and ignores them."""

    def noted(self, task: str, note: str) -> None:
        """Something is to be said about a task's data."""

    def began(self, spec: RunSpec) -> None:
        """This process began a run."""

    def changed(self, rows: list[Row]) -> None:
        """These rows are there now."""


def work(study: Study, folder: Path, watcher: Watcher, only: Sequence[str] | None) -> None:
    """Do the runs that are not there yet and that no other process is at work on; return when all are there.

    Args:
        study: what to do.
        folder: of the study, which all processes share.
        watcher: is told about progress.
        only: methods whose runs are wanted; None for all.
    """
    log = RunLog(folder)
    while True:
        rows = log.read()
        watcher.changed(rows)
        pending = study.pending(rows, only)
        if not pending:
            return
        if not any(_do(spec, log, watcher) for spec in pending):
            time.sleep(WAIT_SECONDS)


def _do(spec: RunSpec, log: RunLog, watcher: Watcher) -> bool:
    """Do a run, unless another process is at work on it or has done it meanwhile."""
    lock = log.claim(spec.id)
    if lock is None:
        return False
    try:
        if all(row["run"] != spec.id for row in log.read()):
            spec.check_files()
            watcher.began(spec)
            log.append(execute(spec, log.folder / RUNS_FOLDER / spec.id))
        return True
    finally:
        lock.release()


@contextlib.contextmanager
def ray_cluster(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster inside the block.

    Args:
        address: of the cluster, as `ray.init` takes it.

    Raises:
        InputError: Ray is not installed, or there is no such cluster.
    """
    require("ray", "--ray")
    ray: Any = importlib.import_module("ray")
    connected = ray.is_initialized()
    try:
        ray.init(address, ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        raise InputError(f"ray={address!r}: there is no such cluster ({error}); start one with 'ray start'.") from None
    try:
        yield ray
    finally:
        if not connected:
            ray.shutdown()


def work_on_ray(ray: Any, study: Study, folder: Path, watcher: Watcher, only: Sequence[str] | None) -> None:
    """Do the runs that are not there yet as tasks of a Ray cluster, each on one CPU, and on one GPU if there are any.

    Args:
        ray: as `ray_cluster` gives it.
        study: what to do; its data files and local backbones must be where the tasks run.
        folder: of the study, on this machine; the runs' own folders are under the same path where they run.
        watcher: is told about progress.
        only: methods whose runs are wanted; None for all.
    """
    resources = ray.cluster_resources()
    gpus = 1 if resources.get("GPU") else 0
    # A claim is an open file, so no more runs are claimed than can soon be begun.
    most = max(1, 2 * int(resources["GPU"] if gpus else resources.get("CPU", 1)))
    # A worker ends after each run, so that nothing of a run stays in the memory of the next.
    task: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_calls=1, max_retries=0)(execute)
    log = RunLog(folder)
    under_way: dict[Any, Any] = {}
    while True:
        rows = log.read()
        watcher.changed(rows)
        pending = study.pending(rows, only)
        begun = {spec.id for spec, _ in under_way.values()}
        for spec in pending:
            lock = log.claim(spec.id) if spec.id not in begun and len(under_way) < most else None
            if lock is None:
                continue
            if any(row["run"] == spec.id for row in log.read()):  # another process was faster
                lock.release()
                continue
            spec.check_files()
            watcher.began(spec)
            reference = task.remote(spec, str((folder / RUNS_FOLDER / spec.id).resolve()))
            under_way[reference] = (spec, lock)
        if not under_way:
            if not pending:
                return
            time.sleep(WAIT_SECONDS)
            continue
        finished, _ = ray.wait(list(under_way), timeout=WAIT_SECONDS)
        for reference in finished:
            spec, lock = under_way.pop(reference)
            log.append(_outcome(ray, reference, spec))
            lock.release()


def _outcome(ray: Any, reference: Any, spec: RunSpec) -> Row:
    """The row of a task; a worker that died is a failed run."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        return failed(spec, error)
