"""From logits to probabilities that mean what they say, and the thresholds on them. Validation films only."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pneumo_edge.bundle import Calibration
from pneumo_edge.errors import DataError

Floats = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.int64]

SCREENING_SENSITIVITY = 0.98


def fit_calibration(labels: Labels, logits: Floats, weights: Floats | None = None) -> Calibration:
    """Fits probability = sigmoid(scale * logit + offset) by maximum likelihood.

    Args:
        labels: (N,), 0 or 1, both present.
        logits: (N,).
        weights: (N,), how much each film counts, 1 in the mean; all alike by default.

    Returns:
        Scale, offset, and the share of label 1 for which they hold.

    Raises:
        DataError: The logits do not rise with the label at all: there is nothing to calibrate.

    Source: Platt, "Probabilistic outputs for support vector machines" (1999), with its smoothed targets
    (n1 + 1) / (n1 + 2) and 1 / (n0 + 2), which keep the scale finite where the classes do not overlap.
    """
    from sklearn.linear_model import LogisticRegression

    if weights is None:
        weights = np.ones(len(labels))
    n1 = float(weights[labels == 1].sum())
    n0 = float(weights[labels == 0].sum())
    # A smoothed target t is a film counted as positive with weight t and as negative with weight 1 - t.
    high, low = (n1 + 1) / (n1 + 2), 1 / (n0 + 2)
    targets = np.where(labels == 1, high, low)
    x = np.concatenate([logits, logits]).astype(np.float64)[:, np.newaxis]
    y = np.repeat([1, 0], len(labels))
    fitted = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(
        x, y, sample_weight=np.concatenate([weights * targets, weights * (1 - targets)])
    )
    scale, offset = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    if scale <= 0:
        raise DataError("the model's scores do not rise with pneumonia on the validation films: train longer")
    return Calibration(scale, offset, n1 / (n0 + n1))


def probabilities(logits: Floats, calibration: Calibration) -> npt.NDArray[np.float64]:
    """Returns (N,) calibrated probabilities of pneumonia in [0, 1]."""
    return 1 / (1 + np.exp(-(calibration.scale * logits.astype(np.float64) + calibration.offset)))


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
