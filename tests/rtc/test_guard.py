"""What a peer may send: honest ones are never refused, others are refused in bounds and sent away."""

from __future__ import annotations

import pytest

from echo_rtc.rtc.guard import (
    MAX_SOURCES,
    MAX_UNFINISHED_BYTES,
    PACKETS_BURST,
    PACKETS_PER_S,
    PATIENCE,
    PATIENCE_PER_S,
    RESENDS_BURST,
    RESENDS_PER_S,
    Guard,
)
from echo_rtc.stream.counters import GuardCounters


class Gate:
    """A guard with a clock that is moved by hand, and the reasons for which it sent somebody away."""

    def __init__(self, counters: GuardCounters | None = None) -> None:
        self.now = 100.0
        self.reasons: list[str] = []
        self.guard = Guard(self.reasons.append, lambda: self.now, counters)

    def send(self, per_s: float, seconds: float) -> int:
        """Sends media packets at this rate; how many were taken."""
        taken = 0
        for _ in range(round(per_s * seconds)):
            self.now += 1 / per_s
            taken += self.guard.packet(7)
        return taken


@pytest.mark.parametrize("per_s", [50, 100, 400])
def test_a_microphone_is_never_refused(per_s: float) -> None:
    gate = Gate()
    assert gate.send(per_s, 600) == per_s * 600
    # The network stood still for three seconds and delivers all at once.
    assert all(gate.guard.packet(7) for _ in range(150))
    assert gate.guard.counters == GuardCounters()


def test_a_little_too_much_is_dropped_and_borne() -> None:
    gate = Gate()
    taken = gate.send(PACKETS_PER_S + PATIENCE_PER_S * 0.9, 60)
    assert taken == pytest.approx(60 * PACKETS_PER_S + PACKETS_BURST, rel=0.01)
    assert gate.guard.counters.packets_refused > 9_000
    assert gate.reasons == []


def test_a_hundred_times_the_rate_is_sent_away_within_seconds() -> None:
    gate = Gate()
    taken = gate.send(5_000, 3)
    assert taken <= PACKETS_BURST + PACKETS_PER_S
    assert gate.guard.counters.packets_refused <= 15_000
    assert gate.reasons == ["the peer was sent away: it sent far too many packets"]
    assert not gate.guard.packet(7)
    assert not gate.guard.report()
    assert not gate.guard.data()
    assert gate.guard.counters.sent_away == 1


def test_reports_and_data_have_limits_of_their_own() -> None:
    gate = Gate()
    assert sum(gate.guard.report() for _ in range(1000)) == 400
    assert sum(gate.guard.data() for _ in range(1000)) == 400
    assert gate.guard.packet(7)
    assert gate.guard.counters.reports_refused == gate.guard.counters.data_refused == 600
    for _ in range(round(PATIENCE)):
        gate.guard.report()
    assert len(gate.reasons) == 1


def test_every_further_source_takes_memory_so_there_are_few() -> None:
    gate = Gate()
    assert all(gate.guard.packet(source) for source in range(MAX_SOURCES))
    assert all(gate.guard.packet(source) for source in range(MAX_SOURCES))
    assert not gate.guard.packet(MAX_SOURCES)
    assert gate.reasons == [f"the peer was sent away: it sent from more than {MAX_SOURCES} sources"]


def test_retransmissions_are_bounded_and_end_no_peer() -> None:
    gate = Gate()
    assert gate.guard.resends(10) == 10
    assert gate.guard.resends(100_000) == RESENDS_BURST - 10
    gate.now += 0.5
    assert gate.guard.resends(100_000) == RESENDS_PER_S / 2
    assert gate.guard.counters.resends_refused > 190_000
    assert gate.reasons == []


def test_endless_messages_and_broken_packets_end_a_peer() -> None:
    counters = GuardCounters()
    first, second = Gate(counters), Gate(counters)
    first.guard.unfinished(MAX_UNFINISHED_BYTES)
    assert first.reasons == []
    first.guard.unfinished(MAX_UNFINISHED_BYTES + 1)
    assert first.reasons == ["the peer was sent away: it left more than 512 KiB of messages unfinished"]
    second.guard.fault("feedback")
    second.guard.fault("feedback")
    assert second.reasons == ["the peer was sent away: it sent feedback that cannot be handled"]
    assert (counters.sent_away, counters.faults) == (2, 2)
