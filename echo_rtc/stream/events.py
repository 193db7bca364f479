"""Events of a stream for pages, and their subscribers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from echo_rtc.counting import CounterMetric, counter


class EventType(StrEnum):
    """The kinds of events, as pages get them in "type"."""

    STATE = "state"
    STATISTICS = "stats"
    STEPS = "steps"
    CAPTION = "caption"
    RECORDING = "recording"
    END = "end"


Event: TypeAlias = dict[str, object]
EventSink: TypeAlias = Callable[[Event], bool]
"""Takes events for a page, {"type": EventType, ...}; returns whether it could be sent."""


EVENTS_DROPPED = CounterMetric("events_dropped", "Events for pages that could not be sent.")


@dataclass(slots=True)
class EventCounters:
    """Events for pages."""

    dropped: int = counter(EVENTS_DROPPED)


class EventFeed:
    """Hands each event to every subscriber; one that cannot be sent is dropped and counted."""

    def __init__(self) -> None:
        self._sinks: list[EventSink] = []
        self.counters = EventCounters()

    def subscribe(self, sink: EventSink, *first: Event) -> Callable[[], None]:
        """Sends ``first`` and all further events to ``sink``; returns what ends that."""
        self._sinks.append(sink)
        for event in first:
            self._send(sink, event)

        def unsubscribe() -> None:
            if sink in self._sinks:
                self._sinks.remove(sink)

        return unsubscribe

    def emit(self, event: Event) -> None:
        """Sends an event to all subscribers."""
        for sink in tuple(self._sinks):
            self._send(sink, event)

    def _send(self, sink: EventSink, event: Event) -> None:
        self.counters.dropped += not sink(event)
