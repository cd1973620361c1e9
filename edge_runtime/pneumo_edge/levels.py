"""A film with all its grey levels, and the range of them that is the film, where the file does not say it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Doubles: TypeAlias = npt.NDArray[np.float64]

_MOST_LEVELS = 1 << 16
"""Most whole numbers, from the smallest to the largest, that are counted or looked up one by one."""

_AT_A_TIME = 1 << 16
"""Values that are converted at a time: their 8-byte numbers stay in the processor's cache."""


@dataclass(frozen=True)
class DeepFilm:
    """A film with all its grey levels, for a screen on which the window can be moved."""

    values: npt.NDArray[np.unsignedinteger[Any]]
    """uint8 or uint16, (H, W), 0 to `levels`, dark to light as an X-ray is viewed."""
    levels: int
    """The largest possible value, 1 to 65,535."""
    low: float
    """Lower end of the window that the model sees: this value and all below are black. May lie below 0."""
    high: float
    """Upper end of that window: this value and all above are white. May lie above `levels`."""


TAIL = 0.02
"""Share of the pixels, at either end of the range, that may not be film: dead pixels, burnt-in letters."""

REACH = 1.0
"""How far beyond the other pixels such a tail may belong to the film, as a multiple of their range."""

GAP = 0.25
"""A gap without any value, as a share of the range of the other pixels, that ends the film."""

# All three were chosen on 8-bit films that stand in for deep ones: 20 originals and 870 small copies of children's
# films, 603 and 1,015 films of adults at two other sites. They move 0, 1, 3 and 13 of these, nearly all of them dark
# films with white letters. A gap of a tenth would move 1, 31, 20 and 49, some by their own brightest bone. The edges of
# collimators are blurred, or take more than a fiftieth of a film: they stay.


def film_range(values: npt.NDArray[Any]) -> tuple[float, float]:
    """Returns the smallest and the largest value of the film, without a few pixels that lie far away from the others.

    One dead pixel of 65,535 would leave a film of 12 bits only a sixteenth of the grey levels. So the range begins with
    the 2nd to the 98th percentile. From there it follows the pixels outwards, up to the first gap of a quarter of that
    range, and by no more than that range. A film without outlying pixels keeps its smallest and largest value; so does
    a picture in which all other pixels have one value.

    Args:
        values: Any shape and number type, not empty, finite. The search takes as much memory again.
    """
    tail = int(TAIL * values.size)
    darkest, lightest = _counted_tails(values, tail) or _sorted_tails(values, tail)
    span = lightest[0] - darkest[0]
    if not span:
        return float(darkest[-1]), float(lightest[-1])
    return _follow(darkest, span), _follow(lightest, span)


def _sorted_tails(values: npt.NDArray[Any], tail: int) -> tuple[Doubles, Doubles]:
    """Returns the smallest values from the one with `tail` below it outwards, and the largest in the same way."""
    ordered = np.partition(values, (tail, values.size - 1 - tail), axis=None)
    # float64 holds every value of up to 32 bits, and differences do not wrap.
    darkest = np.sort(ordered[: tail + 1])[::-1].astype(np.float64)
    return darkest, np.sort(ordered[values.size - 1 - tail :]).astype(np.float64)


def _counted_tails(values: npt.NDArray[Any], tail: int) -> tuple[Doubles, Doubles] | None:
    """Returns the same as `_sorted_tails`, each value once and sooner; None for numbers too far apart."""
    if values.dtype.kind not in "iu":
        return None
    lowest, highest = int(values.min()), int(values.max())
    if highest - lowest >= _MOST_LEVELS:
        return None
    counts = np.zeros(highest - lowest + 1, np.int64)
    flat = values.reshape(-1)
    for at in range(0, flat.size, _AT_A_TIME):
        part = flat[at : at + _AT_A_TIME]
        counts += np.bincount(np.subtract(part, lowest, dtype=np.int64), minlength=len(counts))
    up_to = np.cumsum(counts)
    there = np.flatnonzero(counts)
    darkest = there[there <= np.searchsorted(up_to, tail, side="right")][::-1]
    lightest = there[there >= np.searchsorted(up_to, values.size - 1 - tail, side="right")]
    return (darkest + lowest).astype(np.float64), (lightest + lowest).astype(np.float64)


def look_up(table: npt.NDArray[Any], values: npt.NDArray[np.integer[Any]], lowest: int) -> npt.NDArray[Any]:
    """Returns `table[values - lowest]`.

    Args:
        table: One entry for each value from `lowest` to the largest.
        values: Shape (H, ...), whole numbers.
        lowest: Value of the first entry.
    """
    found = np.empty(values.shape, table.dtype)
    # Some rows at a time: NumPy makes 8-byte indices of what it looks up, half a gigabyte for the largest films.
    rows = max(1, _AT_A_TIME * len(values) // max(values.size, 1))
    for at in range(0, len(values), rows):
        part = values[at : at + rows]
        # Nothing is out of range; "clip" only saves a copy.
        np.take(table, np.subtract(part, lowest, dtype=np.int64), out=found[at : at + rows], mode="clip")
    return found


def _follow(tail: npt.NDArray[np.float64], span: float) -> float:
    film = (np.abs(np.diff(tail)) <= GAP * span) & (np.abs(tail[1:] - tail[0]) <= REACH * span)
    return float(tail[np.argmin(np.append(film, False))])
