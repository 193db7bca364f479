"""How long clips take on a worker, as measured. What that promises is in ``pace.py``. Pure arithmetic."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

NEARLY_ALL = 0.95


@dataclass(frozen=True, slots=True)
class Speed:
    """How long clips of ``frames`` frames took on one worker, warmed up (s, at least one)."""

    frames: int
    clip_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        return max(statistics.median(self.clip_s), 1e-6)

    @property
    def most_s(self) -> float:
        """What nearly every clip keeps, by nearest rank."""
        return sorted(self.clip_s)[math.ceil(NEARLY_ALL * len(self.clip_s)) - 1]

    @property
    def frames_per_second(self) -> float:
        return self.frames / self.median_s
