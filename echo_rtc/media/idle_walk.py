"""Which frame of the idle loop is shown when: a walk through the loop that does not repeat itself.

The loop is short, because each avatar's is kept in memory. Shown round after round its period would be noticed, so at
the beginning of a clip the walk may go on at another frame that looks alike, across a fade (Schödl et al. 2000, "Video
Textures"). It is a function of the seed alone. Knows no clocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from echo_rtc.clips import YuvFrames
from echo_rtc.media.blend import mixed

FADE_FRAMES = 8
"""Frames for which the pictures before and after a leap are cross-faded."""

KEPT_CLIPS = 512
"""Clips whose place is remembered: more than lie between the newest clip and the one being shown."""

REST_CLIPS = 6
"""Least number of clips for which the walk goes on frame by frame after a leap."""

LEAP_SHARE = 0.5
"""How often the walk leaps where it can."""


class IdleWalk:
    """The places in an idle loop of ``length`` frames at which the frames of media time are.

    ``leaps``: for each frame those that look like it, or nothing for a loop that is shown in its order. Seed 0 begins
    at the first frame, others begin anywhere.
    """

    def __init__(self, length: int, clip_frames: int, leaps: Sequence[Sequence[int]] = (), seed: int = 0) -> None:
        self._length, self._clip_frames, self._leaps = length, clip_frames, leaps
        self._random = np.random.default_rng([seed, 11])
        start = int(self._random.integers(length)) if seed and leaps else 0
        self._starts: deque[int] = deque([start], maxlen=KEPT_CLIPS)
        self._first_clip = 0
        self._rest = REST_CLIPS

    def place(self, frame: int) -> int:
        """The number in the loop of a frame of media time. Frames before the first lead up to it; so do those before
        the oldest clip that is remembered."""
        clip, within = divmod(frame, self._clip_frames)
        while clip >= self._first_clip + len(self._starts):
            self._go_on()
        if clip < self._first_clip:
            within = frame - self._first_clip * self._clip_frames
            clip = self._first_clip
        return (self._starts[clip - self._first_clip] + within) % self._length

    def picture(self, idle: YuvFrames, frame: int) -> YuvFrames:
        """The picture of a frame of media time, of the loop that this walk goes through."""
        picture = idle[self.place(frame)]
        clip, within = divmod(frame, self._clip_frames)
        if within < FADE_FRAMES and clip > self._first_clip:
            before = (self.place(clip * self._clip_frames - 1) + 1 + within) % self._length
            if before != self.place(frame):
                return mixed(idle[before], picture, within + 1, FADE_FRAMES + 1)
        return picture

    def _go_on(self) -> None:
        """Takes the walk on by a clip."""
        following: int = (self._starts[-1] + self._clip_frames) % self._length
        choices = self._leaps[following] if self._leaps else ()
        if self._rest > 0:
            self._rest -= 1
        elif choices and self._random.random() < LEAP_SHARE:
            following = choices[int(self._random.integers(len(choices)))]
            self._rest = REST_CLIPS
        if len(self._starts) == KEPT_CLIPS:
            self._first_clip += 1
        self._starts.append(following)
