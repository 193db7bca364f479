"""The reaches into aiortc and aioice do what they are for, and say so clearly once a new version has moved things."""

from __future__ import annotations

import asyncio
import random
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import aioice.ice
import aioice.turn
import av
import numpy as np
import pytest
from aiortc import (
    RTCConfiguration,
    RTCDtlsTransport,
    RTCIceServer,
    RTCPeerConnection,
    RTCRtpReceiver,
    RTCRtpSender,
    RTCSctpTransport,
)
from aiortc.clock import current_ntp_time
from aiortc.codecs import CODECS
from aiortc.codecs.opus import OpusDecoder
from aiortc.jitterbuffer import JitterBuffer, JitterFrame
from aiortc.mediastreams import MediaStreamError
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_FIR,
    RTCP_PSFB_PLI,
    RtcpPsfbPacket,
    RtcpSenderInfo,
    RtcpSrPacket,
    RtpPacket,
    pack_remb_fci,
)

from echo_rtc.codec.sound import SoundEncoder
from echo_rtc.rtc import aiortc_seams
from echo_rtc.rtc.aiortc_seams import (
    GATHERING_LIMIT_S,
    Binding,
    MicrophoneJitterBuffer,
    SeamError,
    ports_from,
    shorten_gathering,
)
from echo_rtc.rtc.guard import Guard
from echo_rtc.rtc.ports import PortRange
from echo_rtc.stream.encoder_bank import EncodedFrame

H264 = next(codec for codec in CODECS["video"] if codec.name == "H264")


def packet(number: int, payload: bytes = b"x") -> RtpPacket:
    made = RtpPacket(payload_type=96, sequence_number=number % 65536, timestamp=number * 960, payload=payload)
    made._data = payload  # type: ignore[attr-defined]  # what aiortc's receiver adds before the buffer
    return made


def latency(buffer: JitterBuffer, numbers: list[int]) -> list[int]:
    """How many packets behind the one put in each frame comes out."""
    lags = []
    for number in numbers:
        _, frame = buffer.add(packet(number))
        if frame is not None:
            lags.append(number - frame.timestamp // 960)
    return lags


def test_the_microphones_buffer_holds_nothing_and_two_packets_after_a_loss() -> None:
    stock = JitterBuffer(capacity=16, prefetch=4)
    whole, lossy = list(range(50)), [n for n in range(100, 150) if n != 110]
    assert set(latency(stock, whole)) == {4}
    assert set(latency(MicrophoneJitterBuffer(), whole)) == {0}
    assert set(latency(MicrophoneJitterBuffer(), lossy)) == {0, 2}


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_only_what_the_network_lost_is_lost(share: float) -> None:
    chance = random.Random(5)
    sent = [n for n in range(65_000, 75_000) if chance.random() >= share]
    # A packet may overtake the two before it.
    arriving = sorted(sent, key=lambda n: n + chance.random() * 2)
    buffer = MicrophoneJitterBuffer()
    came = [frame.timestamp // 960 for _, frame in (buffer.add(packet(n)) for n in arriving) if frame is not None]
    assert came == sorted(set(came))
    assert set(came) <= set(sent)
    # At 30 % a packet that is late may find its place given up: three have come that were after it.
    assert len(sent) - len(came) <= 3 + len(sent) * share**3 * 2


def test_late_double_and_restarted_packets_do_no_harm() -> None:
    buffer = MicrophoneJitterBuffer()
    numbers = [10, 11, 11, 9, 12, 13, 13, 400, 399, 401, 5, 6, 5, 7, 8]
    came = [frame.timestamp // 960 for _, frame in (buffer.add(packet(n)) for n in numbers) if frame is not None]
    assert came == [10, 11, 12, 13, 400, 401, 5, 6, 7, 8]
    assert len(buffer._held) == 0


def test_a_packet_without_payload_ends_a_decoder_and_does_not_reach_it() -> None:
    decoder = OpusDecoder()
    sound = bytes(SoundEncoder().encode(np.zeros(960, np.int16), 0))
    assert decoder.decode(JitterFrame(sound, 0))
    decoder.decode(JitterFrame(b"", 960))
    with pytest.raises(av.FFmpegError):
        decoder.decode(JitterFrame(sound, 1920))
    buffer = MicrophoneJitterBuffer()
    frames = [buffer.add(packet(n, b"" if n == 5 else b"x"))[1] for n in range(20)]
    assert sum(frame is not None for frame in frames) >= 14
    assert all(frame.data for frame in frames if frame is not None)


async def test_the_receivers_buffer_is_replaced() -> None:
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    receiver = connection.addTransceiver("audio").receiver
    aiortc_seams.shorten_microphone_buffer(receiver)
    assert isinstance(getattr(receiver, "_RTCRtpReceiver__jitter_buffer"), MicrophoneJitterBuffer)  # noqa: B009
    await connection.close()


async def test_requests_of_the_receiver_reach_the_callbacks() -> None:
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    sender = connection.addTransceiver("video").sender
    keys: list[str] = []
    rates: list[int] = []
    aiortc_seams.wire_feedback(sender, lambda: keys.append("key"), rates.append)
    for kind in (RTCP_PSFB_PLI, RTCP_PSFB_FIR):
        await sender._handle_rtcp_packet(RtcpPsfbPacket(fmt=kind, ssrc=1, media_ssrc=sender._ssrc))
    estimate = pack_remb_fci(1_234_000, [sender._ssrc])
    await sender._handle_rtcp_packet(RtcpPsfbPacket(fmt=RTCP_PSFB_APP, ssrc=1, media_ssrc=0, fci=estimate))
    assert keys == ["key", "key"]
    assert rates == [pytest.approx(1_234_000, rel=0.01)]
    await connection.close()


class Parcels:
    """A track that hands out what it is given, then ends."""

    def __init__(self, *parcels: EncodedFrame) -> None:
        self._parcels = list(parcels)
        self.stopped = False

    async def recv(self) -> EncodedFrame:
        if not self._parcels:
            raise MediaStreamError
        return self._parcels.pop(0)

    def stop(self) -> None:
        self.stopped = True


class Wire:
    """Stands for everything below a sender: what it sends comes out unencrypted. ``waiting``: bytes that wait for the
    socket, one reading after the other."""

    def __init__(self, *waiting: int) -> None:
        self._waiting = list(waiting)
        self.sent: list[bytes] = []
        self.state = "connected"
        self.resent: list[bytes] = []
        self._tx_srtp = SimpleNamespace(protect=lambda data: data)
        socket = SimpleNamespace(sendto=lambda data, _: self.sent.append(data), get_write_buffer_size=self.unsent)
        pair = SimpleNamespace(protocol=SimpleNamespace(transport=socket), remote_addr=("192.0.2.1", 9))
        self.transport = SimpleNamespace(_connection=SimpleNamespace(_nominated={1: pair}))
        setattr(self, "_RTCDtlsTransport__tx_bytes", 0)  # noqa: B010
        setattr(self, "_RTCDtlsTransport__tx_packets", 0)  # noqa: B010

    def unsent(self) -> int:
        return self._waiting.pop(0) if self._waiting else 0

    async def _send_rtp(self, data: bytes) -> None:
        self.resent.append(data)


def parcel(pts: int, *payloads: bytes) -> EncodedFrame:
    return EncodedFrame(payloads, pts, Fraction(1, 90_000), sum(map(len, payloads)), is_keyframe=True)


async def sending(track: Parcels, wire: Wire) -> RTCRtpSender:
    """A sender that has sent a track to its end."""
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    sender = connection.addTransceiver("video").sender
    await connection.close()
    aiortc_seams.send_parcels(sender, track)
    sender.setTransport(wire)  # type: ignore[arg-type]
    await asyncio.wait_for(sender._run_rtp(H264), 5)
    return sender


async def test_parcels_are_sent_as_rtp_and_again_when_they_are_lost() -> None:
    track, wire = Parcels(parcel(0, b"one", b"two"), parcel(3750, b"three")), Wire()
    sender = await sending(track, wire)
    packets = [RtpPacket.parse(data) for data in wire.sent]
    assert [packet.payload for packet in packets] == [b"one", b"two", b"three"]
    assert [packet.marker for packet in packets] == [0, 1, 1]
    assert {packet.ssrc for packet in packets} == {sender._ssrc}
    assert {packet.payload_type for packet in packets} == {H264.payloadType}
    numbers = [packet.sequence_number for packet in packets]
    assert np.all(np.diff(numbers) == 1)
    stamps = [packet.timestamp for packet in packets]
    assert [(stamp - stamps[0]) % 2**32 for stamp in stamps] == [0, 0, 3750]
    assert track.stopped
    await sender._retransmit(numbers[1])
    await sender._retransmit(numbers[0] - 1)
    assert [RtpPacket.parse(data).payload for data in wire.resent] == [b"two"]
    assert reported(sender) == (3, 11, stamps[2])


def reported(sender: RTCRtpSender) -> tuple[int, int, int]:
    """Packets, payload bytes and the latest time stamp, as the sender's reports will state them."""
    names = ("packet_count", "octet_count", "rtp_timestamp")
    packets, octets, stamp = (getattr(sender, f"_RTCRtpSender__{name}") for name in names)
    return packets, octets, stamp


async def test_a_socket_that_is_full_is_waited_for() -> None:
    full = aiortc_seams.MAX_UNSENT_BYTES + 1
    track, wire = Parcels(parcel(0, b"one"), parcel(3750, b"two")), Wire(0, full, full, 10)
    await sending(track, wire)
    assert len(wire.sent) == 2
    assert wire.unsent() == 0


async def test_sending_ends_with_the_connection() -> None:
    track, wire = Parcels(parcel(0, b"one")), Wire()
    wire.state = "closed"
    await sending(track, wire)
    assert wire.sent == []
    assert track.stopped


async def test_reports_state_when_a_packet_was_due() -> None:
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    sender = connection.addTransceiver("video").sender
    sent: list[RtcpSrPacket] = []

    async def transport(packets: list[Any]) -> None:
        sent.extend(packet for packet in packets if isinstance(packet, RtcpSrPacket))

    sender._send_rtcp = transport  # type: ignore[method-assign]
    due: list[float | None] = [None]
    aiortc_seams.report_due_times(sender, lambda: due[0], lambda: 100.0)
    for when in (None, 99.75):
        due[0] = when
        info = RtcpSenderInfo(ntp_timestamp=current_ntp_time(), rtp_timestamp=5, packet_count=1, octet_count=1)
        await sender._send_rtcp([RtcpSrPacket(ssrc=1, sender_info=info)])
    stated = [(current_ntp_time() - packet.sender_info.ntp_timestamp) / 2**32 for packet in sent]
    assert stated == [pytest.approx(0.0, abs=0.1), pytest.approx(0.25, abs=0.1)]
    assert getattr(sender, "_RTCRtpSender__lsr") == sent[1].sender_info.ntp_timestamp >> 16 & 0xFFFFFFFF  # noqa: B009
    await connection.close()


async def test_a_system_clock_that_is_set_moves_no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sound and picture report at different moments; a step between them would tear them apart by an hour."""
    before = aiortc_seams.steady_ntp_time()
    assert (before - current_ntp_time()) / 2**32 == pytest.approx(0.0, abs=0.1)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3_600)
    monkeypatch.setattr(aiortc_seams, "current_ntp_time", lambda: current_ntp_time() + (3_600 << 32))
    assert 0 <= (aiortc_seams.steady_ntp_time() - before) / 2**32 < 0.5
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    sender = connection.addTransceiver("audio").sender
    sent: list[RtcpSrPacket] = []

    async def transport(packets: list[Any]) -> None:
        sent.extend(packets)

    sender._send_rtcp = transport  # type: ignore[method-assign]
    aiortc_seams.report_due_times(sender, lambda: 100.0, lambda: 100.0)
    info = RtcpSenderInfo(ntp_timestamp=before, rtp_timestamp=5, packet_count=1, octet_count=1)
    await sender._send_rtcp([RtcpSrPacket(ssrc=1, sender_info=info)])
    assert 0 <= (sent[0].sender_info.ntp_timestamp - before) / 2**32 < 0.5
    await connection.close()


async def test_a_receiver_without_decoding_counts_frames_and_ends() -> None:
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    receiver = connection.addTransceiver("audio").receiver
    seen: list[int] = []
    aiortc_seams.without_decoding(receiver, seen.append)
    queue = getattr(receiver, "_RTCRtpReceiver__decoder_queue")  # noqa: B009
    queue.put((None, JitterFrame(b"x", 960)))
    queue.put(None)
    assert seen == [960]
    assert queue.get() is None
    await connection.close()


def test_vanished_peers_are_noticed_soon() -> None:
    aiortc_seams.shorten_consent()
    assert (aioice.ice.CONSENT_INTERVAL + 0.5) * aioice.ice.CONSENT_FAILURES <= 6


@pytest.mark.parametrize("name", ["CONSENT_INTERVAL", "CONSENT_FAILURES"])
def test_a_changed_aioice_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delattr(aioice.ice, name)
    with pytest.raises(SeamError, match=name):
        aiortc_seams.shorten_consent()


def test_a_changed_aiortc_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = RTCRtpReceiver.__new__(RTCRtpReceiver)
    with pytest.raises(SeamError, match="__jitter_buffer"):
        aiortc_seams.shorten_microphone_buffer(receiver)
    with pytest.raises(SeamError, match="__decoder_queue"):
        aiortc_seams.without_decoding(receiver, lambda _: None)
    sender = RTCRtpSender.__new__(RTCRtpSender)
    with pytest.raises(SeamError, match=re.escape("_RTCRtpSender__encoder")):
        aiortc_seams.wire_feedback(sender, lambda: None, lambda _: None)
    with pytest.raises(SeamError, match="__lsr"):
        aiortc_seams.report_due_times(sender, lambda: None, lambda: 0.0)
    with pytest.raises(SeamError, match=r"_RTCRtpSender__\w+ any more"):
        aiortc_seams.send_parcels(sender, Parcels())
    monkeypatch.delattr(RTCRtpSender, "_send_keyframe")
    with pytest.raises(SeamError, match="_send_keyframe"):
        aiortc_seams.wire_feedback(sender, lambda: None, lambda _: None)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (RTCDtlsTransport, "_handle_rtp_data"),
        (RTCDtlsTransport, "_handle_rtcp_data"),
        (RTCRtpSender, "_handle_rtcp_packet"),
        (RTCRtpReceiver, "_handle_rtcp_packet"),
        (RTCSctpTransport, "_handle_data"),
    ],
)
async def test_a_changed_aiortc_is_named_before_a_peer_can_send_unguarded(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    connection.addTransceiver("audio")
    connection.createDataChannel("events")
    monkeypatch.delattr(owner, name)
    with pytest.raises(SeamError, match=f"{owner.__name__} has no method {name} any more"):
        aiortc_seams.guard_connection(connection, Guard(lambda _: None, lambda: 0.0))
    await connection.close()


@pytest.mark.parametrize(
    ("owner", "name"), [(aioice.ice.StunProtocol, "datagram_received"), (aioice.ice.Connection, "data_received")]
)
def test_a_changed_aioice_is_named_before_strangers_can_send(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    monkeypatch.setattr(aioice.ice.StunProtocol, "datagram_received", lambda *_: None)
    monkeypatch.setattr(owner, name, None)
    with pytest.raises(SeamError, match=f"aioice's {owner.__name__} has no method {name}"):
        aiortc_seams.harden_ice()


async def gathered(ports: PortRange | None, *servers: RTCIceServer) -> tuple[list[tuple[str, int]], Binding]:
    """The host candidates of a connection that uses these servers, and what became of its sockets."""
    peer = RTCPeerConnection(RTCConfiguration(iceServers=list(servers)))
    try:
        peer.addTransceiver("audio")
        with ports_from(ports) as binding:
            await peer.setLocalDescription(await peer.createOffer())
        found = re.findall(r"candidate:\S+ 1 udp \d+ (\S+) (\d+) typ host", peer.localDescription.sdp)
        return [(address, int(port)) for address, port in found], binding
    finally:
        await peer.close()


@contextmanager
def taken(addresses: list[str], ports: range) -> Iterator[None]:
    """While inside, these ports are in use on these addresses."""
    with ExitStack() as held:
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            for port in ports:
                holder = held.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                holder.bind((address, port))
        yield


async def test_media_stays_within_its_range_of_ports() -> None:
    ports = PortRange(25_200, 25_229)
    for _ in range(3):
        candidates, binding = await gathered(ports)
        assert candidates
        assert all(25_200 <= port <= 25_229 for _, port in candidates)
        assert not binding.exhausted
    addresses = [address for address, _ in candidates]
    with taken(addresses, range(25_200, 25_228)):
        for _ in range(2):
            candidates, binding = await gathered(ports)
            assert {port for _, port in candidates} <= {25_228, 25_229}
            assert len(candidates) == len(addresses)
    with taken(addresses, range(25_200, 25_230)):
        candidates, binding = await gathered(ports)
        assert candidates == []
        assert binding.exhausted
        assert ports.exhausted == len(addresses)
    # Outside of it, and without a range, the system picks.
    candidates, binding = await gathered(None)
    assert len(candidates) == len(addresses)
    assert not all(25_200 <= port <= 25_229 for _, port in candidates)


async def test_the_way_to_a_turn_server_stays_within_the_range_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiortc_seams, "GATHERING_LIMIT_S", 0.2)
    shorten_gathering()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            silent.setblocking(False)
            server = RTCIceServer(f"turn:127.0.0.1:{silent.getsockname()[1]}", "ann", "pass")
            candidates, _ = await gathered(PortRange(25_230, 25_249), server)
            _, (_, port) = silent.recvfrom(2_000)
        assert 25_230 <= port <= 25_249
        assert candidates
    finally:
        monkeypatch.undo()
        shorten_gathering()


async def test_dead_servers_delay_an_answer_no_longer_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < GATHERING_LIMIT_S < 5
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(aiortc_seams, "GATHERING_LIMIT_S", 0.1)
    shorten_gathering()
    try:
        began = loop.time()
        dead = [RTCIceServer("stun:192.0.2.1:3478"), RTCIceServer("turn:192.0.2.1:3478?transport=tcp", "ann", "pass")]
        candidates, _ = await gathered(None, *dead)
        assert candidates
        # aioice's own limit is 5 s.
        assert loop.time() - began < 4
    finally:
        monkeypatch.undo()
        shorten_gathering()
    assert aioice.ice.Connection.get_component_candidates.__defaults__ == (GATHERING_LIMIT_S,)


async def test_a_new_aioice_is_noticed_where_gathering_is_concerned(monkeypatch: pytest.MonkeyPatch) -> None:
    async def get_component_candidates(self: object, component: int, addresses: list[str]) -> list[object]:
        return []

    async def delete(self: object) -> None:
        pass

    with monkeypatch.context() as changed:
        changed.setattr(aioice.turn.TurnClientMixin, "delete", delete)
        with pytest.raises(SeamError, match="TURN client does not close when its end is cut short"):
            shorten_gathering()
        changed.setattr(aioice.ice.Connection, "get_component_candidates", get_component_candidates)
        with pytest.raises(SeamError, match="get_component_candidates has no timeout"):
            shorten_gathering()
    monkeypatch.setattr(aiortc_seams, "_ENDPOINT", "create_datagram_something")
    monkeypatch.setattr(asyncio.get_running_loop(), "create_datagram_something", print, raising=False)
    with pytest.raises(SeamError, match=r"aioice\.ice does not call"), ports_from(PortRange(25_250, 25_259)):
        pass
