"""What a device compares its films with, and when it says that they have changed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest

from pneumo_edge.bundle import Calibration, Interval, ModelFile, OperatingPoint, Reference
from pneumo_edge.reference import make_reference
from pneumo_edge.watch import LAST, OVER, WATCHED, Watch, compare, distance, limit

Floats = npt.NDArray[np.float64]


def test_each_site_weighs_the_same_in_the_reference() -> None:
    rng = np.random.default_rng(0)
    small, large = rng.normal(-2, 1, 40).astype(np.float32), rng.normal(2, 1, 400).astype(np.float32)
    novelty = np.ones(440, np.float32)
    found = make_reference(np.concatenate([small, large]), novelty, novelty, ["small"] * 40 + ["large"] * 400)
    repeated = make_reference(np.concatenate([small] * 10 + [large]), np.ones(800), np.ones(800), ["one"] * 800)
    assert found is not None
    assert repeated is not None
    assert found.logit == repeated.logit
    assert found.films == 440
    assert (found.logit[0], found.logit[100]) == (small.min(), large.max())
    alone = make_reference(large, novelty[:400], novelty[:400], ["large"] * 400)
    assert alone is not None
    assert alone.logit[50] > found.logit[50] + 1


def test_answers_that_are_no_numbers_give_no_reference() -> None:
    assert make_reference(np.array([0.5, np.nan], np.float32), np.ones(2), np.ones(2), ["a", "a"]) is None
    assert make_reference(np.ones(2, np.float32), np.array([0.5, np.inf], np.float32), np.ones(2), ["a", "a"]) is None


# ---------------------------------------------------------------------------------------------------- the distance


def even(low: float, high: float) -> tuple[float, ...]:
    return tuple(np.linspace(low, high, 101).tolist())


def test_distance_by_hand() -> None:
    assert distance({0.5: 1}, even(0, 1)) == pytest.approx(0.5)
    assert distance({0.25: 1, 0.75: 1}, even(0, 1)) == pytest.approx(0.25)
    assert distance({2.0: 7}, even(0, 1)) == 1
    assert distance({-2.0: 7}, even(0, 1)) == 1
    # Half of the reference is 0, and so is half of the films: nothing differs.
    jump = (0.0,) * 51 + even(0, 1)[1::2]
    assert distance({0.0: 500} | {(i + 0.5) / 500: 1 for i in range(500)}, jump) < 0.01
    assert distance({0.0: 10}, jump) == pytest.approx(0.5)


def test_distance_is_that_of_a_search_over_all_values() -> None:
    rng = np.random.default_rng(0)
    quantiles = np.sort(rng.normal(0, 1, 101))
    values = rng.normal(0.4, 1.3, 60)
    grid = np.sort(np.concatenate([values, values - 1e-9, np.linspace(-5, 5, 2001)]))
    reference = np.interp(grid, quantiles, np.linspace(0, 1, 101))
    found = np.abs((values[:, None] <= grid).mean(axis=0) - reference).max()
    assert distance(Counter(values.tolist()), quantiles.tolist()) == pytest.approx(found, abs=1e-6)


# -------------------------------------------------------------------------------------------------------- the watch


def quantiles_of(values: Floats) -> tuple[float, ...]:
    return tuple(np.quantile(values, np.linspace(0, 1, 101), method="inverted_cdf").tolist())


def watch_of(rng: np.random.Generator, films: int = 1200) -> Watch:
    """A watch whose reference is a sample: logits N(0, 2), novelty N(1, 0.1), contrast N(50, 10)."""
    columns = [quantiles_of(rng.normal(middle, spread, films)) for middle, spread in NORMAL]
    file = ModelFile("int8", 1, "0", 1.5, None, Reference(films, *columns))
    sure = Interval(0.9, 0.8, 1.0)
    return Watch(file, Calibration(1.0, 0.0, 0.5), OperatingPoint(0.5, sure, sure))


NORMAL = ((0.0, 2.0), (1.0, 0.1), (50.0, 10.0))


def film(rng: np.random.Generator, contrast_by: float = 1.0) -> tuple[float, float, float, str]:
    logit, novelty, contrast = (float(rng.normal(middle, spread)) for middle, spread in NORMAL)
    return logit, novelty, contrast * contrast_by, "PNEUMONIA" if logit >= 0 else "NORMAL"


@pytest.mark.parametrize("reference_films", [100, 1200])
def test_less_than_one_false_alarm_a_year(reference_films: int) -> None:
    """Six years of 100 films a day, each with a reference of its own, for one of the three things that are watched."""
    rng = np.random.default_rng(7)
    shares, steps = np.linspace(0, 1, 101), np.arange(1, LAST + 1) / LAST
    alarms = 0
    for _ in range(6):
        quantiles = quantiles_of(rng.random(reference_films))
        films = np.interp(rng.random(36_500 + LAST), quantiles, shares)
        # Every fifth window: what lies between differs by a fortieth of its films at most.
        windows = np.sort(np.lib.stride_tricks.sliding_window_view(films, LAST)[::5], axis=1)
        far = np.maximum(steps - windows, windows - steps + 1 / LAST).max(axis=1)
        on = False
        for distant in far / limit(LAST, reference_films):
            alarms += not on and distant > 1
            on = distant > (OVER if on else 1)
    assert 3 * alarms / 6 <= 1


def test_halved_contrast_is_found_within_a_hundred_films() -> None:
    for seed in range(2):
        rng = np.random.default_rng(seed)
        watch = watch_of(rng, 100 if seed else 1200)
        for i in range(300):
            assert watch.add(str(i), *film(rng)) is None
        said = None
        for i in range(100):
            said = said or watch.add(f"half {i}", *film(rng, 0.5))
        assert said is not None
        assert said.startswith("THE FILMS HAVE CHANGED")
        outlook = watch.outlook()
        assert outlook is not None
        assert outlook.alarms == ("contrast",)
        again = None
        for i in range(250):
            again = watch.add(f"whole {i}", *film(rng)) or again
        assert again is not None
        assert "like the reference again" in again


def test_what_is_told_of_the_last_films() -> None:
    rng = np.random.default_rng(1)
    watch = watch_of(rng)
    nothing = watch.outlook()
    assert nothing is not None
    assert (nothing.films, nothing.withheld, nothing.shifts) == (0, None, {})
    for i in range(60):
        logit, novelty, contrast, label = film(rng)
        watch.add(str(i), logit, novelty, contrast, None if i < 15 else label)
        watch.add(str(i), logit, novelty, contrast, None if i < 15 else label)  # judged again
    outlook = watch.outlook()
    assert outlook is not None
    assert (outlook.films, outlook.of, outlook.withheld) == (60, LAST, 0.25)
    assert set(outlook.shifts) == set(WATCHED)
    assert outlook.expected == pytest.approx(0.5, abs=0.05)


def test_a_bundle_without_a_reference_is_not_watched() -> None:
    sure = Interval(0.9, 0.8, 1.0)
    watch = Watch(ModelFile("int8", 1, "0", 1.5), Calibration(1.0, 0.0, 0.5), OperatingPoint(0.5, sure, sure))
    assert watch.add("a", 0.0, 1.0, 50.0, None) is None
    assert watch.outlook() is None


def test_what_a_reference_knows_not_is_not_compared() -> None:
    known = even(0, 1)
    assert set(compare([{0.5: 1}] * 3, Reference(10, known, known))) == {"score", "novelty"}
