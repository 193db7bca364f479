"""How long clips take on a worker, as measured. Pure arithmetic.

Three estimates of a clip's time have different uses. This one, the median of dozens of clips, is what admission and a
new stream's delay are made of: stable. ``scheduling.py`` keeps a smoothed one, for whether a clip can still be on time,
and by steps the median of the latest five, from which ``pace.py`` places streams: quick to follow a worker that slows
down. ``meter.py`` counts quantiles for operators, and decides nothing.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

NEARLY_ALL = 0.95


@dataclass(frozen=True, slots=True)
class Speed:
    """How long clips of ``frames`` frames took on one worker, warmed up (s, at least one). ``need_s``: how long after
    each began its first frame could have been shown, so that no other would have been late; none where its frames come
    all at once."""

    frames: int
    clip_s: tuple[float, ...]
    need_s: tuple[float, ...] = ()

    @property
    def median_s(self) -> float:
        return max(statistics.median(self.clip_s), 1e-6)

    @property
    def most_s(self) -> float:
        """What nearly every clip keeps."""
        return _nearly_most(self.clip_s)

    @property
    def most_need_s(self) -> float:
        """After how long nearly every clip can be shown."""
        return _nearly_most(self.need_s or self.clip_s)

    @property
    def frames_per_second(self) -> float:
        return self.frames / self.median_s


def _nearly_most(seconds: tuple[float, ...]) -> float:
    """By nearest rank."""
    return sorted(seconds)[math.ceil(NEARLY_ALL * len(seconds)) - 1]
