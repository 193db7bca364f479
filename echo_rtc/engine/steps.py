"""How many denoising steps clips get: fewer while they come late, the full number when there is room.

Knows clips by number and outcome; neither engines nor clocks.
"""

from __future__ import annotations

from collections import deque

LATE_OF_RECENT = 2
RECENT_CLIPS = 4
"""The steps fall by one when LATE_OF_RECENT of the latest RECENT_CLIPS clips were late."""

CLIMB_CLIPS = 8
MAX_CLIMB_CLIPS = 128
"""The steps climb by one after CLIMB_CLIPS clips in a row had time for one step more. If that proves too much, the next
attempt waits for twice as many clips, up to MAX_CLIMB_CLIPS (exponential backoff)."""


class StepLadder:
    """The steps of streams that share workers, between ``least`` and ``full``."""

    def __init__(self, full: int, least: int) -> None:
        """Raises ValueError unless 1 <= least <= full."""
        if not 1 <= least <= full:
            raise ValueError(f"steps between {least} and {full} cannot be; 1 <= least <= full is expected")
        self._full = full
        self._least = least
        self.steps = full
        self._since = 0
        self._recent: deque[bool] = deque(maxlen=RECENT_CLIPS)
        self._roomy = 0
        self._patience = CLIMB_CLIPS
        self._climbed = False

    def limit(self, full: int) -> None:
        """The workers hold no more than ``full`` steps from now on."""
        if self.steps in (self._full, full) or self.steps > full:
            self.steps = full
        self._full, self._least = full, min(self._least, full)

    def late(self, clip: int, next_clip: int) -> None:
        """Clip number ``clip`` was late, or was not started because it would have been. ``next_clip`` is the first one
        that a change can still reach."""
        if clip < self._since:
            return  # requested before the last change, so it says nothing about it
        self._roomy = 0
        self._recent.append(True)
        if sum(self._recent) < LATE_OF_RECENT or self.steps == self._least:
            return
        if self._climbed:
            self._patience = min(MAX_CLIMB_CLIPS, 2 * self._patience)
        self._change(-1, next_clip)

    def on_time(self, clip: int, slack_s: float, render_s: float, next_clip: int) -> None:
        """Clip number ``clip`` came ``slack_s`` before it was due, after ``render_s``."""
        if clip < self._since:
            return
        self._recent.append(False)
        if self.steps == self._full:
            return
        self._roomy = self._roomy + 1 if slack_s > render_s / self.steps else 0
        if self._roomy < self._patience:
            return
        self._change(1, next_clip)

    def _change(self, by: int, next_clip: int) -> None:
        self.steps += by
        self._since = next_clip
        self._climbed = by > 0
        self._roomy = 0
        self._recent.clear()
