"""One output: connects, and reconnects with back-off, until it fails for good or is ended. Knows neither HTTP nor
WebRTC: ``connect`` makes a connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from echo_rtc.outputs.backoff import MAX_FAILURES, wait_s
from echo_rtc.outputs.facts import OutputFacts, OutputState
from echo_rtc.outputs.whip import WhipError
from echo_rtc.stream.log import StreamLog

STABLE_S = 30.0
"""A connection that was up for so long was no failure when it ends."""


class Connection(Protocol):
    """A stream on its way to another server. ``codec``, ``sound``: what is sent."""

    codec: str | None
    sound: bool
    ended: asyncio.Future[str]

    async def close(self) -> None:
        """Tells the other side, and waits until nothing is left."""
        ...


Connect = Callable[[], Awaitable[Connection]]
"""Makes a connection whose packets leave. Raises WhipError; leaves nothing behind then, nor if it is cancelled."""


@dataclass(slots=True)
class OutputCounters:
    """Connections that were made, and attempts that failed or connections that were lost."""

    connected: int = 0
    failed: int = 0


class Output:
    """Runs from :meth:`start` until :meth:`close`, or until it has failed for good."""

    def __init__(
        self, output_id: str, endpoint: str, connect: Connect, log: StreamLog, counters: OutputCounters
    ) -> None:
        """``endpoint``: what of the address may be shown."""
        self.id = output_id
        self._endpoint = endpoint
        self._connect = connect
        self._log = log
        self._counters = counters
        self._clock = asyncio.get_running_loop().time
        self._state = OutputState.CONNECTING
        self._connection: Connection | None = None
        self._connections = 0
        self._failures = 0
        self._retry_at: float | None = None
        self._error: str | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def state(self) -> OutputState:
        return self._state

    @property
    def facts(self) -> OutputFacts:
        """As they are at this moment."""
        live = self._connection if self._state is OutputState.LIVE else None
        return OutputFacts(
            id=self.id,
            type="whip",
            endpoint=self._endpoint,
            state=self._state,
            codec=live.codec if live else None,
            sound=live.sound if live else False,
            connections=self._connections,
            failures=self._failures,
            retry_in_s=None if self._retry_at is None else max(0.0, self._retry_at - self._clock()),
            error=self._error,
        )

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"output {self.id[:8]}")

    async def close(self) -> None:
        """Ends it: the other side is told, and nothing is left."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        self._state = OutputState.ENDED
        self._retry_at = None

    async def _run(self) -> None:
        while True:
            self._state, self._retry_at = OutputState.CONNECTING, None
            problem = await self._serve_once()
            self._counters.failed += 1
            self._failures += 1
            self._error = str(problem)
            if problem.lasting or self._failures >= MAX_FAILURES:
                self._state = OutputState.FAILED
                self._log.warning("output %s to %s is given up: %s", self.id[:8], self._endpoint, problem)
                return
            pause_s = wait_s(self._failures, problem.retry_after_s)
            self._log.info("output %s to %s waits %.1f s: %s", self.id[:8], self._endpoint, pause_s, problem)
            self._state, self._retry_at = OutputState.WAITING, self._clock() + pause_s
            await asyncio.sleep(pause_s)

    async def _serve_once(self) -> WhipError:
        """One connection from its attempt to its end; what ended it."""
        try:
            connection = await self._connect()
        except WhipError as error:
            return error
        except Exception:  # a boundary: an output fails by itself, and its stream goes on
            self._log.exception("an output failed")
            return WhipError("an internal error", lasting=True)
        begun = self._clock()
        self._connection = connection
        self._connections += 1
        self._counters.connected += 1
        self._state, self._error = OutputState.LIVE, None
        self._log.info("output %s to %s is live", self.id[:8], self._endpoint)
        try:
            reason = await asyncio.shield(connection.ended)
        finally:
            self._connection = None
            await connection.close()
        if self._clock() - begun >= STABLE_S:
            self._failures = 0
        return WhipError(reason)
