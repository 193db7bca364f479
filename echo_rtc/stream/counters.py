"""What a stream counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class GuardCounters:
    """What was kept from a stream's peers: media, feedback and data packets too many; packets that were not sent again;
    packets that could not be handled; and how many peers were sent away."""

    packets_refused: int = 0
    reports_refused: int = 0
    data_refused: int = 0
    resends_refused: int = 0
    faults: int = 0
    sent_away: int = 0
