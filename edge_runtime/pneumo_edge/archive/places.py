"""Files on this machine and on any file system that fsspec knows. What is written is whole or not there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from pneumo_edge.errors import DataError, ImageError, UsageError, one_line
from pneumo_edge.preprocess import MAX_BYTES, read_bytes

LOCAL = "local"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
"""Two letters at least: `C:` is a drive."""

_PUT_IS_ATOMIC = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "memory"})
"""File systems on which a file appears when it is whole. They cannot rename, only copy."""

_UNFINISHED = "unfinished"
"""Folder of files that are being written. A hidden name would not do: readers of `films/*.parquet`, such as DuckDB,
take hidden files too."""


def has_scheme(path: str) -> bool:
    """Tells whether a path is a URL, such as s3://bucket/film.png."""
    return _SCHEME.match(path) is not None


def open_url(url: str) -> tuple[Any, str]:
    """Returns the file system of a path or URL, and the file's name on it. Options come from fsspec's configuration.

    Not `fsspec.url_to_fs`: it takes `::`, which may stand in a file's name, for a chain of file systems.

    Raises:
        DataError: The file system does not answer.
        UsageError: It is empty; or fsspec does not know the protocol, or lacks the package or the options for it.
    """
    from fsspec import get_filesystem_class

    if not url:
        # More likely a shell variable that is not set than the current folder.
        raise UsageError("a path is empty: give a folder or a URL, . for the folder at hand")
    scheme = _SCHEME.match(url)
    protocol = scheme[1] if scheme else LOCAL
    try:
        kind = get_filesystem_class(protocol)
        if is_local(kind):
            # fsspec would replace `~` by the user's home, and remove a slash at the end.
            return kind(), os.path.abspath(url[scheme.end() :] if scheme else url)  # noqa: PTH100 - no Path: any bytes
        # What `fsspec.url_to_fs` calls: tests/project/test_canaries.py.
        return kind(**kind._get_kwargs_from_urls(url)), kind._strip_protocol(url)  # noqa: SLF001
    except (ImportError, ValueError) as error:
        raise UsageError(f"{url} cannot be opened: {one_line(error)}{_chained(url)}") from None
    except OSError as error:
        raise DataError(f"{url} cannot be opened: {one_line(error)}{_chained(url)}") from error
    except Exception as error:
        # Each file system has its own arguments, and its own errors where they are missing.
        raise UsageError(
            f"{url} cannot be opened, since {protocol}:// wants more than a URL says ({one_line(error)}): put it into "
            f"fsspec's configuration (FSSPEC_{protocol.upper()}_...), or copy the films to a folder{_chained(url)}"
        ) from error


def _chained(url: str) -> str:
    return "; one file system within another (::) is not taken: unpack the films first" if "::" in url else ""


def is_local(fs: Any) -> bool:
    """Tells whether a file system of fsspec, or its class, is that of this machine."""
    return "file" in _protocols(fs)


def fetch(url: str, name: str) -> bytes:
    """Reads a film to its end, but at most one byte more than `MAX_BYTES`.

    Args:
        url: Path or URL.
        name: Name of the film in errors.

    Raises:
        ImageError: It is not there, or cannot be read.
    """
    fs, key = open_url(url)
    if is_local(fs):
        return read_bytes(key, name)
    try:
        try:
            data = fs.cat_file(key, start=0, end=MAX_BYTES + 1)
        except (FileNotFoundError, IsADirectoryError, PermissionError):
            raise
        except Exception:
            # Object stores refuse a range of an empty object.
            data = fs.cat_file(key)
    except FileNotFoundError:
        raise ImageError(f"{name} does not exist: check the path") from None
    except IsADirectoryError:
        raise ImageError(f"{name} is a folder, not an image: give the files in it") from None
    except Exception as error:
        raise ImageError(f"{name} cannot be opened: {one_line(error)}") from error
    return bytes(data)


class Store:
    """A folder for results on any file system. A file in it is whole or not there."""

    def __init__(self, url: str) -> None:
        """Opens a folder, which need not exist; a local path is made absolute.

        Raises:
            UsageError: See `open_url`.
        """
        self._fs, self._root = open_url(url)
        self._local = is_local(self._fs)
        self._root = self._root.rstrip("/") or "/"
        self.url = self._root if self._local else url.rstrip("/")

    def read(self, name: str) -> bytes | None:
        """Returns the bytes of a file, or None where there is none."""
        try:
            with self._named():
                return bytes(self._fs.cat_file(f"{self._root}/{name}"))
        except FileNotFoundError:
            return None

    def names(self, folder: str = "") -> list[str]:
        """Returns the names in a folder within; none where there is no such folder."""
        path = f"{self._root}/{folder}".rstrip("/")
        try:
            if self._local:
                return os.listdir(path)  # noqa: PTH208 - a folder may hold a hundred thousand parts
            with self._named():
                self._fs.invalidate_cache()
                return [entry.rstrip("/").rsplit("/", 1)[-1] for entry in self._fs.ls(path, detail=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def write(self, name: str, data: bytes) -> None:
        """Writes a file in one step: readers see the old one, or none, until the new one is whole."""
        with self._named():
            self._write(f"{self._root}/{name}", data)

    def _write(self, path: str, data: bytes) -> None:
        if not self._local and not _PUT_IS_ATOMIC.isdisjoint(_protocols(self._fs)):
            self._fs.pipe_file(path, data)
            return
        # The name has no process number: processes on two machines may have the same, and do the same part at one time.
        temporary = f"{self._root}/{_UNFINISHED}/{uuid4().hex}"
        for needed in (temporary, path):
            self._fs.makedirs(needed.rsplit("/", 1)[0], exist_ok=True)
        if not self._local:
            self._fs.pipe_file(temporary, data)
            self._fs.mv(temporary, path)
            return
        try:
            with open(temporary, "xb") as file:  # noqa: PTH123
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)  # noqa: PTH105
        finally:
            Path(temporary).unlink(missing_ok=True)

    def clear_unfinished(self) -> None:
        """Removes the unfinished files of processes that were killed."""
        folder = f"{self._root}/{_UNFINISHED}"
        if self._fs.exists(folder):
            self._fs.rm(folder, recursive=True)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Turns errors of a file system into a `DataError` that names the folder: few file systems name it."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            if self._local and isinstance(error, OSError):
                raise
            raise DataError(f"{self.url} cannot be used: {one_line(error)}") from error


def _protocols(fs: Any) -> set[str]:
    return {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
