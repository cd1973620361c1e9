"""Around everything that the service answers: who may ask, the headers, one line of log and one count a request."""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import re
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import prometheus_client
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOG = logging.getLogger(__name__)

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # No film stays in a browser's cache, and no page of another version meets this server.
    "Cache-Control": "no-store",
}

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Others are logged as OTHER: a method can be any text."""


class Gate:
    """ASGI middleware. The log names the route and never what was asked for: file names are often names of patients."""

    def __init__(self, app: ASGIApp, local: bool, registry: prometheus_client.CollectorRegistry) -> None:
        """Stands before `app`.

        Args:
            app: The application.
            local: Answer to no other name than that of this machine.
            registry: Receives the counts.
        """
        self._app = app
        self._local = local
        self._requests = prometheus_client.Counter(
            "pneumo_http_requests", "Requests that were answered.", ("method", "route", "status"), registry=registry
        )
        self._seconds = prometheus_client.Histogram(
            "pneumo_http_request_seconds", "From the head of the request to the answer.", ("route",), registry=registry
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        try:
            refusal = self._refusal(scope["method"], Headers(scope=scope))
            await (refusal or self._app)(scope, receive, send_on)
        except Exception as error:
            if os.environ.get("PNEUMO_DEBUG") == "1":
                raise
            # What an unforeseen error says may quote the film.
            where = traceback.extract_tb(error.__traceback__)[-1]
            LOG.error("%s in %s, line %s", type(error).__name__, Path(where.filename).name, where.lineno)
            if not status:
                await as_json({"error": "something went wrong here: the log says where"}, 500)(scope, receive, send_on)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "OTHER"
            route = getattr(scope.get("route"), "path", "none")
            seconds = time.perf_counter() - start
            self._requests.labels(method, route, str(status)).inc()
            self._seconds.labels(route).observe(seconds)
            # Every page that is open somewhere asks for the list every few seconds.
            listing = (method, route, status) == ("GET", "/v1/films", 200)
            caller = scope["client"][0] if scope.get("client") else "-"
            level = logging.DEBUG if listing else logging.INFO
            LOG.log(level, "%s %s %s %d %.0f ms", caller, method, route, status, seconds * 1e3)

    def _refusal(self, method: str, headers: Headers) -> Response | None:
        # A page of another site could have its own name point to this machine, and would then be of this "site".
        if self._local and not is_loopback(_name(headers.get("host", ""))):
            why = "this device answers to localhost and 127.0.0.1 alone: open it by such a name, or give it a token"
            return as_json({"error": why}, 421)
        if _cross_site(method, headers):
            return as_json({"error": "another site's page may not ask this device: open its own page"}, 403)
        return None


def as_json(
    value: object,
    status: int = 200,
    headers: dict[str, str] | None = None,
    media_type: str = "application/json",
) -> Response:
    """Returns an answer as the command line prints it: one line, ASCII."""
    return Response(json.dumps(value) + "\n", status, headers, media_type=media_type)


def is_loopback(host: str) -> bool:
    """Tells whether a host name or address is one under which only this machine reaches itself."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name(authority: str) -> str:
    """Returns the name in a Host header, without port and brackets; "" if it is malformed."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([\w.-]+))(?::\d*)?", authority)
    return (found[1] or found[2]) if found else ""


def _cross_site(method: str, headers: Headers) -> bool:
    site = headers.get("sec-fetch-site")
    if site is not None:
        # A link from elsewhere may be followed.
        followed = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        return site not in {"same-origin", "none"} and not followed
    # Browsers leave that header away where the page came over plain HTTP from another machine.
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2] != headers.get("host")
