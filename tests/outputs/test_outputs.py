"""Streams pushed to a WHIP server of others and to one of ours: what arrives there, and what outlives what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from aiohttp.test_utils import TestServer

from echo_rtc.bench.stream import babble
from echo_rtc.bench.support.calls import Caller
from echo_rtc.bench.sync import Beeps, offsets
from echo_rtc.clips import MEDIA_RATE, ClipFormat
from echo_rtc.engine.testcard import TestCardEngine
from echo_rtc.errors import ConflictError, UnknownStreamError
from echo_rtc.outputs import backoff
from echo_rtc.outputs.hosts import HostRules
from echo_rtc.outputs.output import Connection
from echo_rtc.outputs.outputs import OutputOptions, Outputs
from echo_rtc.outputs.pushing import Pusher
from echo_rtc.outputs.whip import WhipError
from echo_rtc.rtc.manager import LOST, ManagerOptions, StreamManager
from echo_rtc.rtc.session import Role
from echo_rtc.stream.stream import Stream
from echo_rtc.web.app import create_app
from echo_rtc.web.health import Health, Lifecycle, Phase
from tests.outputs.far_side import FPS, far_side
from tests.rtc.test_calls import house, until
from tests.web.conftest import FakeLibrary, gallery_of

STATIC = Path(__file__).parents[2] / "static"
FORMAT = ClipFormat(fps=FPS, clip_frames=6, width=160, height=160)
TOKEN = "a-token-of-the-other-side"


@asynccontextmanager
async def studio() -> AsyncIterator[StreamManager]:
    engine = TestCardEngine(FORMAT, capacity=4)
    await engine.start(lambda _: None)
    manager = StreamManager(engine, ManagerOptions())
    try:
        yield manager
    finally:
        await manager.close()
        await engine.close()


async def opened(manager: StreamManager) -> Stream:
    """A new stream of pushed speech."""
    key = (await manager.open_speech("default")).key
    return manager.streams[key]


def outputs_of(manager: StreamManager, *hosts: str, most: int = 16, most_of_stream: int = 4) -> Outputs:
    options = OutputOptions(HostRules.of(hosts), most, most_of_stream)
    return Outputs(options, lambda stream_id: manager.streams.get(stream_id))


async def test_a_stream_is_pushed_in_sync_and_pushed_again_when_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_S", 0.3)
    async with far_side() as far, studio() as manager:
        outputs = outputs_of(manager, far.url)
        stream = await opened(manager)
        far.answers = [(503, {"Retry-After": "0"})]
        facts = outputs.start(stream.id, f"{far.url}/moved", TOKEN)
        assert (facts.state, facts.endpoint) == ("connecting", far.url)
        await until(lambda: outputs.states["live"] == 1)
        [facts] = outputs.of(stream.id)
        assert (facts.codec, facts.sound, facts.connections, facts.failures) == ("H264", True, 1, 1)
        assert TOKEN not in str(facts.as_json())
        assert "moved" not in str(facts.as_json())
        assert stream.watched

        speaker = stream.speaker
        assert speaker is not None
        speaker.say("beeps", Beeps.lasting(4.0, gap_s=(0.22, 0.3)).voice(0, round(4.4 * MEDIA_RATE)))
        speaker.complete("beeps")
        await until(lambda: not speaker.speaking)
        await asyncio.sleep(0.3)
        [session] = far.sessions.values()
        found = offsets(session, session.recording, settle_s=0.0)  # type: ignore[arg-type]
        assert len(found) >= 4
        assert np.percentile(np.abs(found), 95) <= 20

        await far.drop()
        await until(lambda: outputs.states["waiting"] == 1)
        waiting = outputs.find(stream.id, facts.id)
        assert waiting is not None
        assert waiting.retry_in_s is not None
        assert waiting.error == "the connection was closed by the other side or lost"
        await until(lambda: outputs.states["live"] == 1)
        assert await outputs.stop(stream.id, facts.id)
        assert not await outputs.stop(stream.id, facts.id)
        assert far.sessions == {}
        assert {token for _, _, token in far.requests} == {f"Bearer {TOKEN}"}
        assert [request[:2] for request in far.requests].count(("DELETE", "/sessions/1")) == 1
        assert not stream.watched


async def test_our_own_server_takes_the_sound_of_another() -> None:
    async with studio() as near, studio() as other:
        engine = other._engine
        health = Health(engine, Lifecycle(Phase.READY), "testcard", tuple, free_places=lambda: other.free)
        server = TestServer(create_app(other, health, STATIC, gallery_of(FakeLibrary())))
        await server.start_server()
        try:
            url = str(server.make_url("")).rstrip("/")
            outputs = outputs_of(near, url)
            stream = await opened(near)
            outputs.start(stream.id, f"{url}/whip/relay", None)
            await until(lambda: outputs.states["live"] == 1)
            [facts] = outputs.of(stream.id)
            assert (facts.codec, facts.sound) == (None, True)
            [relayed] = other.streams.values()
            await until(lambda: relayed.tally().counts["microphone_blocks", "used"] > 20)
            await near.close_stream(stream.id, "enough")
            await outputs.close()
            await until(lambda: not other.streams)
            assert outputs.of(stream.id) == []
        finally:
            await server.close()


async def test_failed_outputs_take_no_room_and_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(_: Pusher) -> Connection:
        raise WhipError("it answers 401", lasting=True)

    monkeypatch.setattr(Pusher, "connect", refused)
    async with studio() as manager:
        outputs = outputs_of(manager, "http://127.0.0.1:9", most=1, most_of_stream=1)
        stream = await opened(manager)

        async def push(path: str) -> str:
            output_id = outputs.start(stream.id, f"http://127.0.0.1:9/{path}", None).id
            await until(lambda: outputs.states["connecting"] == 0)
            return output_id

        first = await push("a")
        again = await push("a")
        assert outputs.find(stream.id, first) is None
        assert [facts.id for facts in outputs.of(stream.id)] == [again]
        for path in "bcdef":
            await push(path)
        assert outputs.states["failed"] == len(outputs.of(stream.id)) == 2
        for facts in outputs.of(stream.id):
            assert await outputs.stop(stream.id, facts.id)
        await push("a")
        assert repr(stream.ended._callbacks).count("Outputs.") == 1
        await outputs.close()


async def test_an_output_keeps_a_stream_whose_publisher_was_lost() -> None:
    async with house(options=ManagerOptions(linger_s=0.5)) as home:
        caller = Caller(babble)

        async def exchange(offer: str) -> str:
            return (await home.manager.publish("studio", offer, "default")).answer_sdp

        await caller.connect(exchange)
        [stream] = home.manager.streams.values()
        pushed = stream.add_viewer(None, with_sound=True)
        assert pushed.sound is not None
        await pushed.sound.get()
        await caller.close()
        await until(lambda: home.manager.peers[Role.PUBLISH] == 0)
        assert not stream.ended.done()
        assert await stream.ended == LOST


async def test_outputs_are_bounded_and_go_with_their_stream() -> None:
    async with studio() as manager:
        outputs = outputs_of(manager, "http://127.0.0.1:9", most=3, most_of_stream=2)
        first, second = [await opened(manager) for _ in range(2)]
        outputs.start(first.id, "http://127.0.0.1:9/a", None)
        with pytest.raises(ConflictError, match="there already"):
            outputs.start(first.id, "http://127.0.0.1:9/a", "another-token")
        outputs.start(first.id, "http://127.0.0.1:9/b", None)
        with pytest.raises(ConflictError, match="--max-outputs-per-stream"):
            outputs.start(first.id, "http://127.0.0.1:9/c", None)
        outputs.start(second.id, "http://127.0.0.1:9/a", None)
        with pytest.raises(ConflictError, match="--max-outputs allows"):
            outputs.start(second.id, "http://127.0.0.1:9/b", None)
        with pytest.raises(UnknownStreamError):
            outputs.start("unknown", "http://127.0.0.1:9/d", None)
        await until(lambda: outputs.states["waiting"] == 3)
        [facts, _] = outputs.of(first.id)
        assert facts.error == "http://127.0.0.1:9 cannot be reached (Connect call failed ('127.0.0.1', 9))"
        await manager.close_stream(first.id, "enough")
        await until(lambda: not outputs.of(first.id))
        await outputs.close()
        assert sum(outputs.states.values()) == 0
