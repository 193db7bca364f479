"""The place of a stream's publisher, as a state machine: taken, and kept for a while after the publisher was lost.

In that grace period another publisher may claim it. Knows no stream and no
connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum, auto
from typing import Generic, TypeVar

P = TypeVar("P")


class SeatState(Enum):
    """The states of a publisher's place."""

    EMPTY = auto()
    """There has been no publisher, or it left."""
    TAKEN = auto()
    """There is a publisher."""
    KEPT = auto()
    """The publisher was lost, and the grace period runs."""
    CLAIMED = auto()
    """The grace period runs, and another publisher is being let in."""
    OVERDUE = auto()
    """The grace period is over, and another publisher is still being let in."""


class PublisherSeat(Generic[P]):
    """``publisher``: the present publisher. ``lost``: the previous one, which may still say that it has left, until
    another publisher takes the place."""

    def __init__(self) -> None:
        self.state = SeatState.EMPTY
        self.publisher: P | None = None
        self.lost: P | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def can_be_claimed(self) -> bool:
        """Whether another publisher may take the place over."""
        return self.state is SeatState.KEPT

    @property
    def is_vacant(self) -> bool:
        """Whether there is no publisher and none is being let in."""
        return self.state in (SeatState.EMPTY, SeatState.KEPT)

    def take(self, publisher: P) -> None:
        """``publisher`` publishes from now on."""
        self.close()
        self.state, self.publisher, self.lost = SeatState.TAKEN, publisher, None

    def leave(self) -> None:
        """The publisher is gone for good."""
        self.state, self.publisher = SeatState.EMPTY, None

    def lose(self, grace_s: float, on_expiry: Callable[[], None]) -> None:
        """The publisher is lost. ``on_expiry`` is called after ``grace_s``, unless the place is claimed by then."""
        self.state, self.lost, self.publisher = SeatState.KEPT, self.publisher, None
        self._timer = asyncio.get_running_loop().call_later(grace_s, self._expire, on_expiry)

    def claim(self) -> None:
        """Another publisher is being let in; ends with :meth:`take` or :meth:`release`. Raises RuntimeError unless the
        place can be claimed."""
        if not self.can_be_claimed:
            raise RuntimeError(f"a place that is {self.state.name} cannot be claimed")
        self.state = SeatState.CLAIMED

    def release(self) -> bool:
        """The claim is given up. Whether the grace period has ended meanwhile."""
        expired = self.state is SeatState.OVERDUE
        self.state = SeatState.EMPTY if expired else SeatState.KEPT
        return expired

    def close(self) -> None:
        """Stops the grace period."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self, on_expiry: Callable[[], None]) -> None:
        self._timer = None
        if self.state is SeatState.CLAIMED:
            self.state = SeatState.OVERDUE
            return
        self.state = SeatState.EMPTY
        on_expiry()
