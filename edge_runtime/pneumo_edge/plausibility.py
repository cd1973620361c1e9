"""Simple signs that a picture is no chest film, beside the model's `novelty`."""

from __future__ import annotations

from math import sqrt

import numpy as np

from pneumo_edge.preprocess import Film, Pixels

MAX_CHROMA = 6.0
"""Mean distance from grey. All 5,216 training films (copies of 224 x 224 pixels, saved as colour JPEG) and 20 films at
their original size lie at 0.0; the room below the limit is for tinted scans. Of six photographs
that were tried (1.8 to 55) four lie above it; the others are left to `novelty`."""

MIN_CONTRAST = 8.0
"""Standard deviation of the grey levels, of the squashed film. All 5,216 training films lie between 19.9 and 87.3; a
blank picture lies near 0."""

MIN_SIDE = 96
"""Pixels of the shorter side. Chosen, not measured: below it too little is left to judge. The 20 films at their
original size have 576 to 1,719."""

MAX_ASPECT = 3.5
"""Longer side over shorter side. Chosen, not measured, wide enough for narrow crops. The 20 films at their original
size lie between 1.15 and 1.78; the training copies are square whatever they were."""


def objections(film: Film) -> tuple[str, ...]:
    """Returns one sentence for each sign that the picture is no chest film to be judged; empty if there is none."""
    found = list(film.doubts)
    if film.chroma > MAX_CHROMA:
        found.append("the picture is in colour, an X-ray is grey")
    if contrast(film.pixels) < MIN_CONTRAST:
        found.append("the picture is almost blank")
    if min(film.width, film.height) < MIN_SIDE:
        found.append(f"the picture is tiny ({film.width} x {film.height} pixels)")
    if max(film.width, film.height) > MAX_ASPECT * min(film.width, film.height):
        found.append(f"the picture is {film.width} x {film.height} pixels, which is not the shape of a chest film")
    return tuple(found)


def contrast(pixels: Pixels) -> float:
    """Returns the standard deviation of the grey levels, 0 to 127.5, of a film as the model sees it.

    In integers: a fifth of the time that `pixels.std()` takes between two films.
    """
    count, total = pixels.size, int(pixels.sum())
    return sqrt(count * int(np.square(pixels, dtype=np.uint32).sum()) - total * total) / count
