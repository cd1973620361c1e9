"""Notices when the films of a device change: the last of them against the reference of its bundle.

Three things are watched: the score (logit), the novelty, and the contrast of the film itself. Each is the distance of
Kolmogorov and Smirnov between the last films and the reference. A limit for it allows for both being samples:
`LIMIT` * sqrt(1 / films + 1 / films of the reference). It was chosen by simulation so that films which come one by one
from the very distribution of the reference, 100 a day, give less than one alarm a year in all (tests/edge/test_watch.py
simulates it again). Nothing here knows whose films they are.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left, bisect_right
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from pneumo_edge.bundle import LABELS, Calibration, ModelFile, OperatingPoint, Reference

LAST = 200
FIRST = 40
"""Films from which on anything is said."""
LIMIT = 2.5
OVER = 0.85
"""An alarm ends below this share of its limit: it does not come and go with every film."""

if TYPE_CHECKING:
    from pneumo_edge.classifier import Classifier

WATCHED = ("score", "novelty", "contrast")


@dataclass(frozen=True)
class Shift:
    """How far one of the watched things lies from the reference."""

    distance: float
    """0 (as the reference) to 1 (nothing in common)."""
    limit: float
    alarm: bool


@dataclass(frozen=True)
class Outlook:
    """What is known of the last films."""

    films: int
    of: int
    """So many are looked at, at most."""
    shifts: dict[str, Shift]
    """Of `WATCHED` what the reference knows; empty where there are too few films."""
    withheld: float | None
    """Share of the films without a verdict; None without films."""
    pneumonia: float | None
    """Share called PNEUMONIA of those with a verdict; None without any."""
    expected: float
    """The same in the reference."""

    @property
    def alarms(self) -> tuple[str, ...]:
        """What has shifted."""
        return tuple(name for name, shift in self.shifts.items() if shift.alarm)


def distance(values: Mapping[float, int], quantiles: Sequence[float]) -> float:
    """Returns the largest difference between the distribution of values and that of a reference, 0 to 1.

    Args:
        values: Value -> how many films have it, at least one in all.
        quantiles: 101 numbers, ascending; between two of them the reference is taken to be even.
    """
    films = sum(values.values())
    largest, before = 0.0, 0
    for value in sorted(values):
        below, at_most = _shares(value, quantiles)
        until = before + values[value]
        # Where the reference jumps, its lower end counts against what lies above and its upper end against the rest.
        largest = max(largest, until / films - at_most, below - before / films)
        before = until
    return largest


def _shares(value: float, quantiles: Sequence[float]) -> tuple[float, float]:
    """Returns the shares of a reference that lie below a value, and at it or below."""
    last = len(quantiles) - 1
    left, right = bisect_left(quantiles, value), bisect_right(quantiles, value)
    if left < right:
        return left / last, (right - 1) / last
    if left in (0, last + 1):
        return (0.0, 0.0) if left == 0 else (1.0, 1.0)
    low, high = quantiles[left - 1], quantiles[left]
    share = (left - 1 + (value - low) / (high - low)) / last
    return share, share


def limit(films: int, reference_films: int) -> float:
    """Returns the distance from which on films are called shifted."""
    return LIMIT * math.sqrt(1 / films + 1 / reference_films)


def expected_share(reference: Reference, calibration: Calibration, point: OperatingPoint) -> float:
    """Returns the share of the reference's films that an operating point calls PNEUMONIA."""
    odds = math.log(point.threshold) - math.log1p(-point.threshold)
    return 1 - _shares((odds - calibration.offset) / calibration.scale, reference.logit)[0]


class Watch:
    """Keeps the answers to the last films, and compares. May be used from several threads."""

    def __init__(self, file: ModelFile, calibration: Calibration, point: OperatingPoint, last: int = LAST) -> None:
        """Takes what the bundle says of the file that judges.

        Args:
            file: Its `reference` may be None: then nothing can be compared.
            calibration: Of the bundle.
            point: The operating point in force, as the bundle has it.
            last: So many films are looked at.
        """
        self._reference = file.reference
        self._last = last
        self._expected = 0.0 if file.reference is None else expected_share(file.reference, calibration, point)
        self._films: OrderedDict[str, tuple[tuple[float, ...], str | None]] = OrderedDict()
        self._alarms: set[str] = set()
        self._lock = threading.Lock()

    @classmethod
    def of(cls, classifier: Classifier, last: int = LAST) -> Self:
        """Returns the watch of what judges."""
        description = classifier.bundle.description
        point = description.operating_points[classifier.operating_point]
        return cls(description.files[classifier.file], description.calibration, point, last)

    def add(self, key: str, logit: float, novelty: float, contrast: float, label: str | None) -> str | None:
        """Takes the answer to a film; one that was judged before counts once.

        Returns:
            A sentence where an alarm begins or ends, None otherwise.
        """
        with self._lock:
            self._films.pop(key, None)
            self._films[key] = (logit, novelty, contrast), label
            if len(self._films) > self._last:
                self._films.popitem(last=False)
            before = set(self._alarms)
            shifts = self._shifts()
            self._alarms = {name for name, shift in shifts.items() if shift.alarm}
            if self._alarms == before:
                return None
            if not self._alarms:
                return f"the last {len(self._films)} films are like the reference again"
            said = ", ".join(
                f"{name} ({shifts[name].distance:.2f}, limit {shifts[name].limit:.2f})" for name in sorted(self._alarms)
            )
            return f"THE FILMS HAVE CHANGED: the last {len(self._films)} are unlike the reference in {said}"

    def outlook(self) -> Outlook | None:
        """Returns what is known of the last films; None where the bundle has no reference."""
        if self._reference is None:
            return None
        with self._lock:
            labels = [label for _, label in self._films.values()]
            judged = [label for label in labels if label is not None]
            return Outlook(
                films=len(labels),
                of=self._last,
                shifts=self._shifts(),
                withheld=(len(labels) - len(judged)) / len(labels) if labels else None,
                pneumonia=sum(label == LABELS[1] for label in judged) / len(judged) if judged else None,
                expected=self._expected,
            )

    def _shifts(self) -> dict[str, Shift]:
        reference = self._reference
        films = len(self._films)
        if reference is None or films < FIRST:
            return {}
        known = compare(map(Counter, zip(*(numbers for numbers, _ in self._films.values()), strict=True)), reference)
        allowed = limit(films, reference.films)
        return {
            name: Shift(far, allowed, far > allowed * (OVER if name in self._alarms else 1))
            for name, far in known.items()
        }


def compare(values: Iterable[Mapping[float, int]], reference: Reference) -> dict[str, float]:
    """Returns the distance of each watched thing that the reference knows.

    Args:
        values: Of `WATCHED`, each as `distance` takes it.
        reference: Of the model file.
    """
    stated = (reference.logit, reference.novelty, reference.contrast)
    return {
        name: distance(each, quantiles)
        for name, each, quantiles in zip(WATCHED, values, stated, strict=True)
        if quantiles is not None
    }
