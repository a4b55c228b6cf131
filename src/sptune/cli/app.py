"""The application: exit codes, errors as messages, and the set-up of commands that load models."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import inspect
import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.logging import RichHandler

from sptune.cli.option_flags import in_flags
from sptune.cli.plain_text import escape
from sptune.cli.system_errors import in_words
from sptune.cli.terminal import Stages, messages
from sptune.errors import InputError, SptuneError
from sptune.whole_files import expanded

FAILED, WRONG_INPUT, INTERRUPTED, TERMINATED = 1, 2, 130, 143
PACKAGE = Path(__file__).parent.parent

app = typer.Typer(
    help="Find the layers of a frozen transformer that need prompts, and train prompts at only those.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"sptune {importlib.metadata.version('sptune')}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options before the command; Typer calls this before any command runs."""


@contextlib.contextmanager
def _old_names_as_notes() -> Iterator[None]:
    """Shows sptune's warnings about old names as notes, without the place in its code."""
    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], filename: str, *args: Any, **kwargs: Any) -> None:
        if issubclass(category, FutureWarning) and Path(filename).is_relative_to(PACKAGE):
            messages.print(f"[yellow]Note:[/] {escape(str(message))}", soft_wrap=True)
        else:
            shown(message, category, filename, *args, **kwargs)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _expanded(value: Any) -> Any:
    return expanded(value) if isinstance(value, Path) else value


def with_exit_codes(function: Callable[..., None]) -> Callable[..., None]:
    """Turns sptune's errors into a message and an exit code, and "~" in paths into the user's folder."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            with _old_names_as_notes():
                function(*args, **{name: _expanded(value) for name, value in kwargs.items()})
        except SptuneError as error:
            # What is wrong with a study file is said in the file's own words.
            message = str(error) if kwargs.get("study") else in_flags(str(error))
            # All processes of a machine find the same in options and data.
            if not isinstance(error, InputError) or os.environ.get("LOCAL_RANK", "0") == "0":
                messages.print(f"[bold red]Error:[/] {escape(message)}", soft_wrap=True)
            raise typer.Exit(WRONG_INPUT if isinstance(error, InputError) else FAILED) from None

    return wrapped


def add_command(verb: str, text: str, command: Callable[..., None], parameters: list[inspect.Parameter]) -> None:
    """A command whose parameters are not those that its function is written with."""
    wrapped = with_exit_codes(command)
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {}
    app.command(verb, help=text)(wrapped)


class Terminated(KeyboardInterrupt):
    """The process received SIGTERM, as from a cluster whose time is up."""


@contextlib.contextmanager
def running(
    resume: str | None = None, *, begun: Callable[[], bool] = lambda: True, alone: str | None = None
) -> Iterator[Stages]:
    """Sets up a command that loads models, and turns errors into messages and exit codes.

    Args:
        resume: how to continue the run if it is interrupted.
        begun: whether there is something to continue.
        alone: the command's name if several processes cannot share it.

    Raises:
        InputError: several processes were started for such a command.
    """
    stages = Stages()
    if stages.is_main:
        messages.print("Loading PyTorch and transformers")  # takes seconds
    try:
        with _terminated_as_interrupted(), stages:
            _quiet_libraries()
            from sptune.runs.launch import check_one_process
            from sptune.runs.processes import leave_processes

            if alone:
                check_one_process(alone)
            yield stages
            # Not after an error: another process may still wait for this one, which ends as soon as it sees it fail.
            leave_processes()
    except KeyboardInterrupt as error:
        ended, code = ("Terminated", TERMINATED) if isinstance(error, Terminated) else ("Interrupted", INTERRUPTED)
        if stages.is_main:
            messages.print(f"[bold yellow]{ended}[/] ({escape(stages.where())}). Nothing was left half-written.")
            _print_how_to_continue(resume, begun)
        raise typer.Exit(code) from None
    except SptuneError:
        raise
    except Exception as error:
        told = in_words(error)
        if told is None:
            raise
        messages.print(f"[bold red]Error:[/] {escape(told)} ({escape(stages.where())})", soft_wrap=True)
        _print_how_to_continue(resume, begun)
        raise typer.Exit(FAILED) from None


def _print_how_to_continue(resume: str | None, begun: Callable[[], bool]) -> None:
    if resume and begun():
        messages.print(f"Continue with: {escape(resume)}", soft_wrap=True)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Inside the block, SIGTERM ends the command as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    received = threading.Event()

    def stop(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        received.set()
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt as error:
        # Ray raises one of its own in place of the handler's.
        if received.is_set() and not isinstance(error, Terminated):
            raise Terminated from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _quiet_libraries() -> None:
    """Keeps other libraries' bars and advice off the screen; their errors still come through."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when PyTorch is loaded
    import datasets
    import huggingface_hub
    import transformers

    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=messages, show_path=False)]
    )
    for library in ("huggingface_hub", "adapters"):
        logging.getLogger(library).setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    huggingface_hub.utils.disable_progress_bars()
    warnings.filterwarnings("ignore", module=r"(torch|transformers|peft|accelerate|datasets)\b")
