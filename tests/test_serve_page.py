"""The page of pneumo-serve in Chromium, as its users have it: by mouse, by keyboard, on a phone, on paper."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import sqlite3
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumo_edge import Classifier, Prediction
from pneumo_edge.bundle import DEFAULT_BUNDLE
from pneumo_edge.command_line import NOT_A_DIAGNOSIS
from pneumo_edge.serve.spool import PICTURE

CHROMIUM = shutil.which("chromium")
if os.environ.get("CI") != "true":
    if CHROMIUM is None:
        pytest.skip("the page is tested in Chromium: apt-get install chromium", allow_module_level=True)
    pytest.importorskip("playwright", reason="the page is tested with Playwright, of the extra dev")
    pytest.importorskip("fastapi", reason="pneumo-serve needs the extra serve")

from playwright.sync_api import Browser, Page, expect, sync_playwright  # noqa: E402

from pneumo_train.phantom import draw_phantoms  # noqa: E402

Serve = Callable[..., Any]
Open = Callable[..., Page]

TOKEN = "0123456789abcdef"  # noqa: S105 - of the tests
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
)  # fmt: skip
"""Chromium as root, and without a word to anybody."""


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> dict[str | None, Prediction]:
    """Phantoms on which the model that comes with pneumo says PNEUMONIA, NORMAL and nothing, as it judges them."""
    folder = draw_phantoms(tmp_path_factory.mktemp("page") / "phantoms", films=40)
    found: dict[str | None, Prediction] = {}
    with Classifier.load() as classifier:
        predictions = [classifier.predict(path) for path in sorted(folder.rglob("*.jpeg"))]
    # The clearest case of each: a heatmap to see, and no verdict that another processor might turn.
    for prediction in sorted(predictions, key=lambda each: abs(each.logit)):
        found[prediction.label] = prediction
    assert set(found) == {"PNEUMONIA", "NORMAL", None}
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM, "Chromium is not installed, and CI must not skip this: apt-get install chromium"
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET) as browser:
        yield browser


@pytest.fixture(scope="module")
def service(
    serving: Callable[..., Any],
    serve_command: Callable[..., list[str | Path]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """One service with the model that comes with pneumo, for all tests that do not ask for their own."""
    folder = tmp_path_factory.mktemp("served")
    line = serve_command("--port", "0", "--spool", folder / "spool", "--model", DEFAULT_BUNDLE)
    with serving(line, folder / "said") as running:
        yield running


@pytest.fixture
def visit(browser: Browser) -> Iterator[Open]:
    """Opens the page. At the end nothing may have been asked of another host, and nothing said on the console but
    what the test expects: violations of the content security policy stand there too."""
    asked: list[str] = []
    said: list[str] = []
    expected: list[str] = []
    homes: list[str] = []
    with ExitStack() as stack:

        def open_page(address: str, *expect_said: str, touch: bool = False, width: int = 1280, **options: Any) -> Page:
            context = browser.new_context(
                viewport={"width": width, "height": 860}, has_touch=touch, is_mobile=touch, **options
            )
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(60_000)
            page.on("request", lambda request: asked.append(request.url))
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            # From the start: a key is quicker than a listener that is added at the moment it is pressed.
            page.on("filechooser", lambda _: None)
            homes.append(address)
            expected.extend(expect_said)
            page.goto(address)
            return page

        yield open_page
    assert [url for url in asked if not url.removeprefix("blob:").startswith(tuple(homes))] == []
    assert [text for text in said if not any(part in text for part in expected)] == []


expect.set_options(timeout=60_000)


def hand_in(page: Page, film: str | Path | list[str | Path]) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name=re.compile("a film|Another film")).click()
    chooser.value.set_files(film)


def verdict(page: Page, word: str) -> None:
    expect(page.get_by_role("heading", name=word)).to_be_visible()


def picture(page: Page) -> Image.Image:
    """The film as it is on the screen."""
    return Image.open(io.BytesIO(page.locator("#figure").screenshot(animations="disabled"))).convert("RGB")


def no_sideways_scroll(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


# ------------------------------------------------------------------------------------------------------ verdicts


def test_a_phantom_gets_its_verdict(service: Any, visit: Open, phantoms: dict[str | None, Prediction]) -> None:
    film = phantoms["PNEUMONIA"]
    page = visit(service.address)
    expect(page.get_by_text(NOT_A_DIAGNOSIS)).to_be_in_viewport()
    hand_in(page, film.path)
    verdict(page, "The model says Pneumonia")
    chance, cut = f"{film.probability:.1%}".replace("%", " %"), f"{film.threshold:.1%}".replace("%", " %")
    expect(page.locator("#live")).to_have_text(f"The model says pneumonia. Probability of pneumonia {chance}.")
    expect(page.locator("main")).to_match_aria_snapshot(f"""
      - region "Film":
        - figure:
          - img /Film [0-9a-f]{{8}}/
        - slider "Heatmap over the film": "60"
        - paragraph: "Evidence for pneumonia: none strong"
        - button "Another film"
      - region "The model says Pneumonia":
        - heading "The model says Pneumonia" [level=2]
        - paragraph:
          - strong: {chance}
          - text: probability of pneumonia
        - img /the probability of pneumonia is {chance}; the operating point balanced lies at {cut}/
        - term: Model
        - definition: {film.model}
        - term: File
        - definition: {film.file}
        - paragraph:
          - button "Print"
      - region "Recent films":
        - list:
          - listitem:
            - button /Pneumonia .* upload/
    """)
    scale, pin = page.locator(".track").bounding_box(), page.locator(".pin").bounding_box()
    tick = page.locator(".cut").bounding_box()
    assert scale
    assert pin
    assert tick
    for mark, share in ((pin, film.probability), (tick, film.threshold)):
        assert mark["x"] + mark["width"] / 2 == pytest.approx(scale["x"] + share * scale["width"], abs=2)
    current = page.locator("#films button[aria-current=true]")
    expect(current).to_have_count(1)
    # The address leads to the film again, also after a reload.
    page.reload()
    verdict(page, "The model says Pneumonia")
    expect(page.get_by_text(NOT_A_DIAGNOSIS)).to_be_in_viewport()
    page.go_back()
    expect(page.get_by_text("Drop a chest X-ray here")).to_be_visible()


def test_normal_and_withheld(service: Any, visit: Open, phantoms: dict[str | None, Prediction]) -> None:
    page = visit(service.address)
    hand_in(page, phantoms["NORMAL"].path)
    verdict(page, "The model says Normal")
    shape = page.locator("#shape").get_attribute("href")
    hand_in(page, phantoms[None].path)
    verdict(page, "The model says No verdict")
    # Not colour alone: each outcome has a shape of its own.
    assert {shape, page.locator("#shape").get_attribute("href")} == {"#NORMAL", "#withheld"}
    expect(page.get_by_role("heading", name="Why the verdict is withheld")).to_be_visible()
    reasons = page.locator("#remarks li").all_inner_texts()
    assert [reason.rstrip(".").lower() for reason in reasons] == [each.lower() for each in phantoms[None].warnings]
    expect(page.get_by_text("probability of pneumonia")).to_be_hidden()
    # A heatmap without a verdict would be taken for one.
    expect(page.get_by_role("slider")).to_be_hidden()
    page.emulate_media(media="print")
    expect(page.locator("#film")).to_be_visible()
    expect(page.locator("#paper-heatmap")).to_be_hidden()
    expect(page.locator("#live")).to_contain_text("No verdict. It is withheld because the picture is unlike")


def test_the_slider_lays_the_heatmap_over_the_film(
    service: Any, visit: Open, phantoms: dict[str | None, Prediction]
) -> None:
    page = visit(service.address, reduced_motion="reduce")
    hand_in(page, phantoms["PNEUMONIA"].path)
    verdict(page, "Pneumonia")
    slider = page.get_by_role("slider", name="Heatmap over the film")
    shown = {}
    for value, words in (("0", "film alone"), ("50", "50 % heatmap"), ("100", "100 % heatmap")):
        slider.fill(value)
        expect(slider).to_have_attribute("aria-valuetext", words)
        shown[value] = picture(page)
    # The film alone is grey; the more heatmap, the farther from it.
    colour = {value: np.asarray(image, dtype=int) for value, image in shown.items()}
    most = {value: int(np.abs(rgb[:, :, 0] - rgb[:, :, 2]).max()) for value, rgb in colour.items()}
    # The ground is not quite grey.
    assert most["0"] <= 4
    assert most["0"] + 10 < most["50"] < most["100"]


def test_a_region_is_outlined_and_told(serve: Serve, visit: Open, local_bundle: Path, tmp_path: Path) -> None:
    page = visit(serve("--model", local_bundle).address, reduced_motion="reduce")
    light = np.full((200, 400), 30, np.uint8)
    light[:, 200:] = 220
    Image.fromarray(light).save(tmp_path / "ill.png")
    Image.fromarray(np.full((200, 400), 112, np.uint8) + (np.arange(400) > 200).astype(np.uint8) * 14).save(
        tmp_path / "spread.png"
    )
    hand_in(page, tmp_path / "ill.png")
    verdict(page, "Pneumonia")
    expect(page.locator("#outlined")).to_contain_text("Outlined: the region that stands out,")
    expect(page.locator("#colours")).to_be_hidden()
    shown = np.asarray(picture(page), dtype=int)
    line = np.abs(shown[:, :, 0] - shown[:, :, 2]) > 60
    # A thin line and no colours.
    assert 0.001 < line.mean() < 0.05
    hand_in(page, tmp_path / "spread.png")
    expect(page.locator("#outlined")).to_have_text("No region stands out.")


# ------------------------------------------------------------------------------------------------ ways to hand in


def test_by_keyboard_alone(service: Any, visit: Open, phantoms: dict[str | None, Prediction]) -> None:
    page = visit(service.address)
    page.get_by_role("heading", name="Recent films").wait_for()

    def tab_to(selector: str) -> None:
        for _ in range(80):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                # Who cannot see where the focus is cannot use it.
                assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
                return
        pytest.fail(f"no way by Tab to {selector}")

    for label in ("NORMAL", "PNEUMONIA"):
        tab_to("#choose")
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Enter")
        chooser.value.set_files(phantoms[label].path)
        verdict(page, f"The model says {label.capitalize()}")
        # The focus has stayed where it was.
        expect(page.locator("#choose")).to_be_focused()
        page.evaluate("document.activeElement.blur()")
    tab_to("#mix")
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("slider")).to_have_value("55")
    page.keyboard.press("End")
    expect(page.get_by_role("slider")).to_have_value("100")
    tab_to("#print")
    tab_to("#films button:not([aria-current])")
    page.keyboard.press("Enter")
    verdict(page, "The model says Normal")
    expect(page.locator("#verdict")).to_be_focused()


def test_drop_and_paste(service: Any, visit: Open, phantoms: dict[str | None, Prediction]) -> None:
    page = visit(service.address)
    page.get_by_role("heading", name="Recent films").wait_for()
    for event, label in (("drop", "PNEUMONIA"), ("paste", "NORMAL")):
        page.evaluate(
            """async ([event, bytes]) => {
              const files = new DataTransfer();
              files.items.add(new File([Uint8Array.from(bytes)], "film.jpeg", {type: "image/jpeg"}));
              if (event === "drop") {
                dispatchEvent(new DragEvent("dragover", {dataTransfer: files, cancelable: true}));
                if (!document.body.classList.contains("dragged")) throw Error("nothing shows where to drop");
                dispatchEvent(new DragEvent("drop", {dataTransfer: files, cancelable: true}));
              } else dispatchEvent(new ClipboardEvent("paste", {clipboardData: files}));
            }""",
            [event, list(Path(phantoms[label].path).read_bytes())],
        )
        verdict(page, f"The model says {label.capitalize()}")


def test_several_films_at_once(
    service: Any, visit: Open, phantoms: dict[str | None, Prediction], tmp_path: Path
) -> None:
    (tmp_path / "letter.png").write_text("no picture")
    page = visit(service.address, "422")
    page.get_by_role("heading", name="Recent films").wait_for()
    before = page.locator("#films li").count()
    hand_in(page, [phantoms["NORMAL"].path, phantoms["PNEUMONIA"].path, tmp_path / "letter.png", phantoms[None].path])
    expect(page.locator("#films li")).to_have_count(before + 3)
    expect(page.locator("#batch")).to_have_text("letter.png is no film: use PNG, JPEG or DICOM.")
    # The first is the one that is opened.
    verdict(page, "The model says Normal")
    expect(page.locator("#films li").first).to_contain_text("No verdict")


def test_what_is_no_film_is_said_to_be_none(
    service: Any, visit: Open, phantoms: dict[str | None, Prediction], tmp_path: Path
) -> None:
    (tmp_path / "letter.png").write_text("no picture")
    (tmp_path / "damaged.jpeg").write_bytes(Path(phantoms[None].path).read_bytes()[:2000])
    page = visit(service.address, "422")
    hand_in(page, tmp_path / "letter.png")
    expect(page.get_by_text("This film cannot be taken", exact=True)).to_be_visible()
    expect(page.get_by_text("letter.png is no film: use PNG, JPEG or DICOM.", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Try again")).to_be_hidden()
    hand_in(page, tmp_path / "damaged.jpeg")
    verdict(page, "Not judged")
    expect(page.locator("#remarks")).to_contain_text("damaged")
    expect(page.locator("#live")).to_contain_text("The film could not be judged. Film")
    expect(page.locator("#films li").first).to_contain_text("Not judged")
    expect(page.get_by_role("slider")).to_be_hidden()


def test_films_that_come_meanwhile_are_listed(
    service: Any, visit: Open, phantoms: dict[str | None, Prediction]
) -> None:
    page = visit(service.address)
    hand_in(page, phantoms["NORMAL"].path)
    verdict(page, "The model says Normal")
    page.locator("#films button").first.focus()
    data = Path(phantoms["PNEUMONIA"].path).read_bytes()
    with urllib.request.urlopen(urllib.request.Request(f"{service.address}/v1/films", data)) as answer:  # noqa: S310
        key = json.load(answer)["key"]
    row = page.locator(f"#films li[data-key='{key}']")
    expect(row).to_contain_text("Pneumonia")
    expect(page.locator("#films li").first).to_have_attribute("data-key", key)
    # The list is drawn anew around what has the focus.
    expect(page.locator("#films button").nth(1)).to_be_focused()
    verdict(page, "The model says Normal")
    row.get_by_role("button").click()
    verdict(page, "The model says Pneumonia")
    # What the sender notes when the PACS is away, and when it is back.
    with closing(sqlite3.connect(service.said.parent / "spool" / "journal.db", isolation_level=None)) as journal:
        journal.execute("UPDATE films SET error = 'the PACS is away' WHERE key = ?", (key,))
        expect(row).to_contain_text("answer not sent")
        expect(page.locator("#remarks")).to_have_text("The answer has not been sent: the PACS is away.")
        journal.execute("UPDATE films SET error = NULL, state = 'sent' WHERE key = ?", (key,))
    expect(row).to_contain_text("answer sent")
    expect(page.get_by_text("sent to the PACS")).to_be_visible()
    expect(page.locator("#remarks")).to_be_hidden()


# -------------------------------------------------------------------------------------------------- bad weather


@pytest.mark.skipif(os.name != "posix", reason="the mode of a file is about POSIX")
def test_the_token_is_asked_for_once(
    serve: Serve, visit: Open, phantoms: dict[str | None, Prediction], tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    page = visit(serve("--token-file", tmp_path / "token").address, "401")
    dialog = page.get_by_role("dialog", name="This device asks for a token")
    expect(page.get_by_role("textbox", name="Token")).to_be_focused()
    page.keyboard.type("a wrong one")
    page.keyboard.press("Enter")
    expect(dialog.get_by_text("That was not the token of this device")).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_be_visible()
    page.get_by_role("textbox", name="Token").fill(TOKEN)
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(page.get_by_text("None yet.")).to_be_visible()
    hand_in(page, phantoms["NORMAL"].path)
    verdict(page, "The model says")
    expect(page.locator("#film")).to_have_js_property("complete", True)
    assert page.evaluate("document.getElementById('film').naturalWidth") > 0
    page.reload()
    verdict(page, "The model says")
    expect(dialog).to_be_hidden()


def test_a_busy_device_is_tried_again(serve: Serve, visit: Open, phantoms: dict[str | None, Prediction]) -> None:
    service = serve()
    page = visit(service.address, "429")
    host, port = service.address.removeprefix("http://").split(":")
    with ExitStack() as senders:
        for _ in range(16):
            half = senders.enter_context(socket.create_connection((host, int(port))))
            half.sendall(f"POST /v1/predict HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9\r\n\r\nhalf".encode())
        hand_in(page, phantoms["NORMAL"].path)
        expect(page.get_by_text("The device is busy. Trying again in 1 s")).to_be_visible()
    verdict(page, "The model says")


def test_a_device_that_goes_away_and_comes_back(
    serving: Callable[..., Any],
    serve_command: Callable[..., list[str | Path]],
    visit: Open,
    phantoms: dict[str | None, Prediction],
    tmp_path: Path,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    line = serve_command("--port", port, "--spool", tmp_path / "spool")
    with serving(line, tmp_path / "said") as service:
        page = visit(service.address, "ERR_CONNECTION_", "404")
        expect(page.get_by_text("None yet.")).to_be_visible()
    hand_in(page, phantoms["NORMAL"].path)
    expect(page.get_by_text("The film could not be sent", exact=True)).to_be_visible()
    expect(page.get_by_role("alert")).to_have_text("The device does not answer. This page tries again by itself.")
    with serving(line, tmp_path / "said"):
        expect(page.get_by_role("alert")).to_be_hidden()
        page.get_by_role("button", name="Try again").click()
        verdict(page, "The model says")
        key = page.url.split("#")[1]
        # A film that is gone by the time it is opened.
        (tmp_path / "spool" / "films" / key / PICTURE).unlink()
        page.reload()
        expect(page.get_by_text("The picture of this film is gone", exact=True)).to_be_visible()
        page.close()


# ------------------------------------------------------------------------------------- phones, paper, everybody


@pytest.mark.parametrize("width", [360, 768])
def test_a_phone_shows_it_all_without_scrolling_sideways(
    width: int, service: Any, visit: Open, phantoms: dict[str | None, Prediction]
) -> None:
    page = visit(service.address, touch=True, width=width)
    expect(page.get_by_text("Choose or photograph a chest X-ray")).to_be_visible()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Take a photo").tap()
    assert chooser.value.element.get_attribute("capture") == "environment"
    assert no_sideways_scroll(page)
    chooser.value.set_files(phantoms[None].path)
    verdict(page, "No verdict")
    assert no_sideways_scroll(page)
    hand_in(page, phantoms["PNEUMONIA"].path)
    verdict(page, "Pneumonia")
    assert no_sideways_scroll(page)
    expect(page.get_by_text(NOT_A_DIAGNOSIS)).to_be_in_viewport()
    # What a finger has to hit is large enough for it.
    sizes = page.evaluate("[...document.querySelectorAll('button')].map(b => b.offsetHeight).filter(Boolean)")
    assert min(sizes) >= 44
    page.locator("#films button").last.scroll_into_view_if_needed()
    expect(page.get_by_text(NOT_A_DIAGNOSIS)).to_be_in_viewport()
    page.locator("#films button").last.tap()
    # The film that was tapped comes into sight.
    expect(page.locator("#viewer")).to_be_in_viewport()


def test_it_prints_on_one_sheet(service: Any, visit: Open, phantoms: dict[str | None, Prediction]) -> None:
    page = visit(service.address)
    for label in (None, "PNEUMONIA"):
        hand_in(page, phantoms[label].path)
        verdict(page, "Pneumonia" if label else "No verdict")
        sheet = page.pdf(prefer_css_page_size=True)
        assert len(re.findall(rb"/Type\s*/Page\b(?!s)", sheet)) == 1
    page.emulate_media(media="print")
    for shown in (page.get_by_text(NOT_A_DIAGNOSIS), page.locator("#film"), page.locator("#paper-heatmap")):
        expect(shown).to_be_visible()
    for left_out in (page.get_by_role("button"), page.get_by_role("slider"), page.locator("#films")):
        expect(left_out.first).to_be_hidden()


CONTRAST = """() => {
  const parse = (colour) => (colour.match(/[\\d.]+/g) || []).map(Number);
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim(), node = walker.currentNode.parentElement;
    if (!text || !node.checkVisibility() || node.closest(".hidden")) continue;
    const style = getComputedStyle(node);
    const [a, b] = [light(parse(style.color).slice(0, 3)), light(ground(node))].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    found.push({text, ratio: (a + 0.05) / (b + 0.05), least: large ? 3 : 4.5});
  }
  return found;
}"""
"""Contrast of every text that is visible with the ground it stands on: WCAG 2.2, 1.4.3."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_it(
    scheme: str, service: Any, visit: Open, phantoms: dict[str | None, Prediction], tmp_path: Path
) -> None:
    (tmp_path / "letter.png").write_text("no picture")
    page = visit(service.address, "422", color_scheme=scheme)
    page.get_by_role("heading", name="About the model").wait_for()

    def look() -> None:
        found = page.evaluate(CONTRAST)
        assert len(found) > 10
        assert [each for each in found if each["ratio"] < each["least"]] == []

    look()
    for film, done in (
        (phantoms["PNEUMONIA"].path, "Pneumonia"),
        (phantoms[None].path, "No verdict"),
    ):
        hand_in(page, film)
        verdict(page, done)
        look()
    hand_in(page, tmp_path / "letter.png")
    expect(page.get_by_text("This film cannot be taken", exact=True)).to_be_visible()
    look()
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 300) is (scheme == "dark")


def test_structure_for_a_screen_reader(service: Any, visit: Open) -> None:
    page = visit(service.address)
    assert page.evaluate("document.documentElement.lang") == "en"
    expect(page.get_by_role("banner")).to_have_count(1)
    expect(page.get_by_role("main")).to_have_count(1)
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    expect(page.locator("#live")).to_have_attribute("role", "status")
    # Nothing can be pressed, moved or filled in that has no name.
    for role in ("button", "slider", "textbox", "link", "progressbar"):
        for each in page.get_by_role(role).all():
            expect(each).to_have_accessible_name(re.compile(r"\S"))
    assert page.evaluate("document.querySelectorAll('img:not([alt])').length") == 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(each => each.id)")
    assert len(ids) == len(set(ids))
    # No order of the keyboard but that of the page.
    assert page.evaluate("document.querySelectorAll('[tabindex]:not([tabindex=\"-1\"])').length") == 0
    assert NOT_A_DIAGNOSIS in page.locator("header").inner_text()


def test_no_animation_for_those_who_want_none(service: Any, visit: Open) -> None:
    moving = "getComputedStyle(document.getElementById('heatmap')).transitionDuration"
    assert visit(service.address, reduced_motion="reduce").evaluate(moving) == "0s"
    assert visit(service.address, reduced_motion="no-preference").evaluate(moving) != "0s"
