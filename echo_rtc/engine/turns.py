"""First come, first served: things that are free, and those who wait for one. Pure bookkeeping on asyncio futures."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """Hands each free thing to whoever has waited longest. A waiter that gives up never takes a thing with it."""

    def __init__(self) -> None:
        self._free: deque[T] = deque()
        self._waiting: deque[asyncio.Future[T]] = deque()

    @property
    def waiting(self) -> int:
        """How many wait for a thing."""
        return sum(not turn.done() for turn in self._waiting)

    def give(self, thing: T) -> None:
        """``thing`` is free."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(thing)
                return
        self._free.append(thing)

    async def take(self) -> T:
        """The next free thing. Raises what :meth:`dismiss` is told to raise."""
        if self._free:
            return self._free.popleft()
        turn: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.give(turn.result())  # it came in the very moment of giving up
            raise

    def dismiss(self, error: Exception) -> None:
        """Sends all who wait away with ``error``."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(error)

    def withdraw(self, thing: T) -> None:
        """``thing`` is no longer to be had, if it was free."""
        if thing in self._free:
            self._free.remove(thing)
