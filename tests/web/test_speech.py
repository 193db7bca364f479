"""Streams that are spoken to, over real HTTP and a real WebSocket, with the test card: no microphone, no viewer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import ClientWebSocketResponse, WSMsgType, WSServerHandshakeError, web
from aiohttp.test_utils import TestClient, TestServer

from echo_rtc.clips import ClipFormat
from echo_rtc.engine.testcard import TestCardEngine
from echo_rtc.rtc.manager import ManagerOptions, StreamManager
from echo_rtc.tts.voices import Spoken, Voice
from echo_rtc.web.app import Access, AppOptions, create_app
from echo_rtc.web.auth import Authorisation, Right, mint
from echo_rtc.web.health import Health, Lifecycle, Phase
from echo_rtc.web.text_speech import TextSpeeches
from tests.web.conftest import FakeLibrary, gallery_of

STATIC = Path(__file__).parents[2] / "static"
FORMAT = ClipFormat(fps=12, clip_frames=6, width=32, height=32)
SECRET = "a-secret-of-thirty-two-characters-1"
HALF = np.resize(np.repeat(np.array([9000, -9000], "<i2"), 60), 12_000).tobytes()
"""Half a second of 200 Hz at 24 kHz."""

Client = Callable[[TestServer], Awaitable[TestClient[web.Request, web.Application]]]
Server = Callable[[web.Application], Awaitable[TestServer]]


@dataclass
class Stage:
    """A client of a real application, and its streams."""

    client: TestClient[web.Request, web.Application]
    manager: StreamManager

    async def open(self, **wishes: str) -> dict[str, str]:
        response = await self.client.post("/streams", json=wishes)
        assert response.status == 201, await response.text()
        opened: dict[str, str] = await response.json()
        assert response.headers["Location"] == opened["stream"]
        return opened


async def until(socket: ClientWebSocketResponse, kind: str) -> dict[str, Any]:
    """The next message of this kind."""
    while True:
        message = json.loads(await socket.receive_str(timeout=10))
        if message["type"] == kind:
            found: dict[str, Any] = message
            return found


async def free_channel(
    client: TestClient[web.Request, web.Application], address: str, headers: dict[str, str] | None = None
) -> ClientWebSocketResponse:
    """A channel, as soon as the server has noticed that the speaker before has left."""
    for _ in range(1000):
        with suppress(WSServerHandshakeError):
            return await client.ws_connect(address, headers=headers)
    raise AssertionError("the channel stays taken")


@pytest.fixture
async def make_stage(aiohttp_client: Client, aiohttp_server: Server) -> AsyncIterator[Callable[..., Awaitable[Stage]]]:
    made: list[tuple[StreamManager, TestCardEngine]] = []

    async def make(access: Access, voice: Voice | None = None) -> Stage:
        engine = TestCardEngine(FORMAT)
        await engine.start(lambda _: None)
        manager = StreamManager(engine, ManagerOptions(max_streams=2, speech_timeout_s=60.0))
        made.append((manager, engine))
        health = Health(engine, Lifecycle(Phase.READY), "testcard", lambda: (), free_places=lambda: manager.free)
        texts = TextSpeeches(voice)
        app = create_app(manager, health, STATIC, gallery_of(FakeLibrary()), AppOptions(access, texts=texts))
        return Stage(await aiohttp_client(await aiohttp_server(app)), manager)

    yield make
    for manager, engine in made:
        await manager.close()
        await engine.close()


async def test_pushed_speech_is_said_and_reported(make_stage: Callable[..., Awaitable[Stage]]) -> None:
    stage = await make_stage(Access(authorisation=Authorisation.of(None, None, SECRET)))
    opened = await stage.open(name="studio")
    assert opened["whep"] == "/whep/studio"
    operator = {"Authorization": f"Bearer {SECRET}"}
    metrics = await (await stage.client.get("/metrics", headers=operator)).text()
    assert 'echo_rtc_streams_by_source{source="pushed"} 1.0' in metrics
    assert 'echo_rtc_streams_by_source{source="microphone"} 0.0' in metrics
    state = await (await stage.client.get("/admin/state", headers=operator)).json()
    assert [each["source"] for each in state["streams"]] == ["pushed"]
    async with stage.client.ws_connect(opened["speech"]) as socket:
        assert (await until(socket, "session.state_updated"))["state"] == "connected"
        await socket.send_bytes(HALF)
        await socket.send_str("{")
        assert (await until(socket, "error"))["code"] == "bad_message"
        await socket.send_json({"type": "agent.speak_end"})
        assert (await until(socket, "agent.speak_started"))["event_id"] == "event-1"
        assert (await until(socket, "session.buffer"))["queued_ms"] <= 500
        ended = await until(socket, "agent.speak_ended")
        assert ended["played_ms"] == pytest.approx(500, abs=3)
        await socket.send_bytes(HALF * 8)
        await until(socket, "agent.speak_started")
        await socket.send_json({"type": "agent.interrupt"})
        cut = await until(socket, "agent.speak_interrupted")
        assert 0 <= cut["played_ms"] < 500
        response = await stage.client.delete(opened["stream"])
        assert response.status == 204
        assert (await until(socket, "session.state_updated"))["state"] == "closing"
        assert (await until(socket, "session.state_updated"))["state"] == "closed"
        assert (await socket.receive(timeout=10)).type is WSMsgType.CLOSE
    assert (await stage.client.get(opened["stream"])).status == 404


async def test_a_text_is_interrupted_and_a_lost_speaker_heard(make_stage: Callable[..., Awaitable[Stage]]) -> None:
    stage = await make_stage(Access(), HalfSecondVoice())
    opened = await stage.open()
    async with stage.client.ws_connect(opened["speech"]) as socket:
        await socket.send_json({"type": "agent.speak_text", "text": "One. " * 20, "event_id": "text"})
        await socket.send_json({"type": "agent.speak_text", "text": "Never said.", "event_id": "behind"})
        await until(socket, "agent.speak_started")
        await socket.send_json({"type": "agent.interrupt"})
        cut, behind = [await until(socket, "agent.speak_interrupted") for _ in range(2)]
        assert (cut["event_id"], behind["event_id"], behind["played_ms"]) == ("text", "behind", 0)
        assert 0 <= cut["played_ms"] < 500
        await socket.send_bytes(HALF + HALF)
        assert (await until(socket, "agent.speak_started"))["event_id"] == "event-1"
    # The speaker has gone in the middle of an event; another one is told how it ends.
    async with await free_channel(stage.client, opened["speech"]) as socket:
        ended = await until(socket, "agent.speak_ended")
        assert (ended["event_id"], ended["played_ms"]) == ("event-1", pytest.approx(1000, abs=6))
        async with asyncio.timeout(10):
            while (await (await stage.client.get(opened["stream"])).json())["state"] != "idle":  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_one_client_speaks_at_a_time(make_stage: Callable[..., Awaitable[Stage]]) -> None:
    stage = await make_stage(Access())
    opened = await stage.open()
    async with stage.client.ws_connect(opened["speech"]) as first:
        await until(first, "session.state_updated")
        with pytest.raises(WSServerHandshakeError) as refused:
            await stage.client.ws_connect(opened["speech"])
        assert refused.value.status == 409
        await first.send_bytes(HALF)
    async with await free_channel(stage.client, opened["speech"]) as second:
        # What the first one pushed is said to its end.
        assert (await until(second, "agent.speak_ended"))["played_ms"] == pytest.approx(500, abs=3)


async def test_places_names_and_wishes_are_checked(make_stage: Callable[..., Awaitable[Stage]]) -> None:
    stage = await make_stage(Access())
    first = await stage.open(name="studio")
    assert (await stage.client.post("/streams", json={"name": "studio"})).status == 409
    assert (await stage.client.post("/streams", json={"avatar": "nobody"})).status == 422
    assert (await stage.client.post("/streams", json={"name": 5})).status == 400
    assert (await stage.client.post("/streams", data=b"{", headers={"Content-Type": "text/plain"})).status == 415
    second = await stage.open()
    assert second["stream"].rpartition("/")[2] not in second["whep"]
    assert (await stage.client.post("/streams")).status == 503
    assert (await stage.client.get(first["speech"])).status == 426
    assert (await stage.client.get(first["speech"] + "?rate=7")).status == 400
    assert (await stage.client.get("/streams/nobody/speech")).status == 404
    assert (await stage.client.get(first["speech"], headers={"Origin": "https://evil.example"})).status == 403


async def test_speaking_needs_a_token_for_the_streams_name(
    make_stage: Callable[..., Awaitable[Stage]],
) -> None:
    stage = await make_stage(Access(authorisation=Authorisation.of(None, SECRET)))
    rights = frozenset({Right.PUBLISH, Right.VIEW})
    good, other = (mint(SECRET, rights, name, 60) for name in ("studio", "kitchen"))
    viewer = mint(SECRET, frozenset({Right.VIEW}), "studio", 60)
    assert (await stage.client.post("/streams")).status == 401
    response = await stage.client.post("/streams", headers={"Authorization": f"Bearer {good}"})
    speech = (await response.json())["speech"]
    for token, status in ((other, 403), (viewer, 403), ("none-of-ours", 401)):
        refused = await stage.client.get(speech, headers={"Authorization": f"Bearer {token}"})
        assert refused.status == status
        async with stage.client.ws_connect(speech) as socket:
            await socket.send_json({"type": "auth", "token": token})
            assert (await socket.receive(timeout=10)).type is WSMsgType.CLOSE
    async with stage.client.ws_connect(speech, headers={"Authorization": f"Bearer {good}"}) as socket:
        assert (await until(socket, "session.state_updated"))["state"] == "connected"
    # What is meant for a proxy in front is no token.
    async with await free_channel(stage.client, speech, {"Authorization": "Basic eDp5"}) as socket:
        await socket.send_json({"type": "auth", "token": good})
        assert (await until(socket, "session.state_updated"))["state"] == "connected"
    async with await free_channel(stage.client, speech) as socket:
        await socket.send_json({"type": "auth", "token": good})
        assert (await until(socket, "session.state_updated"))["state"] == "connected"


class HalfSecondVoice:
    """Says every sentence in half a second."""

    async def say(self, sentence: str) -> AsyncGenerator[Spoken, None]:
        yield Spoken(HALF, 24_000)

    async def close(self) -> None: ...


async def test_text_is_said_by_request_and_by_message(make_stage: Callable[..., Awaitable[Stage]]) -> None:
    stage = await make_stage(Access(), HalfSecondVoice())
    opened = await stage.open()
    address = f"{opened['stream']}/speak"
    async with stage.client.ws_connect(opened["speech"]) as socket:
        response = await stage.client.post(address, json={"text": "Hello. Bye.", "event_id": "a"})
        assert (response.status, await response.json()) == (202, {"event_id": "a"})
        await socket.send_json({"type": "agent.speak_text", "text": "Again."})
        assert (await until(socket, "agent.speak_started"))["event_id"] == "a"
        assert (await until(socket, "agent.speak_ended"))["played_ms"] == pytest.approx(1000, abs=6)
        assert (await until(socket, "agent.speak_ended"))["event_id"] == "text-1"
        for content, status in (({"text": "..."}, 400), ({}, 400), ([], 400), ({"text": "a", "event_id": 5}, 400)):
            assert (await stage.client.post(address, json=content)).status == status
        assert (await stage.client.post(address, data=b"a")).status == 415
        response = await stage.client.post(address, json={"text": "Once more.", "event_id": "a"})
        assert (response.status, response.headers.get("Retry-After")) == (409, None), "the event stays over"
        assert (await response.json())["type"].endswith(":conflict")
    assert (await stage.client.post("/streams/nothing/speak", json={"text": "a"})).status == 404


async def test_text_without_a_voice_is_501(make_stage: Callable[..., Awaitable[Stage]]) -> None:
    stage = await make_stage(Access())
    opened = await stage.open()
    response = await stage.client.post(f"{opened['stream']}/speak", json={"text": "Hello."})
    assert response.status == 501
    assert "--tts-url" in (await response.json())["detail"]


async def test_text_needs_a_token_for_the_streams_name(make_stage: Callable[..., Awaitable[Stage]]) -> None:
    stage = await make_stage(Access(authorisation=Authorisation.of(None, SECRET)), HalfSecondVoice())
    rights = frozenset({Right.PUBLISH, Right.VIEW})
    good, other = (mint(SECRET, rights, name, 60) for name in ("studio", "kitchen"))
    opened = await (await stage.client.post("/streams", headers={"Authorization": f"Bearer {good}"})).json()
    for token, status in ((None, 401), (other, 403), (good, 202)):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        response = await stage.client.post(f"{opened['stream']}/speak", json={"text": "Hello."}, headers=headers)
        assert response.status == status
