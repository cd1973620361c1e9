"""What is measured by site: the mean over sites, groups, a fit of the site's own, and what a site gives away."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pneumo_edge.bundle import Calibration
from pneumo_edge.calibrate import measure as measure_module
from pneumo_edge.calibrate.measure import Sample, measure, measure_mean
from pneumo_edge.calibrate.platt import probabilities
from pneumo_train.films import FilmFile
from pneumo_train.run import Films
from pneumo_train.sites import measure_sites, probe_sites, site_weights, weigh_sites

pytest.importorskip("sklearn", reason="needs the train extra")

THRESHOLDS = {"balanced": 0.5, "screening": 0.2}
PLAIN = Calibration(1.0, 0.0, 0.5)


@pytest.fixture(autouse=True)
def few_replicates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_module, "REPLICATES", 300)


def films_of(site: str, labels: Sequence[int], **known: Any) -> list[FilmFile]:
    return [
        FilmFile(f"{site}/{i}.png", label, f"person{i}", "train", site, **{k: v[i] for k, v in known.items()})
        for i, label in enumerate(labels)
    ]


def as_films(files: Sequence[FilmFile]) -> Films:
    labels = np.array([film.label for film in files])
    return Films(tuple(files), np.zeros((len(files), 1, 1), np.uint8), labels)


def scores(labels: Sequence[int], gap: float, seed: int) -> npt.NDArray[np.float64]:
    """Logits whose classes lie `gap` apart."""
    return (np.array(labels) - 0.5) * gap + np.random.default_rng(seed).normal(0, 1, len(labels))


def two_sites() -> tuple[Films, npt.NDArray[np.float64]]:
    """A good site of 200 films, a poor one of 80."""
    good, poor = [0, 1] * 100, [0, 0, 0, 1] * 20
    films = as_films([*films_of("good", good), *films_of("poor", poor)])
    return films, np.concatenate([scores(good, 4, 0), scores(poor, 1, 1)])


# ------------------------------------------------------------------------------------------------ the mean over sites


def test_each_site_has_the_same_say() -> None:
    films, logits = two_sites()
    found = measure_sites(films, logits, PLAIN, THRESHOLDS)
    json.dumps(found, allow_nan=False)
    sites = found["sites"]
    assert list(sites) == ["good", "poor"]
    assert sites["good"]["auc"]["value"] > sites["poor"]["auc"]["value"] + 0.1
    for name in ("auc", "average_precision", "brier", "ece"):
        mean = (sites["good"][name]["value"] + sites["poor"][name]["value"]) / 2
        assert found["mean"][name]["value"] == pytest.approx(mean), name
        assert found["mean"][name]["low"] < mean < found["mean"][name]["high"], name
    for point in THRESHOLDS:
        for share in ("accuracy", "sensitivity", "specificity"):
            each = [sites[site]["operating_points"][point][share]["value"] for site in sites]
            assert found["mean"]["operating_points"][point][share]["value"] == pytest.approx(np.mean(each)), share
    # Of all films together it is what it always was.
    alone = measure(films.labels, probabilities(logits, PLAIN), films.patients, THRESHOLDS)
    assert {name: found[name] for name in alone} == alone


def test_the_interval_of_the_mean_is_that_of_independent_sites() -> None:
    labels = np.array([0, 1] * 60)
    first, second = (probabilities(scores(labels.tolist(), 1.5, seed), PLAIN) for seed in (0, 1))
    names = [str(i) for i in range(120)]
    alone = measure_mean([Sample(labels, first, names)], THRESHOLDS)
    both = measure_mean([Sample(labels, first, names), Sample(labels, second, names)], THRESHOLDS)
    again = measure_mean([Sample(labels, first, names), Sample(labels, first, names)], THRESHOLDS)

    def width(found: dict[str, Any]) -> float:
        return float(found["auc"]["high"] - found["auc"]["low"])

    # Half as wide by the root of two; also where the sites have as many patients, whose draws must not go together.
    for found in (both, again):
        assert width(found) == pytest.approx(width(alone) / math.sqrt(2), rel=0.25)
    point = measure(labels, first, names, THRESHOLDS)
    assert alone["auc"]["value"] == pytest.approx(point["auc"]["value"])
    assert alone["operating_points"]["screening"]["sensitivity"]["value"] == pytest.approx(
        point["operating_points"]["screening"]["sensitivity"]["value"]
    )


def test_a_site_of_one_class_is_measured_as_far_as_it_can_be() -> None:
    both, normals = [0, 1] * 30, [0] * 40
    films = as_films([*films_of("both", both), *films_of("normals", normals)])
    logits = np.concatenate([scores(both, 4, 0), np.repeat([-2.0, 2.0], [30, 10])])
    found = measure_sites(films, logits, PLAIN, THRESHOLDS)
    assert list(found["sites"]) == ["both"]
    assert found["mean"]["auc"]["value"] == pytest.approx(found["sites"]["both"]["auc"]["value"])
    alone = found["one_class"]["normals"]
    assert (alone["label"], alone["n"], alone["patients"]) == ("NORMAL", 40, 40)
    assert alone["right"]["balanced"]["value"] == pytest.approx(0.75)
    assert alone["right"]["balanced"]["low"] < 0.75 < alone["right"]["balanced"]["high"]


def test_one_class_everywhere_is_no_reason_to_fail() -> None:
    films = as_films(films_of("ill", [1] * 10))
    found = measure_sites(films, np.array([1.0] * 8 + [-1.0] * 2), PLAIN, THRESHOLDS)
    json.dumps(found, allow_nan=False)
    assert (found["n"], found["prevalence"], found["mean"]) == (10, 1.0, None)
    assert found["one_class"]["ill"]["right"]["balanced"]["value"] == pytest.approx(0.8)
    assert "auc" not in found


# --------------------------------------------------------------------------------------------- a fit of the site's own


def test_a_site_that_is_moved_would_gain_from_a_fit_of_its_own() -> None:
    labels = [0, 1] * 150
    moved = scores(labels, 4, 0) * 2 + 3
    found = measure_sites(as_films(films_of("moved", labels)), moved, PLAIN, THRESHOLDS)["sites"]["moved"]
    own = found["own"]
    assert own["ece"]["value"] < found["ece"]["value"] - 0.1
    at = own["operating_points"]["balanced"]
    assert at["accuracy"]["value"] > found["operating_points"]["balanced"]["accuracy"]["value"] + 0.1
    assert at["specificity"]["low"] <= at["specificity"]["value"] <= at["specificity"]["high"]
    # Centres at 3 -+ 4, of deviation 2: the log odds are (logit - 3) x 8 / 4.
    assert own["calibration"]["scale"] == pytest.approx(2.0, rel=0.35)
    assert -own["calibration"]["offset"] / own["calibration"]["scale"] == pytest.approx(3.0, abs=0.6)


def test_a_fit_of_its_own_has_not_seen_the_films_that_it_judges() -> None:
    # Scores that say nothing: fitted and judged on the same films they would still say a little.
    labels = np.random.default_rng(5).integers(0, 2, 200).tolist()
    found = measure_sites(as_films(films_of("noise", labels)), scores(labels, 0.0, 6), PLAIN, THRESHOLDS)
    own = found["sites"]["noise"]["own"]
    assert own is None or own["operating_points"]["balanced"]["accuracy"]["value"] < 0.56


def test_few_films_have_no_fit_of_their_own() -> None:
    labels = [0] * 50 + [1] * 19
    found = measure_sites(as_films(films_of("few", labels)), scores(labels, 3, 0), PLAIN, THRESHOLDS)
    assert found["sites"]["few"]["own"] is None


# ------------------------------------------------------------------------------------------------------ the groups


def test_groups_are_measured_as_far_as_their_films_go() -> None:
    # Of both classes the PA films, of normals alone the AP ones; views of the others are not known.
    labels = [0, 1] * 30 + [0] * 25 + [1] * 5 + [1] * 30
    view = ["PA"] * 60 + ["AP"] * 30 + [""] * 30
    age = [30.0] * 60 + [2.0] * 25 + [None] * 35
    logits = scores(labels, 4, 0)
    films = as_films(films_of("s", labels, view=view, age=age))
    groups = measure_sites(films, logits, PLAIN, THRESHOLDS)["sites"]["s"]["groups"]
    assert list(groups) == ["age", "view"]
    assert list(groups["age"]) == ["0 to 4", "18 to 39"]
    pa, ap = groups["view"]["PA"], groups["view"]["AP"]
    assert (pa["n"], pa["positives"]) == (60, 30)
    alone = measure(np.array(labels[:60]), probabilities(logits[:60], PLAIN), [str(i) for i in range(60)], THRESHOLDS)
    assert pa["auc"]["value"] == pytest.approx(alone["auc"]["value"])
    assert (ap["n"], ap["positives"]) == (30, 5)
    assert "auc" not in ap
    assert set(ap["operating_points"]["balanced"]) == {"specificity"}
    normal = np.array(labels[60:90]) == 0
    spared = float(np.mean(logits[60:90][normal] < 0))
    assert ap["operating_points"]["balanced"]["specificity"]["value"] == pytest.approx(spared)


def test_groups_that_are_too_small_are_left_out() -> None:
    labels = [0, 1] * 15
    found = measure_sites(as_films(films_of("s", labels, view=["PA"] * 30)), scores(labels, 3, 0), PLAIN, THRESHOLDS)
    assert found["sites"]["s"]["groups"] == {}


# ------------------------------------------------------------------------------------------- what a site gives away


def test_weights_take_from_the_site_what_it_says_of_the_class() -> None:
    pytest.importorskip("keras", reason="needs the train extra")
    files = [*films_of("ill", [1] * 90 + [0] * 10), *films_of("well", [1] * 30 + [0] * 270)]
    weighed = weigh_sites(files)
    assert weighed["ill"]["prevalence"] == pytest.approx(0.9)
    assert weighed["well"]["prevalence"] == pytest.approx(0.1)
    for site in weighed.values():
        assert site["weighted_prevalence"] == pytest.approx(0.5, abs=1e-6)
    # As the square root of the number of films.
    assert weighed["well"]["weight"] / weighed["ill"]["weight"] == pytest.approx(math.sqrt(3), rel=1e-5)


def test_the_probe_finds_the_site_and_not_the_class() -> None:
    pytest.importorskip("keras", reason="needs the train extra")
    files = [*films_of("ill", [1] * 90 + [0] * 10), *films_of("well", [1] * 20 + [0] * 80)]
    films = as_films(files)
    rng = np.random.default_rng(0)
    features = rng.normal(0, 1, (200, 6)) + np.where(np.arange(200) < 100, 4, 0)[:, np.newaxis]
    found = probe_sites(files, files, films.labels, films.patients, lambda: features)
    assert found is not None
    json.dumps(found, allow_nan=False)
    assert found["weighing"] == weigh_sites(files)
    assert found["class_from_site"]["films_as_they_are"] > 0.8
    assert found["class_from_site"]["films_weighed"] == pytest.approx(0.5, abs=1e-6)
    assert found["site_from_features"] > 0.95
    assert found["guess"] == 0.5
    blind = probe_sites(files, files, films.labels, films.patients, lambda: rng.normal(0, 1, (200, 6)))
    assert blind is not None
    assert 0.3 < blind["site_from_features"] < 0.7


def test_one_site_has_nothing_to_give_away() -> None:
    films = as_films(films_of("s", [0, 1] * 10))

    def never() -> npt.NDArray[np.float64]:
        raise AssertionError

    assert probe_sites(films.files, films.files, films.labels, films.patients, never) is None


def test_sites_weigh_alike_in_calibration() -> None:
    weights = site_weights(["a", "a", "a", "b"])
    assert weights.tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2])
    assert weights.mean() == pytest.approx(1)
