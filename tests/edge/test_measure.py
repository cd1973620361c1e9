"""The measures against scikit-learn, published examples and sums by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumo_edge.calibrate import measure as measure_module
from pneumo_edge.calibrate.measure import measure, predictive_values, weighted_auc, wilson
from pneumo_edge.errors import DataError

sklearn_metrics = pytest.importorskip("sklearn.metrics")

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@pytest.fixture(autouse=True)
def few_replicates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_module, "REPLICATES", 200)


@st.composite
def scored(draw: st.DrawFn) -> tuple[Ints, Floats]:
    """Labels of both classes and probabilities, many of them tied."""
    n = draw(st.integers(2, 60))
    labels = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n).filter(lambda y: 0 < sum(y) < len(y)))
    tied = st.integers(0, 8).map(lambda k: k / 8)
    p = draw(st.lists(st.one_of(tied, st.floats(0, 1)), min_size=n, max_size=n))
    return np.array(labels), np.array(p)


def measured(labels: Any, p: Any, thresholds: dict[str, float] | None = None, patients: Any = None) -> dict[str, Any]:
    names = patients or [f"patient {i}" for i in range(len(labels))]
    return measure(np.asarray(labels), np.asarray(p, float), names, thresholds or {"at": 0.5})


# ------------------------------------------------------------------------------------- scores without a threshold


@settings(deadline=None, max_examples=60)
@given(scored())
def test_areas_and_brier_are_those_of_scikit_learn(data: tuple[Ints, Floats]) -> None:
    labels, p = data
    found = measured(labels, p)
    assert found["auc"]["value"] == pytest.approx(sklearn_metrics.roc_auc_score(labels, p), abs=1e-12)
    precision_sum = sklearn_metrics.average_precision_score(labels, p)
    assert found["average_precision"]["value"] == pytest.approx(precision_sum, abs=1e-12)
    assert found["brier"]["value"] == pytest.approx(sklearn_metrics.brier_score_loss(labels, p), abs=1e-12)
    assert (found["n"], found["patients"]) == (len(labels), len(labels))
    assert found["prevalence"] == pytest.approx(labels.mean())


@settings(deadline=None, max_examples=40)
@given(scored(), st.integers(0, 2**32 - 1))
def test_the_weighted_area_is_that_of_scikit_learn(data: tuple[Ints, Floats], seed: int) -> None:
    labels, p = data
    weights = np.random.default_rng(seed).integers(0, 4, (5, len(labels)))
    for row, area in zip(weights, weighted_auc(labels, p, weights.astype(float)), strict=True):
        if row @ labels == 0 or row @ (1 - labels) == 0:
            assert math.isnan(area)
        else:
            expected = sklearn_metrics.roc_auc_score(labels, p, sample_weight=row)
            assert area == pytest.approx(expected, abs=1e-12)


def test_the_interval_is_the_bootstrap_over_patients() -> None:
    labels = np.array([0, 0, 1, 1, 1, 0, 1, 0])
    p = np.array([0.1, 0.4, 0.35, 0.8, 0.7, 0.6, 0.9, 0.2])
    patients = ["a", "a", "b", "b", "c", "d", "e", "f"]
    found = measured(labels, p, {"at": 0.5}, patients)
    drawn = np.random.default_rng(0).multinomial(6, np.full(6, 1 / 6), size=200)
    place = [sorted(set(patients)).index(name) for name in patients]
    spread: dict[str, list[float]] = {"auc": [], "average_precision": [], "accuracy": []}
    for counts in drawn:
        again = np.repeat(np.arange(8), counts[place])  # each film as often as its patient was drawn
        y, scores = labels[again], p[again]
        spread["accuracy"].append(float(np.mean((scores >= 0.5) == (y == 1))))
        if 0 < y.sum() < len(y):
            spread["auc"].append(sklearn_metrics.roc_auc_score(y, scores))
        if y.sum():
            spread["average_precision"].append(sklearn_metrics.average_precision_score(y, scores))
    found |= found["operating_points"]["at"]
    for name, values in spread.items():
        low, high = np.percentile(values, [2.5, 97.5])
        assert (found[name]["low"], found[name]["high"]) == (pytest.approx(low), pytest.approx(high)), name
    assert found["patients"] == 6


def test_the_area_and_its_interval_against_a_published_example(monkeypatch: pytest.MonkeyPatch) -> None:
    # Hanley and McNeil, Radiology 1982, table I: 109 CT scans rated from 1 (surely normal) to 5; area 0.893, standard
    # error 0.032.
    monkeypatch.setattr(measure_module, "REPLICATES", 4000)
    normal, abnormal = [33, 6, 6, 11, 2], [3, 2, 2, 11, 33]
    ratings = np.repeat(np.tile(np.arange(5) / 4, 2), normal + abnormal)
    labels = np.repeat([0, 1], [58, 51])
    area = measured(labels, ratings)["auc"]
    assert area["value"] == pytest.approx(0.893, abs=5e-4)
    assert (area["high"] - area["low"]) / (2 * 1.96) == pytest.approx(0.032, abs=0.002)
    assert area["low"] == pytest.approx(0.893 - 1.96 * 0.032, abs=0.01)
    assert area["high"] == pytest.approx(0.893 + 1.96 * 0.032, abs=0.01)


def test_copies_of_a_film_are_no_new_observations() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 40)
    p = np.clip(0.3 + 0.4 * labels + rng.normal(0, 0.25, 40), 0, 1)
    one_each = measured(labels, p)
    by_patient = measured(np.tile(labels, 9), np.tile(p, 9), patients=[f"patient {i}" for i in range(40)] * 9)
    by_film = measured(np.tile(labels, 9), np.tile(p, 9))

    def width(found: dict[str, Any], name: str) -> float:
        value = found.get(name) or found["operating_points"]["at"][name]
        return float(value["high"] - value["low"])

    for name in ("auc", "average_precision", "brier", "ece", "accuracy", "sensitivity", "specificity", "f1"):
        assert width(by_patient, name) == pytest.approx(width(one_each, name)), name
        assert width(by_patient, name) > 2 * width(by_film, name), name


def test_the_calibration_error_by_hand() -> None:
    # Bins of 1/15: 0.02 and 0.05 in the first, 0.5 in the eighth, 0.95 and 1.0 in the last.
    p = [0.02, 0.05, 0.5, 0.95, 1.0]
    labels = [0, 1, 0, 1, 1]
    gap = abs(0.02 + 0.05 - 1) + abs(0.5 - 0) + abs(0.95 + 1.0 - 2)
    assert measured(labels, p)["ece"]["value"] == pytest.approx(gap / 5)
    assert measured([0, 1], [0.0, 1.0])["ece"]["value"] == 0


# --------------------------------------------------------------------------------------------- at a threshold


def test_the_table_at_a_threshold_by_hand() -> None:
    p = [0.1, 0.2, 0.6, 0.7, 0.3, 0.5, 0.8, 0.9, 0.95, 0.4]
    labels = [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]  # at 0.5: two of four are wrongly called, two of six missed
    found = measured(labels, p, {"balanced": 0.5, "all": 0.0})
    point = found["operating_points"]["balanced"]
    assert point["threshold"] == 0.5
    assert point["confusion"] == [[2, 2], [2, 4]]
    shares = {"accuracy": (6, 10), "sensitivity": (4, 6), "specificity": (2, 4), "precision": (4, 6)}
    for name, (hits, n) in shares.items():
        assert point[name]["value"] == pytest.approx(hits / n), name
        assert (point[name]["wilson_low"], point[name]["wilson_high"]) == wilson(hits, n), name
        assert 0 <= point[name]["low"] <= hits / n <= point[name]["high"] <= 1, name
    assert point["f1"]["value"] == pytest.approx(2 * 4 / (2 * 4 + 2 + 2))
    assert found["operating_points"]["all"]["confusion"] == [[0, 4], [0, 6]]
    rare = next(v for v in point["ppv_npv"] if v["prevalence"] == 0.1)
    assert rare["ppv"] == pytest.approx((4 / 6 * 0.1) / (4 / 6 * 0.1 + 0.5 * 0.9))


def test_predictive_values_have_the_interval_of_their_bootstrap() -> None:
    labels = np.array([0, 0, 1, 1, 1, 0, 1, 0, 0, 1])
    p = np.array([0.1, 0.4, 0.35, 0.8, 0.7, 0.6, 0.9, 0.2, 0.55, 0.3])
    patients = ["a", "a", "b", "b", "c", "d", "e", "f", "g", "h"]
    drawn = np.random.default_rng(0).multinomial(8, np.full(8, 1 / 8), size=200)
    place = [sorted(set(patients)).index(name) for name in patients]
    for value in measured(labels, p, {"at": 0.5}, patients)["operating_points"]["at"]["ppv_npv"]:
        spread: dict[str, list[float]] = {"ppv": [], "npv": []}
        for counts in drawn:
            again = np.repeat(np.arange(10), counts[place])
            y, called = labels[again], p[again] >= 0.5
            if not 0 < y.sum() < len(y):
                continue
            each = predictive_values(float(called[y == 1].mean()), float((~called)[y == 0].mean()), value["prevalence"])
            for name, given_so in (("ppv", called.any()), ("npv", not called.all())):
                if given_so:
                    spread[name].append(each[name])
        for name, values in spread.items():
            low, high = np.percentile(values, [2.5, 97.5])
            assert (value[f"{name}_low"], value[f"{name}_high"]) == (pytest.approx(low), pytest.approx(high)), name
            assert low <= value[name] <= high
            assert low < high


def test_where_nothing_is_called_the_precision_is_unknown() -> None:
    point = measured([0, 1, 1], [0.1, 0.2, 0.3], {"never": 1.0})["operating_points"]["never"]
    assert point["precision"] == {"value": 0.0, "low": 0.0, "high": 1.0, "wilson_low": 0.0, "wilson_high": 1.0}
    assert point["sensitivity"]["value"] == 0
    assert point["f1"]["value"] == 0
    for value in point["ppv_npv"]:
        assert (value["ppv"], value["ppv_low"], value["ppv_high"]) == (0, 0, 1)


@settings(deadline=None)
@given(scored(), st.floats(0, 1))
def test_whatever_the_scores_the_measures_are_numbers(data: tuple[Ints, Floats], threshold: float) -> None:
    labels, p = data
    # Half the patients have one film, the others share: replicates without a class or without a called film are sure.
    patients = [f"patient {min(i, len(labels) // 2)}" for i in range(len(labels))]
    found = measured(labels, p, {"at": threshold, "never": 1.1, "always": 0.0}, patients)
    json.dumps(found, allow_nan=False)
    for point in found["operating_points"].values():
        (tn, fp), (fn, tp) = point["confusion"]
        assert (tn + fp, fn + tp) == (int((labels == 0).sum()), int(labels.sum()))


@pytest.mark.parametrize("label", [0, 1])
def test_films_of_one_class_cannot_be_measured(label: int) -> None:
    with pytest.raises(DataError, match="one class only"):
        measured([label] * 3, [0.1, 0.2, 0.3])


# ----------------------------------------------------------------------------------------------------- formulas


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 1998, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_published_examples(hits: int, n: int, low: float, high: float) -> None:
    assert wilson(hits, n) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson(n - hits, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_stays_within_bounds(counts: tuple[int, int]) -> None:
    low, high = wilson(*counts)
    share = counts[0] / counts[1]
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1


def test_predictive_values_by_bayes() -> None:
    # A test that finds 80 % of the ill and wrongly calls 9.6 % of the well, where 1 % are ill (Eddy 1982).
    found = predictive_values(0.8, 1 - 0.096, 0.01)
    assert found["ppv"] == pytest.approx(0.0776, abs=5e-5)
    assert found["npv"] == pytest.approx(0.904 * 0.99 / (0.904 * 0.99 + 0.2 * 0.01))
    assert predictive_values(0.0, 1.0, 0.1) == {"ppv": 0.0, "npv": pytest.approx(0.9)}
    assert predictive_values(1.0, 0.0, 0.1) == {"ppv": pytest.approx(0.1), "npv": 0.0}
