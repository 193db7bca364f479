"""Connections: how many there may be, who gives way, and that those who do not ask are closed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import resource
import socket
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import Mock

import pytest
from aiohttp import web

from echo_rtc.web import connections
from echo_rtc.web.clients import Clients
from echo_rtc.web.connections import (
    Connection,
    ConnectionLimits,
    HungUpError,
    Place,
    Places,
    Sparing,
    bind,
    listening,
    while_connected,
)
from echo_rtc.web.tls import self_signed

ANSWER_S = 5.0


def entered(places: Places, remote: str, closed: list[str], name: str = "") -> Place:
    """A place that tells when it gives way."""
    place = places.enter(remote)
    assert place is not None, remote
    place.close = lambda: closed.append(name or remote)
    return place


def test_one_address_keeps_the_newest_of_its_connections() -> None:
    places, closed = Places(ConnectionLimits(total=10, per_address=2)), list[str]()
    for name in ("a", "b", "c", "d"):
        entered(places, "192.0.2.1", closed, name)
    entered(places, "192.0.2.2", closed)
    assert closed == ["a", "b"]
    assert places.open == 3
    assert dict(places.closed.items()) == {"address": 2}


def test_an_ipv6_network_counts_as_one_address() -> None:
    places, closed = Places(ConnectionLimits(total=10, per_address=1)), list[str]()
    for remote in ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "::ffff:192.0.2.1", "192.0.2.1"):
        entered(places, remote, closed)
    assert closed == ["2001:db8::1", "::ffff:192.0.2.1"]


def test_a_full_server_closes_the_longest_idle_for_the_newest() -> None:
    places, closed = Places(ConnectionLimits(total=3, per_address=3)), list[str]()
    first, second, _ = (entered(places, f"192.0.2.{number}", closed) for number in (1, 2, 3))
    first.protected = True
    places.rested(second)
    entered(places, "192.0.2.4", closed)
    assert closed == ["192.0.2.3"], "the first is protected, the second asked a moment ago"
    places.rested(first)
    assert not first.protected
    entered(places, "192.0.2.5", closed)
    assert closed[1:] == ["192.0.2.2"]
    assert places.open == 3


def test_where_all_are_protected_a_new_connection_is_refused() -> None:
    places = Places(ConnectionLimits(total=20, per_address=2))
    for _ in range(2):
        entered(places, "192.0.2.1", []).protected = True
    assert places.enter("192.0.2.1") is None
    assert places.enter("192.0.2.2") is not None
    full = Places(ConnectionLimits(total=2, per_address=2))
    held = [entered(full, f"192.0.2.{number}", []) for number in (1, 2)]
    for place in held:
        place.protected = True
    assert full.enter("192.0.2.3") is None
    full.leave(held[0])
    full.leave(held[0])
    assert full.enter("192.0.2.3") is not None
    assert full.open == 2


def test_a_trusted_proxy_is_not_limited_and_gives_no_way() -> None:
    places, closed = Places(ConnectionLimits(total=5, per_address=1), Clients.of(["10.0.0.0/8"])), list[str]()
    for _ in range(4):
        entered(places, "10.1.1.1", closed, "proxy")
    entered(places, "192.0.2.1", closed)
    entered(places, "192.0.2.2", closed)
    assert closed == ["192.0.2.1"]


@pytest.mark.parametrize(
    ("per_address", "descriptors", "total", "each"),
    [(256, 65_536, 4_096, 256), (256, 1_024, 512, 256), (256, 256, 128, 64), (0, 65_536, 4_096, 2_048), (8, 1, 16, 8)],
)
def test_limits_stay_well_below_the_limit_of_files(per_address: int, descriptors: int, total: int, each: int) -> None:
    limits = ConnectionLimits.of(per_address, descriptors)
    assert (limits.total, limits.per_address) == (total, each)


@pytest.mark.parametrize(
    ("now", "allowed", "expected", "asked"),
    [
        ((1_024, 4_096), True, 4_096, (4_096, 4_096)),
        ((1_024, 10**6), True, 65_536, (65_536, 10**6)),
        ((1_024, -1), True, 65_536, (65_536, -1)),
        ((4_096, 4_096), True, 4_096, None),
        ((-1, -1), True, 65_536, None),
        ((1_024, 4_096), False, 1_024, (4_096, 4_096)),
    ],
)
def test_the_limit_of_files_is_raised_as_far_as_it_may(
    monkeypatch: pytest.MonkeyPatch, now: tuple[int, int], allowed: bool, expected: int, asked: tuple[int, int] | None
) -> None:
    wanted: list[tuple[int, int]] = []

    def set_limit(_: int, limits: tuple[int, int]) -> None:
        wanted.append(limits)
        if not allowed:
            raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: now)
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    assert connections.raise_descriptor_limit() == expected
    assert wanted == ([] if asked is None else [asked])


def test_a_recurring_trouble_is_one_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    sparing = Sparing(lambda: now)
    for second in range(150):
        now = float(second)
        sparing.warn("no descriptors")
        sparing.warn("something else") if second == 3 else None
    lines = [record.getMessage() for record in caplog.records]
    assert [line for line in lines if line.startswith("no")] == [
        f"no descriptors ({count} since the last such line)" for count in (1, 60, 60)
    ]
    assert len(lines) == 4


# Real sockets


async def slow(request: web.Request) -> web.Response:
    """Says when it has begun, and goes on when it is told to."""
    if isinstance(request.protocol, Connection):
        request.protocol.protect()
    request.app[BEGUN].set()
    await request.app[GO].wait()
    return web.Response(text="done")


async def cut_off(request: web.Request) -> web.Response:
    """Closes the connection before the answer."""
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def quick(_: web.Request) -> web.Response:
    return web.Response(text="here")


BEGUN, GO = web.AppKey("begun", asyncio.Event), web.AppKey("go", asyncio.Event)
Open = Callable[[], "asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]"]


@asynccontextmanager
async def served(
    limits: ConnectionLimits | None = None, tls: Path | None = None
) -> AsyncIterator[tuple[web.Application, Places, int]]:
    app = web.Application()
    app.router.add_get("/", quick)
    app.router.add_post("/", quick)
    app.router.add_get("/slow", slow)
    app.router.add_get("/cut", cut_off)
    app[BEGUN], app[GO] = asyncio.Event(), asyncio.Event()
    places = Places(limits or ConnectionLimits())
    sockets = await bind("127.0.0.1", 0)
    context = self_signed(["localhost"], tls).context if tls else None
    async with listening(app, places, sockets, context):
        yield app, places, sockets[0].getsockname()[1]
        app[GO].set()


async def said(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the server closes; a reset is an end, too."""
    with contextlib.suppress(ConnectionError):
        return await asyncio.wait_for(reader.read(), ANSWER_S)
    return b""


REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ", REQUEST, REQUEST + b"GET "])
async def test_a_connection_without_a_complete_head_is_closed(monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    assert connections.HEAD_S == 10.0
    monkeypatch.setattr(connections, "HEAD_S", 0.2)
    async with served() as (_, places, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(begun)

        async def drip() -> None:
            while begun.endswith(b": "):
                writer.write(b"x")
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        answer = await said(reader)
        assert answer.count(b"HTTP/1.1 200") == begun.count(b"\r\n\r\n")
        dripping.cancel()
        writer.close()
        assert places.open == 0


async def test_a_handshake_that_never_ends_is_closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.2)
    async with served(tls=tmp_path) as (_, places, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x16\x03\x01")
        assert await said(reader) == b""
        writer.close()
        async with asyncio.timeout(ANSWER_S):
            while places.open:  # noqa: ASYNC110  connections have no event
                await asyncio.sleep(0.01)


async def test_a_request_in_progress_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.05)
    async with served(ConnectionLimits(total=4, per_address=1)) as (app, _, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await app[BEGUN].wait()
        refused, other = await asyncio.open_connection("127.0.0.1", port)
        assert await said(refused) == b"", "the only place of the address is in use"
        other.close()
        await asyncio.sleep(0.1)
        app[GO].set()
        assert (await said(reader)).endswith(b"done")
        writer.close()


async def test_idle_connections_give_way_to_new_ones() -> None:
    async with served(ConnectionLimits(total=8, per_address=4)) as (_, places, port):
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(40)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert b"200 OK" in await said(reader)
        assert places.open <= 4
        for _, each in [*idle, (reader, writer)]:
            each.close()


async def test_little_is_read_of_an_unauthorised_body() -> None:
    async with served() as (_, _, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\n")
        sent = 0
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(ANSWER_S):
                while sent < 50_000_000:
                    writer.write(bytes(2**16))
                    await writer.drain()
                    sent += 2**16
        assert sent < 30_000_000, "what buffers on the way hold, and no more"
        writer.close()


@pytest.mark.parametrize(("path", "errors"), [("/cut", 0), ("/", 1)])
async def test_an_answer_to_a_closed_connection_is_no_error(
    path: str, errors: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Files are sent by asyncio, whose error for a connection that is being closed is a RuntimeError."""

    async def fail(*_: object) -> None:
        raise RuntimeError("Transport is closing")

    monkeypatch.setattr(web.RequestHandler, "finish_response", fail)
    async with served() as (_, places, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert await said(reader) == b""
        writer.close()
    assert places.open == 0
    assert sum(record.levelno >= logging.ERROR for record in caplog.records) == errors


async def test_a_lack_of_descriptors_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(connections, "ACCEPT_RETRY_S", 0.01)
    loop = asyncio.get_running_loop()
    accept, tries = loop.sock_accept, 0

    async def scarce(sock: socket.socket) -> tuple[socket.socket, object]:
        nonlocal tries
        tries += 1
        if tries < 20:
            raise OSError(errno.EMFILE, "Too many open files")
        found: tuple[socket.socket, object] = await accept(sock)
        return found

    monkeypatch.setattr(loop, "sock_accept", scarce)
    async with served() as (_, _, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert b"200 OK" in await said(reader)
        writer.close()
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("connections cannot be accepted: Too many open files")
    assert "Traceback" not in caplog.text


async def test_a_port_that_is_taken_is_an_error() -> None:
    [first] = await bind("127.0.0.1", 0)
    with first, pytest.raises(OSError, match="in use") as taken:
        await bind("127.0.0.1", first.getsockname()[1])
    assert taken.value.errno == errno.EADDRINUSE
    both = await bind("localhost", 0)
    assert len({each.getsockname()[1] for each in both}) == 1
    for each in both:
        each.close()


class Work:
    """Something that takes time, and can be cancelled or undone."""

    def __init__(self) -> None:
        self.begun, self.go = asyncio.Event(), asyncio.Event()
        self.outcome: list[str] = []

    async def do(self) -> str:
        self.begun.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.outcome.append("cancelled")
            raise
        self.outcome.append("done")
        return "made"

    async def undo(self) -> None:
        self.outcome.append("undone")

    async def handle(self, request: web.Request) -> web.Response:
        try:
            return web.Response(text=await while_connected(request, self.do(), self.undo))
        except HungUpError:
            self.outcome.append("hung up")
            raise web.HTTPBadRequest from None


async def test_work_for_a_client_that_hangs_up_is_cancelled() -> None:
    work = Work()
    app = web.Application()
    app.router.add_get("/", work.handle)
    sockets = await bind("127.0.0.1", 0)
    async with listening(app, Places(ConnectionLimits()), sockets):
        port = sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST)
        await work.begun.wait()
        writer.close()
        async with asyncio.timeout(ANSWER_S):
            while "hung up" not in work.outcome:  # noqa: ASYNC110  the handler has no event
                await asyncio.sleep(0.01)
        assert work.outcome == ["cancelled", "hung up"]
        work.go.set()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert (await said(reader)).endswith(b"made")
        assert work.outcome[2:] == ["done"]
        writer.close()


async def test_work_that_is_done_as_the_client_hangs_up_is_undone() -> None:
    work = Work()
    work.go.set()
    protocol = Mock(spec=Connection)
    protocol.gone = asyncio.Event()
    protocol.gone.set()
    with pytest.raises(HungUpError):
        await while_connected(Mock(protocol=protocol), work.do(), work.undo)
    assert work.outcome == ["done", "undone"]


async def test_clients_that_had_an_answer_go_first() -> None:
    """A flood of handshakes from addresses that never ask does not keep out who asks."""
    places, closed = Places(ConnectionLimits(total=100, per_address=50)), list[str]()
    known = entered(places, "192.0.2.1", closed)
    assert not places.knows(known)
    places.rested(known)
    assert places.knows(known)
    new = [entered(places, f"198.51.100.{number}", closed) for number in range(4)]
    for place in (known, *new):
        places.begun(place, most=2)
    assert closed == ["198.51.100.0", "198.51.100.1"]


async def test_of_what_is_no_http_nothing_is_kept() -> None:
    """Errors are found by the garbage collector only; what they were found in would be kept until then."""
    gc.collect()
    gc.disable()
    try:
        async with served() as (_, places, port):
            tracemalloc.start()
            for _ in range(40):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(bytes(60_000))
                await said(reader)
                writer.close()
            assert places.open == 0
            kept, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert kept < 2**20
    finally:
        gc.enable()


@pytest.mark.parametrize("path", ["/", "/nothing"])
@pytest.mark.parametrize("expectation", [b"a miracle", b"\xff"])
async def test_a_strange_expectation_is_refused_for_every_path(
    path: str, expectation: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with served() as (_, _, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: "
        writer.write(head.encode() + expectation + b"\r\n\r\n")
        answer = await said(reader)
        writer.close()
    assert answer.startswith(b"HTTP/1.1 417 ")
    assert b"application/problem+json" in answer
    assert "Traceback" not in caplog.text
