"""Drawings that are no frontal chest film: none of them may pass because a clinic's own films are let in.

Limbs, a skull, a hand-drawn sheet of text, noise, bars, a slice, clouds. Grey, of the contrast of a film, so that the
simple signs of `plausibility` do not see them; what is left is the distance from the films of the training.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

_SIDE = 320


def decoys() -> Iterator[tuple[str, bytes]]:
    """Yields the name of each drawing and its PNG; the same ones at every call."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        for name, draw in _KINDS.items():
            picture = draw(rng).filter(ImageFilter.GaussianBlur(1.0 + seed))
            file = io.BytesIO()
            picture.save(file, format="PNG")
            yield f"{name} {seed + 1}", file.getvalue()


def _blank(grey: int = 12) -> Image.Image:
    return Image.new("L", (_SIDE, _SIDE), grey)


def _limb(rng: np.random.Generator) -> Image.Image:
    picture = _blank()
    draw = ImageDraw.Draw(picture)
    lean = int(rng.integers(-50, 50))
    draw.line((160 - lean, -20, 160 + lean, 340), fill=95, width=int(rng.integers(90, 150)))
    for aside in (-24, 20):
        draw.line((160 - lean + aside, -20, 160 + lean + aside, 340), fill=215, width=int(rng.integers(14, 28)))
    return picture


def _skull(rng: np.random.Generator) -> Image.Image:
    picture = _blank()
    draw = ImageDraw.Draw(picture)
    wide = int(rng.integers(90, 120))
    draw.ellipse((160 - wide, 30, 160 + wide, 290), fill=120, outline=240, width=int(rng.integers(8, 16)))
    for aside in (-40, 40):
        draw.ellipse((160 + aside - 22, 150, 160 + aside + 22, 190), fill=60)
    return picture


def _text(rng: np.random.Generator) -> Image.Image:
    picture = _blank(235)
    draw = ImageDraw.Draw(picture)
    for row in range(20, 300, 18):
        x = 20
        while x < 290:
            wide = int(rng.integers(8, 40))
            draw.rectangle((x, row, min(x + wide, 300), row + 8), fill=30)
            x += wide + 6
    return picture


def _noise(rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (_SIDE, _SIDE), dtype=np.uint8))


def _bars(rng: np.random.Generator) -> Image.Image:
    x = np.arange(_SIDE)
    wave = 127.5 + 110 * np.sin(2 * np.pi * x / rng.uniform(20, 60) + rng.uniform(0, 6))
    return Image.fromarray(np.tile(wave.astype(np.uint8), (_SIDE, 1))).rotate(float(rng.uniform(0, 180)), fillcolor=127)


def _slice(rng: np.random.Generator) -> Image.Image:
    picture = _blank()
    draw = ImageDraw.Draw(picture)
    tall = int(rng.integers(70, 110))
    draw.ellipse((20, 160 - tall, 300, 160 + tall), fill=150)
    for aside in (-65, 65):
        draw.ellipse((160 + aside - 48, 160 - tall * 0.6, 160 + aside + 48, 160 + tall * 0.6), fill=25)
    draw.ellipse((145, 160 + tall * 0.3, 175, 160 + tall * 0.7), fill=230)
    return picture


def _clouds(rng: np.random.Generator) -> Image.Image:
    small = Image.fromarray(rng.integers(0, 256, (9, 9), dtype=np.uint8))
    return small.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)


_KINDS = {
    "limb": _limb,
    "skull": _skull,
    "text": _text,
    "noise": _noise,
    "bars": _bars,
    "slice": _slice,
    "clouds": _clouds,
}
