"""A stream's output as raw frames, for programs that process them or encode them on their own.

A tap is a pair of queues whose items are due when they are put in. Each begins with its own first read, so that either
may be read alone, and both carry pts of one count. Queues are bounded: a program that reads too slowly loses the oldest
frames, which are counted. Knows no clock, no playout and no connection.
"""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

import av

from echo_rtc.clips import MEDIA_RATE, S16Array, YuvFrames
from echo_rtc.codec.picture import PICTURE_TIME_BASE, video_frame
from echo_rtc.codec.sound import SOUND_TIME_BASE
from echo_rtc.stream.queues import MediaQueue

SOUND_QUEUE_FRAMES = 50
"""Frames of 20 ms that may wait to be read: one second."""
PICTURE_QUEUE_FRAMES = 30
"""Pictures that may wait to be read: about one second."""

F = TypeVar("F", bound=av.AudioFrame | av.VideoFrame)


class FrameQueue(MediaQueue[tuple[F, int]], Generic[F]):
    """A queue of (frame, media sample at which it begins); before the first sound of the stream it is negative.

    ``frames``: those offered since the first read. ``dropped``: those of them that the reader was too slow for.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.frames = 0
        self.dropped = 0

    def offer(self, frame: F, media_sample: int) -> None:
        """Adds a frame that is due now; of too many the oldest is dropped."""
        if self.full:
            self.dropped += self.drop(1)
        self.put((frame, media_sample))
        self.frames += 1


class Tap:
    """One program's share of a stream: sound as mono s16 frames of 20 ms at 48 kHz, pictures as yuv420p frames with
    pts at 90 kHz. Both count from the same instant."""

    def __init__(self) -> None:
        self.sound: FrameQueue[av.AudioFrame] = FrameQueue(SOUND_QUEUE_FRAMES)
        self.picture: FrameQueue[av.VideoFrame] = FrameQueue(PICTURE_QUEUE_FRAMES)
        self.ended = asyncio.Event()
        """Set when both queues are closed, by their readers or by :meth:`close`."""
        self.sound.on_close(self._queue_closed)
        self.picture.on_close(self._queue_closed)

    @property
    def live(self) -> bool:
        """Whether one of the queues is being read."""
        return self.sound.live or self.picture.live

    def take_sound(self, pcm: S16Array, pts: int, media_sample: int) -> None:
        """Offers 20 ms (n,) int16 that are due now; ``pts`` in samples."""
        if not self.sound.live:
            return
        frame = av.AudioFrame.from_ndarray(pcm.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate = MEDIA_RATE
        frame.pts, frame.time_base = pts, SOUND_TIME_BASE
        self.sound.offer(frame, media_sample)

    def take_picture(self, picture: YuvFrames, pts: int, media_sample: int) -> None:
        """Offers a frame (F = 1) that is due now; ``pts`` at 90 kHz."""
        if not self.picture.live:
            return
        frame = video_frame(picture)
        frame.pts, frame.time_base = pts, PICTURE_TIME_BASE
        self.picture.offer(frame, media_sample)

    def close(self) -> None:
        """Closes both queues, which ends their readers."""
        self.sound.close()
        self.picture.close()

    def _queue_closed(self) -> None:
        if self.sound.closed and self.picture.closed:
            self.ended.set()
