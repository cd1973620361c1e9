"""How good a recipe is at a new site: each site in turn is left out of training and judged by that model."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pneumo_bench.machine import Watch, describe_machine
from pneumo_bench.output import Table, header, percent_text, share_text
from pneumo_edge.bundle import LABELS, Calibration
from pneumo_edge.calibrate.measure import Sample, measure_mean
from pneumo_edge.command_line import say
from pneumo_edge.errors import PneumoError, RunError, UsageError
from pneumo_train.films import labels_of
from pneumo_train.run import Films, Run
from pneumo_train.sites import measure_sites
from pneumo_train.sources import gather
from pneumo_train.split import LEFT_OUT

POINT = "balanced"

_OWN = frozenset({"left_out", "trained", "versions", "data"})
"""Settings that may differ between runs that each leave out one site."""


def site_names(data: Sequence[str], training: Sequence[str]) -> list[str]:
    """Returns the sites of data sets as `pneumo-train` would find them.

    Args:
        data: Each a folder or a manifest, or SITE=PATH.
        training: Further options of pneumo-train, of which `--label` matters here.

    Raises:
        DataError: What `pneumo-train` would refuse.
        UsageError: There is only one site.
    """
    labels = dict(text.partition("=")[::2] for text in _values("--label", training))
    names = list(dict.fromkeys(film.site for film in gather(data, labels=labels).films))
    if len(names) < 2:
        raise UsageError(f"all films are of one site, {names[0]}: leaving it out leaves nothing to learn from")
    return names


def _values(option: str, arguments: Sequence[str]) -> list[str]:
    """Returns the values of an option among the arguments of another command."""
    found = [text for name, text in pairwise(arguments) if name == option]
    return found + [text.partition("=")[2] for text in arguments if text.startswith(f"{option}=")]


def run_folders(names: Sequence[str], folder: Path) -> dict[str, Path]:
    """Returns site -> folder of the run without it, `folder/left-out-SITE`, in letters that any disk takes."""
    found: dict[str, Path] = {}
    for name in names:
        plain = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "site"
        path = folder / f"left-out-{plain}"
        while path in found.values():
            path = path.with_name(f"{path.name}-2")
        found[name] = path
    return found


def train_without(folders: Mapping[str, Path], data: Sequence[str], training: Sequence[str], *, resume: bool) -> None:
    """Trains once without each site, one after the other. Finished runs stay as they are.

    Args:
        folders: Site -> its run.
        data: As `pneumo-train --data` takes it.
        training: Further options of pneumo-train, the same for all.
        resume: Go on with the runs of an earlier call.

    Raises:
        UsageError: A run is there already, and `resume` was not asked for.
        PneumoError: A training failed.
    """
    there = next((path for path in folders.values() if path.exists()), None)
    if there is not None and not resume:
        raise UsageError(f"{there} exists already: go on with --resume, or give another --output")
    waiting = [site for site, path in folders.items() if not (path / "metrics.json").is_file()]
    took: list[float] = []
    for site in waiting:
        path, start = folders[site], time.monotonic()
        left = (len(waiting) - len(took)) * (sum(took) / len(took)) if took else None
        eta = f", about {left / 60:.0f} min left for all" if left is not None else ""
        say(f"{site} left out, training {len(took) + 1} of {len(waiting)}{eta}")
        if (path / "config.json").is_file():
            arguments = ["--resume", str(path)]
        else:
            sets = [part for place in data for part in ("--data", place)]
            arguments = [*sets, *training, "--leave-out", site, "--output", str(path)]
        command = [sys.executable, "-c", "from pneumo_train.cli import main; main()", *arguments]
        # Its messages go to the terminal. Its result, the path of a page, is of no use here.
        code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode  # noqa: S603 - our own module
        if code:
            raise PneumoError(
                f"the training without {site} ended with {code}: mend what it says, and go on with --resume"
            )
        took.append(time.monotonic() - start)


def judge_left_out(runs: Sequence[Path]) -> dict[str, Any]:
    """Collects the results of finished runs at the site that each has left out; returns the content of `sites.json`.

    Raises:
        RunError: A run is not finished, has left out no site, or is not of the same recipe as the first.
        UsageError: Two runs have left out the same site.
    """
    watch = Watch()
    opened = {run: Run(run) for run in runs}
    recipes = {run: {k: v for k, v in asdict(each.config).items() if k not in _OWN} for run, each in opened.items()}
    first = runs[0]
    results: list[dict[str, Any]] = []
    samples, thresholds = [], {POINT: 0.5}
    seen: dict[str, Path] = {}
    for run in runs:
        config, metrics = opened[run].config, opened[run].metrics
        if config.left_out is None:
            raise RunError(f"{run} has left out no site: train it with --leave-out SITE")
        if config.left_out in seen:
            raise UsageError(f"{seen[config.left_out]} and {run} both leave out {config.left_out}: give one of them")
        seen[config.left_out] = run
        unlike = [key for key in recipes[run] if recipes[run][key] != recipes[first][key]]
        if unlike:
            raise RunError(f"{run} and {first} differ in {', '.join(unlike)}: a table is of one recipe")
        films, logits = _left_out_films(opened[run])
        calibration = Calibration(**metrics["calibration"])
        point = metrics["operating_points"][POINT]["threshold"]
        measured = measure_sites(films, logits, calibration, {POINT: point})
        pointing = (metrics["left_out"].get("pointing") or {}).get("boxed")
        results.append(
            {
                "site": config.left_out,
                "run": run.name,
                "trained_on": [site for site in config.sources if site != config.left_out],
                "validation_auc": metrics["validation"]["mean"]["auc"],
                "measures": measured["sites"].get(config.left_out),
                "one_class": measured["one_class"].get(config.left_out),
                "pointing": pointing and pointing["all"],
            }
        )
        if measured["sites"]:
            # Each run has its own threshold. The probabilities are moved so that all have the same one, one half.
            p = _above(logits, calibration, point)
            samples.append(Sample(films.labels, p, films.patients))
    mean = None
    if samples:
        found = measure_mean(samples, thresholds)
        mean = {"sites": len(samples), "auc": found["auc"], **found["operating_points"][POINT]}
    config = opened[first].config
    return header("sites", describe_machine(), watch.finish()) | {
        "settings": {
            key: getattr(config, key)
            for key in ("backbone", "head", "size", "epochs", "batch_size", "learning_rate", "seed", "balance", "limit")
        },
        "mean": mean,
        "results": results,
    }


def _left_out_films(run: Run) -> tuple[Films, np.ndarray[Any, np.dtype[np.float64]]]:
    """Returns the films that a run has left out, without their pixels, and their logits."""
    files, parts = run.split
    chosen = tuple(film for film, part in zip(files, parts, strict=True) if part == LEFT_OUT)
    rows = [row for row in run.predictions if row["split"] == LEFT_OUT]
    if not rows or [row["path"] for row in rows] != [film.path for film in chosen]:
        raise RunError(f"{run.folder / 'predictions.csv'} does not go with its split.csv: train the run again")
    logits = np.array([float(row["logit"]) for row in rows])
    return Films(chosen, np.zeros((len(chosen), 1, 1), np.uint8), labels_of(chosen)), logits


def _above(logits: np.ndarray[Any, Any], calibration: Calibration, threshold: float) -> np.ndarray[Any, Any]:
    """Returns numbers in (0, 1) in the order of the logits, 0.5 where the probability is the threshold."""
    margin = calibration.scale * logits + calibration.offset - np.log(threshold / (1 - threshold))
    above: np.ndarray[Any, Any] = 0.5 * (1 + margin / (1 + np.abs(margin)))
    return above


def sites_table(record: Mapping[str, Any]) -> Table:
    """Returns the table of a record of `judge_left_out`."""
    rows: list[tuple[str, ...]] = []
    for result in record["results"]:
        m, alone, pointing = result["measures"], result["one_class"], result["pointing"]
        if m is None:
            right = percent_text(alone["right"][POINT])
            shares = (right, "–") if alone["label"] == LABELS[1] else ("–", right)
            rows.append((result["site"], f"{alone['n']} {alone['label']}", "–", *shares, "–", "–", "–", "–"))
            continue
        at, own = m["operating_points"][POINT], m["own"]
        own_at = own["operating_points"][POINT] if own else None
        rows.append(
            (
                result["site"],
                f"{m['n']}, {m['prevalence']:.0%} ill",
                share_text(m["auc"]),
                *(percent_text(at[key]) for key in ("sensitivity", "specificity")),
                share_text(m["ece"]),
                f"{own_at['sensitivity']['value']:.1%} / {own_at['specificity']['value']:.1%}" if own_at else "–",
                percent_text(pointing["points"]) if pointing else "–",
                f"{result['validation_auc']['value']:.4f}",
            )
        )
    mean = record["mean"]
    if mean:
        shares = (percent_text(mean["sensitivity"]), percent_text(mean["specificity"]))
        rows.append(("mean", f"{mean['sites']} sites", share_text(mean["auc"]), *shares, "", "", "", ""))
    settings = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in record["settings"].items())
    columns = (
        "left out", "films", "AUC", "sensitivity", "specificity", "ECE", "own fit: sens. / spec.", "points into a box",
        "AUC where trained",
    )  # fmt: skip
    notes = (
        "each row is a model that has learned from the other sites alone, with their calibration and threshold; in "
        "brackets the 95 % interval by patient, of the mean with patients drawn within each site",
        "own fit: what a calibration and a threshold of the site's own would give, cross-fitted by patient; AUC where "
        "trained: mean over the other sites' validation films",
        f"every run: {settings}",
    )
    return Table("Trained on the others", columns, rows, notes)
