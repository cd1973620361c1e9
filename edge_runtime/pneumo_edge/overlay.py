"""The film with its heatmap: where the model found evidence for pneumonia, as a picture for a doctor."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from pneumo_edge.atomic import replacing_file
from pneumo_edge.classifier import Prediction
from pneumo_edge.preprocess import Source, read_film
from pneumo_edge.words import Words

_LONG_SIDE = 720

_LETTERS = Path(__file__).with_name("letters.ttf")
"""Roboto Regular (Apache License 2.0), the letters of Western Europe alone: Pillow's own font has no accents."""

_STOPS = np.array([(0, 0, 0), (120, 28, 109), (214, 66, 44), (251, 155, 6), (252, 255, 164)])
"""Dark violet to light yellow, perceptually even, also for colour-blind eyes (five stops of the map "inferno")."""

_LEVELS = np.arange(256)
_COLOURS = np.stack([np.interp(_LEVELS, np.linspace(0, 255, len(_STOPS)), c) for c in _STOPS.T], axis=-1).astype(
    np.uint8
)
_OPACITY = np.rint(255 * 0.4 * (_LEVELS / 255) ** 0.7).astype(np.uint8)
"""Colour and its opacity for 256 degrees of evidence. The film stays visible under the strongest colour."""

FULL_EVIDENCE = 6.0
"""Logits. A heatmap whose peak is weaker is drawn weaker: a normal film does not glow because its own maximum is
stretched to full colour. A stronger one is scaled to its own peak."""

_LINE_FROM = 64
"""Of 255. Where evidence is weaker everywhere, a line around the strongest part would only mislead."""


def draw_overlay(source: Source, prediction: Prediction) -> Image.Image:
    """Draws film, colour-coded evidence with a contour at half of its peak, legend, verdict and the warning.

    Args:
        source: The film that was judged; it is decoded again at the size of a screen.
        prediction: What `Classifier.predict` gave for it.

    Raises:
        ImageError: The film cannot be read any more.
    """
    grey = screen_film(source, prediction.path)
    return with_captions(colour_heatmap(grey, prediction.heatmap), prediction)


def screen_film(source: Source, name: str) -> Image.Image:
    """Returns a film in mode L, its own aspect ratio, the longer side as long as a screen can show.

    Raises:
        ImageError: The film cannot be read.
    """
    film = read_film(source, _LONG_SIDE, name)
    scale = _LONG_SIDE / max(film.width, film.height)
    size = (max(1, round(film.width * scale)), max(1, round(film.height * scale)))
    return Image.fromarray(film.pixels[:, :, 0]).resize(size, Image.Resampling.BICUBIC)


def save_overlay(path: Path, source: Source, prediction: Prediction) -> None:
    """Writes `draw_overlay` as PNG, atomically."""
    picture = draw_overlay(source, prediction)
    with replacing_file(path) as temporary:
        picture.save(temporary, format="PNG")


def colour_heatmap(grey: Image.Image, heatmap: npt.NDArray[np.float32]) -> Image.Image:
    """Lays a heatmap (h, w; positive is evidence for pneumonia, in logits) over a grey picture of any size."""
    layer = heatmap_layer(grey.size, heatmap)
    return Image.composite(layer.convert("RGB"), grey.convert("RGB"), layer.getchannel("A"))


def heatmap_layer(size: tuple[int, int], heatmap: npt.NDArray[np.float32]) -> Image.Image:
    """Returns what `colour_heatmap` lays over a picture of `size` (width, height): RGBA, clear where nothing speaks."""
    positive = np.maximum(heatmap, 0)
    peak = max(float(positive.max()), FULL_EVIDENCE)
    smooth = Image.fromarray((positive / peak).astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    levels = np.rint(255 * np.asarray(smooth).clip(0, 1)).astype(np.uint8)
    layer = np.dstack([_COLOURS[levels], _OPACITY[levels]])
    if levels.max() > _LINE_FROM:
        inside = Image.fromarray(((levels >= levels.max() / 2) * 255).astype(np.uint8))
        edge = np.asarray(inside.filter(ImageFilter.MaxFilter(3))) != np.asarray(inside)
        layer[edge] = 255
    return Image.fromarray(layer)


def legend_layer() -> Image.Image:
    """Returns what `heatmap_layer` lays over a film, RGBA, 256 x 1: no evidence at the left, the strongest right."""
    return Image.fromarray(np.column_stack([_COLOURS, _OPACITY])[np.newaxis])


def _tinted(grey: Image.Image, levels: npt.NDArray[np.uint8]) -> Image.Image:
    opacity = Image.fromarray(_OPACITY[levels])
    return Image.composite(Image.fromarray(_COLOURS[levels]), grey.convert("RGB"), opacity)


def with_captions(picture: Image.Image, prediction: Prediction, words: Words | None = None) -> Image.Image:
    """Sets a picture on a sheet with verdict, warnings and the note, and with the legend if the picture has colours.

    Args:
        picture: In mode L, or RGB where it has colours.
        prediction: What is told of it.
        words: In which language; English by default.
    """
    words = words or Words()
    width, height = picture.size
    coloured = picture.mode == "RGB"
    if prediction.label is None:
        title, about = words("withheld").upper(), prediction.model
    else:
        verdict, share = words(prediction.label).upper(), words.percent(prediction.probability)
        title = words("picture.says", verdict=verdict, share=share)
        point, threshold = words.point(prediction.operating_point), words.percent(prediction.threshold)
        about = words("picture.cut", point=point, threshold=threshold, model=prediction.model)
    remarks = map(words.sentence, prediction.warnings)
    details = [line for text in (about, *remarks) for line in textwrap.wrap(text, 86)][:8]

    bar, foot = 116 * coloured, 76 + 22 * len(details)
    # A narrow film gets a sheet on which the words have room all the same.
    sheet = Image.new("RGB", (max(width + bar, 640), max(height, 240) + foot), (18, 18, 18))
    sheet.paste(picture, (0, 0))
    draw = ImageDraw.Draw(sheet)
    large, small, tiny = (ImageFont.truetype(_LETTERS, size) for size in (22, 14, 12))

    if coloured:
        # The legend is tinted grey as the film is, so that a colour means the same in both.
        left, top, bottom = width + 14, 46, max(height, 240) - 76
        steps = np.rint(np.linspace(255, 0, bottom - top)).astype(np.uint8)[:, np.newaxis].repeat(18, axis=1)
        sheet.paste(_tinted(Image.new("L", (18, bottom - top), 110), steps), (left, top))
        draw.text((left, 8), textwrap.fill(words("picture.evidence"), 14), font=tiny, fill=(220, 220, 220))
        for y, name in ((top, "evidence.strong"), (bottom - 16, "evidence.none")):
            draw.text((left + 24, y), words(name), font=small, fill=(220, 220, 220))
        draw.line((left, bottom + 18, left + 18, bottom + 18), fill=(255, 255, 255))
        draw.text((left + 24, bottom + 10), textwrap.fill(words("picture.half"), 12), font=tiny, fill=(220, 220, 220))

    y = max(height, 240) + 8
    draw.text((12, y), title, font=large, fill=(255, 255, 255))
    for line in details:
        y += 22
        draw.text((12, y + 10), line, font=small, fill=(200, 200, 200))
    draw.text((12, y + 36), words("note"), font=small, fill=(255, 190, 90))
    return sheet
