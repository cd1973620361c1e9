"""Warnings about age and view come from the sites that a bundle names, and from nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumo_edge.bundle import Ages, Site
from pneumo_edge.unseen import unseen, view_named


def film(age: float | None = None, view: str = "") -> tuple[float | None, str]:
    return age, view


def site(name: str, low: float | None = None, high: float = 0.0, views: dict[str, int] | None = None) -> Site:
    ages = None if low is None else Ages(low, (low + high) / 2, high, 100)
    return Site(name, "", "", {"train/NORMAL": 100}, 90, ages, views or {}, {})


CHILDREN, ADULTS, NO_AGES = site("children", 1.0, 5.0), site("adults", 18.0, 79.5), site("elsewhere")


@pytest.mark.parametrize(
    ("age", "words"),
    [
        (45.0, None), (18.0, None), (79.9, None), (1.0, None), (5.0, None), (71 / 12, None), (None, None),
        (0.0, "less than 1 year"), (11 / 12, "less than 1 year"), (6.0, "6 years"), (17.0, "17 years"),
        (80.0, "80 years"), (89.0, "89 years"), (90.0, "over 89 years"), (999.0, "over 89 years"),
    ],
)  # fmt: skip
def test_an_age_that_no_site_has_shown_is_told_with_those_that_were(age: float | None, words: str | None) -> None:
    said = f"the patient is {words} old; the model has seen 1 to 5 years (children) and 18 to 79 years (adults)"
    assert unseen(*film(age), (CHILDREN, ADULTS, NO_AGES)) == ((said,) if words else ())


def test_where_no_site_knows_an_age_none_is_warned_of() -> None:
    for sites in ((), (NO_AGES,)):
        assert unseen(*film(50.0), sites) == ()
    assert unseen(*film(1.5), (site("old", 60, 99),)) == (
        "the patient is 1 year old; the model has seen 60 to 99 years (old)",
    )


def test_views_are_compared_with_those_that_are_listed() -> None:
    chest = site("chest", views={"PA": 20, "AP": 5})
    assert unseen(*film(view="PA"), (chest, NO_AGES)) == unseen(*film(view="AP"), (chest,)) == ()
    assert unseen(*film(view="LATERAL"), (chest,)) == ("a lateral view; the model has seen AP and PA views only",)
    standing = site("standing", views={"pa": 20, "AP": 0, "upright": 3})
    assert unseen(*film(view="AP"), (standing,)) == ("an AP view; the model has seen PA views only",)
    everything = site("everything", views={"LL": 9, "PA": 20, "AP": 9})
    assert unseen(*film(view="LATERAL"), (everything,)) == ()


@pytest.mark.parametrize("sites", [(), (NO_AGES,), (site("free text", views={"upright": 3}),)])
def test_where_no_view_is_listed_another_kind_of_picture_is_warned_of(sites: tuple[Site, ...]) -> None:
    assert unseen(*film(view="AP"), sites) == unseen(*film(view="PA"), sites) == unseen(*film(), sites) == ()
    for view, words in (
        ("LATERAL", "a lateral view"),
        ("DECUBITUS", "a view of a patient lying on the side"),
        ("OBLIQUE", "an oblique view"),
    ):
        assert unseen(*film(view=view), sites) == (f"{words}; the model has seen frontal films only",)


@pytest.mark.parametrize(
    ("text", "code"),
    [("LL", "LATERAL"), (" lateral ", "LATERAL"), ("RAO", "OBLIQUE"), ("LLD", "DECUBITUS"), ("ap", "AP"), ("", ""),
     ("AP SUPINE SECRET", "")],
)  # fmt: skip
def test_a_view_has_one_name_however_it_is_written(text: str, code: str) -> None:
    assert view_named(text) == code


def test_age_and_view_are_told_apart() -> None:
    assert len(unseen(*film(50.0, "OBLIQUE"), (CHILDREN,))) == 2


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_no_age_inside_a_site_is_warned_of_and_all_outside_are(data: st.DataObject) -> None:
    ages: Any = st.floats(0, 120)
    ranges = data.draw(st.lists(st.tuples(ages, ages).map(sorted), min_size=1, max_size=3))
    sites = [site(f"site {i}", low, high) for i, (low, high) in enumerate(ranges)]
    age = data.draw(ages)
    inside = any(low <= age <= high for low, high in ranges)
    # Up to its next birthday a patient has the age that was known.
    outside = all(age < low or age >= high + 1 for low, high in ranges)
    said = unseen(*film(age), sites)
    assert not (inside and said)
    assert not (outside and not said)
    assert all(f"site {i}" in said[0] for i in range(len(sites)) if said)
    assert not said or age < 90 or "over 89 years old" in said[0]
