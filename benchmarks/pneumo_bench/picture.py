"""Draws the picture of the README: a phantom with its region, as pneumo-infer draws it.

python -m pneumo_bench.picture docs/film.png
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from pneumo_edge.atomic import replacing_file
from pneumo_edge.classifier import Classifier, Prediction
from pneumo_edge.errors import DataError, PneumoError
from pneumo_edge.overlay import draw_overlay
from pneumo_train.phantom import draw_phantoms

CAPTION = "A phantom: a synthetic drawing, no patient and no measure of anything."
FILMS = 40
WIDTH = 560


def draw_picture(path: Path, bundle: Path | None = None) -> None:
    """Draws the phantom with the strongest evidence among those on which the model gives a verdict of PNEUMONIA.

    Args:
        path: PNG file to write, less than 150 kB.
        bundle: The model that judges; the one that comes with pneumo by default.

    Raises:
        BundleError: The folder is no bundle.
        DataError: The model finds pneumonia on no phantom.
    """
    with TemporaryDirectory(prefix="pneumo-bench-") as scratch, Classifier.load(bundle) as classifier:
        shown = find_phantom(Path(scratch), classifier)
        # Warnings are drawn below the verdict, where everybody sees them.
        sheet = draw_overlay(shown.path, dataclasses.replace(shown, warnings=(CAPTION, *shown.warnings)))
    small = sheet.resize((WIDTH, round(sheet.height * WIDTH / sheet.width)), Image.Resampling.LANCZOS)
    with replacing_file(path) as temporary:
        # A palette makes a quarter of the size, and hardly anybody sees the difference.
        small.quantize(96, dither=Image.Dither.NONE).save(temporary, optimize=True)


def find_phantom(folder: Path, classifier: Classifier) -> Prediction:
    """Draws phantoms in a folder, and returns the answer for the one with the strongest evidence.

    Raises:
        DataError: The model finds pneumonia on no phantom.
    """
    phantoms = sorted(draw_phantoms(folder / "phantoms", films=FILMS).rglob("*.jpeg"))
    answers = [answer for answer in classifier.predict_batch(phantoms) if isinstance(answer, Prediction)]
    found = [answer for answer in answers if answer.label == "PNEUMONIA"]
    if not found:
        raise DataError(f"{classifier.bundle.folder} finds pneumonia on no phantom: give another model")
    return max(found, key=lambda answer: float(answer.heatmap.max()))


if __name__ == "__main__":
    try:
        draw_picture(Path(sys.argv[1]), *map(Path, sys.argv[2:3]))
    except (IndexError, PneumoError) as error:
        sys.exit(str(error) if isinstance(error, PneumoError) else __doc__)
