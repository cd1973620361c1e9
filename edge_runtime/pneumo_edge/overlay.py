"""The film and the verdict as a picture for a doctor, with an outline around the region that stands out.

A model without a local map has no region: its heatmap lies over the film in colours.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from pneumo_edge.atomic import replacing_file
from pneumo_edge.bundle import LABELS
from pneumo_edge.classifier import Prediction
from pneumo_edge.preprocess import Source, read_film
from pneumo_edge.region import NO_REGION, Region, local_logits
from pneumo_edge.words import Words

_LONG_SIDE = 720

_LETTERS = Path(__file__).with_name("letters.ttf")
"""Roboto Regular (Apache License 2.0), the letters of Western Europe alone: Pillow's own font has no accents."""

_STOPS = np.array([(0, 0, 0), (120, 28, 109), (214, 66, 44), (251, 155, 6), (252, 255, 164)])
"""Dark violet to light yellow, perceptually even, also for colour-blind eyes (five stops of the map "inferno")."""

_LEVELS = np.arange(256)
COLOURS = np.stack([np.interp(_LEVELS, np.linspace(0, 255, len(_STOPS)), c) for c in _STOPS.T], axis=-1).astype(
    np.uint8
)
OPACITY = np.rint(255 * 0.4 * (_LEVELS / 255) ** 0.7).astype(np.uint8)
"""Colour and its opacity for 256 degrees of evidence. The film stays visible under the strongest colour."""

FULL_EVIDENCE = 6.0
"""Evidence that has the full colour, in logits. A heatmap with a weaker peak is drawn weaker, so that normal films do
not glow. One with a stronger peak is scaled to that peak."""

LINE_FROM = 64
"""Level, of 255, that the peak must exceed for a line around the strongest part: a line around less would mislead."""

LINE = (255, 176, 0)
"""Colour of the line around a region: amber, which no grey hides and colour-blind people see."""

_LINE_WIDTH = 2
"""Width of that line in pixels of the screen."""

_FINE = 3
"""Lines are drawn this many times larger and then made smaller, which makes them smooth."""


def draw_overlay(source: Source, prediction: Prediction, *, glow: bool = False) -> Image.Image:
    """Draws the film, what `mark_layer` lays over it, legend, verdict and the warning.

    Args:
        source: The film that was judged. It is decoded again, at the size of a screen.
        prediction: Answer of `Classifier.predict` for it.
        glow: Draw the local probability in colours too.

    Raises:
        ImageError: The film cannot be read any more.
    """
    return with_captions(mark(screen_film(source, prediction.path), prediction, glow=glow), prediction, glow=glow)


def screen_film(source: Source, name: str) -> Image.Image:
    """Returns a film in mode L and its own aspect ratio; its longer side fits on a screen.

    Raises:
        ImageError: The film cannot be read.
    """
    film = read_film(source, _LONG_SIDE, name)
    scale = _LONG_SIDE / max(film.width, film.height)
    size = (max(1, round(film.width * scale)), max(1, round(film.height * scale)))
    return Image.fromarray(film.pixels[:, :, 0]).resize(size, Image.Resampling.BICUBIC)


def save_overlay(path: Path, source: Source, prediction: Prediction, *, glow: bool = False) -> None:
    """Writes `draw_overlay` as PNG, atomically."""
    picture = draw_overlay(source, prediction, glow=glow)
    with replacing_file(path) as temporary:
        picture.save(temporary, format="PNG")


def mark(grey: Image.Image, prediction: Prediction, *, glow: bool = False) -> Image.Image:
    """Lays `mark_layer` over a grey picture of any size; where nothing is drawn, the film stays as it is."""
    return _laid_over(grey, mark_layer(grey.size, prediction, glow=glow))


def mark_layer(size: tuple[int, int], prediction: Prediction, *, glow: bool = False) -> Image.Image:
    """Returns what is laid over a picture of `size` (width, height), RGBA and clear elsewhere.

    With a region: a thin line around it, and the local probability in colours if `glow`. Without one: `heatmap_layer`.
    """
    if prediction.region is None:
        return heatmap_layer(size, prediction.heatmap)
    # Transparent, and of the colour of the line: so a smooth line has no dark seam.
    layer = _glow(size, prediction.heatmap) if glow else Image.new("RGBA", size, (*LINE, 0))
    layer.paste((*LINE, 255), mask=outline(size, prediction.region))
    return layer


def glow_layer(size: tuple[int, int], prediction: Prediction) -> Image.Image:
    """Returns only the colours of `mark_layer`: local probability, or evidence where there is no region."""
    return heatmap_layer(size, prediction.heatmap) if prediction.region is None else _glow(size, prediction.heatmap)


def outline(size: tuple[int, int], region: Region) -> Image.Image:
    """Returns the lines around a region in a picture of `size` (width, height), mode L: 255 where one is."""
    fine, film = (_FINE * size[0], _FINE * size[1]), (region.width, region.height)
    lines = Image.new("L", fine)
    draw = ImageDraw.Draw(lines)
    # A line along the edge of the film stays in the picture.
    edge = _FINE * _LINE_WIDTH / 2
    for polygon in region.polygons:
        points = [
            tuple(min(max(place / of * to, edge), to - edge) for place, of, to in zip(point, film, fine, strict=True))
            for point in polygon
        ]
        draw.line([*points, *points[:2]], fill=255, width=_FINE * _LINE_WIDTH, joint="curve")
    return lines.resize(size, Image.Resampling.BOX)


def _glow(size: tuple[int, int], logits: npt.NDArray[np.float32]) -> Image.Image:
    """Returns the local probability in colours, RGBA; a higher one is more opaque."""
    width, height = size
    with np.errstate(over="ignore"):
        probability = 1 / (1 + np.exp(-local_logits(logits, height, width)))
    levels = np.rint(255 * probability).astype(np.uint8)
    return Image.fromarray(np.dstack([COLOURS[levels], OPACITY[levels]]))


def _laid_over(grey: Image.Image, layer: Image.Image) -> Image.Image:
    return Image.composite(layer.convert("RGB"), grey.convert("RGB"), layer.getchannel("A"))


def colour_heatmap(grey: Image.Image, heatmap: npt.NDArray[np.float32]) -> Image.Image:
    """Lays a heatmap (h, w; positive is evidence for pneumonia, in logits) over a grey picture of any size."""
    return _laid_over(grey, heatmap_layer(grey.size, heatmap))


def heatmap_layer(size: tuple[int, int], heatmap: npt.NDArray[np.float32]) -> Image.Image:
    """Returns the colours that `colour_heatmap` lays over a picture of `size` (width, height), RGBA."""
    positive = np.maximum(heatmap, 0)
    peak = max(float(positive.max()), FULL_EVIDENCE)
    smooth = Image.fromarray((positive / peak).astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    levels = np.rint(255 * np.asarray(smooth).clip(0, 1)).astype(np.uint8)
    layer = np.dstack([COLOURS[levels], OPACITY[levels]])
    if levels.max() > LINE_FROM:
        inside = Image.fromarray(((levels >= levels.max() / 2) * 255).astype(np.uint8))
        edge = np.asarray(inside.filter(ImageFilter.MaxFilter(3))) != np.asarray(inside)
        layer[edge] = 255
    return Image.fromarray(layer)


def legend_layer() -> Image.Image:
    """Returns the colours of `glow_layer`, RGBA, 256 x 1, from no evidence (left) to the strongest (right)."""
    return Image.fromarray(np.column_stack([COLOURS, OPACITY])[np.newaxis])


def _tinted(grey: Image.Image, levels: npt.NDArray[np.uint8]) -> Image.Image:
    opacity = Image.fromarray(OPACITY[levels])
    return Image.composite(Image.fromarray(COLOURS[levels]), grey.convert("RGB"), opacity)


def region_words(prediction: Prediction) -> tuple[str, ...]:
    """Returns what is said of the region; () where none is shown because the film is not called PNEUMONIA."""
    region = prediction.region
    if region is None or not (region.polygons or prediction.label == LABELS[1]):
        return ()
    if not region.polygons:
        return (NO_REGION,)
    return (f"outlined: {region.area:.1%} of the film; strongest local probability {region.strongest:.0%}",)


def with_captions(
    picture: Image.Image, prediction: Prediction, *, glow: bool = False, words: Words | None = None
) -> Image.Image:
    """Sets a picture on a sheet with verdict, region, warnings and the note, and with the legend of its colours.

    Args:
        picture: The film alone, in mode L, or the picture that `mark` returned.
        prediction: Answer for the film.
        glow: The value that `mark` was called with.
        words: Catalogue in the language of the captions; English by default.
    """
    words = words or Words()
    width, height = picture.size
    marked = picture.mode == "RGB"
    probability = prediction.region is not None
    coloured = marked and (glow or not probability)
    if prediction.label is None:
        title, about = words("withheld").upper(), prediction.model
    else:
        verdict, share = words(prediction.label).upper(), words.percent(prediction.probability)
        title = words("picture.says", verdict=verdict, share=share)
        point, threshold = words.point(prediction.operating_point), words.percent(prediction.threshold)
        prevalence = words.percent(prediction.prevalence)
        about = words("picture.cut", point=point, threshold=threshold, model=prediction.model, prevalence=prevalence)
    said = region_words(prediction) if marked else ()
    remarks = map(words.sentence, (*said, *prediction.warnings))
    details = [line for text in (about, *remarks) for line in textwrap.wrap(text, 86)][:8]

    bar, foot = 116 * coloured, 76 + 22 * len(details)
    # The sheet of a narrow film is wide enough for the words.
    sheet = Image.new("RGB", (max(width + bar, 640), max(height, 240) + foot), (18, 18, 18))
    sheet.paste(picture, (0, 0))
    draw = ImageDraw.Draw(sheet)
    large, small, tiny = (ImageFont.truetype(_LETTERS, size) for size in (22, 14, 12))

    if coloured:
        # The legend is tinted grey as the film is, so that a colour means the same in both.
        left, top, bottom = width + 14, 46, max(height, 240) - 76
        steps = np.rint(np.linspace(255, 0, bottom - top)).astype(np.uint8)[:, np.newaxis].repeat(18, axis=1)
        sheet.paste(_tinted(Image.new("L", (18, bottom - top), 110), steps), (left, top))
        # Quantity that the colours show, its two ends, colour and meaning of the line.
        what, ends, colour, meaning = (
            ("picture.local", ("100 %", "0 %"), LINE, "picture.region")
            if probability
            else (
                "picture.evidence",
                (words("evidence.strong"), words("evidence.none")),
                (255, 255, 255),
                "picture.half",
            )
        )
        draw.text((left, 8), textwrap.fill(words(what), 14), font=tiny, fill=(220, 220, 220))
        for y, text in zip((top, bottom - 16), ends, strict=True):
            draw.text((left + 24, y), text, font=small, fill=(220, 220, 220))
        draw.line((left, bottom + 18, left + 18, bottom + 18), fill=colour)
        draw.text((left + 24, bottom + 10), textwrap.fill(words(meaning), 12), font=tiny, fill=(220, 220, 220))

    y = max(height, 240) + 8
    draw.text((12, y), title, font=large, fill=(255, 255, 255))
    for line in details:
        y += 22
        draw.text((12, y + 10), line, font=small, fill=(200, 200, 200))
    draw.text((12, y + 36), words("note"), font=small, fill=(255, 190, 90))
    return sheet
