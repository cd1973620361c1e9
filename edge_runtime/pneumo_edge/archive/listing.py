"""Lists the films of SOURCE in batches: a folder, a glob, a film, or a manifest, on any file system.

Only manifests are opened: to look into each of a million films would take longer than to list them. So the name decides
what a film is, and the few files that are none become rows with an error.
"""

from __future__ import annotations

import glob as globbing
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from pneumo_edge.archive.places import LOCAL, has_scheme, is_local, open_url
from pneumo_edge.archive.schema import PLANNED, check_columns, plain_text
from pneumo_edge.command_line import say
from pneumo_edge.errors import DataError, UsageError, one_line
from pneumo_edge.film_files import INDEX, is_film_by_name, is_left_behind

CHUNK = 10_000
"""Films in one batch of the listing."""

_KINDS = 20
"""Kinds of files that are counted apart among those that are not listed: there can be as many kinds as files."""


@dataclass
class Source:
    """The films of a SOURCE."""

    name: str
    """Its URL or absolute path."""
    base: str
    """Folder of the manifest, in which relative paths begin."""
    columns: pa.Schema
    """The manifest's other columns, without `path`."""
    batches: Iterator[pa.RecordBatch]
    """Columns of `schema.PLANNED`, then `columns`."""
    unlisted: list[str] = field(default_factory=list)
    """Folders that cannot be searched. Complete at the end of `batches`."""
    passed_over: Counter[str] = field(default_factory=Counter)
    """What was found and is not listed, in words that follow a number. Complete at the end of `batches`."""


def open_source(source: str, where: str = LOCAL) -> Source:
    """Opens SOURCE and begins to list its films. Memory does not grow with their number.

    Args:
        source: Path, glob or URL of films, or of a manifest (.csv, .parquet) with a column `path`.
        where: Protocol of the manifest's paths that name none.

    Raises:
        DataError: The manifest cannot be read, now or while it is listed.
        UsageError: Nothing has that name, or the manifest's columns cannot stand in the result.
    """
    fs, key = open_url(source)
    if is_local(fs) and not has_scheme(source):
        source = key
    kind = _kind(fs, key, source)
    if kind == "file" and key.lower().endswith((".csv", ".parquet")):
        if where != LOCAL:
            open_url(f"{where}://")
        return _open_manifest(fs, key, source)
    if where != LOCAL:
        raise UsageError(f"--where {where} is for the paths in a manifest: give SOURCE itself as {where}://...")
    found = Source(source, "", pa.schema([]), iter(()))
    if kind == "file":
        names: Iterator[str] = iter([source])
    elif kind == "directory":
        root, url = key.rstrip("/"), source.rstrip("/")
        names = (f"{url}/{name}" for name in _walk(fs, root, "", lambda _: True, found) if _is_listed(name, found))
    elif globbing.has_magic(key):
        names = _glob(fs, key, source, found)
    else:
        raise UsageError(f"{source} does not exist: give a folder, a glob, a URL, or a manifest (.csv or .parquet)")
    found.batches = _batches(names)
    return found


def film_url(path: str, where: str, base: str) -> str:
    """Returns the path or URL of a film of the plan.

    Args:
        path: Path in the listing or the manifest.
        where: Protocol of paths that name none.
        base: `Source.base`.
    """
    if has_scheme(path):
        return path
    if where != LOCAL:
        return f"{where}://{path}"
    return path if os.path.isabs(path) or not base else f"{base}/{path}"  # noqa: PTH117 - a URL is no Path


def _is_listed(path: str, found: Source) -> bool:
    # Nothing is opened here: what a name cannot tell is listed.
    if is_film_by_name(path) is not False:
        return True
    name = path.rsplit("/", 1)[-1].lower()
    kind = "files called DICOMDIR" if name == INDEX else f"files called *.{plain_text(name.rpartition('.')[2])}"
    if kind not in found.passed_over and len(found.passed_over) >= _KINDS:
        kind = "files whose names are those of no film"
    found.passed_over[kind] += 1
    return False


def _kind(fs: Any, key: str, source: str) -> str | None:
    """Returns "file", "directory", or None where there is nothing."""
    try:
        return str(fs.info(key)["type"]) if not is_local(fs) or os.path.exists(key) else None  # noqa: PTH110
    except FileNotFoundError:
        return None
    except Exception as error:
        raise UsageError(f"{source} cannot be opened: {one_line(error)}") from error


# ------------------------------------------------------------------------------------------------- folders and globs


def _walk(fs: Any, root: str, below: str, enter: Callable[[str], bool], found: Source) -> Iterator[str]:
    """Yields the files below a folder, in the order of their paths as text.

    Args:
        fs: File system.
        root: Folder.
        below: Path from `root` on, empty or with a slash at its end.
        enter: Tells whether to search a folder, by its path from `root` on.
        found: Receives the folders that cannot be searched.
    """
    try:
        names = _local_names(f"{root}/{below}", found) if is_local(fs) else _names(fs, f"{root}/{below}")
    except OSError as error:
        folder = plain_text(f"{root}/{below}".rstrip("/"))
        say(f"{folder} cannot be searched for films: {error.strerror or one_line(error)}")
        found.unlisted.append(folder)
        return
    # The name of a folder ends with a slash, so that whole paths come in order: "a-b" is before "a/".
    for name in sorted(names):
        path = below + name
        if is_left_behind(name):
            continue
        if not name.endswith("/"):
            yield path
        elif enter(path[:-1]):
            yield from _walk(fs, root, path, enter, found)


def _local_names(folder: str, found: Source) -> list[str]:
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                names.append(f"{entry.name}/")
            # Links to folders may lead in circles; a pipe or device would be waited for. A dead link is reported.
            elif entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path)):  # noqa: PTH110
                names.append(entry.name)
            elif not is_left_behind(entry.name):
                linked = "links to folders, which are not followed: give those folders as a SOURCE of their own"
                found.passed_over[linked if entry.is_dir() else "pipes and devices"] += 1
    return names


def _names(fs: Any, folder: str) -> list[str]:
    folder, names = folder.rstrip("/"), []
    try:
        entries = fs.ls(folder, detail=True)
    except OSError:
        raise
    except Exception as error:
        raise DataError(f"{folder} cannot be listed: {one_line(error)}") from error
    # Or it would keep in memory what it has been told of every object.
    fs.invalidate_cache()
    for entry in entries:
        path = entry["name"].rstrip("/")
        # Some object stores have an object of the folder's own name in it.
        if path != folder:
            names.append(path.rsplit("/", 1)[-1] + "/" * (entry["type"] == "directory"))
    return names


def _glob(fs: Any, key: str, source: str, found: Source) -> Iterator[str]:
    """Yields the files that a pattern fits, whatever they are called; `**` stands for any number of folders."""
    from fsspec.utils import glob_translate

    parts = [part if part == "**" else re.sub(r"\*\*+", "*", part) for part in key.split("/")]
    fixed = next(i for i, part in enumerate(parts) if globbing.has_magic(part))
    root, parts = "/".join(parts[:fixed]), parts[fixed:]
    url = source.rstrip("/").rsplit("/", len(parts))[0]
    wanted = re.compile(glob_translate("/".join(parts)))
    depth = parts.index("**") if "**" in parts else len(parts) - 1
    folders = [re.compile(glob_translate("/".join(parts[: i + 1]))) for i in range(depth)]

    def enter(path: str) -> bool:
        level = path.count("/")
        return folders[level].match(path) is not None if level < depth else "**" in parts

    for name in _walk(fs, root, "", enter, found):
        if wanted.match(name):
            yield f"{url}/{name}"


def _batches(names: Iterator[str]) -> Iterator[pa.RecordBatch]:
    while paths := list(islice(names, CHUNK)):
        try:
            columns = [pa.array(paths, pa.string()), pa.nulls(len(paths), pa.binary())]
        except UnicodeEncodeError:
            raw = [path.encode("utf-8", "surrogateescape") for path in paths]
            shown = [plain_text(path) for path in paths]
            kept = [None if text == path else name for text, path, name in zip(shown, paths, raw, strict=True)]
            columns = [pa.array(shown, pa.string()), pa.array(kept, pa.binary())]
        yield pa.record_batch(columns, schema=pa.schema(PLANNED))


# --------------------------------------------------------------------------------------------------------- manifests


def _open_manifest(fs: Any, key: str, source: str) -> Source:
    """Opens a CSV or Parquet file with a column `path`. Values in a CSV stay text: 00123 is a patient, not a number."""
    text = key.lower().endswith(".csv")
    read = _read_csv if text else _read_parquet
    try:
        columns, batches = read(fs, key)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{source} cannot be read as a manifest: {one_line(error)}") from error
    names = columns.names
    if names.count("path") != 1:
        listed = ", ".join(names[:20])
        raise UsageError(f"{source} must have one column called path, with commas between columns: it has {listed}")
    kind = columns.field("path").type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UsageError(f"{source}: the column path holds {kind}, not text: give paths or URLs of films")
    others = pa.schema([each for each in columns if each.name != "path"])
    check_columns(others, source)
    base = source.rsplit("/", 1)[0]
    return Source(source, base, others, _planned(batches, others, source))


def _planned(batches: Iterator[pa.RecordBatch], others: pa.Schema, source: str) -> Iterator[pa.RecordBatch]:
    """Puts columns into the order of the plan, and leaves out rows without a path."""
    nameless = 0
    try:
        for batch in batches:
            path = pc.cast(batch.column("path"), pa.string())
            named = pc.fill_null(pc.not_equal(path, ""), False)
            columns = [path, pa.nulls(len(batch), pa.binary()), *(batch.column(name) for name in others.names)]
            kept = pa.record_batch(columns, schema=pa.schema([*PLANNED, *others])).filter(named)
            nameless += len(batch) - len(kept)
            if len(kept):
                yield kept
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{source} cannot be read to its end: {one_line(error)}") from error
    if nameless:
        say(f"{source}: {nameless} rows name no film")


def _read_parquet(fs: Any, key: str) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    file = pq.ParquetFile(fs.open(key, "rb"))
    # Each row group has a dictionary of its own.
    schema = pa.schema([
        each.with_type(each.type.value_type) if pa.types.is_dictionary(each.type) else each
        for each in file.schema_arrow.remove_metadata()
    ])  # fmt: skip
    return schema, (batch.cast(schema) for batch in file.iter_batches(CHUNK))


def _read_csv(fs: Any, key: str) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    block = pyarrow.csv.ReadOptions(block_size=4 << 20)
    with fs.open(key, "rb") as file:
        names = pyarrow.csv.open_csv(file, parse_options=parse, read_options=block).schema.names
    schema = pa.schema([(name, pa.string()) for name in names])
    convert = pyarrow.csv.ConvertOptions(
        column_types=schema if len(set(names)) == len(names) else None, strings_can_be_null=False
    )
    reader = pyarrow.csv.open_csv(fs.open(key, "rb"), parse_options=parse, read_options=block, convert_options=convert)
    return schema, iter(reader)
