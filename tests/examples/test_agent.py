"""The example of a voice agent with a face, against a stub of a server of the OpenAI Realtime API."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from aiohttp import WSMsgType, web
from aiortc import RTCPeerConnection
from aiortc.mediastreams import AudioStreamTrack

from echo_rtc.bench.support.calls import Caller, Heard
from echo_rtc.clips import S16Array
from examples.agent import RATE, application, call
from tests.examples.test_avatar_app import CARD

EXAMPLE = Path(__file__).parents[2] / "examples" / "agent.py"
ANSWER = np.resize(np.repeat(np.array([9000, -9000], "<i2"), 60), 3 * RATE)
LOUD = 3000
MOST_LINES = 100


class FakeFace:
    """A face that says nothing."""

    closed = False

    async def __aenter__(self) -> FakeFace:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.closed = True


class Realtime:
    """Answers with three seconds of sound at once, as soon as it has heard half a second, and interrupts itself by the
    caller's speech when it is told to."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.authorised = ""
        self.truncated: asyncio.Future[dict[str, object]] = asyncio.get_running_loop().create_future()
        self.closed = asyncio.Event()
        self._socket: web.WebSocketResponse | None = None

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        self.authorised = request.headers["Authorization"]
        self._socket = socket = web.WebSocketResponse()
        await socket.prepare(request)
        answered = False
        async for message in socket:
            assert message.type is WSMsgType.TEXT
            event = json.loads(message.data)
            if event["type"] == "conversation.item.truncate":
                self.truncated.set_result(event)
                continue
            assert event["type"] == "input_audio_buffer.append"
            self.heard += base64.b64decode(event["audio"])
            if not answered and len(self.heard) >= RATE:
                answered = True
                await self._answer("first", ANSWER)
        self.closed.set()
        return socket

    async def interrupt(self) -> None:
        assert self._socket is not None
        await self._socket.send_json({"type": "input_audio_buffer.speech_started"})

    async def _answer(self, item: str, pcm: S16Array) -> None:
        assert self._socket is not None
        for part in np.array_split(pcm, 10):
            delta = base64.b64encode(part.tobytes()).decode()
            await self._socket.send_json({"type": "response.output_audio.delta", "item_id": item, "delta": delta})
        await self._socket.send_json({"type": "response.output_audio.done", "item_id": item})


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= MOST_LINES


def test_a_start_without_an_address_is_one_sentence() -> None:
    environ = {name: value for name, value in os.environ.items() if name != "REALTIME_URL"}
    ended = subprocess.run([sys.executable, str(EXAMPLE)], env=environ, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, "REALTIME_URL is not set; see the head of examples/agent.py\n")


async def test_an_agent_that_is_not_there_ends_the_call(caplog: pytest.LogCaptureFixture) -> None:
    peer, face = RTCPeerConnection(), FakeFace()
    await call(peer, AudioStreamTrack(), face, "ws://127.0.0.1:9")  # type: ignore[arg-type]
    assert peer.connectionState == "closed"
    assert face.closed
    [record] = caplog.records
    assert record.getMessage().startswith("A call has ended: ClientConnectorError(")
    assert record.exc_info is None


async def test_an_agent_answers_and_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    realtime, heard = Realtime(), list[Heard]()
    speaking = asyncio.Event()

    def hear(sound: Heard) -> None:
        heard.append(sound)
        if np.abs(sound.pcm.astype(np.int32)).max() > LOUD:
            speaking.set()

    def murmur(start: int, count: int) -> S16Array:
        tone: S16Array = (1500 * np.sin(np.arange(start, start + count) * (np.pi / 60))).astype(np.int16)
        return tone

    stub = web.Application()
    stub.add_routes([web.get("/v1/realtime", realtime.serve)])
    stub_runner = web.AppRunner(stub)
    await stub_runner.setup()
    await web.TCPSite(stub_runner, "127.0.0.1", 0).start()
    runner = web.AppRunner(application(f"ws://127.0.0.1:{stub_runner.addresses[0][1]}/v1/realtime", **CARD))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/offer"
    caller, late = Caller(murmur, hear), Caller(murmur)
    try:
        async with aiohttp.ClientSession() as http, asyncio.timeout(60):

            async def exchange(offer: str) -> str:
                async with http.post(url, data=json.dumps({"sdp": offer, "type": "offer"})) as response:
                    response.raise_for_status()
                    return str((await response.json())["sdp"])

            await caller.connect(exchange)
            await speaking.wait()
            await realtime.interrupt()
            truncated = await realtime.truncated
            cut = len(heard)
            async with http.post(url, data=json.dumps(await offered(late))) as response:
                assert response.status == 503
            await asyncio.sleep(1.5)
            await caller.close()
            await realtime.closed.wait()
    finally:
        await asyncio.gather(caller.close(), late.close())
        await runner.cleanup()
        await stub_runner.cleanup()
    assert realtime.authorised == "Bearer key"
    assert np.frombuffer(realtime.heard, "<i2").astype(np.float64).std() > 500
    assert truncated["item_id"] == "first"
    loud = [np.abs(sound.pcm.astype(np.int32)).max() > LOUD for sound in heard]
    heard_ms = 20 * sum(loud)
    # What was heard by the interruption is known exactly; what was on its way by then leaves the jitter buffer later.
    assert isinstance(played_ms := truncated["audio_end_ms"], int)
    assert abs(heard_ms - played_ms) <= 100
    assert not any(loud[cut + 25 :])
    # The caller's own voice, which is quiet, never comes back; blocks in which the answer begins or ends may be quiet.
    assert sum(300 < np.abs(sound.pcm.astype(np.int32)).max() <= LOUD for sound in heard) <= 5


async def offered(caller: Caller) -> dict[str, str]:
    """A caller's offer, without a connection."""
    await caller.connection.setLocalDescription(await caller.connection.createOffer())
    return {"sdp": caller.connection.localDescription.sdp, "type": "offer"}
