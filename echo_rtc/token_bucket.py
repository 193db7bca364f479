"""Rate limits by token bucket. Pure bookkeeping: time is an argument."""

from __future__ import annotations


class TokenBucket:
    """Token bucket: refills at ``per_s``, holds at most ``burst``, and is full at ``now``, seconds."""

    def __init__(self, per_s: float, burst: float, now: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._left = burst
        self._at = now

    def take(self, wanted: int, now: float) -> int:
        """Takes up to ``wanted`` whole tokens at ``now``; returns how many there were."""
        self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
        self._at = now
        granted = min(wanted, int(self._left))
        self._left -= granted
        return granted

    def wait_s(self, now: float) -> float:
        """Seconds from ``now`` until a token is there; 0 if one is."""
        return max(0.0, (1 - self._left) / self._per_s - (now - self._at))
