"""Manifests as CSV: a table with a row a film, whose paths are relative to it."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from pneumo_edge.errors import DataError


def csv_rows(path: Path, required: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields the number of each line of a CSV file and its cells by column, stripped.

    Args:
        path: UTF-8 with a header.
        required: Columns that must be there.

    Raises:
        DataError: It cannot be read, lacks a column, or has a line of another length than its header.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text)
            header = [cell.strip() for cell in next(reader, [])]
            missing = [name for name in required if name not in header]
            if missing:
                raise DataError(
                    f"{path} has no column {' and no column '.join(missing)}: its first line must name the columns, "
                    f"{', '.join(required)} among them"
                )
            if len(set(header)) < len(header):
                raise DataError(f"{path} has two columns of one name: {', '.join(header)}")
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise DataError(
                        f"{path}, line {reader.line_num}: {len(cells)} cells where the header has {len(header)}"
                    )
                yield reader.line_num, {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    except UnicodeDecodeError:
        raise DataError(f"{path} is no UTF-8 text: save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path} is no CSV file that can be read ({error})") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None


def check_path(root: Path, name: str, where: str) -> None:
    """Makes sure that a film of a manifest is there.

    Raises:
        DataError: It is not, or its name is none.
    """
    if not name:
        raise DataError(f"{where}: the path is empty")
    if any(c in "\r\n" for c in name):
        raise DataError(f"{where}: {name!r} has a line break in its name: rename it")
    try:
        there = (root / name).is_file()
    except OSError:  # a name that is too long, a folder that may not be entered
        there = False
    if not there:
        raise DataError(f"{where}: {root / name} is not there: paths are relative to the manifest")
