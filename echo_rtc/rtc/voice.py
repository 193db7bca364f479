"""Any audio track as a stream's microphone reads it: 16 bit, mono where it had to be converted, 48 kHz, with pts in
samples.

Remote tracks of aiortc are so already; files, synthesisers and other programs' tracks come at any rate and in any
format. Gaps between their frames stay gaps. Knows nothing of streams.
"""

from __future__ import annotations

import asyncio
from collections import deque
from fractions import Fraction

import av
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from echo_rtc.clips import MEDIA_RATE
from echo_rtc.codec.encoders import SOUND_TIME_BASE

GAP_S = Fraction(1, 500)
"""A step of the time stamps of at least this much (s) is a gap; less is rounding in the stamps."""


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


class VoiceTrack(MediaStreamTrack):
    """``source``, converted. Ends with it; ``ended`` is set then."""

    kind = "audio"

    def __init__(self, source: MediaStreamTrack) -> None:
        super().__init__()
        self._source = source
        self._converter = VoiceConverter()
        self._ready: deque[av.AudioFrame] = deque()
        self.over = asyncio.Event()
        """Set when the source has ended."""
        self.unusable = 0
        """Frames that could not be converted; they become silence."""

    async def recv(self) -> av.AudioFrame:
        """The next frame. Raises MediaStreamError when the source has ended."""
        while not self._ready:
            try:
                frame = await self._source.recv()
            except MediaStreamError:
                self.over.set()
                self.stop()
                raise
            if not isinstance(frame, av.AudioFrame):  # an encoded packet
                self.unusable += 1
                continue
            try:
                self._ready.extend(self._converter.convert(frame))
            except (av.FFmpegError, ValueError):
                self.unusable += 1
        return self._ready.popleft()
