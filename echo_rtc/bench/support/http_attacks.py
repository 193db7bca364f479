"""Attacks by HTTP and TCP, without a token and with a viewer's: rows of the table of ``siege``.

Attackers come from addresses of 127.0.0.0/8 of their own, so that what is counted by address can be told from what is
counted in all.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass

import jwt

from echo_rtc.bench.support.siege import SECRET, AttackSucceededError, Doors, NamedAttack, Target

ONE_ADDRESS = "127.0.0.3"
IDLE_CONNECTIONS = 1_500
"""More than the usual limit of a process's descriptors."""
HEAD_LIMIT_S = 12.0
"""By then a connection without a complete request head must be closed: the limit and some grace."""
FEW = 8
UPLOAD_BYTES = 27_000_000
ANSWER_S = 5.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The status (None: none came), and the whole of what came."""

    status: int | None
    raw: bytes


async def compressed_bodies(target: Target, seconds: float) -> None:
    """Four connections send compression bombs to forbidden paths, in every encoding that HTTP libraries unpack."""
    zeros = bytes(2_000_000)
    packed = {"gzip": gzip.compress(zeros), "deflate": zlib.compress(zeros), "br": bytes(2_000), "zstd": bytes(2_000)}
    paths = ("/offer", "/whip/x", "/avatars", "/healthz", "/nothing", "/admin/state")

    async def one(number: int) -> None:
        sent = 0
        async with _until(seconds):
            while True:
                encoding = list(packed)[(number + sent) % len(packed)]
                path = paths[(number + sent) % len(paths)]
                body = packed[encoding] * (500 if len(packed[encoding]) < 5_000 else 50)
                head = _head("POST", path, len(body), f"Content-Encoding: {encoding}\r\n")
                answer = await _exchange(target, head + body)
                sent += 1
                if answer.status not in (415, None):
                    raise AttackSucceededError(f"a body in {encoding} for {path} gets {answer.status}")

    await _all(one(number) for number in range(4))


async def idle_connections_of_one(target: Target, seconds: float) -> None:
    """Connections of one address that say nothing."""
    await _idle(target, seconds, lambda _: ONE_ADDRESS)


async def idle_connections_of_many(target: Target, seconds: float) -> None:
    """Connections of hundreds of addresses that say nothing."""
    await _idle(target, seconds, lambda number: f"127.0.{1 + number // 200}.{1 + number % 200}")


async def unfinished_heads(target: Target, seconds: float) -> None:
    """Heads that come a byte at a time stay no longer than the limit allows."""
    connections = [await _open(target, f"127.0.0.{10 + number}") for number in range(FEW)]
    for _, writer in connections:
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")

    async def drip() -> None:
        while True:
            for _, writer in connections:
                writer.write(b"x")
            await asyncio.sleep(0.5)

    await _must_close(connections, "a head that never ends", drip())


async def idle_between_requests(target: Target, seconds: float) -> None:
    """Connections whose first request was answered, and that keep still then."""
    connections = [await _open(target, f"127.0.0.{10 + number}") for number in range(FEW)]
    for _, writer in connections:
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await _must_close(connections, "a connection between two requests")


async def slow_handshakes(target: Target, seconds: float) -> None:
    """TLS handshakes that are begun and not gone on with, more than there are descriptors."""
    hello = _client_hello()
    connections = []
    async with _until(seconds):
        for number in range(IDLE_CONNECTIONS):
            with contextlib.suppress(ConnectionError):
                reader, writer = await _open(target, f"127.0.{1 + number // 200}.{1 + number % 200}", plain=True)
                writer.write(hello[: 1 + number % len(hello)])
                connections.append((reader, writer))
    await _must_close(connections, "a TLS handshake that never ends")


async def bodies_before_tokens(target: Target, seconds: float) -> None:
    """Bodies announced and never sent, and uploads of the largest size, by who has no token."""

    async def one(number: int) -> None:
        async with _until(seconds):
            while True:
                reader, writer = await _open(target, f"127.0.0.{10 + number}")
                path = ("/offer", "/whip/x", "/avatars", "/whep/honest")[number % 4]
                writer.write(_head("POST", path, UPLOAD_BYTES if number % 2 else 60_000, _kind(path)))
                answer = await _answer(reader)
                if answer.status != 401 and answer.status != 413:
                    writer.close()
                    raise AttackSucceededError(f"{path} waits for the body of a stranger (status {answer.status})")
                with contextlib.suppress(ConnectionError):
                    for _ in range(UPLOAD_BYTES // 2**16):
                        writer.write(bytes(2**16))
                        await writer.drain()
                writer.close()

    await _all(one(number) for number in range(FEW))


async def requests_in_a_pipe(target: Target, seconds: float) -> None:
    """Hundreds of requests in one write, over and over, whose answers are never read."""

    async def one(number: int) -> None:
        async with _until(seconds):
            while True:
                with contextlib.suppress(ConnectionError):
                    _, writer = await _open(target, f"127.0.0.{10 + number}")
                    for _ in range(20):
                        writer.write(b"GET /config HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200)
                        async with asyncio.timeout(ANSWER_S):
                            await writer.drain()
                    writer.transport.abort()
                await asyncio.sleep(0.05)

    await _all(one(number) for number in range(2))


async def answers_not_read(target: Target, seconds: float) -> None:
    """Files asked for again and again over connections that take nothing of them."""
    writers = []
    async with _until(seconds):
        for number in range(200):
            with contextlib.suppress(ConnectionError):
                reader, writer = await _open(target, f"127.0.0.{10 + number % 100}", receive_bytes=2048)
                reader._transport.pause_reading()  # type: ignore[attr-defined]
                writer.write(b"GET /echo-rtc.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 30)
                writers.append(writer)
        await asyncio.sleep(seconds)
    for writer in writers:
        writer.transport.abort()


async def no_http(target: Target, seconds: float) -> None:
    """Bytes that are no HTTP, as fast as they are refused: what the log keeps of them is the attack."""

    async def one(number: int) -> None:
        async with _until(seconds):
            while True:
                await _exchange(target, (b"\x16\x03\x01", b"GET / HTTP/9\r\n\r\n", b"\x00" * 60, b"A" * 9_000)[number])

    await _all(one(number) for number in range(4))


async def forged_tokens(target: Target, seconds: float) -> None:
    """Tokens that are signed with another key, unsigned, or have a critical header that is unknown (crit)."""
    claims = {"exp": 2**33, "scope": "admin"}
    tokens = [
        jwt.encode(claims, "", "none"),
        jwt.encode(claims, SECRET[::-1], "HS256"),
        jwt.encode(claims, SECRET, "HS256", headers={"crit": ["exp"], "exp": 1}),
        jwt.encode(claims, SECRET, "HS256", headers={"crit": ["b64"], "b64": True}),
        jwt.encode(claims, SECRET * 2, "HS512"),
        "a.b.c",
        "x" * 4_000,
    ]
    for token in tokens:
        for path in ("/admin/state", "/metrics"):
            answer = await _exchange(target, _head("GET", path, 0, f"Authorization: Bearer {token}\r\n"))
            if answer.status != 401:
                raise AttackSucceededError(f"a forged token gets {answer.status} from {path}")


async def photographs_without_a_token(target: Target, seconds: float) -> None:
    """The avatars are photographs of people."""
    for path in ("/avatars", "/avatars/default/preview"):
        answer = await _exchange(target, _head("GET", path))
        if answer.status != 401:
            raise AttackSucceededError(f"{path} is shown without a token (status {answer.status})")


async def rights_by_forwarding(target: Target, seconds: float) -> None:
    """Requests as forwarders on the server's machine pass them on; none is an administrator's."""
    signs = (
        "", "X-Forwarded-For: 127.0.0.1\r\n", "X-Forwarded-For: unknown\r\n", "Forwarded: for=127.0.0.1\r\n",
        "X-Real-IP: 127.0.0.1\r\n", "Via: 1.1 proxy\r\n", "CF-Connecting-IP: 127.0.0.1\r\n",
    )  # fmt: skip
    for sign in signs:
        for method, path in (("GET", "/metrics"), ("GET", "/admin/state"), ("POST", "/avatars")):
            answer = await _exchange(target, _head(method, path, 0, sign))
            if answer.status != 401:
                raise AttackSucceededError(f"{path} with {sign.strip()!r} gets {answer.status}")


async def names_that_lead_here(target: Target, seconds: float) -> None:
    """DNS rebinding and pages of other origins: neither may use a server that is for this machine."""
    for host in ("evil.example", "localhost.evil.example", "192.0.2.7", "[", "127.0.0.1.evil.example:80"):
        for path in ("/config", "/", "/readyzz", "/whip/x", "/avatars"):
            answer = await _exchange(target, f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            if answer.status not in (400, 403):
                raise AttackSucceededError(f"Host {host} gets {answer.status} from {path}")
    for origin in ("https://evil.example", "null", f"http://localhost:{target.port + 1}"):
        answer = await _exchange(target, _head("GET", "/config", 0, f"Origin: {origin}\r\n"))
        if answer.status != 403:
            raise AttackSucceededError(f"a page of {origin} gets {answer.status}")


async def searching_for_places(target: Target, seconds: float) -> None:
    """Requests for everything there may be, hundreds a second, from one address."""

    async def one(number: int) -> None:
        asked = 0
        async with _until(seconds):
            while True:
                asked += 1
                await _exchange(target, _head("GET", f"/{'%2e%2e/' * (asked % 40)}{asked}{number}"))

    await _all(one(number) for number in range(4))


ATTACKS = (
    NamedAttack("compressed bodies", compressed_bodies),
    NamedAttack("idle connections of one address", idle_connections_of_one),
    NamedAttack("idle connections of many addresses", idle_connections_of_many),
    NamedAttack("heads a byte at a time", unfinished_heads),
    NamedAttack("idle between two requests", idle_between_requests),
    NamedAttack("bodies before tokens", bodies_before_tokens),
    NamedAttack("requests in a pipe", requests_in_a_pipe),
    NamedAttack("answers that are not read", answers_not_read),
    NamedAttack("bytes that are no HTTP", no_http),
    NamedAttack("searching for paths", searching_for_places),
    NamedAttack("forged tokens", forged_tokens),
    NamedAttack("photographs without a token", photographs_without_a_token),
    NamedAttack("slow TLS handshakes", slow_handshakes, Doors.TLS),
    NamedAttack("rights by forwarding", rights_by_forwarding, Doors.OPEN),
    NamedAttack("DNS rebinding", names_that_lead_here, Doors.OPEN),
)

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _idle(target: Target, seconds: float, source: Callable[[int], str]) -> None:
    """Opens connections that say nothing, and keeps those that the server keeps."""
    connections = []
    async with _until(seconds):
        for number in range(IDLE_CONNECTIONS):
            with contextlib.suppress(ConnectionError):
                connections.append(await _open(target, source(number)))
    await _must_close(connections, "a connection that says nothing")


async def _must_close(
    connections: Iterable[Connection], what: str, meanwhile: Coroutine[None, None, None] | None = None
) -> None:
    """Raises AttackSucceededError unless the server closes all connections within the limit."""
    connections = list(connections)
    task = None if meanwhile is None else asyncio.ensure_future(meanwhile)

    async def ended(reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while await reader.read(2**16):
                pass

    try:
        async with asyncio.timeout(HEAD_LIMIT_S):
            await asyncio.gather(*(ended(reader) for reader, _ in connections))
    except TimeoutError:
        raise AttackSucceededError(f"{what} is kept for more than {HEAD_LIMIT_S:g} s") from None
    finally:
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        for _, writer in connections:
            writer.transport.abort()


async def _open(target: Target, source: str, receive_bytes: int | None = None, plain: bool = False) -> Connection:
    """A connection from an address of this machine. Raises ConnectionError."""
    sock = socket.socket()
    try:
        sock.setblocking(False)
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.bind((source, 0))
        async with asyncio.timeout(ANSWER_S):
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", target.port))
            context = None if plain or not target.secure else _trusting()
            return await asyncio.open_connection(sock=sock, ssl=context, server_hostname="" if context else None)
    except TimeoutError:
        sock.close()
        raise ConnectionError("the server does not take the connection") from None
    except BaseException:
        sock.close()
        raise


async def _exchange(target: Target, raw: bytes) -> Answer:
    """Sends bytes over a connection of their own, and reads what comes until it is closed or there is an answer."""
    try:
        reader, writer = await _open(target, ONE_ADDRESS)
    except ConnectionError:
        return Answer(None, b"")
    try:
        writer.write(raw)
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                await writer.drain()
        return await _answer(reader)
    finally:
        writer.transport.abort()


async def _answer(reader: asyncio.StreamReader) -> Answer:
    """What the server says first."""
    raw = b""
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(ANSWER_S):
            raw = await reader.read(2**16)
    line = raw.partition(b"\r\n")[0].split(b" ")
    return Answer(int(line[1]) if len(line) > 1 and line[1].isdigit() else None, raw)


def _head(method: str, path: str, length: int = 0, further: str = "") -> bytes:
    """A request's head; ``further`` header lines end with line ends."""
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{further}\r\n".encode()


def _kind(path: str) -> str:
    kinds = {"/offer": "application/json", "/avatars": "multipart/form-data; boundary=x"}
    return f"Content-Type: {kinds.get(path, 'application/sdp')}\r\n"


def _trusting() -> ssl.SSLContext:
    """TLS to a server whose certificate was made a moment ago."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _client_hello() -> bytes:
    """The first flight of a TLS handshake."""
    outgoing = ssl.MemoryBIO()
    handshake = _trusting().wrap_bio(ssl.MemoryBIO(), outgoing)
    with contextlib.suppress(ssl.SSLWantReadError):
        handshake.do_handshake()
    return outgoing.read()


@contextlib.asynccontextmanager
async def _until(seconds: float) -> AsyncIterator[None]:
    """Leaves the block after that time, or when it ends."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            yield


async def _all(attacks: Iterable[Coroutine[None, None, None]]) -> None:
    """Runs attackers beside each other, until all have ended or one has raised; raises that."""
    tasks = [asyncio.ensure_future(attack) for attack in attacks]
    try:
        for task in asyncio.as_completed(tasks):
            await task
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.wait(tasks)
