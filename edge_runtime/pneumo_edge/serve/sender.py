"""Sends what has been answered to the PACS, in a thread of its own, until the PACS has it."""

from __future__ import annotations

import io
import logging
import re
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pneumo_edge.errors import UsageError
from pneumo_edge.serve.spool import CAPTURE, REPORT

if TYPE_CHECKING:
    from pneumo_edge.serve.journal import Entry, Journal
    from pneumo_edge.serve.spool import Spool

_FIRST_DELAY, _LONGEST_DELAY = 1.0, 300.0
"""Seconds: each try waits twice as long as the one before it."""

_CONNECT, _ANSWER = 10.0, 60.0
"""Seconds that the PACS has to take the call, and to say that it has stored an object."""

_STORED = (0x0000, 0xB000, 0xB006, 0xB007, 0x0111)
"""Success, success with a remark, and "I have that one already" (PS3.4 B.2.3, PS3.7 C.4)."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Peer:
    """A DICOM node that takes our answers."""

    ae_title: str
    host: str
    port: int


class _LaterError(Exception):
    """The PACS cannot take it now."""


class _NeverError(Exception):
    """The PACS says that it will not take this object."""


def parse_peer(text: str) -> Peer:
    """Reads "AET@HOST:PORT".

    Raises:
        UsageError: It is not of that form.
    """
    found = re.fullmatch(r"(?P<title>[^@\\]+)@(?P<host>\[[0-9A-Fa-f:.]+\]|[^@:\[\]/\s]+):(?P<port>\d{1,5})", text)
    if found is None or not 0 < int(found["port"]) < 65536:
        raise UsageError(f"--send-to {text} is not of the form AET@HOST:PORT: give one such as PACS@192.168.1.5:104")
    return Peer(parse_ae_title(found["title"]), found["host"].strip("[]"), int(found["port"]))


def parse_ae_title(text: str) -> str:
    """Checks an application entity title: 1 to 16 printable ASCII characters without backslash (PS3.5 6.2).

    Raises:
        UsageError: It is none.
    """
    title = text.strip()
    if not re.fullmatch(r"[ -\[\]-~]{1,16}", title):
        raise UsageError(f"{text!r} is no AE title: give 1 to 16 letters and digits")
    return title


class Sender:
    """A thread that turns what is answered into what is sent."""

    def __init__(self, journal: Journal, spool: Spool, peer: Peer, ae_title: str) -> None:
        """Prepares it; `start` begins.

        Args:
            journal: Says what is due, and is told what became of it.
            spool: Holds the objects.
            peer: The PACS.
            ae_title: What we call ourselves.
        """
        self._journal, self._spool, self._peer = journal, spool, peer
        self._entity = _make_entity(ae_title)
        self._association: Any = None
        self._failures = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sender")

    def start(self) -> None:
        """Begins to send."""
        self._thread.start()

    def stop(self) -> None:
        """Returns when the object that is on its way has arrived or failed; what is left is sent after a restart."""
        self._stopping.set()
        self._journal.wake()
        self._thread.join(_ANSWER / 6)
        if self._thread.is_alive():
            # The PACS does not answer: after this it need not.
            self._entity.shutdown()
            self._thread.join()

    def _run(self) -> None:
        while True:
            seen = self._journal.changes()
            if self._stopping.is_set():
                break
            try:
                now = time.time()
                entry = self._journal.next_to_send(now)
                if entry is not None:
                    self._send(entry)
                else:
                    self._hang_up()
                    due = self._journal.next_due()
                    self._journal.wait(
                        seen, _LONGEST_DELAY if due is None else min(max(due - now, 0.05), _LONGEST_DELAY)
                    )
            except Exception as error:
                # The journal cannot be written, most likely: the disk is full.
                _log.error("nothing can be sent (%s), tried again", type(error).__name__)
                _log.debug("because of", exc_info=True)
                self._stopping.wait(_LONGEST_DELAY / 30)
        self._hang_up()

    def _send(self, entry: Entry) -> None:
        name = f"film {entry.key[:8]}"
        objects = [data for file in (CAPTURE, REPORT) if (data := self._spool.read(entry.key, file)) is not None]
        if not objects:
            self._journal.refused(entry.key, "the answer is not in the spool any more: send the film again")
            return
        try:
            self._call()
        except _LaterError as error:
            # That concerns every answer alike: none is tried until this one's time has come.
            self._failures += 1
            delay = _delay(self._failures)
            self._journal.not_sent(entry.key, str(error), time.time() + delay)
            _log.warning("%s; tried again in %.0f s", error, delay)
            self._stopping.wait(delay)
            return
        self._failures = 0
        refused = None
        try:
            for data in objects:
                try:
                    self._store(data)
                except _NeverError as error:
                    # The other object may be welcome.
                    refused = str(error)
        except _LaterError as error:
            self._hang_up()
            delay = _delay(entry.attempts + 1)
            self._journal.not_sent(entry.key, str(error), time.time() + delay)
            _log.warning("%s: %s; tried again in %.0f s", name, error, delay)
            return
        if refused is not None:
            self._journal.refused(entry.key, refused)
            _log.error("%s: %s", name, refused)
        else:
            self._journal.sent(entry.key)
            _log.info("%s: sent", name)

    def _call(self) -> None:
        """Opens an association, if there is none.

        Raises:
            _LaterError: The PACS is away, or will not talk to us.
        """
        if self._association is not None and self._association.is_established:
            return
        peer = self._peer
        try:
            association = self._entity.associate(peer.host, peer.port, ae_title=peer.ae_title)
        except OSError as error:
            raise _LaterError(f"the PACS cannot be found ({error.strerror or error})") from None
        if association.is_established:
            self._association = association
        elif association.is_rejected:
            why = association.acceptor.primitive.reason_str
            raise _LaterError(f"the PACS refuses to talk to us ({why})")
        else:
            raise _LaterError("the PACS does not answer")

    def _store(self, data: bytes) -> None:
        """Sends one object.

        Raises:
            _LaterError, _NeverError: It was not stored.
        """
        import pydicom

        ds = pydicom.dcmread(io.BytesIO(data))
        name = ds.SOPClassUID.name
        try:
            status = self._association.send_c_store(ds)
        except ValueError:
            raise _NeverError(f"the PACS does not take objects of the kind {name}") from None
        except RuntimeError:
            raise _LaterError("the PACS has hung up") from None
        code = status.get("Status")
        if code is None:
            raise _LaterError("the PACS has hung up, or does not answer")
        if code not in _STORED:
            told = f"the PACS did not store a {name} (status {code:04X})"
            # "Data set does not match" and "cannot understand" are about the object; the rest may pass.
            raise _NeverError(told) if code >> 8 == 0xA9 or code >> 12 == 0xC or code == 0x0122 else _LaterError(told)

    def _hang_up(self) -> None:
        association, self._association = self._association, None
        if association is not None and association.is_established:
            association.release()


def _delay(failures: int) -> float:
    return min(_FIRST_DELAY * 2.0 ** min(failures - 1, 30), _LONGEST_DELAY)


def _make_entity(ae_title: str) -> Any:
    from pydicom.uid import (
        EnhancedSRStorage,
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        SecondaryCaptureImageStorage,
    )
    from pynetdicom import AE

    entity = AE(ae_title)
    for kind in (SecondaryCaptureImageStorage, EnhancedSRStorage):
        entity.add_requested_context(kind, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    entity.connection_timeout, entity.acse_timeout = _CONNECT, _CONNECT
    entity.dimse_timeout = entity.network_timeout = _ANSWER
    return entity
