"""A film with all its grey levels, and which of them are the film where nothing in the file says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class DeepFilm:
    """A film with all the grey levels that it has, for a screen on which the window can be moved."""

    values: npt.NDArray[np.unsignedinteger[Any]]
    """uint8 or uint16, (H, W), 0 to `levels`, dark to light as an X-ray is viewed."""
    levels: int
    """The largest value that there can be, 1 to 65,535."""
    low: float
    """Of the window that the model sees: this value and all below are black. May lie below 0."""
    high: float
    """From here on all is white. May lie above `levels`."""


TAIL = 0.02
"""Share of the pixels at either end that may be something else than film: dead pixels, burnt-in letters."""

REACH = 1.0
"""How far beyond the rest such a tail belongs to the film, in parts of the rest's range."""

GAP = 0.25
"""So much of the rest's range without a single value ends the film."""

# All three were chosen on 8-bit films that stand in for deep ones: 20 originals and 870 small copies of children's
# films, 603 and 1,015 films of adults at two other sites. They move 0, 1, 3 and 13 of these, nearly all of them dark
# films with white letters. A gap of a tenth would move 1, 31, 20 and 49, some by their own brightest bone. The edges of
# collimators are blurred, or take more than a fiftieth of a film: they stay.


def film_range(values: npt.NDArray[Any]) -> tuple[float, float]:
    """Returns the smallest and the largest value of the film, without what few pixels far away would make of them.

    One dead pixel of 65,535 would leave a sixteenth of the grey levels to a film of 12 bits. So the fiftieth part of
    the pixels at either end is followed outwards from the rest (the 2nd to the 98th percentile), up to the first gap of
    a quarter of the rest's range and no further than that range once more. A film without such pixels keeps its
    smallest and largest value; so does a picture of which all but these pixels have one value.

    Args:
        values: Any shape and number type, not empty, finite. Takes as much memory once more.
    """
    tail = int(TAIL * values.size)
    ordered = np.partition(values, (tail, values.size - 1 - tail), axis=None)
    # From the rest outwards. float64 holds every value of up to 32 bits, and differences do not wrap.
    darkest = np.sort(ordered[: tail + 1])[::-1].astype(np.float64)
    lightest = np.sort(ordered[values.size - 1 - tail :]).astype(np.float64)
    span = lightest[0] - darkest[0]
    if not span:
        return float(darkest[-1]), float(lightest[-1])
    return _follow(darkest, span), _follow(lightest, span)


def _follow(tail: npt.NDArray[np.float64], span: float) -> float:
    film = (np.abs(np.diff(tail)) <= GAP * span) & (np.abs(tail[1:] - tail[0]) <= REACH * span)
    return float(tail[np.argmin(np.append(film, False))])
