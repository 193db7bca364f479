"""A clock that follows another one by changing its rate, so slowly that a listener does not hear it."""

from __future__ import annotations

from echo_rtc.clips import MEDIA_RATE

MAX_SLEW = 500e-6
"""The playout clock's rate stays within this of nominal; an inaudible change of pitch."""

SLEW_TIME_S = 20.0
"""The clock makes up for an error of the delay with this time constant: slow against the network's jitter."""


class SlewedClock:
    """A piecewise linear map of our seconds to positions; continuous, strictly rising, within MAX_SLEW of nominal."""

    def __init__(self, position: float, now: float) -> None:
        self._position = position
        self._since = now
        self.rate = 1.0

    def position(self, now: float) -> float:
        """The position (fractional samples) at ``now``."""
        return self._position + (now - self._since) * MEDIA_RATE * self.rate

    def time_of(self, position: float) -> float:
        """When ``position`` is reached, at the present rate."""
        return self._since + (position - self._position) / (MEDIA_RATE * self.rate)

    def steer(self, behind_samples: float, now: float) -> None:
        """Makes up for being ``behind_samples`` behind (negative: ahead) from ``now`` on, slowly."""
        if now <= self._since:
            return
        self._position = self.position(now)
        self._since = now
        wanted = behind_samples / (MEDIA_RATE * SLEW_TIME_S)
        self.rate = 1.0 + min(MAX_SLEW, max(-MAX_SLEW, wanted))
