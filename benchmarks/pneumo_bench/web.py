"""The page of pneumo-web in Chromium: how soon it answers, against the native runtime in the same run."""

from __future__ import annotations

import functools
import gzip
import http.server
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias

from pneumo_bench.inputs import open_bundles, sample_films
from pneumo_bench.machine import Watch, describe_machine
from pneumo_bench.output import Table, header, machine_notes
from pneumo_edge.classifier import Classifier
from pneumo_edge.errors import MissingExtraError, PneumoError
from pneumo_edge.overlay import glow_layer
from pneumo_export.npm import PACKAGES
from pneumo_export.web import write_web

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Browsers: TypeAlias = "Callable[[], Browser]"

_WARM_UP = 3
"""Films of each kind before anything is measured."""

_LAYER = 720
"""Pixels of the longer side of a heatmap in the page: `LONG_SIDE` in heat.js."""

_PATIENCE = 120.0
"""Seconds for one answer, on a machine of any speed."""

_JUDGE = """async ({ bytes, name }) => {
  const api = await import(new URL("api.js", document.querySelector("script[type=module]").src));
  const blob = await (await fetch(bytes)).blob();
  const file = new File([await blob.arrayBuffer()], name);
  const start = performance.now();
  const { key } = await api.hand(file, () => {});
  const { record, error } = await api.film(key);
  if (error) throw new Error(error);
  (await api.heatmap(key)).close();
  const whole = performance.now() - start;
  await api.remove(key);
  return { whole, ...record.milliseconds, probability: record.probability };
}"""


class _Films(http.server.SimpleHTTPRequestHandler):
    """A folder as a plain file server has it, without headers that would allow threads."""

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@contextmanager
def driven() -> Iterator[Browsers]:
    """Gives what opens Chromium.

    Raises:
        MissingExtraError: Playwright is not installed.
        PneumoError: There is no Chromium.
    """
    if find_spec("playwright") is None:
        raise MissingExtraError("playwright", "bench", "driving a browser")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise PneumoError("there is no Chromium here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--no-first-run"]
        yield functools.partial(playwright.chromium.launch, executable_path=chromium, args=flags)


@contextmanager
def blank(browsers: Browsers) -> Iterator[Page]:
    """An empty page in a browser of its own, which knows nothing yet."""
    with browsers() as browser:
        page = browser.new_page()
        page.set_default_timeout(1e3 * _PATIENCE)
        yield page


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder, as a plain file server has it."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Films, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://localhost:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


def _largest_renderer(process: Any) -> int:
    """Returns the memory that is the tab's alone, in bytes: of Chromium's processes that draw pages the largest."""
    psutil = import_module("psutil")
    found = [0]
    for child in process.children(recursive=True):
        try:
            if "--type=renderer" in child.cmdline():
                found.append(child.memory_full_info().uss)
        except psutil.Error:
            continue
    return max(found)


def _children_seconds(process: Any) -> float:
    """Returns the processor time of all that a process has started: nobody waits for most parts of a browser."""
    psutil = import_module("psutil")
    seconds = 0.0
    for child in process.children(recursive=True):
        with suppress(psutil.Error):
            times = child.cpu_times()
            seconds += times.user + times.system
    return seconds


def _judged(classifier: Classifier, path: Path) -> dict[str, float]:
    """Judges a film and draws its heatmap as large as the page does; returns milliseconds and the probability."""
    start = time.perf_counter()
    prediction = classifier.predict(path)
    width, height = (1, 1) if prediction.region is None else (prediction.region.width, prediction.region.height)
    scale = _LAYER / max(width, height)
    glow_layer((round(width * scale), round(height * scale)), prediction)
    whole = 1e3 * (time.perf_counter() - start)
    return {**prediction.milliseconds, "whole": whole, "probability": prediction.probability}


def measure_web(*, bundle: Path | None, folder: Path | None, films: int, rounds: int) -> dict[str, Any]:
    """Builds the page, opens it and has it judge films; returns what `web.json` holds.

    Args:
        bundle: The model; the one that comes with pneumo by default.
        folder: Films; phantoms by default.
        films: How many of them.
        rounds: Cold loads, and turns over the films.

    Raises:
        MissingExtraError: Playwright is not installed.
        PneumoError: There is no Chromium, or the page gives no verdict.
    """
    watch = Watch()
    [(_, found)] = open_bundles([] if bundle is None else [bundle]).items()
    with (
        TemporaryDirectory(prefix="pneumo-bench-") as scratch,
        sample_films(folder, films) as (paths, what),
        Classifier.load(bundle, engine="tflite", threads=1) as classifier,
        driven() as chromium,
    ):
        site = Path(scratch) / "site"
        files = write_web(found, site)
        for n, path in enumerate(paths):
            shutil.copy(path, site / f"film{n}")
        own = import_module("psutil").Process()
        cold, native, web, memory, browser_seconds = [], [], [], [0], 0.0
        with served(site) as address:
            for _ in range(rounds):
                with blank(chromium) as page:
                    start = time.perf_counter()
                    page.goto(address, wait_until="commit")
                    # As soon as anybody could choose a film.
                    page.locator("#choose:not(:empty)").wait_for()
                    page.set_input_files("#file", str(paths[0]))
                    page.locator("#verdict").wait_for()
                    cold.append(time.perf_counter() - start)
                    # What it keeps for use without a network is fetched now.
                    page.evaluate("navigator.serviceWorker.ready.then(() => {})")
                    for turn in range(_WARM_UP + len(paths)):
                        n = turn % len(paths)
                        timed = page.evaluate(_JUDGE, {"bytes": f"film{n}", "name": paths[n].name})
                        bare = _judged(classifier, paths[n])
                        if turn >= _WARM_UP:
                            web.append(timed)
                            native.append(bare)
                        memory.append(_largest_renderer(own))
                    browser_seconds += _children_seconds(own)
    sizes = {
        "files": len(files),
        "bytes": sum(map(len, files.values())),
        "bytes_packed": sum(len(gzip.compress(data, 6)) for data in files.values()),
        "model_bytes_packed": len(gzip.compress(found.read_file(classifier.file), 6)),
    }
    middle = {
        side: {part: median(row[part] for row in rows) for part in ("read", "infer", "whole")}
        for side, rows in (("web", web), ("native", native))
    }
    runtime = {package.name: package.version for package in PACKAGES}
    settings = {"films": what, "number": len(paths), "rounds": rounds, "threads": 1, "runtime": runtime}
    settings |= {"model": found.description.name, "file": classifier.file}
    return header("web", describe_machine(), watch.finish(browser_seconds)) | {
        "settings": settings,
        "sizes": sizes,
        "cold_seconds": {"median": median(cold), "slowest": max(cold)},
        "milliseconds": middle,
        "ratio": {part: middle["web"][part] / middle["native"][part] for part in ("infer", "whole")},
        "largest_difference": max(abs(a["probability"] - b["probability"]) for a, b in zip(web, native, strict=True)),
        "tab_bytes": max(memory),
    }


def web_tables(record: dict[str, Any]) -> list[Table]:
    """Returns the times of both runtimes, and what the page costs."""
    settings, times = record["settings"], record["milliseconds"]
    sizes, cold = record["sizes"], record["cold_seconds"]
    parts = {"read": "reading the film", "infer": "the model", "whole": "film to verdict and heatmap"}
    return [
        Table(
            title="One film in the browser and in the native runtime, one thread each",
            columns=("part", "browser", "native", "ratio"),
            rows=[
                (
                    name,
                    f"{times['web'][part]:.1f} ms",
                    f"{times['native'][part]:.1f} ms",
                    f"{times['web'][part] / times['native'][part]:.2f}",
                )
                for part, name in parts.items()
            ],
            notes=(
                f"medians of {settings['rounds']} turns over {settings['number']} of the {settings['films']}, "
                f"judged in turn; {settings['model']}, {settings['file']}; largest difference of the probability "
                f"{record['largest_difference']:.4f}",
                *machine_notes(record["machine"], record["load"]),
            ),
        ),
        Table(
            title="The page",
            columns=(
                "first verdict, cold",
                "slowest",
                "tab, at most",
                "files",
                "over the wire, packed",
                "the model of it",
            ),
            rows=[
                (
                    f"{cold['median']:.2f} s",
                    f"{cold['slowest']:.2f} s",
                    f"{record['tab_bytes'] / 1e6:.0f} MB",
                    f"{sizes['bytes'] / 1e6:.1f} MB",
                    f"{sizes['bytes_packed'] / 1e6:.1f} MB",
                    f"{sizes['model_bytes_packed'] / 1e6:.1f} MB",
                )
            ],
            notes=(
                "from a browser that has nothing of it, over localhost and without compression, the film handed in at "
                "once; memory is what the tab's process has to itself (USS); packed with gzip",
            ),
        ),
    ]
