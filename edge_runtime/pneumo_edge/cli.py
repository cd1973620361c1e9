"""pneumo-infer: films in, one verdict a line out."""

from __future__ import annotations

import csv
import glob as globbing
import io
import json
import os
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from pneumo_edge.command_line import DONE, FAILED, NOT_A_DIAGNOSIS, print_version, run, say, tracked
from pneumo_edge.errors import UsageError

if TYPE_CHECKING:
    from pneumo_edge.classifier import Failure, Prediction
    from pneumo_edge.preprocess import Source

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Engine(StrEnum):
    """What runs the model."""

    auto = "auto"
    onnx = "onnx"
    tflite = "tflite"


class Format(StrEnum):
    """How the answers are printed."""

    text = "text"
    json = "json"
    csv = "csv"


@app.command(epilog=NOT_A_DIAGNOSIS)
def infer(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH...", help="Films: files, folders, globs, or - for one image on standard input."),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Bundle that pneumo-export wrote; the one that comes with pneumo by default.")
    ] = None,
    file: Annotated[
        str | None, typer.Option(help="File of the bundle, such as model.int8.onnx; chosen by --engine otherwise.")
    ] = None,
    engine: Annotated[Engine, typer.Option(help="auto is a fixed order by processor architecture.")] = Engine.auto,
    operating_point: Annotated[
        str | None, typer.Option(help="Threshold: balanced or screening; the bundle's default otherwise.")
    ] = None,
    prevalence: Annotated[
        float | None, typer.Option(help="Share of films with pneumonia where you are, between 0 and 1.")
    ] = None,
    format: Annotated[Format, typer.Option(help="text for people, json one object a line, csv.")] = Format.text,
    heatmap: Annotated[Path | None, typer.Option(help="Folder to write an overlay PNG for each film into.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of one inference; all cores by default.")] = None,
    recursive: Annotated[bool, typer.Option("--recursive", help="Search folders to any depth.")] = False,
    force_verdict: Annotated[
        bool, typer.Option("--force-verdict", help="Give a label even to what does not look like a chest film.")
    ] = False,
    list_: Annotated[
        bool, typer.Option("--list", help="Show the bundle, its files and the engines, then stop.")
    ] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Says of each chest X-ray whether it looks NORMAL or like PNEUMONIA."""
    from pneumo_edge.classifier import Classifier, Failure

    if list_:
        _list(model)
        return
    names = _expand(paths or [], recursive)
    if not names:
        raise UsageError("no image named: give a film, a folder of films, or - for standard input")
    classifier = Classifier.load(
        model,
        file=file,
        engine=engine.value,
        operating_point=operating_point,
        prevalence=prevalence,
        threads=threads,
        force_verdict=force_verdict,
    )
    # File names need not be valid in the terminal's encoding; they are printed as they are.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")
    say(NOT_A_DIAGNOSIS)
    if format is Format.csv:
        csv.writer(sys.stdout).writerow(_CSV_COLUMNS)
    show = {Format.text: _show_text, Format.json: _show_json, Format.csv: _show_csv}[format]
    # Standard input can be read once: its bytes are kept for the overlay.
    sources: list[Source] = [sys.stdin.buffer.read(_MAX_STDIN) if name == "-" else name for name in names]
    failed = 0
    answers = tracked(classifier.predict_batch(sources), "judging", len(sources))
    for source, overlay, answer in zip(sources, _overlay_names(names), answers, strict=True):
        show(answer)
        if isinstance(answer, Failure):
            failed += 1
        elif heatmap is not None:
            from pneumo_edge.overlay import save_overlay

            save_overlay(heatmap / overlay, source, answer)
    if failed and len(sources) > 1:
        say(f"{failed} of {len(sources)} images could not be judged")
    raise typer.Exit(FAILED if failed else DONE)


_MAX_STDIN = 512 * 1024 * 1024

_CSV_COLUMNS = (
    "path", "label", "probability", "logit", "threshold", "operating_point", "novelty", "in_distribution",
    "warnings", "model", "file", "read_ms", "infer_ms", "error",
)  # fmt: skip


def _show_text(answer: Prediction | Failure) -> None:
    from pneumo_edge.classifier import Failure

    if isinstance(answer, Failure):
        print(f"{answer.path}: error: {answer.error}", flush=True)
        return
    share = f"{answer.probability:.1%}"
    if answer.label is None:
        verdict = f"no verdict ({'; '.join(answer.warnings)})"
    else:
        verdict = f"{answer.label:<9}  pneumonia {share:>6}  (from {answer.threshold:.1%}: {answer.operating_point})"
        verdict += "".join(f"; warning: {w}" for w in answer.warnings)
    print(f"{answer.path}: {verdict}", flush=True)


def _show_json(answer: Prediction | Failure) -> None:
    print(json.dumps(answer.record()), flush=True)


def _show_csv(answer: Prediction | Failure) -> None:
    record = answer.record()
    times = record.pop("milliseconds", {})
    record |= {"read_ms": times.get("read"), "infer_ms": times.get("infer")}
    record["warnings"] = " | ".join(record.get("warnings", ()))
    csv.writer(sys.stdout).writerow([record.get(column) for column in _CSV_COLUMNS])
    sys.stdout.flush()


def _expand(paths: list[str], recursive: bool) -> list[str]:
    """Turns folders and globs into files, in a fixed order; a path that does not exist stays, to be reported."""
    found: list[str] = []
    for path in paths:
        if path != "-" and os.path.isdir(path):  # noqa: PTH112 - a name of any bytes, as the shell gave it
            found.extend(_films_in(path, recursive))
        elif path != "-" and not os.path.lexists(path) and globbing.has_magic(path):
            # Where the shell does not expand (Windows, or a quoted pattern).
            found.extend(sorted(globbing.glob(path, recursive=True)) or [path])  # noqa: PTH207 - absolute patterns too
        else:
            found.append(path)
    return found


def _films_in(folder: str, recursive: bool) -> Iterator[str]:
    from pneumo_edge.preprocess import SUFFIXES

    for parent, folders, files in os.walk(folder):
        # Links to folders are not followed: they may lead in circles.
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX"))) if recursive else []
        for file in sorted(files):
            if not file.startswith(".") and os.path.splitext(file)[1].lower() in SUFFIXES:  # noqa: PTH122
                yield os.path.join(parent, file)  # noqa: PTH118


def _overlay_names(names: list[str]) -> Iterator[str]:
    """Gives each film a PNG name of its own, also where two folders hold films of one name."""
    taken: set[str] = set()
    for name in names:
        stem = "stdin" if name == "-" else Path(name).stem
        free, count = stem, 1
        while free in taken:
            count += 1
            free = f"{stem}-{count}"
        taken.add(free)
        yield f"{free}.png"


def _list(model: Path | None) -> None:
    from pneumo_edge.backends import engine_versions
    from pneumo_edge.bundle import DEFAULT_BUNDLE, ENGINE_OF_SUFFIX, read_bundle

    bundle = read_bundle(model or DEFAULT_BUNDLE)
    description = bundle.description
    size = description.input.size
    print(f"{description.name}: {description.backbone}, {description.head} head, {size} x {size}, in {bundle.folder}")
    for name, point in description.operating_points.items():
        default = " (default)" if name == description.default_operating_point else ""
        print(
            f"  operating point {name}{default}: pneumonia from {point.threshold:.1%}, on validation films "
            f"sensitivity {point.sensitivity.value:.1%}, specificity {point.specificity.value:.1%}"
        )
    versions = engine_versions()
    for name, file in description.files.items():
        bundle.read_file(name)
        engine = ENGINE_OF_SUFFIX[Path(name).suffix]
        state = f"{engine} {versions[engine]}" if versions[engine] else f"{engine} is not installed"
        print(f"  {name}: {file.precision}, {file.bytes / 1e6:.1f} MB, {state}, sha256 {file.sha256}")


def main() -> NoReturn:
    """Entry point of `pneumo-infer`."""
    run(app, "pneumo-infer")
