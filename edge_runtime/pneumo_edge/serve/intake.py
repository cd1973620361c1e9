"""Films out of request bodies: not too many, not too large, not too slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

if TYPE_CHECKING:
    from pneumo_edge.serve.inbox import Limits


class _Form(MultiPartParser):
    """Writes no film into a temporary file, and knows whether it has seen the end."""

    spool_max_size = 1 << 40
    ended = False

    def on_end(self) -> None:
        self.ended = True


class Intake:
    """Reads films, and refuses what would be too much. Used by the event loop alone."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._inside = 0
        self._held = 0

    @asynccontextmanager
    async def film(self, request: Request) -> AsyncIterator[tuple[bytes, str]]:
        """Yields the film in a request, and its name ("-" for bare bytes); makes room for the next one at the end.

        Raises:
            HTTPException: 400, 408, 413 or 429.
        """
        limits, taken = self._limits, 0
        if self._inside >= limits.waiting:
            raise busy()
        # A browser or curl reads the answer only when it has sent all: uvicorn throws away what it still sends. Where
        # there is no end in sight the connection is closed.
        too_large = f"the film is larger than {limits.body >> 20} MB: scale it down"
        if int(request.headers.get("content-length", 0)) > limits.body:
            raise HTTPException(413, too_large)

        async def parts() -> AsyncGenerator[bytes, None]:
            nonlocal taken
            async for part in request.stream():
                taken += len(part)
                self._held += len(part)
                if taken > limits.body:
                    raise HTTPException(413, too_large, {"Connection": "close"})
                if self._held > limits.held:
                    raise busy()
                yield part

        self._inside += 1
        try:
            try:
                async with asyncio.timeout(limits.seconds):
                    film = await _read(request, parts())
            except TimeoutError:
                why = f"the film did not arrive within {limits.seconds:g} seconds: try again over a faster line"
                raise HTTPException(408, why, {"Connection": "close"}) from None
            except ClientDisconnect:
                raise HTTPException(400, "the sender has gone") from None
            yield film
        finally:
            self._inside -= 1
            self._held -= taken


def busy() -> HTTPException:
    """Returns what a client gets that should come again."""
    return HTTPException(429, "this device is busy: send the film again in a moment", {"Retry-After": "1"})


async def _read(request: Request, parts: AsyncGenerator[bytes, None]) -> tuple[bytes, str]:
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return b"".join([part async for part in parts]), "-"

    async def whole() -> AsyncGenerator[bytes, None]:
        async for part in parts:
            yield part
        if not parser.ended:
            raise MultiPartException("it breaks off")

    parser = _Form(request.headers, whole(), max_files=1, max_fields=8)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(400, f"the form cannot be read: {error.message}") from None
    try:
        sent = form.get("file")
        if not isinstance(sent, UploadFile):
            raise HTTPException(400, "the form has no part `file`: send the film under that name")
        return await sent.read(), sent.filename or "-"
    finally:
        await form.close()
