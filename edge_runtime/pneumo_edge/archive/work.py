"""What a worker does with one part: it fetches the films, judges them and writes their rows.

Dask may ask for a part several times, at any time, on any worker. The rows are always the same, but for the times.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from pneumo_edge import __version__
from pneumo_edge.archive import schema
from pneumo_edge.archive.counts import Counts, count_rows
from pneumo_edge.archive.listing import film_url
from pneumo_edge.archive.places import Store, fetch
from pneumo_edge.archive.plan import DESCRIPTION
from pneumo_edge.bundle import DEFAULT_BUNDLE
from pneumo_edge.bundle import DESCRIPTION as MODEL
from pneumo_edge.classifier import Classifier, Failure
from pneumo_edge.errors import BundleError, DataError, PneumoError, UsageError

_AHEAD = 8
"""Films that are fetched while one is judged. With 8, a store that answers in 100 ms keeps up with 80 films a
second."""

_AGAIN = "again"
"""Key in a part's metadata: number of films that another run may be able to judge."""

_MENDABLE = re.compile(r"pip install 'pneumo\[")
"""Found in the error of a film that could be read with a package that is missing."""


@dataclass(frozen=True)
class Job:
    """What a worker needs beside the films of a part."""

    output: str
    """URL of the dataset."""
    description_sha256: str
    """SHA-256 of `archive.json`, which shows whether the worker sees the driver's output."""
    pneumo: str
    bundle: str | None
    """Folder of the bundle; None for the one that comes with pneumo."""
    file: str
    bundle_sha256: str
    where: str
    base: str
    regions: bool = False
    """Whether the model file has a local map."""


@dataclass(frozen=True)
class Done:
    """A part that is written."""

    judged: int
    """Number of films that this task has judged: 0 where the part was there before."""
    counts: Counts


def bundle_sha256(folder: Path) -> str:
    """Returns the SHA-256 of a bundle's model.json, which holds the hashes of all its files.

    Raises:
        BundleError: It cannot be read.
    """
    try:
        return hashlib.sha256((folder / MODEL).read_bytes()).hexdigest()
    except OSError as error:
        raise BundleError(
            f"{folder / MODEL} cannot be read ({error.strerror}): every worker needs the bundle"
        ) from None


def check(job: Job) -> str | None:
    """Opens what a job needs. Returns one sentence on what is wrong, or None."""
    try:
        _ready(job)
    except PneumoError as error:
        return str(error)
    return None


def do_part(job: Job, part: int, films: pa.Table) -> Done:
    """Judges the films of a part and writes it, unless it is there and none of its films is worth another try.

    Args:
        job: The job.
        part: Number of the part.
        films: Columns of `schema.PLANNED`, then the manifest's.

    Raises:
        BundleError: This worker's bundle is not the driver's.
        MissingExtraError: This worker has no engine for the file.
        UsageError: This worker has another pneumo, or does not see the driver's output.
        DataError: The part that is there is not of this plan.
    """
    _, store = _ready(job)
    standing = store.read(schema.part_name(part))
    if standing is not None:
        table, facts = _read_part(store, part, standing, films)
        if facts.get(_AGAIN) == "0":
            return Done(0, count_rows(table))
    table = write_part(job, part, films, judge(job, films))
    return Done(len(table), count_rows(table))


def judge(job: Job, films: pa.Table) -> list[dict[str, Any]]:
    """Returns the record of each film. `again` marks those that another run may be able to judge."""
    classifier, _ = _ready(job)
    names = films["path"].to_pylist()
    raw = films[schema.PATH_BYTES].to_pylist()
    paths = [name if known is None else os.fsdecode(known) for name, known in zip(names, raw, strict=True)]
    records: list[dict[str, Any]] = [{}] * len(paths)
    fetched: list[int] = []

    def sources() -> Iterator[tuple[bytes, str]]:
        for i, data in enumerate(_read_ahead(job, paths)):
            if isinstance(data, bytes):
                fetched.append(i)
                yield data, paths[i]
            else:
                records[i] = Failure(paths[i], str(data)).record() | {_AGAIN: True}

    # One film at a time: there is a worker for each core.
    for place, answer in enumerate(classifier.predict_batch(sources(), side_by_side=1)):
        record = answer.record()
        records[fetched[place]] = record | {_AGAIN: _MENDABLE.search(record.get("error", "")) is not None}
    return records


def write_part(job: Job, part: int, films: pa.Table, records: Sequence[dict[str, Any]]) -> pa.Table:
    """Writes the rows of a part in one step and returns them."""
    columns = films.drop_columns([name for name, _ in schema.PLANNED])
    table = schema.to_table(records, part, columns, regions=job.regions)
    facts = {"version": __version__, "file": job.file, "bundle_sha256": job.bundle_sha256}
    again = sum(record.get(_AGAIN, False) for record in records)
    Store(job.output).write(schema.part_name(part), schema.to_parquet(table, facts | {_AGAIN: str(again)}))
    return table


def _read_part(store: Store, part: int, data: bytes, films: pa.Table) -> tuple[pa.Table, dict[str, str]]:
    try:
        table, facts = schema.from_parquet(data)
        fits = table["path"].equals(films["path"])
    except (ValueError, KeyError, OSError):
        fits = False
    if not fits:
        raise DataError(
            f"{store.url}/{schema.part_name(part)} is not the part that the plan says: remove it, then run again"
        )
    return table, facts


def _read_ahead(job: Job, paths: Sequence[str]) -> Iterator[bytes | PneumoError]:
    """Yields the bytes or the error of each film. At most `_AHEAD` films wait in memory."""

    def read(path: str) -> bytes | PneumoError:
        try:
            return fetch(film_url(path, job.where, job.base), path)
        except PneumoError as error:
            return error

    waiting: deque[Future[bytes | PneumoError]] = deque()
    with ThreadPoolExecutor(_AHEAD) as pool:
        for path in paths:
            waiting.append(pool.submit(read, path))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


# ---------------------------------------------------------------------------------------------- once for each process

_opening = threading.Lock()


def _ready(job: Job) -> tuple[Classifier, Store]:
    """Loads the bundle once in each process. A plugin of Dask would do it too, but would stay in a shared scheduler."""
    with _opening:
        return _opened(job)


@lru_cache(maxsize=2)
def _opened(job: Job) -> tuple[Classifier, Store]:
    """Loads the bundle, after a check that this process sees the same files as the driver."""
    if __version__ != job.pneumo:
        raise UsageError(f"this worker has pneumo {__version__}, the driver {job.pneumo}: install one version")
    folder = DEFAULT_BUNDLE if job.bundle is None else Path(job.bundle)
    if bundle_sha256(folder) != job.bundle_sha256:
        raise BundleError(f"{folder} is another bundle on this worker than on the driver: copy it there")
    store = Store(job.output)
    seen = store.read(DESCRIPTION)
    if seen is None or hashlib.sha256(seen).hexdigest() != job.description_sha256:
        raise UsageError(f"this worker does not see the driver's {job.output}: give --output a shared folder or a URL")
    return Classifier.load(folder, file=job.file, threads=1), store
