"""A library that has changed is named before a peer can send anything unguarded."""

from __future__ import annotations

import re

import aioice.ice
import pytest
from aiortc import RTCConfiguration, RTCDtlsTransport, RTCPeerConnection, RTCRtpReceiver, RTCRtpSender, RTCSctpTransport

from echo_rtc.rtc.candidates import Reach
from echo_rtc.rtc.guard import Guard
from echo_rtc.rtc.seams.checks import SeamError
from echo_rtc.rtc.seams.feedback import report_due_times, wire_feedback
from echo_rtc.rtc.seams.guarding import guard_connection
from echo_rtc.rtc.seams.jitter import shorten_microphone_buffer
from echo_rtc.rtc.seams.selfcheck import check_seams
from echo_rtc.rtc.seams.sending import send_parcels
from tests.rtc.seams.test_sending import Parcels


def test_a_changed_aiortc_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = RTCRtpReceiver.__new__(RTCRtpReceiver)
    with pytest.raises(SeamError, match="__jitter_buffer"):
        shorten_microphone_buffer(receiver)
    sender = RTCRtpSender.__new__(RTCRtpSender)
    with pytest.raises(SeamError, match=re.escape("_RTCRtpSender__encoder")):
        wire_feedback(sender, lambda: None, lambda _: None)
    with pytest.raises(SeamError, match="__lsr"):
        report_due_times(sender, lambda: None, lambda: 0.0)
    with pytest.raises(SeamError, match=r"_RTCRtpSender__\w+ any more"):
        send_parcels(sender, Parcels())
    monkeypatch.delattr(RTCRtpSender, "_send_keyframe")
    with pytest.raises(SeamError, match="_send_keyframe"):
        wire_feedback(sender, lambda: None, lambda _: None)


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
async def test_a_changed_aiortc_is_named_before_a_peer_can_send(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    connection.addTransceiver("audio")
    connection.createDataChannel("events")
    monkeypatch.delattr(owner, name)
    with pytest.raises(SeamError, match=f"{owner.__name__} has no method {name} any more"):
        guard_connection(connection, Guard(lambda _: None, lambda: 0.0), Reach())
    await connection.close()


async def test_the_installed_libraries_fit() -> None:
    await check_seams()


async def test_libraries_that_do_not_fit_are_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(aioice.ice.Connection, "check_incoming")
    with pytest.raises(SeamError, match="aioice's Connection has no method check_incoming"):
        await check_seams()
