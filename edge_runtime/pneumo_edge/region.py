"""From the map of local logits to the outline of the region that stands out, in the film's own pixels.

A map of h x w cells lies over the whole film: the cell (i, j) is centred at ((j + 0.5) / w, (i + 0.5) / h) of its width
and height. Between the centres the logit is bilinear, beyond the outermost ones it stays what it is there. The region
is where its sigmoid, the local probability, reaches the threshold that the bundle states.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log
from typing import Any

import numpy as np
import numpy.typing as npt

Map = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Polygon = tuple[tuple[float, float], ...]

STEPS = 4
"""Steps of the outline's grid from one cell's centre to the next. Between four centres the true outline is a hyperbola.
With this step its chords stay within about a thousandth of the film's side."""

NO_REGION = "no region stands out"
"""Said of a film that is called PNEUMONIA although no local probability reaches the threshold."""

_OUTSIDE = -1e30
"""Logit of the places around the film."""

# The corners of a square, clockwise: upper left 1, upper right 2, lower right 4, lower left 8; its sides, in the same
# order: top 0, right 1, bottom 2, left 3. For each set of corners inside: from which side to which the outline goes, so
# that it comes out of a square where it goes into the next.
_JOINED = {5: ((1, 0), (3, 2)), 10: ((0, 3), (2, 1))}
"""Where two opposite corners are inside, and so is the middle between them."""
_SIDES = {
    1: ((3, 0),),
    2: ((0, 1),),
    3: ((3, 1),),
    4: ((1, 2),),
    5: ((3, 0), (1, 2)),
    6: ((0, 2),),
    7: ((3, 2),),
    8: ((2, 3),),
    9: ((2, 0),),
    10: ((0, 1), (2, 3)),
    11: ((2, 1),),
    12: ((1, 3),),
    13: ((1, 0),),
    14: ((0, 3),),
}


@dataclass(frozen=True)
class Region:
    """The part of a film that speaks for pneumonia, by the local map of the model."""

    polygons: tuple[Polygon, ...]
    """Outlines, each a closed line of (x, y) in the film's own pixels: x to the right from 0 to its width, y down from
    0 to its height. They do not cross; one inside another is a hole (even-odd). Empty where no region is shown."""
    area: float
    """Share of the film that they enclose, 0 to 1."""
    strongest: float
    """The largest local probability in the film, whether a region is shown or not."""
    width: int
    """Width of the film, in the pixels that the polygons are in."""
    height: int
    """Height of the film, in the same pixels."""

    def record(self) -> dict[str, Any]:
        """Returns the part of the JSON record: pixels to one decimal."""
        polygons = [[[round(x, 1), round(y, 1)] for x, y in polygon] for polygon in self.polygons]
        return {
            "polygons": polygons,
            "area": round(self.area, 6),
            "strongest": round(self.strongest, 6),
            "width": self.width,
            "height": self.height,
        }


def local_logits(logits: Map, height: int, width: int) -> npt.NDArray[np.float64]:
    """Returns the local logit (height, width) at the centres of the pixels of a film of that size.

    Args:
        logits: (h, w), the map.
        height: Height of the film, in pixels.
        width: Width of the film, in pixels.
    """
    rows, columns = logits.shape
    return _between(logits, (np.arange(height) + 0.5) / height * rows, (np.arange(width) + 0.5) / width * columns)


def find_region(logits: Map, threshold: float, width: int, height: int) -> Region:
    """Outlines where the local probability reaches a threshold (marching squares).

    Args:
        logits: (h, w), finite.
        threshold: Local probability from which a place belongs to the region, in (0, 1).
        width: Width of the film, in pixels.
        height: Height of the film, in pixels.
    """
    highest = float(logits.max())
    strongest = 1 / (1 + exp(-highest)) if highest >= 0 else exp(highest) / (1 + exp(highest))
    cut = log(threshold) - log(1 - threshold)
    if highest < cut:
        return Region((), 0.0, strongest, width, height)
    y, x = _places(logits.shape[0]), _places(logits.shape[1])
    grid = _between(logits, y, x) - cut
    # Around the film nothing is inside: where a region reaches the edge, its outline goes along it.
    values = np.full((len(y) + 2, len(x) + 2), _OUTSIDE)
    values[1:-1, 1:-1] = grid
    ys, xs = np.pad(y, 1, mode="edge") / logits.shape[0], np.pad(x, 1, mode="edge") / logits.shape[1]
    polygons, area = [], 0.0
    for line in _lines(values):
        px, py = _points(line, values, xs, ys)
        size = _enclosed(px, py)
        if size:
            area += size
            polygons.append(tuple(zip((px * width).tolist(), (py * height).tolist(), strict=True)))
    return Region(tuple(polygons), min(max(area, 0.0), 1.0), strongest, width, height)


def _places(cells: int) -> npt.NDArray[np.float64]:
    """Returns where along one side, in cells, the grid has its lines: both edges, every centre, and steps between."""
    return np.concatenate([[0.0], np.arange((cells - 1) * STEPS + 1) / STEPS + 0.5, [float(cells)]])


def _between(logits: Map, y: npt.NDArray[np.float64], x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns the bilinear logit (len(y), len(x)) at places in cells: the first cell's centre lies at 0.5."""
    # Plain sums and products, and no matrix product: they are the same to the last bit on every processor.
    above, below, down = _neighbours(logits.shape[0], y)
    left, right, across = _neighbours(logits.shape[1], x)
    cells = logits.astype(np.float64)
    rows = cells[above] + down[:, np.newaxis] * (cells[below] - cells[above])
    between: npt.NDArray[np.float64] = rows[:, left] + across * (rows[:, right] - rows[:, left])
    return between


def _neighbours(
    cells: int, places: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Returns for each place the cell whose centre lies before it, the one behind, and how far it is between them."""
    held = (places - 0.5).clip(0, cells - 1)
    before = held.astype(np.int64)
    return before, np.minimum(before + 1, cells - 1), held - before


def _lines(values: npt.NDArray[np.float64]) -> list[list[int]]:
    """Returns the closed lines around what is >= 0, each as the sides of squares that it crosses, in order.

    Clockwise on a screen around what is inside, counterclockwise around holes. The side from the node n (row by row) to
    the right has the number 2 n, the one downwards 2 n + 1.
    """
    inside = values >= 0
    corners = inside[:-1, :-1] + 2 * inside[:-1, 1:] + 4 * inside[1:, 1:] + 8 * inside[1:, :-1]
    width = values.shape[1]
    side = (0, 3, 2 * width, 1)
    following: dict[int, int] = {}
    rows, columns = np.nonzero((corners > 0) & (corners < 15))
    for i, j, case in zip(rows.tolist(), columns.tolist(), corners[rows, columns].tolist(), strict=True):
        first = 2 * (i * width + j)
        ways = _SIDES[case]
        if case in _JOINED:
            a, b, c, d = values[i, j], values[i, j + 1], values[i + 1, j + 1], values[i + 1, j]
            # The value at the saddle is (a c - b d) / (a + c - b - d), and its denominator has the sign of a.
            if ((a * c - b * d) if case == 5 else (b * d - a * c)) >= 0:
                ways = _JOINED[case]
        for start, end in ways:
            following[first + side[end]] = first + side[start]
    lines = []
    while following:
        start, here = following.popitem()
        line = [start]
        while here != start:
            line.append(here)
            here = following.pop(here)
        lines.append(line)
    return lines


def _points(
    line: list[int], values: npt.NDArray[np.float64], xs: npt.NDArray[np.float64], ys: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Returns x and y of a line, as shares of the film's sides; what lies on the way between two others is left out."""
    width = values.shape[1]
    sides = np.asarray(line)
    node, downwards = sides // 2, sides % 2
    other = node + np.where(downwards, width, 1)
    flat = values.ravel()
    share = flat[node] / (flat[node] - flat[other])
    x, y = xs[node % width], ys[node // width]
    x = x + share * (xs[other % width] - x)
    y = y + share * (ys[other // width] - y)
    # In a corner of the film, and where a node lies on the outline, one place comes twice.
    moved = np.abs(x - _before(x)) + np.abs(y - _before(y)) > 1e-12
    x, y = x[moved], y[moved]
    back_x, back_y = x - _before(x), y - _before(y)
    on_x, on_y = _after(back_x), _after(back_y)
    bends = np.abs(back_x * on_y - back_y * on_x) > 1e-12
    return x[bends], y[bends]


def _enclosed(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    """Returns the area of a closed line, negative where it goes counterclockwise on a screen (the shoelace formula)."""
    return float(np.dot(x, _after(y)) - np.dot(y, _after(x))) / 2


def _before(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.concatenate([values[-1:], values[:-1]])


def _after(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.concatenate([values[1:], values[:1]])
