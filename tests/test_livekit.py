"""An agent's session of livekit-agents and an avatar of a server: HTTP, speech, sound and pictures are the real thing;
only the room between them is a fake, for want of a LiveKit server."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import jwt
import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from livekit import rtc
from livekit.agents import AgentSession, APIConnectionError, APIStatusError
from livekit.agents.voice.avatar import DataStreamAudioOutput

from echo_rtc.cli.serve import _rooms
from echo_rtc.clips import ClipFormat
from echo_rtc.engine.card import CardError, read_card
from echo_rtc.engine.testcard import ScriptedFaults, TestCardEngine
from echo_rtc.errors import InputError, SettingsError
from echo_rtc.livekit import AvatarSession
from echo_rtc.participant.addresses import AllowedHosts
from echo_rtc.participant.rooms import Library, Rooms
from echo_rtc.resources import STATIC
from echo_rtc.rtc.manager import ManagerOptions, StreamManager
from echo_rtc.settings import Settings
from echo_rtc.web.app import AppOptions, Outlets, create_app
from echo_rtc.web.health import Health, Lifecycle, Phase
from tests.participant.rig import AGENT, AVATAR, OF_AGENT, ON_BEHALF, SECRET, URL, Hub, Room
from tests.rtc.test_reservations import HeldFor
from tests.web.conftest import FakeLibrary, gallery_of

FORMAT = ClipFormat(fps=24, clip_frames=6, width=64, height=64)
RATE = 24_000
KEYS = {"livekit_url": URL, "livekit_api_key": "key", "livekit_api_secret": SECRET}
STEP_S = 1 / FORMAT.fps + 0.02
"""A frame's length, to which its lamp tells when a sound began, and how far they may be apart."""


async def no_knock(url: str, token: str) -> None:
    """There is no server to ask."""


@asynccontextmanager
async def server(hub: Hub) -> AsyncIterator[tuple[str, StreamManager]]:
    """A server with one place that may join the rooms of URL; its address."""
    engine = TestCardEngine(FORMAT, ScriptedFaults(delay_s=0.02))
    await engine.start(lambda _: None)
    manager = StreamManager(engine, ManagerOptions(max_streams=1))
    make_room: Any = lambda: Room(hub)  # noqa: E731 (a fake in the place of the library's class)
    rooms = Rooms(
        manager, lambda: FORMAT, AllowedHosts.of(["livekit.example"]), Library(make_room=make_room, knock=no_knock)
    )
    health = Health(engine, Lifecycle(Phase.READY), "testcard", lambda: (), free_places=lambda: manager.free)
    app = create_app(manager, health, STATIC, gallery_of(FakeLibrary()), AppOptions(outlets=Outlets(rooms=rooms)))
    try:
        async with TestServer(app) as running:
            yield str(running.make_url("")).rstrip("/"), manager
    finally:
        await rooms.close()
        await manager.close()
        await engine.close()


class Watched:
    """What others see and hear of the published tracks, by LiveKit's own streams."""

    def __init__(self, published: list[tuple[Any, Any]]) -> None:
        (sound, _), (picture, _) = published
        self.loud_s: list[float] = []
        self.lit_s: list[float] = []
        self._streams = rtc.AudioStream(sound, sample_rate=48_000, num_channels=1), rtc.VideoStream(picture)
        self._tasks = [asyncio.create_task(self._hear()), asyncio.create_task(self._see())]

    async def _hear(self) -> None:
        async for event in self._streams[0]:
            if np.abs(np.frombuffer(event.frame.data, np.int16).astype(int)).max() > 4000:
                self.loud_s.append(time.monotonic())

    async def _see(self) -> None:
        async for event in self._streams[1]:
            luma = np.frombuffer(event.frame.data, np.uint8)[: FORMAT.width * FORMAT.height]
            try:
                card = read_card(luma.reshape(FORMAT.height, FORMAT.width))
            except CardError:
                continue  # cross-faded with the idle loop
            if not card.idle and card.level > 0.5:
                self.lit_s.append(time.monotonic())

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for stream in self._streams:
            await stream.aclose()


async def say(output: Any, seconds: float) -> None:
    pcm = np.resize(np.repeat(np.array([9000, -9000], np.int16), 60), round(seconds * RATE))
    await output.capture_frame(rtc.AudioFrame(pcm.tobytes(), RATE, 1, len(pcm)))
    output.flush()


async def test_an_agents_speech_becomes_a_face_in_its_room() -> None:
    hub = Hub()
    room: Any = Room(hub).enter(AGENT, OF_AGENT)
    async with server(hub) as (url, manager), asyncio.timeout(30):
        manager.reservations = HeldFor("127.0.0.1")
        session: AgentSession[Any] = AgentSession()
        avatar = AvatarSession(url=url)
        await avatar.start(session, room, **KEYS)
        assert avatar.stream_url is not None
        await avatar.wait_for_join()
        me = hub.rooms[AVATAR].local_participant
        assert me.attributes == {ON_BEHALF: AGENT}
        assert [options.source for _, options in me.published] == [
            rtc.TrackSource.SOURCE_MICROPHONE,
            rtc.TrackSource.SOURCE_CAMERA,
        ]
        watched = Watched(me.published)
        output = session.output.audio
        assert isinstance(output, DataStreamAudioOutput)
        await say(output, 0.5)
        done = await output.wait_for_playout()
        assert not done.interrupted
        assert done.playback_position == pytest.approx(0.5, abs=0.01)
        assert len(watched.loud_s) == pytest.approx(50, abs=3)
        assert abs(watched.lit_s[0] - watched.loud_s[0]) <= STEP_S
        with pytest.raises(APIStatusError, match="in real time"):
            await AvatarSession(url=url).start(AgentSession(), room, **KEYS)
        await avatar.aclose()
        await avatar.aclose()
        assert manager.free == 1
        assert AVATAR not in hub.rooms
        await watched.close()


class Stub:
    """A server that answers what it is told to."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.bodies: list[dict[str, str]] = []
        self.tokens: list[str | None] = []
        self.ended: list[str] = []

    async def join(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.json())
        self.tokens.append(request.headers.get("Authorization"))
        status = self.answers.pop(0)
        body = {"stream": "/below/streams/key"} if status == 201 else {"detail": "Not now."}
        return web.json_response(body, status=status)

    async def end(self, request: web.Request) -> web.Response:
        self.ended.append(request.match_info["key"])
        return web.Response(status=204)


async def test_what_a_server_is_asked_and_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("echo_rtc.livekit.RETRY_S", 0.0)
    stub, hub = Stub(), Hub()
    room: Any = Room(hub).enter(AGENT, OF_AGENT)
    face = Room(hub).enter("face").local_participant
    await face.publish_track(type("Track", (), {"kind": rtc.TrackKind.KIND_VIDEO})())
    app = web.Application()
    app.add_routes([web.post("/below/livekit", stub.join), web.delete("/below/streams/{key}", stub.end)])
    async with TestServer(app) as running:
        url = str(running.make_url("/below/"))
        avatar = AvatarSession(url=url, token="call-token", avatar="nia", avatar_participant_identity="face")
        stub.answers = [503, 201]
        await avatar.start(AgentSession(), room, **KEYS)
        assert stub.tokens == ["Bearer call-token"] * 2
        assert (stub.bodies[0]["livekit_url"], stub.bodies[0]["avatar"]) == (URL, "nia")
        claims = jwt.decode(stub.bodies[0]["livekit_token"], SECRET, algorithms=["HS256"])
        assert (claims["sub"], claims["kind"], claims["video"]["room"]) == ("face", "agent", "room")
        assert claims["attributes"] == {ON_BEHALF: AGENT}
        await avatar.aclose()
        assert stub.ended == ["key"]
        stub.answers = [403]
        with pytest.raises(APIStatusError, match="Not now"):
            await AvatarSession(url=url).start(AgentSession(), room, **KEYS)
        stub.answers = [502] * 3
        with pytest.raises(APIStatusError):
            await AvatarSession(url=url).start(AgentSession(), room, **KEYS)
        assert stub.answers == []
    with pytest.raises(APIConnectionError, match="does not answer"):
        await AvatarSession(url=url).start(AgentSession(), room, **KEYS)


async def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ECHO_RTC_URL", "LIVEKIT_URL", "LIVEKIT_API_KEY", "LIVEKIT_API_SECRET"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="ECHO_RTC_URL"):
        AvatarSession()
    monkeypatch.setenv("ECHO_RTC_URL", "https://avatar.example")
    room: Any = Room(Hub()).enter(AGENT, OF_AGENT)
    with pytest.raises(InputError, match="LIVEKIT_API_SECRET"):
        await AvatarSession().start(AgentSession(), room, livekit_url=URL)
    room.name = ""
    with pytest.raises(InputError, match="no name yet"):
        await AvatarSession().start(AgentSession(), room, **KEYS)


async def test_a_server_says_why_it_joins_no_room() -> None:
    hub = Hub()
    async with server(hub) as (url, _), asyncio.timeout(30), aiohttp.ClientSession() as http:

        async def refused(body: object, kind: str = "application/json") -> tuple[int, str]:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            async with http.post(f"{url}/livekit", data=data, headers={"Content-Type": kind}) as response:
                return response.status, (await response.json())["detail"]

        wish = {"livekit_url": URL, "livekit_token": "t"}
        assert (await refused(wish, "text/plain"))[0] == 415
        assert (await refused(b"{"))[0] == 400
        assert (await refused([]))[0] == 400
        assert (await refused({"livekit_url": URL}))[1].startswith("livekit_token is missing")
        assert (await refused({**wish, "avatar": 5}))[1].startswith("avatar is of the type int")
        assert (await refused({**wish, "avatar": "nobody"}))[0] == 422
        assert (await refused({**wish, "livekit_url": "wss://169.254.169.254"}))[0] == 403
        assert await refused(wish) == (
            422,
            "The livekit_token cannot be read; send an access token of LiveKit, which is a JWT.",
        )


async def test_without_the_flag_or_the_extra_it_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TestCardEngine(FORMAT)
    await engine.start(lambda _: None)
    manager = StreamManager(engine, ManagerOptions())
    health = Health(engine, Lifecycle(Phase.READY), "testcard", lambda: ())
    async with (
        TestServer(create_app(manager, health, STATIC, gallery_of(FakeLibrary()))) as running,
        aiohttp.ClientSession() as http,
        http.post(running.make_url("/livekit"), json={}) as response,
    ):
        assert response.status == 501
        assert "--livekit-host" in (await response.json())["detail"]
    assert _rooms(Settings(), manager, engine) is None
    monkeypatch.setitem(sys.modules, "livekit", None)
    monkeypatch.delitem(sys.modules, "echo_rtc.participant.rooms")
    with pytest.raises(SettingsError, match=r'livekit is not installed; run pip install "echo-rtc\[livekit\]"'):
        _rooms(Settings(livekit_host=("livekit.example",)), manager, engine)
    await manager.close()
    await engine.close()
