"""Sound of any rate, format and number of channels to the two that the server works with: mono 16 bit at 48 kHz for
media time, mono float32 at the model's rate for clips.

Synchronous. Knows no tracks: frames and samples come in, frames and samples go out.
"""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np

from echo_rtc.clips import MEDIA_RATE, F32Array, S16Array
from echo_rtc.codec.sound import SOUND_TIME_BASE

MIN_FILTERED_S = 0.01
"""Pushed sound that is shorter as a whole is not worth a filter."""
GAP_S = Fraction(1, 500)
"""A step of the time stamps of at least this much (s) is a gap; less is rounding in the stamps."""


def mono_mix(samples: S16Array) -> S16Array:
    """Mixes (n, channels) int16 down to (n,): the mean of the channels, rounded down. Always a copy."""
    channels = samples.shape[1]
    if channels == 1:
        return samples[:, 0].copy()
    if channels == 2:
        # The case of every browser; a third of the time that the general one takes.
        return np.asarray(np.add(samples[:, 0], samples[:, 1], dtype=np.int32) >> 1, np.int16)
    return np.asarray(samples.sum(axis=1, dtype=np.int32) // channels, np.int16)


def mono(frame: av.AudioFrame) -> S16Array | None:
    """The frame's samples (n,) int16 in mono; None unless the frame is packed 16 bit at 48 kHz, which is what the Opus
    decoder makes of everything."""
    if frame.sample_rate != MEDIA_RATE or frame.format.name != "s16" or frame.samples < 1:
        return None
    channels = frame.layout.nb_channels
    samples = np.frombuffer(memoryview(frame.planes[0]), np.int16)[: frame.samples * channels]
    return mono_mix(samples.reshape(-1, channels))


class VoiceConverter:
    """Frames of any format in, s16 frames at 48 kHz with pts in samples out. One track each."""

    def __init__(self) -> None:
        self._resampler: tuple[object, av.AudioResampler] | None = None
        self._expected: Fraction | None = None
        self._next_pts = 0

    def convert(self, frame: av.AudioFrame) -> list[av.AudioFrame]:
        """What ``frame`` becomes: nothing while the filter fills up, usually one frame. A frame without a time stamp
        follows on the one before. Raises ValueError or av.FFmpegError for sound that cannot be converted."""
        begin = self._begin(frame)
        jumped = self._expected is None or abs(begin - self._expected) >= GAP_S
        self._expected = begin + Fraction(frame.samples, frame.sample_rate)
        if frame.sample_rate == MEDIA_RATE and frame.format.name == "s16":
            self._resampler = None
            frame.pts, frame.time_base = round(begin * MEDIA_RATE), SOUND_TIME_BASE
            return [frame]
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if self._resampler is None or jumped or self._resampler[0] != kind:
            self._resampler = kind, av.AudioResampler(format="s16", layout="mono", rate=MEDIA_RATE)
            self._next_pts = round(begin * MEDIA_RATE)
        frame.pts = None
        made = self._resampler[1].resample(frame)
        for part in made:
            part.pts, part.time_base = self._next_pts, SOUND_TIME_BASE
            self._next_pts += part.samples
        return made

    def _begin(self, frame: av.AudioFrame) -> Fraction:
        """The time (s) of a frame's first sample by its own stamp."""
        if frame.pts is None or frame.time_base is None:
            return self._expected or Fraction(0)
        return frame.pts * Fraction(frame.time_base)


class PcmConverter:
    """Contiguous 16-bit little-endian mono PCM at ``rate`` Hz in, mono int16 at 48 kHz out, a filter's lag late.

    A filter takes a millisecond to make, so there is none before MIN_FILTERED_S of sound has come; what ends before is
    interpolated.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._resampler: av.AudioResampler | None = None
        self._held = np.zeros(0, np.int16)
        """What has come before there is a filter."""
        self._in = 0

    def push(self, pcm: bytes) -> S16Array:
        """What ``pcm``, of an even number of bytes, completes: (n,) int16."""
        samples = np.frombuffer(pcm, "<i2").astype(np.int16)
        if self.rate == MEDIA_RATE or not len(samples):
            return samples
        if self._resampler is None:
            samples = np.concatenate((self._held, samples))
            if len(samples) < MIN_FILTERED_S * self.rate:
                self._held = samples
                return np.zeros(0, np.int16)
            self._resampler = av.AudioResampler(format="s16", layout="mono", rate=MEDIA_RATE)
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate, frame.pts = self.rate, self._in
        self._in += len(samples)
        return self._joined(self._resampler.resample(frame))

    def flush(self) -> S16Array:
        """What the filter still holds; the converter is used up."""
        if self._resampler is not None:
            return self._joined(self._resampler.resample(None))
        count = len(self._held) * MEDIA_RATE // self.rate
        if not count:
            return np.zeros(0, np.int16)
        at = np.arange(count) * (self.rate / MEDIA_RATE)
        return np.asarray(np.rint(np.interp(at, np.arange(len(self._held)), self._held)), np.int16)

    @staticmethod
    def _joined(frames: list[av.AudioFrame]) -> S16Array:
        parts = [np.frombuffer(memoryview(part.planes[0]), np.int16)[: part.samples].copy() for part in frames]
        return np.concatenate([np.zeros(0, np.int16), *parts])


class SpeechResampler:
    """Contiguous mono 48 kHz int16 in, contiguous mono float32 in -1..1 at ``rate`` Hz out.

    After n samples in, exactly ``n * rate // 48000`` have come out: a clip is complete the moment its last sample has
    been heard. The filter's lag (about a millisecond) is paid once, as silence at the start, and stays in the signal:
    :attr:`latency_samples` at ``rate``.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
        self._in = 0
        self._out = 0
        self._ready: list[F32Array] = []
        self._waiting = 0
        self.latency_samples = 0

    def close(self) -> None:
        """Ends FFmpeg's threads now instead of at the next garbage collection."""
        del self._resampler

    def push(self, pcm: S16Array) -> F32Array:
        """The samples that ``pcm`` (n,) int16 completes."""
        if len(pcm):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(pcm).reshape(1, -1), format="s16", layout="mono")
            frame.sample_rate = MEDIA_RATE
            frame.pts = self._in
            for made in self._resampler.resample(frame):
                self._ready.append(np.frombuffer(memoryview(made.planes[0]), np.float32)[: made.samples].copy())
                self._waiting += made.samples
        self._in += len(pcm)
        due = self._in * self.rate // MEDIA_RATE - self._out
        if due > self._waiting:
            lag = due - self._waiting
            self._ready.insert(0, np.zeros(lag, np.float32))
            self._waiting += lag
            self.latency_samples += lag
        made_all = np.concatenate([np.zeros(0, np.float32), *self._ready])
        self._ready = [made_all[due:]]
        self._waiting -= due
        self._out += due
        return made_all[:due]
