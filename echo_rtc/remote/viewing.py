"""A stream as its viewer gets it by WHEP: sound and pictures in step, when they are due."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import av
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from echo_rtc.clips import MEDIA_RATE
from echo_rtc.codec.picture import PICTURE_RATE, PICTURE_TIME_BASE
from echo_rtc.codec.resampling import mono
from echo_rtc.codec.sound import SOUND_TIME_BASE
from echo_rtc.remote.clock import ArrivalClock
from echo_rtc.rtc.seams.receiving import SenderClock, watch_sender

MAX_WAITING = 100
"""Frames of one kind that may wait to be due or to be read."""

F = TypeVar("F", bound=av.AudioFrame | av.VideoFrame)


class DueTrack(Generic[F]):
    """Frames that are read when they are due; of too many the oldest are dropped."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[float, F]] = deque()
        self._came = asyncio.Event()
        self._closed = False
        self.dropped = 0

    def put(self, frame: F, due_s: float) -> None:
        """``due_s``: by the event loop's clock."""
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append((due_s, frame))
        self._came.set()

    def close(self) -> None:
        self._closed = True
        self._came.set()

    async def recv(self) -> F:
        """The next frame, as soon as it is due. Raises MediaStreamError at the end."""
        while not self._waiting:
            if self._closed:
                raise MediaStreamError
            self._came.clear()
            await self._came.wait()
        due_s, frame = self._waiting.popleft()
        await asyncio.sleep(due_s - asyncio.get_running_loop().time())
        return frame


class Viewing:
    """One connection that receives sound and picture. ``on_end`` is called when it is over, by whichever side."""

    def __init__(self, on_end: Callable[[], None]) -> None:
        self.sound: DueTrack[av.AudioFrame] = DueTrack()
        self.picture: DueTrack[av.VideoFrame] = DueTrack()
        self.arrivals = ArrivalClock()
        self._origin_s: float | None = None
        self._on_end = on_end
        self._tasks: list[asyncio.Task[None]] = []
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        sound, picture = (self._connection.addTransceiver(kind, "recvonly") for kind in ("audio", "video"))
        self._clocks = {
            "audio": watch_sender(sound.receiver, MEDIA_RATE),
            "video": watch_sender(picture.receiver, PICTURE_RATE),
        }
        self._in_step = asyncio.Event()
        self._connection.on("track", self._on_track)
        self._connection.on("connectionstatechange", self._on_state)

    async def offer(self) -> str:
        await self._connection.setLocalDescription(await self._connection.createOffer())
        return self._connection.localDescription.sdp

    async def accept(self, answer: str) -> None:
        """Returns once frames come, and the sender has told how sound and picture belong together."""
        await self._connection.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        await self._in_step.wait()

    async def close(self) -> None:
        for track in (self.sound, self.picture):
            track.close()
        await self._connection.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _on_state(self) -> None:
        if self._connection.connectionState in ("failed", "closed"):
            self._on_end()

    def _on_track(self, track: MediaStreamTrack) -> None:
        self._tasks.append(asyncio.create_task(self._read(track), name=f"read {track.kind} of a remote face"))

    async def _read(self, track: MediaStreamTrack) -> None:
        loop = asyncio.get_running_loop()
        clock = self._clocks[track.kind]
        try:
            while True:
                frame = await track.recv()
                if not all(each.reports for each in self._clocks.values()):
                    continue
                self._take(frame, clock, loop.time())
                self._in_step.set()
        except MediaStreamError:
            self._on_end()

    def _take(self, frame: Any, clock: SenderClock, now: float) -> None:
        wall_s = clock.wall_time(frame.pts)
        if self._origin_s is None:
            self._origin_s = wall_s
        due_s = self.arrivals.due_s(wall_s, now)
        since_s = wall_s - self._origin_s
        if isinstance(frame, av.VideoFrame):
            frame.pts, frame.time_base = round(since_s * PICTURE_RATE), PICTURE_TIME_BASE
            self.picture.put(frame, due_s)
        elif (pcm := mono(frame)) is not None:
            block = av.AudioFrame.from_ndarray(pcm.reshape(1, -1), format="s16", layout="mono")
            block.sample_rate, block.time_base = MEDIA_RATE, SOUND_TIME_BASE
            block.pts = round(since_s * MEDIA_RATE)
            self.sound.put(block, due_s)
