"""Recordings as a player sees them: when the beeps in them are heard, and when they are seen."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av

from echo_rtc.bench.support.calls import Heard, Seen, luma
from echo_rtc.bench.sync import MATCH_S, Recording
from echo_rtc.clips import MEDIA_RATE
from echo_rtc.codec.picture import PICTURE_RATE
from echo_rtc.codec.resampling import mono


def read_movie(path: Path, fps: int) -> Recording:
    """Decodes a file of test cards to its end; the time stamps are the file's own."""
    found = Recording(fps)
    with av.open(str(path)) as container:
        resampler = av.AudioResampler("s16", "mono", MEDIA_RATE)
        for frame in container.decode():
            assert frame.pts is not None
            assert frame.time_base is not None
            at = Fraction(frame.pts) * frame.time_base
            if isinstance(frame, av.VideoFrame):
                found.see(Seen(0.0, round(at * PICTURE_RATE), luma(frame)))
            elif isinstance(frame, av.AudioFrame):
                for part in resampler.resample(frame):
                    pcm = mono(part)
                    if pcm is not None:
                        found.hear(Heard(0.0, round(at * MEDIA_RATE), pcm))
    return found


def movie_offsets(path: Path, fps: int) -> list[float]:
    """How much later (ms) each beep's picture begins than its sound."""
    found = read_movie(path, fps)
    heard = [at / MEDIA_RATE for at in found.sound_onsets()]
    seen = [at / PICTURE_RATE for at in found.picture_onsets()]
    nearest = [(when, min(seen, key=lambda other: abs(other - when), default=when + 1.0)) for when in heard]
    return [1000 * (other - when) for when, other in nearest if abs(other - when) <= MATCH_S]
