"""RTCP statistics: how a microphone's packets arrive here, and how a stream's packets arrive at a viewer.

Figures are in seconds and packets. Counts never decrease, although RTP takes a packet that arrives late off the count
of lost packets again. Knows no connection: a probe asks for the figures.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

from echo_rtc.clips import MEDIA_RATE
from echo_rtc.counting import CounterMetric, counter

logger = logging.getLogger(__name__)


MICROPHONE_PACKETS = CounterMetric(
    "microphone_packets", "RTP packets of microphones, as in RTCP receiver reports.", "outcome"
)
LOST_PACKETS = CounterMetric(
    "viewer_lost_packets", "RTP packets that did not reach viewers at first, as in their RTCP receiver reports."
)


CONCEALED_SECONDS = CounterMetric(
    "microphone_concealed_seconds", "Sound of microphones that was lost and concealed.", scale=1 / MEDIA_RATE
)


@dataclass(frozen=True, slots=True)
class Reception:
    """How a microphone's packets arrive (RFC 3550): received, lost, and the jitter between arrivals (s); and how many
    samples (48 kHz) were concealed."""

    packets: int = counter(MICROPHONE_PACKETS, "received")
    lost: int = counter(MICROPHONE_PACKETS, "lost")
    jitter_s: float = 0.0
    concealed_samples: int = counter(CONCEALED_SECONDS)

    def since(self, before: Reception) -> Reception:
        concealed = max(self.concealed_samples, before.concealed_samples)
        return Reception(max(self.packets, before.packets), max(self.lost, before.lost), self.jitter_s, concealed)


@dataclass(frozen=True, slots=True)
class Delivery:
    """How our packets arrive at a viewer, as it reports: lost, and the time there and back (s); None: not known yet."""

    lost: int = counter(LOST_PACKETS)
    round_trip_s: float | None = None
    sound_loss: float = 0.0
    """The share of packets of sound that were lost before its latest report, 0..1."""

    def since(self, before: Delivery) -> Delivery:
        return Delivery(max(self.lost, before.lost), self.round_trip_s, self.sound_loss)


class Report(Protocol):
    """Figures, some of which are counts that must not become less."""

    def since(self, before: Self) -> Self:
        """These figures, where ``before`` were the ones before."""
        ...


ReportT = TypeVar("ReportT", bound=Report)


class Link(Generic[ReportT]):
    """The statistics of one direction of a connection, as last read."""

    def __init__(self, first: ReportT, probe: Callable[[], Awaitable[ReportT]] | None) -> None:
        """``first``: the figures before anything is known; ``probe`` asks for those of this moment."""
        self._probe = probe
        self.latest = first

    async def ask(self) -> None:
        """Reads the statistics. If that fails, they stay as they are: a call does not end because of it."""
        if self._probe is None:
            return
        try:
            self.latest = (await self._probe()).since(self.latest)
        except Exception:  # a boundary: aiortc's figures, of a connection in whatever state it is
            logger.debug("the statistics of a connection cannot be read", exc_info=True)
