"""Control messages of a stream's owner, over the data channel of its connection: interruptions, no sound.

Knows no connections and no rates: text comes in, answers go out by a function.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from echo_rtc.stream.events import Event
from echo_rtc.stream.speech import Speaker

MAX_CONTROL_CHARACTERS = 4096
"""A message has about 30."""


@dataclass(slots=True)
class Control:
    """What a connection may do to its stream. ``speaker``: of the stream, None where that has a microphone;
    ``is_owner``: whether the connection is of its owner, others may do nothing; ends when another takes it over."""

    speaker: Speaker | None
    is_owner: bool

    def follow(self, data: str | bytes) -> Event | None:
        """Does what a message says; the error to answer it by, if it cannot be done."""
        if not self.is_owner:
            return _error("forbidden", "only the connection of the stream's owner may control it")
        kind = _kind_of(data)
        if kind is None:
            return _error("bad_message", 'the message is no JSON object; send {"type": "agent.interrupt"}')
        if kind not in _CONTROLS:
            return _error("unknown_type", f"type is {kind[:80]!r}; it must be one of {', '.join(_CONTROLS)}")
        if self.speaker is None:
            return _error("no_speech", "the stream has a microphone; only pushed speech can be controlled")
        _CONTROLS[kind](self.speaker)
        return None

    def watch(self, tell: Callable[[Event], object]) -> Callable[[], None]:
        """Tells the owner what becomes of pushed events; returns what ends that."""
        if self.speaker is None or not self.is_owner:
            return lambda: None
        return self.speaker.report_to(lambda report: tell(report.as_message()) if self.is_owner else None)


def _error(code: str, detail: str) -> Event:
    return {"type": "error", "code": code, "detail": detail}


def _listen(speaker: Speaker, listening: bool) -> None:
    speaker.keep_alive()
    speaker.listening = listening


_CONTROLS: dict[str, Callable[[Speaker], object]] = {
    "agent.interrupt": lambda speaker: speaker.interrupt(),
    "agent.start_listening": lambda speaker: _listen(speaker, True),
    "agent.stop_listening": lambda speaker: _listen(speaker, False),
}


def _kind_of(data: str | bytes) -> str | None:
    """The type of a message; None for what is none."""
    if not isinstance(data, str) or len(data) > MAX_CONTROL_CHARACTERS:
        return None
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return str(message.get("type")) if isinstance(message, dict) else None
