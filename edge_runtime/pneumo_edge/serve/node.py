"""Receives films over DICOM: C-ECHO and C-STORE. A film is in spool and journal, synced, before Success goes back."""

from __future__ import annotations

import logging
import re
import sqlite3
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any

from pydicom import uid
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import ThreadedAssociationServer

from pneumo_edge.dicom.decode import TRANSFER_SYNTAXES
from pneumo_edge.errors import UsageError
from pneumo_edge.serve.answers import IDENTITY, read_header
from pneumo_edge.serve.journal import State
from pneumo_edge.serve.spool import key_of_instance

if TYPE_CHECKING:
    from pneumo_edge.serve.journal import Journal
    from pneumo_edge.serve.spool import Spool

_KINDS = (
    uid.ComputedRadiographyImageStorage,
    uid.DigitalXRayImageStorageForPresentation,
    uid.DigitalXRayImageStorageForProcessing,
    uid.SecondaryCaptureImageStorage,
    uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
)
"""What projection films come as. Film digitizers and converters use the last three; a film has one frame even there."""

_SUCCESS, _OUT_OF_RESOURCES, _DOES_NOT_MATCH, _CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xA900, 0xC000
"""PS3.4 B.2.3. At the second a modality tries again later; at the last two the film itself is to blame."""

_MAX_PDU = 1 << 17
_MAX_ANNOUNCED = 1 << 20
"""Bytes. We ask for units of the first size. pynetdicom would take whatever length a stranger announces, up to 4 GB;
what is longer than the second ends the call (a request for an association is a few thousand bytes long)."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What a node takes before it asks the others to come again."""

    associations: int = 8
    """At one time; more are rejected as "local limit exceeded"."""
    bytes_in_flight: int = 256 << 20
    """Of all films that are just arriving; where they have more, the largest is cut off. None that can be read has more
    than half of it."""
    queue: int = 1000
    """Films that wait for their judgement."""
    room: int = 256 << 20
    """Bytes that must be left on the disk, so that films that were taken can be answered."""
    seconds: float = 60.0
    """That a peer may say nothing, or take for one unit of data."""


class _Server(ThreadedAssociationServer):
    """pynetdicom's server, which would start two threads for every connection before it counts associations."""

    most: int

    def verify_request(self, _request: Any, _client_address: Any) -> bool:
        """Tells whether a connection is taken at all."""
        return len(self.active_associations) < self.most


class Node:
    """A DICOM node that puts films into the spool and on the journal."""

    def __init__(
        self,
        journal: Journal,
        spool: Spool,
        *,
        ae_title: str,
        host: str,
        port: int,
        allow: Collection[str] = (),
        limits: Limits | None = None,
    ) -> None:
        """Opens the port; `start` begins to take films.

        Args:
            journal: Gets a row for each film.
            spool: Gets the film.
            ae_title: Ours; calls for another one are refused.
            host: Address to listen on.
            port: 0 for any that is free; `port` tells which.
            allow: AE titles that may call; all of them by default.
            limits: How much is taken at a time.

        Raises:
            UsageError: The port is in use, or the address is not of this machine.
        """
        self._journal, self._spool, self._limits = journal, spool, limits or Limits()
        self._arriving: dict[Any, int] = {}
        self._lock = threading.Lock()
        self._entity = AE(ae_title)
        self._entity.require_called_aet = True
        self._entity.require_calling_aet = list(allow)
        self._entity.maximum_associations = self._limits.associations
        self._entity.maximum_pdu_size = _MAX_PDU
        self._entity.acse_timeout = min(self._limits.seconds, 10.0)
        self._entity.network_timeout = self._entity.dimse_timeout = self._limits.seconds
        self._entity.add_supported_context(Verification)
        for kind in _KINDS:
            self._entity.add_supported_context(kind, list(TRANSFER_SYNTAXES))
        handlers: Any = [
            (evt.EVT_CONN_OPEN, self._opened),
            (evt.EVT_CONN_CLOSE, self._closed),
            (evt.EVT_REJECTED, self._rejected),
            (evt.EVT_DATA_RECV, self._receiving),
            (evt.EVT_C_STORE, self._store),
        ]
        try:
            server: Any = self._entity.make_server((host, port), evt_handlers=handlers, server_class=_Server)
        except OSError as error:
            raise UsageError(
                f"cannot listen for DICOM on {host}, port {port} ({error.strerror or error}): give another --dicom-port"
            ) from None
        # Some more than there may be associations: they are told that there are too many.
        server.most = 4 * self._limits.associations
        self._server = server
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="node")

    def start(self) -> None:
        """Begins to take films."""
        self._thread.start()

    def stop(self) -> None:
        """Closes the port and the associations; a film that was not told to have arrived will be sent again."""
        if self._thread.is_alive():
            # pynetdicom's own `shutdown` is for servers that it has started.
            TCPServer.shutdown(self._server)
            self._thread.join()
        self._server.server_close()
        for association in self._entity.active_associations:
            association.abort()
            association.join(self._limits.seconds)

    def _opened(self, event: Any) -> None:
        """Bounds what a stranger can make us wait for and hold in memory before he has said who he is."""
        connection = event.assoc.dul.socket
        connection.socket.settimeout(self._limits.seconds)
        connection.recv = _bounded(connection.recv)

    def _closed(self, event: Any) -> None:
        with self._lock:
            self._arriving.pop(event.assoc, None)

    def _rejected(self, _event: Any) -> None:
        _log.warning("an association was rejected: not ours, not allowed, or too many at once")

    def _receiving(self, event: Any) -> None:
        """Counts what arrives until it is on the disk."""
        with self._lock:
            if event.assoc.is_aborted:
                return
            self._arriving[event.assoc] = self._arriving.get(event.assoc, 0) + len(event.data)
            if sum(self._arriving.values()) <= self._limits.bytes_in_flight:
                return
            largest = max(self._arriving, key=self._arriving.__getitem__)
            del self._arriving[largest]
        _log.error("a film was cut off: too many bytes are arriving at once")
        largest.abort(block=False)

    def _store(self, event: Any) -> Dataset:
        """Takes one film."""
        try:
            return _status(*self._keep(event))
        except (OSError, sqlite3.Error) as error:
            _log.error("a film was refused: it cannot be written (%s)", type(error).__name__)
            return _status(_OUT_OF_RESOURCES, "the film cannot be written: the disk is full")
        finally:
            with self._lock:
                self._arriving.pop(event.assoc, None)

    def _keep(self, event: Any) -> tuple[int, str]:
        instance = str(event.request.AffectedSOPInstanceUID)
        film: bytes = event.encoded_dataset()
        fault = _fault(film, instance)
        if fault is not None:
            _log.error("a film was refused: %s", fault[1])
            return fault
        with self._spool.lock:
            return self._put(key_of_instance(instance), film)

    def _put(self, key: str, film: bytes) -> tuple[int, str]:
        known = self._journal.find(key)
        if known is None:
            # Only now: a film that is known needs no room.
            if self._journal.counts()[State.received] >= self._limits.queue:
                _log.error("a film was refused: %d wait already", self._limits.queue)
                return _OUT_OF_RESOURCES, "too many films are waiting: send it again later"
            if self._spool.free() < self._limits.room + 2 * len(film):
                _log.error("a film was refused: the disk is nearly full")
                return _OUT_OF_RESOURCES, "the disk is nearly full"
            self._spool.add(key, film)
            self._journal.add(key, "dicom")
            _log.info("film %s: received", key[:8])
        elif known.state is State.failed:
            self._spool.add(key, film)
            self._journal.again(key)
            _log.info("film %s: received again, after it had failed", key[:8])
        return _SUCCESS, ""


def _fault(film: bytes, announced: str) -> tuple[int, str] | None:
    """Returns status and reason where a film cannot be answered, whatever it shows."""
    try:
        header = read_header(film)
        stated = {keyword: str(header.get(keyword)) for keyword in IDENTITY}
    except Exception:
        return _CANNOT_UNDERSTAND, "the data set is damaged"
    for keyword, value in stated.items():
        # No stricter than that: not every device keeps to the rule about leading zeros.
        if not re.fullmatch(r"[0-9.]{1,64}", value):
            return _DOES_NOT_MATCH, f"it has no {keyword}"
    if stated["SOPInstanceUID"] != announced:
        return _DOES_NOT_MATCH, "it has another SOPInstanceUID than was announced"
    return None


def _status(code: int, comment: str) -> Dataset:
    status = Dataset()
    status.Status = code
    if comment:
        status.ErrorComment = comment[:64]
    return status


def _bounded(recv: Callable[[int], bytearray]) -> Callable[[int], bytearray]:
    def read(count: int) -> bytearray:
        if count > _MAX_ANNOUNCED:
            raise OSError("a unit of data that is longer than any")
        return recv(count)

    return read
