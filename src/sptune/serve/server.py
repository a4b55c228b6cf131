"""`serving`: starts Ray Serve on this machine, and stops it."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sptune.errors import InputError

APPLICATION = "sptune"


def check_installed() -> None:
    """Refuse to serve without Ray Serve.

    Raises:
        InputError: a package is missing.
    """
    missing = [name for name in ("ray", "fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"Serving needs Ray Serve, and {', '.join(missing)} is not installed; install it with: "
            "pip install 'sptune[serve]'"
        )


@contextlib.contextmanager
def serving(
    adapters: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    replicas: int = 1,
    root: Path | None = None,
    metrics_port: int | None = None,
) -> Iterator[str]:
    """Serve adapters as long as the block lasts.

    Args:
        adapters: adapter folders, or "name=folder"; see `named_folders`.
        host: address to listen at.
        port: port to listen at.
        replicas: the number of processes with the backbone and all adapters.
        root: the folder that adapters added by requests are in; None to add none.
        metrics_port: port of Ray's metrics, in the format of Prometheus; None for any.

    Yields:
        The URL of the server, which answers.

    Raises:
        InputError: Ray Serve is missing, an adapter cannot be served, the port is taken, or there is no such root.
    """
    check_installed()
    if replicas < 1:
        raise InputError(f"replicas={replicas} serve nothing; choose at least 1.")
    if root is not None and not root.is_dir():
        raise InputError(f"root={str(root)!r}: there is no such folder; name the folder that adapters are added from.")
    _check_port(host, port)
    from sptune.runs.adapter_folder import named_folders, read_all
    from sptune.serve.adapter_store import AdapterStore

    folders = named_folders(adapters)
    read_all(folders)
    with tempfile.TemporaryDirectory(prefix="sptune-serve-") as store:
        AdapterStore.create(Path(store), folders)
        options = {"store": store, "root": None if root is None else str(root.resolve())}
        with _ray_serve(host, port, replicas, metrics_port, options):
            yield f"http://{host}:{port}"


def wait_for_end() -> None:
    """Wait until the process is interrupted or asked to end."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    while not ended.wait(1):  # a wait without a limit does not let signals through on every system
        pass


@contextlib.contextmanager
def _ray_serve(
    host: str, port: int, replicas: int, metrics_port: int | None, options: dict[str, Any]
) -> Iterator[None]:
    """Ray on this machine with the replicas."""
    import ray
    from ray import serve

    from sptune.serve.http_api import build_app
    from sptune.serve.replica import MAX_BATCH_SIZE, Replica

    settings: dict[str, Any] = {} if metrics_port is None else {"_metrics_export_port": metrics_port}
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **settings)
    try:
        serve.start(http_options={"host": host, "port": port})
        resources = ray.cluster_resources()
        deployment: Any = serve.deployment(
            num_replicas=replicas,
            # As many as wait for the next batch while one is answered.
            max_ongoing_requests=2 * MAX_BATCH_SIZE,
            ray_actor_options={
                "num_cpus": _share(resources["CPU"], replicas),
                "num_gpus": _share(resources.get("GPU", 0), replicas),
            },
        )
        serve.run(deployment(serve.ingress(build_app)(Replica)).bind(**options), name=APPLICATION, route_prefix="/")
        yield
    finally:
        serve.shutdown()
        ray.shutdown()


def _share(amount: float, replicas: int) -> float:
    """The part of a resource that each replica gets: whole ones, or a fraction of one."""
    return float(amount // replicas) if amount >= replicas else amount / replicas


def _check_port(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port)):
            pass
    except (OSError, OverflowError) as error:
        raise InputError(f"port={port}: nothing can listen there on {host!r} ({error}); choose another.") from None
