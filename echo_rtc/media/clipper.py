"""Cuts a stream's contiguous audio into clips, each with the rolling window of history that the model hears.

Knows neither the source of the audio nor the renderer of the clips; counts samples, never reads a clock.
"""

from __future__ import annotations

import numpy as np

from echo_rtc.clips import AudioClip, ClipFormat, F32Array


class Clipper:
    """Contiguous mono audio at ``format.sample_rate`` in, clips out.

    Clip ``i`` is the audio of frames ``i * clip_frames`` to ``(i + 1) * clip_frames``; its borders are
    ``format.sample_of_frame``, so they stay exact at any frame rate, without drift. Its window reaches
    ``format.history_frames`` frames further back, with silence before the stream's start, and begins on a frame's
    border so that the model can drop the history by whole frames.
    """

    def __init__(self, clip_format: ClipFormat) -> None:
        self._format = clip_format
        self._reach = clip_format.history_frames
        self._index = 0
        first = self._sample(-self._reach)
        self._pieces: list[F32Array] = [np.zeros(-first, np.float32)]
        self._start = first
        self._end = 0

    def push(self, samples: F32Array) -> list[AudioClip]:
        """Takes the next samples (n,) float32 in -1..1 and returns the clips that they complete, in order.

        The windows are the caller's own: later pushes do not touch them. Raises ValueError for anything but mono
        float32.
        """
        if samples.ndim != 1 or samples.dtype != np.float32:
            raise ValueError(f"audio of shape {samples.shape} and type {samples.dtype}; mono float32 is expected")
        self._pieces.append(samples.copy())
        self._end += len(samples)
        clips: list[AudioClip] = []
        frames = self._format.clip_frames
        if self._end < self._sample((self._index + 1) * frames):
            return clips
        buffer = np.concatenate(self._pieces)
        while self._end >= self._sample((self._index + 1) * frames):
            clips.append(self._cut(buffer))
            self._index += 1
        keep_from = self._sample(self._index * frames - self._reach)
        self._pieces = [buffer[keep_from - self._start :]]
        self._start = keep_from
        return clips

    def forget(self) -> None:
        """Replaces the history by silence for all later clips."""
        self._pieces = [np.zeros(self._end - self._start, np.float32)]

    def _cut(self, buffer: F32Array) -> AudioClip:
        begin = self._index * self._format.clip_frames
        end = begin + self._format.clip_frames
        window_from = self._sample(begin - self._reach)
        window = buffer[window_from - self._start : self._sample(end) - self._start].copy()
        own = self._sample(end) - self._sample(begin)
        return AudioClip(self._index, begin, end - begin, window, own)

    def _sample(self, frame: int) -> int:
        return self._format.sample_of_frame(frame, self._format.sample_rate)
