"""The picture of pneumo-serve in the README: its page in Chromium, with the answer to a phantom.

python tests/serve_picture.py docs/serve.png
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import sync_playwright

from pneumo_bench.picture import find_phantom
from pneumo_bench.serve import Service
from pneumo_edge import Classifier
from pneumo_edge.atomic import replacing_file

ENOUGH = 120
"""Seconds for a start or an answer, on a machine of any speed."""


def draw_picture(path: Path) -> None:
    """Writes a PNG of about 320 kB."""
    with TemporaryDirectory() as scratch, Classifier.load() as classifier:
        folder = Path(scratch)
        shown = Path(find_phantom(folder, classifier).path)
        withheld = next(p for p in sorted(folder.rglob("*.jpeg")) if classifier.predict(p).label is None)
        damaged = folder / "damaged.jpeg"
        damaged.write_bytes(withheld.read_bytes()[:2000])
        with Service(folder / "spool", dicom=False) as service, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(
                viewport={"width": 1280, "height": 800}, color_scheme="light", reduced_motion="reduce"
            )
            page.set_default_timeout(1000 * ENOUGH)
            page.goto(service.address)
            for film, word in ((damaged, "Not judged"), (withheld, "No verdict"), (shown, "Pneumonia")):
                page.set_input_files("#file", film)
                page.get_by_role("heading", name=word, level=2).wait_for()
            # The film itself and the list have come by now, and the focus lies nowhere.
            page.locator("#figure[data-whole]").wait_for()
            page.locator("#films li:nth-child(3)").wait_for()
            png = page.screenshot()
            browser.close()
    # No palette: the colours of the heatmap would come in steps.
    with Image.open(io.BytesIO(png)) as picture, replacing_file(path) as temporary:
        picture.convert("RGB").save(temporary, optimize=True)


if __name__ == "__main__":
    try:
        draw_picture(Path(sys.argv[1]))
    except IndexError:
        sys.exit(__doc__)
