"""Control messages of owners and of others, without a connection."""

from __future__ import annotations

import asyncio

import pytest

from echo_rtc.media.speech import Words
from echo_rtc.stream.control import MAX_CONTROL_CHARACTERS, Control
from echo_rtc.stream.events import Event
from tests.stream.test_speech import loud, talking
from tests.support.virtual import run

INTERRUPT = '{"type": "agent.interrupt"}'


def test_an_owner_is_told_and_interrupts() -> None:
    async def live() -> None:
        async with talking() as watched:
            control, told = Control(watched.speaker, is_owner=True), list[Event]()
            forget = control.watch(told.append)
            assert control.follow('{"type": "agent.start_listening"}') is None
            assert watched.speaker.listening
            assert control.follow('{"type": "agent.stop_listening"}') is None
            assert not watched.speaker.listening
            watched.speaker.say("a", loud(3.0), Words("one"))
            await asyncio.sleep(1.0)
            assert control.follow(INTERRUPT) is None
            watched.speaker.fail("b", "tts_failed", "why")
            started, cut, failed = told
            assert started == {"type": "agent.speak_started", "event_id": "a"}
            assert cut["type"] == "agent.speak_interrupted"
            assert failed == {"type": "error", "code": "tts_failed", "detail": "why", "event_id": "b"}
            forget()
            watched.speaker.say("c", loud(0.5))
            await asyncio.sleep(2.0)
            assert len(told) == 3

    run(live())


def test_a_viewer_is_told_nothing_and_refused() -> None:
    async def live() -> None:
        async with talking() as watched:
            control, told = Control(watched.speaker, is_owner=False), list[Event]()
            control.watch(told.append)()
            watched.speaker.say("a", loud(1.0))
            refusal = control.follow(INTERRUPT)
            await asyncio.sleep(2.0)
            assert refusal is not None
            assert refusal["code"] == "forbidden"
            assert 0.02 * len(watched.loud_s) == pytest.approx(1.0, abs=0.05)
            assert told == []

    run(live())


def test_a_former_owner_is_told_nothing_more() -> None:
    async def live() -> None:
        async with talking() as watched:
            control, told = Control(watched.speaker, is_owner=True), list[Event]()
            forget = control.watch(told.append)
            control.is_owner = False
            watched.speaker.say("a", loud(0.5))
            refusal = control.follow(INTERRUPT)
            await asyncio.sleep(2.0)
            assert refusal is not None
            assert refusal["code"] == "forbidden"
            assert told == []
            forget()

    run(live())


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ("", "bad_message"),
        ("[" * 4000, "bad_message"),
        ("7", "bad_message"),
        (INTERRUPT.encode(), "bad_message"),
        (INTERRUPT + " " * MAX_CONTROL_CHARACTERS, "bad_message"),
        ("{}", "unknown_type"),
        ('{"type": ["agent.interrupt"]}', "unknown_type"),
        ('{"type": "agent.speak", "audio": ""}', "unknown_type"),
        (INTERRUPT, "no_speech"),
    ],
)
def test_what_cannot_be_followed_is_one_error(data: str | bytes, code: str) -> None:
    error = Control(None, is_owner=True).follow(data)
    assert error is not None
    assert (error["type"], error["code"]) == ("error", code)
