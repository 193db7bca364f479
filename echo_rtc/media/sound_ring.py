"""The newest sound of a stream, in a ring buffer."""

from __future__ import annotations

import numpy as np

from echo_rtc.clips import MEDIA_RATE, S16Array

LEVEL_S = 0.01
"""Silence is judged by the RMS of stretches of this length."""

FULL_SCALE = 32768.0

_LEVEL = round(LEVEL_S * MEDIA_RATE)


class SoundRing:
    """The newest ``capacity`` samples of a contiguous signal, in a ring that is allocated once."""

    def __init__(self, capacity: int) -> None:
        self._ring = np.zeros(capacity, np.int16)
        self.capacity = capacity
        self.head = 0

    @property
    def base(self) -> int:
        """The oldest sample that is still known."""
        return max(0, self.head - self.capacity)

    def push(self, pcm: S16Array) -> None:
        """Appends ``pcm`` (n,) int16."""
        newest = pcm[-self.capacity :]
        at = (self.head + len(pcm) - len(newest)) % self.capacity
        first = min(len(newest), self.capacity - at)
        self._ring[at : at + first] = newest[:first]
        self._ring[: len(newest) - first] = newest[first:]
        self.head += len(pcm)

    def read(self, start: int, count: int) -> S16Array:
        """Samples ``start`` .. ``start + count`` as an array of its own; zero where nothing is known."""
        out = np.zeros(count, np.int16)
        begin, end = max(start, self.base), min(start + count, self.head)
        if begin < end:
            at = begin % self.capacity
            first = min(end - begin, self.capacity - at)
            out[begin - start : begin - start + first] = self._ring[at : at + first]
            out[begin - start + first : end - start] = self._ring[: end - begin - first]
        return out

    def known(self, start: int, end: int) -> bool:
        """Whether all samples ``start`` .. ``end`` are there."""
        return self.base <= start and end <= self.head

    def loudest(self, start: int, end: int) -> float:
        """The greatest RMS (0..1) of the stretches of LEVEL_S from ``start`` to ``end``."""
        samples = self.read(start, end - start).astype(np.float32) / np.float32(FULL_SCALE)
        starts = np.arange(0, len(samples), _LEVEL)
        lengths = np.diff(np.append(starts, len(samples)))
        return float(np.sqrt(np.max(np.add.reduceat(np.square(samples), starts) / lengths)))
