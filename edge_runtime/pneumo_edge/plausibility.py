"""Simple signs that a picture is no chest film at all, beside what the model's `novelty` says."""

from __future__ import annotations

from pneumo_edge.preprocess import Film

MAX_CHROMA = 6.0
"""Grey films saved as colour JPEG stay below 2; a photograph lies well above."""

MIN_CONTRAST = 8.0
"""Standard deviation of the grey levels; films lie between 25 and 90, a blank picture near 0."""

MIN_SIDE = 96
"""Pixels; the smallest film of the training set is 127 pixels high."""

MAX_ASPECT = 3.5
"""Longer side over shorter side; films of lying infants reach 3.4."""


def objections(film: Film) -> tuple[str, ...]:
    """Returns one sentence for each sign that the picture is no chest film; empty if there is none."""
    found = []
    if film.chroma > MAX_CHROMA:
        found.append("the picture is in colour, an X-ray is grey")
    if float(film.pixels.std()) < MIN_CONTRAST:
        found.append("the picture is almost blank")
    if min(film.width, film.height) < MIN_SIDE:
        found.append(f"the picture is tiny ({film.width} x {film.height} pixels)")
    if max(film.width, film.height) > MAX_ASPECT * min(film.width, film.height):
        found.append(f"the picture is {film.width} x {film.height} pixels, no shape that a chest film has")
    return tuple(found)
