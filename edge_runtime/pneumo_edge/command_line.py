"""What the commands share: how an error ends a command, how progress is shown, how the version is printed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn, TypeVar

from pneumo_edge.errors import PassingError, PneumoError

if TYPE_CHECKING:
    import typer

T = TypeVar("T")

NOT_A_DIAGNOSIS = "For education and research. Not a diagnosis."

DONE, FAILED, CANNOT_START, INTERRUPTED = 0, 1, 2, 130

_SURROUNDINGS = {
    "can't start new thread": (
        "no thread can be started: let this user or container have more processes (ulimit -u, pids limit)"
    ),
    "Could not determine home directory.": "this user has no home folder: set HOME to a folder that it can write in",
}
"""Message of a bare RuntimeError, where the machine lacks what the process needs -> the remedy."""


def say(text: str) -> None:
    """Prints one line for the person at the terminal, on stderr: stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def quiet_libraries() -> None:
    """Discards what C code writes to stderr, such as libtiff's remarks on garbled files, in this process.

    What Python writes to stderr is still shown. With `PNEUMO_DEBUG=1` nothing is discarded.
    """
    if sys.stderr is None or os.environ.get("PNEUMO_DEBUG") == "1":
        return
    kept = os.dup(sys.stderr.fileno())
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stderr.fileno())
    os.close(nowhere)
    sys.stderr = open(kept, "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")  # noqa: PTH123, SIM115


@contextmanager
def libraries_quiet() -> Iterator[None]:
    """Discards what C code, and anything else in this process, writes to stderr meanwhile: processes that begin later
    have their stderr. With `PNEUMO_DEBUG=1` nothing is discarded."""
    try:
        kept = os.dup(2)
    except OSError:
        # The caller has closed it (`2>&-`).
        yield
        return
    nowhere = kept if os.environ.get("PNEUMO_DEBUG") == "1" else os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        for each in {kept, nowhere}:
            os.close(each)


def run(app: typer.Typer, name: str) -> NoReturn:
    """Runs a command and exits: a `PneumoError` becomes one line and exit code 2 (1 if it may pass), Ctrl-C 130.

    With `PNEUMO_DEBUG=1` in the environment an error keeps its traceback.
    """
    debug = os.environ.get("PNEUMO_DEBUG") == "1"
    # Closed by the caller (`>&-`, `2>&-`); `print(file=None)` would write among the results.
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
    try:
        app(prog_name=name)
    except PneumoError as error:
        if debug:
            raise
        say(f"{name}: {error}")
        sys.exit(FAILED if isinstance(error, PassingError) else CANNOT_START)
    except BrokenPipeError:
        # The reader (`| head`) has gone: nothing more can be said to it, and the interpreter must not try.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except OSError as error:
        if debug:
            raise
        where = f" ({os.fsdecode(error.filename)})" if error.filename else ""
        say(f"{name}: {error.strerror or error}{where}")
        sys.exit(FAILED)
    except RuntimeError as error:
        if debug or str(error) not in _SURROUNDINGS:
            raise
        say(f"{name}: {_SURROUNDINGS[str(error)]}")
        sys.exit(CANNOT_START)
    except (KeyboardInterrupt, ImportError) as error:
        # Ctrl-C while C code is being imported comes out of it as an ImportError.
        if debug or not (isinstance(error, KeyboardInterrupt) or isinstance(error.__cause__, KeyboardInterrupt)):
            raise
        say(f"{name}: interrupted")
        sys.exit(INTERRUPTED)
    sys.exit(DONE)


def print_version(wanted: bool) -> None:
    """Callback of `--version`."""
    if wanted:
        import typer

        from pneumo_edge import __version__

        typer.echo(f"pneumo {__version__}")
        raise typer.Exit


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Shows a progress bar on stderr while the block runs, if stderr is a terminal; with an ETA if the total is known.

    Yields:
        A function to be called with the number of items done so far.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    # rich takes a third of a short inference to import: only where a bar will really be seen.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def tracked(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Yields the items, and shows a progress bar."""
    with progress(what, total) as show:
        for done, item in enumerate(items, start=1):
            yield item
            show(done)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table on stdout, as wide as it needs to be: no number is cut short."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, box=SIMPLE, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=Console(width=400).measure(table).maximum).print(table)
