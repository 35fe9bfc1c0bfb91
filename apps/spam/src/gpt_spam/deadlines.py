"""Uvicorn's protocol with the time limits that it lacks, so that nobody holds a connection by being slow."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTION_SECONDS = 10.0
"""The longest that a connection may take to say what it wants, or to read what it was answered."""


class DeadlineProtocol(H11Protocol):
    """Ends a connection whose next request has not arrived, or whose answer is not read, within the limit.

    A request that is being worked on may take as long as it takes; its body has a limit of its own.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time in which a request must have come."""
        super().connection_made(transport)
        self._set_deadline()

    def on_response_complete(self) -> None:
        """Start it anew for the connection's next request."""
        super().on_response_complete()
        self._set_deadline()

    def pause_writing(self) -> None:
        """Start the time in which the client must read what waits for it."""
        super().pause_writing()
        self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        super().connection_lost(exc)
        if self._deadline is not None:
            self._deadline.cancel()

    def _set_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(CONNECTION_SECONDS, self._end_if_stuck)

    def _end_if_stuck(self) -> None:
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle or self.flow.write_paused:
            self.transport.abort()
