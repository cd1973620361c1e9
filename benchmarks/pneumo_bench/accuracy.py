"""How often each file of each bundle is right: each film is decoded once for each size, then all files judge it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumo_bench.machine import Watch, describe_machine
from pneumo_bench.output import Table, header, machine_notes
from pneumo_bench.robustness import DISTURBANCES, disturb
from pneumo_edge.backends import open_backend
from pneumo_edge.bundle import ENGINE_OF_SUFFIX, LABELS, Bundle
from pneumo_edge.classifier import usable_cores
from pneumo_edge.command_line import tracked
from pneumo_edge.errors import BundleError, DataError, ImageError, MissingExtraError
from pneumo_edge.plausibility import objections
from pneumo_edge.preprocess import Pixels, read_film
from pneumo_export.gate import mcnemar, run_backend
from pneumo_train.calibrate import Labels, probabilities
from pneumo_train.films import FilmFile, labels_of
from pneumo_train.measure import measure
from pneumo_train.run import find_roots, read_config
from pneumo_train.sources import gather
from pneumo_train.split import TEST, VALIDATION, read_split

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Split:
    """The films to be judged, not read yet."""

    name: str
    """"test" or "validation"."""
    roots: tuple[Path, ...]
    """Of the data sets, by `FilmFile.source`."""
    files: tuple[FilmFile, ...]


@dataclass(frozen=True)
class Decoded:
    """The films that could be read."""

    files: tuple[FilmFile, ...]
    labels: Labels
    pixels: dict[int, Pixels]
    """S -> uint8 (N, S, S)."""
    doubtful: dict[int, Flags]
    """S -> (N,): the runtime would object to the picture whatever the model says."""
    errors: tuple[str, ...]
    """Of those that could not."""


def test_split(data: Sequence[str]) -> Split:
    """Returns the films of the test splits of data sets as `pneumo-train --data` takes them.

    Raises:
        DataError: There is no test split, or no films of both classes in it.
    """
    gathered = gather(data, needed=TEST)
    return Split(TEST, gathered.roots, tuple(film for film in gathered.films if film.folder == TEST))


def validation_split(run: Path, data: Sequence[str]) -> Split:
    """Returns the films that a run has held back for validation.

    Args:
        run: Folder that pneumo-train wrote.
        data: Where its data sets are now, in their order; where they were at training by default.

    Raises:
        RunError: The folder is no run, or its films are gone.
    """
    config = read_config(run)
    files, parts = read_split(run / "split.csv")
    held = tuple(film for film, part in zip(files, parts, strict=True) if part == VALIDATION)
    return Split(VALIDATION, find_roots(run, config, data), held)


def decode(split: Split, sizes: Sequence[int]) -> Decoded:
    """Reads every film once for each size, in parallel.

    Raises:
        DataError: What could be read is not of both classes.
    """

    def read(film: FilmFile) -> list[tuple[Pixels, bool]] | str:
        path = split.roots[film.source] / film.path
        try:
            data = path.read_bytes()
            found = [read_film(data, size, str(path)) for size in sizes]
        except (ImageError, OSError) as error:
            return str(error)
        return [(film.pixels[:, :, 0], bool(objections(film))) for film in found]

    with ThreadPoolExecutor(usable_cores()) as pool:
        answers = list(tracked(pool.map(read, split.files), "reading films", len(split.files)))
    whole = [(film, answer) for film, answer in zip(split.files, answers, strict=True) if not isinstance(answer, str)]
    files = tuple(film for film, _ in whole)
    labels = labels_of(files)
    if len(set(labels.tolist())) < len(LABELS):
        where = ", ".join(str(root) for root in split.roots)
        raise DataError(f"{where} has no {split.name} films of both classes, {' and '.join(LABELS)}")
    return Decoded(
        files,
        labels,
        {size: np.stack([answer[i][0] for _, answer in whole]) for i, size in enumerate(sizes)},
        {size: np.array([answer[i][1] for _, answer in whole]) for i, size in enumerate(sizes)},
        tuple(answer for answer in answers if isinstance(answer, str)),
    )


def judge_all(bundles: Mapping[str, Bundle], split: Split) -> dict[str, Any]:
    """Measures every file of every bundle and returns what `accuracy-SPLIT.json` holds.

    On validation films each file is also measured under every disturbance of `pneumo_bench.robustness`.

    Raises:
        DataError: What could be read is not of both classes.
    """
    watch = Watch()
    films = decode(split, sorted({bundle.description.input.size for bundle in bundles.values()}))
    results: list[dict[str, Any]] = []
    missing: list[dict[str, str]] = []
    first: Flags | None = None
    for bundle_name, bundle in bundles.items():
        for file in bundle.description.files:
            name = f"{bundle_name}/{file}"
            try:
                result, right = _judge(name, bundle, file, films, split.name == VALIDATION)
            except (BundleError, MissingExtraError) as error:
                missing.append({"name": name, "reason": str(error)})
                continue
            first = right if first is None else first
            lost, won = int(np.sum(first & ~right)), int(np.sum(right & ~first))
            result["flips"] = {"lost": lost, "won": won, "mcnemar_p": mcnemar(lost, won)}
            results.append(result)
    return header("accuracy", describe_machine(), watch.finish()) | {
        "settings": {
            "split": split.name,
            "films": len(films.files),
            "patients": len({film.patient for film in films.files}),
            "unreadable": list(films.errors),
        },
        "results": results,
        "missing": missing,
    }


def _judge(name: str, bundle: Bundle, file: str, films: Decoded, disturbed: bool) -> tuple[dict[str, Any], Flags]:
    """Returns what is known of one file, and (N,): where its verdict is right."""
    description = bundle.description
    size, stated = description.input.size, description.files[file]
    backend = open_backend(ENGINE_OF_SUFFIX[Path(file).suffix], bundle.read_file(file), size, usable_cores(), name)
    point = description.default_operating_point
    threshold = description.operating_points[point].threshold
    patients = [film.patient for film in films.files]

    def measured(pixels: Pixels, what: str) -> tuple[dict[str, Any], Flags, Flags]:
        outputs = run_backend(backend, pixels, what)
        if not np.isfinite(outputs.logit).all():
            raise BundleError(f"{name} answers what is no number: export it again")
        p = probabilities(outputs.logit, description.calibration)
        found = measure(films.labels, p, patients, {point: threshold})
        # Written so that NaN counts as far away.
        far = ~(outputs.novelty <= stated.novelty_limit)
        return found, (p >= threshold) == (films.labels == 1), far

    clean, right, far = measured(films.pixels[size], name)
    result = {
        "name": name,
        "precision": stated.precision,
        "size": size,
        "bytes": stated.bytes,
        "sha256": stated.sha256,
        "operating_point": point,
        "measures": clean,
        "withheld": float(np.mean(far | films.doubtful[size])),
    }
    if disturbed:
        paths = [film.path for film in films.files]
        robustness = []
        for disturbance in DISTURBANCES:
            for strength in disturbance.strengths:
                pixels = disturb(films.pixels[size], paths, disturbance, strength)
                now, _, far = measured(pixels, f"{name}, {disturbance.name} {strength:g}")
                accuracy = _at(now, point)["accuracy"]
                robustness.append(
                    {
                        "disturbance": disturbance.name,
                        "unit": disturbance.unit,
                        "strength": strength,
                        "auc": now["auc"],
                        "auc_drop": clean["auc"]["value"] - now["auc"]["value"],
                        "accuracy": accuracy,
                        "accuracy_drop": _at(clean, point)["accuracy"]["value"] - accuracy["value"],
                        "novel": float(np.mean(far)),
                    }
                )
        result["robustness"] = robustness
    return result, right


def _at(measures: Mapping[str, Any], point: str) -> dict[str, Any]:
    found: dict[str, Any] = measures["operating_points"][point]
    return found


def accuracy_tables(record: Mapping[str, Any]) -> list[Table]:
    """Shows what `judge_all` found: one table for all files and, on validation films, one more for each."""
    settings = record["settings"]
    rows = []
    for result in record["results"]:
        measures, at = result["measures"], _at(result["measures"], result["operating_point"])
        flips = result["flips"]
        rows.append(
            (
                result["name"],
                f"{result['bytes'] / 1e6:.2f}",
                *(_percent(at[key]) for key in ("accuracy", "sensitivity", "specificity")),
                *(_share(measures[key]) for key in ("auc", "ece")),
                f"{result['withheld']:.1%}",
                f"{flips['lost']}/{flips['won']}",
                f"{flips['mcnemar_p']:.2g}",
            )
        )
    notes = [
        f"{settings['films']} {settings['split']} films of {settings['patients']} patients; in brackets the 95 % "
        "interval, bootstrapped by patient; every film gets a verdict here, at the default operating point",
        "withheld: films that pneumo-infer would give no verdict on; lost/won: right verdicts against the first model, "
        "p by McNemar's exact test",
        machine_notes(record["machine"], record["load"])[0],
    ]
    notes += [f"not judged: {gap['name']}: {gap['reason']}" for gap in record["missing"]]
    notes += [f"not read: {error}" for error in settings["unreadable"]]
    columns = (
        "model", "MB", "accuracy", "sensitivity", "specificity", "AUC", "ECE", "withheld", "lost/won", "p",
    )  # fmt: skip
    tables = [Table(f"Accuracy on {settings['split']} films", columns, rows, tuple(notes))]
    return tables + [_robustness_table(result) for result in record["results"] if "robustness" in result]


def _robustness_table(result: Mapping[str, Any]) -> Table:
    rows = []
    for disturbance in DISTURBANCES:
        cells = [
            f"{found['strength']:g}: {found['auc_drop']:+.4f} {found['accuracy_drop'] * 100:+.1f}"
            for found in result["robustness"]
            if found["disturbance"] == disturbance.name
        ]
        rows.append((f"{disturbance.name} ({disturbance.unit})", *cells))
    columns = ("disturbance", "strength 1", "strength 2", "strength 3", "strength 4")
    note = "strength: what the AUC loses, and what the accuracy loses in percentage points; negative is a gain"
    return Table(f"{result['name']}: lost under a single disturbance", columns, rows, (note,))


def _percent(found: Mapping[str, float]) -> str:
    return f"{found['value']:.1%} ({found['low'] * 100:.1f}–{found['high'] * 100:.1f})"


def _share(found: Mapping[str, float]) -> str:
    return f"{found['value']:.4f} ({found['low']:.4f}–{found['high']:.4f})"
