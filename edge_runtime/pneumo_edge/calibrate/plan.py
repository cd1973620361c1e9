"""How many films a measurement needs, before anybody collects them; and exact intervals, which the plan is made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pneumo_edge.calibrate.measure import wilson
from pneumo_edge.errors import UsageError

_MOST = 100_000
"""Patients of one class: whoever needs more has asked for a margin that no hospital can reach."""


@dataclass(frozen=True)
class Plan:
    """Patients that are needed, each with one film."""

    ill: int
    """With pneumonia, for the sensitivity."""
    well: int
    """Without, for the specificity."""
    films: int
    """Taken as they come: enough for both in the mean."""


def exact(hits: int, n: int, alpha: float = 0.05) -> tuple[float, float]:
    """Returns the exact 95 % interval of hits / n (Clopper and Pearson, Biometrika 1934); n > 0."""
    low = 0.0 if hits == 0 else _root(lambda p: 1 - _at_most(hits - 1, n, p) - alpha / 2)
    high = 1.0 if hits == n else _root(lambda p: alpha / 2 - _at_most(hits, n, p))
    return low, high


def _at_most(hits: int, n: int, p: float) -> float:
    """Returns the chance of so many hits or fewer of n."""
    whole = math.lgamma(n + 1)
    logs = [
        whole - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p)
        for k in range(hits + 1)
    ]
    return min(1.0, math.fsum(map(math.exp, logs)))


def _root(rising: Callable[[float], float]) -> float:
    """Returns where a function that rises over (0, 1) is 0."""
    low, high = 1e-12, 1 - 1e-12
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2


def buderer(share: float, margin: float) -> int:
    """Returns the patients of one class for which share +- margin is the usual (Wald) 95 % interval.

    Source: Buderer, "Statistical methodology: I. Incorporating the prevalence of disease into the sample size
    calculation for sensitivity and specificity", Academic Emergency Medicine 3 (1996), 895. It asks for too few where
    the share is near 1, where that interval is too narrow.
    """
    return math.ceil(1.959963984540054**2 * share * (1 - share) / margin**2 - 1e-9)


def patients_for(share: float, margin: float, interval: Callable[[int, int], tuple[float, float]] = wilson) -> int:
    """Returns the fewest patients of one class from which on the interval is no wider than twice the margin.

    Args:
        share: Expected sensitivity (of patients with pneumonia) or specificity (of those without), in (0, 1).
        margin: Half of the width of the interval, in (0, 0.5).
        interval: `wilson` or `exact`.

    Raises:
        UsageError: More than 100,000.

    Source: as Buderer (1996), with the intervals of Wilson (1927) and of Clopper and Pearson (1934) in place of Wald's;
    for the exact ones compare Flahault, Cadilhac and Thomas, "Sample size calculation should be performed for design
    accuracy in diagnostic test studies", Journal of Clinical Epidemiology 58 (2005), 859.
    """

    def wide_enough(n: int) -> bool:
        low, high = interval(round(share * n), n)
        return high - low <= 2 * margin

    most = 8
    while not wide_enough(most):
        most *= 2
        if most > _MOST:
            raise UsageError(f"a margin of {margin:g} needs more than {_MOST:,} patients: give a wider one")
    # Widths saw up and down with the rounding of share * n: from the last that is too wide on.
    n = most
    while n > 1 and (wide_enough(n - 1) or wide_enough(n - 2)):
        n -= 1
    return n


def plan(
    sensitivity: float,
    specificity: float,
    margin: float,
    prevalence: float,
    interval: Callable[[int, int], tuple[float, float]] = wilson,
) -> Plan:
    """Returns how many patients must be found, and how many films must be taken as they come.

    Args:
        sensitivity: Expected, in (0, 1).
        specificity: Expected, in (0, 1).
        margin: Half of the width of both intervals.
        prevalence: Share of films with pneumonia among those that are collected.
        interval: `wilson` or `exact`.

    Raises:
        UsageError: A share outside (0, 1), a margin outside (0, 0.5), or more patients than anybody has.
    """
    for name, value in (("sensitivity", sensitivity), ("specificity", specificity), ("prevalence", prevalence)):
        if not 0 < value < 1:
            raise UsageError(f"--{name} {value:g} is not between 0 and 1: give a share such as 0.9")
    if not 0 < margin < 0.5:
        raise UsageError(f"--margin {margin:g} is not between 0 and 0.5: give a share such as 0.05")
    needed = partial(patients_for, margin=margin, interval=interval)
    ill, well = needed(sensitivity), needed(specificity)
    return Plan(ill, well, max(math.ceil(ill / prevalence - 1e-9), math.ceil(well / (1 - prevalence) - 1e-9)))
