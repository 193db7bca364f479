"""What of SCTP, RTCP, RTP and STUN is hostile, and what the worst that is not costs aiortc."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSctpTransport
from aiortc.rtcsctptransport import InitChunk
from aiortc.rtp import RtcpPacket

from echo_rtc.bench.support.rtc_attacks import chunk, packet, parameter
from echo_rtc.rtc.guard import Guard
from echo_rtc.rtc.packets import (
    MAX_GAPS,
    MAX_REPORTS,
    MAX_STREAMS,
    MAX_WAITING,
    Association,
    HostilePacketError,
    is_stun,
    read_sctp,
    rtcp_packets,
    rtp_extension_bytes,
    stun_is_short,
)
from echo_rtc.rtc.seams.sctp import guard_data
from tests.support.steps import counted

MAX_STEPS = 30_000
"""Lines of Python for one packet; a laptop runs about ten million a second."""
PACKET_BYTES = 1_200
UP = Association(received=1_000, misordered=0, next_sent=501, streams=(1,), waiting=0)
DATA, INIT, INIT_ACK, SACK, HEARTBEAT, ABORT, SHUTDOWN, ERROR, COOKIE = 0, 1, 2, 3, 4, 6, 7, 9, 10
RECONFIG, FORWARD_TSN = 130, 192


def data(tsn: int = 1_001, stream: int = 1, flags: int = 3, payload: bytes = b"x", protocol: int = 53) -> bytes:
    return chunk(DATA, struct.pack("!LHHL", tsn, stream, 0, protocol) + payload, flags)


def sack(cumulative: int, *gaps: tuple[int, int], duplicates: int = 0) -> bytes:
    body = struct.pack("!LLHH", cumulative, 9_999, len(gaps), duplicates)
    body += b"".join(struct.pack("!HH", *gap) for gap in gaps) + bytes(4 * duplicates)
    return chunk(SACK, body)


INIT_HEAD = struct.pack("!LLHHL", 1, 9_999, 9, 9, 1_000)


@pytest.mark.parametrize(
    "chunks",
    [
        (data(),),
        tuple(data(1_001 + n) for n in range(50)),
        (sack(500), data()),
        (sack(490, (2, 3), (5, 5)),),
        (sack(400, duplicates=20),),
        (data(1_000), data(900)),
        (data(flags=1), data(1_002, flags=2)),
        (chunk(INIT, INIT_HEAD + parameter(0xC000) + parameter(0x8008, b"\xc0\x82")),),
        (chunk(COOKIE, bytes(24)), data()),
        (chunk(HEARTBEAT, parameter(1, bytes(40))),),
        (chunk(FORWARD_TSN, struct.pack("!LHH", 1_010, 1, 4)),),
        (chunk(RECONFIG, parameter(13, struct.pack("!LLLH", 1, 2, 3, 1))),),
        (chunk(SHUTDOWN, bytes(4)),),
        (chunk(ABORT),),
        (chunk(77, b"unknown"),),
    ],
)
def test_what_honest_peers_send_is_let_through(chunks: tuple[bytes, ...]) -> None:
    assert read_sctp(packet(*chunks), UP).chunks == len(chunks)


@pytest.mark.parametrize(
    ("chunks", "words"),
    [
        ([sack(500, *[(n, 65_535) for n in range(0, 290)])], "more than 64 gaps"),
        ([sack(400, (1, 65_535))], "not sent"),
        ([sack(400, (9, 9), (3, 4))], "out of order"),
        ([sack(400, (5, 3))], "out of order"),
        ([sack(501)], "not sent"),
        ([sack(400, *[(n, n) for n in range(1, 200, 2)])], "more than 64 gaps"),
        ([chunk(SACK, struct.pack("!LLHH", 400, 1, 60_000, 0))], "length"),
        ([chunk(INIT, INIT_HEAD + parameter(1, length=0))], "parameter whose length"),
        ([chunk(INIT_ACK, INIT_HEAD + parameter(1, length=0))], "parameter whose length"),
        ([chunk(HEARTBEAT, parameter(1, length=0))], "parameter whose length"),
        ([chunk(ERROR, parameter(1, length=3))], "parameter whose length"),
        ([chunk(ABORT, parameter(1, length=900))], "parameter whose length"),
        ([chunk(RECONFIG, parameter(13, length=0))], "parameter whose length"),
        ([chunk(INIT, INIT_HEAD + parameter(1) * 100)], "more than 16 parameters"),
        ([chunk(RECONFIG, parameter(16, bytes(8)) * 3)], "more than 2 parameters"),
        ([chunk(RECONFIG, parameter(13, bytes(12 + 400)))], "RE-CONFIG whose length"),
        ([chunk(RECONFIG, parameter(13, bytes(3)))], "RE-CONFIG whose length"),
        ([chunk(HEARTBEAT, parameter(1))] * 2, "twice"),
        ([chunk(SHUTDOWN, bytes(4))] * 100, "twice"),
        ([chunk(99)] * 2, "twice"),
        ([chunk(INIT, INIT_HEAD), data()], "INIT beside"),
        ([chunk(FORWARD_TSN, struct.pack("!L", 2**31))], "far ahead"),
        ([chunk(FORWARD_TSN, struct.pack("!L", 1_001) + bytes(4 * 100))], "FORWARD TSN whose length"),
        ([chunk(FORWARD_TSN, struct.pack("!LH", 1_001, 1))], "FORWARD TSN whose length"),
        ([data(5_000)], "far ahead"),
        ([data(1_001 + n, n + 2) for n in range(64)], "SCTP streams"),
        ([data(1_001 + n) for n in range(65)], "more than 64 SCTP chunks"),
        ([data(1_001 + n, flags=0) for n in range(5)], "never complete"),
        ([chunk(DATA, bytes(12))], "cut off"),
        ([struct.pack("!BBH", 0, 0, 3)], "length is wrong"),
        ([struct.pack("!BBH", 0, 0, 400)], "length is wrong"),
    ],
)
def test_what_no_honest_peer_sends_is_found(chunks: list[bytes], words: str) -> None:
    with pytest.raises(HostilePacketError, match=words):
        read_sctp(packet(*chunks), UP)


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ({"misordered": 300}, "too many gaps"),
        ({"waiting": MAX_WAITING}, "never complete"),
        ({"streams": range(2, MAX_STREAMS + 2)}, "SCTP streams"),
        ({"received": None}, "before an association"),
    ],
)
def test_what_an_association_holds_is_bounded(held: dict[str, Any], words: str) -> None:
    with pytest.raises(HostilePacketError, match=words):
        read_sctp(packet(data(flags=2)), replace(UP, **held))


def test_numbers_go_round() -> None:
    late = replace(UP, received=2**32 - 3, next_sent=5)
    read_sctp(packet(data(2), sack(2**32 - 10, (1, 3))), late)


class Guarded:
    """aiortc's association behind our guard, as it is once the peer's INIT has come. What it sends goes nowhere."""

    def __init__(self) -> None:
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.connection.createDataChannel("events")
        self.sctp = cast(Any, self.connection.sctp)
        self.sent = 0
        self.reasons: list[str] = []
        self.sctp._send_chunk = self._count
        self.guard = Guard(self.reasons.append, lambda: 0.0)
        guard_data(self.sctp, self.guard)
        self.sctp._remote_port = 5000

    async def _count(self, _: object) -> None:
        self.sent += 1

    async def begin(self) -> None:
        init = InitChunk()
        init.initiate_tag, init.advertised_rwnd, init.initial_tsn = 1, 9_999, 1_001
        init.outbound_streams = init.inbound_streams = 1_000
        await self.sctp._receive_chunk(init)
        self.sctp._set_state(RTCSctpTransport.State.ESTABLISHED)
        self.sctp._association_state = RTCSctpTransport.State.ESTABLISHED
        self.sent = 0

    async def receive(self, *chunks: bytes, tag: int | None = None) -> None:
        tag = self.sctp._local_verification_tag if tag is None else tag
        await self.sctp._handle_data(packet(*chunks, tag=tag))


def filled(make: Callable[[int], bytes]) -> list[bytes]:
    chunks: list[bytes] = []
    while sum(map(len, chunks)) + len(make(len(chunks))) <= PACKET_BYTES - 12:
        chunks.append(make(len(chunks)))
    return chunks


WORST: dict[str, tuple[int, Callable[[], list[bytes]]]] = {
    "data, one byte each": (40, lambda: filled(lambda n: data(1_001 + n))),
    "data, misordered": (40, lambda: filled(lambda n: data(1_003 + 2 * n))),
    "data, one byte fragments": (40, lambda: filled(lambda n: data(1_001 + n, flags=2 if not n else 0))),
    "data, a stream each": (40, lambda: filled(lambda n: data(1_001 + n, n))),
    "data, duplicates": (40, lambda: filled(lambda n: data(1_000))),
    "channels": (40, lambda: filled(lambda n: data(1_001 + n, n, payload=b"\x03" + bytes(11), protocol=50))),
    "gaps": (0, lambda: [sack(0, *[(0, 65_535)] * 290)]),
    "duplicates": (0, lambda: [sack(0, duplicates=290)]),
    "init parameters": (0, lambda: [chunk(INIT, INIT_HEAD + parameter(1) * 290)]),
    "an empty parameter": (0, lambda: [chunk(INIT, INIT_HEAD + parameter(1, length=0))]),
    "heartbeats": (0, lambda: [chunk(HEARTBEAT)] * 297),
    "cookies": (0, lambda: [chunk(COOKIE, bytes(24))] * 40),
    "shutdowns": (0, lambda: [chunk(SHUTDOWN, bytes(4))] * 140),
    "resets": (0, lambda: [chunk(RECONFIG, parameter(13, bytes(1_160)))]),
    "reset answers": (0, lambda: [chunk(RECONFIG, parameter(17, bytes(8)) * 95)]),
    "forward": (0, lambda: [chunk(FORWARD_TSN, struct.pack("!L", 2_000) + bytes(range(256)) * 4)]),
    "errors": (0, lambda: [chunk(ERROR, parameter(1) * 290)]),
    "unknown": (0, lambda: [chunk(200)] * 297),
}


@pytest.mark.parametrize("name", WORST)
async def test_the_worst_of_each_chunk_is_cheap(name: str) -> None:
    """Many times, as the worst may come of what has been gathered."""
    times, make = WORST[name]
    guarded = Guarded()
    await guarded.begin()
    chunks = make()
    for n in range(times + 1):
        with counted() as steps:
            await guarded.receive(*chunks, tag=0 if "init" in name or "empty" in name else None)
        assert steps[0] < MAX_STEPS, n
    assert guarded.sent < 100
    await guarded.connection.close()


async def test_who_sends_hostile_chunks_is_sent_away() -> None:
    guarded = Guarded()
    await guarded.begin()
    await guarded.receive(sack(guarded.sctp._local_tsn - 1, (1, 65_535)))
    assert guarded.reasons == [
        "the peer was sent away: it sent an SCTP acknowledgement of what was not sent, or out of order"
    ]
    before = guarded.sctp._last_received_tsn
    await guarded.receive(data(1_001))
    assert guarded.sctp._last_received_tsn == before
    await guarded.connection.close()


async def test_a_channel_and_its_messages_get_through() -> None:
    guarded = Guarded()
    await guarded.begin()
    await guarded.receive(data(1_001, 2, payload=b"\x03" + bytes(11), protocol=50), data(1_002, 2, payload=b"hello"))
    assert guarded.sctp._last_received_tsn == 1_002
    assert guarded.reasons == []
    assert MAX_GAPS < 290
    await guarded.connection.close()


def test_compound_reports_are_counted() -> None:
    empty = struct.pack("!BBHL", 0x80, 201, 1, 1)
    assert rtcp_packets(empty * 3) == 3
    assert rtcp_packets(b"") == 0
    assert rtcp_packets(bytes([0x80, 204, 0, 0]) * 300) == 300
    guard = Guard(lambda _: None, lambda: 0.0)
    assert guard.report(MAX_REPORTS)
    assert not guard.report(MAX_REPORTS + 1)
    assert len(RtcpPacket.parse(empty * MAX_REPORTS)) == MAX_REPORTS


def test_long_header_extensions_are_refused() -> None:
    plain = bytes([0x80]) + bytes(19)
    extended = bytes([0x91]) + bytes(15) + struct.pack("!HH", 0xBEDE, 300) + bytes(1_200)
    assert (rtp_extension_bytes(plain), rtp_extension_bytes(extended), rtp_extension_bytes(b"")) == (0, 1_200, 0)
    guard = Guard(lambda _: None, lambda: 0.0)
    assert guard.packet(1, 64)
    assert not guard.packet(1, 1_200)


def test_stun_messages_are_short() -> None:
    head = struct.pack("!HHL", 1, 0, 0x2112A442) + bytes(12)
    assert is_stun(head)
    assert not is_stun(bytes(20))
    assert not is_stun(b"\x80" + head[1:])
    assert stun_is_short(head + struct.pack("!HH", 6, 4) * 7)
    assert not stun_is_short(head + struct.pack("!HH", 6, 0) * 200)
    assert not stun_is_short(head + bytes(1_200))
