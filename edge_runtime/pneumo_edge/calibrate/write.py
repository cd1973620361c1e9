"""Writes the bundle that a calibration makes, with its card and its page."""

from __future__ import annotations

import shutil
from pathlib import Path

from pneumo_edge.atomic import replacing_folder, write_text
from pneumo_edge.bundle import Bundle, write_description
from pneumo_edge.calibrate.card import site_card
from pneumo_edge.calibrate.page import calibration_page
from pneumo_edge.calibrate.place import Result

CARD, PAGE = "SITE.md", "calibration.html"
_PAPERS = ("MODEL_CARD.md", "NOTICE", "parity.json")
"""What goes with the model files, where it is there."""


def write_bundle(bundle: Bundle, result: Result, output: Path, *, pictures: bool) -> None:
    """Writes the new bundle, whole or not at all: the same model files, a new model.json, the card and the page.

    Args:
        bundle: The one that was calibrated.
        result: What came of it.
        output: Folder that is not there yet.
        pictures: Show films in the page.
    """
    page = calibration_page(bundle, result, pictures=pictures)
    with replacing_folder(output) as folder:
        for name in bundle.description.files:
            # Read, so that its hash is compared: a file that was damaged since must not come out as if it were whole.
            (folder / name).write_bytes(bundle.read_file(name))
        for name in _PAPERS:
            if (bundle.folder / name).is_file():
                shutil.copyfile(bundle.folder / name, folder / name)
        write_description(folder, result.description)
        write_text(folder / CARD, site_card(result))
        write_text(folder / PAGE, page)
