"""pneumo-export: a run in, a bundle that passed the gate out."""

from __future__ import annotations

import json
import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from pneumo_edge.bundle import read_bundle
from pneumo_edge.command_line import FAILED, NOT_A_DIAGNOSIS, print_table, print_version, run, say
from pneumo_edge.errors import MissingExtraError, UsageError
from pneumo_export.web import build, check_output
from pneumo_train.sources import absolute
from pneumo_train.surroundings import check_keras, check_path

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

FORMATS = ("onnx", "tflite")

NEEDED = {
    "all": ("tensorflow", "sklearn"),
    "onnx": ("tf2onnx", "onnx"),
    "tflite": ("ai_edge_litert",),
    "int8 tflite": ("ai_edge_quantizer",),
}
"""Modules for each kind of file; looked for before the work begins."""

PACKAGES = {"sklearn": "scikit-learn"}
"""Package of a module where the name is another one."""


@app.command(epilog=NOT_A_DIAGNOSIS)
def export(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that pneumo-train wrote.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[SITE=]PATH",
            help="Where each data set is now, if films have moved. Repeatable, in the order of the run.",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Bundle folder to make. Default: RUN/bundle.")] = None,
    int8: Annotated[bool, typer.Option("--int8/--no-int8", help="Make int8 files as well as float ones.")] = True,
    formats: Annotated[str, typer.Option(help="Formats to make: onnx, tflite, or onnx,tflite.")] = "onnx,tflite",
    max_drop: Annotated[
        float,
        typer.Option(
            min=0.0, help="Right verdicts that int8 may lose in a class, in percentage points; two films are allowed."
        ),
    ] = 0.5,
    calibration_films: Annotated[
        int, typer.Option(min=2, help="Number of training films that set the int8 ranges, half of each class.")
    ] = 256,
    sites_results: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="sites.json of pneumo-bench sites: its table goes into the model card."),
    ] = None,
    web: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write the page that judges in the browser, as pneumo-web.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the bundle if it exists.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Turns a run into ONNX and TFLite files, and refuses a file that is less accurate than the Keras model."""
    # TensorFlow's chatter is for its developers. It must be silenced before the first import.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    wanted = tuple(dict.fromkeys(part.strip() for part in formats.split(",")))
    if not set(wanted) <= set(FORMATS):
        raise UsageError(f"there is no format {formats!r}: choose onnx, tflite or onnx,tflite")
    kinds = ("all", *wanted, *(("int8 tflite",) if int8 and "tflite" in wanted else ()))
    for module in (module for kind in kinds for module in NEEDED[kind]):
        if find_spec(module) is None:
            raise MissingExtraError(PACKAGES.get(module, module.replace("_", "-")), "export", "exporting")
    bundle = output or run_folder / "bundle"
    check_path(run_folder, "RUN")
    check_path(bundle, "--output")
    for each in data or ():
        check_path(absolute(each), "--data")
    if web is not None:
        if "tflite" not in wanted:
            raise UsageError("--web needs the TFLite file: leave out --formats, or name tflite too")
        check_output(web)
    check_keras(("tensorflow",), "exporting")  # which loads what JAX has trained
    from pneumo_export.export import export_run

    exported = export_run(
        run_folder,
        bundle,
        data=data or (),
        int8=int8,
        formats=wanted,
        max_drop=max_drop,
        calibration_films=calibration_films,
        force=force,
        elsewhere=None if sites_results is None else _read_sites(sites_results),
    )
    _show(exported.parity)
    for name, record in exported.parity["files"].items():
        for failure in record["failures"]:
            say(f"refused {name}: {failure}")
    say(NOT_A_DIAGNOSIS)
    if exported.refused is not None:
        say(f"the refused files and their report are in {exported.refused}")
    if exported.bundle is not None:
        print(exported.bundle)
        if web is not None:
            build(read_bundle(exported.bundle), web)
    if exported.refused is not None:
        raise typer.Exit(FAILED)


def _read_sites(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get("kind") != "sites" or not found.get("results"):
        raise UsageError(f"{path} is no sites.json: make it with pneumo-bench sites --output DIR")
    return found


def _show(parity: dict[str, Any]) -> None:
    rows = []
    for name, record in parity["files"].items():
        clean, pooled = record["clean"], record["pooled"]
        rows.append(
            (
                name,
                f"{record['bytes'] / 1e6:.2f} MB",
                f"{clean['auc']:.4f}",
                f"{record['perturbed']['auc']:.4f}",
                f"{clean['sensitivity']:.1%}",
                f"{clean['specificity']:.1%}",
                f"{pooled['flips']['lost']}/{pooled['flips']['won']}",
                f"{record['milliseconds']:.1f}",
                "REFUSED" if record["failures"] else "repaired" if "repair" in record else "passed",
            )
        )
    columns = ("file", "size", "AUC", "perturbed", "sensitivity", "specificity", "flips", "ms/film", "gate")
    title = (
        f"{parity['validation_films']} validation films; flips: right verdicts lost/won against Keras, perturbed films "
        "too\nms/film: median of this pass, a rough figure; pneumo-bench latency measures it"
    )
    print_table(title, columns, rows)


def main() -> NoReturn:
    """Entry point of `pneumo-export`."""
    run(app, "pneumo-export")
