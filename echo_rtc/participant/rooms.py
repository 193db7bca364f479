"""The LiveKit rooms in which avatars of this server are: joins them, and leaves them all at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import aiohttp
from livekit import rtc

from echo_rtc.clips import ClipFormat
from echo_rtc.errors import RoomError, TicketError
from echo_rtc.participant.addresses import AllowedHosts
from echo_rtc.participant.output import RoomOutput
from echo_rtc.participant.tickets import read_ticket
from echo_rtc.participant.worker import Output, RoomParticipant
from echo_rtc.rtc.session import OpenedSpeech
from echo_rtc.stream.stream import Stream, VoiceSource

KNOCK_TIMEOUT_S = 5.0
VALIDATION_PATHS = ("/rtc/v1/validate", "/rtc/validate")
"""Both are asked by LiveKit's library; the second, which takes a token alone, by all versions of its server."""


class Streams(Protocol):
    """What this file asks of the streams."""

    async def open_speech(
        self, avatar: str, name: str | None = None, source: VoiceSource = VoiceSource.PUSHED, client: str = ""
    ) -> OpenedSpeech: ...

    def held(self, key: str) -> Stream:
        """Raises UnknownStreamError."""
        ...

    async def close_stream(self, stream_id: str, reason: str) -> bool: ...


async def knock(url: str, token: str) -> None:
    """Asks a LiveKit server whether it takes the token, so that it is known why if it does not. Refuses one that
    redirects, where the library would follow. Raises TicketError and RoomError."""
    timeout = aiohttp.ClientTimeout(total=KNOCK_TIMEOUT_S)
    headers = {"Authorization": f"Bearer {token}"}
    status = 0
    try:
        async with aiohttp.ClientSession(timeout=timeout, headers=headers) as http:
            for path in VALIDATION_PATHS:
                async with http.get(f"http{url.removeprefix('ws')}{path}", allow_redirects=False) as response:
                    status = response.status
                if 300 <= status < 400:
                    raise RoomError("the LiveKit server redirects, which is not followed; check livekit_url")
    except (aiohttp.ClientError, TimeoutError, OSError):
        raise RoomError("the LiveKit server does not answer; check livekit_url") from None
    if status in (401, 403):
        raise TicketError("the LiveKit server refuses livekit_token; send one that it has signed")
    if status != 200:
        raise RoomError(f"the LiveKit server answers with the status {status}; check livekit_url")


@dataclass(frozen=True, slots=True)
class Library:
    """How rooms are reached and what is published in them: by LiveKit's own library."""

    make_room: Callable[[], rtc.Room] = rtc.Room
    make_output: Callable[[ClipFormat], Output] = RoomOutput
    knock: Callable[[str, str], Awaitable[None]] = knock


class Rooms:
    """Joins rooms of the servers that are allowed."""

    def __init__(
        self,
        streams: Streams,
        clip_format: Callable[[], ClipFormat],
        hosts: AllowedHosts,
        library: Library | None = None,
    ) -> None:
        self._streams = streams
        self._format = clip_format
        self._hosts = hosts
        self._library = library or Library()
        self._inside: dict[asyncio.Task[None], Stream] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    async def join(self, url: str, token: str, avatar: str, name: str | None = None, client: str = "") -> OpenedSpeech:
        """An avatar joins the room of a token and is a stream from then on, until the room or the stream ends.
        ``client``: for which a place may be held.

        Raises AddressError, TicketError and RoomError, and what opening a stream raises; nothing is left behind then.
        """
        address = self._hosts.checked(url)
        read_ticket(token)
        opened = await self._streams.open_speech(avatar, name, VoiceSource.LIVEKIT, client)
        stream = self._streams.held(opened.key)
        try:
            await self._library.knock(address, token)
            participant = await self._join(stream, address, token)
        except BaseException as error:
            await self._streams.close_stream(stream.id, f"its LiveKit room was not joined ({type(error).__name__})")
            raise
        task = asyncio.create_task(participant.run(), name=f"LiveKit room of stream {stream.id[:8]}")
        self._inside[task] = stream
        task.add_done_callback(self._inside.pop)
        return opened

    async def close(self) -> None:
        """Leaves all rooms."""
        for stream in self._inside.values():
            stream.end("the server is stopping")
        for task in self._leaving:
            task.cancel()
        if tasks := (*self._inside, *self._leaving):
            await asyncio.wait(tasks)

    async def _join(self, stream: Stream, address: str, token: str) -> RoomParticipant:
        output = self._library.make_output(self._format())
        participant = RoomParticipant(self._library.make_room(), stream, output)
        try:
            await participant.join(address, token)
        finally:
            if participant.leaving is not None:
                self._leaving.add(participant.leaving)
                participant.leaving.add_done_callback(self._leaving.discard)
        return participant
