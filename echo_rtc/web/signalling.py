"""Calls over HTTP: POST /offer opens one, GET and DELETE /streams/{id} watch and end it.

Everything about a request is checked here before the streams hear of it; what an SDP means is theirs to judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from echo_rtc.rtc.session import Caller, Opened
from echo_rtc.stream.stream import VoiceSource
from echo_rtc.web.auth import grant_of, require_name
from echo_rtc.web.bodies import read_body, read_json
from echo_rtc.web.health import Health
from echo_rtc.web.limits import CLAIM
from echo_rtc.web.problems import Problem, ProblemType

MAX_OFFER_BYTES = 64 * 1024
"""A browser's offer has 5 to 10 KB."""
BODY_TIMEOUT_S = 10.0
"""Time a client has to send a request's body."""


class Streams(Protocol):
    """What the HTTP edge asks of the streams."""

    async def open_call(
        self, offer_sdp: str, avatar: str, name: str | None = None, caller: Caller | None = None, pushed: bool = False
    ) -> Opened:
        """``pushed``: speech is pushed to the stream, and the offer needs no microphone. Raises OfferError,
        UnsupportedMediaError, RenegotiationError, NameTakenError, CapacityError."""
        ...

    def stream_of(self, key: str) -> str | None:
        """The id of the stream whose owner has the address ``key``; None if another publisher has taken it over."""
        ...

    async def close_stream(self, stream_id: str, reason: str) -> bool:
        """Whether there was such a stream."""
        ...

    def statistics(self, stream_id: str) -> Mapping[str, object] | None:
        """None where there is no such stream."""
        ...


@dataclass(frozen=True, slots=True)
class OfferBody:
    """The body of POST /offer, checked. ``avatar`` is None where the client leaves the choice to the server, ``name``
    for a stream without a name. ``pushed``: the voice is pushed speech, and no microphone."""

    sdp: str
    avatar: str | None
    name: str | None
    pushed: bool = False


@dataclass(frozen=True, slots=True)
class Signalling:
    """The handlers of calls."""

    streams: Streams
    health: Health

    async def offer(self, request: web.Request) -> web.StreamResponse:
        """200 with the answer; 400, 408, 409, 413, 415, 422 or 503 as a problem."""
        if request.content_type != "application/json":
            raise Problem(
                415,
                f"The content type is {request.headers.get('Content-Type', 'missing')[:80]!r}; send application/json.",
                headers={"Accept-Post": "application/json"},
            )
        offer = parse_offer(await read_offer_body(request))
        # A token for one stream implies its name.
        name = grant_of(request).name if offer.name is None else offer.name
        require_name(request, name)
        self.health.require_ready()
        avatar = choose_avatar(self.health, offer.avatar)
        opened = await self.streams.open_call(offer.sdp, avatar, name, request[CLAIM].caller, offer.pushed)
        request[CLAIM].keep(opened.over)
        return web.json_response(
            {"sdp": opened.answer_sdp, "type": "answer", "stream": opened.stream}, headers={"Cache-Control": "no-store"}
        )

    async def statistics(self, request: web.Request) -> web.StreamResponse:
        """200 with the stream's counters; 404 as a problem."""
        stream_id = self.streams.stream_of(request.match_info["id"])
        found = None if stream_id is None else self.streams.statistics(stream_id)
        if found is None:
            raise unknown_stream()
        return web.json_response(found, headers={"Cache-Control": "no-store"})

    async def close(self, request: web.Request) -> web.StreamResponse:
        """204 once the stream is closed; 404 as a problem."""
        stream_id = self.streams.stream_of(request.match_info["id"])
        if stream_id is None or not await self.streams.close_stream(stream_id, "closed by the client"):
            raise unknown_stream()
        return web.Response(status=204)


def parse_offer(body: bytes) -> OfferBody:
    """Reads ``{"sdp": ..., "type": "offer", "avatar": ...?, "name": ...?, "source": ...?}``. Raises Problem 400 with
    what is wrong."""
    try:
        content = read_json(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise _bad_offer("The body is not UTF-8 text; send JSON in UTF-8.") from None
    except ValueError:
        raise _bad_offer('The body is not JSON; send {"sdp": "...", "type": "offer"}.') from None
    if not isinstance(content, dict):
        raise _bad_offer('The body is not a JSON object; send {"sdp": "...", "type": "offer"}.')
    if content.get("type") != "offer":
        raise _bad_offer(f"type is {_shown(content, 'type')}; it must be 'offer'.")
    sdp = content.get("sdp")
    if not isinstance(sdp, str) or not sdp.strip():
        raise _bad_offer(f"sdp is {_shown(content, 'sdp')}; it must be the session description as text.")
    avatar = content.get("avatar")
    if avatar is not None and not isinstance(avatar, str):
        raise _bad_offer(f"avatar is {_shown(content, 'avatar')}; it must be an avatar's name, or left out.")
    name = content.get("name")
    if name is not None and not isinstance(name, str):
        raise _bad_offer(f"name is {_shown(content, 'name')}; it must be the stream's name as text, or left out.")
    source = content.get("source", VoiceSource.MICROPHONE)
    if source not in (VoiceSource.MICROPHONE, VoiceSource.PUSHED):
        raise _bad_offer(f"source is {_shown(content, 'source')}; it must be 'microphone' or 'pushed', or left out.")
    return OfferBody(sdp, avatar, name, source == VoiceSource.PUSHED)


def choose_avatar(health: Health, name: str | None) -> str:
    """The avatar of this name, or the first one. Raises Problem 422 where there is none of this name."""
    known = list(health.engine.avatars)
    if name is None:
        return known[0]
    if name not in health.engine.avatars:
        detail = f"There is no avatar {name[:80]!r}; choose one of {', '.join(known)}."
        raise Problem(422, detail, ProblemType.UNKNOWN_AVATAR)
    return name


async def read_offer_body(request: web.Request) -> bytes:
    """The body of an offer or of candidates. Raises Problem 400, 408 or 413 where it does not come, or not whole, or is
    too large."""
    cut_off = _bad_offer("The body is cut off or badly encoded; send it again.")
    return await read_body(request, MAX_OFFER_BYTES, BODY_TIMEOUT_S, cut_off)


def _shown(content: dict[str, object], key: str) -> str:
    text = repr(content[key]) if key in content else "missing"
    return text if len(text) <= 80 else text[:77] + "..."


def _bad_offer(detail: str) -> Problem:
    return Problem(400, detail, ProblemType.BAD_OFFER)


def unknown_stream() -> Problem:
    """The 404 for an id that no stream has."""
    return Problem(404, "There is no such stream; it may have ended.", ProblemType.UNKNOWN_STREAM)
