"""Requests of receivers reach the stream, and reports state when packets were due."""

from __future__ import annotations

import time
from typing import Any

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection
from aiortc.clock import current_ntp_time
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_FIR,
    RTCP_PSFB_PLI,
    RtcpPsfbPacket,
    RtcpSenderInfo,
    RtcpSrPacket,
    pack_remb_fci,
)

from echo_rtc.rtc.seams import clock
from echo_rtc.rtc.seams.clock import steady_ntp_time
from echo_rtc.rtc.seams.feedback import report_due_times, wire_feedback


async def test_requests_of_the_receiver_reach_the_callbacks() -> None:
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    sender = connection.addTransceiver("video").sender
    keys: list[str] = []
    rates: list[int] = []
    wire_feedback(sender, lambda: keys.append("key"), rates.append)
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
    report_due_times(sender, lambda: due[0], lambda: 100.0)
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
    before = steady_ntp_time()
    assert (before - current_ntp_time()) / 2**32 == pytest.approx(0.0, abs=0.1)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3_600)
    monkeypatch.setattr(clock, "current_ntp_time", lambda: current_ntp_time() + (3_600 << 32))
    assert 0 <= (steady_ntp_time() - before) / 2**32 < 0.5
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    sender = connection.addTransceiver("audio").sender
    sent: list[RtcpSrPacket] = []

    async def transport(packets: list[Any]) -> None:
        sent.extend(packets)

    sender._send_rtcp = transport  # type: ignore[method-assign]
    report_due_times(sender, lambda: 100.0, lambda: 100.0)
    info = RtcpSenderInfo(ntp_timestamp=before, rtp_timestamp=5, packet_count=1, octet_count=1)
    await sender._send_rtcp([RtcpSrPacket(ssrc=1, sender_info=info)])
    assert 0 <= (sent[0].sender_info.ntp_timestamp - before) / 2**32 < 0.5
    await connection.close()
