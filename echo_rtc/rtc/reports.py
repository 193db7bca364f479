"""What aiortc keeps of RTCP reports, in seconds and packets."""

from __future__ import annotations

from collections.abc import Sequence

from aiortc import RTCRtpReceiver, RTCRtpSender

from echo_rtc.clips import MEDIA_RATE
from echo_rtc.codec.concealment import VoiceDecoder
from echo_rtc.stream.links import Delivery, Reception


async def reception_of(receiver: RTCRtpReceiver, decoder: VoiceDecoder) -> Reception:
    """What ``receiver``, of sound, would tell its sender in a receiver report, and what ``decoder`` has concealed."""
    reports = [report for report in (await receiver.getStats()).values() if report.type == "inbound-rtp"]
    return Reception(
        packets=sum(report.packetsReceived for report in reports),
        lost=sum(max(0, report.packetsLost) for report in reports),
        jitter_s=max((report.jitter for report in reports), default=0) / MEDIA_RATE,
        concealed_samples=decoder.concealed_samples,
    )


async def delivery_of(senders: Sequence[RTCRtpSender]) -> Delivery:
    """What the other side has reported of the packets of ``senders``."""
    reports = [
        report
        for sender in senders
        for report in (await sender.getStats()).values()
        if report.type == "remote-inbound-rtp"
    ]
    return Delivery(
        lost=sum(max(0, report.packetsLost) for report in reports),
        round_trip_s=max((report.roundTripTime for report in reports if report.roundTripTime), default=None),
        sound_loss=max((report.fractionLost / 256 for report in reports if report.kind == "audio"), default=0.0),
    )
