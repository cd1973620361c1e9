"""Hiding the region and another piece: on films and maps whose answers are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumo_bench import faithful
from pneumo_bench.accuracy import Decoded, Split
from pneumo_bench.faithful import body, elsewhere, faithful_table, hide, hide_all, pieces, region_mask
from pneumo_edge.backends import Outputs
from pneumo_edge.bundle import Bundle, read_bundle
from pneumo_edge.calibrate import measure as measure_module
from pneumo_edge.errors import DataError
from pneumo_train.films import FilmFile

pytest.importorskip("psutil", reason="needs the bench extra")

SIDE = 64


@pytest.fixture(autouse=True)
def few_replicates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_module, "REPLICATES", 200)


def block(top: int, left: int, high: int = 16, wide: int = 16) -> Any:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[top : top + high, left : left + wide] = True
    return mask


# ------------------------------------------------------------------------------------------------ hiding


def test_a_hole_is_filled_from_its_surroundings() -> None:
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    slope = (40 + 2 * x + y).astype(np.uint8)
    spoilt = slope.copy()
    mask = block(20, 24)
    spoilt[mask] = 255
    filled = hide(spoilt, mask)
    assert np.array_equal(filled[~mask], slope[~mask])
    # A plane is harmonic: it is what a smooth fill must find again.
    assert np.abs(filled.astype(int) - slope)[mask].max() <= 6
    # What was in the hole plays no part.
    spoilt[mask] = 0
    assert np.array_equal(hide(spoilt, mask), filled)


@pytest.mark.parametrize("mask", [block(0, 0), block(48, 48), block(0, 0, SIDE, 40), block(30, 30, 1, 1)])
def test_a_hole_may_lie_anywhere(mask: Any) -> None:
    film = np.full((SIDE, SIDE), 117, np.uint8)
    film[mask] = 5
    assert np.array_equal(hide(film, mask), np.full((SIDE, SIDE), 117))


def test_odd_sides_are_filled_too() -> None:
    film, mask = np.full((77, 77), 90, np.uint8), np.zeros((77, 77), bool)
    mask[60:, 60:] = True
    film[mask] = 0
    assert np.array_equal(hide(film, mask), np.full((77, 77), 90))


# ------------------------------------------------------------------------------------------------ the other piece


def test_the_other_piece_has_the_size_and_the_height_of_the_region() -> None:
    everywhere = np.ones((SIDE, SIDE), bool)
    region = block(20, 8) | block(20, 10, 4, 20)
    other = elsewhere(region, everywhere, np.random.default_rng(0))
    assert other is not None
    assert not (other & region).any()
    assert other.sum(axis=1).tolist() == region.sum(axis=1).tolist()
    again = elsewhere(region, everywhere, np.random.default_rng(0))
    assert again is not None
    assert np.array_equal(other, again)


def test_two_regions_are_moved_each_on_its_own() -> None:
    region = block(4, 4) | block(40, 44)
    other = elsewhere(region, np.ones((SIDE, SIDE), bool), np.random.default_rng(1))
    assert other is not None
    assert not (other & region).any()
    assert other.sum() == region.sum()


def test_the_other_piece_lies_in_the_body() -> None:
    where = np.zeros((SIDE, SIDE), bool)
    where[:, 10:50] = True
    for seed in range(5):
        other = elsewhere(block(20, 10), where, np.random.default_rng(seed))
        assert other is not None
        assert not (other & ~where).any()


def test_where_there_is_no_room_there_is_no_other_piece() -> None:
    everywhere = np.ones((SIDE, SIDE), bool)
    assert elsewhere(block(20, 0, 16, 50), everywhere, np.random.default_rng(0)) is None
    assert elsewhere(block(20, 0), block(0, 0, SIDE, 20), np.random.default_rng(0)) is None


def test_of_a_region_without_room_beside_it_the_strongest_part_is_hidden() -> None:
    everywhere = np.ones((SIDE, SIDE), bool)
    region = block(20, 0, 16, 50)
    large = np.tile(np.arange(SIDE, 0, -1.0), (SIDE, 1))
    found = pieces(region, large, everywhere, np.random.default_rng(0))
    assert found is not None
    part, other = found
    assert not (part & ~region).any()
    assert not (other & region).any()
    assert 0.9 * part.sum() <= other.sum() <= part.sum()
    # The strongest places are those on the left.
    assert part[:, :12][region[:, :12]].all()
    assert part.sum() == pytest.approx(0.25 * region.sum(), rel=0.1)
    assert pieces(region, large, region, np.random.default_rng(0)) is None


def test_the_body_is_what_is_not_dark() -> None:
    film = np.full((SIDE, SIDE), 3, np.uint8)
    film[:, 16:48] = 150
    film[20:30, 24:30] = 30  # a lung is dark and narrow
    found = body(film)
    assert found[:, 20:44].all()
    assert not found[:, :8].any()
    assert not found[:, 56:].any()


def test_a_region_is_what_reaches_the_threshold_or_half_of_the_peak() -> None:
    cells = np.full((4, 4), -3.0)
    cells[:2, :2] = 4.0
    assert region_mask(cells, 0.5, SIDE)[:20, :20].all()
    assert not region_mask(cells, 0.5, SIDE)[40:].any()
    assert not region_mask(cells, 0.99, SIDE).any()
    assert np.array_equal(region_mask(cells, None, SIDE), region_mask(cells - 0.0, None, SIDE))
    assert region_mask(cells, None, SIDE)[:20, :20].all()
    assert not region_mask(cells - 5, None, SIDE).any()


# ------------------------------------------------------------------------------------------------ the whole


def films() -> tuple[Split, Decoded]:
    """Ten films with a bright block on the left and one without, all of one site, and one normal film of another."""
    files, pixels = [], []
    for i in range(11):
        film = np.full((SIDE, SIDE), 60, np.uint8)
        film[:2] = 0
        if i < 10:
            film[20:36, 8:24] = 200
        files.append(FilmFile(f"a/{i}.png", 1, f"p{i}", "test", "a"))
        pixels.append(film)
    normal = FilmFile("b/0.png", 0, "q", "test", "b")
    decoded = Decoded(tuple(files), np.ones(11, int), {SIDE: np.stack(pixels)}, {SIDE: np.zeros(11, bool)}, ())
    return Split("test", (Path("nowhere"),), (*files, normal)), decoded


class Judge:
    """Goes by the mean of the bright block, and a little by that of the rest; its map says where the block is."""

    def __init__(self, blind: bool) -> None:
        self.blind = blind

    def __call__(self, _: Any, pixels: Any, __: str) -> Outputs:
        bright = pixels[:, 20:36, 8:24].mean(axis=(1, 2)) / 10
        other = pixels[:, 20:36, 24:].mean(axis=(1, 2)) / 10
        logit = (other if self.blind else bright + 0.1 * other) - 12
        maps = np.full((len(pixels), 8, 8), -4.0)
        maps[:, 2:5, 1:3] = np.where(pixels[:, 25, 10] > 100, 4.0, -4.0)[:, np.newaxis, np.newaxis]
        return Outputs(logit.astype(np.float32), maps.astype(np.float32), np.zeros(len(pixels), np.float32))


def hidden(bundle: Path, monkeypatch: pytest.MonkeyPatch, blind: bool) -> dict[str, Any]:
    split, decoded = films()
    found = read_bundle(bundle)
    made_for = replace(found.description.input, size=SIDE)
    [(name, stated)] = found.description.files.items()
    local = {name: replace(stated, region_threshold=0.5)}
    described = replace(found.description, input=made_for, files=local, head="local")
    seen: list[Split] = []

    def decode(which: Split, sizes: Any) -> Decoded:
        seen.append(which)
        return decoded

    monkeypatch.setattr(faithful, "decode", decode)
    monkeypatch.setattr(faithful, "open_backend", lambda *_: None)
    monkeypatch.setattr(faithful, "run_backend", Judge(blind))
    record = hide_all({"tiny": Bundle(found.folder, described)}, split, films=200)
    # Normal films are not asked for.
    assert {film.site for film in seen[0].files} == {"a"}
    json.dumps(record, allow_nan=False)
    return record


def test_a_model_that_looks_at_its_region_is_faithful(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = hidden(bundle, monkeypatch, blind=False)
    [result] = record["results"]
    assert (result["films"], result["measured"], result["no_region"], result["no_room"]) == (11, 10, 1, 0)
    assert result["region"]["value"] > 8
    assert abs(result["other"]["value"]) < 0.5
    assert result["other_share"]["high"] < 1 / 3
    assert result["share_hidden"] == 1.0
    assert result["region_costs_more"]["value"] == 1.0
    table = faithful_table(record)
    assert {len(row) for row in table.rows} == {len(table.columns)}


def test_a_model_that_looks_elsewhere_is_not(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [result] = hidden(bundle, monkeypatch, blind=True)["results"]
    assert abs(result["region"]["value"]) < 0.5
    # Nothing, or less than the other piece.
    assert result["other_share"] is None or result["other_share"]["value"] > 1 / 3


def test_each_site_gives_at_most_so_many_films(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split, decoded = films()
    asked: list[Split] = []

    def decode(which: Split, sizes: Any) -> Decoded:
        asked.append(which)
        kept = [i for i, film in enumerate(decoded.files) if film in which.files]
        return Decoded(which.files, np.ones(len(kept), int), {SIDE: decoded.pixels[SIDE][kept]}, {}, ())

    monkeypatch.setattr(faithful, "decode", decode)
    monkeypatch.setattr(faithful, "open_backend", lambda *_: None)
    monkeypatch.setattr(faithful, "run_backend", Judge(False))
    found = read_bundle(bundle)
    described = replace(found.description, input=replace(found.description.input, size=SIDE))
    hide_all({"tiny": Bundle(found.folder, described)}, split, films=3)
    assert len(asked[0].files) == 3
    with pytest.raises(DataError, match="no film is labelled PNEUMONIA"):
        hide_all({}, replace(split, files=split.files[-1:]), films=3)
