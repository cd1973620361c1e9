"""Augmentation: imitates what differs between sites and scanners. Each training film looks different in each epoch.

All functions take and give grey pictures (Pillow, mode L) of the model's size. Lengths are in shares of the side, so
that one setting means the same at 160 and at 224 pixels. Pillow does the work: it is C, and leaves Python's lock.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from pneumo_edge.preprocess import Pixels
from pneumo_train.films import Box

_FINER = 8
"""Boxes are drawn at so many times the resolution of the map, in each direction."""


class Movement(NamedTuple):
    """How a film is moved: the arguments of `move`."""

    degrees: float
    scale: float
    aspect: float
    shift: tuple[float, float]
    mirror: bool


def draw_movement(rng: np.random.Generator) -> Movement:
    """Draws how `augment` moves a film: what it draws first from a generator in the same state."""
    return Movement(
        degrees=rng.uniform(-15, 15),
        scale=math.exp(rng.uniform(-0.22, 0.22)),
        aspect=math.exp(rng.uniform(-0.15, 0.15)),
        shift=(rng.uniform(-0.08, 0.08), rng.uniform(-0.08, 0.08)),
        mirror=bool(rng.random() < 0.5),
    )


def augment(film: Pixels, rng: np.random.Generator) -> Pixels:
    """Returns another picture of the same film, as another site might have taken it.

    Args:
        film: uint8 (S, S).
        rng: Every choice is drawn from it.

    Returns:
        uint8 (S, S).
    """
    size = film.shape[0]
    picture = move(Image.fromarray(film), **draw_movement(rng)._asdict())
    picture = tone(
        picture,
        gamma=math.exp(rng.uniform(-0.7, 0.7)),
        contrast=math.exp(rng.uniform(-0.6, 0.5)),
        brightness=rng.uniform(-0.2, 0.2),
    )
    if rng.random() < 0.2:
        picture = mark(picture, rng)
    if rng.random() < 0.4:
        picture = cover(picture, rng)
    if rng.random() < 0.3:
        picture = resample(picture, rng.uniform(0.4, 0.9))
    if rng.random() < 0.3:
        picture = blur(picture, rng.uniform(0.001, 0.006) * size)
    if rng.random() < 0.3:
        picture = noise(picture, rng.uniform(2, 12), rng)
    if rng.random() < 0.4:
        picture = recompress(picture, int(rng.integers(30, 95)))
    return np.asarray(picture)


def box_coverage(boxes: Sequence[Box], movement: Movement, side: int) -> npt.NDArray[np.float32]:
    """Returns how much of each cell of a moved film lies in a box. What leaves the film is cut off.

    Args:
        boxes: Shares of width and height of the film as it is.
        movement: How the film is moved.
        side: Cells of the map.

    Returns:
        float32 (side, side) in [0, 1].
    """
    fine = side * _FINER
    picture = Image.new("L", (fine, fine))
    draw = ImageDraw.Draw(picture)
    for box in boxes:
        # Pillow paints both corners: the last pixel that begins inside is one before the far edge. However thin, a box
        # is one pixel, and the last row and column are those before the edge of the film.
        left, top = min(fine - 1, round(box.x0 * fine)), min(fine - 1, round(box.y0 * fine))
        draw.rectangle((left, top, max(left, round(box.x1 * fine) - 1), max(top, round(box.y1 * fine) - 1)), fill=255)
    moved = np.asarray(move(picture, **movement._asdict()), np.float32)
    coverage: npt.NDArray[np.float32] = moved.reshape(side, _FINER, side, _FINER).mean(axis=(1, 3)) / 255
    return coverage


def move(
    picture: Image.Image,
    *,
    degrees: float = 0.0,
    scale: float = 1.0,
    aspect: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
    mirror: bool = False,
) -> Image.Image:
    """Rotates, scales, stretches, shifts and mirrors about the centre. What comes in from outside is black.

    Args:
        picture: Mode L, square.
        degrees: Anticlockwise.
        scale: Above 1 is nearer.
        aspect: Above 1 is wider and lower, at the same area.
        shift: Right and down, in shares of the side.
        mirror: Left and right change places.
    """
    size = picture.width
    centre = size / 2
    width, height = scale * math.sqrt(aspect), scale / math.sqrt(aspect)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    flip = -1.0 if mirror else 1.0
    # Pillow wants the inverse: for each place of the result, counted from the corner, where it comes from.
    a, b = flip * cos / width, -flip * sin / width
    d, e = sin / height, cos / height
    right, down = centre + shift[0] * size, centre + shift[1] * size
    matrix = (a, b, centre - a * right - b * down, d, e, centre - d * right - e * down)
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def tone(picture: Image.Image, *, gamma: float = 1.0, contrast: float = 1.0, brightness: float = 0.0) -> Image.Image:
    """Applies grey' = contrast * (grey ** gamma - 0.5) + 0.5 + brightness on [0, 1]: exposure and post-processing."""
    grey = np.linspace(0, 1, 256)
    curve = np.clip(contrast * (grey**gamma - 0.5) + 0.5 + brightness, 0, 1)
    return picture.point(np.rint(curve * 255).astype(int).tolist())


def blur(picture: Image.Image, sigma: float) -> Image.Image:
    """Blurs with a Gaussian; `sigma` in pixels."""
    return picture.filter(ImageFilter.GaussianBlur(sigma))


def noise(picture: Image.Image, sigma: float, rng: np.random.Generator) -> Image.Image:
    """Adds Gaussian noise of `sigma` grey levels to each pixel."""
    grey = np.asarray(picture, np.float32) + sigma * rng.standard_normal(picture.size, np.float32)
    return Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8))


def recompress(picture: Image.Image, quality: int) -> Image.Image:
    """Saves as JPEG and reads again."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as again:
        again.load()
        return again


def resample(picture: Image.Image, factor: float) -> Image.Image:
    """Shrinks to `factor` of the side and enlarges again, as a small copy of a film has been."""
    side = max(8, round(picture.width * factor))
    return picture.resize((side, side), Image.Resampling.BICUBIC).resize(picture.size, Image.Resampling.BICUBIC)


def cover(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Lays a grey box over a tenth to a third of the width and height: no single spot may decide."""
    size = picture.width
    width, height = (int(size * rng.uniform(0.1, 0.35)) for _ in range(2))
    left, top = int(rng.integers(0, size - width)), int(rng.integers(0, size - height))
    picture = picture.copy()
    picture.paste(int(rng.integers(0, 256)), (left, top, left + width, top + height))
    return picture


def mark(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Burns a side marker into an upper corner: the letters of one hospital say nothing about the lungs."""
    size = picture.width
    text = str(rng.choice(["R", "L", "PA", "AP", "R 12", "SUPINE"]))
    place = (size * rng.choice([0.05, 0.78]) + rng.uniform(0, 0.05) * size, rng.uniform(0.02, 0.15) * size)
    picture = picture.copy()
    font = ImageFont.load_default(max(8, size * rng.uniform(0.05, 0.1)))
    ImageDraw.Draw(picture).text(place, text, fill=int(rng.integers(170, 256)), font=font)
    return picture
