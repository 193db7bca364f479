"""Everything that streams count, in a form that adds up: what ended streams have counted is kept, so that no total of
the server ever goes back.

Knows no stream: they say what they have counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from echo_rtc.counting import Histogram, Names
from echo_rtc.rendering import RenderRequest, RenderResult

STAGE_BOUNDS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.0, 5.0, 30.0)
MAX_STAGES = 16
"""Stages of rendering that are told apart; those of the engines here are fewer."""


@dataclass(slots=True)
class Tally:
    """Counts by their names ("frames.held"), histograms by theirs ("delay_s"), and the seconds of each stage of
    rendering. All of them only grow."""

    counts: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    stages_s: dict[str, Histogram] = field(default_factory=dict)

    def count(self, group: str, values: Mapping[str, float]) -> None:
        """Counts ``values`` as "group.name"."""
        for name, value in values.items():
            key = f"{group}.{name}"
            self.counts[key] = self.counts.get(key, 0) + value

    def add(self, other: Tally) -> None:
        """Counts all that ``other`` has counted."""
        for key, value in other.counts.items():
            self.counts[key] = self.counts.get(key, 0) + value
        for mine, theirs in ((self.histograms, other.histograms), (self.stages_s, other.stages_s)):
            for name, histogram in theirs.items():
                mine.setdefault(name, Histogram(histogram.bounds)).add(histogram)


class Tallied(Protocol):
    """Whatever counts."""

    def tally(self) -> Tally: ...


class Ledger:
    """Counts of all streams there were: how many, why they ended, and what they had counted by then."""

    def __init__(self) -> None:
        self.opened = 0
        self.ended = Names()
        self._past = Tally()

    def close(self, stream: Tallied, reason: str) -> None:
        """A stream is over. It must not be among the live ones of :meth:`total` any more."""
        self.ended.count(reason)
        self._past.add(stream.tally())

    def total(self, live: Iterable[Tallied]) -> Tally:
        """What all streams have counted, those that ended and those that live."""
        total = Tally()
        total.add(self._past)
        for stream in live:
            total.add(stream.tally())
        return total


class Renderer(Protocol):
    """The part of an engine that renders."""

    async def render(self, request: RenderRequest) -> RenderResult: ...


class TimedRenderer:
    """Passes clips on to an engine and notes how long they took in all, waiting included (``clip_s``), and how long
    each stage took that the result tells of. ``clock``: monotonic, in seconds."""

    def __init__(self, engine: Renderer, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock
        self.clip_s = Histogram(STAGE_BOUNDS_S)
        self.stages_s: dict[str, Histogram] = {}

    async def render(self, request: RenderRequest) -> RenderResult:
        begun = self._clock()
        result = await self._engine.render(request)
        self.clip_s.observe(self._clock() - begun)
        for stage, took_ms in result.stages_ms.items():
            if stage not in self.stages_s and len(self.stages_s) >= MAX_STAGES:
                continue
            self.stages_s.setdefault(stage, Histogram(STAGE_BOUNDS_S)).observe(took_ms / 1000)
        return result
