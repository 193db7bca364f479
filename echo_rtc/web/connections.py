"""The TCP connections of the HTTP edge: accepted here, bounded in all and by address, and closed if they do not ask.

A connection without a complete request head HEAD_S after it was accepted, began a TLS handshake or got an answer is
closed. Where all places are taken, the connection that has been without an authorised request for longest is closed for
the new one, so that idle connections never keep new clients out. Connections whose request is authorised (uploads,
events, WebSockets) keep their place. Knows requests only as aiohttp parses them, and no route.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import ssl
import time
from asyncio import sslproto
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from aiohttp import hdrs, web

from echo_rtc.counting import Names
from echo_rtc.web.access_log import RouteLogger
from echo_rtc.web.bodies import refusing_expectations
from echo_rtc.web.clients import Clients, parse_address, rate_limit_key
from echo_rtc.web.protocol_log import protocol_logger

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

HEAD_S = 10.0
"""Time for a TLS handshake, for a request's complete head, and between two requests."""
PROXY_IDLE_S = 75.0
"""The same for trusted proxies, which keep connections open and close idle ones after a minute: they should be the
first to do so."""
STALLED_S = 30.0
"""Time after which the kernel closes a connection whose client acknowledges or takes nothing."""
LINGER_S = 2.0
"""After an answer, how long the rest of its request's body is read and thrown away, so that the answer gets through."""
LINGER_BYTES = 64 * 1024
"""How much of it, where the request was not authorised."""
LINGER_AUTHORISED_BYTES = 96 << 20
"""The same where the request was authorised: more than the largest upload, so that a client which sends all before it
reads gets its answer, too."""
TLS_CLOSE_S = 2.0
FINISH_S = 1.0
"""At the end, how long requests that are being answered may still take."""
ACCEPT_RETRY_S = 0.25
BACKLOG = 1024
MOST_DESCRIPTORS = 65_536
MOST_CONNECTIONS = 4_096
MOST_NEW = 512
"""Connections that have not had an answer yet; beyond it the oldest of them give way."""
MOST_HANDSHAKES = 128
"""The same for TLS, whose handshakes hold more memory."""
MADE_AT_ONCE = 4
"""Connections made between two turns of the event loop, so that a flood of them does not hold up calls."""
MOST_REMEMBERED = 10_000
TLS_PAUSE_S = 0.004
"""Between two TLS handshakes, for the same reason: each takes a millisecond or two of computing."""
ACCEPTED_AT_ONCE = 64
READ_BYTES = 64 * 1024
TLS_READ_BYTES = 16 * 1024
"""Buffer of each TLS connection, one record. asyncio's own are 256 KiB, which thousands of handshakes would fill."""
LOG_EVERY_S = 60.0
_PASSED_OVER = 16
"""How many connections that keep their place are looked at for one that gives way."""

T = TypeVar("T")

logger = logging.getLogger(__name__)

sslproto.SSLProtocol.max_size = TLS_READ_BYTES


def raise_descriptor_limit() -> int:
    """Raises this process's limit of open files (RLIMIT_NOFILE) as far as it may; the limit that holds then."""
    if resource is None:
        return MOST_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # some systems allow less than they say
        return soft
    return wanted


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How many connections there may be: in all, and of one address that is no trusted proxy's."""

    total: int = MOST_CONNECTIONS
    per_address: int = MOST_CONNECTIONS

    @classmethod
    def of(cls, per_address: int, descriptors: int) -> ConnectionLimits:
        """From ``--max-connections-per-address`` (0: any number) and the limit of open files, of which half is left to
        peers, workers and logs. One address never gets more than half of all places."""
        total = max(16, min(MOST_CONNECTIONS, descriptors // 2))
        return cls(total, min(per_address or total, total // 2))


class Sparing:
    """Logs a recurring trouble at most once in LOG_EVERY_S, with how often it occurred since."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, float] = {}
        self._count: dict[str, int] = {}

    def warn(self, trouble: str) -> None:
        """``trouble`` is one of a few texts."""
        now = self._clock()
        self._count[trouble] = self._count.get(trouble, 0) + 1
        if now - self._last.get(trouble, -LOG_EVERY_S) >= LOG_EVERY_S:
            logger.warning("%s (%d since the last such line)", trouble, self._count[trouble])
            self._last[trouble], self._count[trouble] = now, 0


class Place:
    """One connection's place. ``proxy``: it is a trusted proxy's; ``protected``: it carries an authorised request;
    ``close`` ends the connection, once there is one."""

    __slots__ = ("client", "close", "protected", "proxy")

    def __init__(self, client: str, proxy: bool) -> None:
        self.client = client
        self.proxy = proxy
        self.protected = False
        self.close: Callable[[], object] = lambda: None


class Places:
    """The open connections. Pure bookkeeping; ``closed`` counts connections that were closed or refused for others, by
    the limit that was reached: address or total."""

    def __init__(self, limits: ConnectionLimits, clients: Clients | None = None) -> None:
        self.limits = limits
        self.closed = Names()
        self._clients = clients or Clients()
        self._all: OrderedDict[Place, None] = OrderedDict()
        """The one without an authorised request for longest first."""
        self._new: OrderedDict[Place, None] = OrderedDict()
        self._answered: OrderedDict[str, None] = OrderedDict()
        """Clients that have had an answer, the latest last."""
        self._of: dict[str, OrderedDict[Place, None]] = {}
        self._sparing = Sparing()

    @property
    def open(self) -> int:
        """How many connections there are."""
        return len(self._all)

    def enter(self, remote: str) -> Place | None:
        """A place for a connection from an address; None where there is none, not even one to be given way."""
        address = parse_address(remote)
        place = Place(rate_limit_key(address), self._clients.trusts(address))
        same = self._of.get(place.client)
        crowded = same is not None and not place.proxy and len(same) >= self.limits.per_address
        if crowded and same is not None and not self._make_room(same, "address"):
            return None
        if self.open >= self.limits.total and not self._make_room(self._all, "total"):
            return None
        self._all[place] = None
        self._of.setdefault(place.client, OrderedDict())[place] = None
        return place

    def begun(self, place: Place, most: int = MOST_NEW) -> None:
        """Buffers are about to be made for the connection, which has asked for nothing yet. Of those there are no more
        than ``most``: the oldest gives way."""
        if place.proxy or self.knows(place):
            return
        if len(self._new) >= most:
            self._make_room(self._new, "total")
        self._new[place] = None

    def knows(self, place: Place) -> bool:
        """Whether the client has had an answer lately, over any connection."""
        return place.client in self._answered

    def rested(self, place: Place) -> None:
        """The connection's request was answered; it is the last again that has to give way."""
        place.protected = False
        self._new.pop(place, None)
        self._answered[place.client] = None
        self._answered.move_to_end(place.client)
        if len(self._answered) > MOST_REMEMBERED:
            self._answered.popitem(last=False)
        if place in self._all:
            self._all.move_to_end(place)
            self._of[place.client].move_to_end(place)

    def leave(self, place: Place) -> None:
        """The connection is closed. Does nothing the second time."""
        if place in self._all:
            del self._all[place]
            self._new.pop(place, None)
            same = self._of[place.client]
            del same[place]
            if not same:
                del self._of[place.client]

    def _make_room(self, among: OrderedDict[Place, None], limit: str) -> bool:
        """Closes one connection that may be closed; whether there was one."""
        self.closed.count(limit)
        words = {"address": "one address has", "total": "there are"}[limit]
        self._sparing.warn(f"{words} as many connections as are allowed; the longest idle ones are closed")
        for _ in range(min(_PASSED_OVER, len(among))):
            place = next(iter(among))
            if not place.protected and not place.proxy:
                self.leave(place)
                place.close()
                return True
            among.move_to_end(place)
        return False


class Connection(web.RequestHandler):
    """A connection as aiohttp handles it, with its place, and a bound on what is read of a body after the answer."""

    def __init__(self, server: web.Server, places: Places, place: Place, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=PROXY_IDLE_S if place.proxy else HEAD_S,
            lingering_time=0.0,  # own, in finish_response
            read_bufsize=READ_BYTES,
            auto_decompress=False,  # what is packed is refused, and never unpacked
            logger=protocol_logger(),
            access_log_class=RouteLogger,
        )
        self._places = places
        self._place = place
        self._unreadable = False
        self.gone = asyncio.Event()
        """Set once the connection is closed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._place.close = transport.abort
        if hasattr(transport, "max_size"):  # of one read; asyncio's own is 256 KiB
            transport.max_size = READ_BYTES
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._places.leave(self._place)
        self.gone.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parses what came. After what is no HTTP nothing more is read, and its error lets go of what it was found in:
        thousands of such pieces would wait for the garbage collector."""
        if self._unreadable:
            return
        super().data_received(data)
        error = getattr(self._messages[-1][0], "exc", None) if self._messages else None
        if isinstance(error, Exception):
            self._unreadable = True
            error.__traceback__ = None

    def protect(self) -> None:
        """The request that is being handled is authorised: the connection does not give way to others until it is
        answered."""
        self._place.protected = True

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Sends the answer, then reads what is left of the request's body, within bounds."""
        try:
            sent = await self._finish(request, resp, start_time)
            # Read nothing of a packed body: a client that sends one after the refusal is no browser.
            if hdrs.CONTENT_ENCODING not in request.headers:
                await self._discard(request)
        finally:
            self._places.rested(self._place)
        return sent

    async def _finish(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        try:
            return await super().finish_response(request, resp, start_time)
        except Exception:  # a boundary: where aiohttp expects ConnectionError, asyncio's sendfile has others
            if request.transport is not None and not request.transport.is_closing():
                raise
            return resp, True

    async def _discard(self, request: web.BaseRequest) -> None:
        """Reads and throws away what is left of a body. aiohttp closes the connection where that is not all."""
        left = LINGER_AUTHORISED_BYTES if self._place.protected else LINGER_BYTES
        with contextlib.suppress(TimeoutError, web.RequestPayloadError, ConnectionError):
            async with asyncio.timeout(LINGER_S):
                while left > 0 and not request.content.is_eof():
                    left -= len(await request.content.readany())
        # What was received meanwhile would stay until the garbage collector finds the request.
        with contextlib.suppress(Exception):  # whatever ended the body is of no interest any more
            request.content.read_nowait()


def protect(request: web.Request) -> None:
    """The request is authorised: its connection does not give way to others until it is answered."""
    if isinstance(request.protocol, Connection):
        request.protocol.protect()


def gone_of(request: web.Request) -> asyncio.Event:
    """Set once the client has closed the connection; never on a server that is not of this module."""
    return request.protocol.gone if isinstance(request.protocol, Connection) else asyncio.Event()


class HungUpError(Exception):
    """The client has closed the connection before it had its answer."""


async def while_connected(
    request: web.Request, work: Coroutine[None, None, T], undo: Callable[[], Awaitable[None]]
) -> T:
    """Does ``work`` for as long as the client is there. Raises HungUpError once it has hung up: the work is cancelled
    then, or undone if it was just done."""
    task = asyncio.ensure_future(work)
    gone = gone_of(request)
    waiting = asyncio.create_task(gone.wait(), name="client hangs up")
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        if not task.done():
            task.cancel()
        await asyncio.wait({task, waiting})
    if not gone.is_set():
        return task.result()
    if not task.cancelled() and task.exception() is None:
        await undo()
    raise HungUpError


class Listener:
    """Accepts connections for an aiohttp server: :meth:`start`, then :meth:`stop`."""

    def __init__(
        self, server: web.Server, places: Places, tls: ssl.SSLContext | None, on_failure: Callable[[], None]
    ) -> None:
        """``on_failure`` is called for each connection that was not made, whose memory is free but for reference
        cycles."""
        self._on_failure = on_failure
        self._server = server
        self._places = places
        self._tls = tls
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._sparing = Sparing()
        self._waiting: OrderedDict[Place, tuple[socket.socket, float]] = OrderedDict()
        """Accepted sockets to be handed on, the newest first: under a flood the oldest ones belong to it."""
        self._maker: asyncio.Task[None] | None = None

    def start(self, sockets: Sequence[socket.socket]) -> None:
        """Accepts from sockets that :func:`bind` has made; they are this object's from now on."""
        self._sockets += sockets
        for each in sockets:
            self._begin(self._accept(each), f"accept on {each.getsockname()[0]}")

    async def stop(self) -> None:
        """Accepts nothing more, and gives up connections that are in their TLS handshake."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for each in (*self._sockets, *(accepted for accepted, _ in self._waiting.values())):
            each.close()

    def _begin(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self, listener: socket.socket) -> None:
        """Accepts for ever."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(listener)
            except ConnectionAbortedError:
                continue
            except OSError as error:  # no descriptors or no memory: connections wait meanwhile
                self._sparing.warn(f"connections cannot be accepted: {error.strerror or error}")
                await asyncio.sleep(ACCEPT_RETRY_S)
                continue
            self._take(accepted, str(address[0]))
            for _ in range(ACCEPTED_AT_ONCE):  # those that wait already: refusing is cheap, and must not take long
                try:
                    accepted, address = listener.accept()
                except OSError:
                    break
                accepted.setblocking(False)
                self._take(accepted, str(address[0]))
            await asyncio.sleep(0)

    def _take(self, accepted: socket.socket, remote: str) -> None:
        """Gives an accepted connection its place, or closes it."""
        place = self._places.enter(remote)
        if place is None:
            accepted.close()
            return
        if self._places.knows(place):  # a flood of others does not keep it waiting
            place.close = self._begin(self._serve(accepted, place, HEAD_S), "connection").cancel
            return

        def give_way() -> None:
            self._waiting.pop(place, None)
            accepted.close()

        place.close = give_way
        self._waiting[place] = accepted, asyncio.get_running_loop().time()
        if self._maker is None or self._maker.done():
            self._maker = self._begin(self._make(), "make connections")

    async def _make(self) -> None:
        """Hands accepted connections on, the newest first, and a few at a time; those that had to wait too long are
        closed."""
        now = asyncio.get_running_loop().time
        while self._waiting:
            for _ in range(min(1 if self._tls else MADE_AT_ONCE, len(self._waiting))):
                place, (accepted, since_s) = self._waiting.popitem()
                self._places.begun(place, MOST_HANDSHAKES if self._tls else MOST_NEW)
                left_s = max(0.1, since_s + HEAD_S - now())
                place.close = self._begin(self._serve(accepted, place, left_s), "connection").cancel
            await asyncio.sleep(TLS_PAUSE_S if self._tls else 0)
            while self._waiting and next(iter(self._waiting.values()))[1] + HEAD_S < now():
                place = next(iter(self._waiting))
                self._places.leave(place)
                place.close()

    async def _serve(self, accepted: socket.socket, place: Place, handshake_s: float) -> None:
        """Hands a connection to aiohttp, once its TLS handshake is done if there is to be one."""
        loop = asyncio.get_running_loop()
        try:
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(STALLED_S * 1000))
            await loop.connect_accepted_socket(
                lambda: Connection(self._server, self._places, place, loop),
                accepted,
                ssl=self._tls,
                ssl_handshake_timeout=handshake_s if self._tls else None,
                ssl_shutdown_timeout=TLS_CLOSE_S if self._tls else None,
            )
        except (OSError, asyncio.CancelledError) as error:  # OSError: of the handshake, ssl.SSLError too
            self._places.leave(place)
            accepted.close()
            self._on_failure()  # asyncio's objects of a failed handshake refer to each other
            logger.debug("a connection was not made: %s", error)
            if isinstance(error, asyncio.CancelledError):
                raise


@asynccontextmanager
async def listening(
    app: web.Application,
    places: Places,
    sockets: Sequence[socket.socket],
    tls: ssl.SSLContext | None = None,
    on_failure: Callable[[], None] = lambda: None,
) -> AsyncIterator[None]:
    """The application served on ``sockets`` while inside; leaving it takes at most about FINISH_S. ``on_failure``: see
    :class:`Listener`."""
    runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=FINISH_S)
    await runner.setup()
    assert runner.server is not None
    runner.server.request_handler = refusing_expectations(runner.server.request_handler)
    listener = Listener(runner.server, places, tls, on_failure)
    listener.start(sockets)
    try:
        yield
    finally:
        await listener.stop()
        await runner.cleanup()


async def bind(host: str, port: int) -> list[socket.socket]:
    """Listening sockets for every address of a host, all on one port, which the system chooses if it is 0. Families
    that the system lacks are left out. Raises OSError where none is left, or an address cannot be had."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    made: list[socket.socket] = []
    missing: OSError | None = None
    for family, address in addresses:
        chosen = made[0].getsockname()[1] if made else port
        try:
            made.append(_listening_socket(family, (address[0], chosen, *address[2:])))
        except OSError as error:
            if len(addresses) == 1 or error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                for each in made:
                    each.close()
                raise
            missing = error
    if not made:
        raise missing or OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    return made


def _listening_socket(family: int, address: tuple[object, ...]) -> socket.socket:
    """Raises OSError."""
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
        made.setblocking(False)
        made.listen(BACKLOG)
    except BaseException:
        made.close()
        raise
    return made
