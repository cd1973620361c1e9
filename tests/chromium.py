"""Chromium, for the tests of pages; and axe, which looks at them as people do who cannot see them."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = shutil.which("chromium")
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
)  # fmt: skip
"""Chromium as root, and without a word to anybody."""


def need_chromium(*modules: str) -> None:
    """Skips a test file where Chromium, Playwright or one of the modules is not there; CI must not skip it."""
    if os.environ.get("CI") != "true":
        if CHROMIUM is None:
            pytest.skip("pages are tested in Chromium: apt-get install chromium", allow_module_level=True)
        for module in ("playwright", *modules):
            pytest.importorskip(module, reason=f"pages are tested with {module}, of an extra")


def violations(page: Page) -> list[str]:
    """What axe has to say of the page as it is."""
    package = importlib.util.find_spec("axe_playwright_python")
    assert package
    assert package.origin
    # Not as a script of the page: its content security policy allows none but its own.
    source = (Path(package.origin).parent / "axe.min.js").read_text(encoding="utf-8")
    page.context.new_cdp_session(page).send("Runtime.evaluate", {"expression": source})
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert len(page.evaluate("axe.getRules()")) > 50
    return [f"{each['id']}: {node['html']}" for each in found["violations"] for node in each["nodes"]]
