"""When a worker can do something other than clips without making them late. Pure bookkeeping; time is an argument."""

from __future__ import annotations

import math

MOST_SPARE_S = 1.0
"""Pauses are remembered up to this much (s)."""

JUST_S = 0.005
"""A clip that ended no longer ago than this has ended just now."""

REST_CLIPS = 1.5
"""In clip lengths: a worker that was given no clip for this long waits for no stream."""

SMOOTHING = 0.3
"""Weight of the latest clip, and of the latest piece, in what is expected of the next."""


class Gaps:
    """Finds the moments at which a worker can do a piece of something else and delay no clip by it, or only one that
    the pauses since the last piece have made room for. Time is an argument, in seconds."""

    def __init__(self) -> None:
        self._busy_with_clip: bool | None = None  # None: it has nothing to do
        self._since_s = -math.inf  # when that began
        self._clip_began_s = -math.inf
        self._clip_ended_s = -math.inf
        self._between_s = 0.0  # from one clip's beginning to the next one's, lately
        self._spare_s = 0.0  # pauses since the last piece, beyond what that has taken
        self._piece_s = 0.0  # what a piece takes, lately

    def began(self, now: float, is_clip: bool) -> None:
        """A clip, or a piece of something else, begins."""
        if self._busy_with_clip is None and math.isfinite(self._since_s):
            self._spare_s = min(MOST_SPARE_S, self._spare_s + now - self._since_s)
        if is_clip:
            between_s = now - self._clip_began_s
            if math.isfinite(between_s):
                self._between_s += SMOOTHING * (between_s - self._between_s)
            self._clip_began_s = now
        self._busy_with_clip, self._since_s = is_clip, now

    def ended(self, now: float) -> None:
        """What began last is done."""
        if self._busy_with_clip:
            self._clip_ended_s = now
        else:
            took_s = now - self._since_s
            self._piece_s += (SMOOTHING if self._piece_s else 1.0) * (took_s - self._piece_s)
            self._spare_s -= took_s
        self._busy_with_clip, self._since_s = None, now

    def wait_s(self, now: float, clip_s: float) -> float:
        """0 if a piece can begin now; else after which time to ask again, unless something ends before. ``clip_s``: the
        length of a clip."""
        if self._busy_with_clip is not None:
            return math.inf
        rest_s = self._clip_began_s + REST_CLIPS * clip_s - now
        next_clip_s = self._clip_began_s + min(self._between_s, clip_s) - now
        just_ended = now - self._clip_ended_s < JUST_S and now - self._since_s < JUST_S
        spared = self._spare_s >= self._piece_s
        if rest_s <= 0 or next_clip_s >= self._piece_s or (just_ended and spared):
            return 0.0
        return rest_s
