"""The frames of one clip as they come from a worker: passed on to the caller, and how early they came.

A clip is shown while its last frames are still being decoded. So neither the time of its first frames nor that of its
last says whether it was on time: each frame must be there before it is due.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from echo_rtc.clips import ClipFormat, YuvFrames
from echo_rtc.rendering import RenderRequest, TakeFrames


class Arrivals:
    """``need_s``: how long after the clip began its own first frame could have been shown, so that no other would have
    been late. ``slack_s``: the least time by which a frame came before it was due; negative if one was late."""

    def __init__(
        self, clip_format: ClipFormat, request: RenderRequest, on_frames: TakeFrames, clock: Callable[[], float]
    ) -> None:
        """Times are of ``clock``, in seconds."""
        self._on_frames: TakeFrames | None = on_frames
        self._clock = clock
        self._fps = clip_format.fps
        self._overlap = max(0, request.frames - clip_format.clip_frames)
        """Frames that are due with those of the clip before, and only lead over to this one."""
        self._due_s = request.deadline_s - (clip_format.clip_frames - 1) / clip_format.fps
        self._begun_s = 0.0
        self._came = 0
        self.need_s = 0.0
        self.slack_s = math.inf

    def begin(self) -> None:
        """The clip begins on a worker."""
        self._begun_s = self._clock()

    def take(self, frames: YuvFrames) -> None:
        """The next frames have come, with others to follow: the caller gets them."""
        self.note(frames)
        if self._on_frames is not None:
            self._on_frames(frames)

    def note(self, frames: YuvFrames) -> None:
        """The next frames have come."""
        now = self._clock()
        ahead_s = max(0, self._came - self._overlap) / self._fps
        self.need_s = max(self.need_s, now - self._begun_s - ahead_s)
        self.slack_s = min(self.slack_s, self._due_s + ahead_s - now)
        self._came += len(frames)

    def close(self) -> None:
        """The caller gets no further frames."""
        self._on_frames = None
