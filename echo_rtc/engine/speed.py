"""What a measured speed promises: how many streams it holds, and how long one clip takes. Pure arithmetic."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

CAPACITY_MARGIN = 0.85
"""The share of the measured speed that streams are admitted to; the rest is for clips that take longer than usual."""

RENDER_MARGIN = 1.25
"""A new stream expects its clips to take this much longer than the slowest of the few measured at start."""


@dataclass(frozen=True, slots=True)
class Speed:
    """How long clips of ``frames`` frames took on one worker, warmed up (s, at least one)."""

    frames: int
    clip_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        return max(statistics.median(self.clip_s), 1e-6)

    @property
    def frames_per_second(self) -> float:
        return self.frames / self.median_s


def capacity(speeds: Iterable[Speed], fps: int, rendered: float = 1.0) -> int:
    """How many streams of ``fps`` frames a second the workers hold in real time together, if each frame that is shown
    takes ``rendered`` rendered frames; at least 1."""
    frames_per_second = sum(speed.frames_per_second for speed in speeds)
    return max(1, math.floor(frames_per_second / (fps * rendered) * CAPACITY_MARGIN))


def expected_render_s(speeds: Iterable[Speed]) -> float:
    """Seconds that nearly every clip keeps on a free worker, whichever takes it."""
    return RENDER_MARGIN * max((max(speed.clip_s) for speed in speeds), default=0.0)
