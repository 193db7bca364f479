"""Errors as HTTP says them: ``application/problem+json`` (RFC 9457) with type, title, status and detail.

The only place where the classes of ``echo_rtc.errors`` and the router's refusals become statuses. Knows no route.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from http import HTTPStatus

from aiohttp import web
from aiohttp.typedefs import Middleware

from echo_rtc.counting import Names
from echo_rtc.errors import (
    AddressError,
    AvatarConflictError,
    BusyError,
    CapacityError,
    ConflictError,
    EchoRtcError,
    FolderError,
    IceRestartError,
    NameTakenError,
    NotLiveError,
    OfferError,
    OutputRefusedError,
    RenegotiationError,
    RoomError,
    StoppingError,
    StorageError,
    TicketError,
    TooManyError,
    UnknownAvatarError,
    UnknownStreamError,
    UnsupportedMediaError,
)
from echo_rtc.web.access_log import route_of

CONTENT_TYPE = "application/problem+json"

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ProblemType(StrEnum):
    """The ``type`` of a problem, for clients. ``about:blank``: the status alone describes it."""

    GENERIC = "about:blank"
    BAD_OFFER = "urn:echo-rtc:problem:bad-offer"
    UNSUPPORTED_MEDIA = "urn:echo-rtc:problem:unsupported-media"
    UNKNOWN_AVATAR = "urn:echo-rtc:problem:unknown-avatar"
    BAD_AVATAR = "urn:echo-rtc:problem:bad-avatar"
    AVATAR_CONFLICT = "urn:echo-rtc:problem:avatar-conflict"
    UNKNOWN_STREAM = "urn:echo-rtc:problem:unknown-stream"
    UNAUTHORISED = "urn:echo-rtc:problem:unauthorised"
    FORBIDDEN = "urn:echo-rtc:problem:forbidden"
    UNKNOWN_SESSION = "urn:echo-rtc:problem:unknown-session"
    NAME_TAKEN = "urn:echo-rtc:problem:name-taken"
    BAD_OUTPUT = "urn:echo-rtc:problem:bad-output"
    CONFLICT = "urn:echo-rtc:problem:conflict"
    NO_SPEECH = "urn:echo-rtc:problem:no-speech"
    NOT_LIVE = "urn:echo-rtc:problem:not-live"
    NO_RESTART = "urn:echo-rtc:problem:no-restart"
    NO_RENEGOTIATION = "urn:echo-rtc:problem:no-renegotiation"
    TOO_MANY = "urn:echo-rtc:problem:too-many"
    FULL = "urn:echo-rtc:problem:full"
    STORAGE = "urn:echo-rtc:problem:storage"
    STARTING = "urn:echo-rtc:problem:starting"
    STOPPING = "urn:echo-rtc:problem:stopping"

    @property
    def reason(self) -> str:
        """The last word of the type."""
        return self.rpartition(":")[2]


_TITLES = {
    ProblemType.BAD_OFFER: "The offer cannot be read",
    ProblemType.UNSUPPORTED_MEDIA: "The offer has nothing this server can use",
    ProblemType.UNKNOWN_AVATAR: "There is no such avatar",
    ProblemType.BAD_AVATAR: "The avatar cannot be made",
    ProblemType.AVATAR_CONFLICT: "The avatar cannot be added or deleted now",
    ProblemType.UNKNOWN_STREAM: "There is no such stream",
    ProblemType.UNAUTHORISED: "A token is needed",
    ProblemType.FORBIDDEN: "The token does not allow this",
    ProblemType.UNKNOWN_SESSION: "There is no such session",
    ProblemType.NAME_TAKEN: "The name is taken",
    ProblemType.BAD_OUTPUT: "The stream cannot be pushed there",
    ProblemType.CONFLICT: "The resource exists already, or its number is limited",
    ProblemType.NO_SPEECH: "The stream takes no speech from this client now",
    ProblemType.NOT_LIVE: "Nothing is live under this name",
    ProblemType.NO_RESTART: "ICE is not restarted",
    ProblemType.NO_RENEGOTIATION: "Connections are not renegotiated",
    ProblemType.TOO_MANY: "Too many requests from this address",
    ProblemType.FULL: "The server is full",
    ProblemType.STORAGE: "The server cannot store it",
    ProblemType.STARTING: "The server is starting",
    ProblemType.STOPPING: "The server is stopping",
}


def sentence(text: str) -> str:
    """An error's message, which begins small and has no full stop, as a ``detail``."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


class Problem(Exception):
    """A refusal with its status. ``detail`` is one sentence for the client."""

    def __init__(
        self,
        status: int,
        detail: str,
        kind: ProblemType = ProblemType.GENERIC,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.kind = kind
        self.headers = dict(headers or {})

    @property
    def reason(self) -> str:
        """The kind of problem in a word or two: that of its type, else the status's phrase."""
        if self.kind is ProblemType.GENERIC:
            return HTTPStatus(self.status).phrase.lower().replace(" ", "-")
        return self.kind.reason

    def response(self) -> web.Response:
        body = {
            "type": str(self.kind),
            "title": _TITLES.get(self.kind) or HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        # Error responses are never cached: the same request may succeed a moment later.
        headers = {"Cache-Control": "no-store", **self.headers}
        return web.json_response(body, status=self.status, headers=headers, content_type=CONTENT_TYPE)


def answering_problems(refusals: Names) -> Middleware:
    """Answers every error of the handlers and of the router with a problem body, and counts it in ``refusals`` by its
    kind. Unexpected ones are logged."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        answer = await _answer(request, handler)
        if not isinstance(answer, Problem):
            return answer
        refusals.count(answer.reason)
        return answer.response()

    return middleware


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse | Problem:
    try:
        return await handler(request)
    except Problem as problem:
        return problem
    except web.HTTPException as refusal:
        if refusal.status < HTTPStatus.BAD_REQUEST:
            raise
        return _from_aiohttp(request, refusal)
    except EchoRtcError as error:
        return _from_error(error)
    except Exception:  # the boundary: a client gets no traceback, the log does
        logger.exception("%s %s failed", request.method, route_of(request))
        return Problem(500, "Something went wrong inside the server; its log says what.")


def _from_error(error: EchoRtcError) -> Problem:
    text = str(error)
    detail = sentence(text)
    if isinstance(error, TooManyError):
        return Problem(429, detail, ProblemType.TOO_MANY, {"Retry-After": str(error.retry_after_s)})
    if isinstance(error, CapacityError):
        kind = {StoppingError: ProblemType.STOPPING, BusyError: ProblemType.GENERIC}.get(type(error), ProblemType.FULL)
        return Problem(503, detail, kind, {"Retry-After": str(error.retry_after_s)})
    if isinstance(error, NameTakenError):
        return Problem(409, detail, ProblemType.NAME_TAKEN, {"Retry-After": str(error.retry_after_s)})
    if isinstance(error, NotLiveError):
        return Problem(409, detail, ProblemType.NOT_LIVE, {"Retry-After": str(error.retry_after_s)})
    if isinstance(error, UnknownStreamError):
        return Problem(404, detail, ProblemType.UNKNOWN_STREAM)
    if isinstance(error, UnknownAvatarError):
        return Problem(404, detail, ProblemType.UNKNOWN_AVATAR)
    if isinstance(error, AvatarConflictError):
        return Problem(409, detail, ProblemType.AVATAR_CONFLICT)
    if isinstance(error, OutputRefusedError):
        return Problem(422, detail, ProblemType.BAD_OUTPUT)
    if isinstance(error, ConflictError):
        return Problem(409, detail, ProblemType.CONFLICT)
    if isinstance(error, StorageError):
        logger.warning("%s", text)
        return Problem(500 if isinstance(error, FolderError) else 507, detail, ProblemType.STORAGE)
    if isinstance(error, IceRestartError):
        return Problem(422, detail, ProblemType.NO_RESTART)
    if isinstance(error, RenegotiationError):
        return Problem(422, detail, ProblemType.NO_RENEGOTIATION)
    if isinstance(error, UnsupportedMediaError):
        return Problem(422, detail, ProblemType.UNSUPPORTED_MEDIA)
    if isinstance(error, AddressError):
        return Problem(403, detail)
    if isinstance(error, TicketError):
        return Problem(422, detail)
    if isinstance(error, RoomError):
        return Problem(502, detail)
    if isinstance(error, OfferError):
        return Problem(400, detail, ProblemType.BAD_OFFER)
    logger.error("%s: %s", type(error).__name__, text)
    return Problem(500, detail)


def _from_aiohttp(request: web.Request, refusal: web.HTTPException) -> Problem:
    """The router's and the body reader's own refusals; headers that carry meaning (Allow) are kept."""
    headers = {name: refusal.headers[name] for name in ("Allow", "Retry-After") if name in refusal.headers}
    match refusal.status:
        case 404:
            detail = f"There is nothing at {request.path}."
        case 405:
            detail = (
                f"{request.path} does not know the method {request.method}; it knows {headers.get('Allow', 'none')}."
            )
        case _:
            detail = f"{refusal.reason}."
    return Problem(refusal.status, detail, headers=headers)
