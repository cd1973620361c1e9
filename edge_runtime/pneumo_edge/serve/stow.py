"""DICOMweb: STOW-RS in both directions (PS3.18 10.5), the multipart bodies that it is made of, and its answers."""

from __future__ import annotations

import http.client
import json
import logging
import re
import secrets
import ssl
from dataclasses import dataclass
from email.message import Message
from typing import Any
from urllib.parse import urlsplit

_log = logging.getLogger(__name__)

DICOM = "application/dicom"
DICOM_JSON = "application/dicom+json"

_CONNECT, _ANSWER = 5.0, 60.0
"""Seconds that a server has to take the call, and to say that it has stored an object."""

REFUSED_FOR_GOOD = frozenset({400, 405, 406, 409, 410, 411, 413, 415, 422, 501})
"""What a server says of an object or of our way to ask. Anything else may be mended there, or pass."""


class MultipartError(ValueError):
    """A body is no multipart/related of DICOM files."""


def split(body: bytes, content_type: str) -> list[bytes]:
    """Returns the DICOM files in a body.

    Args:
        body: Of a request or an answer.
        content_type: `multipart/related; type="application/dicom"; boundary=...`, or `application/dicom` for one file.

    Raises:
        MultipartError: It is neither, or breaks off.
    """
    header = Message()
    header["Content-Type"] = content_type
    if header.get_content_type() == DICOM:
        return [body]
    boundary = header.get_boundary()
    kind = header.get_param("type", DICOM)
    if header.get_content_type() != "multipart/related" or not boundary or kind != DICOM:
        raise MultipartError(f'the content type is not multipart/related; type="{DICOM}"; boundary=...')
    try:
        mark = b"--" + boundary.encode("ascii")
    except UnicodeEncodeError:
        raise MultipartError("the boundary is not of ASCII") from None
    # The first mark may stand at the very beginning; the others follow a line end that belongs to them.
    pieces = (b"\r\n" + body).split(b"\r\n" + mark)
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise MultipartError("the body breaks off before the last boundary")
    found = []
    for piece in pieces[1:-1]:
        head, blank, data = piece.partition(b"\r\n\r\n")
        if not blank:
            raise MultipartError("a part has no end of its head")
        named = re.search(rb"^content-type:\s*([^\s;]+)", head, re.IGNORECASE | re.MULTILINE)
        if named is not None and named[1].lower() != DICOM.encode():
            raise MultipartError(f"a part is not of the type {DICOM}")
        found.append(data)
    if not found:
        raise MultipartError("the body has no part")
    return found


def join(files: list[bytes]) -> tuple[bytes, str]:
    """Returns the body that holds DICOM files, and its content type."""
    boundary = secrets.token_hex(16)
    mark = f"\r\n--{boundary}".encode()
    head = f"\r\nContent-Type: {DICOM}\r\n\r\n".encode()
    body = b"".join(mark + head + file for file in files) + mark + b"--\r\n"
    return body[2:], f'multipart/related; type="{DICOM}"; boundary={boundary}'


@dataclass(frozen=True)
class Server:
    """A STOW-RS server that takes our answers."""

    url: str
    """Of the service, such as https://pacs.example/dicom-web; `/studies` comes behind it."""


@dataclass(frozen=True)
class Told:
    """What a server said of one object."""

    stored: bool
    for_good: bool
    """It would say the same again."""
    words: str
    unknown: bool = False
    """It does not take the SOP class of the object."""


def send(server: Server, data: bytes, context: ssl.SSLContext | None, authorization: str | None) -> Told:
    """Sends one DICOM file.

    Args:
        server: Where to.
        data: The file.
        context: For https.
        authorization: The header of that name, if the server asks for one.

    Raises:
        OSError: It cannot be reached, or does not answer.
    """
    body, content_type = join([data])
    status, answer = _ask(server, "POST", "/studies", body, content_type, context, authorization)
    refused = _failures(answer)
    if status in (200, 202) and not refused:
        return Told(True, False, "")
    # One object was sent, so that a failure is about that one.
    unknown = 0x0122 in refused
    if status in (200, 202):
        return Told(False, not any(code >> 8 == 0xA7 for code in refused), f"reason {refused[0]:04X}", unknown)
    return Told(False, status in REFUSED_FOR_GOOD, f"HTTP status {status}", unknown)


def greet(server: Server, context: ssl.SSLContext | None, authorization: str | None) -> Told:
    """Asks whether somebody is there who knows us.

    Raises:
        OSError: It cannot be reached, or does not answer.
    """
    status, _ = _ask(server, "GET", "/studies?limit=1", b"", "", context, authorization)
    # A server that stores need not search.
    return Told(status not in (401, 403), False, f"HTTP status {status}")


def _ask(
    server: Server, method: str, path: str, body: bytes, content_type: str, context: ssl.SSLContext | None,
    authorization: str | None,
) -> tuple[int, bytes]:  # fmt: skip
    where = urlsplit(server.url)
    connection: http.client.HTTPConnection
    if where.scheme == "https":
        connection = http.client.HTTPSConnection(where.hostname or "", where.port, timeout=_CONNECT, context=context)
    else:
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=_CONNECT)
    headers = {"Accept": DICOM_JSON, "User-Agent": "pneumo-serve"}
    if content_type:
        headers["Content-Type"] = content_type
    if authorization is not None:
        headers["Authorization"] = authorization
    try:
        connection.connect()
        connection.sock.settimeout(_ANSWER)
        connection.request(method, where.path.rstrip("/") + path, body or None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read(1 << 20)
    except http.client.HTTPException as error:
        raise OSError(f"it does not speak HTTP ({type(error).__name__})") from None
    finally:
        connection.close()


def _failures(answer: bytes) -> list[int]:
    """Returns the reasons (0008,1197) of the objects that were not stored; none where the answer does not say."""
    try:
        told = json.loads(answer)
        first = told[0] if isinstance(told, list) else told
        return [int(each["00081197"]["Value"][0]) for each in first.get("00081198", {}).get("Value", ())]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return []


def response(stored: list[tuple[str, str]], failed: list[tuple[str, str, int]]) -> dict[str, Any]:
    """Returns the answer to a request (PS3.18 I.2), in the JSON model of DICOM.

    Args:
        stored: SOP class and instance UID of each object that was taken.
        failed: The same of each that was not, and the reason (0008,1197).
    """

    def item(kind: str, instance: str) -> dict[str, Any]:
        return {"00081150": {"vr": "UI", "Value": [kind]}, "00081155": {"vr": "UI", "Value": [instance]}}

    told: dict[str, Any] = {}
    if stored:
        told["00081199"] = {"vr": "SQ", "Value": [item(*each) for each in stored]}
    if failed:
        told["00081198"] = {
            "vr": "SQ",
            "Value": [
                item(kind, instance) | {"00081197": {"vr": "US", "Value": [why]}} for kind, instance, why in failed
            ],
        }
    return told
