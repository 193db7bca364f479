"""A WHIP server that is none of ours: aiohttp and plain aiortc, as a media server would answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import av
from aiohttp import web
from aiohttp.test_utils import TestServer
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from echo_rtc.bench.support.calls import Heard, Seen, luma
from echo_rtc.bench.sync import Recording
from echo_rtc.clips import MEDIA_RATE
from echo_rtc.codec.picture import PICTURE_RATE
from echo_rtc.codec.resampling import mono
from echo_rtc.rtc.seams.receiving import SenderClock, watch_sender

FPS = 24
LINK = '<stun:198.51.100.1:3478>; rel="ice-server"'


@dataclass
class Session:
    """One publisher."""

    connection: RTCPeerConnection
    recording: Recording = field(default_factory=lambda: Recording(FPS))
    clocks: dict[str, SenderClock] = field(default_factory=dict)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def sound_clock(self) -> SenderClock:
        return self.clocks["audio"]

    @property
    def picture_clock(self) -> SenderClock:
        return self.clocks["video"]

    async def drain(self, track: MediaStreamTrack) -> None:
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return
            if isinstance(frame, av.AudioFrame):
                pcm = mono(frame)
                assert pcm is not None
                self.recording.hear(Heard(0.0, frame.pts or 0, pcm))
            elif isinstance(frame, av.VideoFrame):
                self.recording.see(Seen(0.0, frame.pts or 0, luma(frame)))

    async def close(self) -> None:
        await self.connection.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@dataclass
class FarSide:
    """``answers``: statuses and headers with which the next offers are refused, in order. ``tokens``: what each request
    had, by method and path."""

    url: str = ""
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    sessions: dict[str, Session] = field(default_factory=dict)
    past: list[Session] = field(default_factory=list)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_route("OPTIONS", "/room", self.options)
        app.router.add_post("/room", self.post)
        app.router.add_post("/moved", self.moved)
        app.router.add_delete("/sessions/{id}", self.delete)
        return app

    def _note(self, request: web.Request) -> None:
        self.requests.append((request.method, request.path, request.headers.get("Authorization")))

    async def options(self, request: web.Request) -> web.Response:
        self._note(request)
        return web.Response(status=204, headers={"Link": LINK})

    async def moved(self, request: web.Request) -> web.Response:
        self._note(request)
        return web.Response(status=307, headers={"Location": "room"})

    async def post(self, request: web.Request) -> web.Response:
        self._note(request)
        if self.answers:
            status, headers = self.answers.pop(0)
            return web.Response(status=status, headers=headers)
        connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        session = Session(connection)
        connection.on("track", lambda track: session.tasks.append(asyncio.create_task(session.drain(track))))
        await connection.setRemoteDescription(RTCSessionDescription(await request.text(), "offer"))
        for transceiver in connection.getTransceivers():
            rate = MEDIA_RATE if transceiver.kind == "audio" else PICTURE_RATE
            session.clocks[transceiver.kind] = watch_sender(transceiver.receiver, rate)
        await connection.setLocalDescription(await connection.createAnswer())
        name = str(len(self.sessions) + len(self.past))
        self.sessions[name] = session
        headers = {"Location": f"sessions/{name}", "Content-Type": "application/sdp"}
        return web.Response(status=201, text=connection.localDescription.sdp, headers=headers)

    async def delete(self, request: web.Request) -> web.Response:
        self._note(request)
        session = self.sessions.pop(request.match_info["id"], None)
        if session is None:
            return web.Response(status=404)
        self.past.append(session)
        await session.close()
        return web.Response()

    async def drop(self) -> None:
        """Vanishes with all its sessions, as a server that is restarted."""
        for name in tuple(self.sessions):
            session = self.sessions.pop(name)
            self.past.append(session)
            await session.close()


@asynccontextmanager
async def far_side() -> AsyncIterator[FarSide]:
    far = FarSide()
    server = TestServer(far.app())
    await server.start_server()
    far.url = str(server.make_url("")).rstrip("/")
    try:
        yield far
    finally:
        await far.drop()
        await server.close()
