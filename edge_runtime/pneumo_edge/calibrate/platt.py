"""From logits to probabilities that mean what they say, and the thresholds on them, with numpy alone."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumo_edge.bundle import Calibration
from pneumo_edge.errors import DataError

Floats = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.int64]

SCREENING_SENSITIVITY = 0.98

LOG_SCALE_SD, OFFSET_SD = 0.5, 1.0
"""How far a calibration is believed to move from one place to another, as standard deviations of a normal distribution:
the scale by a factor of 1.6, the offset (at the prevalence of the new place) by 1, which is odds times 2.7. Chosen, and
tried on places of many kinds: see docs/calibrate.md."""

_STEPS = 200


@dataclass(frozen=True)
class Prior:
    """What is believed of a calibration before a film of the place is seen: normal in (log of the scale, offset)."""

    log_scale: float
    offset: float
    log_scale_sd: float = LOG_SCALE_SD
    offset_sd: float = OFFSET_SD


def moved(calibration: Calibration, prevalence: float) -> Calibration:
    """Returns a calibration at another prevalence: by Bayes' rule the offset moves by the difference of log odds."""
    shift = log_odds(prevalence) - log_odds(calibration.prevalence)
    return Calibration(calibration.scale, calibration.offset + shift, prevalence)


def log_odds(share: float) -> float:
    """Returns log(p / (1 - p)) of a share in (0, 1)."""
    return log(share) - log(1 - share)


def fit_calibration(
    labels: Labels, logits: Floats, weights: Floats | None = None, prior: Calibration | None = None
) -> Calibration:
    """Fits probability = sigmoid(scale * logit + offset): by maximum likelihood, or most probable after a prior.

    Args:
        labels: (N,), 0 or 1, both present.
        logits: (N,).
        weights: (N,), how much each film counts, 1 in the mean without a prior; all 1 by default. With a prior their
            sum says how many films' worth of evidence they are: films of one patient are not independent.
        prior: The calibration from before. Moved to the prevalence of these films it is the mean of `Prior`.

    Returns:
        Scale, offset, and the share of label 1 for which they hold.

    Raises:
        DataError: Without a prior: the logits do not rise with the label at all, there is nothing to calibrate.

    Source: Platt, "Probabilistic outputs for support vector machines" (1999), without a prior with its smoothed targets
    (n1 + 1) / (n1 + 2) and 1 / (n0 + 2), which keep the scale finite where the classes do not overlap. With a prior,
    which does that by itself, the maximum of likelihood times prior (Laplace; MacKay 2003, chapter 27).
    """
    weights = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
    n1 = float(weights[labels == 1].sum())
    n0 = float(weights[labels == 0].sum())
    prevalence = n1 / (n0 + n1)
    if prior is None:
        high, low = (n1 + 1) / (n1 + 2), 1 / (n0 + 2)
        scale, offset = _fit(logits, np.where(labels == 1, high, low), weights, None)
        if scale <= 0:
            raise DataError("the model's scores do not rise with pneumonia on the validation films: train longer")
    else:
        # A handful of films may be of one class by chance: one film of each beside them.
        before = moved(prior, (n1 + 1) / (n0 + n1 + 2))
        scale, offset = _fit(logits, labels.astype(np.float64), weights, Prior(log(before.scale), before.offset))
    return Calibration(scale, offset, prevalence)


def _fit(logits: Floats, targets: Floats, weights: Floats, prior: Prior | None) -> tuple[float, float]:
    """Returns scale and offset where the weighted likelihood of the targets (times the prior) is largest.

    Fisher scoring, each step halved until the likelihood rises. With a prior it steps in the log of the scale.
    """
    x = logits.astype(np.float64)
    if prior is None:
        # Logits of any size: the steps are taken on standardised ones.
        middle, spread = float(x.mean()), float(x.std()) or 1.0
        x = (x - middle) / spread
        at, mean, precision = np.zeros(2), np.zeros(2), np.zeros((2, 2))
    else:
        middle, spread = 0.0, 1.0
        mean = np.array([prior.log_scale, prior.offset])
        at, precision = mean.copy(), np.diag([prior.log_scale_sd**-2, prior.offset_sd**-2])

    def scale_of(parameters: npt.NDArray[np.float64]) -> float:
        return float(parameters[0]) if prior is None else exp(min(float(parameters[0]), 50.0))

    def loss(parameters: npt.NDArray[np.float64]) -> float:
        z = scale_of(parameters) * x + parameters[1]
        away = parameters - mean
        return float(weights @ (np.logaddexp(0, z) - targets * z) + away @ precision @ away / 2)

    now = loss(at)
    for _ in range(_STEPS):
        scale = scale_of(at)
        p = sigmoid(scale * x + at[1])
        slopes = np.stack([x if prior is None else scale * x, np.ones_like(x)])
        gradient = slopes @ (weights * (p - targets)) + precision @ (at - mean)
        curvature = (slopes * (weights * p * (1 - p))) @ slopes.T + precision
        # All logits alike leave the scale open: it stays 0.
        step = np.linalg.lstsq(curvature, gradient, rcond=None)[0]
        fraction = 1.0
        while (there := loss(at - fraction * step)) > now and fraction > 1e-10:
            fraction /= 2
        if there > now:
            break
        at, gained, now = at - fraction * step, now - there, there
        if gained <= 1e-15 * (1 + abs(now)) and float(np.abs(step).max()) < 1e-9:
            break
    scale = scale_of(at) / spread
    return scale, float(at[1]) - scale * middle


def sigmoid(z: Floats) -> npt.NDArray[np.float64]:
    """Returns 1 / (1 + exp(-z)), of numbers of any size; NaN of NaN."""
    with np.errstate(invalid="ignore"):
        return np.exp(-np.logaddexp(0, -z.astype(np.float64)))


def probabilities(logits: Floats, calibration: Calibration) -> npt.NDArray[np.float64]:
    """Returns (N,) calibrated probabilities of pneumonia in [0, 1]."""
    return sigmoid(calibration.scale * logits.astype(np.float64) + calibration.offset)


def choose_thresholds(labels: Labels, probability: Floats, weights: Floats | None = None) -> dict[str, float]:
    """Chooses the operating points: thresholds on the probability, from which on a film counts as positive.

    Args:
        labels: (N,), 0 or 1, both present.
        probability: (N,) in [0, 1], calibrated on these films with the same weights.
        weights: (N,), how much each film counts; all alike by default.

    Returns:
        "balanced": where sensitivity + specificity - 1 is largest. For calibrated probabilities that is the share of
        positives: there a film is as likely among the positives as among the negatives.
        "screening": the highest threshold whose sensitivity is at least `SCREENING_SENSITIVITY`, midway between two
        films.

    Source: Youden (1950). Its largest value, counted over the films themselves, moves with a handful of them: Fluss,
    Faraggi and Reiser, "Estimation of the Youden index and its associated cutoff point" (2005). On the real set it was
    0.77 for one model and 0.35 for the next, and did worse on held-out patients; see docs/experiments.md.
    """
    distinct, place = np.unique(probability, return_inverse=True)
    if weights is None:
        weights = np.ones(len(labels))
    positives = np.bincount(place[labels == 1], weights[labels == 1], minlength=len(distinct))
    # Cutting below distinct[i] calls it and all above positive.
    found = positives[::-1].cumsum()[::-1]
    below = np.concatenate([[0.0], distinct[:-1]])
    cuts = (distinct + below) / 2
    # Between two floats that are neighbours there is no third: the middle is rounded to one of them.
    cuts = np.where(cuts > below, cuts, distinct)
    # Sums of weights are rounded: the share of all is 1 but for that.
    screening = int(np.flatnonzero(found / positives.sum() >= SCREENING_SENSITIVITY - 1e-12)[-1])
    return {"balanced": float(np.average(labels, weights=weights)), "screening": float(cuts[screening])}
