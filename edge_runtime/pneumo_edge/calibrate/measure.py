"""How good a model is, with intervals, with numpy alone.

One patient may have 30 films, which are no 30 independent observations: intervals are bootstrapped by patient.
Wilson's interval, which counts films, stands beside it for comparison with what others print.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumo_edge.bundle import Interval
from pneumo_edge.calibrate.platt import Floats, Labels
from pneumo_edge.errors import DataError

REPLICATES = 2000
PREVALENCES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
ECE_BINS = 15

Statistic = Callable[[Floats], Floats]
"""Film weights (B, N) -> (B,) values, one for each replicate; NaN where it says nothing."""


@dataclass(frozen=True)
class Sample:
    """Films that were judged: labels (N,), probabilities (N,) in [0, 1], and N names of patients."""

    labels: Labels
    probabilities: Floats
    patients: Sequence[str]


def measure(
    labels: Labels,
    probabilities: Floats,
    patients: Sequence[str],
    thresholds: dict[str, float],
    seed: int = 0,
) -> dict[str, Any]:
    """Measures a set of films: what `metrics.json` holds of it.

    Args:
        labels: (N,), 0 NORMAL or 1 PNEUMONIA, both present.
        probabilities: (N,) in [0, 1].
        patients: N names; films of one patient are resampled together.
        thresholds: Operating point -> threshold; a film is called pneumonia where probability >= threshold.
        seed: Of the bootstrap.

    Returns:
        n, patients, prevalence; auc, average_precision, brier, ece, each with its interval; and for each operating
        point confusion [[TN, FP], [FN, TP]], accuracy, sensitivity, specificity, precision, f1 with intervals, and
        ppv / npv with intervals over `PREVALENCES`.

    Raises:
        DataError: Films of one class only.
    """
    if set(labels.tolist()) != {0, 1}:
        raise DataError("films of one class only: a measurement needs both, NORMAL and PNEUMONIA")
    weights = bootstrap_weights(patients, seed)
    y = labels.astype(np.float64)
    p = probabilities.astype(np.float64)

    def interval(statistic: Statistic) -> dict[str, float]:
        return mean_interval([statistic], [weights])

    points = {}
    for name, threshold in thresholds.items():
        called = (p >= threshold).astype(np.float64)
        points[name] = {"threshold": threshold} | _at_threshold(y, called, weights)
    return {
        "n": len(y),
        "patients": len(set(patients)),
        "prevalence": float(y.mean()),
        **{name: interval(statistic) for name, statistic in _scores(y, p).items()},
        "operating_points": points,
    }


def measure_mean(samples: Sequence[Sample], thresholds: dict[str, float], seed: int = 0) -> dict[str, Any]:
    """Measures several sets of films, each with the same say: the mean over sites.

    Patients are resampled within each set, apart from the others, and each replicate is the mean over the sets.

    Args:
        samples: One or more, each of both classes.
        thresholds: Operating point -> threshold.
        seed: Of the bootstrap.

    Returns:
        auc, average_precision, brier, ece, and for each operating point accuracy, sensitivity, specificity: value, low,
        high.
    """
    weights = [bootstrap_weights(sample.patients, (seed, number)) for number, sample in enumerate(samples)]
    ys = [sample.labels.astype(np.float64) for sample in samples]
    ps = [sample.probabilities.astype(np.float64) for sample in samples]

    def over(statistics: Sequence[dict[str, Statistic]]) -> dict[str, dict[str, float]]:
        return {name: mean_interval([each[name] for each in statistics], weights) for name in statistics[0]}

    return over([_scores(y, p) for y, p in zip(ys, ps, strict=True)]) | {
        "operating_points": {
            name: over([_shares(y, p >= threshold) for y, p in zip(ys, ps, strict=True)])
            for name, threshold in thresholds.items()
        }
    }


def mean_interval(statistics: Sequence[Statistic], weights: Sequence[Floats]) -> dict[str, float]:
    """Returns the mean of statistics of independent sets of films, with its 95 % interval: value, low, high.

    Args:
        statistics: One for each set.
        weights: (REPLICATES, N) for each set, from `bootstrap_weights`.
    """
    pairs = list(zip(statistics, weights, strict=True))
    value = float(np.mean([statistic(np.ones((1, w.shape[1])))[0] for statistic, w in pairs]))
    return _interval(value, np.mean([statistic(w) for statistic, w in pairs], axis=0))


def _interval(value: float, spread: Floats) -> dict[str, float]:
    """Returns a value with the 95 % interval of its replicates; NaN among these is passed over."""
    known = spread[~np.isnan(spread)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (value, value)
    return asdict(Interval(value, float(low), float(high)))


def mean_of(values: Floats, weights: Floats) -> dict[str, float]:
    """Returns the mean of a value of each film, with its 95 % interval by patient; NaN is left out.

    Args:
        values: (N,), at least one of them a number.
        weights: (REPLICATES, N), from `bootstrap_weights`.
    """
    known = ~np.isnan(values)
    return mean_interval([lambda w: _ratio(w[:, known] @ values[known], w[:, known].sum(axis=1))], [weights])


def _ratio(top: Floats, bottom: Floats) -> Floats:
    # A replicate without a film in the denominator says nothing: NaN, which the interval passes over.
    with np.errstate(invalid="ignore", divide="ignore"):
        quotient: Floats = top / bottom
    return quotient


def _scores(y: Floats, p: Floats) -> dict[str, Statistic]:
    """What is measured without a threshold, of labels and probabilities (N,)."""
    return {
        "auc": lambda w: weighted_auc(y, p, w),
        "average_precision": lambda w: _average_precision(y, p, w),
        "brier": lambda w: w @ (p - y) ** 2 / w.sum(axis=1),
        "ece": lambda w: ece(y, p, w),
    }


def _shares(y: Floats, called: npt.NDArray[np.bool_]) -> dict[str, Statistic]:
    """The shares of right verdicts: of all films, of those with label 1, of those with label 0."""
    right = (called == (y == 1)).astype(np.float64)
    return {
        "accuracy": lambda w: w @ right / w.sum(axis=1),
        "sensitivity": lambda w: _ratio(w @ (right * y), w @ y),
        "specificity": lambda w: _ratio(w @ (right * (1 - y)), w @ (1 - y)),
    }


def _at_threshold(y: Floats, called: Floats, weights: Floats) -> dict[str, Any]:
    """All measures of a 2 x 2 table; `weights` are (B, N), from `bootstrap_weights`."""
    films = {
        "tp": y * called,
        "fp": (1 - y) * called,
        "tn": (1 - y) * (1 - called),
        "fn": y * (1 - called),
    }
    # Each cell as it is, and in every replicate, (1 + B,): all measures are made of these.
    cells = {name: np.concatenate([[cell.sum()], weights @ cell]) for name, cell in films.items()}

    def interval(values: Floats) -> dict[str, float]:
        return _interval(float(values[0]), values[1:])

    def share(numerator: str, denominator: str) -> dict[str, float]:
        top, bottom = (np.sum([cells[c] for c in names.split()], axis=0) for names in (numerator, denominator))
        hits, n = int(top[0]), int(bottom[0])
        if n == 0:
            return {"value": 0.0, "low": 0.0, "high": 1.0, "wilson_low": 0.0, "wilson_high": 1.0}
        low, high = wilson(hits, n)
        return interval(_ratio(top, bottom)) | {"wilson_low": low, "wilson_high": high}

    found = _ratio(cells["tp"], cells["tp"] + cells["fn"])
    spared = _ratio(cells["tn"], cells["tn"] + cells["fp"])

    def held(given: float, right: Floats, wrong: Floats) -> tuple[float, float]:
        """The interval of right / (right + wrong); anything is possible of a verdict that was never given."""
        if not given:
            return 0.0, 1.0
        share = interval(_ratio(right, right + wrong))
        return share["low"], share["high"]

    def predictive(prevalence: float) -> dict[str, float]:
        ill, well = prevalence, 1 - prevalence
        ppv = held(cells["tp"][0] + cells["fp"][0], ill * found, well * (1 - spared))
        npv = held(cells["tn"][0] + cells["fn"][0], well * spared, ill * (1 - found))
        values = predictive_values(sensitivity["value"], specificity["value"], prevalence)
        intervals = {"ppv_low": ppv[0], "ppv_high": ppv[1], "npv_low": npv[0], "npv_high": npv[1]}
        return {"prevalence": prevalence} | values | intervals

    sensitivity, specificity = share("tp", "tp fn"), share("tn", "tn fp")
    return {
        "confusion": [[int(cells[c][0]) for c in row.split()] for row in ("tn fp", "fn tp")],
        "accuracy": share("tp tn", "tp tn fp fn"),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "precision": share("tp", "tp fp"),
        "f1": interval(_ratio(2 * cells["tp"], 2 * cells["tp"] + cells["fp"] + cells["fn"])),
        "ppv_npv": [predictive(prevalence) for prevalence in PREVALENCES],
    }


def bootstrap_weights(patients: Sequence[str], seed: int | Sequence[int] = 0) -> npt.NDArray[np.float64]:
    """Returns (REPLICATES, N): how often each film counts when the patients are drawn with replacement."""
    _, patient = np.unique(np.asarray(patients, dtype=object).astype(str), return_inverse=True)
    count = int(patient.max()) + 1
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=REPLICATES)
    return drawn[:, patient].astype(np.float64)


def weighted_auc(y: Floats | Labels, scores: Floats, weights: Floats) -> npt.NDArray[np.float64]:
    """Returns (B,) areas under the ROC curve, one for each row of film weights (B, N).

    The area is the chance that a positive film scores above a negative one, ties counting half (Hanley and McNeil,
    Radiology 1982); written for weights so that 2,000 bootstrap replicates cost one pass. NaN where a class has no
    weight.
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(scores[order]) > 0]))
    positive = np.add.reduceat(weights[:, order] * y[order], starts, axis=1)
    negative = np.add.reduceat(weights[:, order] * (1 - y[order]), starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        area: npt.NDArray[np.float64] = (positive * below).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1))
    return area


def mean_auc(labels: Labels, scores: Floats, sites: npt.NDArray[np.str_]) -> float:
    """Returns the mean over sites of the area under the ROC curve; sites without one of the classes do not count.

    Args:
        labels: (N,), 0 or 1.
        scores: (N,)
        sites: (N,)

    Raises:
        DataError: No site has films of both classes.
    """
    areas = []
    for site in np.unique(sites):
        here = sites == site
        if set(labels[here].tolist()) == {0, 1}:
            areas.append(float(weighted_auc(labels[here], scores[here], np.ones((1, int(here.sum()))))[0]))
    if not areas:
        raise DataError("no site has films of both classes: an area under the ROC curve needs both")
    return float(np.mean(areas))


def _average_precision(y: Floats, scores: Floats, weights: Floats) -> npt.NDArray[np.float64]:
    """Sum over thresholds of precision times the gain in recall, as scikit-learn defines it, for each weight row."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.concatenate([np.diff(scores[order]) < 0, [True]]))
    tp = np.cumsum(weights[:, order] * y[order], axis=1)[:, ends]
    called = np.cumsum(weights[:, order], axis=1)[:, ends]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(called > 0, tp / called, 0.0)
        gained = np.diff(tp, axis=1, prepend=0) / tp[:, -1:]
        area: npt.NDArray[np.float64] = (precision * gained).sum(axis=1)
    return area


def ece(y: Floats, p: Floats, weights: Floats) -> npt.NDArray[np.float64]:
    """Expected calibration error over 15 equal bins of the probability of pneumonia (Guo et al., ICML 2017)."""
    place = np.minimum((p * ECE_BINS).astype(int), ECE_BINS - 1)
    member = np.eye(ECE_BINS)[place]
    gap: npt.NDArray[np.float64] = np.abs((weights * (p - y)) @ member).sum(axis=1) / weights.sum(axis=1)
    return gap


def wilson(hits: float, n: float, z: float = 1.959963984540054) -> tuple[float, float]:
    """Returns the 95 % score interval of hits / n (Wilson, JASA 1927); n > 0. Neither need be a whole number."""
    share = hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def auc_interval(area: float, ill: int, well: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Returns the 95 % interval of an area under the ROC curve; one of a perfect area is no point either.

    Args:
        area: In [0, 1].
        ill: Patients of the one class, > 0.
        well: Of the other, > 0.
        z: Of the normal distribution.

    Source: Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic. Part 2",
    Statistics in Medicine 25 (2006), method 5: the areas from which this one is no further than z standard deviations,
    each by its own variance (Hanley and McNeil 1982, with the mean of both numbers in place of each).
    """
    extra = (ill + well) / 2 - 1

    def inside(theta: float) -> bool:
        spread = theta * (1 - theta) * (1 + extra * ((1 - theta) / (2 - theta) + theta / (1 + theta))) / (ill * well)
        return (theta - area) ** 2 <= z * z * spread

    def edge(out: float) -> float:
        near = area
        for _ in range(60):
            middle = (near + out) / 2
            near, out = (middle, out) if inside(middle) else (near, middle)
        return near

    return edge(0.0), edge(1.0)


def predictive_values(sensitivity: float, specificity: float, prevalence: float) -> dict[str, float]:
    """Returns ppv and npv at a prevalence, by Bayes' rule; where nothing is called, the value is 0."""
    called_ill = sensitivity * prevalence + (1 - specificity) * (1 - prevalence)
    called_well = (1 - sensitivity) * prevalence + specificity * (1 - prevalence)
    return {
        "ppv": sensitivity * prevalence / called_ill if called_ill else 0.0,
        "npv": specificity * (1 - prevalence) / called_well if called_well else 0.0,
    }
