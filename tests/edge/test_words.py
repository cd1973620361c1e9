"""The catalogue of words: whole in every language, and with a translation for all that the runtime says to people."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFont

from places import ROOT
from pneumo_edge import Prediction, overlay
from pneumo_edge.command_line import NOT_A_DIAGNOSIS
from pneumo_edge.errors import UsageError
from pneumo_edge.words import CATALOGUE, Words

EDGE = CATALOGUE.parent
WORDS: dict[str, Any] = json.loads(CATALOGUE.read_text(encoding="utf-8"))
LANGUAGES = list(WORDS["languages"])

NOT_FOR_A_FILM = {
    "UsageError",
    "PneumoError",
    "BundleError",
    "ValueError",
    "TypeVar",
    "getattr",
    "compile",
    "fullmatch",
    "frozenset",
    "IndexError",
}
"""What such a call is given is said at a terminal, or to nobody."""

FOR_PROGRAMS = ("the sender has gone", "the form ", "the request cannot be read")
"""What begins so is about forms and DICOMweb, which the page does not send."""

SPOKEN_IN_SERVE = {"HTTPException", "Failure", "LaterError", "NeverError", "Ruling"}
"""Of pneumo-serve: what these are given reaches the page."""


def places(text: str) -> list[str]:
    return sorted(re.findall(r"\{(\w+)\}", text))


def test_four_languages() -> None:
    assert LANGUAGES == ["en", "es", "fr", "pt"]


def test_every_entry_is_whole() -> None:
    for entry in [*WORDS["words"].values(), *WORDS["sentences"]]:
        assert list(entry) == LANGUAGES, entry
        assert all(text and text == text.strip() for text in entry.values()), entry
        # A place that is lost in a translation loses a number or a name.
        assert len({tuple(places(text)) for text in entry.values()}) == 1, entry


def test_nothing_stands_twice() -> None:
    shapes = [re.sub(r"\{\w+\}", "{}", each["en"]) for each in WORDS["sentences"]]
    assert len(shapes) == len(set(shapes))


def test_the_note_is_the_one_of_the_command_line() -> None:
    assert Words()("note") == NOT_A_DIAGNOSIS


def test_the_font_has_every_letter() -> None:
    font = ImageFont.truetype(EDGE / "letters.ttf", 20)

    def drawn(letter: str) -> tuple[Any, bytes]:
        mask = font.getmask(letter)
        return mask.size, bytes(np.asarray(mask, dtype=np.uint8))

    missing = drawn("\uffff")
    letters = {
        letter for entry in [*WORDS["words"].values(), *WORDS["sentences"]] for letter in "".join(entry.values())
    }
    assert [letter for letter in sorted(letters) if drawn(letter) == missing] == []


def sample(node: ast.expr) -> str | None:
    """What a string of the source may become; None where it is no string of its own."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "7" for part in node.values)  # type: ignore[misc]
    return None


def strings(tree: ast.AST, around: str = "") -> Iterator[tuple[str, str]]:
    """Every string below a node with the name of the call that it is given to; no docstrings, nothing compared."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.Compare) or (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)):
            continue
        text = sample(child) if isinstance(child, ast.expr) else None
        if text is not None:
            yield text, around
            continue
        name = around
        if isinstance(child, ast.Call):
            name = getattr(child.func, "id", getattr(child.func, "attr", ""))
        yield from strings(child, name)


def sample_of(sentence: str) -> str:
    return re.sub(r"\{\w+\}", "7", sentence)


def is_sentence(text: str) -> bool:
    return len(re.findall(r"[A-Za-z]{2,}", text)) >= 3 and " " in text.strip() and "%s" not in text


def said() -> Iterator[tuple[str, str]]:
    modules = ["preprocess", "plausibility", "region", "classifier", "unseen", "deep", "dicom/__init__"]
    modules += [f"dicom/{each}" for each in ("tags", "remarks", "decode", "grey")]
    for module in modules:
        for text, around in strings(ast.parse((EDGE / f"{module}.py").read_text(encoding="utf-8"))):
            if is_sentence(text) and around not in NOT_FOR_A_FILM:
                yield module, text
    for path in sorted((EDGE / "serve").glob("*.py")):
        for text, around in strings(ast.parse(path.read_text(encoding="utf-8"))):
            if is_sentence(text) and around in SPOKEN_IN_SERVE and not text.startswith(FOR_PROGRAMS):
                yield path.stem, text


SAID = list(said())


def test_sentences_are_found() -> None:
    assert len(SAID) > 40
    assert ("plausibility", "the picture is almost blank") in SAID


def test_what_the_runtime_says_is_translated() -> None:
    # What is put around another sentence, a command for instance, may have no words that differ.
    alike = {sample_of(each["en"]) for each in WORDS["sentences"]}
    untranslated = {
        text
        for _, text in SAID
        for language in LANGUAGES[1:]
        if Words(language).sentence(text) == text and text not in alike
    }
    assert untranslated == set(), f"words.json has no entry in `sentences` for: {sorted(untranslated)}"


def test_what_stands_in_a_sentence_is_translated_too() -> None:
    spanish = Words("es")
    ages = "the patient is 81 years old; the model has seen 1 to 5 years (a), 0 to 92 years (b) and 8 to 90 years (c)"
    assert spanish.sentence(ages) == (
        "el paciente tiene 81 años; el modelo ha visto de 1 a 5 años (a), de 0 a 92 años (b) y de 8 a 90 años (c)"
    )
    outlined = "outlined: 6.4% of the film; strongest local probability 93%"
    assert spanish.sentence(outlined) == "contorno: 6,4 % de la radiografía; mayor probabilidad local 93 %"
    assert spanish.sentence("a lateral view; the model has seen frontal films only").startswith("una vista lateral;")
    # What is nobody's sentence stays, braces and all.
    assert spanish.sentence("{name} of no kind") == "{name} of no kind"
    braces = spanish.sentence("{name} is empty: copy it again from where it came")
    assert braces == "{name} está vacío: cópielo de nuevo desde su origen"


def test_numbers_are_written_as_in_the_language() -> None:
    assert [Words(language).percent(0.1234) for language in LANGUAGES] == ["12.3 %", "12,3 %", "12,3 %", "12,3 %"]


def test_a_bundle_may_name_its_own_operating_points() -> None:
    assert Words("fr").point("screening") == "dépistage"
    assert Words("fr").point("night shift") == "night shift"


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(UsageError, match="there is no language de: choose one of en, es, fr, pt"):
        Words("de")


def test_captions_in_every_language() -> None:
    prediction = Prediction(
        path="-", label="PNEUMONIA", probability=0.9, logit=2.0, threshold=0.7, operating_point="balanced", novelty=1.0,
        prevalence=0.2, contrast=50.0,
        in_distribution=True, warnings=("the picture is almost blank",), model="m", file="f",
        milliseconds={}, region=None, heatmap=np.ones((4, 4), dtype=np.float32),
    )  # fmt: skip
    grey = Image.new("L", (300, 300), 90)
    sheets = {language: overlay.with_captions(grey, prediction, words=Words(language)) for language in LANGUAGES}
    # The picture is the same, the words below it are not.
    pictures = {sheet.crop((0, 0, 300, 300)).tobytes() for sheet in sheets.values()}
    captions = {sheet.crop((0, 300, *sheet.size)).tobytes() for sheet in sheets.values()}
    assert (len(pictures), len(captions)) == (1, len(LANGUAGES))
    assert overlay.with_captions(grey, prediction).tobytes() == sheets["en"].tobytes()


PAGE = EDGE / "serve" / "page"
WEB = ROOT / "export" / "pneumo_export" / "web_page"


def test_the_page_has_no_words_of_its_own() -> None:
    html = re.sub(r"<noscript>.*?</noscript>|<!--.*?-->|<title>.*?</title>", "", (PAGE / "index.html").read_text(encoding="utf-8"), flags=re.DOTALL)  # fmt: skip # noqa: E501
    visible = {text for text in re.findall(r">([^<>]+)<", html) if re.search(r"[^\s]", text)}
    assert {text.strip() for text in visible} <= {"pneumo", "0 %", "100 %", "&nbsp;"}
    assert re.findall(r'(?:aria-label|title|placeholder|alt)="([^"]+)"', html) == []
    named = set(re.findall(r'data-(?:word|label|hint)="([^"]+)"', html))
    scripts = {str(path): path.read_text(encoding="utf-8") for place in (PAGE, WEB) for path in place.glob("*.js")}
    assert len(scripts) > 12
    for name, script in scripts.items():
        code = re.sub(r"^\s*(//|/?\*).*$|\s// .*$", "", script, flags=re.MULTILINE)
        named |= set(re.findall(r'\bt\("([^"]+)"', code))
        for text in re.findall(r'"([^"\n]*)"|`([^`]*)`', code):
            said = re.sub(r"\$\{[^{}]*\}", "7", "".join(text))
            # A sentence in English is one of the catalogue's, to be translated before it is shown.
            if is_sentence(said) and not re.search(r"[<>(){}=]", said):
                assert Words("es").sentence(said) != said, f"{name}: {said}"
    assert named - set(WORDS["words"]) == set()
