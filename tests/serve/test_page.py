"""The page of pneumo-serve in Chromium, as its users have it: by mouse, by keyboard, on a phone, on paper."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import socket
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from chromium import Visit, launched, need_chromium, verdict, violations, visits
from pneumo_edge import Classifier, Prediction
from pneumo_edge.bundle import DEFAULT_BUNDLE
from pneumo_edge.command_line import NOT_A_DIAGNOSIS
from pneumo_edge.serve.spool import PICTURE
from pneumo_edge.words import CATALOGUE, Words

need_chromium("fastapi")

from playwright.sync_api import Browser, Page, expect  # noqa: E402

from pneumo_train.phantom import draw_phantoms  # noqa: E402

Serve = Callable[..., Any]

TOKEN = "0123456789abcdef"  # noqa: S105 - of the tests


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
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def service(serving: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One service with the model that comes with pneumo, for all tests that do not ask for their own."""
    with serving(tmp_path_factory.mktemp("served") / "spool") as running:
        yield running


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    with visits(browser) as visit:
        yield visit


def hand_in(page: Page, film: str | Path | list[str | Path]) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name=re.compile("a film|Another film")).click()
    chooser.value.set_files(film)


def picture(page: Page) -> Image.Image:
    """The film as it is on the screen."""
    return Image.open(io.BytesIO(page.locator("#figure").screenshot(animations="disabled"))).convert("RGB")


def whole(page: Page) -> None:
    """Waits until the film itself has taken the place of the quick picture."""
    expect(page).to_have_url(re.compile("#[0-9a-f]{32}$"))
    key = page.url.partition("#")[2]
    expect(page.locator(f"#figure[data-whole='{key}']")).to_be_visible()


def no_sideways_scroll(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


# ------------------------------------------------------------------------------------------------------ verdicts


def test_a_phantom_gets_its_verdict(service: Any, visit: Visit, phantoms: dict[str | None, Prediction]) -> None:
    film = phantoms["PNEUMONIA"]
    page = visit(service.address)
    expect(page.get_by_text(NOT_A_DIAGNOSIS)).to_be_in_viewport()
    hand_in(page, film.path)
    verdict(page, "The model says Pneumonia")
    chance, cut = f"{film.probability:.1%}".replace("%", " %"), f"{film.threshold:.1%}".replace("%", " %")
    expect(page.locator("#live")).to_contain_text(
        f"The model says pneumonia. Probability of pneumonia {chance}, at a prevalence of "
    )
    whole(page)
    expect(page.locator("main")).to_match_aria_snapshot(f"""
      - region "Film":
        - figure "Film":
          - img /Film [0-9a-f]{{8}}/
        - slider "Brightness": "0"
        - slider "Contrast": "0"
        - slider "Heatmap over the film": "0"
        - paragraph: "Local probability: 0 % 100 %"
        - group "Film":
          - button "Zoom out" [disabled]
          - button "Zoom in"
          - button "Fit the film" [disabled]
          - button "Dragging changes brightness and contrast"
          - button "Invert black and white"
          - button "Outline" [pressed]
          - button "Reset the view"
          - button "Full screen"
        - button "Another film"
      - region "The model says Pneumonia":
        - heading "The model says Pneumonia" [level=2]
        - paragraph:
          - strong: {chance}
          - text: /probability of pneumonia, at a prevalence of [0-9.]+ %/
        - img /the probability of pneumonia is {chance}; the operating point balanced lies at {cut}/
        - term: Name
        - definition: {Path(film.path).name}
        - term: Film
        - term: Received
        - definition: /by upload/
        - term: Picture
        - definition: /[0-9]+ × [0-9]+ pixels, 8 bits/
        - term: Region
        - definition: /[0-9.]+ % of the film stands out; strongest local probability [0-9]+ %/
        - term: Model
        - definition: {film.model}
        - term: File
        - definition: {film.file}
        - paragraph:
          - button "Print"
          - button "Judge again"
          - button "Delete"
      - region "Films":
        - list:
          - listitem:
            - button /Pneumonia [0-9.]+ % .* upload/
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


def test_normal_and_withheld(service: Any, visit: Visit, phantoms: dict[str | None, Prediction]) -> None:
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
    expect(page.get_by_role("slider", name="Heatmap")).to_be_hidden()
    page.emulate_media(media="print")
    expect(page.locator("#paper-film")).to_be_visible()
    expect(page.locator("#paper-marks")).to_be_hidden()
    expect(page.locator("#live")).to_contain_text("No verdict. It is withheld because the picture is unlike")


def test_the_slider_lays_the_heatmap_over_the_film(
    service: Any, visit: Visit, phantoms: dict[str | None, Prediction]
) -> None:
    page = visit(service.address, reduced_motion="reduce")
    hand_in(page, phantoms["PNEUMONIA"].path)
    verdict(page, "The model says Pneumonia")
    whole(page)
    # The outline has a colour of its own.
    page.get_by_role("button", name="Outline").click()
    slider = page.get_by_role("slider", name="Heatmap over the film")
    shown = {}
    for value, words in (("0", "film alone"), ("50", "50 % heatmap"), ("100", "100 % heatmap")):
        slider.fill(value)
        expect(slider).to_have_attribute("aria-valuetext", words)
        # It is drawn at the next frame.
        page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        shown[value] = picture(page)
    # The film alone is grey; the more heatmap, the farther from it.
    colour = {value: np.asarray(image, dtype=int) for value, image in shown.items()}
    most = {value: int(np.abs(rgb[:, :, 0] - rgb[:, :, 2]).max()) for value, rgb in colour.items()}
    # The ground is not quite grey.
    assert most["0"] <= 4
    assert most["0"] + 10 < most["50"] < most["100"]
    # The legend fades with the film, and no colour is on the film that is not on the legend; white is the line's.
    expect(page.locator("#ramp")).to_have_css("opacity", "1")
    slider.fill("50")
    expect(page.locator("#ramp")).to_have_css("opacity", "0.5")
    key = page.url.partition("#")[2]
    colours = []
    for name in (f"v1/films/{key}/heatmap.png", "legend.png"):
        with urllib.request.urlopen(f"{service.address}/{name}") as answer:  # noqa: S310
            layer = np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGBA"))
        colours.append({tuple(colour) for colour in np.unique(layer.reshape(-1, 4), axis=0).tolist()})
    on_the_film, on_the_legend = colours
    assert len(on_the_film) > 50
    assert on_the_film - on_the_legend <= {(255, 255, 255, 255)}


def test_a_region_is_outlined_and_told(serve: Serve, visit: Visit, local_bundle: Path, tmp_path: Path) -> None:
    page = visit(serve("--model", local_bundle).address, reduced_motion="reduce")
    light = np.full((200, 400), 30, np.uint8)
    light[:, 200:] = 220
    Image.fromarray(light).save(tmp_path / "ill.png")
    # Stripes, so that it is not blank; no quarter of it is light enough.
    stripes = np.where(np.arange(400) // 50 % 2, 140, 108).astype(np.uint8)
    Image.fromarray(np.tile(stripes, (200, 1))).save(tmp_path / "spread.png")
    hand_in(page, tmp_path / "ill.png")
    verdict(page, "The model says Pneumonia")
    whole(page)
    expect(page.locator("#facts")).to_contain_text(
        re.compile(r"% of the film stands out; strongest local probability \d+ %")
    )
    # The line is there at once, the colours wait to be asked for.
    expect(page.locator("#mix")).to_have_value("0")
    expect(page.get_by_text("Local probability: 0 % 100 %")).to_be_visible()

    def coloured(beyond: int = 60) -> float:
        page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        shown = np.asarray(picture(page), dtype=int)
        return float((np.abs(shown[:, :, 0] - shown[:, :, 2]) > beyond).mean())

    line = coloured()
    assert 0.001 < line < 0.05
    outline = page.get_by_role("button", name="Outline")
    expect(outline).to_have_attribute("aria-pressed", "true")
    outline.click()
    assert coloured() == 0
    outline.click()
    assert coloured() == line
    page.locator("#mix").fill("100")
    # The colours are faint, so that the film is seen through them.
    assert coloured(15) > 4 * line
    hand_in(page, tmp_path / "spread.png")
    expect(page.locator("#facts")).to_contain_text("no region stands out")
    expect(outline).to_be_hidden()


# ------------------------------------------------------------------------------------------------ ways to hand in


def test_by_keyboard_alone(service: Any, visit: Visit, phantoms: dict[str | None, Prediction]) -> None:
    page = visit(service.address)
    page.get_by_role("heading", name="About the model").wait_for()

    def tab_to(selector: str) -> None:
        for _ in range(120):
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
    page.keyboard.press("ArrowRight")
    expect(page.locator("#mix")).to_have_value("5")
    page.keyboard.press("End")
    expect(page.locator("#mix")).to_have_value("100")
    tab_to("#figure")
    page.keyboard.press("+")
    expect(page.get_by_role("button", name="Zoom out")).to_be_enabled()
    page.keyboard.press("Shift+ArrowUp")
    expect(page.locator("#brightness")).to_have_value("5")
    page.keyboard.press("i")
    expect(page.locator("#invert")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("r")
    expect(page.locator("#brightness")).to_have_value("0")
    tab_to("#zoom-in")
    page.keyboard.press("Enter")
    tab_to("#zoom-fit")
    page.keyboard.press("Enter")
    expect(page.locator("#zoom-fit")).to_be_disabled()
    tab_to("#print")
    tab_to("#films button:not([aria-current])")
    page.keyboard.press("Enter")
    verdict(page, "The model says Normal")
    expect(page.locator("#verdict")).to_be_focused()


def test_drop_and_paste(service: Any, visit: Visit, phantoms: dict[str | None, Prediction]) -> None:
    page = visit(service.address)
    page.get_by_role("heading", name="About the model").wait_for()
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
    service: Any, visit: Visit, phantoms: dict[str | None, Prediction], tmp_path: Path
) -> None:
    (tmp_path / "letter.png").write_text("no picture")
    page = visit(service.address, "422")
    page.get_by_role("heading", name="About the model").wait_for()
    before = page.locator("#films li").count()
    hand_in(page, [phantoms["NORMAL"].path, phantoms["PNEUMONIA"].path, tmp_path / "letter.png", phantoms[None].path])
    expect(page.locator("#films li")).to_have_count(before + 3)
    expect(page.locator("#batch")).to_have_text("letter.png is no film: use PNG, JPEG or DICOM.")
    # The first is the one that is opened.
    verdict(page, "The model says Normal")
    expect(page.locator("#films li").first).to_contain_text("No verdict")


def test_what_is_no_film_is_said_to_be_none(
    service: Any, visit: Visit, phantoms: dict[str | None, Prediction], tmp_path: Path
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
    expect(page.get_by_role("slider").first).to_be_hidden()


def test_films_that_come_meanwhile_are_listed(
    service: Any, visit: Visit, phantoms: dict[str | None, Prediction]
) -> None:
    page = visit(service.address)
    hand_in(page, phantoms["NORMAL"].path)
    verdict(page, "The model says Normal")
    expect(page.locator("#films li").first).to_have_attribute("data-key", page.url.partition("#")[2])
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
    with closing(sqlite3.connect(service.spool / "journal.db", isolation_level=None)) as journal:
        journal.execute(
            "INSERT INTO sendings SELECT id, 'PACS@localhost:104', 'sr', 'waiting', 1, 'the PACS does not answer'"
            " FROM films WHERE key = ?",
            (key,),
        )
        expect(row).to_contain_text("answer not sent")
        expect(page.locator("#remarks")).to_have_text("The answer has not been sent: the PACS does not answer.")
        page.get_by_label("Language").select_option("es")
        expect(row).to_contain_text("respuesta no enviada")
        expect(page.locator("#remarks")).to_have_text("La respuesta no se ha enviado: el PACS no responde.")
        page.get_by_label("Idioma").select_option("en")
        journal.execute("UPDATE sendings SET error = NULL, state = 'sent'")
        journal.execute("UPDATE films SET state = 'sent' WHERE key = ?", (key,))
    expect(row).to_contain_text("answer sent")
    expect(page.get_by_text("sent to the PACS")).to_be_visible()
    expect(page.locator("#remarks")).to_be_hidden()


# -------------------------------------------------------------------------------------------------- bad weather


@pytest.mark.skipif(os.name != "posix", reason="the mode of a file is about POSIX")
def test_the_token_is_asked_for_once(
    serve: Serve, visit: Visit, phantoms: dict[str | None, Prediction], tmp_path: Path
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
    whole(page)
    page.reload()
    verdict(page, "The model says")
    expect(dialog).to_be_hidden()


def test_a_busy_device_is_tried_again(serve: Serve, visit: Visit, phantoms: dict[str | None, Prediction]) -> None:
    service = serve()
    page = visit(service.address, "429")
    host, port = service.address.removeprefix("http://").split(":")
    with ExitStack() as senders:
        for _ in range(16):
            half = senders.enter_context(socket.create_connection((host, int(port))))
            half.sendall(f"POST /v1/predict HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9\r\n\r\nhalf".encode())
        # Once it has read the beginnings of them all, it says so to anybody.
        status = 0
        while status != 429:
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{service.address}/v1/predict", b"no film")  # noqa: S310
            status = refused.value.code
            refused.value.close()
        hand_in(page, phantoms["NORMAL"].path)
        expect(page.get_by_text("The device is busy. Trying again in 1 s")).to_be_visible()
    verdict(page, "The model says")


def test_a_device_that_goes_away_and_comes_back(
    serve: Serve, visit: Visit, phantoms: dict[str | None, Prediction]
) -> None:
    service = serve()
    page = visit(service.address, "ERR_CONNECTION_", "404")
    expect(page.get_by_text("None yet.")).to_be_visible()
    assert service.stop() == 0
    hand_in(page, phantoms["NORMAL"].path)
    expect(page.get_by_text("The film could not be sent", exact=True)).to_be_visible()
    expect(page.get_by_role("alert")).to_have_text("The device does not answer. This page tries again by itself.")
    service.start()
    expect(page.get_by_role("alert")).to_be_hidden()
    page.get_by_role("button", name="Try again").click()
    verdict(page, "The model says")
    key = page.url.split("#")[1]
    # A film that is gone by the time it is opened.
    whole(page)
    (service.spool / "films" / key / PICTURE).unlink()
    page.reload()
    expect(page.get_by_text("The picture of this film is gone", exact=True)).to_be_visible()
    page.close()


# ------------------------------------------------------------------------------------- phones, paper, everybody


@pytest.mark.parametrize("width", [360, 768])
def test_a_phone_shows_it_all_without_scrolling_sideways(
    width: int, service: Any, visit: Visit, phantoms: dict[str | None, Prediction]
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


def test_it_prints_on_one_sheet(service: Any, visit: Visit, phantoms: dict[str | None, Prediction]) -> None:
    page = visit(service.address)
    for label in (None, "PNEUMONIA"):
        hand_in(page, phantoms[label].path)
        verdict(page, "Pneumonia" if label else "No verdict")
        sheet = page.pdf(prefer_css_page_size=True)
        assert len(re.findall(rb"/Type\s*/Page\b(?!s)", sheet)) == 1
    page.emulate_media(media="print")
    for shown in (page.get_by_text(NOT_A_DIAGNOSIS), page.locator("#paper-film"), page.locator("#paper-marks")):
        expect(shown).to_be_visible()
    for left_out in (page.get_by_role("button"), page.get_by_role("slider"), page.locator("#films, #figure, select")):
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
    scheme: str, service: Any, visit: Visit, phantoms: dict[str | None, Prediction], tmp_path: Path
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


def test_structure_for_a_screen_reader(service: Any, visit: Visit) -> None:
    page = visit(service.address)
    assert page.evaluate("document.documentElement.lang") == "en"
    expect(page.get_by_role("banner")).to_have_count(1)
    expect(page.get_by_role("main")).to_have_count(1)
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    expect(page.locator("#live")).to_have_attribute("role", "status")
    # Nothing can be pressed, moved or filled in that has no name.
    for role in ("button", "slider", "textbox", "searchbox", "combobox", "link", "progressbar"):
        for each in page.get_by_role(role).all():
            expect(each).to_have_accessible_name(re.compile(r"\S"))
    assert page.evaluate("document.querySelectorAll('img:not([alt])').length") == 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(each => each.id)")
    assert len(ids) == len(set(ids))
    # No order of the keyboard but that of the page.
    assert page.evaluate("[...document.querySelectorAll('[tabindex]')].every(each => each.tabIndex <= 0)")
    assert NOT_A_DIAGNOSIS in page.locator("header").inner_text()


def test_no_animation_for_those_who_want_none(service: Any, visit: Visit) -> None:
    moving = "getComputedStyle(document.querySelector('.pin')).transitionDuration"
    assert visit(service.address, reduced_motion="reduce").evaluate(moving) == "0s"
    assert visit(service.address, reduced_motion="no-preference").evaluate(moving) != "0s"


# --------------------------------------------------------------------------------------------- looking at a film

SHADES = """([left, top, width, height]) => {
  const canvas = document.getElementById("film");
  const copy = new OffscreenCanvas(width, height).getContext("2d", {willReadFrequently: true});
  copy.drawImage(canvas, -left, -top);
  const red = copy.getImageData(0, 0, width, height).data.filter((_, i) => i % 4 === 0);
  let text = "";
  for (let i = 0; i < red.length; i += 30000) text += String.fromCharCode(...red.subarray(i, i + 30000));
  return btoa(text);
}"""
"""What stands in a part of the canvas, its red alone."""


def shades(page: Page, part: tuple[int, int, int, int] | None = None) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The grey levels of a part (left, top, width, height) of the film on the screen, in pixels of the canvas."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    width, height = page.evaluate("[document.getElementById('film').width, document.getElementById('film').height]")
    part = part or (0, 0, width, height)
    red = np.frombuffer(base64.b64decode(page.evaluate(SHADES, part)), np.uint8)
    return red.reshape(part[3], part[2]).astype(np.int64)


def deep_film(path: Path, height: int = 1500, width: int = 1200) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Writes a film of 12 bits as a 16-bit PNG: with lines one pixel wide and a step of 6 levels."""
    y, x = np.mgrid[0:height, 0:width]
    values = 1200 + 900 * np.sin(np.pi * x / width) * np.sin(np.pi * y / height)
    values[:, width // 2 - 40 : width // 2 + 40 : 2] = 0
    values[200:300, 200:300] = 2048
    values[225:275, 225:275] = 2054
    # From end to end, so that this is the window.
    values[: height // 15] = np.linspace(0, 4095, width)
    pixels = np.rint(values).astype(np.uint16)
    Image.fromarray(pixels).save(path)
    return np.asarray(pixels)


def test_the_film_is_shown_at_its_own_resolution_and_depth(service: Any, visit: Visit, tmp_path: Path) -> None:
    pixels = deep_film(tmp_path / "deep.png")
    page = visit(service.address)
    hand_in(page, tmp_path / "deep.png")
    verdict(page, "The model says")
    whole(page)
    expect(page.get_by_text("1200 × 1500 pixels, 12 bits")).to_be_visible()
    # At first all of it, lines of one pixel melted into grey; enlarged there are black and light columns.
    middle = shades(page).shape[0] // 2
    across = shades(page).shape[1] // 2
    assert np.ptp(shades(page, (across - 5, middle - 5, 10, 10))) < 90
    zoom_in = page.get_by_role("button", name="Zoom in")
    for _ in range(12):
        zoom_in.click()
    columns = shades(page, (across - 60, middle - 5, 120, 10))
    assert columns.min() < 10
    assert columns.max() > 100
    # 6 of 4,096 levels are less than one of 256: nothing is seen of that step before the window is made narrow.
    page.get_by_role("button", name="Reset the view").click()
    scale = shades(page).shape[0] / pixels.shape[0]
    left = across + (250 - pixels.shape[1] / 2) * scale

    def step() -> int:
        inside = shades(page, (round(left), round(250 * scale), 1, 1))
        outside = shades(page, (round(left), round(212 * scale), 1, 1))
        return int(inside[0, 0] - outside[0, 0])

    assert step() == 0
    page.locator("#contrast").fill("100")
    assert step() >= 1
    narrow = shades(page)
    page.get_by_role("button", name="Invert black and white").click()
    turned = shades(page)
    # All but the ground around the film, and its corners which are black and white already.
    film = slice(round(across - 550 * scale), round(across + 550 * scale))
    assert np.abs(turned[:, film] - (255 - narrow[:, film])).max() <= 1


def test_the_window_moves_by_dragging_and_by_sliders(service: Any, visit: Visit, tmp_path: Path) -> None:
    deep_film(tmp_path / "deep.png")
    page = visit(service.address)
    hand_in(page, tmp_path / "deep.png")
    verdict(page, "The model says")
    whole(page)
    at_first = shades(page)
    page.locator("#brightness").fill("20")
    lighter = shades(page)
    assert lighter.mean() > at_first.mean() + 15
    page.get_by_role("button", name="Reset the view").click()
    assert np.array_equal(shades(page), at_first)
    box = page.locator("#figure").bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def drag(dx: int, dy: int, button: Literal["left", "right"] = "left") -> None:
        page.mouse.move(x, y)
        page.mouse.down(button=button)
        page.mouse.move(x + dx, y + dy, steps=4)
        page.mouse.up(button=button)

    # Without anything to be moved the left button does nothing, and the right one changes the window.
    drag(60, -60)
    assert np.array_equal(shades(page), at_first)
    drag(60, -60, "right")
    expect(page.locator("#brightness")).to_have_value("20")
    expect(page.locator("#contrast")).to_have_value("20")
    page.get_by_role("button", name="Reset the view").click()
    toggle = page.get_by_role("button", name="Dragging changes brightness and contrast")
    toggle.click()
    expect(toggle).to_have_attribute("aria-pressed", "true")
    drag(-30, 30)
    expect(page.locator("#brightness")).to_have_value("-10")
    expect(page.locator("#contrast")).to_have_value("-10")


def test_zoom_and_pan_by_mouse(service: Any, visit: Visit, tmp_path: Path) -> None:
    deep_film(tmp_path / "deep.png")
    page = visit(service.address)
    hand_in(page, tmp_path / "deep.png")
    verdict(page, "The model says")
    whole(page)
    at_first = shades(page)
    box = page.locator("#figure").bounding_box()
    assert box
    x, y = box["x"] + box["width"] * 0.55, box["y"] + box["height"] * 0.4
    page.mouse.move(x, y)
    before = shades(page, (round(box["width"] * 0.55), round(box["height"] * 0.4), 1, 1))
    page.mouse.wheel(0, -800)
    expect(page.get_by_role("button", name="Zoom out")).to_be_enabled()
    zoomed = shades(page)
    assert not np.array_equal(zoomed, at_first)
    # What lay under the mouse stays there.
    after = shades(page, (round(box["width"] * 0.55), round(box["height"] * 0.4), 1, 1))
    assert abs(int(before[0, 0]) - int(after[0, 0])) <= 12
    page.mouse.down()
    page.mouse.move(x + 50, y + 30, steps=3)
    page.mouse.up()
    # All of it by the same way.
    assert np.array_equal(shades(page)[40:, 60:], zoomed[10:-30, 10:-50])
    page.get_by_role("button", name="Fit the film").click()
    assert np.array_equal(shades(page), at_first)
    assert page.evaluate("scrollY") == 0


def test_two_fingers_zoom(service: Any, visit: Visit, phantoms: dict[str | None, Prediction]) -> None:
    page = visit(service.address, touch=True, width=390)
    hand_in(page, phantoms["NORMAL"].path)
    verdict(page, "The model says")
    whole(page)
    box = page.locator("#figure").bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch = page.context.new_cdp_session(page)

    def fingers(kind: str, *apart: int) -> None:
        points = [{"x": x + way * each, "y": y, "id": way} for each in apart for way in (-1, 1)]
        points = [point | {"id": i} for i, point in enumerate(points)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    fingers("touchStart", 30)
    for apart in (40, 60, 90):
        fingers("touchMove", apart)
    fingers("touchEnd")
    expect(page.locator("#zoom-out")).to_be_enabled()
    # It is the film that has grown, and not the page.
    assert page.evaluate("visualViewport.scale") == 1
    assert no_sideways_scroll(page)


def test_it_fills_the_screen(service: Any, visit: Visit, phantoms: dict[str | None, Prediction]) -> None:
    page = visit(service.address)
    hand_in(page, phantoms["NORMAL"].path)
    verdict(page, "The model says")
    page.get_by_role("button", name="Full screen").click()
    expect(page.locator("#viewer:fullscreen")).to_be_visible()
    page.locator("#figure").focus()
    page.keyboard.press("f")
    expect(page.locator("#viewer:fullscreen")).to_have_count(0)


# ------------------------------------------------------------------------------------------------------ the list


def test_names_of_files_stay_in_the_tab(
    serve: Serve, visit: Visit, phantoms: dict[str | None, Prediction], tmp_path: Path
) -> None:
    service = serve("--model", DEFAULT_BUNDLE)
    named = {
        label: tmp_path / f"{name}.jpeg" for label, name in (("NORMAL", "MUELLER^ANNA"), ("PNEUMONIA", "NGO^MINH"))
    }
    page = visit(service.address)
    sent: list[bytes] = []
    page.on(
        "request", lambda request: sent.append(repr((request.url, request.headers, request.post_data_buffer)).encode())
    )
    for label, path in named.items():
        shutil.copyfile(phantoms[label].path, path)
        hand_in(page, path)
        verdict(page, f"The model says {label.capitalize()}")
    expect(page.locator("#films li")).to_have_count(2)
    expect(page.locator("#films li").first).to_contain_text("NGO^MINH.jpeg")
    expect(page.locator("#facts")).to_contain_text("NGO^MINH.jpeg")
    page.reload()
    expect(page.locator("#films li").last).to_contain_text("MUELLER^ANNA.jpeg")
    page.get_by_role("searchbox", name="Search the films").fill("anna")
    expect(page.locator("#films li")).to_have_count(1)
    expect(page.locator("#films li")).to_contain_text("MUELLER^ANNA.jpeg")
    page.get_by_role("searchbox", name="Search the films").fill("nobody")
    expect(page.get_by_text("No film matches.")).to_be_visible()
    assert not [each for each in sent if b"MUELLER" in each.upper() or b"NGO^MINH" in each.upper()]
    # Another tab has not heard of them.
    other = visit(service.address)
    expect(other.locator("#films li")).to_have_count(2)
    assert "MUELLER" not in other.content()
    spool = service.spool
    assert not [path for path in spool.rglob("*") if path.is_file() and b"MUELLER" in path.read_bytes()]
    assert "MUELLER" not in service.log


def test_the_list_is_sorted_filtered_and_turned(
    serve: Serve, visit: Visit, phantoms: dict[str | None, Prediction]
) -> None:
    service = serve("--model", DEFAULT_BUNDLE)
    for label in ("NORMAL", "PNEUMONIA", None):
        data = Path(phantoms[label].path).read_bytes()
        urllib.request.urlopen(urllib.request.Request(f"{service.address}/v1/films", data)).close()  # noqa: S310
    page = visit(service.address)
    expect(page.locator("#films li")).to_have_count(3)
    expect(page.locator("#films")).not_to_contain_text("Waiting")

    order, show = page.get_by_label("Order"), page.get_by_label("Show")
    expect(page.locator("#films .what").first).to_have_text("No verdict")
    order.select_option(label="Oldest first")
    expect(page.locator("#films .what").first).to_contain_text("Normal")
    order.select_option(label="Most likely pneumonia first")
    expect(page.locator("#films .what").first).to_contain_text("Pneumonia")
    order.select_option(label="Least likely pneumonia first")
    expect(page.locator("#films .what").first).to_contain_text("Normal")
    for choice, word in (("Pneumonia", "Pneumonia"), ("Normal", "Normal"), ("No verdict", "No verdict")):
        show.select_option(label=choice)
        expect(page.locator("#films li")).to_have_count(1)
        expect(page.locator("#films .what")).to_contain_text(word)
    show.select_option(label="Failed")
    expect(page.get_by_text("No film matches.")).to_be_visible()
    show.select_option(label="All films")
    expect(page.locator("#films li")).to_have_count(3)
    expect(page.get_by_role("button", name="Next")).to_be_hidden()
    # More than a page of them: rows as the journal has them, without their films.
    with closing(sqlite3.connect(service.spool / "journal.db", isolation_level=None)) as journal:
        columns = [row[1] for row in journal.execute("PRAGMA table_info(films)")]
        copied = ", ".join(column for column in columns if column not in ("id", "key"))
        for i in range(60):
            journal.execute(f"INSERT INTO films (key, {copied}) SELECT ?, {copied} FROM films LIMIT 1", (f"{i:032x}",))  # noqa: S608
    order.select_option(label="Newest first")
    expect(page.get_by_text("1 to 50 of 63")).to_be_visible()
    page.get_by_role("button", name="Next").click()
    expect(page.get_by_text("51 to 63 of 63")).to_be_visible()
    expect(page.locator("#films li")).to_have_count(13)
    page.get_by_role("button", name="Previous").click()
    expect(page.get_by_text("1 to 50 of 63")).to_be_visible()


def test_a_film_is_judged_again_and_deleted(serve: Serve, visit: Visit, phantoms: dict[str | None, Prediction]) -> None:
    service = serve("--model", DEFAULT_BUNDLE)
    page = visit(service.address)
    hand_in(page, phantoms["NORMAL"].path)
    verdict(page, "The model says Normal")
    key = page.url.partition("#")[2]
    # It came by upload: there is no answer to be sent.
    expect(page.get_by_role("button", name="Send again")).to_be_hidden()
    page.get_by_role("button", name="Judge again").click()
    dialog = page.get_by_role("dialog", name="Judge this film again?")
    with page.expect_response(lambda response: response.url.endswith(f"{key}/rejudge")) as answer:
        dialog.get_by_role("button", name="Judge again").click()
    assert answer.value.status == 202
    verdict(page, "The model says Normal")
    page.get_by_role("button", name="Delete").click()
    dialog = page.get_by_role("dialog", name="Delete this film?")
    dialog.get_by_role("button", name="Cancel").click()
    verdict(page, "The model says Normal")
    page.get_by_role("button", name="Delete").click()
    page.keyboard.press("Escape")
    verdict(page, "The model says Normal")
    page.get_by_role("button", name="Delete").click()
    dialog.get_by_role("button", name="Delete").click()
    expect(page.get_by_text("Drop a chest X-ray here")).to_be_visible()
    expect(page.locator("#live")).to_have_text("The film is deleted.")
    expect(page.get_by_role("button", name="Choose a film")).to_be_focused()
    expect(page.get_by_text("None yet.")).to_be_visible()
    assert not (service.spool / "films" / key).exists()


def test_whose_film_it_is_where_the_clinic_wants_that(serve: Serve, visit: Visit, nobody: int, tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")
    pixels = (deep_film(tmp_path / "deep.png", 300, 240) // 16).astype(np.uint8)
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = pydicom.uid.ComputedRadiographyImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = pydicom.uid.UID("2.25.1")
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "2.25.2", "2.25.3"
    ds.PatientName, ds.PatientID, ds.AccessionNumber = "Secret^Name", "ID-4711", "ACC-0815"
    ds.Modality, ds.SamplesPerPixel, ds.PhotometricInterpretation = "CR", 1, "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OB"
    film = io.BytesIO()
    ds.save_as(film, enforce_file_format=True)
    to = f"PACS@127.0.0.1:{nobody}"
    service = serve("--send-to", to, "--show", "accession,patient-id", dicom=True)
    request = urllib.request.Request(  # noqa: S310
        f"{service.address}/dicom-web/studies", film.getvalue(), {"Content-Type": "application/dicom"}
    )
    urllib.request.urlopen(request).close()  # noqa: S310
    page = visit(service.address)
    page.locator("#films button").first.click()
    expect(page.locator("#facts")).to_contain_text("ACC-0815")
    expect(page.locator("#facts")).to_contain_text("ID-4711")
    expect(page.locator("#films li").first).to_contain_text("ACC-0815, ID-4711")
    assert "Secret" not in page.content()
    page.get_by_role("searchbox", name="Search the films").fill("0815")
    expect(page.locator("#films li")).to_have_count(1)
    page.emulate_media(media="print")
    expect(page.get_by_text("ACC-0815").first).to_be_visible()
    page.emulate_media(media="screen")
    # There is no PACS there: the answer has not been sent, and may be sent again.
    expect(page.locator("#remarks")).to_contain_text("The answer has not been sent")
    page.get_by_role("button", name="Send again").click()
    dialog = page.get_by_role("dialog", name="Send the answer again?")
    with page.expect_response(lambda response: response.url.endswith("/resend")) as answer:
        dialog.get_by_role("button", name="Send again").click()
    assert answer.value.status == 202


# ----------------------------------------------------------------------------------------------------- languages

LANGUAGES = {"en-US": "en", "es-MX": "es", "fr-FR": "fr", "pt-BR": "pt"}


@pytest.mark.parametrize(("locale", "language"), LANGUAGES.items())
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_language_and_axe(
    scheme: str,
    locale: str,
    language: str,
    service: Any,
    visit: Visit,
    phantoms: dict[str | None, Prediction],
    tmp_path: Path,
) -> None:
    words = Words(language)
    page = visit(service.address, "422", locale=locale, color_scheme=scheme)
    expect(page.get_by_role("heading", name=words("about"))).to_be_visible()
    assert page.evaluate("document.documentElement.lang") == language
    expect(page.get_by_text(words("note"))).to_be_in_viewport()
    expect(page.locator("#model")).to_contain_text(words("sensitivity.means"))
    expect(page.locator("#model")).to_contain_text(words("balanced.means"))
    assert violations(page) == []
    for film, word in (("PNEUMONIA", "PNEUMONIA"), (None, "withheld")):
        page.locator("#file").set_input_files(phantoms[film].path)
        expect(page.get_by_role("heading", name=f"{words('says')} {words(word)}")).to_be_visible()
        whole(page)
        if film:
            expect(page.locator("#share")).to_have_text(words.percent(phantoms[film].probability))
        else:
            said = [text.rstrip(".").lower() for text in page.locator("#remarks li").all_inner_texts()]
            assert said == [words.sentence(each).lower() for each in phantoms[film].warnings]
        assert violations(page) == []
    page.get_by_role("button", name=words("delete")).click()
    expect(page.get_by_role("dialog", name=words("delete.ask"))).to_be_visible()
    assert violations(page) == []
    page.get_by_role("button", name=words("cancel")).click()
    (tmp_path / "letter.png").write_text("no picture")
    page.locator("#file").set_input_files(tmp_path / "letter.png")
    refused = words.sentence("letter.png is no film: use PNG, JPEG or DICOM")
    expect(page.locator("#broken-why")).to_have_text(f"{refused}.")
    assert violations(page) == []
    # Nothing has been left empty, and nothing in its place's stead.
    assert page.evaluate("[...document.querySelectorAll('[data-word]')].filter(each => !each.textContent).length") == 0
    assert re.findall(r"\{\w+\}", page.locator("body").inner_text()) == []


def test_the_language_is_chosen_and_kept(service: Any, visit: Visit, phantoms: dict[str | None, Prediction]) -> None:
    page = visit(service.address, locale="de-DE")
    hand_in(page, phantoms["NORMAL"].path)
    verdict(page, "The model says Normal")
    page.get_by_label("Language").select_option(label="Français")
    verdict(page, "Le modèle dit Normal")
    expect(page.get_by_role("button", name="Imprimer")).to_be_visible()
    expect(page.locator("#films li").first).to_contain_text("page")
    expect(page).to_have_title(re.compile("^Normal, radiographie [0-9a-f]{8}, pneumo$"))
    page.reload()
    verdict(page, "Le modèle dit Normal")
    page.get_by_label("Langue").select_option(label="Português")
    verdict(page, "O modelo diz Normal")


def test_the_page_translates_as_the_runtime_does(service: Any, visit: Visit) -> None:
    page = visit(service.address)
    catalogue = json.loads(CATALOGUE.read_text(encoding="utf-8"))
    samples = [re.sub(r"\{\w+\}", "a lateral view", each["en"]) for each in catalogue["sentences"]]
    samples += [
        "",
        "nothing known",
        "film 0123abcd is damaged and cannot be read (x {y} $&): copy it again from where it came",
    ]
    for language in LANGUAGES.values():
        page.get_by_label(re.compile("Language|Idioma|Langue")).select_option(language)
        found = page.evaluate(
            "async (texts) => { const words = await import('./words.js'); return texts.map(words.translated); }",
            samples,
        )
        assert found == [Words(language).sentence(text) for text in samples]
