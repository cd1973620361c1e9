"""pneumo-train: a folder of films in, a run folder out."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pneumo_edge.command_line import NOT_A_DIAGNOSIS, print_version, run, say
from pneumo_edge.errors import UsageError
from pneumo_train.backbones import BACKBONES
from pneumo_train.sources import KAGGLE_PATIENT
from pneumo_train.tuning import choose_kernels, keep_freed_memory

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(epilog=NOT_A_DIAGNOSIS)
def train(
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[SITE=]PATH",
            help="Films: a folder with train/ and test/, each with NORMAL/ and PNEUMONIA/, or a manifest (CSV or "
            "Parquet). Repeatable. kaggle downloads chest-xray-pneumonia; phantom draws a small synthetic set.",
        ),
    ] = None,
    leave_out: Annotated[
        str | None,
        typer.Option(metavar="SITE", help="Site to leave out of training: its films are measured at the end."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=CLASS", help="Class of the films labelled NAME, NORMAL or PNEUMONIA. Repeatable."),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(metavar="SITE=TEXT", help="Where the films of a site come from. Repeatable."),
    ] = None,
    ages: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SITE=LOW-HIGH",
            help="Ages in years of a site's patients, where its films do not state them. Repeatable.",
        ),
    ] = None,
    licence: Annotated[
        list[str] | None, typer.Option(metavar="SITE=TEXT", help="Terms of use of a site's films. Repeatable.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Run folder to make. Default: runs/BACKBONE-HEAD, then -SIZE if it is given.")
    ] = None,
    backbone: Annotated[str, typer.Option(help=f"Network: {', '.join(BACKBONES)}.")] = "efficientnet_lite0",
    head: Annotated[
        str,
        typer.Option(
            help="Last layers: local (a map of local evidence, pooled), gap (average pooling and one unit) or flatten "
            "(a hidden layer on the whole feature map)."
        ),
    ] = "local",
    weights: Annotated[
        str,
        typer.Option(
            help="Weights that the backbone starts from: imagenet, none, or a Keras .h5 file, full or partial."
        ),
    ] = "imagenet",
    size: Annotated[
        int | None,
        typer.Option(help="Side of the input in pixels. Default: 160 for the light backbones, 224 for others."),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Passes over the training films. Default: 12 for the light backbones, 8 for others."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Films in one training step.")] = 32,
    learning_rate: Annotated[
        float | None, typer.Option(min=0.0, help="Highest learning rate of the schedule. Default: the backbone's own.")
    ] = None,
    balance: Annotated[
        str,
        typer.Option(
            help="How the rarer class is balanced: weights (its films weigh more) or sampling (they are shown more)."
        ),
    ] = "weights",
    teacher: Annotated[
        list[Path] | None,
        typer.Option(metavar="RUN", help="Finished run whose model's predictions replace the labels. Repeatable."),
    ] = None,
    mixed_precision: Annotated[
        bool,
        typer.Option(
            "--mixed-precision",
            help="Train in bfloat16: faster on a GPU or TPU, and for resnet50 and vgg16 on a CPU with AVX512-BF16.",
        ),
    ] = False,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Seed of the film order, the augmentation and the random weights.")
    ] = 0,
    limit: Annotated[
        int | None, typer.Option(min=20, help="About how many films to train and validate on, for a quick look.")
    ] = None,
    patient_regex: Annotated[
        str, typer.Option(help="Regular expression for the patient in a file name: the first group that matches.")
    ] = KAGGLE_PATIENT,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Interrupted run to go on with, with its own settings.")
    ] = None,
    test: Annotated[
        bool,
        typer.Option("--test", help="Measure the test split, at the end or of the finished run given to --resume."),
    ] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Trains a classifier of chest X-rays, NORMAL or PNEUMONIA, and measures it."""
    # TensorFlow's chatter is for its developers. It must be silenced before the first import.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    keep_freed_memory()
    choose_kernels(backbone if resume is None else _backbone_of(resume))
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


def _backbone_of(run: Path) -> str:
    """Returns the name in a run's config.json; "" if it cannot be read, which `resume_run` will say."""
    try:
        return str(json.loads((run / "config.json").read_text(encoding="utf-8"))["backbone"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


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
