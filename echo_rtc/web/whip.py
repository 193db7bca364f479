"""WHIP and WHEP (RFC 9725, draft-ietf-wish-whep): one voice is published under a name, and its avatar viewed under it.

A POST opens a peer and answers with its own URL, the session; PATCH brings ICE candidates to it, DELETE ends it. Checks
what HTTP says and leaves what an SDP means to the streams. Tokens and origins are checked elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from echo_rtc.rtc.session import Caller, Opened, Role
from echo_rtc.web.health import Health, IceServer
from echo_rtc.web.limits import CLAIM
from echo_rtc.web.prefix import prefix_of
from echo_rtc.web.problems import Problem, ProblemType
from echo_rtc.web.signalling import choose_avatar, read_offer_body

SDP = "application/sdp"
FRAGMENT = "application/trickle-ice-sdpfrag"
_NO_STORE = {"Cache-Control": "no-store"}


class Sessions(Protocol):
    """What WHIP and WHEP ask of the streams."""

    async def publish(self, name: str, offer_sdp: str, avatar: str, caller: Caller | None = None) -> Opened:
        """Raises OfferError, UnsupportedMediaError, RenegotiationError, NameTakenError, CapacityError."""
        ...

    async def view(self, name: str, offer_sdp: str, caller: Caller | None = None) -> Opened:
        """Raises OfferError, UnsupportedMediaError, RenegotiationError, NotLiveError, CapacityError."""
        ...

    def find(self, role: Role, name: str, session_id: str) -> Opened | None: ...

    async def add_candidates(self, opened: Opened, fragment: str) -> None:
        """Raises OfferError, IceRestartError."""
        ...

    async def close_session(self, opened: Opened, reason: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class WhipWhep:
    """The handlers of one of the two protocols: ``role`` is PUBLISH for WHIP, VIEW for WHEP."""

    role: Role
    sessions: Sessions
    health: Health

    async def post(self, request: web.Request) -> web.StreamResponse:
        """201 with the answer and the session's URL; 400, 408, 409, 413, 415, 422 or 503 as a problem."""
        offer = await _read_text(request, SDP, "Accept-Post")
        name = request.match_info["name"]
        if self.role is Role.PUBLISH:
            self.health.require_ready()
            avatar = choose_avatar(self.health, request.query.get("avatar"))
            opened = await self.sessions.publish(name, offer, avatar, request[CLAIM].caller)
        else:
            opened = await self.sessions.view(name, offer, request[CLAIM].caller)
        request[CLAIM].keep(opened.over)
        response = web.Response(status=201, text=opened.answer_sdp, content_type=SDP, headers=_NO_STORE)
        response.headers["Location"] = f"{prefix_of(request)}{request.rel_url.raw_path}/{opened.session}"
        response.etag = opened.tag
        for link in ice_links(self.health.ice_servers()):
            response.headers.add("Link", link)
        return response

    async def describe(self, _: web.Request) -> web.StreamResponse:
        """200 without a body: nothing is to be had here but by POST."""
        return web.Response(headers={"Content-Type": SDP, "Accept-Post": SDP, **_NO_STORE})

    async def options(self, request: web.Request) -> web.StreamResponse:
        """204 with the content types that the resource accepts; needs no token."""
        accepts = {"Accept-Patch": FRAGMENT} if "session" in request.match_info else {"Accept-Post": SDP}
        allowed = sorted({route.method for route in request.match_info.route.resource or ()})
        return web.Response(status=204, headers={"Allow": ", ".join(allowed), **accepts})

    async def patch(self, request: web.Request) -> web.StreamResponse:
        """204 once the candidates are taken; 400, 404, 408, 412, 413, 415, 422, 428 or 429 as a problem."""
        opened = self._session(request)
        fragment = await _read_text(request, FRAGMENT, "Accept-Patch")
        tags = request.if_match
        if tags is None:
            raise Problem(428, 'If-Match is missing; send the ETag of the answer, or "*".')
        if not any(tag.value == "*" or (tag.value == opened.tag and not tag.is_weak) for tag in tags):
            raise Problem(412, "If-Match names another ICE session; send the ETag of the answer.")
        await self.sessions.add_candidates(opened, fragment)
        return web.Response(status=204)

    async def look(self, request: web.Request) -> web.StreamResponse:
        """204 as long as the session lives; 404 as a problem."""
        self._session(request)
        return web.Response(status=204, headers=_NO_STORE)

    async def delete(self, request: web.Request) -> web.StreamResponse:
        """200 once the session is over; 404 as a problem."""
        if not await self.sessions.close_session(self._session(request), "closed by the client"):
            raise _unknown_session()
        return web.Response(headers=_NO_STORE)

    def _session(self, request: web.Request) -> Opened:
        opened = self.sessions.find(self.role, request.match_info["name"], request.match_info["session"])
        if opened is None:
            raise _unknown_session()
        return opened


def ice_links(servers: Sequence[IceServer]) -> list[str]:
    """One Link header value (RFC 8288) for each URL of each server, as WHIP wants them."""
    links = []
    for server in servers:
        urls = server["urls"]
        for url in [urls] if isinstance(urls, str) else urls:
            link = f'<{url}>; rel="ice-server"'
            if "username" in server:
                username, credential = _quoted(server["username"]), _quoted(server.get("credential", ""))
                link += f'; username={username}; credential={credential}; credential-type="password"'
            links.append(link)
    return links


def _quoted(value: str | Sequence[str]) -> str:
    """A quoted string of an HTTP header (RFC 9110, 5.6.4)."""
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


async def _read_text(request: web.Request, content_type: str, accept: str) -> str:
    """The body as text. Raises Problem 400, 408, 413 or 415; ``accept`` is the header that names what is taken."""
    if request.content_type != content_type:
        given = request.headers.get("Content-Type", "missing")[:80]
        raise Problem(415, f"The content type is {given!r}; send {content_type}.", headers={accept: content_type})
    try:
        return (await read_offer_body(request)).decode("utf-8")
    except UnicodeDecodeError:
        raise Problem(400, "The body is not UTF-8 text; send SDP.", ProblemType.BAD_OFFER) from None


def _unknown_session() -> Problem:
    return Problem(404, "There is no such session; it may have ended.", ProblemType.UNKNOWN_SESSION)
