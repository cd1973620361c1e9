"""pneumo-infer: films in, one verdict a line out."""

from __future__ import annotations

import glob as globbing
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from functools import partial
from itertools import chain, islice, tee
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pneumo_edge.command_line import DONE, FAILED, NOT_A_DIAGNOSIS, print_version, quiet_libraries, run, say, tracked
from pneumo_edge.errors import ImageError, UsageError
from pneumo_edge.film_files import files_like, films_in

if TYPE_CHECKING:
    from pneumo_edge.classifier import Failure, Prediction

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


class Regions(StrEnum):
    """Films in which regions are outlined."""

    positive = "positive"
    all = "all"


@app.command(epilog=NOT_A_DIAGNOSIS)
def infer(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH...", help="Films: files, folders, globs, or - for one film on standard input."),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Bundle that pneumo-export wrote; the one that comes with pneumo by default.")
    ] = None,
    file: Annotated[
        str | None, typer.Option(help="File of the bundle, such as model.int8.onnx; chosen by --engine otherwise.")
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="What runs the model; auto chooses by the architecture of the processor.")
    ] = Engine.auto,
    operating_point: Annotated[
        str | None,
        typer.Option(help="Name of the threshold, such as balanced or screening; the bundle's default otherwise."),
    ] = None,
    prevalence: Annotated[
        float | None, typer.Option(help="Share of films with pneumonia where you are, between 0 and 1.")
    ] = None,
    format: Annotated[Format, typer.Option(help="text is for people; json prints one object a line.")] = Format.text,
    heatmap: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder for an overlay of each film, as PNG.")
    ] = None,
    glow: Annotated[
        bool,
        typer.Option("--glow", help="With --heatmap: draw the local probability in colours too."),
    ] = False,
    regions: Annotated[
        Regions, typer.Option(help="Outline regions in films that are called PNEUMONIA (positive), or in all films.")
    ] = Regions.positive,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="Threads for one film; by default all cores for a single film, one for each of several."
        ),
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", help="Search folders to any depth.")] = False,
    force_verdict: Annotated[
        bool, typer.Option("--force-verdict", help="Give a label even where the verdict would be withheld.")
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
    if glow and heatmap is None:
        raise UsageError("--glow colours the overlays: name a folder for them with --heatmap")
    unlisted: list[str] = []
    found = partial(_expand, paths or [], recursive, heatmap, unlisted)
    names = found()
    first = list(islice(names, 2))
    several = len(first) > 1
    if not first:
        raise UsageError("no image named: give a film, a folder of films, or - for standard input")
    classifier = Classifier.load(
        model,
        file=file,
        engine=engine.value,
        operating_point=operating_point,
        prevalence=prevalence,
        # A single film gets all cores. Of several films, one is judged on each core at a time.
        threads=threads or (1 if several else None),
        force_verdict=force_verdict,
        regions=regions.value,
    )
    say(NOT_A_DIAGNOSIS)
    if format is Format.csv:
        _write_csv(_CSV_COLUMNS)
    show = {Format.text: _show_text, Format.json: _show_json, Format.csv: _show_csv}[format]
    # Names come one by one, and `tee` keeps only those that are being judged, so that a large folder takes no memory.
    # Standard input can be read only once: its bytes are kept for the overlay.
    asked, sources = tee(_read_stdin() if name == "-" else name for name in chain(first, names))
    answers = classifier.predict_batch(asked)
    if several and sys.stderr.isatty():
        answers = tracked(answers, "judging", sum(1 for _ in found()))
    judged = failed = undrawn = 0
    taken: dict[str, int] = {}
    for source, answer in zip(sources, answers, strict=True):
        judged += 1
        show(answer)
        if isinstance(answer, Failure):
            failed += 1
        elif heatmap is not None:
            from pneumo_edge.overlay import save_overlay

            try:
                save_overlay(heatmap / _overlay_name(answer.path, taken), source, answer, glow=glow)
            except ImageError as error:
                # The film is read a second time, and may be gone by now.
                say(f"no heatmap of this film: {error}")
                undrawn += 1
    if failed and several:
        say(f"{failed} of {judged} images could not be judged")
    raise typer.Exit(FAILED if failed or undrawn or unlisted else DONE)


_CSV_COLUMNS = (
    "path", "label", "probability", "logit", "threshold", "operating_point", "prevalence", "novelty", "in_distribution",
    "warnings", "model", "file", "contrast", "read_ms", "infer_ms", "region_outlines", "region_area",
    "region_strongest", "error",
)  # fmt: skip


def _show_text(answer: Prediction | Failure) -> None:
    from pneumo_edge.bundle import LABELS
    from pneumo_edge.classifier import Failure
    from pneumo_edge.region import NO_REGION

    if isinstance(answer, Failure):
        print(f"{answer.path}: error: {answer.error}", flush=True)
        return
    share = f"{answer.probability:.1%}"
    if answer.label is None:
        verdict = f"no verdict ({'; '.join(answer.warnings)})"
    else:
        point = (
            f"at a prevalence of {answer.prevalence:.1%}, threshold {answer.threshold:.1%}, "
            f"operating point {answer.operating_point}"
        )
        verdict = f"{answer.label:<9}  probability of pneumonia {share:>6}  ({point})"
        if answer.label == LABELS[1] and answer.region is not None and not answer.region.polygons:
            verdict += f"; {NO_REGION}"
        verdict += "".join(f"; warning: {w}" for w in answer.warnings)
    print(f"{answer.path}: {verdict}", flush=True)


def _show_json(answer: Prediction | Failure) -> None:
    print(json.dumps(answer.record()), flush=True)


def _show_csv(answer: Prediction | Failure) -> None:
    record = answer.record()
    times = record.pop("milliseconds", {})
    record |= {"read_ms": times.get("read"), "infer_ms": times.get("infer")}
    region = record.pop("region", None)
    if region is not None:
        record |= {f"region_{name}": region[name] for name in ("area", "strongest")}
        record["region_outlines"] = len(region["polygons"])
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
    from pneumo_edge.preprocess import read_stream

    if sys.stdin is None:
        raise UsageError("standard input is closed: give the image after a pipe or <")
    return read_stream(sys.stdin.buffer)


def _expand(paths: list[str], recursive: bool, heatmap: Path | None, unlisted: list[str]) -> Iterator[str]:
    """Turns folders and globs into files, in a fixed order; a path that does not exist stays, to be reported.

    Args:
        paths: The arguments of the command.
        recursive: Search folders to any depth.
        heatmap: Folder of overlays, which are not films.
        unlisted: Receives the folders that cannot be searched; a line on stderr names each.
    """

    def skip(error: OSError) -> None:
        # A folder comes by twice where the films are counted first.
        if error.filename not in unlisted:
            say(f"{os.fsdecode(error.filename)} cannot be searched for films: {error.strerror}")
            unlisted.append(error.filename)

    overlays = "" if heatmap is None else str(heatmap)
    for path in paths:
        if path == "-" or os.path.lexists(path) or not globbing.has_magic(path):
            matches = [path]
        else:
            # The shell has not expanded it: on Windows, or in quotes.
            matches = files_like(path) or [path]
        for match in matches:
            if match != "-" and os.path.isdir(match):  # noqa: PTH112 - a name of any bytes, as the shell gave it
                yield from films_in(match, recursive=recursive, leave_out=overlays, skip=skip)
            else:
                yield match


def _overlay_name(name: str, taken: dict[str, int]) -> str:
    """Returns a PNG name that no other film has, also where films in two folders have the same name.

    Args:
        name: Name of the film.
        taken: Names given so far, without suffix and in small letters -> the last number added to each.
    """
    stem = "stdin" if name == "-" else Path(name).stem
    if len(os.fsencode(stem)) > 200:
        # A file name may have 255 bytes, and the name of the temporary file is longer.
        stem = stem.encode("utf-8", "ignore")[:200].decode("utf-8", "ignore")
    free, count = stem, taken.get(stem.casefold(), 1)
    # To some file systems A.png and a.png are the same file.
    while free.casefold() in taken:
        count += 1
        free = f"{stem}-{count}"
    taken[stem.casefold()] = count
    taken.setdefault(free.casefold(), 1)
    return f"{free}.png"


def _list(model: Path | None) -> None:
    from pneumo_edge.backends import PACKAGES
    from pneumo_edge.bundle import DEFAULT_BUNDLE, ENGINE_OF_SUFFIX, read_bundle
    from pneumo_edge.versions import installed_versions

    bundle = read_bundle(model or DEFAULT_BUNDLE)
    description = bundle.description
    size = description.input.size
    print(f"{description.name}: {description.backbone}, {description.head} head, {size} x {size}, in {bundle.folder}")
    tested = "local" if description.site else "validation"
    for name, point in description.operating_points.items():
        default = " (default)" if name == description.default_operating_point else ""
        print(
            f"  operating point {name}{default}: pneumonia from {point.threshold:.1%}, on {tested} films "
            f"sensitivity {point.sensitivity.value:.1%}, specificity {point.specificity.value:.1%}"
        )
    if description.site is not None:
        site_films = ", ".join(f"{count} {label}" for label, count in description.site.films.items())
        auc = description.site.auc
        print(
            f"  calibrated at {description.site.name} on {description.site.calibrated}: {site_films} films, "
            f"{description.site.patients} patients, prevalence {description.site.prevalence:.1%}, AUC {auc.value:.2f} "
            f"({auc.low:.2f} to {auc.high:.2f})"
        )
    for site in description.provenance.sites:
        films = sum(count for part, count in site.films.items() if part.startswith("train/"))
        ages = f", {site.ages.low:.0f} to {site.ages.high:.0f} years old" if site.ages else ", ages unknown"
        views = f", views {', '.join(sorted(site.views))}" if site.views else ""
        print(f"  learned from {site.name}: {films} films, {site.patients} patients{ages}{views}")
    if not description.provenance.sites:
        print(
            "  learned from: this bundle does not say which ages and views, so pneumo cannot warn of others; "
            "see its MODEL_CARD.md"
        )
    versions = installed_versions(PACKAGES.values())
    for name, file in description.files.items():
        bundle.read_file(name)
        engine = ENGINE_OF_SUFFIX[Path(name).suffix]
        installed = versions.get(PACKAGES[engine])
        state = f"{engine} {installed}" if installed else f"{engine} is not installed"
        print(f"  {name}: {file.precision}, {file.bytes / 1e6:.1f} MB, {state}, sha256 {file.sha256}")
    sys.stdout.flush()


def main() -> NoReturn:
    """Entry point of `pneumo-infer`."""
    # NumPy's OpenBLAS would start a thread for each core and let it spin for a tenth of a second, for nothing: no
    # matrix is multiplied here.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    quiet_libraries()
    try:
        run(app, "pneumo-infer")
    except SystemExit as end:
        # All output has been flushed. To take engine and modules apart would cost a sixth of a short run, and the
        # system frees all of that by itself.
        os._exit(end.code if isinstance(end.code, int) else DONE)
