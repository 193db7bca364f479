"""The reaches into aiortc and aioice do what they are for, and say so clearly once a new version has moved things."""

from __future__ import annotations

import re
from typing import Any

import aioice.ice
import av
import numpy as np
import pytest
from aiortc import (
    RTCConfiguration,
    RTCDtlsTransport,
    RTCPeerConnection,
    RTCRtpReceiver,
    RTCRtpSender,
    RTCSctpTransport,
)
from aiortc.clock import current_ntp_time
from aiortc.codecs import CODECS
from aiortc.codecs.opus import OpusDecoder
from aiortc.jitterbuffer import JitterBuffer, JitterFrame
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

from echo_rtc.rtc import aiortc_seams
from echo_rtc.rtc.aiortc_seams import MicrophoneJitterBuffer, SeamError
from echo_rtc.rtc.encoder import SoundEncoder
from echo_rtc.rtc.guard import Guard

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


def test_the_microphones_buffer_holds_one_packet_and_three_after_a_loss() -> None:
    stock = JitterBuffer(capacity=16, prefetch=4)
    whole, lossy = list(range(50)), [n for n in range(100, 150) if n != 110]
    assert set(latency(stock, whole)) == {4}
    buffer = MicrophoneJitterBuffer()
    assert set(latency(buffer, whole)) == {1}
    assert latency(MicrophoneJitterBuffer(), lossy)[-1] <= 3


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
    aiortc_seams.wire_feedback(sender, H264, lambda: keys.append("key"), rates.append)
    for kind in (RTCP_PSFB_PLI, RTCP_PSFB_FIR):
        await sender._handle_rtcp_packet(RtcpPsfbPacket(fmt=kind, ssrc=1, media_ssrc=sender._ssrc))
    estimate = pack_remb_fci(1_234_000, [sender._ssrc])
    await sender._handle_rtcp_packet(RtcpPsfbPacket(fmt=RTCP_PSFB_APP, ssrc=1, media_ssrc=0, fci=estimate))
    assert keys == ["key", "key"]
    assert rates == [pytest.approx(1_234_000, rel=0.01)]
    await connection.close()


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
        aiortc_seams.wire_feedback(sender, H264, lambda: None, lambda _: None)
    with pytest.raises(SeamError, match="__lsr"):
        aiortc_seams.report_due_times(sender, lambda: None, lambda: 0.0)
    monkeypatch.delattr(RTCRtpSender, "_send_keyframe")
    with pytest.raises(SeamError, match="_send_keyframe"):
        aiortc_seams.wire_feedback(sender, H264, lambda: None, lambda _: None)


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
