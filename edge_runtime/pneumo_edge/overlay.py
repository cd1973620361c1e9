"""The film with its heatmap: where the model found evidence for pneumonia, as a picture for a doctor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from pneumo_edge.atomic import replacing_file
from pneumo_edge.classifier import Prediction
from pneumo_edge.command_line import NOT_A_DIAGNOSIS
from pneumo_edge.preprocess import Source, read_film

_LONG_SIDE = 720
_RAMP = np.array([(0, 0, 0), (120, 28, 109), (214, 66, 44), (251, 155, 6), (252, 255, 164)], np.float32)
"""Dark violet to light yellow, perceptually even, also for colour-blind eyes (five stops of the map "inferno")."""

FULL_EVIDENCE = 6.0
"""Logits. A heatmap whose peak is weaker is drawn weaker: a normal film does not glow because its own maximum is
stretched to full colour. A stronger one is scaled to its own peak."""


def draw_overlay(source: Source, prediction: Prediction) -> Image.Image:
    """Draws film, colour-coded evidence with a contour at half of its peak, legend, verdict and the warning.

    Args:
        source: The film that was judged; it is decoded again at the size of a screen.
        prediction: What `Classifier.predict` gave for it.

    Raises:
        ImageError: The film cannot be read any more.
    """
    film = read_film(source, _LONG_SIDE, prediction.path)
    scale = _LONG_SIDE / max(film.width, film.height)
    size = (max(1, round(film.width * scale)), max(1, round(film.height * scale)))
    grey = Image.fromarray(film.pixels[:, :, 0]).resize(size, Image.Resampling.BICUBIC)
    return _with_captions(colour_heatmap(grey, prediction.heatmap), prediction)


def save_overlay(path: Path, source: Source, prediction: Prediction) -> None:
    """Writes `draw_overlay` as PNG, atomically."""
    picture = draw_overlay(source, prediction)
    with replacing_file(path) as temporary:
        picture.save(temporary, format="PNG")


def colour_heatmap(grey: Image.Image, heatmap: npt.NDArray[np.float32]) -> Image.Image:
    """Lays a heatmap (h, w; positive is evidence for pneumonia, in logits) over a grey picture of any size."""
    positive = np.maximum(heatmap, 0)
    peak = max(float(positive.max()), FULL_EVIDENCE)
    smooth = Image.fromarray((positive / peak).astype(np.float32)).resize(grey.size, Image.Resampling.BICUBIC)
    strength = np.clip(np.asarray(smooth), 0, 1)
    colour = _ramp(strength)
    film = np.repeat(np.asarray(grey, np.float32)[:, :, np.newaxis], 3, axis=2)
    # The film stays visible under the strongest colour.
    alpha = (0.4 * strength**0.7)[:, :, np.newaxis]
    mixed = Image.fromarray(np.rint(film * (1 - alpha) + colour * alpha).astype(np.uint8))
    if strength.max() > 0.25:
        inside = Image.fromarray(((strength >= strength.max() / 2) * 255).astype(np.uint8))
        edge = np.asarray(inside.filter(ImageFilter.MaxFilter(3))) != np.asarray(inside)
        mixed.paste((255, 255, 255), mask=Image.fromarray((edge * 255).astype(np.uint8)))
    return mixed


def _ramp(strength: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    stops = np.linspace(0, 1, len(_RAMP))
    return np.stack([np.interp(strength, stops, _RAMP[:, c]) for c in range(3)], axis=-1).astype(np.float32)


def _with_captions(picture: Image.Image, prediction: Prediction) -> Image.Image:
    width, height = picture.size
    bar, foot = 92, 96
    sheet = Image.new("RGB", (max(width + bar, 560), height + foot), (18, 18, 18))
    sheet.paste(picture, (0, 0))
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(22), ImageFont.load_default(14)

    top, bottom = 40, max(height - 40, 80)
    ramp = _ramp(np.linspace(1, 0, bottom - top, dtype=np.float32)[:, np.newaxis].repeat(18, axis=1))
    sheet.paste(Image.fromarray(np.rint(ramp).astype(np.uint8)), (width + 14, top))
    for y, text in ((top, "strong"), (bottom - 16, "none")):
        draw.text((width + 38, y), text, font=small, fill=(220, 220, 220))
    draw.text((width + 10, 6), "evidence for\npneumonia", font=ImageFont.load_default(12), fill=(220, 220, 220))

    verdict = prediction.label or "NO VERDICT"
    shown = f"{verdict}   probability {prediction.probability:.1%}"
    draw.text((12, height + 8), shown, font=large, fill=(255, 255, 255))
    point = f"{prediction.operating_point}: pneumonia from {prediction.threshold:.1%} | {prediction.model}"
    detail = prediction.warnings[0] if prediction.label is None and prediction.warnings else point
    draw.text((12, height + 40), detail[:90], font=small, fill=(200, 200, 200))
    draw.text((12, height + 64), NOT_A_DIAGNOSIS, font=small, fill=(255, 190, 90))
    return sheet
