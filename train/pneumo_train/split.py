"""Which film is learned from, which chooses, and which is only measured: cut by patient."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pneumo_edge.atomic import write_text
from pneumo_edge.bundle import LABELS
from pneumo_edge.errors import DataError, RunError
from pneumo_train.films import FilmFile, PreparedFilms, labels_of

TRAIN, VALIDATION, TEST = "train", "validation", "test"
UNREADABLE, DUPLICATE, UNUSED = "unreadable", "duplicate", "unused"
"""Why a film is in no split: it cannot be read; the same bytes stand in a split nearer to the test; `--limit`."""

USABLE_VALIDATION = 100
"""Films that `val/` must hold to be used as it is. Kaggle's holds 16, which can choose nothing."""

_PARTS = 10
"""One part in ten of the patients becomes validation."""


def split_films(
    films: Sequence[FilmFile], prepared: PreparedFilms, *, seed: int, limit: int | None = None
) -> list[str]:
    """Decides for every film: "train", "validation", "test", or why it is left out.

    `val/` is the validation set where it holds at least `USABLE_VALIDATION` films; otherwise its films join `train/`,
    and about a tenth of the patients, stratified by label, is cut from both. Films with the same bytes count as films
    of one patient; where the same bytes stand on both sides of given folders, the copy nearer to training is left out.

    Args:
        films: As `index_films` gives them.
        prepared: The same films, decoded.
        seed: Of the cut.
        limit: Use about so many films of training and validation together, whole patients, both classes.

    Raises:
        DataError: A class would have no film in training or validation.
    """
    split = [UNREADABLE if i in prepared.errors else film.folder for i, film in enumerate(films)]
    own_validation = split.count("val") >= USABLE_VALIDATION
    split = [(VALIDATION if own_validation else TRAIN) if s == "val" else s for s in split]
    _leave_out_duplicates(split, prepared.sha256)
    pool = [i for i, s in enumerate(split) if s in {TRAIN, VALIDATION}]
    groups = _patient_groups(films, prepared.sha256, pool)
    if limit is not None:
        kept = _limited(pool, groups, labels_of(films), limit, seed)
        for i in pool:
            if i not in kept:
                split[i] = UNUSED
        pool = sorted(kept)
    if own_validation:
        # A patient with films on both sides learns on one side only: validation keeps the films.
        held = {groups[i] for i in pool if split[i] == VALIDATION}
        for i in pool:
            if split[i] == TRAIN and groups[i] in held:
                split[i] = DUPLICATE
    else:
        for i in _cut(films, groups, pool, seed):
            split[i] = VALIDATION
    for part in (TRAIN, VALIDATION):
        for label, name in enumerate(LABELS):
            if not any(s == part and f.label == label for s, f in zip(split, films, strict=True)):
                raise DataError(f"the {part} split has no {name} film: give more films, or more patients of that class")
    return split


def _leave_out_duplicates(split: list[str], sha256: Sequence[str]) -> None:
    """Marks a film whose bytes stand in a split nearer to the test than its own."""
    nearness = {TRAIN: 0, VALIDATION: 1, TEST: 2}
    nearest: dict[str, int] = defaultdict(int)
    for part, content in zip(split, sha256, strict=True):
        if part in nearness:
            nearest[content] = max(nearest[content], nearness[part])
    for i, (part, content) in enumerate(zip(split, sha256, strict=True)):
        if part in nearness and nearness[part] < nearest[content]:
            split[i] = DUPLICATE


def _patient_groups(films: Sequence[FilmFile], sha256: Sequence[str], pool: Sequence[int]) -> dict[int, str]:
    """Returns film -> group: one patient, or several that share a film of the same bytes (union-find)."""
    parent: dict[str, str] = {}

    def root(x: str) -> str:
        while parent.setdefault(x, x) != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    for i in pool:
        parent[root(f"patient {films[i].patient}")] = root(f"bytes {sha256[i]}")
    return {i: root(f"patient {films[i].patient}") for i in pool}


def _cut(films: Sequence[FilmFile], groups: dict[int, str], pool: Sequence[int], seed: int) -> list[int]:
    from sklearn.model_selection import StratifiedGroupKFold

    labels = [films[i].label for i in pool]
    patients = [groups[i] for i in pool]
    rarest = min(len({g for g, y in zip(patients, labels, strict=True) if y == label}) for label in (0, 1))
    parts = min(_PARTS, rarest)
    if parts < 2:
        raise DataError("one class has films of a single patient: a validation set by patient needs two or more")
    folds = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
    _, chosen = next(folds.split(np.zeros(len(pool)), labels, patients))
    return [pool[i] for i in chosen]


def _limited(pool: Sequence[int], groups: dict[int, str], labels: np.ndarray, limit: int, seed: int) -> set[int]:
    """Takes whole patients in random order until each class has its share of `limit`."""
    share = np.bincount(labels[pool], minlength=2) / len(pool)
    wanted = np.maximum(np.rint(share * limit), 1)
    members: dict[str, list[int]] = defaultdict(list)
    for i in pool:
        members[groups[i]].append(i)
    kept: set[int] = set()
    have = np.zeros(2)
    for group in np.random.default_rng(seed).permutation(sorted(members)):
        here = np.bincount(labels[members[group]], minlength=2)
        if np.all((here == 0) | (have < wanted)):
            kept.update(members[group])
            have += here
    return kept


def write_split(path: Path, films: Sequence[FilmFile], split: Sequence[str]) -> None:
    """Writes `split.csv`: path, label, patient, split; one row a film, those left out too."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "label", "patient", "split"))
    for film, part in zip(films, split, strict=True):
        rows.writerow((film.path, LABELS[film.label], film.patient, part))
    write_text(path, text.getvalue())


def read_split(path: Path) -> tuple[list[FilmFile], list[str]]:
    """Reads `split.csv` back.

    Raises:
        RunError: The file is missing or is not what `write_split` wrote.
    """
    try:
        with path.open(encoding="utf-8", newline="") as text:
            rows = list(csv.DictReader(text))
        films = [
            FilmFile(row["path"], LABELS.index(row["label"]), row["patient"], row["path"].split("/")[0]) for row in rows
        ]
        return films, [row["split"] for row in rows]
    except (OSError, KeyError, ValueError):
        raise RunError(f"{path} is missing or damaged: train again") from None
