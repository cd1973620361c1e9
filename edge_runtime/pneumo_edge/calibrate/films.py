"""The films of a place with what is known of each: a folder with NORMAL/ and PNEUMONIA/, or a manifest."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pneumo_edge.bundle import LABELS
from pneumo_edge.errors import DataError
from pneumo_edge.film_files import files_in, is_film_file, is_left_behind
from pneumo_edge.manifest import check_path, csv_rows

MANIFEST = "films.csv"
"""A folder that holds it is read by it."""

_NO_GROUP = ("path", "label", "patient", "split", "licence", "source", "boxes")
_MOST_KINDS = 12
"""Values that a column can have and still be one of groups: more are numbers of accession and the like."""
_AGES = ((0, "under 5 years"), (5, "5 to 17 years"), (18, "18 to 39 years"), (40, "40 to 64 years"), (65, "65 or more"))


@dataclass(frozen=True)
class LocalFilm:
    """One film of the place."""

    path: Path
    name: str
    """As the folder or the manifest has it."""
    label: int
    """0 NORMAL, 1 PNEUMONIA."""
    patient: str
    groups: dict[str, str] = field(default_factory=dict)
    """Such as {"view": "PA", "age": "18 to 39 years"}; what is not known is not there."""


@dataclass(frozen=True)
class LocalFilms:
    """All films of the place."""

    films: tuple[LocalFilm, ...]
    patients_known: bool
    """Otherwise each film stands for a patient of its own."""
    remarks: tuple[str, ...]
    """What was found and is not used, and why."""


def read_films(source: Path) -> LocalFilms:
    """Reads which films there are.

    Args:
        source: A folder with the folders NORMAL and PNEUMONIA; or a CSV file, or a folder with `films.csv`, with the
            columns `path` (relative to it) and `label`, and where known `patient`; every other column with few
            different values is one of groups, such as age (years), sex, view or machine.

    Raises:
        DataError: There is nothing of that kind, a label is neither of the two, a film is missing or there twice, or
            films of one class only.
    """
    if not source.exists():
        raise DataError(f"{source} is not there: give a folder with NORMAL/ and PNEUMONIA/, or a manifest")
    manifest = source / MANIFEST if source.is_dir() else source
    found = _read_manifest(manifest) if manifest.is_file() else _read_folder(source)
    missing = [name for label, name in enumerate(LABELS) if not any(film.label == label for film in found.films)]
    if missing:
        raise DataError(f"{source} has no film that is {' and none that is '.join(missing)}: both are needed")
    return _same_film_same_patient(found, source)


def _read_folder(source: Path) -> LocalFilms:
    labels = {name.casefold(): label for label, name in enumerate(LABELS)}
    folders = sorted(each for each in source.iterdir() if each.is_dir() and not is_left_behind(each.name))
    unknown = [each.name for each in folders if each.name.casefold() not in labels]
    if not folders or len(unknown) == len(folders):
        raise DataError(f"{source} has no folders NORMAL and PNEUMONIA: put the films there, or give a manifest")
    if unknown:
        raise DataError(
            f"{source} has the folder {unknown[0]}, which is neither NORMAL nor PNEUMONIA: move it elsewhere, or its "
            "films into one of the two"
        )
    films, others = [], 0
    for folder in folders:
        for path in map(Path, files_in(str(folder), skip=_cannot_be_searched)):
            if not is_film_file(path):
                others += 1
                continue
            name = path.relative_to(source).as_posix()
            films.append(LocalFilm(path, name, labels[folder.name.casefold()], name))
    remarks = [f"{source}: not used: {others} files that are no films"] if others else []
    return LocalFilms(tuple(films), False, tuple(remarks))


def _cannot_be_searched(error: OSError) -> None:
    """Stops the search: films that are left out in silence would make the place look better known than it is."""
    raise DataError(f"{error.filename} cannot be searched ({error.strerror}): check its permissions") from None


def _read_manifest(path: Path) -> LocalFilms:
    films: list[LocalFilm] = []
    lines: dict[str, int] = {}
    rows = list(csv_rows(path, ("path", "label")))
    kinds: dict[str, Counter[str]] = {}
    for _, row in rows:
        for column, value in row.items():
            kinds.setdefault(column, Counter())[_group(column, value)] += 1
    grouping = [
        column
        for column, values in kinds.items()
        if column not in _NO_GROUP and 1 < len(set(values) - {""}) <= _MOST_KINDS
    ]
    for line, row in rows:
        where = f"{path}, line {line}"
        name, label = row["path"].replace("\\", "/"), row["label"].upper()
        if label not in LABELS:
            raise DataError(f"{where}: the label {row['label']!r} is neither {LABELS[0]} nor {LABELS[1]}")
        if name in lines:
            raise DataError(f"{where}: {name} stands in line {lines[name]} already: keep one of the two rows")
        check_path(path.parent, name, where)
        lines[name] = line
        groups = {column: _group(column, row[column]) for column in grouping if row[column]}
        films.append(LocalFilm(path.parent / name, name, LABELS.index(label), row.get("patient") or name, groups))
    unknown = sum(not row.get("patient") for _, row in rows)
    remarks = []
    if 0 < unknown < len(rows):
        remarks.append(f"{path}: {unknown} films name no patient: each of them stands for a patient of its own")
    return LocalFilms(tuple(films), unknown < len(rows), tuple(remarks))


def _group(column: str, value: str) -> str:
    if column != "age" or not value:
        return value
    try:
        age = float(value)
    except ValueError:
        return value
    return next((name for low, name in reversed(_AGES) if age >= low), "")


def _same_film_same_patient(found: LocalFilms, source: Path) -> LocalFilms:
    """Gives copies of one film to one patient, so that none can choose a threshold and be judged by it.

    Raises:
        DataError: Two copies have two labels, or a film cannot be read at all.
    """
    first: dict[str, LocalFilm] = {}
    films = []
    copies = 0
    for film in found.films:
        try:
            digest = hashlib.sha256(film.path.read_bytes()).hexdigest()
        except OSError as error:
            raise DataError(f"{film.path} cannot be read ({error.strerror}): check its permissions") from None
        known = first.setdefault(digest, film)
        if known.label != film.label:
            raise DataError(
                f"{known.path} and {film.path} are one film, labelled NORMAL and PNEUMONIA: keep the right one"
            )
        copies += known is not film
        films.append(film if known is film or found.patients_known else replace(film, patient=known.patient))
    remarks = found.remarks
    if copies:
        remarks += (f"{source}: {copies} films are copies of others: keep one of each",)
    return LocalFilms(tuple(films), found.patients_known, remarks)


def patients_by_class(films: Sequence[LocalFilm]) -> tuple[int, int]:
    """Returns how many patients have a film that is NORMAL, and how many one that is PNEUMONIA."""
    normal, ill = (len({film.patient for film in films if film.label == label}) for label in (0, 1))
    return normal, ill
