"""Streams without a microphone: POST /streams opens one, a WebSocket at /streams/{id}/speech speaks to it.

The messages are those of the table in docs/http-api.md. The channel is read all the time, so that an interruption gets
through; what is too much is refused and not queued. Knows no WebRTC and no model.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from aiohttp import WSCloseCode, WSMsgType, hdrs, web

from echo_rtc.rtc.session import OpenedSpeech
from echo_rtc.stream.speech import Speaker
from echo_rtc.stream.speech_input import SpeechRefusedError
from echo_rtc.web.auth import Authorisation, bearer_of, grant_of, require_name, require_publish
from echo_rtc.web.bodies import json_object, read_json
from echo_rtc.web.connections import protect
from echo_rtc.web.cors import CrossOrigin
from echo_rtc.web.health import Health
from echo_rtc.web.limits import CLAIM, Limits
from echo_rtc.web.messages import MAX_PCM_BYTES, SPEECH_RATE, Message, MessageError, SpeechMessages, event_id_of
from echo_rtc.web.prefix import prefix_of
from echo_rtc.web.problems import Problem, ProblemType, sentence
from echo_rtc.web.signalling import choose_avatar, read_offer_body, unknown_stream
from echo_rtc.web.text_speech import NOT_CONFIGURED, LimitedTexts, TextSpeeches, checked_text

AUTH_TIMEOUT_S = 5.0
"""Time in which a browser must send its token as the first message."""
MAX_MESSAGE_BYTES = MAX_PCM_BYTES * 4 // 3 + 16 * 1024
"""The largest message: as much PCM as one may have in base64, its words and what stands around it."""
MAX_WAITING_MESSAGES = 1024
"""Messages that may wait for a client that does not read."""
TURN_S, MAX_PAUSE_S = 0.002, 0.1
"""A channel whose messages have taken this long pauses for as long, MAX_PAUSE_S at most, which is more than any message
takes: a mebibyte of PCM at 8 kHz takes 65 ms."""
BUFFER_EVERY_S = 0.5
"""How often a client is told how much is queued, while something is."""
RATES = range(8_000, 48_001)
"""Sample rates of pushed PCM, in Hz."""


class SpeechStreams(Protocol):
    """What this file asks of the streams."""

    async def open_speech(self, avatar: str, name: str | None = None, *, client: str = "") -> OpenedSpeech:
        """Raises OfferError, NameTakenError, CapacityError."""
        ...

    def speaker(self, key: str) -> Speaker | None:
        """Raises UnknownStreamError; None where the stream has a microphone."""
        ...

    def ending(self, key: str) -> asyncio.Future[str] | None: ...

    def name_of(self, key: str) -> str | None: ...


@dataclass(frozen=True, slots=True)
class SpeechAccess:
    """Which tokens and origins allow speaking to a stream, and how many texts a client may have said."""

    authorisation: Authorisation
    cross_origin: CrossOrigin
    limits: Limits

    def require_origin(self, request: web.Request) -> None:
        """Raises Problem 403 for a page of another origin that is not allowed: browsers open WebSockets anywhere."""
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None or self.cross_origin.allowed(request) is not None:
            return
        if urlsplit(origin).netloc.lower() != request.host.lower():
            raise Problem(403, f"Pages of {origin[:80]!r} may not speak here; --allow-origin lists those that may.")


class SpeechChannels:
    """The handlers of streams that are spoken to."""

    def __init__(self, streams: SpeechStreams, health: Health, access: SpeechAccess, texts: TextSpeeches) -> None:
        self._streams = streams
        self._texts = texts
        self._health = health
        self._access = access

    async def open(self, request: web.Request) -> web.StreamResponse:
        """201 with the addresses of the new stream; 400, 408, 409, 413, 415, 422 or 503 as a problem."""
        avatar, name = _wishes(request, await read_offer_body(request))
        name = grant_of(request).name if name is None else name
        require_name(request, name)
        self._health.require_ready()
        claim = request[CLAIM]
        opened = await self._streams.open_speech(choose_avatar(self._health, avatar), name, client=claim.caller.client)
        claim.keep(self._streams.ending(opened.key))
        here = f"{prefix_of(request)}/streams/{opened.key}"
        body = {"stream": here, "whep": f"{prefix_of(request)}/whep/{opened.name}", "speech": f"{here}/speech"}
        return web.json_response(body, status=201, headers={"Location": here, "Cache-Control": "no-store"})

    async def speak(self, request: web.Request) -> web.StreamResponse:
        """The channel; before it opens 400, 401, 403, 404, 409 or 426 as a problem."""
        key = request.match_info["id"]
        rate = _rate(request)
        self._access.require_origin(request)
        speaker, ending = self._speaker(key), self._streams.ending(key)
        asks = self._access.authorisation.required and bearer_of(request) is None
        if not asks:
            require_publish(request, self._access.authorisation, self._streams.name_of(key))
        socket = web.WebSocketResponse(max_msg_size=MAX_MESSAGE_BYTES, heartbeat=20.0, compress=False)
        if not socket.can_prepare(request).ok:
            raise Problem(426, "This is a WebSocket; connect to it as one.", headers={"Upgrade": "websocket"})
        await socket.prepare(request)
        if asks and not await self._token_comes(socket, key):
            await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=b"unauthorised")
            return socket
        if speaker.claimed:
            with suppress(ConnectionError):
                await socket.send_str(json.dumps({"type": "error", "code": "busy", "detail": "another client speaks"}))
            await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=b"busy")
            return socket
        speaker.claimed = True
        protect(request)
        try:
            texts = LimitedTexts.of(self._texts.of(speaker, ending), lambda: self._access.limits.count_text(request))
            await _Channel(socket, speaker, rate, ending, texts).run()
        finally:
            speaker.claimed = False
        return socket

    async def say_text(self, request: web.Request) -> web.StreamResponse:
        """202 with the event that says the text; 400, 401, 403, 404, 408, 409, 413, 415, 429 or 501 as a problem."""
        key = request.match_info["id"]
        self._access.require_origin(request)
        speaker = self._pushed(key)
        if not self._texts.configured:
            raise Problem(501, NOT_CONFIGURED)
        require_publish(request, self._access.authorisation, self._streams.name_of(key))
        text, event = _wanted_text(request, await read_offer_body(request))
        texts = self._texts.of(speaker, self._streams.ending(key))
        if texts is None:
            raise unknown_stream()
        try:
            event = texts.say(text, event)
        except SpeechRefusedError as error:
            raise _not_taken(error) from None
        return web.json_response({"event_id": event}, status=202, headers={"Cache-Control": "no-store"})

    def _pushed(self, key: str) -> Speaker:
        """Raises Problem 404 for an unknown stream, 409 for one that has a microphone."""
        speaker = self._streams.speaker(key)
        if speaker is None:
            raise Problem(409, "The stream has a microphone; open one by POST /streams.", ProblemType.NO_SPEECH)
        return speaker

    def _speaker(self, key: str) -> Speaker:
        """Raises Problem 404 for an unknown stream, 409 for one with a microphone or another speaker."""
        speaker = self._pushed(key)
        if speaker.claimed:
            detail = "Another client speaks to the stream; only one may at a time."
            raise Problem(409, detail, ProblemType.NO_SPEECH, {"Retry-After": "2"})
        return speaker

    async def _token_comes(self, socket: web.WebSocketResponse, key: str) -> bool:
        """Whether the first message is a token that allows to speak: browsers can send no header."""
        try:
            async with asyncio.timeout(AUTH_TIMEOUT_S):
                message = await socket.receive()
        except TimeoutError:
            return False
        if message.type is not WSMsgType.TEXT or len(message.data) > 16 * 1024:
            return False
        try:
            content = read_json(message.data)
            if not isinstance(content, dict) or content.get("type") != "auth":
                return False
            grant = self._access.authorisation.grant(str(content.get("token", "")))
        except (ValueError, Problem):
            return False
        return grant.may_publish(self._streams.name_of(key))


class _Channel:
    """One speaker's connection, from its first message to its end."""

    def __init__(
        self,
        socket: web.WebSocketResponse,
        speaker: Speaker,
        rate: int,
        ending: asyncio.Future[str] | None,
        texts: LimitedTexts | None,
    ) -> None:
        self._socket = socket
        self._speaker = speaker
        self._ending = ending
        self._out: asyncio.Queue[Message] = asyncio.Queue(MAX_WAITING_MESSAGES)
        self._messages = SpeechMessages(speaker, rate, self._send, texts)

    async def run(self) -> None:
        """Reads until the client leaves, breaks a bound, or the stream ends."""
        self._send({"type": "session.state_updated", "state": "connected"})
        forget = self._speaker.report_to(self._messages.report)
        tasks = [asyncio.create_task(work) for work in (self._write(), self._tell_buffer(), self._wait_for_end())]
        try:
            await self._read()
        finally:
            forget()
            self._messages.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self) -> None:
        clock = asyncio.get_running_loop().time
        worked_s = 0.0
        async for message in self._socket:
            if worked_s >= TURN_S:
                # What has come already is read without a pause, and others have to have their turns.
                await asyncio.sleep(min(worked_s, MAX_PAUSE_S))
                worked_s = 0.0
            begun = clock()
            if message.type is WSMsgType.TEXT:
                going_on = self._messages.text(message.data)
            elif message.type is WSMsgType.BINARY:
                going_on = self._messages.binary(message.data)
            else:
                return
            if not going_on:
                await self._flush()
                await self._socket.close(code=WSCloseCode.POLICY_VIOLATION, message=b"a bound was exceeded")
                return
            worked_s += clock() - begun

    async def _write(self) -> None:
        while True:
            message = await self._out.get()
            await self._socket.send_str(json.dumps(message))

    async def _flush(self) -> None:
        """What still waits is sent before the channel closes, unless the client has hung up."""
        with suppress(ConnectionError):
            while not self._out.empty():
                await self._socket.send_str(json.dumps(self._out.get_nowait()))

    async def _tell_buffer(self) -> None:
        told = False
        while True:
            await asyncio.sleep(BUFFER_EVERY_S)
            if self._speaker.speaking or told:
                told = self._speaker.speaking
                self._send({"type": "session.buffer", "queued_ms": round(1000 * self._speaker.queued_s)})

    async def _wait_for_end(self) -> None:
        if self._ending is None:
            return
        await asyncio.wait({self._ending})
        for state in ("closing", "closed"):
            self._send({"type": "session.state_updated", "state": state})
        await asyncio.sleep(0)
        await self._flush()
        await self._socket.close(code=WSCloseCode.OK)

    def _send(self, message: Message) -> None:
        try:
            self._out.put_nowait(message)
        except asyncio.QueueFull:
            # A client that reads nothing of a thousand messages is gone, or means harm.
            transport = self._socket._req.transport if self._socket._req is not None else None
            if transport is not None:
                transport.abort()


def _wishes(request: web.Request, body: bytes) -> tuple[str | None, str | None]:
    """Avatar and name that the body of POST /streams asks for. Raises Problem 400 or 415."""
    if not body:
        return None, None
    content = json_object(request, body, '{"avatar": "...", "name": "..."}, or nothing')
    for key in ("avatar", "name"):
        if content.get(key) is not None and not isinstance(content[key], str):
            raise Problem(400, f"{key} is {str(content[key])[:80]!r}; it must be text, or left out.")
    return content.get("avatar"), content.get("name")


def _wanted_text(request: web.Request, body: bytes) -> tuple[str, str | None]:
    """Text and event_id of the body of a text to be said. Raises Problem 400 or 415."""
    content = json_object(request, body, '{"text": "..."}')
    try:
        return checked_text(content.get("text")), event_id_of(content)
    except (ValueError, MessageError) as error:
        raise Problem(400, f"The body cannot be followed: {error}.") from None


def _not_taken(error: SpeechRefusedError) -> Problem:
    """Waiting helps where the queue is full; an event that is over stays so."""
    detail = sentence(str(error))
    if error.code == "event_over":
        return Problem(409, detail, ProblemType.CONFLICT)
    return Problem(429, detail, ProblemType.TOO_MANY, {"Retry-After": "5"})


def _rate(request: web.Request) -> int:
    """The rate that the address asks for. Raises Problem 400."""
    text = request.query.get("rate", str(SPEECH_RATE))
    if not text.isascii() or not text.isdigit() or len(text) > 6 or int(text) not in RATES:
        raise Problem(400, f"rate is {text[:20]!r}; it must be a number of Hz from {RATES[0]} to {RATES[-1]}.")
    return int(text)
