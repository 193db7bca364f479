"""The wall clock that RTP packets and reports state."""

from __future__ import annotations

import time

from aiortc.clock import current_ntp_time

_NTP_ORIGIN = current_ntp_time() - (time.monotonic_ns() << 32) // 10**9


def steady_ntp_time() -> int:
    """The wall clock as RTP states it (32.32 bits of seconds since 1900), which goes on evenly when the system's clock
    is set. Receivers would take a step for a gap of its size between sound and picture, until both have been reported.
    """
    return _NTP_ORIGIN + (time.monotonic_ns() << 32) // 10**9
