"""Attacks by offers and by the packets of peers, with a viewer's token or without any: rows of the table of ``siege``.

An intruder is a viewer of the honest call's stream with a data channel, over which it sends what no browser would.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import aiohttp
from aiortc import RTCConfiguration, RTCPeerConnection
from google_crc32c import value as crc32c

from echo_rtc.bench.support.calls import connect
from echo_rtc.bench.support.siege import AttackSucceededError, NamedAttack, Target

ATTACKER, HOLDER = "127.0.0.4", "127.0.0.5"
"""The addresses of intruders, and of who holds connections that never come up."""
OFFER_BYTES = 60_000
HALF_OPEN = 60
MAX_HALF_OPEN = 8
MAX_ADDRESSES = 16
CONNECT_S = 10.0
PAUSE_S = 0.005
DATA, INIT, SACK, HEARTBEAT, SHUTDOWN, RECONFIG, FORWARD_TSN = 0, 1, 3, 4, 7, 130, 192


def chunk(kind: int, body: bytes = b"", flags: int = 0) -> bytes:
    """An SCTP chunk (RFC 9260, 3.2)."""
    return struct.pack("!BBH", kind, flags, len(body) + 4) + body + bytes(-len(body) % 4)


def packet(*chunks: bytes, tag: int = 0) -> bytes:
    """An SCTP packet between the ports of data channels."""
    head = struct.pack("!HHL", 5000, 5000, tag)
    body = b"".join(chunks)
    return head + struct.pack("<L", crc32c(head + bytes(4) + body)) + body


def parameter(kind: int, value: bytes = b"", length: int | None = None) -> bytes:
    """A parameter of a chunk; ``length`` lies about its length."""
    return struct.pack("!HH", kind, len(value) + 4 if length is None else length) + value + bytes(-len(value) % 4)


class Intruder:
    """A viewer that is connected, and everything by which it reaches the server."""

    def __init__(self) -> None:
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.answer = ""

    async def come(self, target: Target) -> None:
        """Connects to the honest call's stream. Raises aiohttp.ClientError or TimeoutError."""
        self.connection.addTransceiver("audio", "recvonly")
        self.connection.createDataChannel("events")

        async def exchange(offer: str) -> str:
            status, self.answer = await post(target, target.live, offer)
            if status != 201:
                raise aiohttp.ClientError(f"the intruder is refused: {status}")
            return self.answer

        await connect(self.connection, exchange)
        async with asyncio.timeout(CONNECT_S):
            while self.sctp._association_state != self.sctp.State.ESTABLISHED:  # noqa: ASYNC110  it has no event
                await asyncio.sleep(PAUSE_S)

    @property
    def sctp(self) -> Any:
        return cast(Any, self.connection.sctp)

    @property
    def transport(self) -> Any:
        return self.sctp.transport

    @property
    def address(self) -> tuple[str, int]:
        """The server's address for this connection."""
        found = re.search(r"candidate:\S+ 1 udp \d+ (\d+\.\d+\.\d+\.\d+) (\d+) typ host", self.answer)
        if found is None:
            raise aiohttp.ClientError("the answer has no address")
        return found[1], int(found[2])

    async def send(self, *chunks: bytes, tag: int | None = None) -> None:
        """Sends an SCTP packet. Raises ConnectionError once the connection is over."""
        await self.transport._send_data(packet(*chunks, tag=self.sctp._remote_verification_tag if tag is None else tag))

    def next_tsn(self) -> int:
        """The number of the next chunk of data."""
        number = int(self.sctp._local_tsn)
        self.sctp._local_tsn = (number + 1) % 2**32
        return number


@asynccontextmanager
async def intruder(target: Target) -> AsyncIterator[Intruder]:
    """A connected one while inside."""
    made = Intruder()
    try:
        await made.come(target)
        yield made
    finally:
        await made.connection.close()


async def post(target: Target, name: str, offer: str, source: str = ATTACKER) -> tuple[int, str]:
    """Views a stream by an offer, from an address; status and body."""
    headers = {"Content-Type": "application/sdp"}
    if target.view_token is not None:
        headers["Authorization"] = f"Bearer {target.view_token}"
    connector = aiohttp.TCPConnector(local_addr=(source, 0), ssl=False, force_close=True)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.post(f"{target.url}/whep/{name}", data=offer, headers=headers) as response,
    ):
        return response.status, await response.text()


async def _usual_offer() -> str:
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    try:
        connection.addTransceiver("audio", "recvonly")
        connection.addTransceiver("video", "recvonly")
        await connection.setLocalDescription(await connection.createOffer())
        return connection.localDescription.sdp
    finally:
        await connection.close()


async def swollen_offers(target: Target, seconds: float) -> None:
    """Offers of 60 KB of each attribute that costs more than its line: codecs times feedback, first of all."""
    usual = await _usual_offer()
    products = "".join(f"a=rtpmap:{n % 128} VP8/90000\r\n" for n in range(1_200)) + "a=rtcp-fb:* nack pli\r\n" * 1_300
    swellings = [
        products,
        *(line * ((OFFER_BYTES - len(usual)) // len(line)) for line in _swelling_lines()),
        "a=fmtp:96 " + "a=1;" * 14_000 + "\r\n",
    ]
    async with asyncio.timeout(seconds + CONNECT_S):
        until = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < until:
            for swelling in swellings:
                for name in (target.live, "nobody"):
                    status, _ = await post(target, name, usual + swelling[:OFFER_BYTES])
                    if status >= 500 and status != 503:
                        raise AttackSucceededError(f"a swollen offer gets {status}")


def _swelling_lines() -> tuple[str, ...]:
    return (
        "a=candidate:1 1 udp 1 192.0.2.7 9 typ host\r\n",
        "a=ssrc:1 cname:x\r\n",
        "a=extmap:1 urn:ietf:params:rtp-hdrext:sdes:mid\r\n",
        "a=fingerprint:sha-256 00:11\r\n",
        "a=group:BUNDLE 0 1\r\n",
    )


async def half_open_viewers(target: Target, seconds: float) -> None:
    """Viewers that never connect, more than an address may have."""
    offer = await _usual_offer()
    statuses = [(await post(target, target.live, offer, HOLDER))[0] for _ in range(HALF_OPEN)]
    taken = statuses.count(201)
    if taken > MAX_HALF_OPEN:
        raise AttackSucceededError(f"{taken} connections of one address are held that never come up")
    await asyncio.sleep(seconds)


async def many_candidates(target: Target, seconds: float) -> None:
    """Counts the addresses that the server sends to because one offer has named them."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(100)]
    try:
        for each in sockets:
            each.bind((ATTACKER, 0))
            each.setblocking(False)
        lines = [
            f"a=candidate:{n} 1 udp {10_000 - n} {ATTACKER} {each.getsockname()[1]} typ host\r\n"
            for n, each in enumerate(sockets)
        ]
        offer = re.sub(r"a=candidate:[^\r\n]*\r\n", "", await _usual_offer())
        swollen = offer.replace("a=rtcp-mux\r\n", "a=rtcp-mux\r\n" + "".join(lines), 1)
        await post(target, target.live, swollen, HOLDER)
        await asyncio.sleep(seconds)
        reached = sum(_has_got_something(each) for each in sockets)
        if reached > MAX_ADDRESSES:
            raise AttackSucceededError(f"one offer made the server send to {reached} addresses")
    finally:
        for each in sockets:
            each.close()


def _has_got_something(each: socket.socket) -> bool:
    with contextlib.suppress(BlockingIOError):
        return bool(each.recv(2_000))
    return False


async def strangers_datagrams(target: Target, seconds: float) -> None:
    """A flood of garbage, STUN and DTLS at a peer's port, from an address of no peer."""
    async with intruder(target) as made:
        heads = (b"\x00\x01\x00\x50\x21\x12\xa4\x42", b"\x16\xfe\xfd", b"\x80\x60", b"\x80\xc8", os.urandom(8))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.setblocking(False)
            await _repeat(seconds, lambda n: _throw(stranger, heads[n % 5] + os.urandom(80), made.address))
        if made.transport.state != "connected":
            raise AttackSucceededError("a stranger's datagrams ended a connection")


def _throw(stranger: socket.socket, data: bytes, address: tuple[str, int]) -> None:
    with contextlib.suppress(OSError):  # as many as the system takes
        stranger.sendto(data, address)


async def peers_garbage(target: Target, seconds: float) -> None:
    """The same from the peer's own socket."""
    async with intruder(target) as made:
        ice = made.transport.transport._connection

        def throw(n: int) -> None:
            pair = ice._nominated.get(1)
            if pair is not None:
                pair.protocol.transport.sendto(bytes([(0x80, 0x16)[n % 2]]) + os.urandom(90), pair.remote_addr)

        await _repeat(seconds, throw)


async def gap_blocks(target: Target, seconds: float) -> None:
    """Acknowledgements of everything between 0 and 65535, three hundred times over."""
    body = struct.pack("!LLHH", 0, 9_999, 290, 0) + struct.pack("!HH", 0, 65_535) * 290
    await _must_be_sent_away(target, seconds, lambda made: _sack(made, body))


def _sack(made: Intruder, body: bytes) -> list[bytes]:
    return [chunk(SACK, struct.pack("!L", (made.sctp._last_received_tsn or 0) % 2**32) + body[4:])]


async def empty_parameters(target: Target, seconds: float) -> None:
    """A parameter of no length, which a reader may pass for ever."""
    body = struct.pack("!LLHHL", 1, 9_999, 9, 9, 1) + parameter(1, length=0)
    await _must_be_sent_away(target, seconds, lambda _: [chunk(HEARTBEAT, parameter(1, length=0))])
    await _must_be_sent_away(target, seconds, lambda _: [chunk(INIT, body)], tag=0)


async def fragments(target: Target, seconds: float) -> None:
    """Messages in pieces of one byte that are never complete."""
    await _must_be_sent_away(
        target,
        seconds,
        lambda made: [chunk(DATA, struct.pack("!LHHL", made.next_tsn(), 1, 0, 53) + b"x") for _ in range(50)],
    )


async def data_channels(target: Target, seconds: float) -> None:
    """A new data channel with every chunk."""
    opened = struct.pack("!BBHLHH", 3, 0, 0, 0, 0, 0)
    await _must_be_sent_away(
        target,
        seconds,
        lambda made: [
            chunk(DATA, struct.pack("!LHHL", made.next_tsn(), n, 0, 50) + opened, 3) for n in range(1_000, 1_080, 2)
        ],
    )


async def control_chunks(target: Target, seconds: float) -> None:
    """Hundreds of chunks that are each answered by a packet."""
    for each in (chunk(HEARTBEAT), chunk(SHUTDOWN, bytes(4)), chunk(RECONFIG, parameter(17, bytes(8)))):
        many = [each] * (1_100 // len(each))
        await _must_be_sent_away(target, seconds / 3, partial(_same, many))


def _same(chunks: list[bytes], _: Intruder) -> list[bytes]:
    return chunks


async def forward(target: Target, seconds: float) -> None:
    """Two hundred streams at once, and a number far ahead."""
    streams = b"".join(struct.pack("!HH", n, 1) for n in range(200))
    await _must_be_sent_away(
        target,
        seconds,
        lambda made: [chunk(FORWARD_TSN, struct.pack("!L", (made.sctp._local_tsn + 2**30) % 2**32) + streams)],
    )


async def reports(target: Target, seconds: float) -> None:
    """Compound reports of hundreds of packets, and lists of losses of everything."""
    async with intruder(target) as made:
        pieces = (struct.pack("!BBHL", 0x80, 201, 1, 1) * 140, struct.pack("!BBHLL", 0x81, 206, 2, 1, 1) * 90)

        async def send(n: int) -> None:
            await made.transport._send_rtp(pieces[n % 2])

        await _repeat_async(seconds, send)


async def extensions(target: Target, seconds: float) -> None:
    """Packets of sound that are header extension through and through."""
    async with intruder(target) as made:

        async def send(n: int) -> None:
            head = struct.pack("!BBHLLHH", 0x90, 96, n % 65_536, n, 7, 0xBEDE, 290)
            await made.transport._send_rtp(head + bytes(1_160))

        await _repeat_async(seconds, send)


async def _must_be_sent_away(
    target: Target, seconds: float, make: Callable[[Intruder], Iterable[bytes]], tag: int | None = None
) -> None:
    """Sends packets of such chunks; the server must end the connection."""
    async with intruder(target) as made:

        async def send(_: int) -> None:
            await made.send(*make(made), tag=tag)

        await _repeat_async(seconds, send)
        async with asyncio.timeout(CONNECT_S):
            while made.transport.state == "connected":  # noqa: ASYNC110  it has no event
                await asyncio.sleep(0.05)


async def _repeat_async(seconds: float, send: Callable[[int], object]) -> None:
    """Sends some 200 packets a second for that time, or until the connection is over."""
    until, n = asyncio.get_running_loop().time() + seconds, 0
    with contextlib.suppress(ConnectionError):
        while asyncio.get_running_loop().time() < until:
            await cast(Any, send(n))
            n += 1
            await asyncio.sleep(PAUSE_S)


async def _repeat(seconds: float, send: Callable[[int], None]) -> None:
    """Some 4 000 datagrams a second."""
    until, n = asyncio.get_running_loop().time() + seconds, 0
    while asyncio.get_running_loop().time() < until:
        for _ in range(20):
            send(n)
            n += 1
        await asyncio.sleep(PAUSE_S)


ATTACKS: tuple[NamedAttack, ...] = (
    NamedAttack("swollen offers", swollen_offers),
    NamedAttack("half-open viewers", half_open_viewers),
    NamedAttack("many candidates", many_candidates),
    NamedAttack("strangers' datagrams", strangers_datagrams),
    NamedAttack("a peer's garbage", peers_garbage),
    NamedAttack("SCTP gap blocks", gap_blocks),
    NamedAttack("SCTP empty parameters", empty_parameters),
    NamedAttack("SCTP fragments", fragments),
    NamedAttack("SCTP data channels", data_channels),
    NamedAttack("SCTP control chunks", control_chunks),
    NamedAttack("SCTP forward", forward),
    NamedAttack("RTCP compounds", reports),
    NamedAttack("RTP extensions", extensions),
)
