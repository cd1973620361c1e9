"""Calibration and operating points of one place, from the answers to its films; and what they are worth.

All cuts are on the logit, which no prevalence moves; a threshold on the probability is worked out at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import numpy.typing as npt

from pneumo_edge.bundle import Calibration, Interval
from pneumo_edge.calibrate.measure import auc_interval, predictive_values, weighted_auc, wilson
from pneumo_edge.calibrate.platt import (
    SCREENING_SENSITIVITY,
    Floats,
    Labels,
    fit_calibration,
    log_odds,
    moved,
    probabilities,
    sigmoid,
)

FOLDS = 10
DOUBT = 0.1
"""How often a floor of sensitivity or specificity may fail to hold."""
BALANCED, SCREENING = "balanced", "screening"

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Wish:
    """What an operating point is to do."""

    kind: str
    """"balanced", "sensitivity", "specificity" or "cost"."""
    value: float = 0.0
    """The share that is not to be gone below; or what a missed pneumonia costs, in false alarms."""


STANDARD = {BALANCED: Wish("balanced"), SCREENING: Wish("sensitivity", SCREENING_SENSITIVITY)}


@dataclass(frozen=True)
class Answers:
    """What a model file says of the films of a place."""

    labels: Labels
    """(N,), 0 or 1."""
    logits: Floats
    """(N,)"""
    patients: tuple[str, ...]
    """N names."""

    def part(self, which: Flags) -> Answers:
        """Returns those of some films."""
        names = tuple(name for name, chosen in zip(self.patients, which, strict=True) if chosen)
        return Answers(self.labels[which], self.logits[which], names)

    def people(self, label: int) -> int:
        """Returns how many patients have a film of a label."""
        return len({name for name, each in zip(self.patients, self.labels, strict=True) if each == label})


@dataclass(frozen=True)
class Before:
    """What the bundle said before."""

    calibration: Calibration
    cuts: dict[str, float]
    """Operating point -> logit."""


@dataclass(frozen=True)
class Fit:
    """Calibration and operating points of a place."""

    calibration: Calibration
    cuts: dict[str, float]
    """Operating point -> logit from which on a film is called PNEUMONIA."""

    def threshold(self, name: str) -> float:
        """Returns an operating point's threshold on the probability, in (0, 1)."""
        at = sigmoid(np.array([self.calibration.scale * self.cuts[name] + self.calibration.offset]))[0]
        return float(np.clip(at, 1e-9, 1 - 1e-9))


def fit(answers: Answers, before: Before, wishes: Mapping[str, Wish], prevalence: float | None = None) -> Fit:
    """Fits the calibration of a place, with the one from before as prior, and chooses its operating points.

    Args:
        answers: To films of both classes.
        before: Of the bundle as it was exported.
        wishes: Operating point -> what it is to do.
        prevalence: Share of films with pneumonia where the model is to be used; that of the films by default.
    """
    # Films of one patient are not independent: together they weigh as much as there are patients.
    weights = np.full(len(answers.labels), len(set(answers.patients)) / len(answers.labels))
    own = fit_calibration(answers.labels, answers.logits, weights, before.calibration)
    calibration = own if prevalence is None else moved(own, prevalence)
    return Fit(calibration, {name: _cut(wish, answers, calibration, before) for name, wish in wishes.items()})


def _cut(wish: Wish, answers: Answers, calibration: Calibration, before: Before) -> float:
    if wish.kind in ("balanced", "cost"):
        # Youden's index is largest where the probability is the prevalence; the cost is least where it is the share of
        # a false alarm in the cost of both (Elkan, "The foundations of cost-sensitive learning", IJCAI 2001).
        odds = log_odds(calibration.prevalence if wish.kind == "balanced" else 1 / (1 + wish.value))
        return (odds - calibration.offset) / calibration.scale
    if wish.kind == "sensitivity":
        return lowest(answers, wish.value, before.cuts.get(SCREENING, inf))
    mirrored = Answers(1 - answers.labels, -answers.logits, answers.patients)
    return -lowest(mirrored, wish.value, -before.cuts.get(BALANCED, -inf))


def lowest(answers: Answers, share: float, otherwise: float) -> float:
    """Returns the highest cut above which, with 90 % confidence, at least so many of the positives to come lie.

    Above the k-th lowest of n lies a share of those to come that is below S as often as at most k - 1 of n throws with
    the chance 1 - S hit, whatever the distribution (Wilks, "Determination of sample sizes for setting tolerance
    limits", Annals of Mathematical Statistics 12, 1941). n are patients. Where even the lowest is too high (with fewer
    than 114 for 98 %), that one is taken or the cut from before, whichever is lower.

    Args:
        answers: To films of both classes.
        share: In (0, 1).
        otherwise: The cut from before.
    """
    ill = np.sort(answers.logits[answers.labels == 1])
    people = answers.people(1)
    k, chance, below_share = 0, share**people, 0.0
    while below_share + chance <= DOUBT and k < people:
        below_share += chance
        k += 1
        chance *= (people - k + 1) / k * (1 - share) / share
    at = float(ill[max(k * len(ill) // people, 1) - 1])
    below = answers.logits[answers.logits < at]
    # Midway to the next film: the lowest positive itself is no cut that its like would pass.
    cut = (at + float(below.max())) / 2 if len(below) else at - 1e-6
    return cut if k else min(cut, otherwise)


def cross_fit(
    answers: Answers, before: Before, wishes: Mapping[str, Wish], prevalence: float | None = None
) -> tuple[npt.NDArray[np.float64], dict[str, Flags]]:
    """Judges each film by a calibration and cuts that films of other patients have chosen.

    Returns:
        Probabilities (N,) at the prevalence of the films, and for each operating point which films are called
        PNEUMONIA, (N,).
    """
    fold = folds(answers)
    p = np.zeros(len(fold))
    called = {name: np.zeros(len(fold), bool) for name in wishes}
    for number in range(int(fold.max()) + 1):
        here = fold == number
        found = fit(answers.part(~here), before, wishes, prevalence)
        at_home = moved(found.calibration, float(answers.labels.mean()))
        p[here] = probabilities(answers.logits[here], at_home)
        for name, cut in found.cuts.items():
            called[name][here] = answers.logits[here] >= cut
    return p, called


def folds(answers: Answers, seed: int = 0) -> npt.NDArray[np.int64]:
    """Returns the number of each film's fold, (N,): by patient, ill and well ones dealt out evenly."""
    ill = {name for name, label in zip(answers.patients, answers.labels, strict=True) if label == 1}
    rng = np.random.default_rng(seed)
    number: dict[str, int] = {}
    for group in (sorted(ill), sorted(set(answers.patients) - ill)):
        for place in rng.permutation(len(group)):
            number[group[place]] = len(number) % FOLDS
    return np.array([number[name] for name in answers.patients], np.int64)


# ------------------------------------------------------------------------------------------------- what it is worth


@dataclass(frozen=True)
class Worth:
    """What an operating point gives, with 95 % intervals by patient."""

    sensitivity: Interval
    specificity: Interval
    ppv: Interval
    npv: Interval
    flagged: Interval
    """Share of the films that is called PNEUMONIA."""


def share_of(right: Flags, patients: Sequence[str]) -> Interval:
    """Returns the share of films that are right, with Wilson's interval for as many as there are patients.

    As if the films of one patient all came out alike: the widest interval that they can have.

    Args:
        right: (N,), N > 0.
        patients: N names.
    """
    people = len(set(patients))
    share = float(right.mean())
    return Interval(share, *wilson(share * people, people))


def worth(answers: Answers, called: Flags, prevalence: float) -> Worth:
    """Measures an operating point by films that have not chosen it.

    Args:
        answers: Of both classes.
        called: (N,), which films are called PNEUMONIA.
        prevalence: For which the predictive values hold. Their limits are those of sensitivity and specificity put into
            Bayes' rule together, which is wider than 95 %, and does not break down where nothing was missed.
    """
    ill = answers.labels == 1
    names = np.array(answers.patients)
    sensitivity, specificity = share_of(called[ill], names[ill].tolist()), share_of(~called[~ill], names[~ill].tolist())
    limits = [
        predictive_values(getattr(sensitivity, edge), getattr(specificity, edge), prevalence)
        for edge in ("value", "low", "high")
    ]

    def flagged(found: float, spared: float) -> float:
        return found * prevalence + (1 - spared) * (1 - prevalence)

    return Worth(
        sensitivity,
        specificity,
        _ordered(*(each["ppv"] for each in limits)),
        _ordered(*(each["npv"] for each in limits)),
        Interval(
            flagged(sensitivity.value, specificity.value),
            flagged(sensitivity.low, specificity.high),
            flagged(sensitivity.high, specificity.low),
        ),
    )


def _ordered(value: float, low: float, high: float) -> Interval:
    return Interval(value, min(low, value), max(high, value))


def area(answers: Answers) -> Interval:
    """Returns the area under the ROC curve of films of both classes, its interval by patient (Newcombe 2006)."""
    value = float(weighted_auc(answers.labels, answers.logits, np.ones((1, len(answers.labels))))[0])
    return Interval(value, *auc_interval(value, answers.people(1), answers.people(0)))
