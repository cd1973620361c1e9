"""pneumo-calibrate on real films: how a bundle does at a place before and after, with few films and with many.

The films that it is calibrated on are drawn from those of a site's training split, and all that is printed is measured
on the site's test split. A model that has learned from the films of the training split knows them: what they promise is
then better than what a stranger's films would.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumo_bench.machine import Watch, describe_machine
from pneumo_bench.output import Table, header
from pneumo_edge.bundle import LABELS, Bundle, Calibration
from pneumo_edge.calibrate.films import LocalFilm
from pneumo_edge.calibrate.fit import STANDARD, Answers, Before, cross_fit, fit, share_of
from pneumo_edge.calibrate.judge import ask, runnable, withheld
from pneumo_edge.calibrate.measure import ece
from pneumo_edge.calibrate.place import FEWEST, start_of
from pneumo_edge.calibrate.platt import Floats, fit_calibration, moved, probabilities, sigmoid
from pneumo_edge.errors import DataError

COUNTS = (20, 50, 100, 300)
WAYS = ("before", "told the prevalence", "fitted anew", "pneumo-calibrate")
"""The bundle as it is; moved to the prevalence of the drawn films; Platt scaling without a prior; with one."""
_REPEATS = 200


def measure_places(bundle: Bundle, manifest: Path, *, draws: int, seed: int, counts: Sequence[int] = COUNTS) -> Any:
    """Calibrates a bundle on drawn training films of each site of a manifest, and judges it on the test films.

    Args:
        bundle: To be calibrated.
        manifest: CSV with path, label, patient, site and split (train, test).
        draws: Of each number of films.
        seed: Of the draws.
        counts: Numbers of films.

    Raises:
        DataError: No site has films of both classes in both splits.
    """
    machine = describe_machine()
    watch = Watch()
    file = runnable(bundle)[0]
    limit = bundle.description.files[file].novelty_limit
    before = start_of(bundle.description)
    rng = np.random.default_rng(seed)
    results = []
    for site, (learning, judged) in _sites(manifest).items():
        test, silent = _answers(bundle, file, judged, limit)
        floor = _by_chance(test, before.calibration, rng)
        drawn: dict[int, list[dict[str, Any]]] = {count: [] for count in counts}
        for _ in range(draws):
            order = rng.permutation(len(learning))[: max(counts)]
            answers, _ = _answers(bundle, file, [learning[i] for i in order], limit)
            for count in counts:
                local = answers.part(np.arange(len(answers.labels)) < count)
                drawn[count].append(_one(local, test, before))
        learned = site in {each.name for each in bundle.description.provenance.sites}
        results.append(
            {
                "site": site,
                "learned": learned,
                "test_films": len(test.labels),
                "test_patients": len(set(test.patients)),
                "test_prevalence": float(test.labels.mean()),
                "withheld": silent,
                "ece_by_chance": floor,
                "draws": {str(count): found for count, found in drawn.items()},
            }
        )
    return header("calibration", machine, watch.finish()) | {
        "settings": {
            "draws": draws,
            "seed": seed,
            "counts": list(counts),
            "file": file,
            "model": bundle.description.name,
        },
        "results": results,
        "simulated": simulate(before.calibration, np.random.default_rng(seed)),
    }


def _sites(manifest: Path) -> dict[str, tuple[list[LocalFilm], list[LocalFilm]]]:
    """Returns the training and the test films of each site that has both classes in both."""
    found: dict[str, tuple[list[LocalFilm], list[LocalFilm]]] = {}
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as text:
            for row in csv.DictReader(text):
                parts = found.setdefault(row["site"], ([], []))
                path, label = manifest.parent / row["path"], LABELS.index(row["label"])
                parts[row["split"] == "test"].append(LocalFilm(path, row["path"], label, row["patient"] or row["path"]))
    except (OSError, KeyError, ValueError, csv.Error):
        raise DataError(
            f"{manifest} is no manifest for this: CSV with the columns path, label, patient, site and split"
        ) from None
    both = {
        site: parts for site, parts in found.items() if all({film.label for film in films} == {0, 1} for films in parts)
    }
    if not both:
        raise DataError(f"{manifest} has no site with films of both labels in train and in test")
    return both


_KNOWN: dict[tuple[Path, Path], tuple[float, float]] = {}


def _answers(bundle: Bundle, file: str, films: Sequence[LocalFilm], limit: float) -> tuple[Answers, int]:
    """Returns the answers to those films that get a verdict, and how many do not; each film is judged once."""
    new = [film for film in films if (bundle.folder, film.path) not in _KNOWN]
    if new:
        found = ask(bundle, file, new)
        silent = withheld(found, limit)
        for i, film in enumerate(new):
            told = i not in silent and i not in found.errors
            _KNOWN[bundle.folder, film.path] = (float(found.logits[i]) if told else np.nan, film.label)
    logits = np.array([_KNOWN[bundle.folder, film.path][0] for film in films])
    kept = np.isfinite(logits)
    labels = np.array([film.label for film in films], np.int64)
    return Answers(labels, logits, tuple(film.patient for film in films)).part(kept), int((~kept).sum())


def _one(local: Answers, test: Answers, before: Before) -> dict[str, Any]:
    """Calibrates on the films of one draw and judges by the test films."""
    if min(local.people(0), local.people(1)) < FEWEST:
        return {"films": len(local.labels), "positive": int(local.labels.sum()), "refused": True}
    found = fit(local, before, STANDARD)
    share = float(local.labels.mean())
    ways = {
        "before": before.calibration,
        "told the prevalence": moved(before.calibration, share),
        "fitted anew": _anew(local),
        "pneumo-calibrate": found.calibration,
    }
    _, called = cross_fit(local, before, STANDARD)
    ill = test.labels == 1
    names = np.array(test.patients)
    points: dict[str, Any] = {}
    for name in STANDARD:
        points[name] = {}
        for when, cut in (("before", before.cuts[name]), ("after", found.cuts[name])):
            flagged = test.logits >= cut
            points[name][when] = {
                "sensitivity": vars(share_of(flagged[ill], names[ill].tolist())),
                "specificity": vars(share_of(~flagged[~ill], names[~ill].tolist())),
            }
        points[name]["promised"] = {
            "sensitivity": float(called[name][local.labels == 1].mean()),
            "specificity": float((~called[name])[local.labels == 0].mean()),
        }
    return {
        "films": len(local.labels),
        "positive": int(local.labels.sum()),
        "refused": False,
        "calibration": vars(found.calibration),
        "ece": {way: None if each is None else _ece(test, each) for way, each in ways.items()},
        "log_loss": {way: None if each is None else _log_loss(test, each) for way, each in ways.items()},
        "operating_points": points,
    }


def _anew(local: Answers) -> Calibration | None:
    try:
        return fit_calibration(local.labels, local.logits)
    except DataError:
        return None


def _ece(answers: Answers, calibration: Calibration) -> float:
    p = probabilities(answers.logits, calibration)
    return float(ece(answers.labels.astype(np.float64), p, np.ones((1, len(p))))[0])


def _log_loss(answers: Answers, calibration: Calibration) -> float:
    z = calibration.scale * answers.logits + calibration.offset
    return float(np.mean(np.logaddexp(0, z) - answers.labels * z))


def _by_chance(test: Answers, calibration: Calibration, rng: np.random.Generator) -> float:
    """Returns the mean calibration error that a perfect calibration would show on so many films."""
    p = probabilities(test.logits, moved(calibration, float(test.labels.mean())))
    one = np.ones((1, len(p)))
    return float(np.mean([ece((rng.random(len(p)) < p).astype(np.float64), p, one)[0] for _ in range(_REPEATS)]))


# -------------------------------------------------------------------------------------------------- simulated places

PLACES = {
    "as before": (0.0, 0.0, 0.0, 0.0),
    "places drawn from the prior": (0.0, 0.0, 0.5, 1.0),
    "drawn, half as far": (0.0, 0.0, 0.25, 0.5),
    "steeper, scale x 1.5": (0.4, 0.0, 0.0, 0.0),
    "flatter, scale x 0.5": (-0.7, 0.0, 0.0, 0.0),
    "offset + 1": (0.0, 1.0, 0.0, 0.0),
    "offset - 2": (0.0, -2.0, 0.0, 0.0),
}
"""What is true of a place -> log of the scale and offset against before, and the standard deviations of both."""


def simulate(
    before: Calibration, rng: np.random.Generator, counts: Sequence[int] = COUNTS, places: int = 60
) -> list[dict[str, Any]]:
    """Returns how much log loss each way loses against the truth in places of a known kind, in the mean.

    Logits are half from a normal distribution around -1.6 and half around 1.6, both of spread 1.2; the share of
    pneumonia lies between 15 and 70 %.
    """
    rows = []
    for kind, (scale_by, offset_by, scale_sd, offset_sd) in PLACES.items():
        for count in counts:
            lost: dict[str, list[float]] = {way: [] for way in WAYS}
            while len(lost["before"]) < places:
                here = moved(before, float(rng.uniform(0.15, 0.7)))
                true = Calibration(
                    here.scale * float(np.exp(scale_by + scale_sd * rng.normal())),
                    here.offset + offset_by + offset_sd * float(rng.normal()),
                    here.prevalence,
                )
                x = rng.normal(np.where(rng.random(count) < 0.5, -1.6, 1.6), 1.2)
                labels = (rng.random(count) < probabilities(x, true)).astype(np.int64)
                if min(labels.sum(), count - labels.sum()) < FEWEST:
                    continue
                try:
                    anew = fit_calibration(labels, x)
                except DataError:
                    continue
                grid = rng.normal(np.where(rng.random(2000) < 0.5, -1.6, 1.6), 1.2)
                ways = (
                    before,
                    moved(before, float(labels.mean())),
                    anew,
                    fit_calibration(labels, x, prior=before),
                )
                for way, found in zip(WAYS, ways, strict=True):
                    lost[way].append(_expected(grid, found, true) - _expected(grid, true, true))
            rows.append({"kind": kind, "films": count} | {way: float(np.mean(each)) for way, each in lost.items()})
    return rows


def _expected(x: Floats, found: Calibration, true: Calibration) -> float:
    z: npt.NDArray[np.float64] = np.asarray(found.scale * x + found.offset)
    return float(np.mean(np.logaddexp(0, z) - sigmoid(np.asarray(true.scale * x + true.offset)) * z))


# --------------------------------------------------------------------------------------------------------- the tables


def calibration_tables(record: Mapping[str, Any]) -> list[Table]:
    """Returns what was measured, for people."""
    settings = record["settings"]
    tables = []
    for result in record["results"]:
        errors, points = [], []
        for count, drawn in result["draws"].items():
            good = [each for each in drawn if not each["refused"]]
            if not good:
                errors.append((count, "0", *["–"] * 5))
                continue
            errors.append(
                (
                    count,
                    str(len(good)),
                    *(_spread([each["ece"][way] for each in good]) for way in WAYS),
                    f"{sum(each['ece']['pneumo-calibrate'] <= 0.05 for each in good)} of {len(good)}",
                )
            )
            for name in STANDARD:
                at = [each["operating_points"][name] for each in good]
                row = [count, name]
                for share in ("sensitivity", "specificity"):
                    row += [
                        f"{at[0]['before'][share]['value']:.1%}",
                        _spread([e["after"][share]["value"] for e in at], True),
                    ]
                    row.append(_spread([e["promised"][share] for e in at], True))
                inside = sum(e["after"]["sensitivity"]["high"] >= 0.98 for e in at)
                points.append((*row, f"{inside} of {len(at)}" if name == "screening" else "–"))
        learned = (
            f"The model has LEARNED from the films of {result['site']}/train that it is calibrated on here: they are "
            "easier for it than a stranger's, and promise too much. Its test films it has never seen."
            if result["learned"]
            else f"The model has not learned from films of {result['site']}."
        )
        about = (
            f"{result['test_films']} test films of {result['test_patients']} patients, "
            f"{result['test_prevalence']:.1%} with pneumonia; {result['withheld']} more get no verdict. In each "
            "cell the mean over draws, and the least and the most."
        )
        tables += [
            Table(
                f"{result['site']}: expected calibration error on the test films",
                ("films", "draws", *WAYS, "at most 0.05"),
                errors,
                (
                    about,
                    learned,
                    f"A perfect calibration would show an error of {result['ece_by_chance']:.3f} on so many test "
                    "films, by chance.",
                    "before: as the bundle is. told the prevalence: moved to that of the drawn films. fitted anew: "
                    "Platt scaling on the drawn films alone. Draws with fewer than 5 patients of a label are refused.",
                ),
            ),
            Table(
                f"{result['site']}: operating points on the test films",
                ("films", "point", "sensitivity before", "after", "promised", "specificity before", "after", "promised",
                 "98 % within reach"),
                points,
                (
                    "promised: what the drawn films themselves said, cross-fitted. 98 % within reach: draws in which "
                    "the 95 % interval of the sensitivity on the test films, by patient, ends at 98 % or above.",
                ),
            ),
        ]  # fmt: skip
    tables.append(
        Table(
            "Simulated places: log loss above that of the truth",
            ("place", "films", *WAYS),
            [(row["kind"], str(row["films"]), *(f"{row[way]:.3f}" for way in WAYS)) for row in record["simulated"]],
            (
                f"Drawn from the calibration of {settings['model']}; a share of pneumonia between 15 and 70 %. Lower "
                "is better, 0 is the truth.",
            ),
        )
    )
    return tables


def _spread(values: Sequence[float | None], share: bool = False) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    form = "{:.1%}" if share else "{:.3f}"
    mean, low, high = (form.format(each) for each in (float(np.mean(known)), min(known), max(known)))
    return f"{mean} ({low} to {high})"
