"""pneumo-infer: films in, one verdict a line out."""

from __future__ import annotations

import glob as globbing
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pneumo_edge.command_line import DONE, FAILED, NOT_A_DIAGNOSIS, print_version, quiet_libraries, run, say, tracked
from pneumo_edge.errors import ImageError, UsageError

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
    heatmap: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder to write an overlay PNG for each film into.")
    ] = None,
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

    _print_any_name()
    if list_:
        _list(model)
        return
    names = list(_expand(paths or [], recursive))
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
    say(NOT_A_DIAGNOSIS)
    if format is Format.csv:
        _write_csv(_CSV_COLUMNS)
    show = {Format.text: _show_text, Format.json: _show_json, Format.csv: _show_csv}[format]
    # Standard input can be read once: its bytes are kept for the overlay.
    sources: list[Source] = [_read_stdin() if name == "-" else name for name in names]
    failed = undrawn = 0
    answers = tracked(classifier.predict_batch(sources), "judging", len(sources))
    for source, overlay, answer in zip(sources, _overlay_names(names), answers, strict=True):
        show(answer)
        if isinstance(answer, Failure):
            failed += 1
        elif heatmap is not None:
            from pneumo_edge.overlay import save_overlay

            try:
                save_overlay(heatmap / overlay, source, answer)
            except ImageError as error:
                # The film is read a second time, and may be gone by now.
                say(f"no heatmap of this film: {error}")
                undrawn += 1
    if failed and len(sources) > 1:
        say(f"{failed} of {len(sources)} images could not be judged")
    raise typer.Exit(FAILED if failed or undrawn else DONE)


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
    _write_csv([record.get(column) for column in _CSV_COLUMNS])


def _write_csv(row: Sequence[Any]) -> None:
    import csv

    # The stream ends lines as the platform does; csv's own CR LF would become CR CR LF on Windows.
    csv.writer(sys.stdout, lineterminator="\n").writerow(row)
    sys.stdout.flush()


def _print_any_name() -> None:
    """File names need not be valid in the terminal's encoding: UTF-8 passes on their bytes, others get escapes."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        utf8 = sys.stdout.encoding.lower().replace("-", "") == "utf8"
        sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")


def _read_stdin() -> bytes:
    from pneumo_edge.preprocess import MAX_BYTES

    if sys.stdin is None:
        raise UsageError("standard input is closed: give the image after a pipe or <")
    return sys.stdin.buffer.read(MAX_BYTES + 1)


def _expand(paths: list[str], recursive: bool) -> Iterator[str]:
    """Turns folders and globs into files, in a fixed order; a path that does not exist stays, to be reported."""
    for path in paths:
        if path != "-" and not os.path.lexists(path) and globbing.has_magic(path):
            # Where the shell does not expand (Windows, or a quoted pattern).
            matches = sorted(globbing.glob(path, recursive=True)) or [path]  # noqa: PTH207 - absolute patterns too
        else:
            matches = [path]
        for match in matches:
            if match != "-" and os.path.isdir(match):  # noqa: PTH112 - a name of any bytes, as the shell gave it
                yield from _films_in(match, recursive)
            else:
                yield match


def _films_in(folder: str, recursive: bool) -> Iterator[str]:
    from pneumo_edge.preprocess import SUFFIXES

    for parent, folders, files in os.walk(folder):
        # Links to folders are not followed: they may lead in circles.
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX"))) if recursive else []
        for file in sorted(files):
            path = os.path.join(parent, file)  # noqa: PTH118
            if file.startswith(".") or os.path.splitext(file)[1].lower() not in SUFFIXES:  # noqa: PTH122
                continue
            # A pipe or device that bears the name of a picture would be waited for; a dead link is reported.
            if os.path.isfile(path) or not os.path.exists(path):  # noqa: PTH110, PTH113
                yield path


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
    quiet_libraries()
    run(app, "pneumo-infer")
