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
"""Why a film is in no split: it cannot be read; its bytes or its patient stand nearer to the test; `--limit`."""

USABLE_VALIDATION = 100
"""Films that `val/` must hold to be used as it is. Kaggle's holds 16, which can choose nothing."""

_PARTS = 10
"""One part in ten of the patients becomes validation."""

SPLIT_SEED = 0
"""Of every cut: models that differ in the seed of their training are judged by the same films, and one can teach
another without having seen what the other is judged by."""


def split_films(
    films: Sequence[FilmFile], prepared: PreparedFilms, *, seed: int = SPLIT_SEED, limit: int | None = None
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
    # Before copies are left out: what they say about who is who still holds.
    groups = _patient_groups(films, prepared.sha256, _in(split, TRAIN, VALIDATION))
    _leave_out_duplicates(split, prepared.sha256, groups)
    pool = _in(split, TRAIN, VALIDATION)
    missing = _missing_class(films, pool)
    if missing:
        raise DataError(f"no {missing} film can be used: what there is cannot be read, or is a copy of a test film")
    if limit is not None:
        # A given validation set keeps its share, and with it both classes.
        for part in (TRAIN, VALIDATION):
            members = _in(split, part)
            kept = _limited(members, groups, labels_of(films), limit * len(members) / len(pool), seed)
            for i in set(members) - kept:
                split[i] = UNUSED
    if not own_validation:
        for i in _cut(films, groups, _in(split, TRAIN), seed):
            split[i] = VALIDATION
    for part in (TRAIN, VALIDATION):
        missing = _missing_class(films, _in(split, part))
        if missing:
            raise DataError(f"the {part} split has no {missing} film: give more films, or more patients of that class")
    return split


def _in(split: Sequence[str], *parts: str) -> list[int]:
    return [i for i, part in enumerate(split) if part in parts]


def _missing_class(films: Sequence[FilmFile], members: Sequence[int]) -> str | None:
    present = {films[i].label for i in members}
    return next((name for label, name in enumerate(LABELS) if label not in present), None)


def _leave_out_duplicates(split: list[str], sha256: Sequence[str], groups: dict[int, str]) -> None:
    """Marks a film whose bytes stand in a split nearer to the test, or whose patient stands in validation too."""
    nearness = {TRAIN: 0, VALIDATION: 1, TEST: 2}
    nearest: dict[str, int] = defaultdict(int)
    for part, content in zip(split, sha256, strict=True):
        if part in nearness:
            nearest[content] = max(nearest[content], nearness[part])
    for i, (part, content) in enumerate(zip(split, sha256, strict=True)):
        if part in nearness and nearness[part] < nearest[content]:
            split[i] = DUPLICATE
    held = {groups[i] for i in _in(split, VALIDATION)}
    for i in _in(split, TRAIN):
        if groups[i] in held:
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
    # In a small set one part may have films of one class only: the first that serves is taken.
    for learned, chosen in folds.split(np.zeros(len(pool)), labels, patients):
        if all({labels[i] for i in side} == {0, 1} for side in (learned, chosen)):
            return [pool[i] for i in chosen]
    raise DataError("no cut by patient leaves films of both classes on both sides: more patients are needed")


def _limited(pool: Sequence[int], groups: dict[int, str], labels: np.ndarray, limit: float, seed: int) -> set[int]:
    """Takes whole patients in random order until each class has its share of `limit`, and at least two patients."""
    share = np.bincount(labels[pool], minlength=2) / max(1, len(pool))
    wanted = np.maximum(np.rint(share * limit), 1)
    members: dict[str, list[int]] = defaultdict(list)
    for i in pool:
        members[groups[i]].append(i)
    kept: set[int] = set()
    have, patients = np.zeros(2), np.zeros(2)
    for group in np.random.default_rng(seed).permutation(sorted(members)):
        here = np.bincount(labels[members[group]], minlength=2)
        if np.all((here == 0) | (have < wanted) | (patients < 2)):
            kept.update(members[group])
            have += here
            patients += here > 0
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
        split = [row["split"] for row in rows]
        if not films or not set(split) <= {TRAIN, VALIDATION, TEST, UNREADABLE, DUPLICATE, UNUSED}:
            raise ValueError
    except (OSError, KeyError, ValueError, AttributeError, csv.Error):
        raise RunError(f"{path} is missing or damaged: train again") from None
    return films, split
