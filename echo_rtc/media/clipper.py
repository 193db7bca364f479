"""Cuts a stream's contiguous audio into clips, each with the rolling window of history that the model hears.

Knows neither where the audio comes from nor who renders the clips; counts samples, never reads a clock.
"""

from __future__ import annotations

import numpy as np

from echo_rtc.clips import AudioClip, ClipFormat, F32Array


class Clipper:
    """Contiguous mono audio at ``format.sample_rate`` in, clips out.

    Clip ``i`` is the audio of frames ``i * clip_frames`` to ``(i + 1) * clip_frames``; its borders are
    ``format.sample_of_frame``, so they stay exact for ever at any frame rate. Its window reaches
    ``format.history_frames`` frames further back, with silence before the stream's start, and begins on a frame's
    border so that the model can drop the history by whole frames.

    With ``overlap_frames`` K, every clip but the first also spans the K frames before it, to be cross-faded with the
    end of the clip before (see ``blend.py``); the history is K frames shorter then, and the window stays as it is.
    """

    def __init__(self, format: ClipFormat, overlap_frames: int = 0) -> None:
        """Raises ValueError if ``overlap_frames`` is not within 0 .. ``format.clip_frames``."""
        if not 0 <= overlap_frames <= format.clip_frames:
            raise ValueError(f"overlap_frames is {overlap_frames}; it must be within 0..{format.clip_frames}")
        self._format = format
        self._overlap = overlap_frames
        self._reach = max(format.history_frames, overlap_frames)
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

    def _cut(self, buffer: F32Array) -> AudioClip:
        begin = self._index * self._format.clip_frames
        end = begin + self._format.clip_frames
        first_frame = max(0, begin - self._overlap)
        window_from = self._sample(begin - self._reach)
        window = buffer[window_from - self._start : self._sample(end) - self._start].copy()
        own = self._sample(end) - self._sample(first_frame)
        return AudioClip(self._index, first_frame, end - first_frame, window, own)

    def _sample(self, frame: int) -> int:
        return self._format.sample_of_frame(frame, self._format.sample_rate)
