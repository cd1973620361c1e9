"""The pictures of a run's report that show films: never one of the test split."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pneumo_edge.atomic import replacing_file
from pneumo_edge.bundle import LABELS
from pneumo_edge.overlay import LINE, colour_heatmap, outline
from pneumo_edge.region import find_region
from pneumo_edge.report_page import percent
from pneumo_train.augment import augment
from pneumo_train.figures import Part
from pneumo_train.films import Box
from pneumo_train.perturb import perturb
from pneumo_train.pointing import box_masks, enlarge, overlap, points_into_a_box, sigmoid
from pneumo_train.run import Films

SHOWN = 6
"""Films of each kind."""
_AUGMENTED = 6
"""Copies of each of three films."""
_SIDE = 224
"""Pixels of a picture."""
_BOX = (86, 180, 233)
"""Colour of the radiologists' boxes: colour-blind eyes tell it from the amber of a region (Okabe and Ito)."""


class Pair(NamedTuple):
    """A film, and the same with what the model saw in it."""

    film: Image.Image
    marked: Image.Image
    words: str
    name: str


@dataclass(frozen=True)
class Kind:
    """Films that are shown for one reason."""

    title: str
    count: int
    """Number of all such films."""
    pairs: list[Pair]

    @property
    def heading(self) -> str:
        """The title, and how many of how many are shown."""
        return f"{self.title}: {len(self.pairs)} of {self.count}" if self.pairs else f"{self.title}: none"


class Gallery:
    """Validation films with what the model sees in them.

    Never test films: who has looked at those cannot choose blindly any more.
    """

    def __init__(
        self, films: Films, part: Part, maps: npt.NDArray[np.float32], threshold: float, region: float | None
    ) -> None:
        """Takes the validation films, how they were judged, their maps (N, h, w), the threshold of the verdict, and
        that of a region; None where the maps are not of local logits.
        """
        self._films, self._part, self._maps, self._region = films, part, maps, region
        self._called = part.p >= threshold
        self._threshold = threshold

    def mistakes(self) -> list[Kind]:
        """Returns the most confident mistakes, farthest from the threshold first."""
        kinds = []
        for title, label in (("Pneumonia that was missed", 1), ("False alarms", 0)):
            wrong = np.flatnonzero((self._part.labels == label) & (self._called != (label == 1)))
            distance = np.abs(self._part.p[wrong] - self._threshold)
            worst = wrong[np.argsort(-distance, kind="stable")][:SHOWN]
            kinds.append(Kind(title, len(wrong), [self._pair(int(i)) for i in worst]))
        return kinds

    def overlays(self) -> list[Kind]:
        """Returns regions that lie in the boxes, those that do not, and those in films of normals; only what exists.

        Of the good ones every so many-th is shown, by overlap, so that they are not the best alone; of the bad ones
        the worst. Without a map of local logits films are sorted by where the strongest place lies.
        """
        boxes = [film.boxes for film in self._films.files]
        boxed = np.array([i for i, film in enumerate(boxes) if film and self._called[i]], dtype=int)
        kinds = []
        if len(boxed):
            chosen = [boxes[i] for i in boxed]
            points = points_into_a_box(self._maps[boxed], chosen)
            overlaps = np.zeros(len(boxed))
            if self._region is not None:
                regions = sigmoid(enlarge(self._maps[boxed])) >= self._region
                overlaps = overlap(regions, box_masks(chosen))
            order = np.argsort(-overlaps, kind="stable")
            good, bad = ([int(i) for i in order if points[i] == into] for into in (True, False))
            spread = [good[k] for k in np.unique(np.linspace(0, len(good) - 1, min(SHOWN, len(good))).astype(int))]
            for title, count, rows in (
                ("Points into a box, from the best overlap to the least", len(good), spread),
                ("Points elsewhere, the least overlap first", len(bad), bad[::-1][:SHOWN]),
            ):
                said = [f"IoU {overlaps[i]:.2f}" if self._region is not None else "" for i in rows]
                kinds.append(
                    Kind(title, count, [self._pair(int(boxed[i]), s) for i, s in zip(rows, said, strict=True)])
                )
        if self._region is not None:
            strongest = sigmoid(self._maps.max(axis=(1, 2)))
            false = np.flatnonzero((self._part.labels == 0) & self._called & (strongest >= self._region))
            worst = false[np.argsort(-strongest[false], kind="stable")][:SHOWN]
            title = "A region in a film labelled NORMAL, the strongest first"
            kinds.append(Kind(title, len(false), [self._pair(int(i)) for i in worst]))
        return kinds

    def _pair(self, i: int, more: str = "") -> Pair:
        film = Image.fromarray(self._films.pixels[i]).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        said = f"labelled {LABELS[self._part.labels[i]]}, called {LABELS[int(self._called[i])]}"
        words = f"{said} at {percent(self._part.p[i], 0)}" + (f", {more}" if more else "")
        marked = mark(film, self._maps[i], self._films.files[i].boxes, self._region)
        return Pair(film, marked, words, Path(self._films.paths[i]).name)


def mark(
    film: Image.Image, heatmap: npt.NDArray[np.float32], boxes: Sequence[Box], region: float | None
) -> Image.Image:
    """Draws over a square film what the model saw, and the boxes of the radiologists.

    Args:
        film: Mode L.
        heatmap: (h, w), in logits.
        boxes: Drawn thin, in blue.
        region: Threshold on the local probability: its outline is drawn in amber. None for a map that is not of local
            logits: its evidence is laid over in colours.
    """
    if region is None:
        picture = colour_heatmap(film, heatmap)
    else:
        picture = film.convert("RGB")
        found = find_region(heatmap, region, film.width, film.height)
        picture.paste(LINE, mask=outline(picture.size, found))
    draw = ImageDraw.Draw(picture)
    for box in boxes:
        corners = [round(side * (film.width - 1)) for side in box]
        draw.rectangle((corners[0], corners[1], corners[2], corners[3]), outline=_BOX)
    return picture


def kinds_sheet(kinds: Sequence[Kind]) -> Image.Image:
    """Lays the films of all kinds on one sheet."""
    cells = []
    for pair in (pair for kind in kinds for pair in kind.pairs):
        first, _, rest = pair.words.partition(", ")
        cells += [(pair.film, first), (pair.marked, rest)]
    return sheet(cells, columns=6, side=_SIDE)


def kinds_section(kinds: Sequence[Kind], what: str) -> str:
    """Returns the films of all kinds as HTML; `what` says in words what is marked in them."""
    text = []
    for kind in kinds:
        cards = "".join(_card(pair, what) for pair in kind.pairs)
        text.append(f'<h3>{html.escape(kind.heading)}</h3><div class="pairs">{cards}</div>')
    return "".join(text)


def _card(pair: Pair, what: str) -> str:
    words, name = html.escape(pair.words), html.escape(pair.name)
    return (
        f'<figure><div class="pair">{img(encoded(pair.film), f"Film {pair.name}: {pair.words}")}'
        f"{img(encoded(pair.marked), f'The same film with {what}')}</div>"
        f"<figcaption>{words[0].upper()}{words[1:]}<br><small>{name}</small></figcaption></figure>"
    )


def augmented(train: Films, seed: int) -> list[list[tuple[Image.Image, str]]]:
    """Returns a row of pictures with their names for each of three films."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in rng.choice(len(train.files), min(3, len(train.files)), replace=False):
        film = train.pixels[i]
        row = [(film, "as it is")] + [(augment(film, rng), "augmented") for _ in range(_AUGMENTED)]
        row.append((perturb(film, train.paths[i]), "perturbed"))
        rows.append([(Image.fromarray(picture), name) for picture, name in row])
    return rows


def sheet(pictures: Sequence[tuple[Image.Image, str]], columns: int, side: int) -> Image.Image:
    """Lays pictures with their words on a white sheet."""
    high = side + 22
    rows = -(-len(pictures) // columns)
    whole = Image.new("RGB", (columns * (side + 6) + 6, rows * high + 6), "white")
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(12)
    for i, (picture, words) in enumerate(pictures):
        left, top = 6 + (i % columns) * (side + 6), 6 + (i // columns) * high
        whole.paste(picture.convert("RGB").resize((side, side)), (left, top))
        draw.text((left, top + side + 1), words.replace("\N{NO-BREAK SPACE}", " "), fill=(29, 37, 41), font=font)
    return whole


def encoded(picture: Image.Image) -> bytes:
    """Returns a picture as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, data: bytes) -> None:
    """Writes a file, whole or not at all."""
    with replacing_file(path) as temporary:
        temporary.write_bytes(data)


def img(png: bytes, alt: str) -> str:
    """Returns a picture as part of a page; `alt` says in words what it shows."""
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
