"""pneumo-web: the folder that it writes, in Chromium, as its users have it."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chromium import Quiet, Visit, launched, need_chromium, served, verdict, violations, visits
from places import SHARED
from pneumo_edge import Classifier, Prediction
from pneumo_edge.bundle import DEFAULT_BUNDLE, InputContract, read_bundle
from pneumo_edge.overlay import glow_layer
from pneumo_edge.region import Region
from pneumo_edge.words import Words
from pneumo_export.npm import PACKAGES
from pneumo_export.web import own_modules, write_web

need_chromium("ai_edge_litert")

from playwright.sync_api import Browser, Page, expect  # noqa: E402

from pneumo_train.phantom import draw_phantoms  # noqa: E402

TURNS = 0.02
"""Of the probability: int8 kernels of two builds of one runtime round otherwise here and there."""


@pytest.fixture(scope="module")
def site(runtime: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page with the model that comes with pneumo."""
    folder = tmp_path_factory.mktemp("web") / "site"
    write_web(read_bundle(DEFAULT_BUNDLE), folder)
    return folder


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return sorted(draw_phantoms(tmp_path_factory.mktemp("films") / "phantoms", films=40).rglob("*.jpeg"))


@pytest.fixture(scope="module")
def kinds(phantoms: list[Path]) -> dict[str | None, Prediction]:
    """The clearest phantom on which the model says PNEUMONIA, NORMAL and nothing."""
    with Classifier.load(engine="tflite") as classifier:
        predictions = [classifier.predict(path) for path in phantoms]
    found = {prediction.label: prediction for prediction in sorted(predictions, key=lambda each: abs(each.logit))}
    assert set(found) == {"PNEUMONIA", "NORMAL", None}
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


class _Isolating(Quiet):
    """With the headers that allow threads."""

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    # Where the server of a test is gone before the page has been kept.
    with visits(browser, "An unknown error occurred when fetching the script") as visit:
        yield visit


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with served(site) as address:
        yield address


def version(site: Path) -> Path:
    """The folder of all files but index.html and the service worker."""
    [folder] = (each for each in site.iterdir() if each.is_dir())
    return folder


def until(page: Page, question: str) -> None:
    """Waits until it is answered with true. Playwright's own way to wait is against the page's policy."""
    for _ in range(600):
        if page.evaluate(question):
            return
        page.wait_for_timeout(100)
    pytest.fail(question)


def hand_in(page: Page, film: str | Path) -> None:
    page.locator("#file").set_input_files(film)


def kept(page: Page) -> None:
    """Waits until the page is kept for use without a network."""
    expect(page.get_by_text("This page also opens without a network.")).to_be_visible()


JUDGE = """async (names) => {
  const api = await import(new URL("api.js", document.querySelector("script[type=module]").src));
  const found = [];
  for (const name of names) {
    const blob = await (await fetch(name)).blob();
    const { key } = await api.hand(new File([blob], name), () => {});
    const { record, error } = await api.film(key);
    found.push({ ...record, error });
    await api.remove(key);
  }
  return found;
}"""
"""Judges films that lie beside the page, through the module that the page itself asks."""


def compare(page: Page, folder: Path, films: list[Path], place: Path) -> list[float]:
    """Returns how far the probabilities lie from those of Python; everything else is compared here."""
    names = []
    for i, film in enumerate(films):
        shutil.copy(film, place / f"film{i}{film.suffix}")
        names.append(f"film{i}{film.suffix}")
    found = page.evaluate(JUDGE, names)
    for name in names:
        (place / name).unlink()
    away = []
    with Classifier.load(folder, engine="tflite") as classifier:
        limit = classifier.bundle.description.files[classifier.file].novelty_limit
        for film, name, one in zip(films, names, found, strict=True):
            want = classifier.predict(film, name)
            assert one["error"] is None, one
            away.append(abs(one["probability"] - want.probability))
            assert one["novelty"] == pytest.approx(want.novelty, abs=0.05)
            assert set(one) == {*want.record(), "error"}
            assert one["threshold"] == pytest.approx(want.threshold)
            assert one["prevalence"] == pytest.approx(want.prevalence)
            assert one["contrast"] == pytest.approx(want.contrast, abs=0.5)
            assert (one["operating_point"], one["model"], one["file"]) == (
                want.operating_point, want.model, want.file,
            )  # fmt: skip
            # What lies on the edge may turn; nothing else does.
            if abs(want.novelty - limit) < 0.05 or abs(want.probability - want.threshold) < TURNS:
                continue
            assert (one["label"], one["in_distribution"]) == (want.label, want.in_distribution)
            assert tuple(one["warnings"]) == want.warnings
            if want.region is None:
                assert one["region"] is None
                continue
            region = want.region.record()
            assert (one["region"]["width"], one["region"]["height"]) == (region["width"], region["height"])
            assert one["region"]["strongest"] == pytest.approx(region["strongest"], abs=0.05)
            assert one["region"]["area"] == pytest.approx(region["area"], abs=0.02)
            assert len(one["region"]["polygons"]) == len(region["polygons"]) or region["area"] < 0.02
    return away


# -------------------------------------------------------------------------------------------------- the answer


def test_phantoms_get_the_same_answer(site: Path, address: str, visit: Visit, phantoms: list[Path]) -> None:
    # As PNG, whose pixels are the same in both.
    page = visit(address)
    made = []
    for path in phantoms[:24]:
        made.append(path.with_suffix(".png"))
        Image.open(path).save(made[-1])
    away = compare(page, DEFAULT_BUNDLE, made, site)
    assert np.mean(away) <= 0.005
    assert max(away) <= TURNS
    away = compare(page, DEFAULT_BUNDLE, phantoms[24:], site)
    assert np.mean(away) <= 0.01
    assert max(away) <= 0.05


def test_real_films_get_the_same_answer(site: Path, address: str, visit: Visit) -> None:
    films = sorted((SHARED / "data" / "originals").rglob("*.jpeg"))[:6]
    films += sorted((SHARED / "data" / "chest_xray" / "train").rglob("*.jpeg"))[::200]
    if not films:
        pytest.skip("there are no films in ../shared")
    away = compare(visit(address), DEFAULT_BUNDLE, films, site)
    assert np.mean(away) <= 0.01
    assert max(away) <= 0.05


@pytest.fixture
def other(write_bundle: Callable[..., Path]) -> Path:
    """The same network as a model of another name that has a heatmap alone, and outlines no region."""
    data = (DEFAULT_BUNDLE / "model.int8.tflite").read_bytes()
    return write_bundle({"model.int8.tflite": data}, name="other", input=InputContract("image", "uint8", 160, 1))


def test_another_model(
    runtime: dict[str, bytes], other: Path, visit: Visit, phantoms: list[Path], tmp_path: Path
) -> None:
    write_web(read_bundle(other), tmp_path / "site")
    with served(tmp_path / "site") as address:
        assert max(compare(visit(address), other, phantoms[:4], tmp_path / "site")) <= TURNS


@pytest.mark.parametrize("outlines", [False, True])
def test_colours_are_those_of_the_runtime(
    outlines: bool, address: str, visit: Visit, kinds: dict[str | None, Prediction]
) -> None:
    random = np.random.default_rng(1)
    region = Region((), 0.0, 0.5, 320, 240)
    # Weak evidence, which is not stretched, and strong, with a line around it.
    for strength in (2, 12):
        heatmap = (strength * random.normal(size=(4, 6))).astype(np.float32)
        prediction = replace(kinds["PNEUMONIA"], heatmap=heatmap, region=region if outlines else None)
        drawn = visit(address).evaluate(
            """async ([map, outlines]) => {
              const beside = (name) => new URL(name, document.querySelector("script[type=module]").src);
              const { layer } = await import(beside("heat.js"));
              const { look } = await (await fetch(beside("constants.json"))).json();
              const values = Float32Array.from(map.flat());
              const made = layer({ width: map[0].length, height: map.length, values }, 320, 240, outlines, look);
              let text = "";
              for (let i = 0; i < made.data.length; i += 32768) {
                text += String.fromCharCode(...made.data.subarray(i, i + 32768));
              }
              return { width: made.width, height: made.height, data: btoa(text) };
            }""",
            [heatmap.tolist(), outlines],
        )
        want = np.asarray(glow_layer((720, 540), prediction)).astype(int)
        found = np.frombuffer(base64.b64decode(drawn["data"]), np.uint8).reshape(drawn["height"], drawn["width"], 4)
        assert found.shape == want.shape
        # What is quite clear has no colour.
        away = np.abs(found.astype(int) - want).max(axis=2)[(want[:, :, 3] > 0) | (found[:, :, 3] > 0)]
        assert (away > 3).mean() < 0.01


def test_operating_point_and_prevalence(address: str, visit: Visit, kinds: dict[str | None, Prediction]) -> None:
    page = visit(address)
    film = kinds["NORMAL"]
    hand_in(page, film.path)
    verdict(page, "The model says Normal")
    for point in ("balanced", "screening"):
        page.locator("#point-choice").select_option(point)
        page.get_by_label("Films with pneumonia").fill("20")
        page.get_by_label("Films with pneumonia").press("Enter")
        with Classifier.load(operating_point=point, prevalence=0.2, engine="tflite") as classifier:
            want = classifier.predict(film.path)
        expect(page.locator("#point")).to_contain_text(f"{want.threshold:.1%}".replace("%", " %"))
        expect(page.locator("#point")).to_contain_text(point)
        expect(page.locator("#condition")).to_contain_text("at a prevalence of 20.0 %")
        verdict(page, f"The model says {want.label.capitalize() if want.label else 'No verdict'}")
        shown = float(page.locator("#share").inner_text().split(" ")[0])
        assert shown == pytest.approx(100 * want.probability, abs=1)
    # What is no share is not taken.
    page.get_by_label("Films with pneumonia").fill("120")
    page.get_by_label("Films with pneumonia").press("Enter")
    expect(page.locator("#point")).to_contain_text(f"{want.threshold:.1%}".replace("%", " %"))


# ---------------------------------------------------------------------------------------------------- the page


def test_the_page_says_what_it_does(address: str, visit: Visit, kinds: dict[str | None, Prediction]) -> None:
    page = visit(address)
    expect(page.get_by_text("Nothing is sent: the film stays in this browser.")).to_be_in_viewport()
    hand_in(page, kinds["PNEUMONIA"].path)
    verdict(page, "The model says Pneumonia")
    told = read_bundle(DEFAULT_BUNDLE).description.calibration.prevalence
    expect(page.locator("#condition")).to_contain_text(f"at a prevalence of {100 * told:.1f} %")
    expect(page.locator("#facts")).to_contain_text("% of the film stands out")
    expect(page.locator("#facts")).to_contain_text("in this tab")
    expect(page.locator("#figure[data-whole]")).to_be_visible()
    page.get_by_role("slider", name="Heatmap over the film").fill("100")
    hand_in(page, kinds[None].path)
    verdict(page, "The model says No verdict")
    expect(page.get_by_role("heading", name="Why the verdict is withheld")).to_be_visible()
    expect(page.locator("#films li")).to_have_count(2)
    page.locator("#filter").select_option("PNEUMONIA")
    expect(page.locator("#films li")).to_have_count(1)
    page.locator("#films button").click()
    verdict(page, "The model says Pneumonia")
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_text("The file itself stays where it is.")).to_be_visible()
    page.get_by_role("button", name="Delete").last.click()
    expect(page.get_by_text("Drop a chest X-ray here")).to_be_visible()
    # The history is that of this tab, as long as it is open.
    page.locator("#filter").select_option("films.all")
    page.locator("#films button").click()
    verdict(page, "The model says No verdict")
    page.reload()
    expect(page.get_by_text("Drop a chest X-ray here")).to_be_visible()
    expect(page.get_by_text("are listed here until this tab is closed")).to_be_visible()


def test_nothing_can_be_sent(address: str, visit: Visit) -> None:
    """The policy binds the page and the worker that sees the films."""
    page = visit(address, "Content Security Policy", "Content-Security-Policy", "Refused to connect", "violates")
    refused = page.evaluate(
        """async () => {
          const script = `onmessage = () =>
            fetch("http://127.0.0.1:9/").then(() => "sent", () => "refused").then(postMessage);`;
          const worker = new Worker(URL.createObjectURL(new Blob([script], { type: "text/javascript" })));
          const inWorker = new Promise((done) => (worker.onmessage = ({ data }) => done(data)));
          const events = [];
          document.addEventListener("securitypolicyviolation", (event) => events.push(event.effectiveDirective));
          worker.postMessage("");
          const here = await fetch("http://127.0.0.1:9/").then(() => "sent", () => "refused");
          return [here, await inWorker, events[0]];
        }"""
    )
    assert refused == ["refused", "refused", "connect-src"]


def test_by_keyboard_alone(address: str, visit: Visit, kinds: dict[str | None, Prediction]) -> None:
    page = visit(address)
    page.get_by_role("heading", name="About the model").wait_for()

    def tab_to(selector: str) -> None:
        for _ in range(120):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
                return
        pytest.fail(f"no way by Tab to {selector}")

    tab_to("#choose")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(kinds["PNEUMONIA"].path)
    verdict(page, "The model says Pneumonia")
    tab_to("#mix")
    page.keyboard.press("End")
    tab_to("#print")
    tab_to("#films button")
    tab_to("#point-choice")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#point")).to_contain_text("screening")
    tab_to("#prevalence")
    page.keyboard.press("Control+A")
    page.keyboard.type("10")
    page.keyboard.press("Enter")
    expect(page.locator("#model")).to_contain_text("(screening)")


@pytest.mark.parametrize(("locale", "language"), {"en-US": "en", "es-MX": "es", "fr-FR": "fr", "pt-BR": "pt"}.items())
def test_every_language_and_axe(
    locale: str, language: str, address: str, visit: Visit, kinds: dict[str | None, Prediction]
) -> None:
    words = Words(language)
    narrow = language in ("es", "fr")
    page = visit(
        address, locale=locale, color_scheme="dark" if narrow else "light", width=390 if narrow else 1280,
        touch=narrow,
    )  # fmt: skip
    expect(page.get_by_role("heading", name=words("about"))).to_be_visible()
    expect(page.get_by_text(words("private"))).to_be_visible()
    expect(page.get_by_text(words("note"))).to_be_in_viewport()
    assert violations(page) == []
    hand_in(page, kinds["PNEUMONIA"].path)
    verdict(page, f"{words('says')} {words('PNEUMONIA')}")
    expect(page.get_by_text(words("prevalence"))).to_be_visible()
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


# ------------------------------------------------------------------------------------------- without a network


def test_it_opens_without_a_network(site: Path, visit: Visit, kinds: dict[str | None, Prediction]) -> None:
    with served(site) as address:
        page = visit(address, "Failed to load", "net::ERR")
        kept(page)
    # The server is gone.
    page.reload()
    hand_in(page, kinds["PNEUMONIA"].path)
    verdict(page, "The model says Pneumonia")
    # What is kept allows threads, whatever the server said.
    assert page.evaluate("crossOriginIsolated")


def test_threads_where_the_server_allows_them(site: Path, visit: Visit, kinds: dict[str | None, Prediction]) -> None:
    with served(site, _Isolating) as address:
        page = visit(address)
        assert page.evaluate("crossOriginIsolated")
        hand_in(page, kinds["NORMAL"].path)
        verdict(page, "The model says Normal")


def test_it_can_be_installed(address: str, visit: Visit) -> None:
    page = visit(address)
    kept(page)
    session = page.context.new_cdp_session(page)
    manifest = session.send("Page.getAppManifest")
    assert manifest["errors"] == []
    assert json.loads(manifest["data"])["name"] == "pneumo"
    hindrances = [each["errorId"] for each in session.send("Page.getInstallabilityErrors")["installabilityErrors"]]
    # A window that keeps nothing installs nothing.
    assert set(hindrances) <= {"in-incognito"}


UPDATE = "navigator.serviceWorker.getRegistration().then((found) => found.update().catch(() => {}))"

MODELS = """async () => {
  const beside = (name) => new URL(name, document.querySelector("script[type=module]").src);
  const api = await import(beside("api.js"));
  return [(await api.model()).name, (await (await fetch(beside("model.json"))).json()).name];
}"""
"""What the page has in memory, and what it gets now."""

MARKED = ("dom.js", "words.js", "viewer.js", "heat.js")


def test_an_update_comes_whole(site: Path, other: Path, visit: Visit, tmp_path: Path) -> None:
    place = tmp_path / "site"
    shutil.copytree(site, place)
    [old, new] = [read_bundle(each).description.name for each in (DEFAULT_BUNDLE, other)]
    with served(place) as address:
        page = visit(address, "Failed to update", "service worker", "404")
        kept(page)
        # A page that is kept; the first one came from the server.
        page.reload()
        expect(page.locator("#model-line")).to_contain_text("It gives a verdict")
        # Half of an update: the new worker finds a file of another version, and all stays as it is.
        write_web(read_bundle(other), place)
        changed = version(place) / "model.json"
        whole = changed.read_bytes()
        changed.write_bytes(whole + b" ")
        page.evaluate(UPDATE)
        until(page, "navigator.serviceWorker.getRegistration().then((found) => !found.installing)")
        page.reload()
        assert page.evaluate(MODELS) == [old, old]
        # All of it: fetched beside what is in use, and used after a reload in the same tab.
        changed.write_bytes(whole)
        page.evaluate(UPDATE)
        expect(page.get_by_text("A newer version has been fetched")).to_be_visible()
        assert page.evaluate(MODELS) == [old, old]
        beside = page.context.new_page()
        beside.goto(address)
        expect(beside.locator("#model-line")).to_contain_text("other")
        assert page.evaluate(MODELS) == [old, old]
        page.reload()
        expect(page.locator("#model-line")).to_contain_text("other")
        assert page.evaluate(MODELS) == [new, new]
        # The old one goes when no page needs it. A closed page may count for a moment after the next one has opened,
        # and then the old worker serves that one too: so pages are opened until one finds the new worker at work.
        paths = (
            """caches.keys().then(async ([name]) => (await (await caches.open(name)).keys()).map(({ url }) => url))"""
        )
        kept_now = page.evaluate(paths)
        assert len({url.removeprefix(address).partition("/")[0] for url in kept_now}) == 3
        context = page.context
        page.close()
        beside.close()
        for _ in range(60):
            page = context.new_page()
            page.goto(address)
            if page.evaluate("navigator.serviceWorker.getRegistration().then((found) => !found.waiting)"):
                break
            page.close()
            time.sleep(1)
        until(page, f"{paths}.then((all) => all.length < {len(kept_now)})")
        names = {url.removeprefix(address).partition("/")[0] for url in page.evaluate(paths)}
        assert names == {"index.html", version(place).name}


def test_reloads_while_updates_come(site: Path, visit: Visit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is loaded anew at every moment of an update: it never hangs, and never has files of two versions."""
    place = tmp_path / "site"
    shutil.copytree(site, place)
    with served(place) as address:
        page = visit(address)
        kept(page)
        modules = own_modules()
        for turn in range(6):
            mark = f"\nself.marks = [...(self.marks ?? []), {turn}];\n".encode()
            changed = modules | {name: modules[name] + mark for name in MARKED}
            monkeypatch.setattr("pneumo_export.web.own_modules", lambda changed=changed: changed)
            write_web(read_bundle(DEFAULT_BUNDLE), place)
            page.evaluate(UPDATE.replace("found.update()", "void found.update()"))
            page.wait_for_timeout(150 * turn)
            for _ in range(2):
                page.reload()
                seen = page.evaluate("self.marks ?? []")
                assert len(set(seen)) <= 1, seen
                assert len(seen) in (0, len(MARKED))


# ------------------------------------------------------------------------------------------------- what is bad


def test_a_changed_model_is_refused(site: Path, visit: Visit, tmp_path: Path) -> None:
    shutil.copytree(site, tmp_path / "site")
    model = version(tmp_path / "site") / "model.int8.tflite"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    Image.fromarray(np.arange(160 * 200, dtype=np.uint32).reshape(160, 200).astype(np.uint8)).save(
        tmp_path / "film.png"
    )
    with served(tmp_path / "site") as address:
        page = visit(address)
        sentence = f"{model.name} is not the model that model.json describes"
        expect(page.locator("#banner")).to_contain_text(sentence)
        hand_in(page, tmp_path / "film.png")
        expect(page.locator("#broken-why")).to_contain_text(sentence)
        expect(page.get_by_text("not all of the page could be fetched", exact=False)).to_be_visible()


def test_a_runtime_that_does_not_come(site: Path, visit: Visit, tmp_path: Path) -> None:
    shutil.copytree(site, tmp_path / "site")
    for file in version(tmp_path / "site").glob("*.wasm"):
        file.unlink()
    with served(tmp_path / "site") as address:
        page = visit(address, "404")
        expect(page.locator("#banner")).to_contain_text("The runtime of the model does not start")


def test_bad_films_get_a_sentence(
    address: str, visit: Visit, kinds: dict[str | None, Prediction], tmp_path: Path
) -> None:
    (tmp_path / "letter.png").write_text("no picture")
    (tmp_path / "cut.jpeg").write_bytes(Path(kinds[None].path).read_bytes()[:2000])
    page = visit(address)
    hand_in(page, tmp_path / "letter.png")
    expect(page.locator("#broken-why")).to_contain_text("letter.png is not an image that this page reads")
    hand_in(page, tmp_path / "cut.jpeg")
    verdict(page, "Not judged")
    expect(page.locator("#remarks")).to_contain_text("cut.jpeg is damaged and cannot be read (it ends too early)")
    # And the next one is judged.
    hand_in(page, kinds["NORMAL"].path)
    verdict(page, "The model says Normal")


@pytest.mark.parametrize(
    ("before", "sentence", "judges"),
    [
        ("WebAssembly.validate = () => false", "no WebAssembly with SIMD", False),
        ("delete Navigator.prototype.serviceWorker", "cannot keep the page", True),
        (
            "Object.defineProperty(ServiceWorkerContainer.prototype, 'register', "
            "{ value: () => Promise.reject(new DOMException('', 'SecurityError')) })",
            "cannot keep the page",
            True,
        ),
    ],
)
def test_browsers_that_lack_something(
    before: str,
    sentence: str,
    judges: bool,
    site: Path,
    visit: Visit,
    kinds: dict[str | None, Prediction],
    tmp_path: Path,
) -> None:
    place = site
    if not judges:
        # The worker looks for it, where no script of a test comes: it is said in front of its own.
        place = tmp_path / "site"
        shutil.copytree(site, place)
        judge = version(place) / "judge.js"
        judge.write_text(judge.read_text(encoding="utf-8") + f"\n{before};\n", encoding="utf-8")
        text = judge.read_text(encoding="utf-8").replace(
            "const loading = load();", f"{before};\nconst loading = load();"
        )
        judge.write_text(text, encoding="utf-8")
    with served(place) as address:
        page = visit(address, before=before if judges else "")
        expect(page.get_by_text(re.compile(sentence)).first).to_be_visible()
        hand_in(page, kinds["NORMAL"].path)
        if judges:
            verdict(page, "The model says Normal")
        else:
            expect(page.locator("#broken-why")).to_contain_text(sentence)


def test_no_room_to_keep_it(site: Path, visit: Visit, tmp_path: Path) -> None:
    shutil.copytree(site, tmp_path / "site")
    worker = tmp_path / "site" / "service-worker.js"
    full = 'Cache.prototype.put = () => Promise.reject(new DOMException("", "QuotaExceededError"));\n'
    worker.write_text(full + worker.read_text(encoding="utf-8"), encoding="utf-8")
    with served(tmp_path / "site") as address:
        page = visit(address)
        expect(page.get_by_text("This browser has no room to keep the page")).to_be_visible()


# ------------------------------------------------------------------------------------------------- the command


def run(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pneumo_export.web", *arguments], capture_output=True, text=True, check=False,
        env={**os.environ, **env},
    )  # fmt: skip


def test_the_command(runtime: dict[str, bytes], other: Path, tmp_path: Path) -> None:
    done = run("--model", other, "--output", tmp_path / "site")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'site'}\n")
    assert "MB over the wire" in done.stderr
    # A second time, with another model: the folder is its own.
    assert run("--model", other, "--output", tmp_path / "site").returncode == 0
    (tmp_path / "site" / "letter.txt").write_text("mine")
    done = run("--model", other, "--output", tmp_path / "site")
    assert done.returncode == 2
    assert "holds letter.txt, which pneumo-web has not put there" in done.stderr
    assert (tmp_path / "site" / "letter.txt").read_text() == "mine"


def test_it_loads_no_tensorflow() -> None:
    code = "import sys, pneumo_export.web; print(*(set(sys.modules) & {'tensorflow', 'keras', 'onnx', 'tf2onnx'}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_a_bundle_without_tflite(bundle: Path, tmp_path: Path) -> None:
    done = run("--model", bundle, "--output", tmp_path / "site")
    assert done.returncode == 2
    assert "has no TFLite file, which the browser needs" in done.stderr
    assert not (tmp_path / "site").exists()


def test_no_registry_and_a_wrong_one(other: Path, tmp_path: Path) -> None:
    def build(registry: str) -> subprocess.CompletedProcess[str]:
        return run(
            "--model", other, "--output", tmp_path / "site", XDG_CACHE_HOME=str(tmp_path / "cache"),
            npm_config_registry=registry,
        )  # fmt: skip

    done = build("http://127.0.0.1:9")
    assert done.returncode == 1
    assert "cannot be fetched" in done.stderr
    tarball = tmp_path / "npm" / "@litertjs" / "core" / "-" / f"core-{PACKAGES[0].version}.tgz"
    tarball.parent.mkdir(parents=True)
    tarball.write_bytes(b"something else")
    with served(tmp_path / "npm") as address:
        done = build(address)
    assert done.returncode == 2
    assert "has another SHA-512 than pneumo knows" in done.stderr
    assert not (tmp_path / "site").exists()
    assert not list((tmp_path / "cache").rglob("*.wasm"))
