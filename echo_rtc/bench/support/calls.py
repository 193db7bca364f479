"""A caller for measurements and tests: an aiortc peer with a scripted microphone that sees and hears the avatar.

It stands outside the server and knows it by offer and answer only.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from echo_rtc.clips import MEDIA_RATE, S16Array, U8Array
from echo_rtc.codec.picture import PICTURE_RATE, marks_of
from echo_rtc.codec.resampling import mono
from echo_rtc.rtc.seams.receiving import SenderClock, watch_sender

Voice = Callable[[int, int], S16Array]
"""What the microphone hears: (first sample, count) at 48 kHz to mono int16 (count,)."""
Exchange = Callable[[str], Awaitable[str]]
"""Takes an offer's SDP to the server and brings the answer's."""

BLOCK_SAMPLES = 960
CONNECT_TIMEOUT_S = 20.0
CALLER_BUFFER_MS = 80.0
"""What aiortc's receiver of sound holds back: 4 packets of 20 ms, as long as none is lost."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A decoded block of sound: when it arrived (event loop's clock, s), pts in samples, mono samples (n,) int16."""

    arrived_s: float
    pts: int
    pcm: S16Array


@dataclass(frozen=True, slots=True)
class Seen:
    """A decoded frame: when it arrived (event loop's clock, s), pts at 90 kHz, and its luma (H, W) uint8. ``marks``:
    what it says of itself, see :func:`marks_of`."""

    arrived_s: float
    pts: int
    luma: U8Array
    marks: list[dict[str, Any]] = field(default_factory=list)


class ScriptedMicrophone(MediaStreamTrack):
    """Plays a voice in real time, 20 ms a block, as a browser's microphone would."""

    kind = "audio"

    def __init__(self, voice: Voice) -> None:
        super().__init__()
        self._voice = voice
        self._next = 0
        self.began_s: float | None = None
        """Event loop's clock at the voice's first sample."""

    async def recv(self) -> av.AudioFrame:
        if self.readyState != "live":
            raise MediaStreamError
        loop = asyncio.get_running_loop()
        if self.began_s is None:
            self.began_s = loop.time()
        # A block can be sent once its last sample has been spoken.
        ready_s = self.began_s + (self._next + BLOCK_SAMPLES) / MEDIA_RATE
        await asyncio.sleep(max(0.0, ready_s - loop.time()))
        pcm = self._voice(self._next, BLOCK_SAMPLES)
        # Stereo, because aiortc would make it so, and take 3 dB away in doing it.
        frame = av.AudioFrame.from_ndarray(np.repeat(pcm, 2).reshape(1, -1), format="s16", layout="stereo")
        frame.sample_rate = MEDIA_RATE
        frame.pts = self._next
        frame.time_base = Fraction(1, MEDIA_RATE)
        self._next += BLOCK_SAMPLES
        return frame


class Caller:
    """A call: :meth:`connect`, then sound and frames go to the callbacks until :meth:`close`.

    ``codec`` limits the offer's picture codecs to that one ("H264", "VP8"); None offers all that aiortc has. A voice of
    None is a microphone that sends nothing at all. ``speaks=False`` is a viewer, who has no microphone. ``network``
    names STUN and TURN servers; without it there are none.
    """

    def __init__(
        self,
        voice: Voice | None,
        on_sound: Callable[[Heard], None] | None = None,
        on_picture: Callable[[Seen], None] | None = None,
        codec: str | None = None,
        speaks: bool = True,
        network: RTCConfiguration | None = None,
    ) -> None:
        self.connection = RTCPeerConnection(network or RTCConfiguration(iceServers=[]))
        self.microphone = ScriptedMicrophone(voice) if voice is not None else None
        self.events: list[dict[str, object]] = []
        """What came over the data channel, in order."""
        self._on_sound = on_sound or (lambda _: None)
        self._on_picture = on_picture or (lambda _: None)
        self._tasks: list[asyncio.Task[None]] = []
        sound = self.connection.addTransceiver(self.microphone or "audio", "sendrecv" if speaks else "recvonly")
        self._sound_sender = sound.sender
        picture = self.connection.addTransceiver("video", "recvonly")
        if codec is not None:
            known = RTCRtpSender.getCapabilities("video").codecs
            picture.setCodecPreferences([c for c in known if c.name in (codec, "rtx")])
        self.sound_clock: SenderClock = watch_sender(sound.receiver, MEDIA_RATE)
        self.picture_clock: SenderClock = watch_sender(picture.receiver, PICTURE_RATE)
        self.picture_receiver = picture.receiver
        self.channel = self.connection.createDataChannel("events")
        self.channel.on("message", lambda text: self.events.append(json.loads(text)))
        self.connection.on("track", self._on_track)

    def use_microphone(self, track: MediaStreamTrack) -> None:
        """Sends another track instead, before the connection or during it."""
        self._sound_sender.replaceTrack(track)

    async def connect(self, exchange: Exchange) -> None:
        """Makes an offer and returns once the connection is up. Raises TimeoutError or what ``exchange`` raises."""
        await connect(self.connection, exchange)

    async def received_bytes(self) -> float:
        """All bytes that came so far."""
        return await received_bytes(self.connection)

    async def close(self) -> None:
        """Hangs up."""
        await self.connection.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _on_track(self, track: MediaStreamTrack) -> None:
        self._tasks.append(asyncio.create_task(self._drain(track), name=f"drain {track.kind}"))

    async def _drain(self, track: MediaStreamTrack) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return
            now = loop.time()
            if isinstance(frame, av.AudioFrame):
                pcm = mono(frame)
                if pcm is not None:
                    self._on_sound(Heard(now, frame.pts or 0, pcm))
            elif isinstance(frame, av.VideoFrame):
                self._on_picture(Seen(now, frame.pts or 0, luma(frame), marks_of(frame)))


class Publisher:
    """Sends a voice and wants nothing back: :meth:`connect`, then :meth:`close`."""

    def __init__(self, voice: Voice) -> None:
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.microphone = ScriptedMicrophone(voice)
        self.connection.addTransceiver(self.microphone, "sendonly")

    async def connect(self, exchange: Exchange) -> None:
        """As a caller's."""
        await connect(self.connection, exchange)

    async def close(self) -> None:
        """Hangs up."""
        await self.connection.close()


async def connect(connection: RTCPeerConnection, exchange: Exchange) -> None:
    """Makes an offer and returns once the connection is up. Raises TimeoutError or what ``exchange`` raises."""
    up = asyncio.Event()

    def on_state() -> None:
        if connection.connectionState == "connected":
            up.set()

    connection.on("connectionstatechange", on_state)
    await connection.setLocalDescription(await connection.createOffer())
    answer = await exchange(connection.localDescription.sdp)
    await connection.setRemoteDescription(RTCSessionDescription(answer, "answer"))
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        await up.wait()


async def received_bytes(connection: RTCPeerConnection) -> float:
    """All bytes that came so far over a connection's one transport."""
    report = await connection.getStats()
    return float(max((entry.bytesReceived for entry in report.values() if entry.type == "transport"), default=0))


def luma(frame: av.VideoFrame) -> U8Array:
    """The luma plane (H, W) uint8 of a planar 4:2:0 frame, copied out of it."""
    plane = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    return rows[: frame.height, : frame.width].copy()
