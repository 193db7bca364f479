"""A face of a server elsewhere: what is sent to it and what it reports; and a server that refuses, or is none."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import numpy as np
import pytest
from aiohttp import WSMessage, WSMsgType, web
from aiohttp.test_utils import TestServer

from echo_rtc.clips import MEDIA_RATE
from echo_rtc.errors import InputError, RemoteError
from echo_rtc.remote.face import QUEUE_S, RemoteFace
from echo_rtc.stream.speech import SpeechReport, SpeechStep
from tests.support.virtual import run


class FakeServer:
    """The server's end of the speech channel of ``face``. What it receives it keeps in ``got``; it reports only what
    a test tells."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self._out: asyncio.Queue[str | Exception] = asyncio.Queue()
        http: Any = self
        self.face = RemoteFace("https://avatar.example", http)
        channel: Any = self
        self.face._channel = channel
        self.face._tasks.append(asyncio.create_task(self.face._read(channel)))
        self.face._tasks.append(asyncio.create_task(self.face._watch()))
        self.reports: list[SpeechReport] = []
        self.face.report_to(self.reports.append)

    async def send_str(self, data: str) -> None:
        self.got.append(json.loads(data))

    async def tell(self, *messages: object) -> None:
        """Sends each, text as it is and the rest as JSON, and waits until they are reported. An exception breaks the
        channel."""
        for message in messages:
            self._out.put_nowait(message if isinstance(message, str | Exception) else json.dumps(message))
        await asyncio.sleep(0.1)

    def __aiter__(self) -> FakeServer:
        return self

    async def __anext__(self) -> WSMessage:
        data = await self._out.get()
        if isinstance(data, Exception):
            raise data
        return WSMessage(WSMsgType.TEXT, data, None)

    async def close(self) -> None:
        """As a channel, and as a session of HTTP."""

    def seconds(self, event: str) -> float:
        """Sound that was received of an event."""
        audio = [message["audio"] for message in self.got if message.get("event_id") == event and "audio" in message]
        return sum(len(base64.b64decode(each)) for each in audio) / 2 / MEDIA_RATE


def quiet(seconds: float) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.zeros(round(seconds * MEDIA_RATE), np.int16)


def test_an_event_interrupted_before_it_is_sent_is_not_awaited() -> None:
    async def live() -> None:
        server = FakeServer()
        async with server.face as face:
            assert await face.say(quiet(QUEUE_S + 2), MEDIA_RATE, "a")
            waiting = asyncio.create_task(face.say(quiet(1.0), MEDIA_RATE, "b"))
            await asyncio.sleep(0.1)
            await face.interrupt()
            assert not await waiting
            assert server.seconds("b") == 0
            async with asyncio.timeout(1.0):
                await face.said()
            assert await face.say(quiet(1.0), MEDIA_RATE, "c")
            await face.end_event("c")
            said = asyncio.create_task(face.said())
            # The reports of what was interrupted come late, and end nothing else.
            await server.tell({"type": "agent.speak_interrupted", "event_id": "a", "played_ms": 100})
            assert server.reports == [SpeechReport(SpeechStep.INTERRUPTED, "a", 0.1)]
            assert not said.done()
            await server.tell({"type": "agent.speak_ended", "event_id": "c", "played_ms": 1000})
            async with asyncio.timeout(1.0):
                await said

    run(live())


def test_an_interruption_while_the_event_before_ends_drops_both() -> None:
    async def live() -> None:
        server = FakeServer()
        async with server.face as face:
            # A filter of another rate holds sound back, which is sent with the end.
            await face.say(quiet(QUEUE_S + 3)[::2].copy(), MEDIA_RATE // 2, "a")
            await face.say(quiet(1.0)[::2].copy(), MEDIA_RATE // 2, "a")
            face._said_s += 10.0
            waiting = asyncio.create_task(face.say(quiet(1.0), MEDIA_RATE, "b"))
            await asyncio.sleep(0.1)
            await face.interrupt()
            assert not await waiting
            assert server.seconds("b") == 0
            assert server.got[-1] == {"type": "agent.interrupt"}

    run(live())


@pytest.mark.parametrize("code", ["queue_full", "event_over"])
def test_an_event_that_the_server_refuses_is_over(code: str) -> None:
    async def live() -> None:
        server = FakeServer()
        async with server.face as face:
            await face.say(quiet(1.0), MEDIA_RATE, "a")
            said = asyncio.create_task(face.said())
            await server.tell({"type": "error", "code": "tts_failed", "detail": "its end is reported", "event_id": "a"})
            await server.tell({"type": "error", "code": code, "detail": "of another", "event_id": "z"})
            assert not said.done()
            await server.tell({"type": "error", "code": code, "detail": "why", "event_id": "a"})
            async with asyncio.timeout(1.0):
                await said
            assert server.reports == [SpeechReport(SpeechStep.INTERRUPTED, "a")]

    run(live())


def test_a_malformed_message_is_ignored() -> None:
    async def live() -> None:
        server = FakeServer()
        async with server.face as face:
            await face.say(quiet(1.0), MEDIA_RATE, "a")
            await server.tell("{", "[" * 100_000, [], {}, {"type": ["error"]}, {"type": "agent.speak_ended"})
            await server.tell({"type": "error", "code": "queue_full", "event_id": ["a"]})
            await server.tell({"type": "error", "code": ["queue_full"], "event_id": "a"})
            lengths: list[object] = ["1", 10**400, -1, float("nan"), float("inf")]
            await server.tell(
                *({"type": "agent.speak_started", "event_id": "a", "played_ms": length} for length in lengths)
            )
            assert server.reports == [SpeechReport(SpeechStep.STARTED, "a")] * len(lengths)
            assert not face._ended.is_set()

    run(live())


def test_the_face_ends_with_its_channel() -> None:
    async def live() -> None:
        server = FakeServer()
        async with server.face as face:
            await face.say(quiet(1.0), MEDIA_RATE, "a")
            await server.tell(RuntimeError("the channel broke"))
            async with asyncio.timeout(1.0):
                await face.said()
            await face.end_event("a")
            with pytest.raises(InputError, match="has ended"):
                await face.say(quiet(1.0), MEDIA_RATE, "b")

    run(live())


async def refusing(request: web.Request) -> web.Response:
    if request.headers.get("Authorization") != "Bearer good":
        return web.json_response({"detail": "A token is needed."}, status=401)
    raise web.HTTPTemporaryRedirect("http://127.0.0.1:1/streams")


async def test_refusals_are_told_and_redirects_not_followed() -> None:
    app = web.Application()
    app.add_routes([web.post("/streams", refusing)])
    async with TestServer(app) as server:
        url = str(server.make_url("/"))
        with pytest.raises(RemoteError, match=r"refuses \(401\): A token is needed"):
            await RemoteFace.open(url)
        with pytest.raises(RemoteError, match=r"refuses \(307\): it says no more"):
            await RemoteFace.open(url, "good")
    with pytest.raises(RemoteError, match="cannot be used"):
        await RemoteFace.open(url)


async def test_a_server_of_another_kind_is_told() -> None:
    async def other(request: web.Request) -> web.Response:
        return web.json_response([], status=201)

    app = web.Application()
    app.add_routes([web.post("/streams", other)])
    async with TestServer(app) as server:
        with pytest.raises(RemoteError, match="cannot be used"):
            await RemoteFace.open(str(server.make_url("/")))
