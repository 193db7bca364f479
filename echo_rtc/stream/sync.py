"""The offset of sound and picture as they are sent, and the statistics of a call by the second.

Pure bookkeeping of bounded size: time and media time are arguments. Knows no packets, playout or viewers.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from echo_rtc.counting import Histogram, HistogramMetric, Quantiles, histogram

DELAY_BOUNDS_S = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 5.0, 10.0)
OFFSET_BOUNDS_MS = (1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 100.0, 200.0, 500.0)
MAX_PACKETS = 128
"""The latest packets of each kind that are kept: more than are sent between two samples, a second apart."""
DELAY_STEP_S = 0.005
"""The quantiles of the delay are exact to this."""


class SyncMeter:
    """The offset of sound and picture at the sender, positive where the picture is late.

    Each packet leaves at some time of our clock and carries a media time. How much later than its media time it leaves
    is the same for both as long as they are in sync; the offset is the difference of the two medians. Medians, because
    after a stall the blocks of sound that are late are sent and the frames that are late are not.
    """

    def __init__(self) -> None:
        self._sound: deque[float] = deque(maxlen=MAX_PACKETS)
        self._picture: deque[float] = deque(maxlen=MAX_PACKETS)

    def sound(self, media_s: float, now: float) -> None:
        """A packet of sound with the media time ``media_s`` leaves at ``now``, both in seconds."""
        self._sound.append(now - media_s)

    def picture(self, media_s: float, now: float) -> None:
        """A packet of the picture, likewise."""
        self._picture.append(now - media_s)

    def take(self) -> float | None:
        """The offset (s) over what has left since the last time; None unless both have."""
        both = bool(self._sound and self._picture)
        offset_s = statistics.median(self._picture) - statistics.median(self._sound) if both else None
        self._sound.clear()
        self._picture.clear()
        return offset_s


DELAY_SECONDS = HistogramMetric(
    "delay_seconds", "Media time minus playout time, sampled once a second in every stream."
)
AV_OFFSET_SIZE_MS = HistogramMetric(
    "av_offset_size_ms",
    "How far sound and picture left apart, without the sign, sampled once a second in every stream.",
)


@dataclass(slots=True)
class SyncHistograms:
    """The delay and the offset of sound and picture of every second."""

    delay_s: Histogram = histogram(DELAY_SECONDS, DELAY_BOUNDS_S)
    offset_size_ms: Histogram = histogram(AV_OFFSET_SIZE_MS, OFFSET_BOUNDS_MS)


class CallRecord:
    """What is sampled once a second for as long as a call lasts.

    ``offset_ms``: of the last second, None where nothing left; ``worst_offset_ms``: the one farthest from 0 so far.
    ``bitrates``: bit/s of the last second by what was sent.
    """

    def __init__(self, now: float) -> None:
        self.delays_s = Quantiles(DELAY_STEP_S)
        self.histograms = SyncHistograms()
        self.offset_ms: float | None = None
        self.worst_offset_ms: float | None = None
        self.bitrates: dict[str, int] = {}
        self._sampled_at = now
        self._sent: dict[str, int] = {}

    def sample(self, now: float, delay_s: float, offset_s: float | None, sent_bytes: Mapping[str, int]) -> None:
        """Takes the figures of another second. ``sent_bytes`` are those sent so far."""
        self.delays_s.observe(delay_s)
        self.histograms.delay_s.observe(delay_s)
        self.offset_ms = None if offset_s is None else offset_s * 1000
        if self.offset_ms is not None:
            self.histograms.offset_size_ms.observe(abs(self.offset_ms))
            if self.worst_offset_ms is None or abs(self.offset_ms) > abs(self.worst_offset_ms):
                self.worst_offset_ms = self.offset_ms
        elapsed_s = now - self._sampled_at
        if elapsed_s > 0:
            self.bitrates = {
                name: round(8 * (count - self._sent.get(name, 0)) / elapsed_s) for name, count in sent_bytes.items()
            }
            self._sampled_at, self._sent = now, dict(sent_bytes)
