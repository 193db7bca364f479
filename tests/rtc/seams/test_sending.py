"""Ready packets leave as RTP, once more where they are lost, and no faster than the socket takes them."""

from __future__ import annotations

import asyncio
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpSender
from aiortc.codecs import CODECS
from aiortc.mediastreams import MediaStreamError
from aiortc.rtp import RtpPacket

from echo_rtc.rtc.seams import sending as seam
from echo_rtc.stream.encoder_bank import EncodedFrame

H264 = next(codec for codec in CODECS["video"] if codec.name == "H264")


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
    return EncodedFrame(payloads, pts, Fraction(1, 90_000), b"".join(payloads), is_keyframe=True)


async def sending(track: Parcels, wire: Wire) -> RTCRtpSender:
    """A sender that has sent a track to its end."""
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    sender = connection.addTransceiver("video").sender
    await connection.close()
    seam.send_parcels(sender, track)
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
    full = seam.MAX_UNSENT_BYTES + 1
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
