"""How much time a stream's clips need until they can be shown: what its delay is made of. Pure arithmetic.

The need is the 95th percentile of the clips of the latest MEMORY_S, so that it rises with the second slow clip in 20
and falls when these have left. One slow clip does not move it. Where it falls and rises again, it falls later the next
time: a worker that is slow every quarter of a minute must not make the delay swing for the whole call.
"""

from __future__ import annotations

from collections import deque

from echo_rtc.counting import percentile

MEMORY_S = 10.0
"""The need is that of the clips of so much speech (s)."""

FEWEST_CLIPS = 20
"""Least number of clips that the need is made of: with fewer, one slow clip would be all that counts."""

PERCENTILE = 95
"""This many of a hundred clips are to be there on time."""

SWING_S = 0.1
"""A need that falls by this much and then rises by it has swung (s)."""

LONGEST_HOLD_S = 80.0
"""A need that swings is held for twice as long each time, up to this much speech (s)."""

CALM_S = 300.0
"""After so much speech (s) without a swing, the need is held for half as long."""


class RecentNeed:
    """The need of the latest clips; the time that the engine measured at its start stands for those before the first.

    A need that has swung is the highest of the latest ``hold`` clips.
    """

    def __init__(self, clip_s: float, expected_s: float) -> None:
        """``clip_s``: length of a clip (s); ``expected_s``: what one is expected to need (s)."""
        self._clip_s = clip_s
        self._memory = max(FEWEST_CLIPS, round(MEMORY_S / clip_s))
        self._needs: deque[float] = deque([expected_s] * self._memory, maxlen=self._memory)
        self._longest_hold = max(self._memory, round(LONGEST_HOLD_S / clip_s))
        self._percentiles: deque[float] = deque([expected_s], maxlen=1 + self._longest_hold)
        self._hold = 0
        self._calm_clips = 0
        self._extreme = expected_s
        self._falling = False
        self.seconds = expected_s
        """What nearly every clip needs (s)."""

    def add(self, need_s: float) -> None:
        """A clip could be shown ``need_s`` seconds after it had been handed over."""
        self._needs.append(need_s)
        self._percentiles.append(percentile(self._needs, PERCENTILE))
        self._judge_swing(self._percentiles[-1])
        self.seconds = max(list(self._percentiles)[-1 - self._hold :])

    def _judge_swing(self, need_s: float) -> None:
        """Sets for how long the need is held, by the turning points of what it would be without."""
        self._calm_clips += 1
        if self._falling:
            self._extreme = min(self._extreme, need_s)
            if need_s >= self._extreme + SWING_S:
                self._falling, self._extreme = False, need_s
                self._calm_clips = 0
                self._hold = min(max(self._memory, 2 * self._hold), self._longest_hold)
        else:
            self._extreme = max(self._extreme, need_s)
            if need_s <= self._extreme - SWING_S:
                self._falling, self._extreme = True, need_s
        if self._calm_clips * self._clip_s >= CALM_S:
            self._calm_clips = 0
            self._hold //= 2
