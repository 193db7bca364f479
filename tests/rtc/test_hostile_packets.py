"""What strangers and callers can send to a call's UDP ports: garbage, floods, what breaks aiortc, and what takes its
memory. The call goes on, or ends with a sentence; another call beside it never notices."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import pylibsrtp
import pytest
from aiortc import RTCDtlsTransport
from aiortc.rtcsctptransport import DataChunk, RTCSctpTransport

from echo_rtc.bench.support.calls import Caller
from echo_rtc.engine.testcard import TestCardEngine
from echo_rtc.rtc import guard
from echo_rtc.rtc.guard import MAX_SOURCES, MAX_UNFINISHED_BYTES, RESENDS_BURST
from tests.rtc.test_calls import FORMAT, House, Sight, house, tone, until

WEBRTC_DCEP, WEBRTC_BINARY = 50, 53
FIRST_FRAGMENT, WHOLE = 2, 3


@dataclass
class Line:
    """A call that talks, and what the attacker has of it: the encrypted transport and the server's address."""

    caller: Caller
    sight: Sight
    stream_id: str

    @property
    def transport(self) -> RTCDtlsTransport:
        return self.caller.connection.getSenders()[0].transport

    @property
    def sctp(self) -> RTCSctpTransport:
        found = self.caller.connection.sctp
        assert found is not None
        return found

    @property
    def address(self) -> tuple[str, int]:
        text = self.caller.connection.remoteDescription.sdp
        found = re.search(r"a=candidate:\S+ 1 udp \d+ (\d+\.\d+\.\d+\.\d+) (\d+) typ host", text)
        assert found is not None
        return found[1], int(found[2])

    async def goes_on(self) -> None:
        """Picture and sound still come."""
        cards, blocks = len(self.sight.cards), len(self.sight.sound)
        await until(lambda: len(self.sight.cards) > cards + 12 and len(self.sight.sound) > blocks + 25)

    async def send_rtp(self, packet: bytes) -> None:
        """Encrypts and sends what the encryption itself takes. Raises ConnectionError once the connection is over."""
        try:
            await self.transport._send_rtp(packet)
        except pylibsrtp.Error:  # no packet at all, by its header
            return

    async def send_chunk(self, flags: int, protocol: int, data: bytes, stream: int = 1, sequence: int = 0) -> None:
        chunk = DataChunk()
        chunk.flags, chunk.protocol, chunk.user_data = flags, protocol, data
        chunk.stream_id, chunk.stream_seq = stream, sequence
        chunk.tsn = self.sctp._local_tsn
        self.sctp._local_tsn = (chunk.tsn + 1) % 2**32
        await self.sctp._send_chunk(chunk)


@asynccontextmanager
async def lines(count: int) -> AsyncIterator[tuple[House, list[Line]]]:
    """Calls that are up and talk."""
    async with house(TestCardEngine(FORMAT, capacity=count)) as home:
        made = []
        for _ in range(count):
            sight = Sight()
            caller = Caller(tone(10_000), sight.hear, sight.see, "H264")
            made.append(Line(caller, sight, await home.call(caller)))
        await until(lambda: all(len(line.sight.spoken) > 3 for line in made))
        yield home, made


def no_alarm(records: list[logging.LogRecord]) -> bool:
    """Nothing was logged as an error or with a traceback, whoever logged it."""
    return not [record for record in records if record.levelno >= logging.ERROR or record.exc_info]


def stun_like(chance: random.Random) -> bytes:
    """A STUN message whose attributes have wrong lengths."""
    body = b""
    for _ in range(chance.randrange(1, 4)):
        value = chance.randbytes(chance.choice([0, 1, 3, 4, 7, 8, 20]))
        kind = chance.choice([0x0006, 0x0008, 0x0009, 0x0020, 0x0024, 0x0025, 0x8028, 0x8029, 0x802A, 0x000C])
        body += struct.pack("!HH", kind, len(value)) + value + bytes(-len(value) % 4)
    head = struct.pack("!HHI", chance.choice([0x0001, 0x0101, 0x0111, 0x0011, 0x0003]), len(body), 0x2112A442)
    return head + chance.randbytes(12) + body


async def test_datagrams_from_outside_end_no_call(caplog: pytest.LogCaptureFixture) -> None:
    chance = random.Random(1)
    async with lines(1) as (home, [line]):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"", line.address)
            for number in range(1_500):
                if number % 3:
                    kind = chance.choice([0, 1, 20, 21, 22, 23, 25, 63, 64, 79, 127, 128, 144, 191, 192, 255])
                    datagram = bytes([kind]) + chance.randbytes(chance.randrange(80))
                else:
                    datagram = stun_like(chance)
                stranger.sendto(datagram, line.address)
                if not number % 50:
                    await asyncio.sleep(0)
        await line.goes_on()
        assert list(home.manager.streams) == [line.stream_id]
        assert home.statistics(line.stream_id)["guard"]["datagrams_refused"] > 100
    assert no_alarm(caplog.records)


async def test_packets_before_the_handshake_are_bounded_and_harmless(caplog: pytest.LogCaptureFixture) -> None:
    chance = random.Random(2)
    async with house() as home:
        sight = Sight()
        caller = Caller(tone(10_000), sight.hear, sight.see, "H264")
        home.callers.append(caller)

        async def exchange(offer: str) -> str:
            answer = (await home.manager.open_call(offer, "default")).answer_sdp
            found = re.search(r"a=candidate:\S+ 1 udp \d+ (\d+\.\d+\.\d+\.\d+) (\d+) typ host", answer)
            assert found is not None
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as early:
                for number in range(3_000):
                    early.sendto(b"\x80" + chance.randbytes(40), (found[1], int(found[2])))
                    if not number % 100:
                        await asyncio.sleep(0.001)
            return answer

        await caller.connect(exchange)
        await until(lambda: len(sight.spoken) > 3)
    assert no_alarm(caplog.records)


async def test_authentic_garbage_costs_nothing_but_itself(caplog: pytest.LogCaptureFixture) -> None:
    """Headers, extensions, payload types and reports at random, and honest packets once more."""
    chance = random.Random(3)
    own: dict[int, bytes] = {}
    async with lines(1) as (home, [line]):
        send = line.transport.transport._send

        async def remember(data: bytes) -> None:
            own[len(own) % 64] = data
            await send(data)

        line.transport.transport._send = remember
        for number in range(600):
            match number % 3:
                case 0:  # few sources: many are another matter
                    head = bytes([chance.choice([0x80, 0x90, 0xB0, 0xBF, 0xA0, 0x81]), chance.randrange(256)])
                    source = struct.pack("!HLL", chance.randrange(65_536), chance.randrange(2**32), number % 9)
                    await line.send_rtp(head + source + chance.randbytes(chance.randrange(120)))
                case 1:
                    await line.send_rtp(b"".join(_report(chance) for _ in range(chance.randrange(1, 4))))
                case _ if own:
                    await send(own[chance.randrange(len(own))])
            await asyncio.sleep(0.001)
        await line.goes_on()
        assert list(home.manager.streams) == [line.stream_id]
        assert home.statistics(line.stream_id)["guard"]["sent_away"] == 0
    assert no_alarm(caplog.records)


def _report(chance: random.Random) -> bytes:
    words = chance.randrange(20)
    kind = struct.pack(
        "!BBH", 0x80 | chance.randrange(32) | chance.choice([0, 0, 0x20]), chance.randrange(200, 208), words
    )
    return kind + chance.randbytes(4 * words)


async def test_a_goodbye_of_a_source_does_not_end_the_voice() -> None:
    async with lines(1) as (home, [line]):
        statistics = await line.caller.connection.getStats()
        [source] = {
            entry.ssrc for entry in statistics.values() if entry.type == "outbound-rtp" and entry.kind == "audio"
        }
        await line.send_rtp(struct.pack("!BBHL", 0x81, 203, 1, source))
        heard = home.statistics(line.stream_id)["microphone"]["blocks"]
        await until(lambda: home.statistics(line.stream_id)["microphone"]["blocks"] > heard + 25)


async def _many_sources(line: Line) -> None:
    for number in range(MAX_SOURCES * 4):
        await line.send_rtp(struct.pack("!BBHLL", 0x80, 96, number, number * 960, 1000 + number) + b"\xf8\xff\xfe")


async def _flood(line: Line) -> None:
    """A hundred times a microphone's rate."""
    for number in range(30_000):
        await line.send_rtp(struct.pack("!BBHLL", 0x80, 96, number % 65_536, number * 960, 7) + b"\xf8\xff\xfe")
        if not number % 25:
            await asyncio.sleep(0.005)


async def _double_channel(line: Line) -> None:
    for _ in range(2):
        await line.send_chunk(WHOLE, WEBRTC_DCEP, b"\x03" + bytes(11), stream=9)


async def _endless_message(line: Line) -> None:
    for number in range(2 * MAX_UNFINISHED_BYTES // 1_000):
        await line.send_chunk(FIRST_FRAGMENT if not number else 0, WEBRTC_BINARY, bytes(1_000))
        if not number % 4:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (_many_sources, "more than 16 sources"),
        (_flood, "far too many packets"),
        (_double_channel, "messages that cannot be handled"),
        (_endless_message, "pieces of messages that are never complete"),
    ],
)
async def test_a_peer_over_its_limits_is_sent_away_unnoticed(
    attack: Callable[[Line], Awaitable[None]],
    words: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO, "echo_rtc")
    # On a busy machine most of a flood never arrives, and its sender's consent to receive expires before it is enough.
    monkeypatch.setattr(guard, "PATIENCE", 300.0)
    async with lines(2) as (home, [hostile, honest]):
        with suppress(ConnectionError):  # it is over: as it should be
            await attack(hostile)
        await until(lambda: list(home.manager.streams) == [honest.stream_id])
        await honest.goes_on()
        statistics = home.statistics(honest.stream_id)
        assert statistics["viewers"][0]["sound_dropped"] == statistics["playout"]["underruns"] == 0
        assert statistics["output"]["skipped_blocks"] == 0
        assert home.manager.tally().counts["peers_sent_away", ""] == 1
    assert re.search(rf"ended: the peer was sent away: .*{words}", caplog.text)
    assert no_alarm(caplog.records)


async def test_a_report_of_thousands_of_losses_is_answered_in_bounds() -> None:
    async with lines(1) as (home, [line]):
        [source] = [entry.source for entry in line.caller.picture_receiver.getSynchronizationSources()]
        received: list[int] = []
        take = line.caller.picture_receiver._handle_rtp_packet

        async def count(packet: object, arrival_time_ms: int) -> None:
            received.append(arrival_time_ms)
            await take(packet, arrival_time_ms)  # type: ignore[arg-type]

        line.caller.picture_receiver._handle_rtp_packet = count  # type: ignore[method-assign]
        everything = [(first, 0xFFFF) for first in range(0, 65_536, 17)]
        for start in range(0, len(everything), 300):
            pairs = b"".join(struct.pack("!HH", *pair) for pair in everything[start : start + 300])
            await line.send_rtp(struct.pack("!BBHLL", 0x81, 205, 2 + len(pairs) // 4, 1, source) + pairs)
        await line.goes_on()
        assert home.statistics(line.stream_id)["guard"]["resends_refused"] > 60_000
        assert len(received) < RESENDS_BURST + 200
