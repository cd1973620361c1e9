"""The judging of heatmaps, on maps and boxes whose answers are known by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pneumo_edge.calibrate import measure as measure_module
from pneumo_train.films import Box
from pneumo_train.pointing import (
    GRID,
    THRESHOLDS,
    box_masks,
    boxes_touched,
    choose_region_threshold,
    enlarge,
    measure_pointing,
    overlap,
    points_into_a_box,
    regions_of,
    sigmoid,
)

UPPER_LEFT, LOWER_RIGHT = Box(0.0, 0.0, 0.5, 0.5), Box(0.5, 0.5, 1.0, 1.0)


@pytest.fixture(autouse=True)
def few_replicates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_module, "REPLICATES", 200)


def pointing(
    maps: Any, boxes: Any, labels: Any, called: Any, patients: Any, sites: Any = None, threshold: float | None = 0.5
) -> dict[str, Any]:
    sites = sites or ["s"] * len(maps)
    return measure_pointing(maps, boxes, np.array(labels), np.array(called, bool), patients, sites, threshold)


def spot(row: int, column: int, side: int = 10, high: float = 4.0, low: float = -4.0) -> npt.NDArray[np.float32]:
    """A map that is high in one cell."""
    cells = np.full((side, side), low, np.float32)
    cells[row, column] = high
    return cells


def quarter(high: float = 4.0, low: float = -4.0) -> npt.NDArray[np.float32]:
    """A map that is high in the upper left quarter."""
    cells = np.full((10, 10), low, np.float32)
    cells[:5, :5] = high
    return cells


# ------------------------------------------------------------------------------------------------ the parts


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 14), st.integers(1, 14), st.integers(0, 2**32 - 1))
def test_maps_are_enlarged_as_pillow_does_it(height: int, width: int, seed: int) -> None:
    maps = np.random.default_rng(seed).normal(0, 3, (2, height, width)).astype(np.float32)
    for large, small in zip(enlarge(maps), maps, strict=True):
        expected = Image.fromarray(small).resize((GRID, GRID), Image.Resampling.BILINEAR)
        assert large == pytest.approx(np.asarray(expected), abs=1e-4)
        assert large.max() <= small.max() + 1e-6


def test_a_map_that_is_always_strongest_in_one_place_is_counted() -> None:
    """Whatever the boxes: a network can gather what it knows of the whole film in a corner. Normals do not count."""
    maps = np.stack([spot(9, 1)] * 15 + [spot(2, 5)] * 5 + [spot(0, 0)] * 30)
    labels, patients = [1] * 20 + [0] * 30, [str(i) for i in range(50)]
    assert pointing(maps, [[]] * 50, labels, [True] * 50, patients)["one_place"] == 0.75
    # Too few to tell.
    assert pointing(maps[1:], [[]] * 49, labels[1:], [True] * 49, patients[1:])["one_place"] is None


def test_boxes_are_drawn_where_they_lie() -> None:
    masks = box_masks([[Box(0.25, 0.5, 0.75, 1.0)], [], [UPPER_LEFT, LOWER_RIGHT]])
    assert masks[0, GRID // 2 :, GRID // 4 : 3 * GRID // 4].all()
    assert masks[0].mean() == pytest.approx(0.25)
    assert not masks[1].any()
    assert masks[2].mean() == pytest.approx(0.5)


def test_the_strongest_cell_points() -> None:
    maps = np.stack([spot(0, 0), spot(4, 4), spot(5, 4), spot(9, 9)])
    boxes = [[UPPER_LEFT]] * 3 + [[UPPER_LEFT, LOWER_RIGHT]]
    assert points_into_a_box(maps, boxes).tolist() == [True, True, False, True]


def test_overlap_by_hand() -> None:
    a, b = np.zeros((1, 4, 4), bool), np.zeros((1, 4, 4), bool)
    assert overlap(a, b) == pytest.approx([0.0])
    a[0, :2], b[0, 1:3] = True, True
    assert overlap(a, b) == pytest.approx([4 / 12])


def test_regions_are_connected_by_sides_alone() -> None:
    mask = np.array([[1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 1, 0], [1, 0, 0, 1]], bool)
    labels = regions_of(mask)
    assert (labels > 0).tolist() == mask.tolist()
    assert labels.max() == 4
    assert labels[0, 0] == labels[0, 1] != labels[1, 2] == labels[2, 2]


def test_a_box_is_touched_as_chestxray8_counts() -> None:
    mask = np.zeros((10, 10), bool)
    mask[0:4, 0:4] = True  # a region of 0.4 x 0.4, its own bounding box
    inside, quarter_of_it, less = Box(0.0, 0.0, 1.0, 1.0), Box(0.0, 0.0, 0.2, 0.2), Box(0.0, 0.0, 0.2, 0.19)
    assert boxes_touched(mask, [inside, quarter_of_it, less, LOWER_RIGHT]) == [True, True, False, False]
    assert boxes_touched(np.zeros((10, 10), bool), [inside]) == [False]


@given(st.floats(-1e4, 1e4))
def test_the_sigmoid_never_overflows(x: float) -> None:
    found = float(sigmoid(np.array(x)))
    assert 0 <= found <= 1
    if abs(x) < 30:
        assert found == pytest.approx(1 / (1 + np.exp(-x)), abs=1e-12)


# ------------------------------------------------------------------------------------------------ the threshold


def test_the_threshold_is_the_one_that_fits_the_boxes() -> None:
    # The box holds what is above 0; a rim around it is at local probability 0.27, the rest at 0.02.
    cells = np.full((10, 10), -4.0, np.float32)
    cells[2:8, 2:8], cells[3:7, 3:7] = -1.0, 6.0
    maps = np.stack([cells, quarter()])
    box = [Box(0.3, 0.3, 0.7, 0.7)]
    threshold = choose_region_threshold(maps, [box, []], np.array([1, 0]))
    p, mask = sigmoid(enlarge(maps[:1])), box_masks([box])
    best = max(THRESHOLDS, key=lambda t: float(overlap(p >= t, mask)[0]))
    assert threshold == pytest.approx(best)
    assert threshold > 0.27


def test_without_boxes_normal_films_stay_quiet() -> None:
    rng = np.random.default_rng(0)
    maps = rng.normal(-2, 1, (400, 10, 10)).astype(np.float32)
    labels = np.repeat([0, 1], 200)
    maps[labels == 1] += 3
    threshold = choose_region_threshold(maps, [[]] * 400, labels)
    strongest = sigmoid(maps.max(axis=(1, 2)))
    assert np.mean(strongest[labels == 0] >= threshold) <= 0.05
    assert np.mean(strongest[labels == 0] >= threshold - 0.021) >= 0.05


# ------------------------------------------------------------------------------------------------ the whole


def test_maps_that_know_where_are_perfect_and_those_that_do_not_are_not() -> None:
    # Ten films with an opacity in the upper left, ten in the lower right, and twenty normals, one of which is called.
    opposite = np.flip(quarter(), (0, 1)).copy()
    maps = np.stack([quarter()] * 10 + [opposite] * 10 + [quarter(-4.0, -4.0)] * 18 + [quarter()] * 2)
    boxes = [[UPPER_LEFT]] * 10 + [[LOWER_RIGHT]] * 10 + [[]] * 20
    labels = np.repeat([1, 0], 20)
    called = np.array([True] * 20 + [False] * 19 + [True])
    names = [f"patient {i}" for i in range(40)]
    sites = ["a"] * 20 + ["a"] * 10 + ["b"] * 10
    found = pointing(maps, boxes, labels, called, names, sites)
    json.dumps(found, allow_nan=False)
    everyone = found["boxed"]["all"]
    assert everyone["films"] == everyone["patients"] == 20
    assert everyone["points"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert everyone["pixel_auc"]["value"] > 0.99
    assert everyone["iou"]["value"] == pytest.approx(1.0, abs=0.02)
    assert everyone["touched"]["value"] == 1.0
    assert everyone["evidence_outside"]["value"] == pytest.approx(0.0, abs=0.03)
    assert everyone["boxes_cover"]["value"] == pytest.approx(0.25)
    # The mean of all maps is as strong in one quarter as in the other: right in half of the films.
    assert everyone["mean_map_points"]["value"] == pytest.approx(0.5)
    assert everyone["mean_map_iou"]["value"] == pytest.approx(0.5, abs=0.02)
    # Every box covers a quarter of its film.
    assert set(found["boxed"]) == {"all", "large"}
    assert found["sites"] == {"a": found["boxed"]}
    normals = found["normals"]
    assert (normals["a"]["films"], normals["b"]["films"]) == (10, 10)
    assert normals["a"]["with_region"]["value"] == 0.0
    # Two of site b have a region; it is shown of the one that is called.
    assert normals["b"]["with_region"]["value"] == pytest.approx(0.1)
    assert normals["b"]["regions_per_film"] == pytest.approx(0.1)
    assert normals["b"]["with_region_if_all_were_shown"]["value"] == pytest.approx(0.2)


def test_films_are_told_apart_by_the_size_of_their_opacity() -> None:
    small, large = Box(0.0, 0.0, 0.2, 0.2), Box(0.0, 0.0, 1.0, 0.5)
    maps = np.stack([spot(0, 0), spot(9, 9), spot(0, 0)])
    found = pointing(maps, [[small], [small], [large]], [1] * 3, [True] * 3, ["x", "y", "z"], threshold=None)
    assert found["boxed"]["small"]["points"]["value"] == 0.5
    assert found["boxed"]["large"]["points"]["value"] == 1.0
    assert "medium" not in found["boxed"]
    # A map that is not one of local logits has no region.
    assert "iou" not in found["boxed"]["all"]
    assert found["normals"] == {}


def test_intervals_are_by_patient() -> None:
    maps = np.stack([spot(0, 0)] * 5 + [spot(9, 9)] * 5)
    boxes = [[UPPER_LEFT]] * 10
    one = ["x"] * 5 + ["y"] * 5
    many = [str(i) for i in range(10)]
    wide, narrow = (
        pointing(maps, boxes, [1] * 10, [True] * 10, names)["boxed"]["all"]["points"] for names in (one, many)
    )
    assert wide["value"] == narrow["value"] == 0.5
    assert (wide["low"], wide["high"]) == (0.0, 1.0)
    assert narrow["high"] - narrow["low"] < 0.8


def test_films_without_boxes_have_nothing_to_be_judged_by() -> None:
    found = pointing(np.stack([spot(0, 0)] * 2), [[], []], [1, 0], [True] * 2, ["x", "y"])
    assert found["boxed"] is None
    assert found["sites"] == {}
    assert found["normals"]["s"]["with_region"]["value"] == 1.0
