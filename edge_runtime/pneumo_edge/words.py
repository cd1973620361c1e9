"""What people read, in their language: the catalogue `words.json`, for pictures, reports and the page of pneumo-serve.

The catalogue has two parts. `words` have an id. `sentences` go by their English text, with {places} for what changes:
the runtime writes them in English, into records, logs and answers to programs. Code that shows one to a person
translates it.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from pneumo_edge.errors import UsageError

CATALOGUE = Path(__file__).with_name("words.json")

_KINDS = {"low": "[0-9]+", "high": "[0-9]+", "site": "[^()]+"}
"""Place -> pattern of what may stand there. Any other place takes any text. Without these, one site of a list could be
taken for several."""

_SHARE = re.compile(r"\d+(?:\.\d+)?%")
"""A share, as the runtime writes it in its sentences."""

_PLACE = re.compile(r"\{(\w+)\}")


class Words:
    """The catalogue in one language."""

    def __init__(self, language: str = "en") -> None:
        """Chooses the language.

        Raises:
            UsageError: The catalogue does not have it.
        """
        known = _catalogue()["languages"]
        if language not in known:
            raise UsageError(f"there is no language {language}: choose one of {', '.join(known)}")
        self.language = language

    def __call__(self, name: str, **values: object) -> str:
        """Returns a word by its id, with values in its places."""
        text: str = _catalogue()["words"][name][self.language]
        return text.format(**values)

    def percent(self, share: float) -> str:
        """Returns a share in [0, 1] as a percentage with one decimal."""
        return self("percent", number=f"{100 * share:.1f}".replace(".", self("decimal")))

    def point(self, name: str) -> str:
        """Returns the name of an operating point. One that the catalogue lacks stays as it is."""
        return self(name) if name in _catalogue()["words"] else name

    def sentence(self, text: str) -> str:
        """Returns an English sentence of the runtime in this language; one that the catalogue lacks stays English.

        The text in the places of a sentence is translated too: "the patient is {age} old" with "1 year".
        """
        if self.language == "en":
            return text
        if _SHARE.fullmatch(text):
            return self("percent", number=text.rstrip("%").replace(".", self("decimal")))
        for pattern, translations in _sentences():
            if found := pattern.fullmatch(text):
                places = {name: self.sentence(value) for name, value in found.groupdict().items()}
                return _fill(translations[self.language], places)
        return text


@cache
def _catalogue() -> dict[str, Any]:
    catalogue: dict[str, Any] = json.loads(CATALOGUE.read_text(encoding="utf-8"))
    return catalogue


@cache
def _sentences() -> list[tuple[re.Pattern[str], dict[str, str]]]:
    """Returns a pattern for each sentence; the one with the most text outside its places comes first."""
    ordered = sorted(_catalogue()["sentences"], key=lambda each: -len(_PLACE.sub("", each["en"])))
    return [(re.compile(_pattern(each["en"]), re.DOTALL), each) for each in ordered]


def _pattern(sentence: str) -> str:
    # The split at the places gives text and names in turn.
    parts = _PLACE.split(sentence)
    return "".join(
        f"(?P<{part}>{_KINDS.get(part, '.+?')})" if i % 2 else re.escape(part) for i, part in enumerate(parts)
    )


def _fill(sentence: str, places: dict[str, str]) -> str:
    # In one step, since a value may itself hold braces.
    return _PLACE.sub(lambda place: places[place[1]], sentence)
