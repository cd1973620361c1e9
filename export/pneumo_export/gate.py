"""The gate: a file that is not as good as the Keras model does not leave.

Candidates are run through the very backends that ship in `pneumo_edge`: what is gated is what runs. All failures are
collected, then reported at once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumo_edge.backends import Backend, Outputs
from pneumo_edge.bundle import Calibration
from pneumo_edge.command_line import tracked
from pneumo_edge.preprocess import Pixels
from pneumo_train.calibrate import Floats, Labels, probabilities
from pneumo_train.measure import measure, weighted_auc

FP32_LOGIT = 1e-3
AUC_DROP = 0.002
DISTINCT_SHARE = 0.9
DISTINCT_FILMS = 0.5
"""Distinct scores that the judged films must have at least, as a share of them: a network that answers the same for all
has nothing that int8 could lose."""
WITHHELD_POINTS = 1.0
FLOAT_SHARE = 0.1
SIZE_SHARE = {"local": 0.30, "gap": 0.30, "flatten": 0.35}
FREE_FLIPS = 2
"""Films that may change in any case: in a small set one film is more than a point."""

_NO_NUMBER = 1e30
ENOUGH_FILMS = 100
"""Per class; with fewer the gate asks for a loss of AUC beyond doubt, and says how little it can see."""


@dataclass(frozen=True)
class Judged:
    """What a model puts out for the validation films, as they are and under the site perturbation."""

    logit: npt.NDArray[np.float32]
    """(2 N,): the clean films, then the perturbed."""
    novelty: npt.NDArray[np.float32]
    """(2 N,)"""


@dataclass(frozen=True)
class Candidate:
    """A file that wants to leave, and what has been measured of it apart from its answers."""

    precision: str
    """"fp32" or "int8"."""
    size: int
    """Bytes."""
    float_share: float
    """Of the convolution weights, how much is not int8; 0 to 1."""


def run_backend(backend: Backend, films: Pixels, name: str) -> Outputs:
    """Runs films uint8 (N, S, S) one by one, as a device does."""
    return run_timed(backend, films, f"judging {name}")[0]


def run_timed(backend: Backend, films: Pixels, what: str) -> tuple[Outputs, float]:
    """Runs films uint8 (N, S, S) one by one; returns what comes out, and the median milliseconds of one film.

    Args:
        backend: The file, loaded.
        films: At least one.
        what: What the progress bar says.
    """
    answers, times = [], []
    for film in tracked(films, what, len(films)):
        start = time.perf_counter()
        answers.append(backend.run(film[np.newaxis, ..., np.newaxis]))
        times.append(time.perf_counter() - start)
    return Outputs(*(np.concatenate(parts) for parts in zip(*answers, strict=True))), median(times) * 1e3


def novelty_limit(novelty: Floats) -> float:
    """Returns the limit above which a picture is called out of distribution.

    Args:
        novelty: (2 N,), of the validation films, clean and perturbed.

    The 99th percentile, and a tenth above it for what a few hundred films have not shown. The perturbed films stand for
    other sites: a limit from clean films alone would call another scanner's exposure another kind of picture.
    """
    return float(np.quantile(novelty, 0.99)) * 1.1


def judge(
    candidate: Candidate,
    found: Judged,
    keras: Floats,
    fp32: Judged,
    fp32_size: int,
    labels: Labels,
    calibration: Calibration,
    threshold: float,
    head: str,
    max_drop: float,
) -> dict[str, Any]:
    """Compares one file with the Keras model and lists every way in which it fails.

    Args:
        candidate: The file.
        found: What it puts out.
        keras: (2 N,), logits of the Keras model as trained, before anything was folded.
        fp32: What the float file of the same format puts out.
        fp32_size: Bytes of that float file.
        labels: (N,) of the validation films.
        calibration: Of the run.
        threshold: Of the default operating point, on the calibrated probability.
        head: Of the run.
        max_drop: Percentage points of right verdicts that each class may lose, beyond two films.

    Returns:
        The file's entry in `parity.json`; `failures` is empty where it passed.
    """
    y = np.concatenate([labels, labels])
    limit, reference_limit = novelty_limit(found.novelty), novelty_limit(fp32.novelty)
    record: dict[str, Any] = {
        "precision": candidate.precision,
        "bytes": candidate.size,
        "size_share_of_fp32": candidate.size / fp32_size,
        "novelty_limit": limit,
        "logit_difference": _difference(found.logit, keras),
        "distinct_scores": len(np.unique(found.logit)),
        "distinct_scores_fp32": len(np.unique(fp32.logit)),
        "float_share_of_convolution_weights": candidate.float_share,
        "probability_difference": _difference(
            probabilities(found.logit, calibration), probabilities(keras, calibration)
        ),
        "withheld": float(np.mean(found.novelty > limit)),
        # Each at its own limit, which is a percentile: the shares alone would always agree.
        "withheld_otherwise": int(np.sum((found.novelty > limit) != (fp32.novelty > reference_limit))),
    }
    n = len(labels)
    for part, films in (("clean", slice(0, n)), ("perturbed", slice(n, 2 * n))):
        record[part] = _compare(found.logit[films], keras[films], labels, calibration, threshold)
    record["pooled"] = _compare(found.logit, keras, y, calibration, threshold)
    record["failures"] = _failures(candidate, record, head, max_drop)
    return record


def _failures(candidate: Candidate, record: Mapping[str, Any], head: str, max_drop: float) -> list[str]:
    failures = []
    if record["logit_difference"]["max"] >= _NO_NUMBER:
        failures.append("the logits are not all numbers")
    distinct, films = record["distinct_scores"], record["pooled"]["films"]
    if distinct < DISTINCT_FILMS * films:
        failures.append(f"it has {distinct} distinct scores for {films} films: a model that tells films apart has more")
    if candidate.precision == "fp32":
        largest = record["logit_difference"]["max"]
        if not largest <= FP32_LOGIT:
            failures.append(f"the logit differs from Keras by up to {largest:.2g}, allowed are {FP32_LOGIT:g}")
        return failures
    failures += accuracy_failures(record, max_drop)
    if candidate.float_share > FLOAT_SHARE:
        failures.append(
            f"{candidate.float_share:.0%} of the convolution weights are float, allowed are {FLOAT_SHARE:.0%}"
        )
    if record["size_share_of_fp32"] > SIZE_SHARE[head]:
        size = record["size_share_of_fp32"]
        failures.append(f"it has {size:.0%} of the size of fp32, allowed are {SIZE_SHARE[head]:.0%}")
    return failures


def accuracy_failures(record: Mapping[str, Any], max_drop: float) -> list[str]:
    """Returns the failures of an int8 file that layers moved back to float may mend.

    Args:
        record: What `judge` gave.
        max_drop: As there.
    """
    failures = []
    for part in ("clean", "perturbed"):
        drop = record[part]["auc_drop"]
        # With few films the AUC moves by more than that for one film: there the drop must be beyond doubt.
        few = min(lost["films"] for lost in record[part]["net_loss"].values()) < ENOUGH_FILMS
        if not drop["low" if few else "value"] <= AUC_DROP:
            failures.append(
                f"the AUC on {part} films drops by {drop['value']:.4f} ({drop['low']:.4f} to {drop['high']:.4f}), "
                f"allowed are {AUC_DROP:g}"
            )
        for label, lost in record[part]["net_loss"].items():
            allowed = max(FREE_FLIPS, max_drop / 100 * lost["films"])
            if lost["lost"] > allowed:
                failures.append(
                    f"{lost['lost']} right verdicts on {part} {label} films are lost, allowed are {allowed:.1f}"
                )
    share = record["distinct_scores"] / record["distinct_scores_fp32"]
    if share < DISTINCT_SHARE:
        failures.append(f"it has {share:.0%} of the distinct scores of fp32, at least {DISTINCT_SHARE:.0%} are wanted")
    allowed = max(FREE_FLIPS, WITHHELD_POINTS / 100 * record["pooled"]["films"])
    if record["withheld_otherwise"] > allowed:
        failures.append(
            f"{record['withheld_otherwise']} films are withheld that fp32 judges, or judged that it withholds, "
            f"allowed are {allowed:.1f}"
        )
    return failures


def _difference(a: Floats, b: Floats) -> dict[str, float]:
    away = np.abs(a.astype(np.float64) - b)
    # JSON knows no NaN: a model whose answer is no number differs by as much as can be written.
    away = np.where(np.isfinite(away), away, _NO_NUMBER)
    return {"mean": float(away.mean()), "max": float(away.max())}


def _compare(
    logit: Floats, reference: Floats, labels: Labels, calibration: Calibration, threshold: float
) -> dict[str, Any]:
    everyone = np.ones((1, len(labels)))
    right = (probabilities(logit, calibration) >= threshold) == (labels == 1)
    was_right = (probabilities(reference, calibration) >= threshold) == (labels == 1)
    lost, won = int(np.sum(was_right & ~right)), int(np.sum(right & ~was_right))
    return {
        "films": len(labels),
        "auc": float(weighted_auc(labels, np.nan_to_num(logit), everyone)[0]),
        "auc_keras": float(weighted_auc(labels, reference, everyone)[0]),
        "auc_drop": _auc_drop(np.nan_to_num(logit), reference, labels),
        "accuracy": float(right.mean()),
        "accuracy_keras": float(was_right.mean()),
        "sensitivity": float(right[labels == 1].mean()),
        "specificity": float(right[labels == 0].mean()),
        "flips": {"lost": lost, "won": won, "mcnemar_p": mcnemar(lost, won)},
        "net_loss": {
            name: {
                "films": int(np.sum(labels == label)),
                "lost": int(np.sum(was_right[labels == label])) - int(np.sum(right[labels == label])),
            }
            for label, name in enumerate(("NORMAL", "PNEUMONIA"))
        },
    }


def _auc_drop(logit: Floats, reference: Floats, labels: Labels) -> dict[str, float]:
    """How much AUC is lost, with its 95 % interval: the same films are drawn for both (paired bootstrap)."""
    n = len(labels)
    drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=1000).astype(np.float64)
    weights = np.concatenate([np.ones((1, n)), drawn])
    drop = weighted_auc(labels, reference, weights) - weighted_auc(labels, logit, weights)
    low, high = np.nanpercentile(drop[1:], [2.5, 97.5])
    return {"value": float(drop[0]), "low": float(low), "high": float(high)}


def mcnemar(lost: int, won: int) -> float:
    """Returns the two-sided exact p of McNemar's test: the binomial chance of so uneven a split of the flips.

    Source: McNemar, Psychometrika 1947, in its exact form.
    """
    n = lost + won
    tail = sum(comb(n, k) for k in range(min(lost, won) + 1))
    return min(1.0, 2 * tail / float(2**n))


def too_few(labels: Labels, auc: Mapping[str, float]) -> str | None:
    """Returns a warning where the validation films are too few for the gate to mean much, else None.

    Args:
        labels: (N,), of the validation films.
        auc: Of the Keras model on them: value, low, high.
    """
    counts = np.bincount(labels, minlength=2)
    if counts.min() >= ENOUGH_FILMS:
        return None
    return (
        f"only {counts[0]} NORMAL and {counts[1]} PNEUMONIA validation films: one film is "
        f"{100 / counts.min():.1f} points of its class, and the AUC of {auc['value']:.4f} may be anything from "
        f"{auc['low']:.4f} to {auc['high']:.4f}, so the gate can see large losses only"
    )


def intervals(
    logit: Floats, labels: Labels, patients: Sequence[str], calibration: Calibration, threshold: float
) -> dict[str, dict[str, dict[str, float]]]:
    """Returns, for clean and perturbed films, AUC, accuracy, sensitivity and specificity with their 95 % intervals.

    Args:
        logit: (2 N,): the clean films, then the perturbed.
        labels: (N,)
        patients: N names: their films are resampled together.
        calibration: Of the run.
        threshold: Of the default operating point.
    """
    n = len(labels)
    found = {}
    for part, films in (("clean", slice(0, n)), ("perturbed", slice(n, 2 * n))):
        p = probabilities(np.nan_to_num(logit[films]), calibration)
        measured = measure(labels, p, patients, {"default": threshold})
        at = measured["operating_points"]["default"]
        found[part] = {"auc": measured["auc"]} | {name: at[name] for name in ("accuracy", "sensitivity", "specificity")}
    return found
