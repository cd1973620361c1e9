"""Splits the films by patient: for training, for validation, or only for the final measure."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from pneumo_edge.atomic import write_text
from pneumo_edge.bundle import LABELS
from pneumo_edge.errors import DataError, RunError
from pneumo_train.films import Box, FilmFile, PreparedFilms, labels_of

TRAIN, VALIDATION, TEST = "train", "validation", "test"
LEFT_OUT = "left_out"
"""Films of a site that is left out of training: only measured, to see how the model does where it has not been."""
UNREADABLE, DUPLICATE, CONTRADICTION, UNUSED = "unreadable", "duplicate", "contradiction", "unused"
"""Why a film is in no split: it cannot be read; its bytes or its patient stand nearer to the test; the same bytes stand
under both labels; `--limit`."""
LEFT_ASIDE = (DUPLICATE, CONTRADICTION, UNREADABLE, UNUSED)

USABLE_VALIDATION = 100
SMALL_VALIDATION = 20
"""Films that `val/` must hold to be used as it is; the smaller number where they are as large a share of the site's
films as what would be cut. Kaggle's holds 16 of 5,232, which can choose nothing."""

_NAMED = 10
"""Groups of films with the same bytes that a sentence names."""

_PARTS = 10
"""One part in ten of the patients becomes validation."""

SPLIT_SEED = 0
"""Seed of every split. Models that differ in the seed of their training are judged by the same films, and one can teach
another without having seen what the other is judged by."""


def split_films(
    films: Sequence[FilmFile],
    prepared: PreparedFilms,
    *,
    leave_out: str | None = None,
    seed: int = SPLIT_SEED,
    limit: int | None = None,
) -> list[str]:
    """Decides for every film: "train", "validation", "test", "left_out", or why it is left out.

    In each site `val/` is the validation set where it holds at least `USABLE_VALIDATION` films, or `SMALL_VALIDATION`
    and a tenth of the site's; otherwise its films join `train/`, and about a tenth of the patients, stratified by
    label, is cut from both. Films with the same bytes count as films of one patient. Whoever stands in the test split,
    by a copy of a film or, where names are known, by name, at any site, is left out of training and validation. Whoever
    stands in a given validation set is left out of training. Films with the same bytes under both labels are left out
    altogether.

    Args:
        films: All films, from `pneumo_train.sources.gather`.
        prepared: The same films, decoded.
        leave_out: Site whose films are only measured at the end.
        seed: Seed of the split.
        limit: About how many films to use for training and validation together: whole patients, both classes.

    Raises:
        DataError: A class would have no film in training or validation, or no site both in validation; the site that
            is left out has films of one class alone.
    """
    sites = [film.site for film in films]
    split = [UNREADABLE if i in prepared.errors else film.folder for i, film in enumerate(films)]
    for i, site in enumerate(sites):
        if site == leave_out and split[i] in {TRAIN, "val"}:
            split[i] = LEFT_OUT
    # Before any film is left out: what copies say about who is who still holds.
    groups = _patient_groups(films, prepared.sha256, _positions(split, TRAIN, "val"))
    tested = _tested(films, prepared.sha256, groups, _positions(split, TEST, LEFT_OUT))
    _leave_out_contradictions(split, films, prepared.sha256)
    to_cut = _take_given_validation(split, sites)
    for i in _positions(split, TRAIN, VALIDATION):
        if groups[i] in tested:
            split[i] = DUPLICATE
    _keep_patients_apart(split, groups)
    pool = _positions(split, TRAIN, VALIDATION)
    missing = _missing_class(films, pool)
    if missing:
        raise DataError(
            f"no {missing} film can be trained on, since each is unreadable or a copy of a test film: give more of them"
        )
    if limit is not None:
        _limit(split, films, groups, limit, seed)
    for site in to_cut:
        members = [i for i in _positions(split, TRAIN) if sites[i] == site]
        for i in _cut(films, groups, members, seed, site):
            split[i] = VALIDATION
    _keep_patients_apart(split, groups)
    _check_classes(films, split, leave_out)
    return split


def describe_left_aside(films: Sequence[FilmFile], split: Sequence[str], sha256: Sequence[str]) -> list[str]:
    """Returns a sentence for each reason for which films are left out, after reading and before `--limit`.

    Films with the same bytes under both labels are named, since somebody has to decide which label is right.
    """
    said = []
    copies: dict[str, list[str]] = defaultdict(list)
    for i in _positions(split, CONTRADICTION):
        copies[sha256[i]].append(f"{films[i].path} ({films[i].site})")
    if copies:
        named = "; ".join(" = ".join(paths) for paths in list(copies.values())[:_NAMED])
        more = f"; and {len(copies) - _NAMED} more, in split.csv" if len(copies) > _NAMED else ""
        count = sum(map(len, copies.values()))
        said.append(f"not used: {count} films whose very same bytes stand under both labels: {named}{more}")
    apart = split.count(DUPLICATE)
    if apart:
        said.append(f"not used: {apart} films of patients who stand, or of which a copy stands, nearer to the test")
    return said


def describe_doubtful(
    films: Sequence[FilmFile], split: Sequence[str], remarks: Mapping[int, Sequence[str]]
) -> list[str]:
    """Returns a sentence for each kind of film that is used and of which `pneumo-infer` would warn.

    Remarks that differ in numbers alone, such as the size of a picture, are of one kind.

    Args:
        films: All films.
        split: Use of each film.
        remarks: Position -> what was noticed while the film was read (`PreparedFilms.remarks`).
    """
    kinds: dict[str, list[str]] = defaultdict(list)
    for i in _positions(split, TRAIN, VALIDATION, TEST, LEFT_OUT):
        for remark in remarks.get(i, ()):
            kinds[re.sub(r"\d+", "#", remark)].append(f"{films[i].path} ({films[i].site}): {remark}")
    return [
        f"used all the same: {len(found)} film{'s' * (len(found) > 1)}, such as {found[0]}" for found in kinds.values()
    ]


def _check_classes(films: Sequence[FilmFile], split: Sequence[str], leave_out: str | None) -> None:
    for part in (TRAIN, VALIDATION):
        missing = _missing_class(films, _positions(split, part))
        if missing:
            raise DataError(f"the {part} split has no {missing} film: give more films, or more patients of that class")
    judging = {(films[i].site, films[i].label) for i in _positions(split, VALIDATION)}
    if not any({(site, 0), (site, 1)} <= judging for site, _ in judging):
        raise DataError(
            "no site has validation films of both classes, so a model that tells sites apart would look good: "
            "give one site more films of the class that it lacks"
        )
    missing = _missing_class(films, _positions(split, LEFT_OUT)) if leave_out is not None else None
    if missing:
        raise DataError(f"--leave-out {leave_out}: the site has no {missing} film that could be measured")


def _limit(split: list[str], films: Sequence[FilmFile], groups: dict[int, str], limit: int, seed: int) -> None:
    """Marks what `--limit` leaves out: a given validation set keeps its share, each site its own, and both classes."""
    pool = _positions(split, TRAIN, VALIDATION)
    for part, site in product((TRAIN, VALIDATION), dict.fromkeys(film.site for film in films)):
        members = [i for i in _positions(split, part) if films[i].site == site]
        kept = _limited(members, groups, labels_of(films), limit * len(members) / len(pool), seed)
        for i in set(members) - kept:
            split[i] = UNUSED


def _positions(split: Sequence[str], *parts: str) -> list[int]:
    return [i for i, part in enumerate(split) if part in parts]


def _missing_class(films: Sequence[FilmFile], members: Sequence[int]) -> str | None:
    present = {films[i].label for i in members}
    return next((name for label, name in enumerate(LABELS) if label not in present), None)


def _take_given_validation(split: list[str], sites: Sequence[str]) -> list[str]:
    """Puts the films of each site's `val/` where they belong; returns the sites whose validation has to be cut."""
    to_cut = []
    for site in dict.fromkeys(sites):
        given = [i for i in _positions(split, "val") if sites[i] == site]
        films = sum(sites[i] == site for i in _positions(split, TRAIN, "val", VALIDATION))
        usable = len(given) >= min(USABLE_VALIDATION, max(SMALL_VALIDATION, films / _PARTS))
        for i in given:
            split[i] = VALIDATION if usable else TRAIN
        if not usable:
            to_cut.append(site)
    return to_cut


def _leave_out_contradictions(split: list[str], films: Sequence[FilmFile], sha256: Sequence[str]) -> None:
    """Marks films whose bytes stand under both labels: one of the two is wrong, and nobody knows which."""
    labels: dict[str, set[int]] = defaultdict(set)
    for film, content in zip(films, sha256, strict=True):
        labels[content].add(film.label)
    for i, content in enumerate(sha256):
        if content and len(labels[content]) > 1:
            split[i] = CONTRADICTION


def _tested(
    films: Sequence[FilmFile], sha256: Sequence[str], groups: dict[int, str], measured: Sequence[int]
) -> set[str]:
    """Returns the groups of `_patient_groups` that stand among the films which are only measured."""
    contents = {sha256[i] for i in measured}
    names = {films[i].patient for i in measured if films[i].patient_known}
    return {
        group
        for i, group in groups.items()
        if sha256[i] in contents or (films[i].patient_known and films[i].patient in names)
    }


def _keep_patients_apart(split: list[str], groups: dict[int, str]) -> None:
    """Marks the training films whose patient stands in validation too."""
    held = {groups[i] for i in _positions(split, VALIDATION)}
    for i in _positions(split, TRAIN):
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

    # A name read off a file says who it is within its site alone.
    names = {i: f"patient {'' if films[i].patient_known else films[i].site} {films[i].patient}" for i in pool}
    for i in pool:
        parent[root(names[i])] = root(f"bytes {sha256[i]}")
    return {i: root(names[i]) for i in pool}


def _cut(films: Sequence[FilmFile], groups: dict[int, str], pool: Sequence[int], seed: int, site: str) -> list[int]:
    from sklearn.model_selection import StratifiedGroupKFold

    if not pool:
        return []
    labels = [films[i].label for i in pool]
    patients = [groups[i] for i in pool]
    classes = sorted(set(labels))
    rarest = min(len({g for g, y in zip(patients, labels, strict=True) if y == label}) for label in classes)
    parts = min(_PARTS, rarest)
    if parts < 2:
        raise DataError(
            f"{site}: one class has films of a single patient: a validation set by patient needs two or more"
        )
    folds = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
    # In a small set one part may have films of one class only: the first that serves is taken.
    for learned, chosen in folds.split(np.zeros(len(pool)), labels, patients):
        if all({labels[i] for i in side} == set(classes) for side in (learned, chosen)):
            return [pool[i] for i in chosen]
    raise DataError(f"{site}: no cut by patient leaves films of both classes on both sides: more patients are needed")


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


_COLUMNS = (
    "path", "label", "patient", "split", "folder", "site", "source", "patient_known", "age", "sex", "view", "licence",
    "boxes",
)  # fmt: skip


def write_split(path: Path, films: Sequence[FilmFile], split: Sequence[str]) -> None:
    """Writes `split.csv`: one row a film, those left out too, with all that a manifest said of it.

    Boxes stand in one cell, "x0 y0 x1 y1" each, several apart by semicolons.
    """
    others = sorted({name for film in films for name, _ in film.other} - set(_COLUMNS))
    text = io.StringIO()
    rows = csv.DictWriter(text, (*_COLUMNS, *others), restval="", lineterminator="\n")
    rows.writeheader()
    for film, part in zip(films, split, strict=True):
        rows.writerow(
            {name: value for name, value in film.other if name in others}
            | {
                "path": film.path,
                "label": LABELS[film.label],
                "patient": film.patient,
                "split": part,
                "folder": film.folder,
                "site": film.site,
                "source": film.source,
                "patient_known": int(film.patient_known),
                "age": "" if film.age is None else f"{film.age:g}",
                "sex": film.sex,
                "view": film.view,
                "licence": film.licence,
                "boxes": ";".join(" ".join(f"{side:.6g}" for side in box) for box in film.boxes),
            }
        )
    write_text(path, text.getvalue())


def read_split(path: Path) -> tuple[list[FilmFile], list[str]]:
    """Reads `split.csv` back.

    Raises:
        RunError: The file is missing or is not what `write_split` wrote.
    """
    try:
        with path.open(encoding="utf-8", newline="") as text:
            rows = list(csv.DictReader(text))
        films = [_film(row) for row in rows]
        split = [row["split"] for row in rows]
        if not films or not set(split) <= {TRAIN, VALIDATION, TEST, LEFT_OUT, *LEFT_ASIDE}:
            raise ValueError
    except (OSError, KeyError, ValueError, TypeError, AttributeError, csv.Error):
        raise RunError(f"{path} is missing or damaged: train again") from None
    return films, split


def _film(row: dict[str, str]) -> FilmFile:
    return FilmFile(
        path=row["path"],
        label=LABELS.index(row["label"]),
        patient=row["patient"],
        folder=row["folder"],
        site=row["site"],
        source=int(row["source"]),
        patient_known=row["patient_known"] == "1",
        age=float(row["age"]) if row["age"] else None,
        sex=row["sex"],
        view=row["view"],
        licence=row["licence"],
        other=tuple((name, value) for name, value in row.items() if name not in _COLUMNS),
        boxes=tuple(Box(*map(float, box.split())) for box in row["boxes"].split(";") if box),
    )
