"""Pictures that tests of several files draw."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """Returns the file that Pillow makes of a picture."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def draw(path: Path, seed: int = 0, mode: str = "L", size: tuple[int, int] = (50, 40)) -> Path:
    """Writes a picture of noise, in folders that need not be there, and returns its path.

    Args:
        path: Its suffix says the kind of file.
        seed: Of the noise.
        mode: "L", "RGB" or "I;16", which has 300 to 3,999.
        size: Width and height in pixels.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        Image.fromarray(rng.integers(300, 4000, (size[1], size[0])).astype(np.uint16)).save(path)
    else:
        shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
        Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(path)
    return path
