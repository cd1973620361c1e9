"""Calibration and operating points against closed forms and brute force."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumo_edge.bundle import Calibration
from pneumo_edge.calibrate.platt import SCREENING_SENSITIVITY, choose_thresholds, fit_calibration, probabilities
from pneumo_edge.errors import DataError

pytest.importorskip("sklearn")

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-x)), np.float64)


def smoothed(labels: Ints) -> Floats:
    """Platt's targets."""
    n1, n0 = int(labels.sum()), int((1 - labels).sum())
    return np.where(labels == 1, (n1 + 1) / (n1 + 2), 1 / (n0 + 2))


# --------------------------------------------------------------------------------------------------- calibration


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (0.4, -1.2), (2.5, 1.0)])
def test_finds_the_scale_and_offset_that_made_the_labels(scale: float, offset: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 40_000)
    labels = (rng.random(40_000) < sigmoid(scale * logits + offset)).astype(np.int64)
    found = fit_calibration(labels, logits)
    assert found.scale == pytest.approx(scale, rel=0.05)
    assert found.offset == pytest.approx(offset, abs=0.06)
    assert found.prevalence == pytest.approx(labels.mean())


def test_two_scores_by_hand() -> None:
    # Four films score -1, one of them positive; four score +1, three of them positive. Platt's targets are 5/6 and
    # 1/6; their means, which a line through two points meets exactly, are 1/3 and 2/3: the logits are -ln 2 and ln 2.
    logits = np.array([-1.0] * 4 + [1.0] * 4)
    labels = np.array([1, 0, 0, 0, 1, 1, 1, 0])
    found = fit_calibration(labels, logits)
    assert found.scale == pytest.approx(math.log(2), abs=1e-6)
    assert found.offset == pytest.approx(0, abs=1e-6)
    # One positive of four, at +1 beside a negative: targets 2/3 and 1/5, means 1/5 and 13/30.
    found = fit_calibration(np.array([0, 0, 1, 0]), np.array([-1.0, -1.0, 1.0, 1.0]))
    low, high = math.log(0.2 / 0.8), math.log(13 / 17)
    assert found.scale == pytest.approx((high - low) / 2, abs=1e-6)
    assert found.offset == pytest.approx((high + low) / 2, abs=1e-6)
    assert found.prevalence == 0.25


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 200),
    st.floats(0.1, 8.0),
    st.floats(-2.0, 1.3),
    st.floats(-3.0, 3.0),
)
def test_the_likelihood_is_at_its_maximum(seed: int, n: int, distance: float, magnitude: float, shifted: float) -> None:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([[0, 1], rng.integers(0, 2, n - 2)])
    spread = 10**magnitude
    logits = (spread * (rng.normal(0, 1, n) + distance * labels + shifted)).astype(np.float32)
    try:
        found = fit_calibration(labels, logits)
    except DataError:
        # The slope at scale 0 says which way the scores lean.
        assert np.sum((smoothed(labels) - smoothed(labels).mean()) * logits) <= 1e-3 * spread
        return
    p = probabilities(logits, found)
    # Where the likelihood is largest its derivatives by offset and scale are 0: the probabilities sum to the targets.
    assert p.sum() == pytest.approx(smoothed(labels).sum(), abs=1e-3 * n)
    assert p @ logits == pytest.approx(float(smoothed(labels) @ logits), abs=1e-3 * n * spread * (4 + distance))


def test_the_probabilities_of_many_films_sum_to_the_positives() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 2000)
    logits = rng.normal(0, 1, 2000) + 2 * labels
    assert probabilities(logits, fit_calibration(labels, logits)).sum() == pytest.approx(labels.sum(), abs=1)


def test_classes_that_do_not_overlap_have_a_finite_scale() -> None:
    labels = np.repeat([0, 1], 50)
    found = fit_calibration(labels, np.where(labels == 1, 3.0, -3.0))
    assert found.scale == pytest.approx(math.log(51) / 3, rel=1e-3)  # (n1 + 1) / (n1 + 2) at 3


@pytest.mark.parametrize("direction", [-1.0, 0.0])
def test_scores_that_do_not_rise_with_the_label_are_refused(direction: float) -> None:
    labels = np.repeat([0, 1], 30)
    logits = direction * labels + np.tile([0.0, 0.5, 1.0], 20)
    with pytest.raises(DataError, match="do not rise with pneumonia on the validation films: train longer"):
        fit_calibration(labels, logits)


def test_probabilities_by_hand() -> None:
    logits = np.array([-2.0, 0.0, 1.5], np.float32)
    found = probabilities(logits, Calibration(2.0, 1.0, 0.5))
    assert found.tolist() == pytest.approx([1 / (1 + math.exp(3)), 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-4))])
    assert probabilities(np.array([-300.0, 300.0]), Calibration(2.0, 0.0, 0.5)).tolist() == pytest.approx([0, 1])


# ----------------------------------------------------------------------------------------------- operating points


@st.composite
def scored(draw: st.DrawFn) -> tuple[Ints, Floats]:
    n = draw(st.integers(2, 80))
    labels = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n).filter(lambda y: 0 < sum(y) < len(y)))
    tied = st.integers(1, 9).map(lambda k: k / 10)
    free = st.floats(0, 1, exclude_min=True, exclude_max=True, allow_subnormal=False)
    close = st.integers(1, 3).map(lambda k: 1 - k * 2**-53)  # neighbours among the floats below 1
    scores = draw(st.lists(st.one_of(tied, free, close), min_size=n, max_size=n))
    return np.array(labels), np.array(scores)


def shares(labels: Ints, scores: Floats, threshold: float) -> tuple[float, float]:
    called = scores >= threshold
    return float(called[labels == 1].mean()), float((~called)[labels == 0].mean())


@settings(deadline=None, max_examples=150)
@given(scored())
def test_screening_is_the_threshold_of_a_search_over_all(data: tuple[Ints, Floats]) -> None:
    labels, scores = data
    found = choose_thresholds(labels, scores)
    assert list(found) == ["balanced", "screening"]
    every = sorted(set(scores.tolist()))  # a threshold at each score calls every possible set of films but none
    expected = max(t for t in every if shares(labels, scores, t)[0] >= SCREENING_SENSITIVITY)
    assert np.array_equal(scores >= found["screening"], scores >= expected)
    below = max((t for t in every if t < expected), default=0.0)
    assert found["screening"] in ((expected + below) / 2, expected)
    for threshold in found.values():
        assert 0 < threshold < 1  # a bundle takes no other, and its log odds are finite


def test_screening_lies_midway_between_scores() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    scores = np.array([0.1, 0.2, 0.3, 0.7, 0.8])
    assert choose_thresholds(labels, scores)["screening"] == pytest.approx(0.5)


@pytest.mark.parametrize("prevalence", [0.2, 0.5, 0.74])
def test_balanced_is_where_youden_is_largest(prevalence: float) -> None:
    # Two normal distributions of one width cross in the middle, whatever the share of each: there Youden's index is
    # largest, and the threshold on the probability, calibrated, must lie at that logit.
    rng = np.random.default_rng(7)
    labels = (rng.random(20_000) < prevalence).astype(np.int64)
    logits = rng.normal(np.where(labels == 1, 3.0, 1.0), 1.2)
    calibration = fit_calibration(labels, logits)
    threshold = choose_thresholds(labels, probabilities(logits, calibration))["balanced"]
    at = (math.log(threshold / (1 - threshold)) - calibration.offset) / calibration.scale
    assert at == pytest.approx(2.0, abs=0.06)


def test_screening_may_miss_two_percent() -> None:
    labels = np.array([1] * 100 + [0] * 100)
    scores = np.concatenate([np.linspace(0.41, 0.9, 100), np.linspace(0.05, 0.4, 100)])
    for missed, expected in ((2, 0.98), (3, 0.98)):
        moved = scores.copy()
        moved[:missed] = 0.01 + 0.001 * np.arange(missed)
        sensitivity, _ = shares(labels, moved, choose_thresholds(labels, moved)["screening"])
        assert sensitivity == pytest.approx(expected)


def test_a_positive_below_all_others_leaves_a_threshold_above_zero() -> None:
    labels = np.array([1, 0, 0, 1, 1])
    threshold = choose_thresholds(labels, np.array([0.1, 0.2, 0.3, 0.8, 0.9]))["screening"]
    assert 0 < threshold <= 0.1
