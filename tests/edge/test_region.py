"""The outline of a region: what it encloses is the map above the threshold, in the film's own pixels."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from pneumo_edge import Classifier
from pneumo_edge.errors import ImageError, UsageError
from pneumo_edge.overlay import mark, mark_layer, region_words, with_captions
from pneumo_edge.region import Region, find_region, local_logits

WriteBundle = Callable[..., Path]
Floats = npt.NDArray[np.float32]
WIDTH, HEIGHT = 480, 360


def drawn(region: Region) -> npt.NDArray[np.bool_]:
    """Returns (height, width) what the polygons enclose, by Pillow and even-odd."""
    inside = np.zeros((region.height, region.width), bool)
    for polygon in region.polygons:
        picture = Image.new("1", (region.width, region.height))
        # Pillow counts from the centre of a pixel.
        ImageDraw.Draw(picture).polygon([(x - 0.5, y - 0.5) for x, y in polygon], fill=1)
        inside ^= np.asarray(picture)
    return inside


def enclosed(polygon: tuple[tuple[float, float], ...]) -> float:
    """Returns the signed area, by the shoelace formula."""
    on = (*polygon[1:], polygon[0])
    return sum(x * v - u * y for (x, y), (u, v) in zip(polygon, on, strict=True)) / 2


def bounds(region: Region) -> tuple[float, float, float, float]:
    x, y = np.concatenate([np.array(polygon) for polygon in region.polygons]).T
    return float(x.min()), float(y.min()), float(x.max()), float(y.max())


@st.composite
def maps(draw: st.DrawFn) -> Floats:
    """Maps of any shape that a network can have: smooth ones, noise, and ones of few values, with many ties."""
    shape = draw(st.tuples(st.integers(1, 14), st.integers(1, 14)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["noise", "few", "bumps"]))
    if kind == "few":
        return rng.integers(-2, 3, shape).astype(np.float32)
    if kind == "noise":
        return rng.normal(0, 3, shape).astype(np.float32)
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    logits = np.full(shape, -4.0)
    for _ in range(3):
        centre, width = rng.uniform(0, shape), rng.uniform(0.5, 4)
        bump = np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / width**2)
        logits += rng.uniform(0, 8) * bump
    return logits.astype(np.float32)


thresholds = st.floats(0.02, 0.98)


# ---------------------------------------------------------------------------------------------------- property tests


@settings(max_examples=60, deadline=None, derandomize=True)
@given(logits=maps(), size=st.tuples(st.integers(14, 300), st.integers(14, 300)))
def test_the_map_lies_over_the_film_as_another_library_lays_it(logits: Floats, size: tuple[int, int]) -> None:
    # Pillow's bilinear filter, where it makes larger, holds the centres of cells as ours does.
    expected = Image.fromarray(logits).resize(size, Image.Resampling.BILINEAR)
    np.testing.assert_allclose(local_logits(logits, size[1], size[0]), np.asarray(expected), atol=1e-4)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(logits=maps(), threshold=thresholds)
def test_the_polygons_enclose_what_reaches_the_threshold(logits: Floats, threshold: float) -> None:
    region = find_region(logits, threshold, WIDTH, HEIGHT)
    probability = 1 / (1 + np.exp(-local_logits(logits, HEIGHT, WIDTH)))
    inside = probability >= threshold
    found = drawn(region)
    # A pixel on the outline may fall on either side of it; a point or a line that just touches the threshold has none.
    outline = sum(math.dist(a, b) for p in region.polygons for a, b in zip(p, (*p[1:], p[0]), strict=True))
    assert np.sum(found != inside) <= 1.5 * outline + 4 * len(region.polygons) + 0.001 * inside.size
    assert region.area == pytest.approx(float(inside.mean()), abs=0.01)
    if inside.mean() > 0.1 and found.any():
        assert np.sum(found & inside) / np.sum(found | inside) > 0.93


@settings(max_examples=200, deadline=None, derandomize=True)
@given(logits=maps(), threshold=thresholds, width=st.integers(1, 5000), height=st.integers(1, 5000))
@example(np.zeros((4, 4), np.float32), 0.5, 10, 10)
@example(np.array([[1, -1], [-1, 1]], np.float32), 0.5, 7, 3)
def test_the_polygons_lie_in_the_film_and_go_round_it_in_one_sense(
    logits: Floats, threshold: float, width: int, height: int
) -> None:
    region = find_region(logits, threshold, width, height)
    assert 0 <= region.area <= 1
    assert region.strongest == pytest.approx(1 / (1 + math.exp(-float(logits.max()))))
    assert (region.width, region.height) == (width, height)
    if region.strongest < threshold - 1e-9:
        assert region.polygons == ()
    for polygon in region.polygons:
        assert len(polygon) >= 3
        for x, y in polygon:
            assert -1e-9 <= x <= width + 1e-9
            assert -1e-9 <= y <= height + 1e-9
        # No place comes twice in a row, and none lies on the way between its neighbours.
        assert all(a != b for a, b in zip(polygon, (*polygon[1:], polygon[0]), strict=True))
    areas = [enclosed(polygon) for polygon in region.polygons]
    assert sum(areas) / (width * height) == pytest.approx(region.area, abs=1e-9)
    assert not areas or max(areas) > 0
    assert find_region(logits.copy(), threshold, width, height) == region


@settings(max_examples=150, deadline=None, derandomize=True)
@given(logits=maps(), first=thresholds, second=thresholds)
def test_a_higher_threshold_never_encloses_more(logits: Floats, first: float, second: float) -> None:
    low, high = (find_region(logits, t, WIDTH, HEIGHT) for t in sorted((first, second)))
    assert high.area <= low.area + 1e-12
    assert bool(low.polygons) or not high.polygons
    assert high.strongest == low.strongest


@settings(max_examples=100, deadline=None, derandomize=True)
@given(logits=maps(), threshold=thresholds)
def test_a_mirrored_map_has_a_mirrored_region_and_a_turned_one_a_turned_region(
    logits: Floats, threshold: float
) -> None:
    region = find_region(logits, threshold, WIDTH, HEIGHT)
    mirrored = find_region(logits[:, ::-1], threshold, WIDTH, HEIGHT)
    turned = find_region(logits.T, threshold, HEIGHT, WIDTH)
    assert mirrored.area == pytest.approx(region.area, abs=1e-9)
    assert turned.area == pytest.approx(region.area, abs=1e-9)
    assert len(mirrored.polygons) == len(turned.polygons) == len(region.polygons)
    if region.polygons:
        left, top, right, bottom = bounds(region)
        assert bounds(mirrored) == pytest.approx((WIDTH - right, top, WIDTH - left, bottom), abs=1e-6)
        assert bounds(turned) == pytest.approx((top, left, bottom, right), abs=1e-6)


# ------------------------------------------------------------------------------------------------------ known outlines


def one_cell(shape: tuple[int, int], row: int, column: int) -> Floats:
    logits = np.full(shape, -2, np.float32)
    logits[row, column] = 2
    return logits


@pytest.mark.parametrize(("row", "column"), [(4, 2), (0, 9), (9, 0), (3, 9)])
@pytest.mark.parametrize(("width", "height"), [(1000, 300), (300, 1000), (640, 640)])
def test_a_cell_is_outlined_where_the_network_has_it(row: int, column: int, width: int, height: int) -> None:
    # Halfway to its neighbours the logit is 0: in rows and columns the outline reaches just the edges of the cell.
    region = find_region(one_cell((10, 10), row, column), 0.5, width, height)
    assert len(region.polygons) == 1
    expected = (column * width / 10, row * height / 10, (column + 1) * width / 10, (row + 1) * height / 10)
    assert bounds(region) == pytest.approx(expected)
    assert region.strongest == pytest.approx(1 / (1 + math.exp(-2)))


def test_the_whole_film_and_nothing_of_it() -> None:
    everywhere = find_region(np.full((10, 10), 3, np.float32), 0.4, 1000, 800)
    assert sorted(everywhere.polygons[0]) == [(0, 0), (0, 800), (1000, 0), (1000, 800)]
    assert (len(everywhere.polygons), everywhere.area) == (1, 1.0)
    nowhere = find_region(np.full((10, 10), -3, np.float32), 0.4, 1000, 800)
    assert nowhere == Region((), 0.0, nowhere.strongest, 1000, 800)
    assert nowhere.strongest == pytest.approx(1 / (1 + math.exp(3)))


def test_a_half_has_a_straight_edge_of_two_points() -> None:
    logits = np.full((6, 8), -1, np.float32)
    logits[:, 4:] = 3
    region = find_region(logits, 0.5, 800, 600)
    (polygon,) = region.polygons
    # From -1 at 3.5 to 3 at 4.5 the logit passes 0 after a quarter of the way.
    np.testing.assert_allclose(sorted(polygon), [(375, 0), (375, 600), (800, 0), (800, 600)], atol=1e-9)
    assert region.area == pytest.approx(425 / 800)


def test_a_hole_goes_the_other_way_round_and_is_not_counted() -> None:
    logits = np.full((9, 9), -3, np.float32)
    logits[2:7, 2:7] = 3
    logits[4, 4] = -3
    region = find_region(logits, 0.5, 900, 900)
    areas = sorted(enclosed(polygon) for polygon in region.polygons)
    assert len(areas) == 2
    assert areas[0] < 0 < areas[1]
    inside = drawn(region)
    assert not inside[450, 450]
    assert inside[450, 250]
    assert region.area == pytest.approx((areas[0] + areas[1]) / 810_000)


@pytest.mark.parametrize(("high", "low", "regions"), [(2, -1, 1), (1, -2, 2)])
@pytest.mark.parametrize("turned", [False, True])
def test_two_cells_that_touch_are_one_region_where_the_saddle_between_them_is_inside(
    high: float, low: float, regions: int, turned: bool
) -> None:
    logits = np.array([[high, low], [low, high]], np.float32)
    region = find_region(logits[::-1] if turned else logits, 0.5, 100, 100)
    assert len(region.polygons) == regions


@pytest.mark.parametrize("value", [3e38, -3e38, 1e5, -1e5])
def test_logits_of_any_size_give_a_probability(value: float) -> None:
    logits = np.zeros((3, 3), np.float32)
    logits[1, 1] = value
    for threshold in (1e-12, 0.3, 1 - 1e-12):
        region = find_region(logits, threshold, 90, 90)
        assert 0 <= region.area <= 1
        assert region.strongest == (1.0 if value > 0 else 0.5)


def test_the_record_has_pixels_to_one_decimal() -> None:
    record = find_region(one_cell((10, 10), 4, 2), 0.45, 997, 331).record()
    assert list(record) == ["polygons", "area", "strongest", "width", "height"]
    points: list[Any] = [place for polygon in record["polygons"] for point in polygon for place in point]
    assert points
    assert all(isinstance(place, float) and place == round(place, 1) for place in points)
    assert (record["width"], record["height"]) == (997, 331)


def test_polygons_in_a_record_differ_from_the_region_by_rounding_alone() -> None:
    rng = np.random.default_rng(5)
    region = find_region(rng.normal(0, 2, (10, 10)).astype(np.float32), 0.5, 2000, 1600)
    assert region.polygons
    for exact, rounded in zip(region.polygons, region.record()["polygons"], strict=True):
        np.testing.assert_allclose(np.array(exact), np.array(rounded), atol=0.0501)


# ------------------------------------------------------------------------------------- the way from a film to a region


def film(left: int, right: int, *, width: int = 400, height: int = 200) -> bytes:
    """A PNG that is dark to the left and light to the right; the tiny model calls it PNEUMONIA if the mean is > 112."""
    grey = np.full((height, width), left, np.uint8)
    grey[:, width // 2 :] = right
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    return buffer.getvalue()


ILL = film(30, 220)
"""PNEUMONIA, and to the right the local logits are positive."""
SPREAD = film(100, 125, width=200)
"""PNEUMONIA, and no local logit is positive."""
WELL = film(20, 160)
"""NORMAL, though to the right the local logits are positive."""


@pytest.fixture(scope="module")
def classifier(local_bundle: Path) -> Iterator[Classifier]:
    with Classifier.load(local_bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def curious(local_bundle: Path) -> Iterator[Classifier]:
    with Classifier.load(local_bundle, threads=1, regions="all") as opened:
        yield opened


def test_a_film_that_is_called_pneumonia_has_its_region_in_its_own_pixels(classifier: Classifier) -> None:
    answer = classifier.predict(ILL)
    assert answer.label == "PNEUMONIA"
    region = answer.region
    assert region is not None
    # The logits of the columns are a, a, b, b: between the centres of the second and the third they pass 0.
    a, b = 30 / 255 - 0.5, 220 / 255 - 0.5
    left = (1.5 - a / (b - a)) / 4 * 400
    assert bounds(region) == pytest.approx((left, 0, 400, 200), abs=0.5)
    assert region.area == pytest.approx(1 - left / 400, abs=2e-3)
    assert region.strongest == pytest.approx(1 / (1 + math.exp(-b)), abs=2e-3)
    record = answer.record()["region"]
    assert record["polygons"] == [[[round(x, 1), round(y, 1)] for x, y in region.polygons[0]]]
    assert (record["width"], record["height"]) == (400, 200)


def test_other_films_have_none_unless_it_is_asked_for(classifier: Classifier, curious: Classifier) -> None:
    well, asked = classifier.predict(WELL), curious.predict(WELL)
    assert well.label == asked.label == "NORMAL"
    assert well.region is not None
    assert asked.region is not None
    assert well.region == replace(asked.region, polygons=(), area=0.0)
    assert asked.region.area == pytest.approx(0.4, abs=0.1)
    # A picture that gets no verdict is called nothing.
    tiny = film(30, 220, width=90, height=90)
    withheld, seen = classifier.predict(tiny), curious.predict(tiny)
    assert withheld.label is None
    assert withheld.region is not None
    assert seen.region is not None
    assert (withheld.region.polygons, len(seen.region.polygons)) == ((), 1)


def test_a_model_without_a_map_has_no_region(bundle: Path) -> None:
    with Classifier.load(bundle, threads=1, regions="all") as plain:
        answer = plain.predict(ILL)
    assert answer.region is None
    assert answer.record()["region"] is None


def test_other_regions_are_refused(local_bundle: Path) -> None:
    with pytest.raises(UsageError, match="there are no regions some: choose positive or all"):
        Classifier.load(local_bundle, regions="some")


def test_a_map_that_holds_no_numbers_is_no_answer(new_model: Any, write_bundle: WriteBundle) -> None:
    onnx = pytest.importorskip("onnx")
    last = new_model.graph.node[-1]
    last.output[0] = "honest"
    new_model.graph.initializer.append(onnx.helper.make_tensor("nan", 1, (), [math.nan]))
    new_model.graph.node.append(onnx.helper.make_node("Mul", ["honest", "nan"], ["heatmap"]))
    folder = write_bundle({"model.onnx": new_model.SerializeToString()}, region_threshold=0.5)
    with (
        Classifier.load(folder, threads=1) as broken,
        pytest.raises(ImageError, match=r"^-: model.onnx gives no number for this picture"),
    ):
        broken.predict(ILL)


# --------------------------------------------------------------------------------------------------------- the picture


AMBER = (255, 176, 0)


def changed(picture: Image.Image, grey: Image.Image) -> npt.NDArray[np.bool_]:
    differs: npt.NDArray[np.bool_] = np.any(np.asarray(picture) != np.asarray(grey.convert("RGB")), axis=-1)
    return differs


def test_the_film_is_untouched_but_for_a_thin_line_around_the_region(classifier: Classifier) -> None:
    answer = classifier.predict(ILL)
    grey = Image.linear_gradient("L").resize((600, 300))
    marked = mark(grey, answer)
    touched = changed(marked, grey)
    assert answer.region is not None
    left = answer.region.polygons[0]
    edge = round(min(x for x, _ in left) / 400 * 600)
    # A line of two pixels at the left, along the film's edge at the other sides, and nothing inside or outside.
    assert touched[150, edge - 3 : edge + 3].sum() in (2, 3)
    assert np.asarray(marked)[150, edge - 3 : edge + 3].tolist().count(list(AMBER)) >= 1
    assert touched[150, 597:].any()
    assert touched[:3, edge + 10 : 590].any()
    assert not touched[6:294, edge + 6 : 594].any()
    assert not touched[:, : edge - 6].any()
    layer = np.asarray(mark_layer((600, 300), answer))
    assert ((layer[..., 3] > 0) == touched).mean() > 0.999


def test_where_no_region_stands_out_the_film_stays_as_it_is_and_the_words_say_so(classifier: Classifier) -> None:
    answer = classifier.predict(SPREAD)
    assert answer.label == "PNEUMONIA"
    grey = Image.linear_gradient("L").resize((300, 200))
    assert not changed(mark(grey, answer), grey).any()
    assert region_words(answer) == ("no region stands out",)
    assert region_words(classifier.predict(WELL)) == ()
    ill = classifier.predict(ILL)
    assert ill.region is not None
    (said,) = region_words(ill)
    assert (
        said == f"outlined: {ill.region.area:.1%} of the film; strongest local probability {ill.region.strongest:.0%}"
    )
    # The words have a line of their own on the sheet.
    sheets = [with_captions(mark(grey, a), a) for a in (replace(answer, label="NORMAL"), answer)]
    assert sheets[1].height == sheets[0].height + 22


def test_the_glow_shows_the_local_probability_in_the_colours_of_its_legend(classifier: Classifier) -> None:
    answer = classifier.predict(ILL)
    # Grey as the legend's ground: there one probability has one colour in both.
    grey = Image.new("L", (600, 300), 110)
    marked = mark(grey, answer, glow=True)
    sheet = with_captions(marked, answer, glow=True)
    legend = np.asarray(sheet)[46 : 300 - 76, 600 + 14 + 9]
    steps = np.linspace(1, 0, len(legend))
    probability = 1 / (1 + np.exp(-local_logits(answer.heatmap, 300, 600)))
    for x in (60, 200, 500):
        place = int(np.abs(steps - probability[150, x]).argmin())
        assert np.abs(np.asarray(marked)[150, x].astype(int) - legend[place]).max() <= 3
    assert len(np.unique(legend, axis=0)) > 50
    # Without the glow there is no legend: no colour stands for anything.
    assert sheet.width == 600 + 116
    assert with_captions(mark(grey, answer), answer).width == 640


def test_a_model_without_a_map_keeps_its_colours(bundle: Path) -> None:
    with Classifier.load(bundle, threads=1) as plain:
        answer = plain.predict(ILL)
    grey = Image.new("L", (600, 300), 110)
    assert changed(mark(grey, answer), grey).any()
    assert mark(grey, answer).tobytes() == mark(grey, answer, glow=True).tobytes()
    assert region_words(answer) == ()
