"""Voices with pauses, and what a call made of them: for benchmarks of whole calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from echo_rtc.bench.stream import babble
from echo_rtc.clips import MEDIA_RATE, S16Array

SPEECH_S, PAUSE_S = 7.0, 1.5


def conversation(start: int, count: int) -> S16Array:
    """Speech with pauses: :func:`babble` for SPEECH_S, silence for PAUSE_S."""
    t = (start + np.arange(count)) / MEDIA_RATE % (SPEECH_S + PAUSE_S)
    return np.where(t < SPEECH_S, babble(start, count), 0).astype(np.int16)


@dataclass(frozen=True, slots=True)
class CallFigures:
    """What happened in a call between two looks at its statistics; delays and offset as they stand at the end (ms)."""

    rendered: int
    held: int
    dropped: int
    lost_clips: int
    steps: int
    delay_p50_ms: float | None
    delay_p95_ms: float | None
    av_offset_ms: float | None

    @classmethod
    def between(cls, before: Mapping[str, Any], after: Mapping[str, Any]) -> CallFigures:
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
        )
