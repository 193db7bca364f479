"""The HTTP edge as one aiohttp application: its routes, its limits and the headers on every answer.

Knows the streams and the engine by narrow protocols only, and nothing of WebRTC.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from echo_rtc.operations.view import StreamsView
from echo_rtc.rtc.session import Reservations, Role
from echo_rtc.web.access_log import route_of
from echo_rtc.web.admin import Admin
from echo_rtc.web.auth import GRANT, Authorisation, Scope, authorise
from echo_rtc.web.avatars import Avatars, Gallery
from echo_rtc.web.bodies import await_body, refusing_packed_bodies
from echo_rtc.web.clients import Clients
from echo_rtc.web.connections import protect
from echo_rtc.web.cors import CrossOrigin
from echo_rtc.web.health import Health
from echo_rtc.web.hosts import HEALTH, refusing_strange_hosts
from echo_rtc.web.limits import CLAIM, LimitOptions, Limits, Pace
from echo_rtc.web.livekit import Joins, LiveKitRooms
from echo_rtc.web.metrics import Metrics, Watch, Watched
from echo_rtc.web.outputs import OutputControl, OutputHandlers
from echo_rtc.web.pages import CONTENT_POLICY, OPERATORS_PAGE, SELF, Pages, content_policy, guiding_visitors
from echo_rtc.web.prefix import finding_prefixes
from echo_rtc.web.problems import answering_problems
from echo_rtc.web.queue import Places, Queue
from echo_rtc.web.recordings import RecordingControl, RecordingHandlers
from echo_rtc.web.signalling import MAX_OFFER_BYTES, Signalling, Streams
from echo_rtc.web.speech import SpeechAccess, SpeechChannels, SpeechStreams
from echo_rtc.web.stream_access import StreamAccess
from echo_rtc.web.text_speech import TextSpeeches
from echo_rtc.web.whip import Sessions, WhipWhep

COUNTED = {
    "/streams/{id}/outputs": Limits.count_offer,
    "/streams/{id}/recordings": Limits.count_offer,
    "/streams/{id}/speak": Limits.count_text,
}
"""Posts to these are limited: each begins work of its own, on this server or on another."""
SECURITY_HEADERS = {
    CONTENT_POLICY: content_policy(),
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=(), display-capture=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Server": "echo_rtc",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class RouteRow:
    """One row of the README's table of routes. ``scope`` is what a request's token must allow; a ``{name}`` in the path
    is the stream that it must be for."""

    method: str
    path: str
    meaning: str
    scope: Scope


@dataclass(frozen=True, slots=True)
class Handlers:
    """The objects whose methods answer requests."""

    pages: Pages
    signalling: Signalling
    speech: SpeechChannels
    livekit: LiveKitRooms
    places: Places
    avatars: Avatars
    whip: WhipWhep
    whep: WhipWhep
    recordings: RecordingHandlers
    outputs: OutputHandlers
    health: Health
    metrics: Metrics
    admin: Admin


_ROUTES: tuple[tuple[RouteRow, Callable[[Handlers], Handler]], ...] = (
    (RouteRow("GET", "/", "The page.", Scope.OPEN), lambda h: h.pages.page),
    (
        RouteRow("GET", "/embed", "The element by itself, for iframes; its attributes as parameters.", Scope.OPEN),
        lambda h: h.pages.embed,
    ),
    (
        RouteRow("GET", "/echo-rtc.js", "The element `<echo-rtc>` for any page: an ES module.", Scope.OPEN),
        lambda h: h.pages.entry,
    ),
    (
        RouteRow("GET", "/element/{module}", "The modules that the element is made of.", Scope.OPEN),
        lambda h: h.pages.module,
    ),
    (RouteRow("GET", "/static/{path:.+}", "The page's files.", Scope.OPEN), lambda h: h.pages.file),
    (
        RouteRow(
            "POST",
            "/offer",
            "Opens a call: JSON with sdp, type and perhaps avatar, name, source (pushed: speech is pushed to it) in; "
            "sdp, type and stream (its id) out.",
            Scope.CALL,
        ),
        lambda h: h.signalling.offer,
    ),
    (
        RouteRow(
            "POST",
            "/streams",
            "Opens a stream of pushed speech: JSON with avatar and name (both optional) in; addresses out.",
            Scope.CALL,
        ),
        lambda h: h.speech.open,
    ),
    (
        RouteRow(
            "POST",
            "/livekit",
            "Joins a LiveKit room as an avatar (`--livekit-host`): JSON with livekit_url, livekit_token, avatar and "
            "name (both optional) in; addresses out.",
            Scope.CALL,
        ),
        lambda h: h.livekit.join,
    ),
    (
        RouteRow(
            "GET", "/streams/{id}/speech", "A WebSocket that pushes speech to the stream; `?rate=` in Hz.", Scope.OWN
        ),
        lambda h: h.speech.speak,
    ),
    (
        RouteRow(
            "GET",
            "/places",
            "The queue of a full server: server-sent events with position (from 1) and free (true: a place is held).",
            Scope.CALL,
        ),
        lambda h: h.places.wait,
    ),
    (
        RouteRow(
            "POST",
            "/streams/{id}/speak",
            "Says a text (`--tts-url`): JSON with text and event_id (optional) in; event_id out.",
            Scope.OWN,
        ),
        lambda h: h.speech.say_text,
    ),
    (RouteRow("GET", "/streams/{id}", "A stream's counters, as JSON.", Scope.OWN), lambda h: h.signalling.statistics),
    (RouteRow("DELETE", "/streams/{id}", "Ends a stream.", Scope.OWN), lambda h: h.signalling.close),
    (
        RouteRow(
            "POST",
            "/streams/{id}/recordings",
            "Begins to record the stream (`--recording-dir`); the recording's facts out.",
            Scope.OWN,
        ),
        lambda h: h.recordings.start,
    ),
    (
        RouteRow(
            "GET", "/streams/{id}/recordings", "The stream's recording, running or the last: a list of one.", Scope.OWN
        ),
        lambda h: h.recordings.show,
    ),
    (
        RouteRow("DELETE", "/streams/{id}/recordings", "Ends the recording; its facts out.", Scope.OWN),
        lambda h: h.recordings.stop,
    ),
    (
        RouteRow(
            "POST",
            "/streams/{id}/outputs",
            "Pushes the stream to a WHIP endpoint (`--output-host`): JSON with type (whip), endpoint and bearer "
            "(optional) in; the output's facts out.",
            Scope.OWN,
        ),
        lambda h: h.outputs.start,
    ),
    (
        RouteRow("GET", "/streams/{id}/outputs", "The stream's outputs and their states, as JSON.", Scope.OWN),
        lambda h: h.outputs.list,
    ),
    (
        RouteRow("GET", "/streams/{id}/outputs/{output}", "One output and its state.", Scope.OWN),
        lambda h: h.outputs.show,
    ),
    (
        RouteRow("DELETE", "/streams/{id}/outputs/{output}", "Ends an output.", Scope.OWN),
        lambda h: h.outputs.stop,
    ),
    (
        RouteRow("GET", "/recordings", "All recordings, the newest first, as JSON.", Scope.ADMIN),
        lambda h: h.recordings.list,
    ),
    (
        RouteRow(
            "GET", "/recordings/{recording}", "A recording's file, an MP4; range requests are answered.", Scope.ADMIN
        ),
        lambda h: h.recordings.download,
    ),
    (
        RouteRow("DELETE", "/recordings/{recording}", "Deletes a recording.", Scope.ADMIN),
        lambda h: h.recordings.delete,
    ),
    (
        RouteRow(
            "POST",
            "/whip/{name}",
            "Publishes a voice under a name (WHIP); `?avatar=` chooses the avatar.",
            Scope.PUBLISH,
        ),
        lambda h: h.whip.post,
    ),
    (RouteRow("GET", "/whip/{name}", "Empty; says that offers are taken here.", Scope.OPEN), lambda h: h.whip.describe),
    (RouteRow("OPTIONS", "/whip/{name}", "What may be posted.", Scope.OPEN), lambda h: h.whip.options),
    (
        RouteRow("PATCH", "/whip/{name}/{session}", "Further ICE candidates of a publisher.", Scope.OWN),
        lambda h: h.whip.patch,
    ),
    (
        RouteRow("GET", "/whip/{name}/{session}", "204 as long as the publisher is there.", Scope.OWN),
        lambda h: h.whip.look,
    ),
    (RouteRow("OPTIONS", "/whip/{name}/{session}", "What may be patched.", Scope.OPEN), lambda h: h.whip.options),
    (
        RouteRow("DELETE", "/whip/{name}/{session}", "Ends publishing, and the stream.", Scope.OWN),
        lambda h: h.whip.delete,
    ),
    (
        RouteRow("POST", "/whep/{name}", "Views the stream of a name or an id (WHEP).", Scope.VIEW),
        lambda h: h.whep.post,
    ),
    (RouteRow("GET", "/whep/{name}", "Empty; says that offers are taken here.", Scope.OPEN), lambda h: h.whep.describe),
    (RouteRow("OPTIONS", "/whep/{name}", "What may be posted.", Scope.OPEN), lambda h: h.whep.options),
    (
        RouteRow("PATCH", "/whep/{name}/{session}", "Further ICE candidates of a viewer.", Scope.OWN),
        lambda h: h.whep.patch,
    ),
    (
        RouteRow("GET", "/whep/{name}/{session}", "204 as long as the viewer is there.", Scope.OWN),
        lambda h: h.whep.look,
    ),
    (RouteRow("OPTIONS", "/whep/{name}/{session}", "What may be patched.", Scope.OPEN), lambda h: h.whep.options),
    (RouteRow("DELETE", "/whep/{name}/{session}", "Ends viewing.", Scope.OWN), lambda h: h.whep.delete),
    (
        RouteRow(
            "GET",
            "/avatars",
            "The avatars, as JSON: a list of name, preview (the address of a picture) and uploaded (true or false).",
            Scope.TOKEN,
        ),
        lambda h: h.avatars.list,
    ),
    (
        RouteRow(
            "POST",
            "/avatars",
            "Uploads an avatar: a form with name, image and perhaps poses (a ZIP file) or poses_of (an avatar's name).",
            Scope.ADMIN,
        ),
        lambda h: h.avatars.add,
    ),
    (
        RouteRow("GET", "/avatars/{avatar}/preview", "An avatar's picture, a JPEG.", Scope.TOKEN),
        lambda h: h.avatars.preview,
    ),
    (
        RouteRow("DELETE", "/avatars/{avatar}", "Deletes an uploaded avatar that no stream shows.", Scope.ADMIN),
        lambda h: h.avatars.delete,
    ),
    (
        RouteRow(
            "GET",
            "/config",
            "Picture size, frame rate, avatars, engine, quality and notices, as JSON.",
            Scope.OPEN,
        ),
        lambda h: h.health.config,
    ),
    (RouteRow("GET", "/healthz", "200 as long as the server lives.", Scope.OPEN), lambda h: h.health.healthz),
    (
        RouteRow("GET", "/readyz", "200 if a stream could be opened, else 503 with Retry-After.", Scope.OPEN),
        lambda h: h.health.readyz,
    ),
    (
        RouteRow("GET", "/metrics", "Everything that is counted, for Prometheus.", Scope.ADMIN),
        lambda h: h.metrics.metrics,
    ),
    (
        RouteRow("GET", "/admin", "The operator's page; it asks for a token where one is needed.", Scope.OPEN),
        lambda h: h.admin.page,
    ),
    (RouteRow("GET", "/admin/state", "What the operator's page shows, as JSON.", Scope.ADMIN), lambda h: h.admin.state),
    (
        RouteRow("DELETE", "/admin/streams/{id}", "Ends a stream, for operators.", Scope.ADMIN),
        lambda h: h.admin.end,
    ),
)


class PeersAndStreams(Streams, SpeechStreams, Sessions, StreamsView, Protocol):
    """All that the HTTP edge asks of the streams and their peers, and what operators see of them."""

    reservations: Reservations
    """Places held for clients in the queue; set by the HTTP edge."""

    @property
    def free(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Outlets:
    """Outputs of streams beside their viewers; None where that is off."""

    recordings: RecordingControl | None = None
    outputs: OutputControl | None = None
    rooms: Joins | None = None
    """LiveKit rooms."""


def routes() -> list[RouteRow]:
    """Every route, in the order of the README's table."""
    return [row for row, _ in _ROUTES]


@dataclass(frozen=True, slots=True)
class Access:
    """What clients may do: tokens, trusted proxies, rate limits, allowed origins, and origins that may frame /embed.
    ``loopback``: the server listens on a loopback address only. ``base_path``: see ``prefix``."""

    authorisation: Authorisation = field(default_factory=Authorisation)
    clients: Clients = field(default_factory=Clients)
    limits: LimitOptions = field(default_factory=LimitOptions)
    cross_origin: CrossOrigin = field(default_factory=CrossOrigin)
    frame_ancestors: str = SELF
    loopback: bool = False
    base_path: str = ""


@dataclass(frozen=True, slots=True)
class AppOptions:
    """What an application has beside its streams. By default no token is required, no other origin is allowed, no text
    is said and nothing is recorded."""

    access: Access = field(default_factory=Access)
    watch: Watch = field(default_factory=Watch)
    texts: TextSpeeches = field(default_factory=TextSpeeches)
    outlets: Outlets = field(default_factory=Outlets)


def create_app(
    streams: PeersAndStreams, health: Health, static: Path, gallery: Gallery, options: AppOptions | None = None
) -> web.Application:
    """The application. ``static`` is the page's folder; raises InputError if it lacks one of its files."""
    options = options or AppOptions()
    access, watch, outlets = options.access, options.watch, options.outlets
    whip, whep = (WhipWhep(role, streams, health) for role in (Role.PUBLISH, Role.VIEW))
    watched = Watched(streams, health.engine, health.engine_name, watch)
    metrics, admin = Metrics(watched), Admin(streams, health, watched, static / OPERATORS_PAGE)
    pages = Pages.in_folder(static, access.frame_ancestors)
    avatars = Avatars(gallery, health)
    limits = Limits(access.limits, access.clients)
    speech_access = SpeechAccess(access.authorisation, access.cross_origin, limits)
    speech = SpeechChannels(streams, health, speech_access, options.texts)
    queue = Queue()
    streams.reservations = queue
    places = Places(queue, health, access.clients, lambda: streams.free)
    livekit = LiveKitRooms(outlets.rooms, streams, health)
    owners = StreamAccess(streams, access.authorisation)
    recordings, outputs = RecordingHandlers(owners, outlets.recordings), OutputHandlers(owners, outlets.outputs)
    signalling = Signalling(streams, health)
    handlers = Handlers(
        *(pages, signalling, speech, livekit, places, avatars, whip, whep, recordings, outputs, health, metrics, admin)
    )
    scopes: dict[web.AbstractRoute, Scope] = {}
    answering = answering_problems(watch.refusals)
    limiting = _limiting(limits, scopes)
    pacing = Pace(access.clients).middleware(HEALTH)
    middlewares = [guiding_visitors(), answering, pacing, refusing_packed_bodies()]
    if access.loopback and not access.authorisation.required:
        middlewares.append(refusing_strange_hosts(access.clients, access.cross_origin))
    middlewares += [finding_prefixes(access.base_path, access.clients)]
    middlewares += [access.cross_origin.middleware(), limiting, _authorising(access, scopes)]
    app = web.Application(middlewares=middlewares, client_max_size=MAX_OFFER_BYTES)
    for row, choose in _ROUTES:
        for method in (row.method, "HEAD") if row.method == "GET" else (row.method,):
            route = app.router.add_route(method, row.path, choose(handlers), expect_handler=await_body)
            scopes[route] = row.scope
    app.on_response_prepare.append(_headers_for_all(access.cross_origin))
    return app


def _limiting(limits: Limits, scopes: Mapping[web.AbstractRoute, Scope]) -> Middleware:
    """Counts the offers that clients make, and what else they begin, before their tokens are looked at."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method == hdrs.METH_POST and (count := COUNTED.get(route_of(request))) is not None:
            count(limits, request)
        opens = scopes.get(request.match_info.route) in (Scope.CALL, Scope.PUBLISH, Scope.VIEW)
        if not opens or request.method != hdrs.METH_POST:
            return await handler(request)
        claim = request[CLAIM] = limits.claim(request)
        try:
            return await handler(request)
        finally:
            claim.settle()

    return middleware


def _authorising(access: Access, scopes: Mapping[web.AbstractRoute, Scope]) -> Middleware:
    """Lets a request reach its handler only if its token allows what the route is for. What is not in the table of
    routes is a 404 or 405 and needs no token."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        scope = scopes.get(request.match_info.route)
        if scope is not None:
            request[GRANT] = authorise(request, scope, access.authorisation)
            if scope.asks:
                protect(request)
        return await handler(request)

    return middleware


def _headers_for_all(cross_origin: CrossOrigin) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    headers = {**SECURITY_HEADERS, "Cross-Origin-Resource-Policy": cross_origin.resource_policy}

    async def add(request: web.Request, response: web.StreamResponse) -> None:
        own_policy = response.headers.get(CONTENT_POLICY)
        response.headers.update(headers if own_policy is None else {**headers, CONTENT_POLICY: own_policy})
        cross_origin.mark(request, response)

    return add
