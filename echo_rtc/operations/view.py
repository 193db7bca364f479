"""What operators see of the streams: the read-only view of metrics, the operator's page and the performance log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from echo_rtc.rtc.session import Role
from echo_rtc.stream.stream import Vitals
from echo_rtc.stream.tally import Ledger, Tally


class StreamView(Protocol):
    """One stream."""

    @property
    def vitals(self) -> Vitals: ...


class ResumedView(Protocol):
    """Publishers that were lost and came back."""

    @property
    def resumed(self) -> int: ...


class StreamsView(Protocol):
    """All streams."""

    @property
    def streams(self) -> Mapping[str, StreamView]: ...

    @property
    def capacity(self) -> int: ...

    @property
    def peers(self) -> Mapping[Role, int]: ...

    @property
    def ledger(self) -> Ledger: ...

    @property
    def counters(self) -> ResumedView: ...

    def tally(self) -> Tally: ...
