"""How far sound and picture are apart as they leave, and how a call has gone from second to second.

Pure bookkeeping of bounded size: time and media time are arguments. Knows no packets, playout or viewers.
"""

from __future__ import annotations

from collections.abc import Mapping

from echo_rtc.counting import Histogram, Quantiles

DELAY_BOUNDS_S = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 5.0, 10.0)
OFFSET_BOUNDS_MS = (1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 100.0, 200.0, 500.0)
DELAY_STEP_S = 0.005
"""The quantiles of the delay are exact to this."""


class SyncMeter:
    """The offset of sound and picture at the sender, positive where the picture is late.

    Each packet leaves at some time of our clock and carries a media time. How much later than its media time it leaves
    is the same for both as long as they are in sync; the offset is the difference of the two means.
    """

    def __init__(self) -> None:
        self._sound = _Mean()
        self._picture = _Mean()

    def sound(self, media_s: float, now: float) -> None:
        """A packet of sound with the media time ``media_s`` leaves at ``now``, both in seconds."""
        self._sound.add(now - media_s)

    def picture(self, media_s: float, now: float) -> None:
        """A packet of the picture, likewise."""
        self._picture.add(now - media_s)

    def take(self) -> float | None:
        """The offset (s) over what has left since the last time; None unless both have."""
        sound, picture = self._sound.take(), self._picture.take()
        return None if sound is None or picture is None else picture - sound


class _Mean:
    """A running mean of values near to the first one, so that no precision is lost to large times."""

    def __init__(self) -> None:
        self._first = 0.0
        self._sum = 0.0
        self._count = 0

    def add(self, value: float) -> None:
        if not self._count:
            self._first = value
        self._sum += value - self._first
        self._count += 1

    def take(self) -> float | None:
        mean = self._first + self._sum / self._count if self._count else None
        self._sum, self._count = 0.0, 0
        return mean


class CallRecord:
    """What is looked at once a second for as long as a call lasts.

    ``offset_ms``: of the last second, None where nothing left; ``worst_offset_ms``: the one farthest from 0 so far.
    ``bitrates``: bit/s of the last second by what was sent.
    """

    def __init__(self, now: float) -> None:
        self.delays_s = Quantiles(DELAY_STEP_S)
        self.delay_s = Histogram(DELAY_BOUNDS_S)
        self.offset_size_ms = Histogram(OFFSET_BOUNDS_MS)
        self.offset_ms: float | None = None
        self.worst_offset_ms: float | None = None
        self.bitrates: dict[str, int] = {}
        self._looked_at = now
        self._sent: dict[str, int] = {}

    def look(self, now: float, delay_s: float, offset_s: float | None, sent_bytes: Mapping[str, int]) -> None:
        """A further look. ``sent_bytes`` are those sent so far."""
        self.delays_s.observe(delay_s)
        self.delay_s.observe(delay_s)
        self.offset_ms = None if offset_s is None else offset_s * 1000
        if self.offset_ms is not None:
            self.offset_size_ms.observe(abs(self.offset_ms))
            if self.worst_offset_ms is None or abs(self.offset_ms) > abs(self.worst_offset_ms):
                self.worst_offset_ms = self.offset_ms
        elapsed_s = now - self._looked_at
        if elapsed_s > 0:
            self.bitrates = {
                name: round(8 * (count - self._sent.get(name, 0)) / elapsed_s) for name, count in sent_bytes.items()
            }
            self._looked_at, self._sent = now, dict(sent_bytes)
