"""What is known of an output, as HTTP tells it: nothing that is secret."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum


class OutputState(StrEnum):
    """A connection is being made; packets leave; the next attempt waits; given up; over with its stream or by order."""

    CONNECTING = "connecting"
    LIVE = "live"
    WAITING = "waiting"
    FAILED = "failed"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class OutputFacts:
    """``endpoint``: scheme, host and port, because the path may be a secret. ``codec``: of the picture that the other
    side takes, None where it takes none or that is not known yet; ``sound``: whether it takes sound. ``connections``:
    how often it was live; ``failures``: in a row; ``retry_in_s``: of the next attempt, None where none waits;
    ``error``: why the latest one ended."""

    id: str
    type: str
    endpoint: str
    state: OutputState
    codec: str | None = None
    sound: bool = False
    connections: int = 0
    failures: int = 0
    retry_in_s: float | None = None
    error: str | None = None

    def as_json(self) -> dict[str, object]:
        rest = None if self.retry_in_s is None else round(self.retry_in_s, 1)
        return {**asdict(self), "retry_in_s": rest}
