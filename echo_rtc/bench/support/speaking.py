"""Voices with pauses, and what a call made of them: for benchmarks of whole calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echo_rtc.bench.stream import babble
from echo_rtc.bench.support.calls import CALLER_BUFFER_MS, Heard, Voice
from echo_rtc.clips import MEDIA_RATE, S16Array

SPEECH_S, PAUSE_S = 7.0, 1.5

LONGEST_WAY_S = 6.0
"""Sound is looked for up to so long after it was spoken."""

_WINDOW_S, _HOP_S = 5.0, 1.0
"""Sound is compared in windows of this length, which begin at these distances: as long as can be, and so short that
some have no pause in them, in which the delay may change."""

_LIKE = 0.8
"""How alike (correlation) what was spoken and what is heard must be at the best place to count."""


def conversation(start: int, count: int) -> S16Array:
    """Speech with pauses: :func:`babble` for SPEECH_S, silence for PAUSE_S."""
    t = (start + np.arange(count)) / MEDIA_RATE % (SPEECH_S + PAUSE_S)
    return np.where(t < SPEECH_S, babble(start, count), 0).astype(np.int16)


def ways_ms(voice: Voice, began_s: float | None, heard: Sequence[Heard]) -> list[float]:
    """How long sound took from the microphone to a player without a buffer of its own (ms): once for every _HOP_S of
    what was heard of ``voice``, which began at ``began_s`` by the event loop's clock. Each is where the loudness of a
    window of it, millisecond by millisecond, is most like what was spoken."""
    if began_s is None or not heard:
        return []
    first = heard[0].pts
    line = np.zeros(heard[-1].pts + len(heard[-1].pcm) - first, np.int16)
    for block in heard:
        line[block.pts - first : block.pts - first + len(block.pcm)] = block.pcm
    # Packets come early and late; the sound line itself does not move.
    played_s = float(np.median([block.arrived_s - (block.pts - first) / MEDIA_RATE for block in heard]))
    since_ms = round(1000 * (played_s - began_s))
    loud = _loudness(line)
    window, longest = round(1000 * _WINDOW_S), round(1000 * LONGEST_WAY_S)
    # Before the microphone began there was silence.
    spoken = np.pad(_loudness(voice(0, max(0, since_ms + len(loud)) * MEDIA_RATE // 1000)), (longest, 0))
    found = []
    for start in range(0, len(loud) - window + 1, round(1000 * _HOP_S)):
        now = since_ms + start  # where in ``spoken`` the earliest place is that is looked at
        if now < 0:
            continue
        likeness = _correlation(spoken[now : now + longest + window], loud[start : start + window])
        best = int(np.argmax(likeness))
        if likeness[best] >= _LIKE:
            found.append(float(longest - best) - CALLER_BUFFER_MS)
    return found


def _loudness(pcm: S16Array) -> NDArray[np.float64]:
    """The mean absolute value of each whole millisecond."""
    each = MEDIA_RATE // 1000
    whole = pcm[: len(pcm) // each * each].astype(np.float64)
    loudness: NDArray[np.float64] = np.abs(whole).reshape(-1, each).mean(axis=1)
    return loudness


def _correlation(longer: NDArray[np.float64], part: NDArray[np.float64]) -> NDArray[np.float64]:
    """The correlation coefficient of ``part`` (n,) with each stretch of ``longer`` (m,) of its length: (m - n + 1,)."""
    count = len(part)
    centred = part - part.mean()
    size = 1 << (len(longer) + count).bit_length()
    products = np.fft.irfft(np.fft.rfft(longer, size) * np.conj(np.fft.rfft(centred, size)), size)
    sums = np.cumsum(np.pad(longer, (1, 0)))
    squares = np.cumsum(np.pad(longer**2, (1, 0)))
    spread = squares[count:] - squares[:-count] - (sums[count:] - sums[:-count]) ** 2 / count
    norm = np.sqrt(np.clip(spread, 1e-9, None) * max(float(np.sum(centred**2)), 1e-9))
    coefficients: NDArray[np.float64] = products[: len(longer) - count + 1] / norm
    return coefficients


@dataclass(frozen=True, slots=True)
class CallFigures:
    """What happened in a call between two looks at its statistics; delays and offset as they stand at the end (ms).
    ``way_p50_ms``: from the microphone to the sound, None where too little came back."""

    rendered: int
    held: int
    dropped: int
    lost_clips: int
    steps: int
    delay_p50_ms: float | None
    delay_p95_ms: float | None
    av_offset_ms: float | None
    way_p50_ms: float | None = None

    @classmethod
    def between(cls, before: Mapping[str, Any], after: Mapping[str, Any], ways: Sequence[float] = ()) -> CallFigures:
        clips = {key: after["clips"][key] - before["clips"][key] for key in ("failed", "late", "overflowed")}
        return cls(
            rendered=int(after["rendered"] - before["rendered"]),
            held=int(after["held"] - before["held"]),
            dropped=int(after["dropped"] - before["dropped"]),
            lost_clips=sum(clips.values()),
            steps=int(after["steps"]),
            delay_p50_ms=after["delay_p50_ms"],
            delay_p95_ms=after["delay_p95_ms"],
            av_offset_ms=after["av_offset_ms"],
            way_p50_ms=round(float(np.median(ways)), 1) if ways else None,
        )
