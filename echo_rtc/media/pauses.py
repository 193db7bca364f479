"""The level below which a stream's sound is a pause in speech: near the noise of the room, and far below the voice.

Between the phrases of a sentence there is less silence than a clip lasts, so that the gate says nothing of it, and few
microphones are silent there.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from echo_rtc.clips import MEDIA_RATE, S16Array
from echo_rtc.media.sound_ring import FULL_SCALE

QUIET_RMS = 1 / 2000
"""Sound below this level (-66 dB of full scale) is silence whatever the room is like."""

MEMORY_S = 10.0
"""Noise and voice are those of the latest seconds."""

ABOVE_NOISE = 3.0
"""A pause is at most this many times as loud as the quietest stretch: what steady noise varies by in 10 ms."""

BELOW_VOICE = 0.1
"""A pause is at most this share of the loudest stretch (-20 dB), so that a voice without pauses has none."""

_STRETCH = MEDIA_RATE // 50
_LEAST = _STRETCH // 4
_BUCKET = 25


class PauseLevel:
    """Follows the levels (RMS, 0..1) of stretches of 20 ms. Exact zeros are gaps, which say nothing of the room."""

    def __init__(self, most: float) -> None:
        """``most``: no sound at or above this level is a pause."""
        self._most = most
        self._buckets: deque[tuple[float, float]] = deque(maxlen=round(MEMORY_S * MEDIA_RATE / _STRETCH / _BUCKET))
        self._filled = _BUCKET

    def push(self, pcm: S16Array) -> None:
        """Takes the next sound, int16 (n,) at 48 kHz."""
        for start in range(0, len(pcm), _STRETCH):
            stretch = pcm[start : start + _STRETCH]
            if len(stretch) < _LEAST:
                break
            samples = stretch.astype(np.float32)
            power = float(np.dot(samples, samples))
            if power:
                self._note((power / len(stretch)) ** 0.5 / FULL_SCALE)

    @property
    def rms(self) -> float:
        """Sound below this level is a pause."""
        if not self._buckets:
            return QUIET_RMS
        noise = min(quietest for quietest, _ in self._buckets)
        voice = max(loudest for _, loudest in self._buckets)
        return max(QUIET_RMS, min(ABOVE_NOISE * noise, BELOW_VOICE * voice, self._most))

    def _note(self, level: float) -> None:
        if self._filled == _BUCKET:
            self._filled = 0
            self._buckets.append((level, level))
        else:
            quietest, loudest = self._buckets[-1]
            self._buckets[-1] = (min(quietest, level), max(loudest, level))
        self._filled += 1
