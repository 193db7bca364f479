"""Attacks on streams of pushed speech, by who may speak to them and by who may not: rows of the table of ``siege``."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from echo_rtc.bench.support.siege import TOKEN, AttackSucceededError, Doors, NamedAttack, Target

PCM = bytes(2 * 480)
"""20 ms of silence at 24 kHz."""
CRUMB = bytes(2)
MOST_CRUMBS = 2_000
AUTH_LIMIT_S = 8.0
"""By then a socket without a token must be closed: the limit and some grace."""
ANSWER_S = 2.0
SPEAKERS = 40
NONSENSE: tuple[str | bytes, ...] = (
    "",
    "{",
    "[" * 50_000,
    '{"type": ' * 5_000,
    '{"type": "session.keep_alive", "text": [' + "[]," * 400_000 + "[]]}",
    "null",
    '{"type": 7}',
    '{"type": "agent.speak", "audio": "%"}',
    '{"type": "agent.speak", "audio": "AAAA"}',
    '{"type": "agent.speak", "audio": 5, "event_id": []}',
    '{"type": "agent.speak", "audio": "", "event_id": "' + "x" * 1_000 + '"}',
    '{"type": "agent.speak", "audio": "", "text": "' + "x" * 10_000 + '"}',
    '{"type": "agent.speak_text", "text": "\\ud800"}',
    '{"type": "agent.speak_end", "event_id": "nothing"}',
    '{"type": "' + "\\u202e" * 1_000 + '"}',
    b"\x00",
)
"""Each is answered by one error."""


async def nonsense(target: Target, seconds: float) -> None:
    """A speaker sends messages that are none; each is one error, and the session goes on."""
    async with _stream(target) as stream, stream.speaker() as socket:
        began, sent = time.monotonic(), 0
        while time.monotonic() - began < seconds:
            await _send(socket, NONSENSE[sent % len(NONSENSE)])
            sent += 1
            kind = (await _next(socket)).get("type")
            if kind != "error":
                raise AttackSucceededError(f"nonsense is answered by {kind}")
        await stream.must_speak(socket)


async def too_large(target: Target, seconds: float) -> None:
    """Messages beyond the limit end the session, each time."""
    large = (json.dumps({"type": "agent.speak", "audio": "A" * 1_500_000}), "x" * 3_000_000, bytes(3_000_000))
    began, sent = time.monotonic(), 0
    async with _stream(target) as stream:
        while time.monotonic() - began < seconds:
            async with stream.speaker() as socket:
                await _send(socket, large[sent % len(large)])
                sent += 1
                await _must_close(socket, "a speaker whose message was too large", ANSWER_S)
        async with stream.speaker() as socket:
            await stream.must_speak(socket)


async def crumbs(target: Target, seconds: float) -> None:
    """Thousands of events of one sample each; who sends them may still interrupt."""
    async with _stream(target) as stream:
        async with stream.speaker() as socket:
            began, number = time.monotonic(), 0
            audio = base64.b64encode(CRUMB).decode()
            reading = asyncio.create_task(_drain(socket))
            # What the system's buffers hold is read to its end, and no more than that is wanted here.
            while time.monotonic() - began < seconds and number < MOST_CRUMBS and not reading.done():
                number += 1
                await socket.send_json({"type": "agent.speak", "audio": audio, "event_id": str(number), "text": "word"})
            reading.cancel()
            await asyncio.wait({reading})
        # What is queued of them is silenced for the next speaker.
        async with stream.speaker() as socket:
            await socket.send_json({"type": "agent.interrupt"})
            await stream.must_speak(socket)


async def late_tokens(target: Target, seconds: float) -> None:
    """Sockets that never send their token, that send other things, or a viewer's token, for as long as they may."""
    firsts: tuple[str | bytes | None, ...] = (
        None,
        "{",
        '{"type": "agent.interrupt"}',
        PCM,
        json.dumps({"type": "auth", "token": target.view_token}),
        json.dumps({"type": "auth", "token": ["x"] * 1_000}),
    )
    async with _stream(target) as stream:

        async def one(number: int) -> None:
            async with aiohttp.ClientSession(target.url) as http, http.ws_connect(stream.speech) as socket:
                first = firsts[number % len(firsts)]
                if first is not None:
                    await _send(socket, first)
                await _must_close(socket, "a speaker without a token", AUTH_LIMIT_S)

        await asyncio.gather(*(one(number) for number in range(SPEAKERS)))


async def many_speakers(target: Target, seconds: float) -> None:
    """Dozens who want to speak to one stream at once: one may, the others get 409 or are told that it is busy."""
    async with _stream(target) as stream, stream.speaker() as first:
        began = time.monotonic()

        async def other() -> None:
            with contextlib.suppress(aiohttp.WSServerHandshakeError):
                async with stream.http.ws_connect(stream.speech) as socket:
                    if (await _next(socket)).get("code") != "busy":
                        raise AttackSucceededError("two speak at once")

        while time.monotonic() - began < seconds:
            await asyncio.gather(*(other() for _ in range(SPEAKERS)))
        await stream.must_speak(first)


async def interruptions(target: Target, seconds: float) -> None:
    """A speaker who interrupts itself thousands of times."""
    async with _stream(target) as stream:
        async with stream.speaker() as socket:
            reading = asyncio.create_task(_drain(socket))
            began = time.monotonic()
            while time.monotonic() - began < seconds:
                await socket.send_bytes(PCM * 50)
                await socket.send_json({"type": "agent.interrupt"})
            reading.cancel()
            await asyncio.wait({reading})
        async with stream.speaker() as socket:
            await stream.must_speak(socket)


async def texts(target: Target, seconds: float) -> None:
    """Texts by the hundred on the channel and by HTTP, with interruptions between them."""
    async with _stream(target) as stream:
        async with stream.speaker() as socket:
            reading = asyncio.create_task(_drain(socket))
            began, number = time.monotonic(), 0
            while time.monotonic() - began < seconds:
                number += 1
                await socket.send_json({"type": "agent.speak_text", "text": "One. Two! Three? " * 200})
                async with stream.http.post(stream.speak, json={"text": "word " * 800}) as response:
                    if response.status not in (202, 429):
                        raise AttackSucceededError(f"a text gets {response.status}")
                if number % 10 == 0:
                    await socket.send_json({"type": "agent.interrupt"})
            reading.cancel()
            await asyncio.wait({reading})
        async with stream.speaker() as socket:
            await socket.send_json({"type": "agent.interrupt"})
            await stream.must_speak(socket)


async def deaf_speakers(target: Target, seconds: float) -> None:
    """A speaker who asks for an error thousands of times and reads none is sent away."""
    async with _stream(target) as stream:
        async with stream.speaker() as socket:
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(seconds + 10 * ANSWER_S):
                    while not socket.closed:
                        await socket.send_str("{" * 4_000)
        async with stream.speaker() as socket:
            await stream.must_speak(socket)


ATTACKS = (
    NamedAttack("speech that is none", nonsense, Doors.OPEN),
    NamedAttack("speech messages too large", too_large, Doors.OPEN),
    NamedAttack("thousands of tiny events", crumbs, Doors.OPEN),
    NamedAttack("speakers without a token", late_tokens),
    NamedAttack("many speakers at once", many_speakers, Doors.OPEN),
    NamedAttack("floods of interruptions", interruptions, Doors.OPEN),
    NamedAttack("floods of text", texts, Doors.OPEN),
    NamedAttack("speakers who read nothing", deaf_speakers, Doors.OPEN),
)


class _Stream:
    """A stream of pushed speech, and what the attacker knows of it."""

    def __init__(self, http: aiohttp.ClientSession, opened: dict[str, str]) -> None:
        self.http = http
        self.address = opened["stream"]
        self.speech = opened["speech"]
        self.speak = f"{opened['stream']}/speak"

    @asynccontextmanager
    async def speaker(self) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """The channel, once the speaker before has left it."""
        async with asyncio.timeout(10 * ANSWER_S):
            while True:
                try:
                    socket = await self.http.ws_connect(self.speech, max_msg_size=0)
                    break
                except aiohttp.WSServerHandshakeError:
                    await asyncio.sleep(0.05)
        try:
            await _next(socket)
            yield socket
        finally:
            with contextlib.suppress(ConnectionError):
                await socket.close()

    async def must_speak(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Raises AttackSucceededError unless what is pushed now is said."""
        await socket.send_json(
            {"type": "agent.speak", "audio": base64.b64encode(PCM * 50).decode(), "event_id": "last"}
        )
        await socket.send_json({"type": "agent.speak_end", "event_id": "last"})
        try:
            async with asyncio.timeout(10 * ANSWER_S):
                while (message := await _next(socket)).get("event_id") != "last":
                    pass
        except TimeoutError:
            raise AttackSucceededError("the stream says nothing any more") from None
        if message["type"] != "agent.speak_started":
            raise AttackSucceededError(f"speech is answered by {message['type']}")


@asynccontextmanager
async def _stream(target: Target) -> AsyncIterator[_Stream]:
    """A stream, and the client that may speak to it."""
    headers = {} if target.view_token is None else {"Authorization": f"Bearer {TOKEN}"}
    async with aiohttp.ClientSession(target.url, headers=headers) as http:
        async with http.post("/streams") as response:
            response.raise_for_status()
            stream = _Stream(http, await response.json())
        try:
            yield stream
        finally:
            async with http.delete(stream.address):
                pass


async def _send(socket: aiohttp.ClientWebSocketResponse, message: str | bytes) -> None:
    with contextlib.suppress(ConnectionError):
        await (socket.send_str(message) if isinstance(message, str) else socket.send_bytes(message))


async def _next(socket: aiohttp.ClientWebSocketResponse) -> dict[str, object]:
    """The next message. Raises AttackSucceededError where none comes."""
    try:
        message = await socket.receive(timeout=10 * ANSWER_S)
    except TimeoutError:
        raise AttackSucceededError("a message gets no answer") from None
    if message.type is not aiohttp.WSMsgType.TEXT:
        raise AttackSucceededError("the session has ended")
    found: dict[str, object] = json.loads(message.data)
    return found


async def _drain(socket: aiohttp.ClientWebSocketResponse) -> None:
    async for _ in socket:
        pass


async def _must_close(socket: aiohttp.ClientWebSocketResponse, what: str, within_s: float) -> None:
    """Raises AttackSucceededError unless the server closes the channel in time."""
    try:
        async with asyncio.timeout(within_s):
            await _drain(socket)
    except TimeoutError:
        raise AttackSucceededError(f"{what} stays connected") from None
