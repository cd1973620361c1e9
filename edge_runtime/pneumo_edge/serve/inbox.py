"""The one door for films that are kept, whichever way they come: it decides, writes them down, and says why not.

A film that is taken is in spool and journal, synced. One that is refused has left nothing behind.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sqlite3
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from pneumo_edge.serve import film as films
from pneumo_edge.serve.journal import State
from pneumo_edge.serve.spool import FILM, key_of_instance, new_key

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from pneumo_edge.serve.journal import Entry, Journal
    from pneumo_edge.serve.spool import Spool

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What a small device takes before it asks the others to come again."""

    queue: int = 1000
    """Films that may wait for their judgement."""
    room: int = 256 << 20
    """Bytes that must be left on the disk, so that films that were taken can be answered."""

    body: int = 64 << 20
    """Bytes of one HTTP request."""
    held: int = 128 << 20
    """Bytes of all bodies of HTTP requests that are in memory at one moment."""
    waiting: int = 16
    """HTTP requests with a film that are read, wait or are judged at one moment."""

    associations: int = 8
    """At one time; more are rejected as "local limit exceeded"."""
    share: int = 4
    """Of them, for callers from one address."""
    bytes_in_flight: int = 256 << 20
    """Of all films that are just arriving over DICOM; where they have more, the largest is cut off. None that can be
    read has more than half of it."""

    seconds: float = 60.0
    """In which an HTTP body must have arrived; that a DICOM peer may say nothing, or take for one unit of data."""


class Refusal(StrEnum):
    """Why a film is not taken."""

    busy = "busy"
    """Too many wait: come again."""
    full = "full"
    """No room on the disk: come again."""
    damaged = "damaged"
    incomplete = "incomplete"
    """It lacks what an answer must refer to."""
    foreign = "foreign"
    """Another film bears its UID."""


STATUS = {
    Refusal.busy: 0xA700,
    Refusal.full: 0xA700,
    Refusal.incomplete: 0xA900,
    Refusal.foreign: 0xA900,
    Refusal.damaged: 0xC000,
}
"""As DICOM has it (PS3.4 B.2.3). At the first two a modality tries again later; at the others the film itself is to
blame."""


class RefusedError(Exception):
    """A film is not taken."""

    def __init__(self, kind: Refusal, why: str) -> None:
        super().__init__(kind, why)
        self.kind, self.why = kind, why

    def __str__(self) -> str:
        """Returns the reason."""
        return self.why


class Inbox:
    """Owns spool and journal as far as films come and go. Usable from several threads."""

    def __init__(self, journal: Journal, spool: Spool, limits: Limits | None = None) -> None:
        """Takes both as they are."""
        self.journal, self.spool, self.limits = journal, spool, limits or Limits()

    def is_full(self) -> bool:
        """Tells whether the disk has no room for another film."""
        return self.spool.free() < self.limits.room

    def check(self, size: int) -> None:
        """Asks whether there is room for a film of so many bytes that is not known yet.

        Raises:
            RefusedError: busy or full.
        """
        if self.journal.counts()[State.received] >= self.limits.queue:
            raise RefusedError(Refusal.busy, "too many films are waiting: send it again later")
        # Twice: what is made of a film takes room too.
        if self.spool.free() < self.limits.room + 2 * size:
            raise RefusedError(Refusal.full, "the disk is nearly full: make room")

    def take(self, film: bytes, source: str = "page") -> Entry:
        """Takes a film that is nobody's but its own: each that is handed in is a new one.

        Raises:
            RefusedError: It is not taken.
        """
        key = new_key()
        with self.spool.lock:
            return self._write(key, film, source, known=None)

    def take_instance(self, film: bytes, source: str, caller: str, announced: str | None = None) -> Dataset:
        """Takes a DICOM film, which is known by its SOP Instance UID when it comes again.

        One that would get the same answer again is the same film, in whatever file it comes: nothing is done, or it is
        judged again if it had failed. Another one takes the place of the one that was there, and is judged and answered
        anew: whose film it is may have been corrected, or the first one was cut off. Only where patient and pixels both
        differ it is another film under a UID that is taken, and refused. An answer of our own that comes back is
        dropped.

        Args:
            film: A DICOM file.
            source: "dicom" or "dicomweb".
            caller: Who sends it, for the log.
            announced: The SOP Instance UID by which it was announced.

        Returns:
            Its header.

        Raises:
            RefusedError: It is not taken; the log says so.
        """
        try:
            header = _read(film, announced)
            if films.is_ours(header):
                _log.warning("from %s: an answer of pneumo came back as a film: dropped", caller)
            else:
                with self.spool.lock:
                    self._put(film, key_of_instance(str(header.SOPInstanceUID)), source, caller)
        except RefusedError as refused:
            _log.error("from %s: a film was refused: %s", caller, refused.why)
            raise
        return header

    def _put(self, film: bytes, key: str, source: str, caller: str) -> None:
        known = self.journal.find(key)
        if known is None:
            self._write(key, film, source, known)
            _log.info("film %s: received from %s", key[:8], caller)
            return
        kept = self.spool.read(key, FILM)
        # Where the row speaks of another film than the one that is kept, that one has never been judged.
        whole = kept is not None and known.digest in (None, _digest(kept))
        if whole and kept == film and known.state is State.failed:
            self._again(key)
            _log.info("film %s: received again from %s, after it had failed", key[:8], caller)
            return
        changed = () if kept is None or kept == film else films.differences(kept, film)
        if whole and not changed and known.state is not State.failed:
            _log.info("film %s: received again from %s, the same", key[:8], caller)
            return
        if {"patient", "pixels"} <= set(changed):
            raise RefusedError(
                Refusal.foreign, f"film {key[:8]} has its SOPInstanceUID, with other pixels of another patient"
            )
        self._write(key, film, source, known)
        sent = " Its earlier answer may be in a PACS: delete it there." if known.state is State.sent else ""
        what = ", ".join(changed) or "details"
        _log.warning("film %s: received again from %s, with other %s: judged anew.%s", key[:8], caller, what, sent)

    def _write(self, key: str, film: bytes, source: str, known: Entry | None) -> Entry:
        """Writes film and row, or neither."""
        self.check(len(film))
        try:
            if known is None:
                self.spool.add(key, film)
            else:
                # In this order: where the power fails in between, the row bears the old digest, and the film is taken
                # for another one when it is sent again.
                self.spool.replace(key, film)
            try:
                if known is None:
                    return self.journal.add(key, source, _digest(film))[0]
                self.journal.again(key, _digest(film))
                return known
            except sqlite3.Error:
                if known is None:
                    self.spool.remove(key)
                raise
        except (OSError, sqlite3.Error) as error:
            raise RefusedError(
                Refusal.full, f"the film cannot be written ({type(error).__name__}): make room on the disk"
            ) from error

    def _again(self, key: str) -> None:
        try:
            self.journal.again(key)
        except sqlite3.Error as error:
            raise RefusedError(Refusal.full, "the journal cannot be written: make room on the disk") from error

    def delete(self, key: str) -> bool:
        """Deletes a film, its answer and its row, whatever they wait for; tells whether there was one."""
        with self.spool.lock:
            found = self.journal.delete(key)
            if found:
                self.spool.remove(key)
                _log.info("film %s: deleted on request", key[:8])
        return found

    def tidy(self, days: float) -> None:
        """Deletes films that have been here for more than so many days and wait for nothing, with their rows.

        The days are those of the journal's own clock, which counts while pneumo-serve runs.
        """
        with self.spool.lock:
            for key in self.journal.forget_before(self.journal.clock() - days * 86400):
                self.spool.remove(key)
                _log.info("film %s: deleted after %g days", key[:8], days)


def _digest(film: bytes) -> str:
    return hashlib.sha256(film).hexdigest()


def _read(film: bytes, announced: str | None) -> Dataset:
    """Reads the header of a film that can be answered, whatever it shows.

    Raises:
        RefusedError: damaged or incomplete.
    """
    try:
        header = films.read_header(film)
        stated = {keyword: str(header.get(keyword)) for keyword in films.IDENTITY}
    except Exception as error:
        raise RefusedError(Refusal.damaged, "the data set is damaged") from error
    for keyword, value in stated.items():
        # No stricter than that: not every device keeps to the rule about leading zeros.
        if not re.fullmatch(r"[0-9.]{1,64}", value):
            raise RefusedError(Refusal.incomplete, f"it has no {keyword}")
    if announced is not None and stated["SOPInstanceUID"] != announced:
        raise RefusedError(Refusal.incomplete, "it has another SOPInstanceUID than was announced")
    return header
