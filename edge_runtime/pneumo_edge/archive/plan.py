"""Which film belongs to which part: written before anything is judged, so a second run knows what is missing.

`archive.json` says what the dataset is made of. `plan/part-NNNNNNN.parquet` lists the films of several parts: its first
row group is the part of that number, the next row group the next part, with `batch` films in each. A film keeps its
part for good; new films get new parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pneumo_edge.archive.places import Store
from pneumo_edge.archive.schema import PATH_BYTES, part_number
from pneumo_edge.bundle import from_json
from pneumo_edge.errors import DataError, UsageError

DESCRIPTION = "archive.json"
_FOLDER = "plan"
_PARTS_IN_FILE = 100
"""Parts in one file of the plan: an archive of 100 million films has a few thousand such files."""

_DIGEST = 16
"""Bytes of a path's hash. The chance that two of 100 million paths have the same one is 1 in 10^22."""


@dataclass(frozen=True)
class Description:
    """The content of `archive.json`, which holds for all parts. A run that differs needs another folder."""

    schema_version: int
    preprocess_version: int
    note: str
    pneumo: str
    """Version of pneumo that began the dataset."""
    source: str
    where: str
    base: str
    """See `listing.Source`."""
    columns: dict[str, str]
    """The manifest's other columns and their Arrow types."""
    batch: int
    """Films in one part."""
    model: str
    file: str
    bundle_sha256: str
    """SHA-256 of the bundle's model.json, which holds the hashes of its files."""


def read_description(store: Store) -> Description | None:
    """Returns the description of the dataset in a folder; None if nothing is planned there yet, and so nothing judged.

    Raises:
        DataError: `archive.json` is damaged, or of another version.
        UsageError: The folder holds something else.
    """
    data = store.read(DESCRIPTION)
    if data is None:
        if store.names():
            raise UsageError(f"{store.url} holds other files: give --output a new folder")
        return None
    try:
        found: Description = from_json(Description, json.loads(data))
    except ValueError as error:
        raise DataError(f"{store.url}/{DESCRIPTION} is damaged ({error}): give --output a new folder") from None
    return found if store.names(_FOLDER) else None


def write_description(store: Store, description: Description) -> None:
    """Writes `archive.json`."""
    store.write(DESCRIPTION, (json.dumps(asdict(description), indent=2) + "\n").encode())


class Plan:
    """The films of a dataset in their parts."""

    def __init__(self, store: Store, batch: int) -> None:
        """Reads the plan as far as it stands."""
        self._store, self._batch = store, batch
        self._files: list[tuple[int, int]] = []
        """Number of the first part, and number of films, for each file."""
        self._known = _Known()
        for first in sorted(number for name in store.names(_FOLDER) if (number := part_number(name)) is not None):
            films = 0
            for table in self._read(first):
                self._known.add(_raw_paths(table))
                films += len(table)
            self._files.append((first, films))

    @property
    def films(self) -> int:
        return sum(films for _, films in self._files)

    def sizes(self) -> Iterator[tuple[int, int]]:
        """Yields the number and the films of each part."""
        for first, films in self._files:
            for i, start in enumerate(range(0, films, self._batch)):
                yield first + i, min(self._batch, films - start)

    def parts(self) -> Iterator[tuple[int, pa.Table]]:
        """Yields the number of each part and its films: columns of `schema.PLANNED`, then the manifest's."""
        for first, _ in self._files:
            yield from enumerate(self._read(first), start=first)

    def extend(self, batches: Iterable[pa.RecordBatch]) -> Iterator[int]:
        """Adds the films that have no part yet. Memory grows by 16 bytes a film.

        Yields:
            The number of films in each batch, known or not.
        """
        waiting: list[pa.RecordBatch] = []
        films = self._batch * _PARTS_IN_FILE
        for batch in batches:
            waiting.append(batch.filter(pa.array(self._known.add(_raw_paths(batch)))))
            if sum(map(len, waiting)) >= films:
                waiting = self._write(waiting, films)
            yield len(batch)
        while any(map(len, waiting)):
            waiting = self._write(waiting, films)

    def _write(self, batches: Sequence[pa.RecordBatch], films: int) -> list[pa.RecordBatch]:
        """Writes one file of at most this number of films; returns the other films."""
        table = pa.Table.from_batches(batches)
        part = next((first + -(-count // self._batch) for first, count in reversed(self._files)), 0)
        sink = pa.BufferOutputStream()
        pq.write_table(table.slice(0, films), sink, row_group_size=self._batch, compression="zstd")
        self._store.write(f"{_FOLDER}/part-{part:07}.parquet", bytes(sink.getvalue()))
        self._files.append((part, min(films, len(table))))
        return list(table.slice(films).to_batches())

    def _read(self, first: int) -> Iterator[pa.Table]:
        name = f"{_FOLDER}/part-{first:07}.parquet"
        try:
            file = pq.ParquetFile(pa.BufferReader(self._store.read(name)))
            for i in range(file.num_row_groups):
                yield file.read_row_group(i)
        except (pa.ArrowException, OSError, TypeError) as error:
            raise DataError(f"{self._store.url}/{name} is damaged: give --output a new folder") from error


def _raw_paths(films: pa.Table | pa.RecordBatch) -> list[bytes]:
    raw = films.column(PATH_BYTES).to_pylist()
    return [path.encode() if name is None else name for path, name in zip(films["path"].to_pylist(), raw, strict=True)]


class _Known:
    """Paths seen so far, at 16 bytes each."""

    def __init__(self) -> None:
        self._runs: list[npt.NDArray[np.void]] = []
        """Sorted hashes. Each run is at least twice as long as the next, so that a path is looked up in few runs, and
        each hash is moved a few times only."""

    def add(self, paths: Sequence[bytes]) -> npt.NDArray[np.bool_]:
        """Remembers paths and tells which of them are new; of equal paths, the first."""
        digests = b"".join(blake2b(path, digest_size=_DIGEST).digest() for path in paths)
        values, first = np.unique(np.frombuffer(digests, f"V{_DIGEST}"), return_index=True)
        known = np.zeros(len(values), bool)
        for run in self._runs:
            known |= run[np.minimum(np.searchsorted(run, values), len(run) - 1)] == values
        if not known.all():
            self._runs.append(values[~known])
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            self._runs[-2:] = [np.sort(np.concatenate(self._runs[-2:]))]
        new = np.zeros(len(paths), bool)
        new[first[~known]] = True
        return new
