"""How good a model is at each site, and in the mean over sites; who the films of each site show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumo_edge.bundle import LABELS
from pneumo_train.calibrate import Floats
from pneumo_train.measure import measure
from pneumo_train.run import Films, RunFilms
from pneumo_train.split import TEST, TRAIN, VALIDATION

SHARES = ("sensitivity", "specificity")


def site_weights(sites: Sequence[str]) -> npt.NDArray[np.float64]:
    """Returns (N,) weights by which each site counts the same, 1 in the mean."""
    counts = Counter(sites)
    return np.array([len(sites) / len(counts) / counts[site] for site in sites])


def measure_sites(films: Films, probability: Floats, thresholds: dict[str, float]) -> dict[str, Any]:
    """Measures films all together, at each site, and in the mean over the sites.

    Args:
        films: Of both classes.
        probability: (N,) in [0, 1].
        thresholds: Operating point -> threshold.

    Returns:
        What `pneumo_train.measure.measure` gives for all films; `sites`: the same for each site with films of both
        classes; `mean`: AUC, ECE and the shares of each operating point, averaged over those sites.
    """
    sites = np.array(films.sites)
    found = {}
    for site in dict.fromkeys(films.sites):
        here = np.flatnonzero(sites == site)
        labels = films.labels[here]
        if set(labels.tolist()) == {0, 1}:
            found[site] = measure(labels, probability[here], [films.patients[i] for i in here], thresholds)
    whole = measure(films.labels, probability, films.patients, thresholds)
    return whole | {"sites": found, "mean": _mean(list(found.values()) or [whole], list(thresholds))}


def _mean(measured: list[dict[str, Any]], points: list[str]) -> dict[str, Any]:
    def over(values: list[dict[str, float]]) -> dict[str, float]:
        # Films of two sites are independent: so are their means, and the half-widths add in squares.
        value = float(np.mean([v["value"] for v in values]))
        below = float(np.sqrt(np.sum([(v["value"] - v["low"]) ** 2 for v in values])) / len(values))
        above = float(np.sqrt(np.sum([(v["high"] - v["value"]) ** 2 for v in values])) / len(values))
        return {"value": value, "low": max(0.0, value - below), "high": min(1.0, value + above)}

    return {name: over([m[name] for m in measured]) for name in ("auc", "average_precision", "brier", "ece")} | {
        "operating_points": {
            point: {
                share: over([m["operating_points"][point][share] for m in measured]) for share in ("accuracy", *SHARES)
            }
            for point in points
        }
    }


def describe_sites(films: RunFilms) -> dict[str, Any]:
    """Returns who the training films of each site show: what the bundle says of whom its model knows."""
    described = {}
    for site in dict.fromkeys(film.site for film in films.files):
        pairs = [(f, part) for f, part in zip(films.files, films.split, strict=True) if f.site == site]
        learned = [f for f, part in pairs if part == TRAIN]
        ages = sorted(f.age for f in learned if f.age is not None)
        used = Counter(f"{part}/{LABELS[f.label]}" for f, part in pairs if part in {TRAIN, VALIDATION, TEST})
        described[site] = {
            "films": dict(used),
            "patients": len({f.patient for f in learned}),
            "ages": None
            if not ages
            else dict(zip(("low", "median", "high"), np.quantile(ages, (0.01, 0.5, 0.99)).tolist(), strict=True))
            | {"known": len(ages)},
            "views": dict(Counter(f.view for f in learned if f.view)),
            "sexes": dict(Counter(f.sex for f in learned if f.sex)),
        }
    return described
