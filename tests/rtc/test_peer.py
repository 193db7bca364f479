"""Events to a page, whatever state its data channel is in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiortc import RTCDataChannel

from echo_rtc.rtc.peer import MAX_CHANNEL_BACKLOG_BYTES, send_event


def channel(state: str, backlog: int, transport: str) -> tuple[RTCDataChannel, list[str]]:
    """A data channel as aiortc's shows itself, and what was sent on it."""
    sent: list[str] = []
    dtls = SimpleNamespace(state=transport)
    made: Any = SimpleNamespace(
        readyState=state, bufferedAmount=backlog, transport=SimpleNamespace(transport=dtls), send=sent.append
    )
    return cast(RTCDataChannel, made), sent


def test_an_event_is_sent_as_json() -> None:
    open_channel, sent = channel("open", 0, "connected")
    assert send_event(open_channel, {"type": "state", "state": "idle"})
    assert sent == ['{"type": "state", "state": "idle"}']


@pytest.mark.parametrize(
    ("state", "backlog", "transport"),
    [
        ("connecting", 0, "connected"),
        ("closed", 0, "connected"),
        ("open", MAX_CHANNEL_BACKLOG_BYTES + 1, "connected"),
        ("open", 0, "closed"),
        ("open", 0, "failed"),
    ],
)
def test_nothing_is_sent_where_it_cannot_arrive(state: str, backlog: int, transport: str) -> None:
    shut, sent = channel(state, backlog, transport)
    assert not send_event(shut, {"type": "end", "reason": "the test"})
    assert sent == []
