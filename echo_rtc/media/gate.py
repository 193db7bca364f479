"""Voice activity detection: decides whether a clip is rendered (speech) or the idle loop is shown (silence).

Judges by level only: loud noise counts as speech. Its only state is the number of clips still to be admitted.
"""

from __future__ import annotations

import numpy as np

from echo_rtc.clips import AudioClip, F32Array

STRETCH_S = 0.1
"""The level is the RMS over this many seconds. A syllable is about that long: speech that begins in the last tenth of
a second of a clip is found at its full level, where the RMS of the whole clip would thin it out below the threshold
and the mouth would start late; and a click of a millisecond is still averaged away."""

FOLLOWING_CLIPS = 1
"""Clips rendered after the last one with speech, so that the mouth closes."""


class SpeechGate:
    """Admits clips with speech and the one after them."""

    def __init__(self, threshold: float, sample_rate: int = 16_000) -> None:
        """``threshold`` is an RMS in 0..1; 0 admits everything. ``sample_rate`` is that of the clips' windows (Hz).

        Raises ValueError for a threshold outside 0..1 or a rate below 1.
        """
        if not 0.0 <= threshold <= 1.0:
            raise ValueError(f"the speech threshold is {threshold}; it must be an RMS within 0..1")
        if sample_rate < 1:
            raise ValueError(f"the sample rate is {sample_rate}; it must be at least 1")
        self._threshold = threshold
        self._stretch = max(1, round(STRETCH_S * sample_rate))
        self._following = 0

    def rest(self) -> None:
        """Resets the state: the clip before the next one was silence."""
        self._following = 0

    def admit(self, clip: AudioClip) -> bool:
        """Whether ``clip``, the next in order, is to be rendered."""
        if self._threshold == 0.0 or loudest_stretch(clip.own, self._stretch) >= self._threshold:
            self._following = FOLLOWING_CLIPS
            return True
        admitted = self._following > 0
        self._following = max(0, self._following - 1)
        return admitted


def loudest_stretch(samples: F32Array, stretch: int) -> float:
    """The greatest RMS of any ``stretch`` consecutive samples of ``samples`` (n,), of all of them if there are fewer.

    Samples that are not finite count as silence and others are limited to full scale, so that a broken block can
    neither hold the gate open nor make the sum NaN.
    """
    if not len(samples):
        return 0.0
    finite = np.where(np.isfinite(samples), samples, 0.0)
    power = np.square(np.clip(finite, -1.0, 1.0), dtype=np.float64)
    sums = np.concatenate(([0.0], np.cumsum(power)))
    length = min(stretch, len(samples))
    return float(np.sqrt(max(0.0, np.max(sums[length:] - sums[:-length])) / length))
