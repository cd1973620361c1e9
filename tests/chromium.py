"""Chromium, for the tests of pages, and what they share; axe looks at pages as people do who cannot see them."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

Visit: TypeAlias = "Callable[..., Page]"

PATIENCE = 60_000
"""Milliseconds, on a machine of any speed."""

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


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A folder as `python -m http.server` serves it."""

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def served(folder: Path, handler: type[Quiet] = Quiet) -> Iterator[str]:
    """The folder as `python -m http.server` serves it."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://localhost:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def launched() -> Iterator[Browser]:
    """A Chromium without a window."""
    from playwright.sync_api import expect, sync_playwright

    assert CHROMIUM, "Chromium is not installed, and CI must not skip this: apt-get install chromium"
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET) as browser:
        yield browser


@contextmanager
def visits(browser: Browser, *always_said: str) -> Iterator[Visit]:
    """Gives what opens a page. At the end nothing may have been asked of another host, and nothing said on the console
    but what the test expects: violations of the content security policy stand there too."""
    asked: list[str] = []
    said: list[str] = []
    expected = list(always_said)
    homes: list[str] = []
    with ExitStack() as stack:

        def open_page(
            address: str,
            *expect_said: str,
            context: BrowserContext | None = None,
            before: str = "",
            touch: bool = False,
            width: int = 1280,
            **options: Any,
        ) -> Page:
            if context is None:
                context = browser.new_context(
                    viewport={"width": width, "height": 860}, has_touch=touch, is_mobile=touch, **options
                )
                stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(PATIENCE)
            page.on("request", lambda request: asked.append(request.url))
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            # From the start: a key is quicker than a listener that is added at the moment it is pressed.
            page.on("filechooser", lambda _: None)
            if before:
                page.add_init_script(before)
            homes.append(address)
            expected.extend(expect_said)
            page.goto(address)
            return page

        yield open_page
    assert [url for url in asked if not url.removeprefix("blob:").startswith(tuple(homes))] == []
    assert [text for text in said if not any(part in text for part in expected)] == []


def verdict(page: Page, word: str) -> None:
    """Waits until the page says it."""
    from playwright.sync_api import expect

    expect(page.get_by_role("heading", name=word)).to_be_visible()
