"""Manifests: a table with a row a film, and beside it a table with a row a box around an opacity."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pneumo_edge.bundle import LABELS
from pneumo_edge.errors import DataError, MissingExtraError
from pneumo_edge.manifest import check_path, csv_rows
from pneumo_train.films import Box, FilmFile

NAMES = ("films.csv", "films.parquet")
"""A folder that holds one of these is read by it."""
SUFFIXES = (".csv", ".parquet")
BOXES = "boxes.csv"

_REQUIRED = ("path", "label")
_KNOWN = ("path", "label", "patient", "site", "split", "age", "sex", "view", "licence", "boxes")
_OURS = ("folder", "source", "patient_known")
"""Columns that `split.csv` has of its own: a manifest's of that name are kept under another."""
_SPLITS = {"train": "train", "": "train", "val": "val", "validation": "val", "test": "test"}
_SIDES = Box._fields


def find_manifest(data: Path) -> Path | None:
    """Returns the manifest that `data` is, or that stands in the folder `data`; None where there is none."""
    if data.suffix.lower() in SUFFIXES and not data.is_dir():
        if not data.is_file():
            raise DataError(f"{data} is not there: give a manifest, or a folder of films")
        return data
    return next((data / name for name in NAMES if (data / name).is_file()), None)


def read_manifest(path: Path, classes: Mapping[str, int], *, site: str = "") -> tuple[list[FilmFile], list[str]]:
    """Reads the films of a manifest, in its order, with their boxes.

    Columns `path` (relative to the manifest) and `label`; where known `patient`, `site`, `split` (train, val or test;
    empty is train), `age` (years), `sex`, `view`, `licence`. Further columns are kept. Boxes stand in `boxes.csv`
    beside it, a row each (`path,x0,y0,x1,y1`), or in a column `boxes`, "x0 y0 x1 y1" each, several apart by semicolons.

    Args:
        path: CSV with a header, UTF-8, or Parquet.
        classes: Name of a label -> 0 or 1.
        site: Name for films whose row states none; by default that of the manifest's folder.

    Returns:
        The films, and a sentence for each kind of row that is not used.

    Raises:
        DataError: With the number of the line: a missing column, a film that is not there, a label that is neither, a
            film twice, a patient at two sites, an age that is no number, a box that fits nothing.
    """
    films: list[FilmFile] = []
    lines: dict[str, int] = {}
    site_of_patient: dict[str, tuple[str, int]] = {}
    other_labels: dict[str, list[int]] = defaultdict(list)
    default_site = site or path.resolve().parent.name
    for line, row in _rows(path):
        where = f"{path}, line {line}"
        name, label = row["path"].replace("\\", "/"), row["label"]
        if label not in classes:
            if not label:
                raise DataError(f"{where}: the label is empty: say {' or '.join(LABELS)}")
            other_labels[label].append(line)
            continue
        if name in lines:
            raise DataError(f"{where}: {name} stands in line {lines[name]} already: keep one of the two rows")
        check_path(path.parent, name, where)
        lines[name] = line
        place = row.get("site", "") or default_site
        patient = row.get("patient", "")
        if patient:
            known = site_of_patient.setdefault(patient, (place, line))
            if known[0] != place:
                raise DataError(
                    f"{where}: the patient {patient} is at the site {place}, and in line {known[1]} at {known[0]}: "
                    "give patients of two sites two names, or one site"
                )
        split = row.get("split", "").lower()
        if split not in _SPLITS:
            raise DataError(f"{where}: the split {row['split']!r} is none of train, val and test")
        films.append(
            FilmFile(
                path=name,
                label=classes[label],
                patient=patient or f"{place}:{name}",
                folder=_SPLITS[split],
                site=place,
                patient_known=bool(patient),
                age=_age(row.get("age", ""), where),
                sex=row.get("sex", ""),
                view=row.get("view", ""),
                licence=row.get("licence", ""),
                other=tuple((f"given_{k}" if k in _OURS else k, v) for k, v in row.items() if k not in _KNOWN),
                boxes=_boxes_in_cell(row.get("boxes", ""), classes[label], where),
            )
        )
    remarks = [
        f"{path}: not used: {len(found)} films labelled {label} (the first in line {found[0]}): take them with "
        f"--label {label}=PNEUMONIA or NORMAL"
        for label, found in sorted(other_labels.items())
    ]
    if not films:
        unused = "".join(f"; {remark}" for remark in remarks)
        raise DataError(f"{path} names no film with a label that is {' or '.join(LABELS)}{unused}")
    boxes = path.parent / BOXES
    if boxes.is_file():
        boxed = next((film.path for film in films if film.boxes), None)
        if boxed is not None:
            raise DataError(f"{path}, line {lines[boxed]} gives boxes, and so does {boxes}: keep one of the two")
        films, said = with_boxes(films, boxes, lines)
        remarks += said
    return films, remarks


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields the number of each line and its cells by column, stripped."""
    return _parquet_rows(path) if path.suffix.lower() == ".parquet" else csv_rows(path, _REQUIRED)


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "train", f"reading {path}") from None
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no Parquet file that can be read: write it again, or give a CSV file") from error
    missing = [name for name in _REQUIRED if name not in table.column_names]
    if missing:
        columns = ", ".join(table.column_names)
        raise DataError(f"{path} has no column {' and no column '.join(missing)}: it has {columns}")
    # A row's number in the file, counted as if the header were line 1: as in a CSV file.
    for line, row in enumerate(table.to_pylist(), start=2):
        yield line, {name: _cell(value) for name, value in row.items()}


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value).strip()


def _age(text: str, where: str) -> float | None:
    if not text:
        return None
    try:
        age = float(text)
    except ValueError:
        age = math.nan
    if not 0 <= age <= 130:
        raise DataError(f"{where}: the age {text!r} is no number of years from 0 to 130: leave it empty if unknown")
    return age


def with_boxes(films: Sequence[FilmFile], boxes: Path, lines: Mapping[str, int]) -> tuple[list[FilmFile], list[str]]:
    """Gives the films their boxes, and says in a sentence what is not used.

    Args:
        films: Films of one data set.
        boxes: CSV with a row a box: `path` (relative to it) and the sides x0, y0, x1, y1, shares of width and height.
        lines: Path of a film -> its line in the manifest; empty where there is none.

    Raises:
        DataError: With the line: a box of a film that is not there or is labelled NORMAL, outside the film, or empty.
    """
    found: dict[str, list[Box]] = defaultdict(list)
    labels = {film.path: film.label for film in films}
    passed_over = 0
    for line, row in csv_rows(boxes, ("path", *_SIDES)):
        where = f"{boxes}, line {line}"
        name = row["path"].replace("\\", "/")
        if name not in labels:
            check_path(boxes.parent, name, where)
            passed_over += 1
            continue
        if labels[name] == 0:
            said = f"line {lines[name]} of the manifest labels it" if name in lines else "its folder says"
            raise DataError(f"{where}: {name} has a box, and {said} NORMAL: correct one of the two")
        found[name].append(_box([row[side] for side in _SIDES], where))
    remarks = [f"{boxes}: not used: {passed_over} boxes of films that are not used"] if passed_over else []
    return [replace(film, boxes=tuple(found.get(film.path, ()))) for film in films], remarks


def _boxes_in_cell(text: str, label: int, where: str) -> tuple[Box, ...]:
    boxes = tuple(_box(cell.split(), where) for cell in text.split(";") if cell.strip())
    if boxes and label == 0:
        raise DataError(f"{where}: a film with boxes is labelled NORMAL: correct one of the two")
    return boxes


def _box(sides: Sequence[str], where: str) -> Box:
    try:
        box = Box(*map(float, sides))
    except (TypeError, ValueError):
        raise DataError(f"{where}: the box {' '.join(sides)} is no four numbers, x0 y0 x1 y1") from None
    shown = " ".join(sides)
    if not all(0 <= side <= 1 for side in box):
        raise DataError(f"{where}: the box {shown} leaves the film: sides are shares of its width and height, 0 to 1")
    if not (box.x0 < box.x1 and box.y0 < box.y1):
        raise DataError(f"{where}: the box {shown} has no area: x0 < x1 and y0 < y1 are wanted")
    return box
