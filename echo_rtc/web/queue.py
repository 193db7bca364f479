"""GET /places: the queue of clients that wait for a free place of a full server.

A free place is held for HOLD_S for the first client: no other address gets it in that time. A client that does not take
it in time leaves the queue. Clients are told apart as for limits. Knows how many places are free, and no stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import hdrs, web

from echo_rtc.web.clients import Clients, rate_limit_key
from echo_rtc.web.connections import gone_of
from echo_rtc.web.health import FULL_RETRY_S, Health
from echo_rtc.web.problems import Problem, ProblemType

HOLD_S = 10.0
MOST_WAITING = 256
MOST_OF_ADDRESS = 8
LOOK_S = 0.25
"""Polling interval for free places while the queue is not empty."""
ALIVE_S = 15.0
"""Time without an event after which a comment is sent, so that proxies keep the connection."""


@dataclass(eq=False, slots=True)
class Waiter:
    """One client in the queue. ``position`` from 1; ``held_until``: a place is held for it until then, None if none is;
    ``over``: it has left the queue; ``changed`` is set with every change of these."""

    client: str
    position: int = 0
    held_until: float | None = None
    over: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Queue:
    """The order of waiting clients, and the places held for them. Pure bookkeeping: time is an argument."""

    def __init__(self) -> None:
        self._waiters: list[Waiter] = []
        self._of: Counter[str] = Counter()

    @property
    def waiting(self) -> int:
        """Number of waiting clients."""
        return len(self._waiters)

    def enter(self, client: str) -> Waiter:
        """Joins the end of the queue. Raises Problem 429 if the client has too many entries, 503 if the queue is
        full."""
        if self._of[client] >= MOST_OF_ADDRESS:
            detail = f"This address waits {MOST_OF_ADDRESS} times already."
            raise Problem(429, detail, ProblemType.TOO_MANY, {"Retry-After": str(FULL_RETRY_S)})
        if self.waiting >= MOST_WAITING:
            detail = "The queue is full; try again later."
            raise Problem(503, detail, ProblemType.FULL, {"Retry-After": str(FULL_RETRY_S)})
        waiter = Waiter(client)
        self._waiters.append(waiter)
        self._of[client] += 1
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Leaves the queue. Does nothing the second time."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            self._of[waiter.client] -= 1
            if not self._of[waiter.client]:
                del self._of[waiter.client]
            waiter.over = True
            waiter.changed.set()

    def look(self, free: int, now_s: float) -> None:
        """Holds ``free`` places for the first clients, and removes clients that did not take theirs in time."""
        for waiter in tuple(self._waiters):
            if waiter.held_until is not None and waiter.held_until <= now_s:
                self.leave(waiter)
        for index, waiter in enumerate(self._waiters):
            held_until = waiter.held_until or now_s + HOLD_S if index < free else None
            if (index + 1, held_until) != (waiter.position, waiter.held_until):
                waiter.position, waiter.held_until = index + 1, held_until
                waiter.changed.set()

    def held_for_others(self, client: str) -> int:
        """How many places are held for other clients than this one."""
        held = [waiter for waiter in self._waiters if waiter.held_until is not None]
        return sum(waiter.client != client for waiter in held)

    def take(self, client: str) -> None:
        """A client opens a stream: the place held for it, if there is one, is no longer held."""
        for waiter in self._waiters:
            if waiter.client == client and waiter.held_until is not None:
                self.leave(waiter)
                return


class Places:
    """The handler. ``free`` says how many places there are now."""

    def __init__(self, queue: Queue, health: Health, clients: Clients, free: Callable[[], int]) -> None:
        self._queue = queue
        self._health = health
        self._clients = clients
        self._free = free
        self._looking: asyncio.Task[None] | None = None

    async def wait(self, request: web.Request) -> web.StreamResponse:
        """200 with server-sent events {position, free} until the client leaves or its place is lost; 429 or 503 as a
        problem."""
        self._health.require_ready()
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        response = web.StreamResponse(headers=headers)
        if request.method == hdrs.METH_HEAD:
            return response
        waiter = self._queue.enter(rate_limit_key(self._clients.address(request)))
        try:
            self._look()
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._keep_looking(), name="look for free places")
            await response.prepare(request)
            await self._tell(request, response, waiter)
        finally:
            self._queue.leave(waiter)
            self._look()
        return response

    async def _tell(self, request: web.Request, response: web.StreamResponse, waiter: Waiter) -> None:
        """Sends every change to a client, as long as it waits and is there."""
        gone = gone_of(request)
        with contextlib.suppress(ConnectionError):
            while not waiter.over and not gone.is_set():
                if waiter.changed.is_set():
                    waiter.changed.clear()
                    event = {"position": waiter.position, "free": waiter.held_until is not None}
                    await response.write(f"data: {json.dumps(event)}\n\n".encode())
                elif not await _either(waiter.changed, gone, ALIVE_S):
                    await response.write(b":\n\n")

    def _look(self) -> None:
        self._queue.look(self._free(), asyncio.get_running_loop().time())

    async def _keep_looking(self) -> None:
        """Polls for free places until the queue is empty."""
        while self._queue.waiting:
            self._look()
            await asyncio.sleep(LOOK_S)


async def _either(first: asyncio.Event, second: asyncio.Event, within_s: float) -> bool:
    """Waits for one of two events; whether one was set in time."""
    tasks = [asyncio.create_task(event.wait()) for event in (first, second)]
    try:
        done, _ = await asyncio.wait(tasks, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
