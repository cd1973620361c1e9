"""Disturbs films in one way at a time, in several strengths, to find where a model fails."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pneumo_edge.preprocess import Pixels
from pneumo_train.augment import blur, move, noise, recompress, tone

_SEED = 20180223
"""It never changes, so that results can be compared."""


@dataclass(frozen=True)
class Disturbance:
    """One way in which films differ between sites."""

    name: str
    unit: str
    neutral: float | None
    """The strength at which nothing happens; None where there is none."""
    strengths: tuple[float, ...]
    apply: Callable[[Image.Image, float, np.random.Generator], Image.Image]


def _turn(picture: Image.Image, degrees: float, rng: np.random.Generator) -> Image.Image:
    # To either side, since the heart makes them differ.
    return move(picture, degrees=degrees * rng.choice((-1, 1)))


DISTURBANCES = (
    Disturbance("exposure", "gamma", 1.0, (0.5, 0.7, 1.4, 2.0), lambda p, s, _: tone(p, gamma=s)),
    Disturbance("contrast", "factor", 1.0, (0.4, 0.6, 0.8, 1.4), lambda p, s, _: tone(p, contrast=s)),
    Disturbance("blur", "share of the side", 0.0, (0.003, 0.006, 0.012, 0.024), lambda p, s, _: blur(p, s * p.width)),
    Disturbance("noise", "grey levels", 0.0, (4, 8, 16, 32), noise),
    Disturbance("JPEG", "quality", None, (70, 50, 30, 10), lambda p, s, _: recompress(p, int(s))),
    Disturbance("rotation", "degrees", 0.0, (5, 10, 15, 20), _turn),
    Disturbance("scale", "factor", 1.0, (0.7, 0.85, 1.15, 1.3), lambda p, s, _: move(p, scale=s)),
)


def disturb(films: Pixels, paths: Sequence[str], disturbance: Disturbance, strength: float) -> Pixels:
    """Disturbs films uint8 (N, S, S). A film of a data set is always disturbed in the same way.

    Args:
        films: Films at the size of the model.
        paths: Paths of the films, relative to their data set. They are the seeds of what is random.
        disturbance: One of `DISTURBANCES`.
        strength: Strength in the unit of the disturbance.
    """
    done = []
    for film, path in zip(films, paths, strict=True):
        rng = np.random.default_rng([_SEED, zlib.crc32(path.encode("utf-8", "surrogateescape"))])
        done.append(np.asarray(disturbance.apply(Image.fromarray(film), strength, rng)))
    return np.stack(done)
