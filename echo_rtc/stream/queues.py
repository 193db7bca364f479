"""A bounded queue of media on its way to one reader: a viewer's packets, or a program's raw frames.

Items are put in when they are due, and read as soon as they are there. A queue never waits for its reader: the
writer drops what does not fit, and counts it (no backpressure). Knows no clock and no connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class QueueClosedError(Exception):
    """The queue was closed; nothing more comes."""


class MediaQueue(Generic[T]):
    """At most ``limit`` items wait to be read. Closing it drops them and ends the reader.

    ``on_first_read`` is called when the reader reads for the first time: only then is its connection up.
    """

    def __init__(self, limit: int, on_first_read: Callable[[], None] = lambda: None) -> None:
        self._limit = limit
        self._on_first_read = on_first_read
        self._items: deque[T] = deque()
        self._arrived = asyncio.Event()
        self._on_close: list[Callable[[], None]] = []
        self.being_read = False
        self.closed = False

    @property
    def live(self) -> bool:
        """Whether there is a reader and the queue is open."""
        return self.being_read and not self.closed

    @property
    def full(self) -> bool:
        return len(self._items) >= self._limit

    def waiting(self) -> int:
        """How many items wait to be read."""
        return len(self._items)

    async def get(self) -> T:
        """The next item, as soon as it is there. Raises QueueClosedError once the queue is closed."""
        if not self.being_read:
            self.being_read = True
            self._on_first_read()
        while not self._items:
            if self.closed:
                raise QueueClosedError
            self._arrived.clear()
            await self._arrived.wait()
        return self._items.popleft()

    def put(self, item: T) -> None:
        """Adds an item that is due now. The caller has made room for it with :meth:`drop`."""
        self._items.append(item)
        self._arrived.set()

    def drop(self, count: int) -> int:
        """Drops the ``count`` oldest items, or as many as there are; returns how many."""
        dropped = min(count, len(self._items))
        for _ in range(dropped):
            self._items.popleft()
        return dropped

    def on_close(self, callback: Callable[[], None]) -> None:
        """Calls ``callback`` once, when the queue is closed."""
        if self.closed:
            callback()
        else:
            self._on_close.append(callback)

    def close(self) -> None:
        """Drops what waits and ends the reader. Closing twice is harmless."""
        if self.closed:
            return
        self.closed = True
        self._items.clear()
        self._arrived.set()
        callbacks, self._on_close = self._on_close, []
        for callback in callbacks:
            callback()
