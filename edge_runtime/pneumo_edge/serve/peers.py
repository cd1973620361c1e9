"""Who gets our answers: how `--send-to` names them, and how one object goes there, over DICOM or DICOMweb."""

from __future__ import annotations

import io
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from pneumo_edge.errors import UsageError
from pneumo_edge.serve import stow
from pneumo_edge.serve.tls import Identity

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

OBJECTS = ("sc", "sr")
"""Picture (Secondary Capture) and report (structured report)."""

_CONNECT, _ANSWER = 5.0, 60.0
"""Seconds that a PACS has to take the call, and to say that it has stored an object."""

_CUT = 1.0
"""Seconds that an association has to end when it is cut."""

SYNTAXES = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
"""Explicit and implicit little endian: what our objects are sent in."""

STORED = (0x0000, 0xB000, 0xB006, 0xB007, 0x0111)
"""Success, success with a remark, and "I have that one already" (PS3.4 B.2.3, PS3.7 C.4)."""


class LaterError(Exception):
    """It cannot be sent now."""


class NeverError(Exception):
    """The other side says that it will not take this object."""


@dataclass(frozen=True)
class Peer:
    """A DICOM node that takes our answers."""

    ae_title: str
    host: str
    port: int
    tls: bool = False


@dataclass(frozen=True)
class Destination:
    """Somebody who gets answers, and which parts of them."""

    name: str
    """As it was given, without the objects: by this the journal and the log know it."""
    objects: tuple[str, ...]
    at: Peer | stow.Server


class Link(Protocol):
    """A way to one destination. Used by one thread, but for `cut`."""

    def greet(self) -> str:
        """Calls, says that we are there, and returns what is to be known of the other side; "" if all is well.

        Raises:
            LaterError: Nobody is there, or nobody who knows us.
        """

    def open(self) -> None:
        """Calls, unless the line is open.

        Raises:
            LaterError: Nobody is there, or nobody who knows us.
        """

    def send(self, kind: str, data: bytes) -> str | None:
        """Sends one object ("sc" or "sr", a DICOM file), and returns a remark of the other side on what it stored.

        Raises:
            LaterError, NeverError: It was not stored.
        """

    def close(self) -> None:
        """Hangs up."""

    def cut(self) -> None:
        """Ends what the other thread waits for."""


def parse_destination(text: str, objects: tuple[str, ...]) -> Destination:
    """Reads "AET@HOST:PORT", "tls:AET@HOST:PORT" or the address of a STOW-RS server, each with "=sc", "=sr" or
    "=sc,sr" behind it or not.

    Args:
        text: What `--send-to` was given.
        objects: What it gets where the text does not say so.

    Raises:
        UsageError: It is of none of these forms.
    """
    name, equals, chosen = text.rpartition("=")
    if equals and re.fullmatch(r"[a-z, ]+", chosen):
        objects = parse_objects(chosen)
    else:
        name = text
    if re.match("https?://", name):
        where = urlsplit(name)
        if not where.hostname or where.query or where.fragment or where.username is not None:
            raise UsageError(
                f"--send-to {name} is no address of a STOW-RS server: give one such as https://pacs.example/dicom-web"
            )
        return Destination(name, objects, stow.Server(name))
    return Destination(name, objects, parse_peer(name))


def parse_objects(text: str) -> tuple[str, ...]:
    """Reads "sc", "sr" or "sc,sr".

    Raises:
        UsageError: It is none of these.
    """
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if not found or not set(found) <= set(OBJECTS):
        raise UsageError(f"{text!r} is no choice of objects: give sc (picture), sr (report) or sc,sr")
    return found


def parse_peer(text: str) -> Peer:
    """Reads "AET@HOST:PORT", or the same with "tls:" in front.

    Raises:
        UsageError: It is not of that form.
    """
    form = r"(?P<tls>tls:)?(?P<title>[^@\\]+)@(?P<host>\[[0-9A-Fa-f:.]+\]|[^@:\[\]/\s]+):(?P<port>\d{1,5})"
    found = re.fullmatch(form, text)
    if found is None or not 0 < int(found["port"]) < 65536:
        raise UsageError(f"--send-to {text} is not of the form AET@HOST:PORT: give one such as PACS@192.168.1.5:104")
    host = found["host"].strip("[]")
    return Peer(parse_ae_title(found["title"]), host, int(found["port"]), found["tls"] is not None)


def parse_ae_title(text: str) -> str:
    """Checks an application entity title: 1 to 16 printable ASCII characters without backslash (PS3.5 6.2).

    Raises:
        UsageError: It is none.
    """
    title = text.strip()
    if not re.fullmatch(r"[ -\[\]-~]{1,16}", title):
        raise UsageError(f"{text!r} is no AE title: give 1 to 16 letters and digits")
    return title


def make_link(
    destination: Destination, ae_title: str, identity: Identity | None = None, authorization: str | None = None
) -> Link:
    """Returns the way to a destination.

    Args:
        destination: Where to.
        ae_title: What we call ourselves over DICOM.
        identity: For TLS.
        authorization: The header of that name for DICOMweb.

    Raises:
        UsageError: The files of `identity` cannot be used.
    """
    identity = identity or Identity()
    if isinstance(destination.at, stow.Server):
        context = identity.for_calls() if destination.at.url.startswith("https:") else None
        return WebLink(destination.at, context, authorization)
    return DicomLink(destination.at, ae_title, identity.for_calls() if destination.at.tls else None)


class DicomLink:
    """A `Link` over DICOM: C-ECHO and C-STORE."""

    def __init__(self, peer: Peer, ae_title: str, context: ssl.SSLContext | None = None) -> None:
        """Prepares it.

        Args:
            peer: Where to.
            ae_title: What we call ourselves.
            context: For TLS.
        """
        self._peer, self._context = peer, context
        self._entity = _make_entity(ae_title)
        self._association: Any = None

    def greet(self) -> str:
        """See `Link`."""
        from pneumo_edge.serve.answers import FORMS

        self.open()
        taken = {context.abstract_syntax for context in self._association.accepted_contexts}
        missing = [name for name, part in (("pictures", "sc"), ("reports", "sr")) if not taken & {*FORMS[part]}]
        if "1.2.840.10008.1.1" in taken:
            try:
                self._association.send_c_echo()
            except RuntimeError:
                raise LaterError("the PACS has hung up") from None
        return f"takes no {' and no '.join(missing)}" if missing else ""

    def open(self) -> None:
        """See `Link`."""
        if self._association is not None and self._association.is_established:
            return
        peer = self._peer
        tls = None if self._context is None else (self._context, peer.host)
        try:
            association = self._entity.associate(peer.host, peer.port, ae_title=peer.ae_title, tls_args=tls)
        except OSError as error:
            raise LaterError(f"the PACS cannot be found ({error.strerror or error})") from None
        if association.is_established:
            self._association = association
        elif association.is_rejected:
            raise LaterError(f"the PACS refuses to talk to us ({association.acceptor.primitive.reason_str})")
        else:
            raise LaterError("the PACS does not answer" if tls is None else "the PACS does not answer, or not over TLS")

    def send(self, kind: str, data: bytes) -> str | None:
        """See `Link`."""
        from pneumo_edge.serve.answers import FORMS, as_form

        taken = {context.abstract_syntax for context in self._association.accepted_contexts}
        form = next((form for form in FORMS[kind] if form in taken), None)
        if form is None:
            what = (
                "pictures (Secondary Capture)"
                if kind == "sc"
                else "reports (Comprehensive 3D, Enhanced, Comprehensive or Basic Text SR)"
            )
            raise NeverError(f"the PACS takes no {what}")
        ds = as_form(data, form)
        name = ds.SOPClassUID.name
        try:
            status = self._association.send_c_store(ds)
        except RuntimeError:
            raise LaterError("the PACS has hung up") from None
        code = status.get("Status")
        if code is None:
            raise LaterError("the PACS has hung up, or does not answer")
        comment = _without_patient(str(status.get("ErrorComment") or ""), ds)
        said = f"{code:04X}, {comment!r}" if comment else f"{code:04X}"
        if code in STORED:
            return None if code == 0x0000 else f"the PACS stored a {name} with a remark (status {said})"
        told = f"the PACS did not store a {name} (status {said})"
        # "Data set does not match", "cannot understand" and "SOP class not supported" are about the object; the rest
        # may pass.
        raise NeverError(told) if code >> 8 == 0xA9 or code >> 12 == 0xC or code == 0x0122 else LaterError(told)

    def close(self) -> None:
        """See `Link`."""
        association, self._association = self._association, None
        # One that is cut has said good-bye in its way; a second one would be waited for.
        if association is not None and association.is_established and not association._sent_abort:  # noqa: SLF001
            association.release()

    def cut(self) -> None:
        """See `Link`."""
        for association in self._entity.active_associations:
            association.abort(block=False)
            association.join(_CUT / 2)
            # One who hangs does not hang up either, and would be waited for.
            association.dul.socket.close()
            # Its own thread ends, and would take what follows if it had not.
            association.join(_CUT / 2)
            # Whoever waits for an answer waits at one of these two, and an abort alone would not wake him.
            association.dimse.msg_queue.put((None, None))
            association.dul.to_user_queue.put(None)


class WebLink:
    """A `Link` over STOW-RS."""

    def __init__(self, server: stow.Server, context: ssl.SSLContext | None, authorization: str | None) -> None:
        """See `make_link`."""
        self._server, self._context, self._authorization = server, context, authorization

    def greet(self) -> str:
        """See `Link`."""
        told = self._try(stow.greet)
        if not told.stored:
            raise LaterError(f"the server refuses to talk to us ({told.words})")
        return ""

    def open(self) -> None:
        """See `Link`: each object has a connection of its own."""

    def send(self, kind: str, data: bytes) -> str | None:
        """See `Link`."""
        from pneumo_edge.serve.answers import FORMS, as_form

        for form in FORMS[kind]:
            file = io.BytesIO()
            as_form(data, form).save_as(file, enforce_file_format=True)
            told = self._try(stow.send, file.getvalue())
            if told.stored:
                return None
            if not told.unknown:
                break
        name = "picture" if kind == "sc" else "report"
        words = f"the server did not store a {name} ({told.words})"
        raise NeverError(words) if told.for_good else LaterError(words)

    def _try(self, ask: Callable[..., stow.Told], *data: bytes) -> stow.Told:
        try:
            return ask(self._server, *data, self._context, self._authorization)
        except ssl.SSLCertVerificationError as error:
            who = "give --tls-authority the file of who has signed it"
            raise LaterError(f"the certificate of the server is not believed ({error.verify_message}): {who}") from None
        except ssl.SSLError as error:
            why = (error.reason or "for no reason").lower().replace("_", " ")
            raise LaterError(f"the server does not talk to us over TLS ({why})") from None
        except OSError as error:
            raise LaterError(f"the server does not answer ({error.strerror or error})") from None

    def close(self) -> None:
        """See `Link`."""

    def cut(self) -> None:
        """See `Link`: its thread ends with the process."""


def _without_patient(comment: str, ds: Dataset) -> str:
    """Returns what a PACS says, printable, without what it quotes of the patient: it goes to log and journal."""
    text = "".join(character if " " <= character <= "~" else "?" for character in comment)[:64].strip()
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "AccessionNumber", "StudyID"):
        for part in re.split(r"[\^=\s]+", str(ds.get(keyword) or "")):
            if len(part) > 1:
                text = re.sub(re.escape(part), "...", text, flags=re.IGNORECASE)
    return re.sub(r"\d+(\.\d+){4,}", "...", text)


def _make_entity(ae_title: str) -> Any:
    from pynetdicom import AE

    from pneumo_edge.serve.answers import FORMS, IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
    from pneumo_edge.serve.steady import steady_timers

    steady_timers()
    entity = AE(ae_title)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    for kind in ("1.2.840.10008.1.1", *(form for forms in FORMS.values() for form in forms)):
        entity.add_requested_context(kind, list(SYNTAXES))
    entity.connection_timeout, entity.acse_timeout = _CONNECT, _CONNECT
    entity.dimse_timeout = entity.network_timeout = _ANSWER
    return entity
