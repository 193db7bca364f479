"""Everything that a stream counts, as one tree.

Each part of a stream declares and counts its own; here they come together, once. The metrics, the JSON of a stream, the
operator's page and the line that closes a stream are derived from this tree.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from echo_rtc.counting import CounterMetric, counter
from echo_rtc.media.playout import PlayoutStatistics
from echo_rtc.media.timeline import TimelineStatistics
from echo_rtc.stream.dispatch import DispatchCounters, RenderTimes
from echo_rtc.stream.encoder_bank import EncoderCounters
from echo_rtc.stream.events import EventCounters
from echo_rtc.stream.links import Delivery, Reception
from echo_rtc.stream.pump import PumpCounters
from echo_rtc.stream.sync import SyncHistograms
from echo_rtc.stream.viewers import ViewerCounters
from echo_rtc.stream.voice import VoiceCounters

REFUSED_PACKETS = CounterMetric(
    "peer_packets_refused",
    "Packets of peers that were too many: media, feedback, data, messages that control the stream, and those they "
    "wanted sent again.",
    "kind",
)
REFUSED_DATAGRAMS = CounterMetric(
    "datagrams_refused",
    "Datagrams dropped before they reached a peer: malformed, from an unknown address, or too many before the "
    "connection reads.",
)
PEER_FAULTS = CounterMetric("peer_faults", "Packets of peers that could not be handled.")
PEERS_SENT_AWAY = CounterMetric("peers_sent_away", "Peers sent away for what they sent.")


@dataclass(slots=True)
class GuardCounters:
    """What was kept from a stream's peers: datagrams from unknown senders; media, feedback and
    data packets too many, and messages of control; packets that were not sent again; packets that could not be handled;
    and how many peers were sent away."""

    datagrams_refused: int = counter(REFUSED_DATAGRAMS)
    packets_refused: int = counter(REFUSED_PACKETS, "media")
    reports_refused: int = counter(REFUSED_PACKETS, "feedback")
    data_refused: int = counter(REFUSED_PACKETS, "data")
    controls_refused: int = counter(REFUSED_PACKETS, "control")
    resends_refused: int = counter(REFUSED_PACKETS, "resent")
    faults: int = counter(PEER_FAULTS)
    sent_away: int = counter(PEERS_SENT_AWAY)


@dataclass(frozen=True, slots=True)
class StreamCounters:
    """A stream's counters at a moment. ``viewers``, ``deliveries``, ``receptions``: of each viewer and each microphone
    that is there; the default, one of each with zeros, declares all metrics."""

    playout: PlayoutStatistics = field(default_factory=PlayoutStatistics)
    clips: DispatchCounters = field(default_factory=DispatchCounters)
    timeline: TimelineStatistics = field(default_factory=TimelineStatistics)
    receptions: tuple[Reception, ...] = (Reception(),)
    voice: VoiceCounters = field(default_factory=VoiceCounters)
    output: PumpCounters = field(default_factory=PumpCounters)
    encoder: EncoderCounters = field(default_factory=EncoderCounters)
    viewers: tuple[ViewerCounters, ...] = field(default_factory=lambda: (ViewerCounters(),))
    deliveries: tuple[Delivery, ...] = (Delivery(),)
    guard: GuardCounters = field(default_factory=GuardCounters)
    events: EventCounters = field(default_factory=EventCounters)
    times: RenderTimes = field(default_factory=RenderTimes)
    sync: SyncHistograms = field(default_factory=SyncHistograms)
