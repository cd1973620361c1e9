"""Connections that ask for nothing: uvicorn would keep each for ever, and with it a place that others need."""

from __future__ import annotations

from asyncio import BaseTransport

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle


class Connection(H11Protocol):
    """One connection, which is closed where no request has come for a while.

    uvicorn closes a connection that is idle after a request, but waits without end for the first byte, and for the rest
    of a head or of a body that has been answered already.
    """

    patience = 15.0
    """Seconds. Closed after one to two times as long."""

    def connection_made(self, transport: BaseTransport) -> None:
        """Begins to look after it."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self.loop.call_later(self.patience, self._look, None)

    def _look(self, before: RequestResponseCycle | None) -> None:
        if self.transport.is_closing():
            return
        asked: RequestResponseCycle | None = self.cycle
        if asked is before and (asked is None or asked.response_complete):
            self.transport.close()
        else:
            self.loop.call_later(self.patience, self._look, asked)
