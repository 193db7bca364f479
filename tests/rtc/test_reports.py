"""What is read from aiortc's RTCP figures: units and sums."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from echo_rtc.codec.concealment import VoiceDecoder
from echo_rtc.rtc.reports import delivery_of, reception_of
from echo_rtc.stream.links import Delivery, Reception


class FakeEnd:
    """A receiver or a sender with these reports."""

    def __init__(self, *reports: dict[str, Any]) -> None:
        self._reports = {str(i): SimpleNamespace(**report) for i, report in enumerate(reports)}

    async def getStats(self) -> dict[str, Any]:
        return self._reports


async def test_a_reception_is_in_packets_and_seconds() -> None:
    receiver: Any = FakeEnd(
        {"type": "inbound-rtp", "packetsReceived": 100, "packetsLost": 3, "jitter": 480},
        {"type": "inbound-rtp", "packetsReceived": 10, "packetsLost": -1, "jitter": 96},
        {"type": "transport"},
    )
    decoder = VoiceDecoder()
    decoder.concealed_samples = 960
    assert await reception_of(receiver, decoder) == Reception(110, 3, 0.01, concealed_samples=960)
    nothing: Any = FakeEnd()
    assert await reception_of(nothing, VoiceDecoder()) == Reception()


def told(kind: str, **figures: float | None) -> dict[str, Any]:
    """What a receiver report tells of sound or picture."""
    return {"type": "remote-inbound-rtp", "kind": kind, **figures}


async def test_a_delivery_is_of_sound_and_picture() -> None:
    senders: Any = [
        FakeEnd({"type": "outbound-rtp"}, told("video", packetsLost=4, roundTripTime=0.02, fractionLost=200)),
        FakeEnd(told("audio", packetsLost=1, roundTripTime=0.03, fractionLost=64)),
        FakeEnd({"type": "outbound-rtp"}),
    ]
    assert await delivery_of(senders) == Delivery(lost=5, round_trip_s=0.03, sound_loss=0.25)
    unheard: Any = [FakeEnd(told("audio", packetsLost=0, roundTripTime=None, fractionLost=0))]
    assert await delivery_of(unheard) == Delivery()
