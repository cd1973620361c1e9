"""pneumo-archive: judges an archive of films on many cores and writes a Parquet dataset."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pneumo_edge.command_line import DONE, FAILED, INTERRUPTED, NOT_A_DIAGNOSIS, print_version, run, say
from pneumo_edge.errors import MissingExtraError, UsageError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_SHOWN = 5
"""Failed parts that are printed."""


@app.command(epilog=NOT_A_DIAGNOSIS)
def archive(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Films: a folder, which is searched to any depth, a glob, or a URL such as s3://bucket/films; or a "
            "manifest (.csv or .parquet) with a column path. Its other columns are copied into the dataset.",
        ),
    ],
    output: Annotated[
        str, typer.Option(metavar="DIR", help="Folder or URL of the dataset. A second run does what is missing in it.")
    ],
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Dask scheduler, such as tcp://host:8786; a cluster on this machine otherwise."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes of the cluster on this machine; one for each core by default.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE", help="Bundle that pneumo-export wrote; the one that comes with pneumo by default."
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Films in one part, that is, in one task and one file; 500 by default.")
    ] = None,
    where: Annotated[
        str,
        typer.Option(
            metavar="PROTOCOL",
            help="Protocol of a manifest's paths that name none, such as local, or s3 for bucket/key.",
        ),
    ] = "local",
    _version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Judges an archive of chest X-rays on Dask and writes a Parquet dataset with one row for each film."""
    for package in ("distributed", "fsspec", "pyarrow"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "archive", "pneumo-archive")
    if scheduler is not None and workers is not None:
        raise UsageError("--workers is for the cluster on this machine: leave it out, or leave out --scheduler")
    from pneumo_edge.archive.drive import judge_archive
    from pneumo_edge.archive.report import sentence, write_report

    say(NOT_A_DIAGNOSIS)
    try:
        store, outcome = judge_archive(
            source, output, scheduler=scheduler, workers=workers, model=model, batch=batch, where=where
        )
    except KeyboardInterrupt:
        say("pneumo-archive: interrupted; what is done is kept, and the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from None
    write_report(store, outcome)
    if not outcome.missing:
        store.clear_unfinished()
    for failure in outcome.failures[:_SHOWN]:
        say(failure)
    print(sentence(outcome), flush=True)
    say(f"written to {store.url}: films/, summary.json, report.html")
    raise typer.Exit(FAILED if outcome.missing or outcome.unlisted or outcome.counts.verdicts["failed"] else DONE)


def main() -> NoReturn:
    """Entry point of `pneumo-archive`."""
    # There is a process for each core, so NumPy's OpenBLAS need not start a thread for each core in every process.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if os.environ.get("PNEUMO_DEBUG") != "1":
        # Some file systems that could not be opened raise again in their destructor.
        sys.unraisablehook = lambda _: None
    run(app, "pneumo-archive")


if __name__ == "__main__":
    main()
