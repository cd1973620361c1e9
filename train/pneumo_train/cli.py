"""pneumo-train: a folder of films in, a run folder out."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pneumo_edge.command_line import NOT_A_DIAGNOSIS, print_version, run, say
from pneumo_edge.errors import UsageError
from pneumo_train.allocator import keep_freed_memory
from pneumo_train.backbones import BACKBONES
from pneumo_train.sources import KAGGLE_PATIENT

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(epilog=NOT_A_DIAGNOSIS)
def train(
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[SITE=]PATH",
            help="Folder with train/ and test/, each NORMAL/ and PNEUMONIA/, or a manifest (CSV or Parquet); "
            "repeatable. kaggle downloads chest-xray-pneumonia; phantom draws a small synthetic set.",
        ),
    ] = None,
    leave_out: Annotated[
        str | None, typer.Option(metavar="SITE", help="Learn nothing from this site's films: measure them at the end.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=CLASS", help="Take films labelled NAME as NORMAL or PNEUMONIA; repeatable."),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(metavar="SITE=TEXT", help="Say where the films of a site come from; repeatable."),
    ] = None,
    ages: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SITE=LOW-HIGH",
            help="State the ages in years of a site's patients, where its films do not; repeatable.",
        ),
    ] = None,
    licence: Annotated[
        list[str] | None, typer.Option(metavar="SITE=TEXT", help="State the terms of a site's films; repeatable.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Run folder to make; by default runs/BACKBONE-HEAD-SIZE.")] = None,
    backbone: Annotated[str, typer.Option(help=f"Network: {', '.join(BACKBONES)}.")] = "efficientnet_lite0",
    head: Annotated[
        str,
        typer.Option(
            help="local: a map of local evidence, pooled; gap: pooling and one unit; flatten: a hidden layer."
        ),
    ] = "local",
    weights: Annotated[
        str, typer.Option(help="What the backbone starts from: imagenet, none, or a Keras .h5 file, full or partial.")
    ] = "imagenet",
    size: Annotated[
        int | None, typer.Option(help="Side of the input in pixels; 160 for the light backbones, 224 for the others.")
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Passes over the training films; 12 for the light backbones, 8 for the others."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Films in one step.")] = 32,
    learning_rate: Annotated[
        float | None, typer.Option(min=0.0, help="Peak of the schedule; the backbone's own by default.")
    ] = None,
    balance: Annotated[
        str,
        typer.Option(help="How the rarer class gets its say: weights (heavier films) or sampling (more of them)."),
    ] = "weights",
    teacher: Annotated[
        list[Path] | None,
        typer.Option(metavar="RUN", help="Learn from what this run's model says, not from the labels; repeatable."),
    ] = None,
    mixed_precision: Annotated[
        bool,
        typer.Option(
            "--mixed-precision",
            help="Train in bfloat16: faster on a GPU or TPU, and for resnet50 and vgg16 where the CPU has AVX512-BF16.",
        ),
    ] = False,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Of the order, the augmentation and the random weights.")
    ] = 0,
    limit: Annotated[
        int | None, typer.Option(min=20, help="Train and validate on about so many films, for a quick look.")
    ] = None,
    patient_regex: Annotated[
        str, typer.Option(help="Finds the patient in a file name: the first group that matches.")
    ] = KAGGLE_PATIENT,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with an interrupted run, with its own settings.")
    ] = None,
    test: Annotated[
        bool,
        typer.Option("--test", help="Measure the test split at the end, or of the finished run given to --resume."),
    ] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Fine-tunes a chest X-ray classifier, NORMAL against PNEUMONIA, and measures it."""
    # TensorFlow's chatter is for its developers. It must be silenced before the first import.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    keep_freed_memory()
    from pneumo_train.train import resume_run, start_run

    if (not data) == (resume is None):
        raise UsageError("give --data to start a run, or --resume RUN to go on with one")
    if resume is not None:
        folder = resume
        resume_run(folder, test=test)
    else:
        side = "" if size is None else f"-{size}"
        folder = output or Path("runs") / f"{backbone}-{head}{side}"
        start_run(
            folder,
            data=data or (),
            leave_out=leave_out,
            labels=_pairs("--label", label),
            sources=_pairs("--source", source),
            licences=_pairs("--licence", licence),
            ages={site: _range(site, text) for site, text in _pairs("--ages", ages).items()},
            backbone=backbone,
            head=head,
            weights=weights,
            size=size,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            balance=balance,
            teachers=tuple(teacher or ()),
            mixed_precision=mixed_precision,
            seed=seed,
            limit=limit,
            patient_rule=patient_regex,
            test=test,
        )
    say(NOT_A_DIAGNOSIS)
    print(folder / "report.html")


def _range(site: str, text: str) -> tuple[float, float]:
    """Splits LOW-HIGH."""
    try:
        low, high = map(float, text.split("-"))
    except ValueError:
        low, high = -1.0, -1.0
    if not 0 <= low <= high:
        raise UsageError(f"--ages {site}={text}: give youngest and oldest in years, such as 1-5")
    return low, high


def _pairs(option: str, texts: list[str] | None) -> dict[str, str]:
    """Splits NAME=VALUE."""
    pairs = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UsageError(f"{option} {text}: give NAME=VALUE")
        pairs[name] = value
    return pairs


def main() -> NoReturn:
    """Entry point of `pneumo-train`."""
    run(app, "pneumo-train")
