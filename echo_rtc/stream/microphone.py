"""From a remote audio track to blocks of mono 48 kHz sound with their place in time, and on to the model's rate.

Drains its track for ever, so that aiortc's unbounded queue stays empty; ends with the track, which is not the end of
the stream. Knows neither clips nor playout: blocks go to a sink.
"""

from __future__ import annotations

from collections.abc import Callable

import av
import numpy as np
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from echo_rtc.clips import MEDIA_RATE, F32Array, S16Array
from echo_rtc.stream.log import Complaints, StreamLog

BlockSink = Callable[[int, S16Array], None]
"""Takes the pts of a block's first sample (48 kHz, from wherever the sender's clock began) and its mono int16 samples.
Lost packets are gaps between blocks."""


class Microphone:
    """Reads one remote audio track and hands its blocks on. Counts what came and what could not be used."""

    def __init__(self, sink: BlockSink, log: StreamLog) -> None:
        self._sink = sink
        self._log = log
        self._complaints = Complaints(log)
        self.blocks = 0
        self.unusable = 0

    async def run(self, track: MediaStreamTrack) -> None:
        """Drains ``track`` until it ends. What cannot be used is counted and left out: it becomes silence."""
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                self._log.debug("the microphone's track has ended")
                return
            pcm = mono(frame) if isinstance(frame, av.AudioFrame) else None
            if pcm is None or frame.pts is None:
                self.unusable += 1
                self._complaints.warning("a block of the microphone cannot be used: %s", frame)
                continue
            self.blocks += 1
            self._sink(frame.pts, pcm)


def mono(frame: av.AudioFrame) -> S16Array | None:
    """The frame's samples (n,) int16, the mean of its channels; None unless it is 16 bit at 48 kHz, which is what the
    Opus decoder makes of everything."""
    if frame.sample_rate != MEDIA_RATE or frame.format.name != "s16" or frame.samples < 1:
        return None
    channels = frame.layout.nb_channels
    samples = np.frombuffer(memoryview(frame.planes[0]), np.int16)[: frame.samples * channels]
    if channels == 1:
        return samples.copy()
    if channels == 2:
        left, right = samples[0::2], samples[1::2]
        return np.asarray(np.add(left, right, dtype=np.int32) >> 1, np.int16)
    return np.asarray(samples.reshape(-1, channels).mean(axis=1), np.int16)


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
        """Ends the threads that FFmpeg keeps for it, which would else wait for Python's garbage collection."""
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
