"""Receivers that count frames instead of decoding them."""

from __future__ import annotations

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpReceiver
from aiortc.jitterbuffer import JitterFrame

from echo_rtc.bench.support.receivers import without_decoding
from echo_rtc.rtc.seams.checks import SeamError


async def test_a_receiver_without_decoding_counts_frames_and_ends() -> None:
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    receiver = connection.addTransceiver("audio").receiver
    seen: list[int] = []
    without_decoding(receiver, seen.append)
    queue = getattr(receiver, "_RTCRtpReceiver__decoder_queue")  # noqa: B009
    queue.put((None, JitterFrame(b"x", 960)))
    queue.put(None)
    assert seen == [960]
    assert queue.get() is None
    await connection.close()


def test_a_changed_receiver_is_named() -> None:
    with pytest.raises(SeamError, match="__decoder_queue"):
        without_decoding(RTCRtpReceiver.__new__(RTCRtpReceiver), lambda _: None)
