"""`serving`: starts Ray Serve on this machine, and stops it."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import psutil

from sptune.errors import InputError, SptuneError
from sptune.extras import require
from sptune.whole_files import expanded

APPLICATION = "sptune"
# How long the processes of a server that was killed may keep its port.
PORT_SECONDS = 10
# Ray's variable that turns its token off.
AUTH_MODE = "RAY_AUTH_MODE"


def check_installed() -> None:
    """Refuse to serve without Ray Serve.

    Raises:
        InputError: a package is missing.
    """
    require("serve", "Serving")


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
    root = None if root is None else expanded(root)
    if root is not None and not root.is_dir():
        raise InputError(f"root={str(root)!r}: there is no such folder; name the folder that adapters are added from.")
    with _reserved(host, port) as reserved:
        from sptune.serve.adapter_store import AdapterStore, store_folder

        folders = _checked_folders(adapters)
        with store_folder() as store:
            copies = AdapterStore.create(store, folders).read()
            sources = {str(copy): str(folders[name]) for name, copy in copies.items()}
            options = {"store": str(store), "root": None if root is None else str(root.resolve())}
            with _ray(metrics_port):
                reserved.close()  # for the proxy, once Ray's own processes have taken other ports
                with _replicas(host, port, replicas, options, sources):
                    yield f"http://{host}:{port}"


def _checked_folders(adapters: Sequence[str]) -> dict[str, Path]:
    """The adapter folders by name.

    Raises:
        InputError: one of them cannot be served, or not under its name.
    """
    from sptune.saved_adapters.adapter_folder import named_folders, read_all
    from sptune.serve.adapter_store import MAX_NAME, NAME

    folders = named_folders(adapters)
    for name in folders:
        if len(name) > MAX_NAME or not re.fullmatch(NAME, name):
            raise InputError(f"{folders[name]}: {name!r} cannot be a part of a URL; write for example films=FOLDER.")
    read_all(folders)
    return folders


def wait_for_end() -> None:
    """Wait until the process is interrupted or asked to end."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    while not ended.wait(1):  # a wait without a limit does not let signals through on every system
        pass


@contextlib.contextmanager
def _ray(metrics_port: int | None) -> Iterator[None]:
    """Ray on this machine.

    Its own ports listen on all interfaces, whatever the server's host is, and run the code that they are sent. So Ray
    always asks for its token there, as it does by default.

    Raises:
        SptuneError: Ray does not start.
    """
    import ray

    settings: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    if metrics_port is not None:
        settings["_metrics_export_port"] = metrics_port
    mode = os.environ.pop(AUTH_MODE, None)
    others, own = _children(), frozenset[psutil.Process]()
    # A thread of its own, because Ray crashes where a signal interrupts its start. Ray needs it until it ends.
    with ThreadPoolExecutor(1) as thread:
        try:
            start = thread.submit(ray.init, "local", **settings)
            try:
                with _own_sigterm():
                    start.result()
            except (OSError, RuntimeError, ValueError) as error:
                # Where TMPDIR is a long path, Ray's sockets get names that the system does not take.
                remedy = "set RAY_TMPDIR to a short path, such as /tmp" if "AF_UNIX" in str(error) else "see its logs"
                raise SptuneError(f"Ray did not start ({type(error).__name__}: {error}); {remedy}.") from error
            finally:
                wait([start])
                own = _children() - others
            yield
        finally:
            _end_ray(thread, own)
            os.environ.pop(AUTH_MODE, None)
            if mode is not None:
                os.environ[AUTH_MODE] = mode


def _children() -> frozenset[psutil.Process]:
    """The processes that this one has started."""
    return frozenset(psutil.Process().children())


def _end_ray(thread: ThreadPoolExecutor, processes: Iterable[psutil.Process]) -> None:
    """End Ray and all its processes.

    `ray.shutdown` leaves agents behind that are still starting: they do not see for a minute that the process they
    belong to has ended.

    Args:
        thread: that Ray was started in.
        processes: that Ray started here; they have started the others.
    """
    import ray

    started = [one for process in processes for one in _with_descendants(process)]
    with _silent():
        thread.submit(ray.shutdown).result()
    for process in started:
        with contextlib.suppress(psutil.Error):
            process.suspend()  # so that it starts no other meanwhile
            for one in _with_descendants(process):
                one.kill()


def _with_descendants(process: psutil.Process) -> list[psutil.Process]:
    """A process and those that it started, or that they did."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """SIGTERM does what it did before, also after the block, where Ray puts a handler of its own.

    That one calls the handler of before, and asks the system to abort the process three seconds later.
    """
    own = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and callable(own):
            signal.signal(signal.SIGTERM, own)
        if os.name == "posix":
            signal.alarm(0)


def _silent() -> contextlib.AbstractContextManager[Any]:
    """Nothing on standard output: Ray tells there of its own controller that it has killed."""
    return contextlib.redirect_stdout(io.StringIO())


@contextlib.contextmanager
def _replicas(
    host: str, port: int, replicas: int, options: dict[str, Any], sources: Mapping[str, str]
) -> Iterator[None]:
    """The replicas, each with its share of the machine, behind Ray Serve's proxy.

    Args:
        host: address to listen at.
        port: port to listen at.
        replicas: their number.
        options: arguments of each.
        sources: the folder that each copy in the store was made of, for messages.

    Raises:
        SptuneError: they do not start.
    """
    import ray
    from ray import serve

    from sptune.serve.http_api import build_app
    from sptune.serve.replica import MAX_BATCH_SIZE, Replica

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    resources = ray.cluster_resources()
    shares = {f"num_{kind.lower()}s": _share(resources.get(kind, 0), replicas) for kind in ("CPU", "GPU")}
    # As many requests wait for the next batch as are answered in this one.
    deployment: Any = serve.deployment(
        num_replicas=replicas, max_ongoing_requests=2 * MAX_BATCH_SIZE, ray_actor_options=shares
    )
    try:
        _start_proxy(host, port)
        application = deployment(serve.ingress(build_app)(Replica)).bind(**options)
        try:
            serve.run(application, name=APPLICATION, route_prefix="/")
        except RuntimeError as error:
            found = serve.status().applications[APPLICATION].deployments.values()
            reason = _last_error("\n".join(one.message for one in found))
            for copy, source in sources.items():
                reason = reason.replace(f"{copy}:", f"{source}:")
            raise SptuneError(f"The replicas did not start: {reason}") from error
        yield
    finally:
        with _silent():
            serve.shutdown()


def _start_proxy(host: str, port: int) -> None:
    """Start what listens for requests.

    Raises:
        SptuneError: it does not start.
    """
    from ray import serve

    try:
        serve.start(http_options={"host": host, "port": port})
    except Exception as error:  # of Ray, which says little where another process took the port meanwhile
        raise SptuneError(
            f"Ray Serve did not start at {host}:{port} ({type(error).__name__}). If another process has taken the "
            "port meanwhile, choose another (port); otherwise see Ray's logs in /tmp/ray."
        ) from error


def _last_error(text: str) -> str:
    """What the last error says in the tracebacks that Ray tells of."""
    errors = re.findall(r"Error: (.*)", text)
    return errors[-1] if errors else text


def _share(amount: float, replicas: int) -> float:
    """The part of a resource that each replica gets: whole ones, or a fraction of one."""
    return float(amount // replicas) if amount >= replicas else amount / replicas


def _reserved(host: str, port: int) -> socket.socket:
    """A port that no process can take until it is closed; clients find nothing there.

    Raises:
        InputError: nothing can listen there, and it is no port that the processes of a killed server give back soon.
    """
    end = time.monotonic() + PORT_SECONDS
    while True:
        try:
            return _bound(host, port)
        except (OSError, OverflowError) as error:
            if getattr(error, "errno", None) != errno.EADDRINUSE or time.monotonic() > end:
                raise InputError(
                    f"port={port}: nothing can listen there on {host!r} ({error}); choose another."
                ) from None
        time.sleep(0.2)


def _bound(host: str, port: int) -> socket.socket:
    if port < 1:
        raise OverflowError("ports are numbers from 1 to 65535")
    bound = socket.socket()
    try:
        if os.name == "posix":  # as servers do, which need not wait for the ends of earlier connections
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except BaseException:
        bound.close()
        raise
    return bound
