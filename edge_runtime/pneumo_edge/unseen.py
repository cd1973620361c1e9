"""Ages and views of films that the model has not learned from, by the sites that its bundle names.

With a bundle that names no sites, no age is unseen, and every view is that is not frontal.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pneumo_edge.bundle import Site

_SPELLINGS = {
    "AP": "AP",
    "PA": "PA",
    **dict.fromkeys(("LL", "RL", "LAT", "LATERAL", "LLAT", "RLAT", "LEFT LATERAL", "RIGHT LATERAL"), "LATERAL"),
    **dict.fromkeys(("LLD", "RLD", "DECUBITUS"), "DECUBITUS"),
    **dict.fromkeys(("LAO", "RAO", "LPO", "RPO", "LLO", "RLO", "OBLIQUE"), "OBLIQUE"),
}
"""View as files and manifests write it -> its name here. Other words are free text and are not compared."""

_WORDS = {
    "AP": "an AP view",
    "PA": "a PA view",
    "LATERAL": "a lateral view",
    "DECUBITUS": "a view of a patient lying on the side",
    "OBLIQUE": "an oblique view",
}

_FRONTAL = {"AP", "PA"}


def view_named(text: str) -> str:
    """Returns AP, PA, LATERAL, DECUBITUS or OBLIQUE for a view as a file or a manifest writes it, "" for other text."""
    return _SPELLINGS.get(text.strip().upper(), "")


def unseen(age_years: float | None, view: str, sites: Sequence[Site]) -> tuple[str, ...]:
    """Returns one sentence for an age and one for a view that no site has shown to the model; () where all is known.

    Args:
        age_years: Age of the patient; None if it is not known.
        view: A name that `view_named` returns; "" if it is not known.
        sites: Sites of the bundle. An age is compared with the 1st and 99th percentile of each site that has ages.
    """
    said = []
    ages = [(site.name, site.ages) for site in sites if site.ages]
    # Ages count in whole years: a child of five years and eleven months is five.
    if age_years is not None and ages:
        covered = any(known.low <= age_years and floor(age_years) <= known.high for _, known in ages)
        if not covered:
            seen = [f"{floor(known.low)} to {floor(known.high)} years ({name})" for name, known in ages]
            said.append(f"the patient is {_in_words(age_years)} old; the model has seen {_listed(seen)}")
    views = {view_named(name) for site in sites for name, films in site.views.items() if films} - {""}
    if view and view not in (views or _FRONTAL):
        seen_views = f"{_listed(sorted(views))} views" if views else "frontal films"
        said.append(f"{_WORDS[view]}; the model has seen {seen_views} only")
    return tuple(said)


def _in_words(age: float) -> str:
    if age >= 90:
        return "over 89 years"  # an exact one could identify the person
    if age < 1:
        return "less than 1 year"
    return f"{floor(age)} years" if age >= 2 else "1 year"


def _listed(words: Sequence[str]) -> str:
    return " and ".join((", ".join(words[:-1]), words[-1])) if len(words) > 1 else words[0]
