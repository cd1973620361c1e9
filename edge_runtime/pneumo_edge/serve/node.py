"""Receives films over DICOM: C-ECHO and C-STORE. A film is in spool and journal, synced, before Success goes back."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.dsutils import encode_file_meta
from pynetdicom.pdu_primitives import A_RELEASE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import ThreadedAssociationServer

from pneumo_edge.dicom.decode import TRANSFER_SYNTAXES
from pneumo_edge.serve.answers import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from pneumo_edge.serve.film import KINDS
from pneumo_edge.serve.inbox import STATUS, RefusedError
from pneumo_edge.serve.listen import refused_port
from pneumo_edge.serve.steady import steady_timers

if TYPE_CHECKING:
    import ssl

    from pneumo_edge.serve.inbox import Inbox

PLAIN = TRANSFER_SYNTAXES[:3]
"""Of C-ECHO, which has nothing to be packed."""

MAX_PDU = 1 << 17
_MAX_ANNOUNCED = 1 << 20
"""Bytes. We ask for units of the first size. pynetdicom would take whatever length a stranger announces, up to 4 GB;
what is longer than the second ends the call (a request for an association is a few thousand bytes long)."""

_END = 2.0
"""Seconds that associations have to end when the node stops."""

_MOMENT = 1.0
"""Seconds that a call waits for a place: a peer that has hung up without a word may call again before we know of it."""

_CALLED, _CALLING, _LIMIT = (1, 1, 7), (1, 1, 3), (2, 3, 2)
_WHY = {
    _CALLED: "it calls for the AE title {called}, this one is {ours}",
    _CALLING: "its AE title {calling} is not in --allow",
    _LIMIT: "too many associations at once",
}
"""Result, source and diagnostic of a rejection (PS3.8 9.3.4)."""

_log = logging.getLogger(__name__)


class _Server(ThreadedAssociationServer):
    """pynetdicom's server, which would start two threads for every connection before it counts associations, and would
    shake hands over TLS before it takes the next call."""

    most: int
    most_of_one: int
    seconds: float
    hung_up: WeakSet[Any]
    """Associations whose connection is closed: their threads are there for a moment longer, by no doing of the peer."""

    def get_request(self) -> tuple[Any, Any]:
        """Takes a connection; hands are shaken over TLS when its own thread reads from it."""
        connection, address = self.socket.accept()  # type: ignore[union-attr]
        if self.ssl_context is not None:
            connection.settimeout(self.seconds)
            connection = self.ssl_context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def verify_request(self, _request: Any, client_address: Any) -> bool:
        """Tells whether a connection is taken at all."""
        connected = (each for each in self.active_associations if each not in self.hung_up)
        callers = Counter(association.requestor.address for association in connected)
        return callers.total() < self.most and callers[client_address[0]] < self.most_of_one


class Node:
    """A DICOM node that puts films into the inbox."""

    def __init__(
        self,
        inbox: Inbox,
        *,
        ae_title: str,
        host: str,
        port: int,
        allow: Collection[str] = (),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Opens the port; `start` begins to take films.

        Args:
            inbox: Gets the films, and has the limits.
            ae_title: Ours; calls for another one are refused.
            host: Address to listen on.
            port: 0 for any that is free; `port` tells which.
            allow: AE titles that may call; all of them by default.
            tls: Take no calls but over TLS.

        Raises:
            UsageError: The address is none, or the port is for others.
            PassingError: The port is in use, or the address is not of this machine, or not yet.
        """
        self._inbox, self._limits = inbox, inbox.limits
        self._arriving: dict[Any, int] = {}
        self._open: set[Any] = set()
        """Associations that were taken and have not ended. The threads of those that have may be there for a moment."""
        self._stopping = False
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        steady_timers()
        self._entity = AE(ae_title)
        self._entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        self._entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        self._entity.require_called_aet = True
        self._entity.require_calling_aet = list(allow)
        # Counted by `_requested`: pynetdicom's own count holds associations whose peer has gone already.
        self._entity.maximum_associations = 1000 * self._limits.associations
        self._entity.maximum_pdu_size = MAX_PDU
        self._entity.acse_timeout = min(self._limits.seconds, 10.0)
        self._entity.network_timeout = self._entity.dimse_timeout = self._limits.seconds
        self._entity.add_supported_context(Verification, list(PLAIN))
        for kind in KINDS:
            self._entity.add_supported_context(kind, list(TRANSFER_SYNTAXES))
        handlers: Any = [
            (evt.EVT_CONN_OPEN, self._opened),
            (evt.EVT_CONN_CLOSE, self._closed),
            (evt.EVT_REQUESTED, self._requested),
            (evt.EVT_REJECTED, self._rejected),
            (evt.EVT_ACSE_RECV, self._told),
            (evt.EVT_DATA_RECV, self._receiving),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_ECHO, self._echo),
        ]
        try:
            server: Any = self._entity.make_server(
                (host, port), evt_handlers=handlers, server_class=_Server, ssl_context=tls
            )
        except OSError as error:
            raise refused_port("DICOM", host, port, error) from None
        # Some more than there may be associations: they are told that there are too many.
        server.most, server.most_of_one = 4 * self._limits.associations, 4 * self._limits.share
        server.seconds = self._limits.seconds
        server.hung_up = WeakSet()
        self._server = server
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="node")

    def start(self) -> None:
        """Begins to take films."""
        self._thread.start()

    def stop(self) -> None:
        """Closes the port and the associations; a film that was not told to have arrived will be sent again."""
        self._stopping = True
        if self._thread.is_alive():
            # pynetdicom's own `shutdown` is for servers that it has started.
            TCPServer.shutdown(self._server)
            self._thread.join()
        self._server.server_close()
        associations = self._entity.active_associations
        for association in associations:
            association.abort(block=False)
        deadline = time.monotonic() + _END
        for association in associations:
            association.join(max(deadline - time.monotonic(), 0.0))

    def _opened(self, event: Any) -> None:
        """Bounds what a stranger can make us wait for and hold in memory before he has said who he is."""
        connection = event.assoc.dul.socket
        connection.socket.settimeout(self._limits.seconds)
        connection.recv = _bounded(connection.recv)

    def _requested(self, event: Any) -> None:
        """Takes no more associations than we can serve, and leaves room for other callers."""
        association = event.assoc
        with self._room:
            if self._room.wait_for(lambda: self._has_room(association.requestor.address), _MOMENT):
                self._open.add(association)
                return
        association.requestor.ae_title = association.requestor.primitive.calling_ae_title
        association.acse.send_reject(*_LIMIT)
        evt.trigger(association, evt.EVT_REJECTED, {})
        association.kill()

    def _has_room(self, address: str) -> bool:
        # A thread that an error has ended tells nothing.
        self._open = {each for each in self._open if each.is_alive()}
        callers = Counter(each.requestor.address for each in self._open)
        return callers.total() < self._limits.associations and callers[address] < self._limits.share

    def _end(self, association: Any) -> bool:
        """Makes its place free, and tells whether it had one."""
        with self._room:
            had = association in self._open
            self._open.discard(association)
            self._room.notify_all()
        return had

    def _closed(self, event: Any) -> None:
        association = event.assoc
        self._server.hung_up.add(association)
        with self._lock:
            arrived = self._arriving.pop(association, 0)
        had = self._end(association)
        if self._stopping:
            return
        if association.requestor.primitive is None:
            _log.info("from %s: a connection that was no call", association.requestor.address)
        elif had:
            _log.warning(
                "from %s: the association broke off%s",
                _caller(association),
                f", with {arrived >> 10} kB of a film on the way" if arrived >> 10 else "",
            )

    def _told(self, event: Any) -> None:
        """Hears that the peer releases the association: before it is answered, since then it may call again."""
        if isinstance(event.primitive, A_RELEASE):
            self._end(event.assoc)

    def _rejected(self, event: Any) -> None:
        association = event.assoc
        self._end(association)
        told = association.acceptor.primitive
        request = association.requestor.primitive
        why = _WHY.get((told.result, told.result_source, told.diagnostic), "for a reason of the protocol").format(
            called=_quoted(request.called_ae_title),
            calling=_quoted(request.calling_ae_title),
            ours=_quoted(self._entity.ae_title),
        )
        _log.warning("from %s: the association was rejected: %s", _caller(association), why)

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
        self._end(largest)
        _log.error("from %s: a film was cut off: too many bytes are arriving at once", _caller(largest))
        largest.abort(block=False)

    def _echo(self, event: Any) -> int:
        """Answers a C-ECHO, which is no part of a film that arrives."""
        with self._lock:
            self._arriving.pop(event.assoc, None)
        return 0x0000

    def _store(self, event: Any) -> Dataset:
        """Takes one film."""
        instance = str(event.request.AffectedSOPInstanceUID)
        try:
            meta = event.file_meta
            meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
            meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
            film = b"".join((bytes(128), b"DICM", encode_file_meta(meta), event.request.DataSet.getvalue()))
            self._inbox.take_instance(film, "dicom", _caller(event.assoc), announced=instance)
            return _status(0x0000, "")
        except RefusedError as refused:
            return _status(STATUS[refused.kind], refused.why)
        finally:
            with self._lock:
                self._arriving.pop(event.assoc, None)


def _caller(association: Any) -> str:
    """Returns who calls, for the log."""
    request = association.requestor.primitive
    title = "" if request is None else f"{_quoted(request.calling_ae_title)} at "
    return f"{title}{association.requestor.address}"


def _quoted(title: Any) -> str:
    """Returns an AE title as it may stand in a log: a stranger's can be any bytes."""
    return "".join(each if " " <= each <= "~" else "?" for each in str(title).strip())[:16] or "(none)"


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
