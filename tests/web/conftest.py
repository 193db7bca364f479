"""A server's HTTP edge over scripted streams and a scripted engine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from echo_rtc.clips import ClipFormat
from echo_rtc.errors import UnknownAvatarError
from echo_rtc.operations.view import StreamView
from echo_rtc.rtc.manager import ManagerCounters
from echo_rtc.rtc.session import Caller, NoReservations, Opened, OpenedSpeech, Reservations, Role
from echo_rtc.stream.speech import Speaker
from echo_rtc.stream.tally import Ledger, Tally
from echo_rtc.web.app import Access, AppOptions, create_app
from echo_rtc.web.avatars import Gallery
from echo_rtc.web.health import Health, IceServer, Lifecycle, Phase
from echo_rtc.web.metrics import Watch

ADMIN_TOKEN = "the-token-of-administrators"


@dataclass
class FakeEngine:
    format: ClipFormat = field(default_factory=lambda: ClipFormat(width=320, height=256, fps=25))
    avatars: dict[str, object] = field(default_factory=lambda: {"ann": object(), "bob": object()})
    ready: bool = True
    trouble: str = ""


@dataclass
class FakeStreams:
    """Answers every offer, or raises ``failure``; remembers what it was asked."""

    failure: Exception | None = None
    offers: list[tuple[str, str]] = field(default_factory=list)
    closed: list[tuple[str, str]] = field(default_factory=list)
    live: dict[str, dict[str, object]] = field(default_factory=lambda: {"known-id": {"rendered": 24}})
    names: list[str | None] = field(default_factory=list)
    pushed: list[bool] = field(default_factory=list)
    sessions: dict[tuple[Role, str, str], Opened] = field(default_factory=dict)
    fragments: list[str] = field(default_factory=list)

    streams: dict[str, StreamView] = field(default_factory=dict)
    capacity: int = 2
    free: int = 1
    reservations: Reservations = field(default_factory=NoReservations)
    counters: ManagerCounters = field(default_factory=ManagerCounters)
    peers: dict[Role, int] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)

    def tally(self) -> Tally:
        return self.ledger.total(())

    async def open_call(
        self, offer_sdp: str, avatar: str, name: str | None = None, caller: Caller | None = None, pushed: bool = False
    ) -> Opened:
        self.offers.append((offer_sdp, avatar))
        self.names.append(name)
        self.pushed.append(pushed)
        return self._open(Role.CALL, name or "")

    async def publish(self, name: str, offer_sdp: str, avatar: str, caller: Caller | None = None) -> Opened:
        self.offers.append((offer_sdp, avatar))
        return self._open(Role.PUBLISH, name)

    async def view(self, name: str, offer_sdp: str, caller: Caller | None = None) -> Opened:
        self.offers.append((offer_sdp, ""))
        return self._open(Role.VIEW, name)

    async def open_speech(self, avatar: str, name: str | None = None, *, client: str = "") -> OpenedSpeech:
        if self.failure is not None:
            raise self.failure
        return OpenedSpeech("speech-key", name or "made-name")

    def speaker(self, key: str) -> Speaker | None:
        return None

    def ending(self, key: str) -> asyncio.Future[str] | None:
        return None

    def name_of(self, key: str) -> str | None:
        return None

    def stream_of(self, key: str) -> str | None:
        return key

    def find(self, role: Role, name: str, session_id: str) -> Opened | None:
        return self.sessions.get((role, name, session_id))

    async def add_candidates(self, opened: Opened, fragment: str) -> None:
        self.fragments.append(fragment)
        if self.failure is not None:
            raise self.failure

    async def close_session(self, opened: Opened, reason: str) -> bool:
        for key, session in tuple(self.sessions.items()):
            if session == opened:
                del self.sessions[key]
                return True
        return False

    def _open(self, role: Role, name: str) -> Opened:
        if self.failure is not None:
            raise self.failure
        number = len(self.sessions)
        opened = Opened(f"session-{number}", "new-id", f"tag-{number}", "v=0 answer")
        self.sessions[role, name, opened.session] = opened
        return opened

    async def close_stream(self, stream_id: str, reason: str) -> bool:
        self.closed.append((stream_id, reason))
        return self.live.pop(stream_id, None) is not None

    def statistics(self, stream_id: str) -> dict[str, object] | None:
        return self.live.get(stream_id)


@dataclass(frozen=True)
class FakeEntry:
    name: str
    uploaded: bool


@dataclass(frozen=True)
class FakePreview:
    jpeg: bytes
    tag: str


@dataclass
class FakeLibrary:
    """Has two avatars, takes every upload, or raises ``failure``; remembers what it was sent."""

    failure: Exception | None = None
    names: dict[str, bool] = field(default_factory=lambda: {"ann": False, "bob": True})
    uploads: list[tuple[str, bytes, bytes | None, str | None]] = field(default_factory=list)

    def entries(self) -> list[FakeEntry]:
        return [FakeEntry(name, uploaded) for name, uploaded in self.names.items()]

    async def preview(self, name: str) -> FakePreview:
        if name not in self.names:
            raise UnknownAvatarError(f"there is no avatar {name!r}")
        return FakePreview(b"picture of " + name.encode(), f"tag-{name}")

    async def add(self, name: str, picture: bytes, poses: bytes | None, poses_of: str | None) -> FakeEntry:
        if self.failure is not None:
            raise self.failure
        self.uploads.append((name, picture, poses, poses_of))
        self.names[name] = True
        return FakeEntry(name, True)

    async def delete(self, name: str) -> None:
        if self.failure is not None:
            raise self.failure
        del self.names[name]


def gallery_of(library: FakeLibrary, changeable: bool = True) -> Gallery:
    """A gallery that takes small files."""
    return Gallery(library, picture_bytes=2_000, poses_bytes=1_000, changeable=changeable)


@dataclass
class Edge:
    """A client of the application, and the parts behind it."""

    client: TestClient[web.Request, web.Application]
    streams: FakeStreams
    engine: FakeEngine
    lifecycle: Lifecycle
    static: Path
    library: FakeLibrary


Client = Callable[..., Awaitable[TestClient[web.Request, web.Application]]]
Server = Callable[..., Awaitable[TestServer]]


class MakeEdge(Protocol):
    def __call__(
        self,
        access: Access,
        changeable: bool = True,
        ice_servers: Sequence[IceServer] = (),
        watch: Watch | None = None,
    ) -> Awaitable[Edge]: ...


@pytest.fixture
async def edge(make_edge: MakeEdge) -> Edge:
    """An edge that lets everybody in."""
    return await make_edge(Access())


@pytest.fixture
def make_edge(tmp_path: Path, aiohttp_client: Client, aiohttp_server: Server) -> MakeEdge:
    static = tmp_path / "static"
    (static / "sub").mkdir(parents=True)
    (static / "index.html").write_text("<!doctype html><title>page</title>")
    (static / "embed.html").write_text("<!doctype html><title>frame</title>")
    (static / "echo-rtc.js").write_text('export { EchoRtc } from "./element/element.js";')
    (static / "element").mkdir()
    (static / "element" / "element.js").write_text("export class EchoRtc {}")
    (static / "app.js").write_text("export {};")
    (static / "sub" / "style.css").write_text("body {}")
    (static / ".hidden").write_text("secret")
    (tmp_path / "outside.txt").write_text("secret")

    async def make(
        access: Access,
        changeable: bool = True,
        ice_servers: Sequence[IceServer] = (),
        watch: Watch | None = None,
    ) -> Edge:
        streams, engine, lifecycle = FakeStreams(), FakeEngine(), Lifecycle(Phase.READY)
        health = Health(engine, lifecycle, "local", lambda: ice_servers, free_places=lambda: streams.free)
        library = FakeLibrary()
        headers = {}
        if not access.authorisation.administered:  # who asks for no token is still asked for the administrator's
            access = replace(access, authorisation=replace(access.authorisation, admin=ADMIN_TOKEN))
            headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        options = AppOptions(access, watch or Watch())
        app = create_app(streams, health, static, gallery_of(library, changeable), options)
        server = await aiohttp_server(app, lingering_time=0.05, auto_decompress=False)
        client = await aiohttp_client(server, headers=headers)
        return Edge(client, streams, engine, lifecycle, static, library)

    return make
