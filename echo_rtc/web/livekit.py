"""POST /livekit: an avatar joins a LiveKit room as a participant, and says what the room's agent sends it.

Checks what HTTP says; which servers may be joined, and what a token must allow, is decided where rooms are joined.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from aiohttp import web

from echo_rtc.rtc.session import OpenedSpeech
from echo_rtc.web.auth import grant_of, require_name
from echo_rtc.web.bodies import json_object
from echo_rtc.web.health import Health
from echo_rtc.web.limits import CLAIM
from echo_rtc.web.prefix import prefix_of
from echo_rtc.web.problems import Problem
from echo_rtc.web.signalling import choose_avatar, read_offer_body

NOT_ALLOWED = "This server joins no LiveKit rooms; start it with --livekit-host for the servers that it may join."
_KEYS = ("livekit_url", "livekit_token", "avatar", "name")
_EXAMPLE = '{"livekit_url": "wss://...", "livekit_token": "..."}'


class Joins(Protocol):
    """What this file asks of the rooms."""

    async def join(self, url: str, token: str, avatar: str, name: str | None = None, client: str = "") -> OpenedSpeech:
        """Raises AddressError, TicketError, RoomError, OfferError, NameTakenError, CapacityError."""
        ...


class Endings(Protocol):
    """What this file asks of the streams."""

    def ending(self, key: str) -> asyncio.Future[str] | None: ...


class LiveKitRooms:
    """The handler. ``rooms`` is None where no server may be joined."""

    def __init__(self, rooms: Joins | None, streams: Endings, health: Health) -> None:
        self._rooms = rooms
        self._streams = streams
        self._health = health

    async def join(self, request: web.Request) -> web.StreamResponse:
        """201 with the addresses of the stream once the avatar is in the room; 400, 403, 408, 409, 413, 415, 422, 501,
        502 or 503 as a problem."""
        if self._rooms is None:
            raise Problem(501, NOT_ALLOWED)
        wishes = _wishes(request, await read_offer_body(request))
        name = wishes.get("name") or grant_of(request).name
        require_name(request, name)
        self._health.require_ready()
        avatar = choose_avatar(self._health, wishes.get("avatar"))
        claim = request[CLAIM]
        url, token = wishes["livekit_url"], wishes["livekit_token"]
        opened = await self._rooms.join(url, token, avatar, name, claim.caller.client)
        claim.keep(self._streams.ending(opened.key))
        here = f"{prefix_of(request)}/streams/{opened.key}"
        body = {"stream": here, "whep": f"{prefix_of(request)}/whep/{opened.name}"}
        return web.json_response(body, status=201, headers={"Location": here, "Cache-Control": "no-store"})


def _wishes(request: web.Request, body: bytes) -> dict[str, str]:
    """The texts of the body. Raises Problem 400 or 415."""
    content = json_object(request, body, _EXAMPLE)
    wishes: dict[str, str] = {}
    for key in _KEYS:
        value = content.get(key)
        if value is None:
            continue
        if not isinstance(value, str):
            raise Problem(400, f"{key} is of the type {type(value).__name__}; it must be text.")
        wishes[key] = value
    for key in _KEYS[:2]:
        if not wishes.get(key):
            raise Problem(400, f"{key} is missing; send {_EXAMPLE}.")
    return wishes
