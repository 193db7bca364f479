"""A stream's output as raw frames, for programs that process them or hand them to a peer connection of their own.

A tap is a pair of tracks whose ``recv()`` gives a frame when it is due. Each begins with its own first ``recv()``, so
that either may be read alone, and both carry pts of one count. Queues are bounded: a program that reads too slowly
loses the oldest frames, which are counted. Knows no clock, no playout and no connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

import av
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from echo_rtc.clips import MEDIA_RATE, S16Array, YuvFrames
from echo_rtc.codec.encoders import PICTURE_TIME_BASE, SOUND_TIME_BASE, video_frame

SOUND_QUEUE_FRAMES = 50
"""Frames of 20 ms that may wait to be read: one second."""
PICTURE_QUEUE_FRAMES = 30
"""Pictures that may wait to be read: about one second."""

F = TypeVar("F", av.AudioFrame, av.VideoFrame)


class FrameTrack(MediaStreamTrack, Generic[F]):
    """A track of frames that are due as soon as they are put in; at most ``limit`` wait to be read."""

    def __init__(self, kind: str, limit: int) -> None:
        super().__init__()
        self.kind = kind
        self._frames: deque[tuple[F, int]] = deque()
        self._limit = limit
        self._arrived = asyncio.Event()
        self.being_read = False
        self.media_sample = 0
        """Media time, in samples at 48 kHz, at which the frame that was read last begins; before the first sound of the
        stream it is negative."""
        self.frames = 0
        """Frames offered since the first ``recv()``."""
        self.dropped = 0
        """Those of them that were dropped because the reader was too slow."""

    @property
    def live(self) -> bool:
        """Whether somebody reads."""
        return self.being_read and self.readyState == "live"

    async def recv(self) -> F:
        """The next frame, as soon as it is due. Raises MediaStreamError once the track has ended."""
        self.being_read = True
        while not self._frames:
            if self.readyState != "live":
                raise MediaStreamError
            self._arrived.clear()
            await self._arrived.wait()
        frame, self.media_sample = self._frames.popleft()
        return frame

    def put(self, frame: F, media_sample: int) -> None:
        """Adds a frame that is due now; of too many the oldest goes."""
        if len(self._frames) >= self._limit:
            self._frames.popleft()
            self.dropped += 1
        self._frames.append((frame, media_sample))
        self.frames += 1
        self._arrived.set()

    def stop(self) -> None:
        super().stop()
        self._frames.clear()
        self._arrived.set()


class Tap:
    """One program's share of a stream: sound as mono s16 frames of 20 ms at 48 kHz, pictures as yuv420p frames with
    pts at 90 kHz. Both count from the same instant."""

    def __init__(self) -> None:
        self.sound: FrameTrack[av.AudioFrame] = FrameTrack("audio", SOUND_QUEUE_FRAMES)
        self.picture: FrameTrack[av.VideoFrame] = FrameTrack("video", PICTURE_QUEUE_FRAMES)
        self.ended = asyncio.Event()
        """Set when both tracks have been stopped, by whoever has them or by :meth:`close`."""
        for track in (self.sound, self.picture):
            track.on("ended", self._track_ended)

    @property
    def live(self) -> bool:
        """Whether one of the tracks is being read."""
        return self.sound.live or self.picture.live

    def take_sound(self, pcm: S16Array, pts: int, media_sample: int) -> None:
        """Offers 20 ms (n,) int16 that are due now; ``pts`` in samples."""
        if not self.sound.live:
            return
        frame = av.AudioFrame.from_ndarray(pcm.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate = MEDIA_RATE
        frame.pts, frame.time_base = pts, SOUND_TIME_BASE
        self.sound.put(frame, media_sample)

    def take_picture(self, picture: YuvFrames, pts: int, media_sample: int) -> None:
        """Offers a frame (F = 1) that is due now; ``pts`` at 90 kHz."""
        if not self.picture.live:
            return
        frame = video_frame(picture)
        frame.pts, frame.time_base = pts, PICTURE_TIME_BASE
        self.picture.put(frame, media_sample)

    def close(self) -> None:
        """Ends the tracks; whoever reads them gets MediaStreamError."""
        self.sound.stop()
        self.picture.stop()

    def _track_ended(self) -> None:
        if self.sound.readyState == self.picture.readyState == "ended":
            self.ended.set()
