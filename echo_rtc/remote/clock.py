"""When frames from elsewhere are due, so that sound and picture stay together.

Both come with the sender's wall clock. Each is due a constant time after that, long enough for nearly all that come
late. Knows no frames and no connection; time is an argument.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

WINDOW_S = 10.0
"""What was late longer ago than this is forgotten."""
MARGIN_S = 0.01
MAX_DEPTH_S = 1.0
"""Frames that come later than the quickest by more than this are not waited for."""


@dataclass(slots=True)
class _Second:
    """The least and the greatest time (s) that frames of one second took, by two clocks."""

    number: int
    least_s: float
    most_s: float


class ArrivalClock:
    """Sound and picture of one sender share one."""

    def __init__(self) -> None:
        self._seconds: deque[_Second] = deque()

    def due_s(self, wall_s: float, now: float) -> float:
        """When a frame is due that comes at ``now``; ``wall_s``: its time by the sender's clock."""
        self._note(now - wall_s, now)
        return wall_s + self._least_s + self.depth_s

    @property
    def depth_s(self) -> float:
        """How long a frame waits that takes no longer than the quickest."""
        if not self._seconds:
            return 0.0
        most_s = max(second.most_s for second in self._seconds)
        return min(MAX_DEPTH_S, most_s - self._least_s) + MARGIN_S

    @property
    def _least_s(self) -> float:
        return min(second.least_s for second in self._seconds)

    def _note(self, took_s: float, now: float) -> None:
        number = int(now)
        if not self._seconds or self._seconds[-1].number != number:
            self._seconds.append(_Second(number, took_s, took_s))
            while self._seconds[0].number < number - WINDOW_S:
                self._seconds.popleft()
        latest = self._seconds[-1]
        latest.least_s, latest.most_s = min(latest.least_s, took_s), max(latest.most_s, took_s)
