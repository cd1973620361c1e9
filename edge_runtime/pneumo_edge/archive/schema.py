"""The columns of the dataset. It has one row for each film, with the verdict or the reason why there is none.

A row holds the fields of the JSON record of pneumo-infer, or the error; `part`, the number of its file; the region, if
the bundle outlines regions; the manifest's other columns; and last the times, which alone differ when a film is judged
again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pneumo_edge.command_line import NOT_A_DIAGNOSIS
from pneumo_edge.errors import UsageError

VERSION = 2
"""Changes whenever a column changes its name, type or meaning."""

VERDICT = (
    ("path", pa.string()),
    ("label", pa.string()),
    ("probability", pa.float64()),
    ("logit", pa.float64()),
    ("threshold", pa.float64()),
    ("operating_point", pa.string()),
    ("prevalence", pa.float64()),
    ("novelty", pa.float64()),
    ("in_distribution", pa.bool_()),
    ("warnings", pa.list_(pa.string())),
    ("model", pa.string()),
    ("file", pa.string()),
    ("contrast", pa.float64()),
    ("error", pa.string()),
    ("part", pa.int64()),
)
REGION = (
    ("region_outlines", pa.int64()),
    ("region_area", pa.float64()),
    ("region_strongest", pa.float64()),
)
"""Columns of a dataset whose bundle has a local map. A dataset has one bundle, so all its parts have them or none."""
TIMES = (("read_ms", pa.float64()), ("infer_ms", pa.float64()))

PATH_BYTES = "path_bytes"
"""Column of the plan: the name of a film that is no UTF-8, which Parquet cannot hold as text."""

PLANNED = (("path", pa.string()), (PATH_BYTES, pa.binary()))
"""Columns of the plan, before the manifest's other columns."""

_TAKEN = {name for name, _ in (*VERDICT, *REGION, *TIMES, *PLANNED)}


def check_columns(columns: pa.Schema, where: str) -> None:
    """Checks that a manifest's other columns can stand beside ours.

    Raises:
        UsageError: Two columns have the same name. Upper and lower case count as the same, as in DuckDB and Spark.
    """
    seen = set(_TAKEN)
    for name in columns.names:
        if name.lower() in seen:
            why = "is a column of the result too" if name.lower() in _TAKEN else "stands there twice"
            raise UsageError(f"{where}: the column {name} {why}: give it another name")
        seen.add(name.lower())


def plain_text(text: str) -> str:
    """Returns text that Parquet can hold: bytes that are no UTF-8, as old file servers have them, become `\\udcfc`."""
    return text.encode("utf-8", "backslashreplace").decode()


def part_name(part: int) -> str:
    """Returns the path of a part in the output."""
    return f"films/part-{part:07}.parquet"


def part_number(file: str) -> int | None:
    """Returns the number of a part by its file name; None if it is no part."""
    stem, _, suffix = file.partition(".")
    number = stem.removeprefix("part-")
    return int(number) if suffix == "parquet" and stem != number and number.isdecimal() else None


def to_table(records: Sequence[Mapping[str, Any]], part: int, columns: pa.Table, *, regions: bool = False) -> pa.Table:
    """Makes the rows of one part.

    Args:
        records: Records from `Prediction.record` and `Failure.record`.
        part: Number of the part.
        columns: The manifest's other columns, with a row for each record.
        regions: Whether the bundle has a local map.
    """

    rows = [_row(record, part) for record in records]

    def arrays(kinds: Sequence[tuple[str, pa.DataType]]) -> dict[str, pa.Array]:
        return {name: pa.array([row.get(name) for row in rows], kind) for name, kind in kinds}

    own = VERDICT + REGION if regions else VERDICT
    return pa.table(arrays(own) | {name: columns[name] for name in columns.column_names} | arrays(TIMES))


def _row(record: Mapping[str, Any], part: int) -> dict[str, Any]:
    times = record.get("milliseconds", {})
    row = dict(record) | {"part": part, "read_ms": times.get("read"), "infer_ms": times.get("infer")}
    region = record.get("region")
    if region is not None:
        row |= {"region_outlines": len(region["polygons"])}
        row |= {f"region_{name}": region[name] for name in ("area", "strongest")}
    return row | {name: plain_text(row[name]) for name in ("path", "error") if name in row}


def to_parquet(table: pa.Table, facts: Mapping[str, str]) -> bytes:
    """Returns a part as the bytes of a Parquet file.

    Args:
        table: From `to_table`.
        facts: Further entries of the file's metadata; each name gets the prefix `pneumo.`.
    """
    said = {"schema_version": str(VERSION), "note": NOT_A_DIAGNOSIS} | dict(facts)
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({f"pneumo.{k}": v for k, v in said.items()}), sink, compression="zstd")
    return bytes(sink.getvalue())


def from_parquet(data: bytes) -> tuple[pa.Table, dict[str, str]]:
    """Returns the rows of a part and the entries of its metadata.

    Raises:
        ValueError: It is no whole Parquet file (pyarrow's errors are its children).
    """
    table = pq.read_table(pa.BufferReader(data))
    metadata = table.schema.metadata or {}
    return table, {k.decode().removeprefix("pneumo."): v.decode() for k, v in metadata.items()}
