"""The gate: a file that is not as good as the Keras model is refused.

Candidates are run through the very backends that ship in `pneumo_edge`: what is gated is what runs. All failures are
collected, then reported at once.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import comb
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumo_edge.backends import Backend, Outputs, open_backend
from pneumo_edge.bundle import ENGINE_OF_SUFFIX, LABELS, Calibration
from pneumo_edge.calibrate.measure import measure, weighted_auc
from pneumo_edge.calibrate.platt import Floats, Labels, probabilities
from pneumo_edge.classifier import usable_cores
from pneumo_edge.command_line import tracked
from pneumo_edge.plausibility import contrast
from pneumo_edge.preprocess import Pixels
from pneumo_edge.reference import make_reference
from pneumo_export.quantise import float_share
from pneumo_train.pointing import choose_region_threshold, points_into_a_box
from pneumo_train.run import Films

FP32_LOGIT = 1e-3
AUC_DROP = 0.002
DISTINCT_SHARE = 0.9
DISTINCT_FILMS = 0.5
"""Distinct scores that the judged films must have at least, as a share of them: a network that answers the same for all
has nothing that int8 could lose."""
WITHHELD_POINTS = 1.0
POINTING_DROP = 0.01
"""Share of the films with boxes."""
FLOAT_SHARE = 0.1
SIZE_SHARE = {"local": 0.35, "gap": 0.35, "flatten": 0.40}
"""Bytes of an int8 file against the float one. A quarter and the float statistics of novelty, a few hundredths for each
site in a light network."""
FREE_FLIPS = 2
"""Films that may change in any case: in a small set one film is more than a point."""

_NO_NUMBER = 1e30
ENOUGH_FILMS = 100
"""Films of a class. With fewer, the gate refuses a loss of AUC only beyond doubt, and says how little it can see."""


@dataclass(frozen=True)
class Judged:
    """Outputs of a model for the validation films, as they are and under the site perturbation."""

    logit: npt.NDArray[np.float32]
    """(2 N,): the clean films, then the perturbed."""
    novelty: npt.NDArray[np.float32]
    """(2 N,)"""
    heatmap: npt.NDArray[np.float32]
    """(2 N, h, w)"""


@dataclass(frozen=True)
class Candidate:
    """A file to judge, and its properties apart from its outputs."""

    precision: str
    """"fp32" or "int8"."""
    size: int
    """Bytes."""
    fp32_size: int
    """Bytes of the float file of its format."""
    float_share: float
    """Share of the convolution weights that is not int8, 0 to 1."""


@dataclass(frozen=True)
class Gate:
    """Judge of all files of one export."""

    validation: Films
    """N films."""
    perturbed: Pixels
    """uint8 (N, S, S): the same under the site perturbation."""
    logit: npt.NDArray[np.float32]
    """(2 N,), of the Keras model as trained, before anything was folded: the films as they are, then perturbed."""
    heatmap: npt.NDArray[np.float32]
    """(2 N, h, w), likewise."""
    calibration: Calibration
    """Calibration of the run."""
    threshold: float
    """Threshold of the default operating point, on the calibrated probability."""
    head: str
    size: int
    """Side of the films in pixels."""
    max_drop: float
    """Percentage points of right verdicts that each class may lose, beyond `FREE_FLIPS` films."""

    def open(self, name: str, content: bytes) -> Backend:
        """Opens a file as a device does."""
        return open_backend(ENGINE_OF_SUFFIX[Path(name).suffix], content, self.size, usable_cores(), name)

    def judge_file(
        self, name: str, precision: str, content: bytes, fp32: Judged | None, fp32_size: int
    ) -> tuple[dict[str, Any], Judged]:
        """Runs all films through a file; returns its entry in `parity.json`, and what it put out.

        Args:
            name: Name of the file.
            precision: "fp32" or "int8".
            content: Bytes of the file.
            fp32: Outputs of the float file of the same format; None if this is that file.
            fp32_size: Size in bytes of that float file.
        """
        films = np.concatenate([self.validation.pixels, self.perturbed])
        outputs, milliseconds = run_timed(self.open(name, content), films, f"judging {name}")
        found = Judged(outputs.logit, outputs.novelty, outputs.heatmap)
        candidate = Candidate(precision, len(content), fp32_size, float_share(content, name))
        record = self.judge(candidate, found, fp32 or found)
        record |= {
            "sha256": hashlib.sha256(content).hexdigest(),
            "milliseconds": milliseconds,
            "intervals": self._intervals(found.logit),
        }
        return record, found

    def judge(self, candidate: Candidate, found: Judged, fp32: Judged) -> dict[str, Any]:
        """Compares what a file puts out with the Keras model, and lists every way in which it fails.

        Args:
            candidate: The file.
            found: Outputs of the file.
            fp32: Outputs of the float file of the same format.

        Returns:
            The file's entry in `parity.json`; `failures` is empty where it passed.
        """
        labels, n = self.validation.labels, len(self.validation.labels)
        limit, reference_limit = novelty_limit(found.novelty), novelty_limit(fp32.novelty)
        record: dict[str, Any] = {
            "precision": candidate.precision,
            "bytes": candidate.size,
            "size_share_of_fp32": candidate.size / candidate.fp32_size,
            "novelty_limit": limit,
            "logit_difference": _difference(found.logit, self.logit),
            "heatmap_difference": _difference(found.heatmap, self.heatmap),
            "distinct_scores": len(np.unique(found.logit)),
            "distinct_scores_fp32": len(np.unique(fp32.logit)),
            "float_share_of_convolution_weights": candidate.float_share,
            "probability_difference": _difference(
                probabilities(found.logit, self.calibration), probabilities(self.logit, self.calibration)
            ),
            "withheld": float(np.mean(found.novelty > limit)),
            "reference": self._reference(found.logit[:n], found.novelty[:n]),
            # Each at its own limit, which is a percentile: the shares alone would always agree.
            "withheld_otherwise": int(np.sum((found.novelty > limit) != (fp32.novelty > reference_limit))),
            "region_threshold": None,
            "pointing": None,
        }
        if self.head == "local":
            record |= self._local(np.nan_to_num(found.heatmap[:n]))
        for part, films in (("clean", slice(0, n)), ("perturbed", slice(n, 2 * n))):
            record[part] = self._compare(found.logit[films], self.logit[films], labels)
        record["pooled"] = self._compare(found.logit, self.logit, np.concatenate([labels, labels]))
        record["failures"] = _failures(candidate, record, self.head, self.max_drop)
        return record

    def _local(self, heatmap: Floats) -> dict[str, Any]:
        """Chooses the threshold of a region by the file's own maps, and counts where they point."""
        boxes = [film.boxes for film in self.validation.files]
        chosen = choose_region_threshold(heatmap, boxes, self.validation.labels)
        boxed = [i for i, film in enumerate(boxes) if film]
        if not boxed:
            return {"region_threshold": chosen}
        hits, of_keras = (points_into_a_box(maps[boxed], [boxes[i] for i in boxed]) for maps in (heatmap, self.heatmap))
        pointing = {"films": len(boxed), "hits": int(hits.sum()), "hits_keras": int(of_keras.sum())}
        return {"region_threshold": chosen, "pointing": pointing}

    def _reference(self, logit: Floats, novelty: Floats) -> dict[str, Any] | None:
        """Returns what `pneumo_edge.bundle.Reference` holds, as JSON has it."""
        contrasts = np.array([contrast(film) for film in self.validation.pixels])
        found = make_reference(logit, novelty, contrasts, self.validation.sites)
        if found is None:
            return None
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(found).items()}

    def _compare(self, logit: Floats, reference: Floats, labels: Labels) -> dict[str, Any]:
        everyone = np.ones((1, len(labels)))
        right = (probabilities(logit, self.calibration) >= self.threshold) == (labels == 1)
        was_right = (probabilities(reference, self.calibration) >= self.threshold) == (labels == 1)
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
                for label, name in enumerate(LABELS)
            },
        }

    def _intervals(self, logit: Floats) -> dict[str, dict[str, dict[str, float]]]:
        """Returns, for clean and perturbed films, AUC, accuracy, sensitivity and specificity with 95 % intervals."""
        labels, n = self.validation.labels, len(self.validation.labels)
        found = {}
        for part, films in (("clean", slice(0, n)), ("perturbed", slice(n, 2 * n))):
            p = probabilities(np.nan_to_num(logit[films]), self.calibration)
            measured = measure(labels, p, self.validation.patients, {"default": self.threshold})
            at = measured["operating_points"]["default"]
            shares = {name: at[name] for name in ("accuracy", "sensitivity", "specificity")}
            found[part] = {"auc": measured["auc"]} | shares
        return found


def run_backend(backend: Backend, films: Pixels, name: str) -> Outputs:
    """Runs films uint8 (N, S, S) one by one, as a device does."""
    return run_timed(backend, films, f"judging {name}")[0]


def run_timed(backend: Backend, films: Pixels, what: str) -> tuple[Outputs, float]:
    """Runs films uint8 (N, S, S) one by one; returns what comes out, and the median milliseconds of one film.

    Args:
        backend: The file, loaded.
        films: At least one.
        what: Title of the progress bar.
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

    The 99th percentile, and a twentieth above it for what a few hundred films have not shown. The perturbed films stand
    for other sites: a limit from clean films alone would call another scanner's exposure another kind of picture.
    """
    return float(np.quantile(novelty, 0.99)) * 1.05


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
        # The map of `flatten` jumps where a hidden unit is at its kink; that of `local` is made of logits as well.
        largest = record["heatmap_difference"]["max"]
        if head == "local" and not largest <= FP32_LOGIT:
            failures.append(f"the heatmap differs from Keras by up to {largest:.2g}, allowed are {FP32_LOGIT:g}")
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
        record: Result of `Gate.judge`.
        max_drop: Allowed loss of right verdicts, as in `Gate`.
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
    if record["pointing"] is not None:
        pointing = record["pointing"]
        lost, allowed = pointing["hits_keras"] - pointing["hits"], max(FREE_FLIPS, POINTING_DROP * pointing["films"])
        if lost > allowed:
            failures.append(
                f"the heatmap points into a box in {pointing['hits']} of {pointing['films']} films, that of Keras in "
                f"{pointing['hits_keras']}: allowed are {allowed:.1f} fewer"
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


def _auc_drop(logit: Floats, reference: Floats, labels: Labels) -> dict[str, float]:
    """Returns the loss of AUC with its 95 % interval. The same films are drawn for both models (paired bootstrap)."""
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
        auc: AUC of the Keras model on them: value, low, high.
    """
    counts = np.bincount(labels, minlength=2)
    if counts.min() >= ENOUGH_FILMS:
        return None
    return (
        f"only {counts[0]} NORMAL and {counts[1]} PNEUMONIA validation films: one film is "
        f"{100 / counts.min():.1f} points of its class, and the AUC of {auc['value']:.4f} may be anything from "
        f"{auc['low']:.4f} to {auc['high']:.4f}, so the gate can see large losses only"
    )
