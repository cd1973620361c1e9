"""The site perturbation: validation films disturbed until they look as if another hospital had taken them.

Clean validation films come from the hospital of the training films, and every decent model is near 0.995 there. The
disturbed ones rank recipes and give honest thresholds. The disturbance is fixed: nothing was chosen by it before it
was written, and it is not tuned.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from pneumo_edge.preprocess import Pixels
from pneumo_train.augment import blur, move, noise, recompress, tone

_SEED = 20180222
"""Fixed for good."""


def perturb(film: Pixels, path: str) -> Pixels:
    """Disturbs one film; the same film of a data set is always disturbed in the same way.

    Rotation to 12 degrees, crop to 0.7 of the side, gamma e^±0.6, contrast 0.5 to 1.4, brightness ±0.2, blur, noise,
    JPEG at several qualities.

    Args:
        film: uint8 (S, S).
        path: Path of the film, relative to its data set. It seeds the random choices.

    Returns:
        uint8 (S, S).
    """
    rng = np.random.default_rng([_SEED, zlib.crc32(path.encode("utf-8", "surrogateescape"))])
    picture = move(Image.fromarray(film), degrees=rng.uniform(-12, 12))
    side = rng.uniform(0.7, 1.0) * picture.width
    left, top = rng.uniform(0, picture.width - side), rng.uniform(0, picture.width - side)
    picture = picture.resize(picture.size, Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    picture = tone(
        picture,
        gamma=math.exp(rng.uniform(-0.6, 0.6)),
        contrast=rng.uniform(0.5, 1.4),
        brightness=rng.uniform(-0.2, 0.2),
    )
    if rng.random() < 0.5:
        picture = blur(picture, rng.uniform(0.001, 0.006) * picture.width)
    if rng.random() < 0.5:
        picture = noise(picture, rng.uniform(2, 12), rng)
    return np.asarray(recompress(picture, int(rng.choice([30, 50, 70, 90]))))


def perturb_all(films: Pixels, paths: Sequence[str]) -> Pixels:
    """Disturbs films uint8 (N, S, S), each seeded by its own path."""
    return np.stack([perturb(film, path) for film, path in zip(films, paths, strict=True)])
