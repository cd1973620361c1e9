"""Sums over many rows. The counts of the parts, added in any order, are those of the archive."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Self

import pyarrow as pa

from pneumo_edge.watch import WATCHED

BINS = 50
"""Equal steps of the probability."""

MS_EDGES = tuple(round(base * 10.0**power, 3) for power in range(-1, 5) for base in (1, 1.5, 2, 3, 5, 7))
"""Milliseconds at which the bins of the histograms of times begin, 0.1 to 70,000. The first bin also holds all
below."""

WITHHELD, FAILED = "withheld", "failed"

OTHERS = "others"
_MAX_KINDS = 100
"""Kinds of sentences that are counted apart: some libraries put something new into every sentence."""


@dataclass
class Counts:
    """Counts of films. `+=` adds other counts. Memory does not grow with the number of films."""

    verdicts: Counter[str] = field(default_factory=Counter)
    """"NORMAL", "PNEUMONIA", `WITHHELD`, and `FAILED` for those that could not be judged."""
    probabilities: Counter[tuple[str, int]] = field(default_factory=Counter)
    """(verdict, step of the probability, 0 to `BINS` - 1) -> films."""
    watched: Counter[tuple[str, float]] = field(default_factory=Counter)
    """(of `watch.WATCHED`, its value, rounded) -> films."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Warning -> films with that warning whose verdict is withheld; a film can have several."""
    errors: Counter[str] = field(default_factory=Counter)
    """Kind of error -> films."""
    times: Counter[tuple[str, int]] = field(default_factory=Counter)
    """("read" or "infer", index in `MS_EDGES`) -> films."""
    milliseconds: Counter[str] = field(default_factory=Counter)
    """"read" and "infer" -> sum over the films, in whole milliseconds."""

    @property
    def films(self) -> int:
        return self.verdicts.total()

    def __iadd__(self, other: Self) -> Self:
        for each in fields(self):
            getattr(self, each.name).update(getattr(other, each.name))
        for kinds in (self.reasons, self.errors):
            for kind, films in kinds.most_common()[_MAX_KINDS:]:
                del kinds[kind]
                kinds[OTHERS] += films
        return self


def count_rows(table: pa.Table) -> Counts:
    """Counts the films of one part."""
    counts = Counts()
    names = ["path", "label", "probability", "logit", "novelty", "contrast", "warnings", "error", "read_ms", "infer_ms"]
    sums = {"read": 0.0, "infer": 0.0}
    for row in table.select(names).to_pylist():
        if row["error"] is not None:
            counts.verdicts[FAILED] += 1
            counts.errors[kind_of(row["error"], row["path"])] += 1
            continue
        verdict = row["label"] or WITHHELD
        counts.verdicts[verdict] += 1
        counts.probabilities[verdict, min(int(row["probability"] * BINS), BINS - 1)] += 1
        # So few different values that memory does not grow, so many that no distance is hidden.
        rounded = round(min(max(row["logit"], -20), 20), 2), float(f"{row['novelty']:.3g}"), round(row["contrast"], 1)
        counts.watched.update(zip(WATCHED, rounded, strict=True))
        if verdict == WITHHELD:
            counts.reasons.update({kind_of(warning) for warning in row["warnings"]})
        for name in sums:
            milliseconds = row[f"{name}_ms"]
            sums[name] += milliseconds
            counts.times[name, max(0, bisect_right(MS_EDGES, milliseconds) - 1)] += 1
    counts.milliseconds.update({name: round(total) for name, total in sums.items()})
    return counts


def kind_of(sentence: str, path: str = "") -> str:
    """Returns a sentence without what makes it differ from others of its kind: path, numbers, brackets, quotations.

    Args:
        sentence: An error or a warning.
        path: Path of the film in question.
    """
    sentence = sentence.removeprefix(path)
    for name in (path, path.partition("://")[2]):
        # A manifest may call a film "a".
        sentence = sentence.replace(name, "") if "/" in name else sentence
    before = ""
    while before != sentence:
        # Libraries put details into brackets, and brackets into brackets.
        before, sentence = sentence, re.sub(r"""\([^()]*\)|"[^"]*"|'(?!pneumo\[)[^']*'""", "", sentence)
    return re.sub(r"\s+(?=[\s,:.])", "", re.sub(r"\d+", "N", sentence)).strip()[:200]
