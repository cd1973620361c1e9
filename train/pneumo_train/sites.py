"""Measures of a model at each site and in the mean over sites; descriptions of the patients of each site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumo_edge.bundle import LABELS, Calibration
from pneumo_edge.calibrate.measure import Sample, bootstrap_weights, mean_of, measure, measure_mean, weighted_auc
from pneumo_edge.calibrate.platt import Floats, Labels, choose_thresholds, fit_calibration, probabilities
from pneumo_edge.errors import DataError
from pneumo_train.films import FilmFile
from pneumo_train.run import Films, RunFilms
from pneumo_train.split import TEST, TRAIN, VALIDATION

SHARES = ("sensitivity", "specificity")

GROUP_FILMS = 20
"""Films of a class that a group needs at least: of fewer nothing can be said."""
AGES = {
    "0 to 4": (0, 5), "5 to 17": (5, 18), "18 to 39": (18, 40), "40 to 59": (40, 60), "60 to 79": (60, 80),
    "80 and over": (80, 1000),
}  # fmt: skip
"""Age groups: from, below, in years."""
FOLDS = 5
"""Parts for cross-fitting."""


def site_weights(sites: Sequence[str]) -> npt.NDArray[np.float64]:
    """Returns (N,) weights by which each site counts the same, 1 in the mean."""
    counts = Counter(sites)
    return np.array([len(sites) / len(counts) / counts[site] for site in sites])


def measure_sites(
    films: Films, logits: Floats, calibration: Calibration, thresholds: dict[str, float]
) -> dict[str, Any]:
    """Measures films all together, at each site, and in the mean over the sites.

    Args:
        films: Films of one class or of both.
        logits: (N,)
        calibration: The one of all sites.
        thresholds: Operating point -> threshold on the calibrated probability, the same for all sites.

    Returns:
        n, patients, prevalence, and where films of both classes are there all that `measure` of
        `pneumo_edge.calibrate.measure` gives for them together.
        `sites`: site -> the same for each site with films of both classes, with `own` (see `_own_would_give`) and
        `groups` (see `_groups`).
        `one_class`: site -> label, n, and at each operating point the share of right verdicts, where a site has films
        of one class alone.
        `mean`: what `measure_mean` gives over `sites`; None where there is none.
    """
    probability = probabilities(logits, calibration)
    found: dict[str, Any] = {}
    one_class: dict[str, Any] = {}
    samples = []
    for site, (here, sample) in _by_site(films, probability).items():
        if _has_both(sample):
            samples.append(sample)
            found[site] = measure(sample.labels, sample.probabilities, sample.patients, thresholds) | {
                "own": _own_would_give(sample, logits[here]),
                "groups": _groups([films.files[i] for i in here], sample, thresholds),
            }
        else:
            label = int(sample.labels[0])
            one_class[site] = {"label": LABELS[label], "n": len(here), **_one_class(sample, thresholds)}
    whole: dict[str, Any] = {
        "n": len(films.files), "patients": len(set(films.patients)), "prevalence": float(films.labels.mean()),
    }  # fmt: skip
    if set(films.labels.tolist()) == {0, 1}:
        whole = measure(films.labels, probability, films.patients, thresholds)
    return whole | {
        "sites": found, "one_class": one_class, "mean": measure_mean(samples, thresholds) if samples else None,
    }  # fmt: skip


def measure_mean_of_sites(films: Films, probability: Floats, thresholds: dict[str, float]) -> dict[str, Any]:
    """Returns what `measure_mean` gives over the sites with films of both classes; there must be one."""
    samples = [sample for _, sample in _by_site(films, probability).values()]
    return measure_mean([sample for sample in samples if _has_both(sample)], thresholds)


def _by_site(films: Films, probability: Floats) -> dict[str, tuple[list[int], Sample]]:
    places = np.array(films.sites)
    found = {}
    for site in dict.fromkeys(films.sites):
        here = np.flatnonzero(places == site).tolist()
        found[site] = here, Sample(films.labels[here], probability[here], [films.patients[i] for i in here])
    return found


def _has_both(sample: Sample) -> bool:
    return set(sample.labels.tolist()) == {0, 1}


def _one_class(sample: Sample, thresholds: dict[str, float]) -> dict[str, Any]:
    """Returns the share of right verdicts at each operating point for films of one class, and how many there are."""
    weights = bootstrap_weights(sample.patients)
    right = {
        name: ((sample.probabilities >= threshold) == (sample.labels == 1)).astype(np.float64)
        for name, threshold in thresholds.items()
    }
    return {"patients": len(set(sample.patients)), "right": {name: mean_of(r, weights) for name, r in right.items()}}


def _groups(files: Sequence[FilmFile], sample: Sample, thresholds: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Measures the films of one site by age group and by view, where these are known.

    Returns:
        "age" and "view": group -> n and positives, AUC where both classes have `GROUP_FILMS` films, and for each
        operating point sensitivity and specificity where the class that it is about has so many. Groups are those of
        one site: over several the share of the ill would go with the group.
    """
    named: dict[str, list[str]] = {
        "age": ["" if film.age is None else _age_group(film.age) for film in files],
        "view": [film.view for film in files],
    }
    groups: dict[str, dict[str, Any]] = {}
    for kind, names in named.items():
        order = list(AGES) if kind == "age" else sorted(set(names))
        found = {}
        for group in order:
            here = np.array([i for i, name in enumerate(names) if name == group and name], dtype=int)
            labels = sample.labels[here]
            enough = [int(np.sum(labels == label)) >= GROUP_FILMS for label in range(len(LABELS))]
            if any(enough):
                part = Sample(labels, sample.probabilities[here], [sample.patients[i] for i in here])
                found[group] = _group(part, enough, thresholds)
        if found:
            groups[kind] = found
    return groups


def _group(part: Sample, enough: Sequence[bool], thresholds: dict[str, float]) -> dict[str, Any]:
    found: dict[str, Any] = {"n": len(part.labels), "positives": int(part.labels.sum())}
    if all(enough):
        return found | measure_mean([part], thresholds)
    # Of one class: the share of its films that are judged rightly is all that can be said.
    label = enough.index(True)
    mine = np.flatnonzero(part.labels == label).tolist()
    sample = Sample(part.labels[mine], part.probabilities[mine], [part.patients[i] for i in mine])
    right = _one_class(sample, thresholds)["right"]
    share = SHARES[1 - label]
    return found | {"operating_points": {name: {share: value} for name, value in right.items()}}


def _age_group(age: float) -> str:
    return next((name for name, (low, high) in AGES.items() if low <= age < high), "")


def _own_would_give(sample: Sample, logits: Floats) -> dict[str, Any] | None:
    """Returns what a calibration and a threshold of the site's own would give.

    Cross-fitted: both are fitted on four fifths of these films, cut by patient, and used on the rest, five times, so
    that each film is judged by a fit that has not seen its patient.

    Returns:
        ece, and accuracy, sensitivity and specificity at the operating point "balanced"; calibration: scale and offset
        on all films together. None where a class has too few films or patients for that.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    labels = sample.labels
    if min(np.bincount(labels, minlength=len(LABELS))) < GROUP_FILMS:
        return None
    called = np.zeros(len(labels))
    p = np.zeros(len(labels))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    try:
        for learned, judged in folds.split(logits, labels, sample.patients):
            own = fit_calibration(labels[learned], logits[learned])
            p[judged] = probabilities(logits[judged], own)
            point = choose_thresholds(labels[learned], probabilities(logits[learned], own))["balanced"]
            called[judged] = (p[judged] >= point).astype(float)
        calibration = fit_calibration(labels, logits)
    except (DataError, ValueError):
        return None
    right = measure_mean([Sample(labels, called, sample.patients)], {"balanced": 0.5})["operating_points"]["balanced"]
    ece = measure_mean([Sample(labels, p, sample.patients)], {})["ece"]
    return {"calibration": asdict(calibration), "ece": ece, "operating_points": {"balanced": right}}


def describe_sites(films: RunFilms) -> dict[str, Any]:
    """Returns who the training films of each site show. The bundle states it as the people that its model knows."""
    described = {}
    for site in dict.fromkeys(film.site for film in films.files):
        pairs = [(f, part) for f, part in zip(films.files, films.split, strict=True) if f.site == site]
        learned = [f for f, part in pairs if part == TRAIN]
        ages = sorted(f.age for f in learned if f.age is not None)
        used = Counter(f"{part}/{LABELS[f.label]}" for f, part in pairs if part in {TRAIN, VALIDATION, TEST})
        described[site] = {
            "films": dict(used),
            "patients": len({f.patient for f in learned}),
            "ages": None
            if not ages
            else dict(zip(("low", "median", "high"), np.quantile(ages, (0.01, 0.5, 0.99)).tolist(), strict=True))
            | {"known": len(ages)},
            "views": dict(Counter(f.view for f in learned if f.view)),
            "sexes": dict(Counter(f.sex for f in learned if f.sex)),
        }
    return described


def weigh_sites(files: Sequence[FilmFile]) -> dict[str, dict[str, float]]:
    """Returns for each site of the training films its share of all weight, and the share of pneumonias with and without
    weights: the second must be one half, or the site tells the class.
    """
    from pneumo_train.batches import film_weights

    weights = film_weights(files).astype(np.float64) if files else np.zeros(0)
    labels = np.array([film.label for film in files])
    places = np.array([film.site for film in files])
    return {
        str(site): {
            "weight": float(weights[places == site].sum() / weights.sum()),
            "prevalence": float(labels[places == site].mean()),
            "weighted_prevalence": float(np.average(labels[places == site], weights=weights[places == site])),
        }
        for site in dict.fromkeys(places.tolist())
    }


def probe_sites(
    learned: Sequence[FilmFile],
    files: Sequence[FilmFile],
    labels: Labels,
    patients: Sequence[str],
    features: Callable[[], Floats],
) -> dict[str, Any] | None:
    """Asks what the site gives away of the class, and what the network's features give away of the site.

    Args:
        learned: Films of training.
        files: Films that were not learned from.
        labels, patients: Their labels and patients.
        features: Makes (N, F), what the last layer of the network's body knows of each film.

    Returns:
        weighing: what `weigh_sites` says of the films of training.
        class_from_site: AUC for the class of a judge who is told the site alone and knows how many are ill there, with
        films as they are and with films weighed as in training: the latter is 0.5 where the weights do what they
        should.
        site_from_features: share of films, each site with the same say, whose site a linear classifier finds that has
        not seen their patients (five folds); guess: the same by guessing.
        None where there is one site.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from pneumo_train.batches import film_weights

    sites = np.array([film.site for film in files])
    known = np.unique(sites)
    if len(known) < 2:
        return None

    def area(weights: Floats) -> float:
        told = np.zeros(len(labels))
        for site in known:
            told[sites == site] = np.round(np.average(labels[sites == site], weights=weights[sites == site]), 6)
        return float(weighted_auc(labels, told, weights[np.newaxis])[0])

    found: dict[str, Any] = {
        "weighing": weigh_sites(learned),
        "class_from_site": {
            "films_as_they_are": area(np.ones(len(labels))),
            "films_weighed": area(film_weights(files).astype(np.float64)),
        },
        "guess": 1 / len(known),
    }
    judge = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500, class_weight="balanced"))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    try:
        told = cross_val_predict(judge, features(), sites, groups=list(patients), cv=folds)
    except ValueError:
        # Fewer films of a site than folds.
        return found | {"site_from_features": None}
    shares = []
    for site in known:
        here = np.flatnonzero(sites == site).tolist()
        weights = bootstrap_weights([patients[i] for i in here])
        shares.append(mean_of((told[here] == site).astype(np.float64), weights))
    return found | {
        "site_from_features": float(np.mean([share["value"] for share in shares])),
        "found_by_site": {str(site): share for site, share in zip(known, shares, strict=True)},
    }
