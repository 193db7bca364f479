"""A stream's queues as aiortc tracks: thin adapters, each of which ends with its queue and closes it when stopped."""

from __future__ import annotations

from typing import Generic, TypeVar

import av
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from echo_rtc.codec.picture import VideoCodec
from echo_rtc.rtc.seams.sending import payload_cutter
from echo_rtc.stream.encoder_bank import EncodedFrame, Packetizer
from echo_rtc.stream.queues import MediaQueue, QueueClosedError
from echo_rtc.stream.taps import FrameQueue
from echo_rtc.stream.viewers import DueFrame

T = TypeVar("T")
F = TypeVar("F", bound=av.AudioFrame | av.VideoFrame)


def packetizer(codec: VideoCodec) -> Packetizer:
    """Cuts encoded frames into RTP payloads as aiortc does."""
    return payload_cutter(f"video/{codec}")


class QueueTrack(MediaStreamTrack, Generic[T]):
    """A track of what a queue gives."""

    def __init__(self, kind: str, queue: MediaQueue[T]) -> None:
        super().__init__()
        self.kind = kind
        self._queue = queue
        queue.on_close(self.stop)

    def stop(self) -> None:
        super().stop()
        self._queue.close()

    async def _next(self) -> T:
        try:
            return await self._queue.get()
        except QueueClosedError:
            raise MediaStreamError from None


class PacketTrack(QueueTrack[DueFrame]):
    """A viewer's sound or picture, already encoded: sent by ``seams.sending.send_parcels`` only."""

    def __init__(self, kind: str, queue: MediaQueue[DueFrame]) -> None:
        super().__init__(kind, queue)
        self.due_s: float | None = None
        """When the frame that was read last was due, by the stream's clock."""

    async def recv(self) -> EncodedFrame:  # type: ignore[override]  # not a frame that aiortc would encode
        """The next encoded frame, as soon as it is due. Raises MediaStreamError once the track has ended."""
        frame, self.due_s = await self._next()
        return frame


class FrameTrack(QueueTrack[tuple[F, int]], Generic[F]):
    """A tap's sound or picture as raw frames, for any peer connection or program."""

    def __init__(self, kind: str, queue: FrameQueue[F]) -> None:
        super().__init__(kind, queue)
        self._counted = queue
        self.media_sample = 0
        """Media time, in samples at 48 kHz, at which the frame that was read last begins; before the first sound of the
        stream it is negative."""

    @property
    def frames(self) -> int:
        """Frames offered since the first ``recv()``."""
        return self._counted.frames

    @property
    def dropped(self) -> int:
        """Those of them that were dropped because the reader was too slow."""
        return self._counted.dropped

    async def recv(self) -> F:
        """The next frame, as soon as it is due. Raises MediaStreamError once the track has ended."""
        frame, self.media_sample = await self._next()
        return frame
