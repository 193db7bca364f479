"""Counters in a form that adds up: what ended streams have counted is kept, so that no total of the server decreases.

Knows no stream: each gives what it has counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeAlias

from echo_rtc.counting import Histogram, Metric, Names, published
from echo_rtc.stream.counters import StreamCounters

Sample: TypeAlias = tuple[str, str]
"""The name of a metric, and the value of its label: ("frames", "held"), ("late_packets", "")."""

METRICS: dict[str, Metric] = {metric.name: metric for metric, _ in published(StreamCounters())}
"""Every metric of streams by its name, in the order in which they are declared."""


class Tally:
    """Counters and histograms of any number of streams; they only grow. ``counted``: trees of counters to begin
    with."""

    def __init__(self, *counted: object) -> None:
        self.counts: dict[Sample, float] = {}
        self.histograms: dict[Sample, Histogram] = {}
        for counters in counted:
            self.count(counters)

    def count(self, counters: object) -> None:
        """Adds every counter of a tree; see :func:`echo_rtc.counting.published`."""
        for metric, values in published(counters):
            for label, value in values.items():
                self._add((metric.name, label), value)

    def add(self, other: Tally) -> None:
        """Adds all that ``other`` has counted."""
        for sample, count in other.counts.items():
            self._add(sample, count)
        for sample, histogram in other.histograms.items():
            self._add(sample, histogram)

    def _add(self, sample: Sample, value: float | Histogram) -> None:
        if isinstance(value, Histogram):
            self.histograms.setdefault(sample, Histogram(value.bounds)).add(value)
        else:
            self.counts[sample] = self.counts.get(sample, 0) + value


class Tallied(Protocol):
    """Whatever counts."""

    def tally(self) -> Tally: ...


class Ledger:
    """Counts of all streams so far: how many, why they ended, and what they had counted by then."""

    def __init__(self) -> None:
        self.opened = 0
        self.ended = Names()
        self._past = Tally(StreamCounters())

    def close(self, stream: Tallied, reason: str) -> None:
        """A stream has ended. It must not be among the live ones of :meth:`total` any more."""
        self.ended.count(reason)
        self._past.add(stream.tally())

    def total(self, live: Iterable[Tallied]) -> Tally:
        """The counts of all streams, ended and live."""
        total = Tally()
        total.add(self._past)
        for stream in live:
            total.add(stream.tally())
        return total
