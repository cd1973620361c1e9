"""pneumo-web in Firefox: films are judged, and so they are without a network."""

from __future__ import annotations

from pathlib import Path

import pytest
from firefox import FIREFOX, Firefox, firefox
from PIL import Image

from chromium import served
from pneumo_edge import Classifier
from pneumo_edge.bundle import DEFAULT_BUNDLE, read_bundle
from pneumo_export.web import write_web

if FIREFOX is None:
    pytest.skip("the page is tried in Firefox as well: apt-get install firefox-esr", allow_module_level=True)
pytest.importorskip("ai_edge_litert")


def judged(browser: Firefox, film: Path) -> str:
    """What the page says of a film: the verdict in its title."""
    browser.wait("document.getElementById('choose').textContent")
    browser.hand_in("#file", film)
    browser.wait(f"document.getElementById('films').textContent.includes('{film.name}')")
    browser.wait("['shown', 'broken'].includes(document.body.dataset.state)")
    return str(browser.run("return document.getElementById('word').textContent"))


def test_films_are_judged_and_without_a_network_as_well(runtime: dict[str, bytes], tmp_path: Path) -> None:
    from pneumo_train.phantom import draw_phantoms

    write_web(read_bundle(DEFAULT_BUNDLE), tmp_path / "site")
    phantoms = sorted(draw_phantoms(tmp_path / "phantoms", films=20).rglob("*.jpeg"))
    with Classifier.load(engine="tflite") as classifier:
        predictions = [each for each in map(classifier.predict, phantoms) if each.label is not None]
    # The clearest one: another decoder does not turn it.
    clearest = max(predictions, key=lambda each: abs(each.probability - each.threshold))
    word = str(clearest.label).capitalize()
    jpeg, png = Path(clearest.path), tmp_path / "film.png"
    Image.open(jpeg).save(png)
    with firefox(tmp_path / "profile") as browser:
        with served(tmp_path / "site") as address:
            browser.ask("WebDriver:Navigate", url=address)
            assert judged(browser, jpeg) == word
            assert judged(browser, png) == word
            browser.wait("document.getElementById('model').textContent.includes('also opens without a network')")
        # The server is gone.
        browser.ask("WebDriver:Navigate", url="about:blank")
        browser.ask("WebDriver:Navigate", url=address)
        assert judged(browser, jpeg) == word
        assert browser.run("return crossOriginIsolated")
