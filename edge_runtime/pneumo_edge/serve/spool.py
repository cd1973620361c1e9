"""Films and answers on disk, one folder a film, readable by their owner alone.

    SPOOL/lock  journal.db  films/KEY/{film, answer.json, film.png, heatmap.png, capture.dcm, report.dcm}

A folder has its name only once the film in it is synced, and a row of the journal comes after that: a folder without a
row is of a film for which nobody was told that it has arrived.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import sqlite3
import threading
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

from pneumo_edge.atomic import sync
from pneumo_edge.errors import PassingError, PneumoError, UsageError

Part: TypeAlias = bytes | memoryview

FILM = "film"
ANSWER = "answer.json"
"""The record of `Prediction.record()`, or `{"path", "error"}`."""
PICTURE = "film.png"
"""The film at the size of a screen, grey."""
HEATMAP = "heatmap.png"
"""The evidence in colour, transparent where there is none; as large as `PICTURE`."""
CAPTURE = "capture.dcm"
REPORT = "report.dcm"
OBJECTS = {"sc": CAPTURE, "sr": REPORT}
"""The parts of an answer in DICOM by the names that the journal and the options have for them."""

_KEY = re.compile("[0-9a-f]{32}")

_OF_THE_OPTION = frozenset({errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP})
"""Why a folder cannot be written, where no time will mend it."""


def new_key() -> str:
    """Returns a key for a film that has no name of its own: 32 hexadecimal digits."""
    return secrets.token_hex(16)


def key_of_instance(uid: str) -> str:
    """Returns the key of a DICOM film, the same whenever it comes; its SOP Instance UID cannot be read from it."""
    return hashlib.sha256(uid.encode()).hexdigest()[:32]


class Spool:
    """One folder, used by one process at a time. Usable from several threads."""

    def __init__(self, root: Path) -> None:
        """Makes the folder, or goes on with one, and holds it until `close`.

        Raises:
            UsageError: It cannot be written into.
            PassingError: The disk is full or broken, or another pneumo-serve uses it.
        """
        self.root = root
        self.lock = threading.Lock()
        """Held by who decides by row and folder together whether a film is there."""
        self.journal = root / "journal.db"
        self._films = root / "films"
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            root.chmod(0o700)
            self._films.mkdir(mode=0o700, exist_ok=True)
            (root / "lock").touch(mode=0o600)
        except OSError as error:
            raise _unwritable(root, error) from None
        # SQLite's lock is released by the system when the process ends, however it ends, on every system.
        self._held = sqlite3.connect(root / "lock", isolation_level=None, timeout=0, check_same_thread=False)
        try:
            self._held.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            self._held.close()
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise PassingError(f"the spool {root} cannot be held ({error}): make room on the disk") from None
            raise PassingError(
                f"the spool {root} is in use by another pneumo-serve: stop that one, or give another --spool"
            ) from None

    def add(self, key: str, *parts: Part) -> bool:
        """Writes a film; when this returns it is on the disk.

        Args:
            key: 32 hexadecimal digits.
            parts: The bytes of the file, one after the other.

        Returns:
            False if there is a film of that key already, which is left as it is; see `replace`.

        Raises:
            OSError: The disk is full, or broken. Nothing is left of the film.
        """
        folder = self._folder(key)
        if folder.exists():
            sync(self._films)
            return False
        temporary = folder.with_name(f".{key}.{secrets.token_hex(4)}.tmp")
        try:
            temporary.mkdir(mode=0o700)
            _write(temporary / FILM, parts)
            sync(temporary)
            try:
                temporary.rename(folder)
                new = True
            except OSError:
                # Another association sends the same film at this moment.
                if not folder.exists():
                    raise
                new = False
            sync(self._films)
            return new
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def replace(self, key: str, film: Part) -> None:
        """Puts a film in the place of the one of that key; what was made of that one is gone.

        Raises:
            OSError: The disk is full, or broken. The film that was there is still there.
        """
        if self.add(key, film):
            return
        self._put(key, FILM, film)
        self._clear(key, keep={FILM})
        sync(self._folder(key))

    def path(self, key: str, name: str = FILM) -> Path:
        """Returns where a file of a film lies, or would lie.

        Raises:
            ValueError: The key is not of the form of a key.
        """
        return self._folder(key) / name

    def read(self, key: str, name: str) -> bytes | None:
        """Returns a file of a film; None if there is none, or no such film."""
        try:
            return self.path(key, name).read_bytes()
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None

    def write(self, key: str, files: Mapping[str, bytes]) -> None:
        """Writes what was made of a film, each file whole or not at all, and all of them synced.

        Files of an earlier judgement that this one has not are deleted: no picture of then goes with a report of now.

        Raises:
            OSError: The disk is full, or the film is not there.
        """
        self._clear(key, keep={FILM, *files})
        for name, data in files.items():
            self._put(key, name, data)
        sync(self._folder(key))

    def _put(self, key: str, name: str, data: Part) -> None:
        folder = self._folder(key)
        temporary = folder / f".{name}.tmp"
        try:
            _write(temporary, (data,))
            temporary.replace(folder / name)
        finally:
            temporary.unlink(missing_ok=True)

    def _clear(self, key: str, keep: Collection[str]) -> None:
        for name in {ANSWER, PICTURE, HEATMAP, CAPTURE, REPORT}.difference(keep):
            self.path(key, name).unlink(missing_ok=True)

    def remove(self, key: str) -> None:
        """Deletes a film and all that was made of it."""
        shutil.rmtree(self._folder(key), ignore_errors=True)

    def sweep(self, known: Iterable[str]) -> int:
        """Deletes what a process that was killed left behind: folders that no row of the journal knows.

        Returns:
            How many.
        """
        known = set(known)
        strays = [folder for folder in self._films.iterdir() if folder.name not in known]
        for stray in strays:
            shutil.rmtree(stray, ignore_errors=True)
        return len(strays)

    def free(self) -> int:
        """Returns how many bytes the disk has room for."""
        return shutil.disk_usage(self.root).free

    def close(self) -> None:
        """Lets another process have the spool."""
        self._held.close()

    def _folder(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError("no key of a film")
        return self._films / key


def _unwritable(root: Path, error: OSError) -> PneumoError:
    if error.errno in _OF_THE_OPTION:
        return UsageError(f"the spool {root} cannot be written ({error.strerror}): give another --spool")
    return PassingError(
        f"the spool {root} cannot be written ({error.strerror}): make room on the disk, and look after it"
    )


def _write(path: Path, parts: Iterable[Part]) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
