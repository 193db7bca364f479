"""The messages of a speech channel: what each does, and what is refused with which code."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from aiohttp import ClientConnectionResetError, WSCloseCode, WSMessage, WSMsgType

from echo_rtc.clips import S16Array
from echo_rtc.media.speech import EventOverError, QueueFullError, Words
from echo_rtc.stream.speech import SpeechReport, SpeechStep
from echo_rtc.web.messages import MAX_PCM_BYTES, Message, SpeechMessages
from echo_rtc.web.speech import _Channel

PCM = np.full(2400, 1000, "<i2").tobytes()
TENTH = base64.b64encode(PCM).decode()


@dataclass
class FakeSpeaker:
    """Takes sound, or refuses it."""

    said: list[tuple[str, int, str]] = field(default_factory=list)
    completed: list[str] = field(default_factory=list)
    interruptions: int = 0
    kept_alive: int = 0
    listening: bool = False
    failure: Exception | None = None
    running: str | None = None
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    drop_prepared: Callable[[], None] = lambda: None

    def report_to(self, reporter: Callable[[SpeechReport], object]) -> Callable[[], None]:
        return lambda: None

    def say(self, event: str, pcm: S16Array, words: Words | None = None) -> None:
        if self.failure is not None:
            raise self.failure
        if event not in self.completed:
            self.running = event
        is_new = words is not None and not words.samples
        self.said.append((event, len(pcm), words.text if words is not None and is_new else ""))
        if words is not None:
            words.samples += len(pcm)

    def require_place(self, event: str, samples: int) -> None:
        if self.failure is not None:
            raise self.failure

    def hold(self, event: str) -> None:
        self.running = event

    def fail(self, event: str, code: str, detail: str) -> None:
        self.failures.append((event, code, detail))

    def queued_until_s(self, event: str) -> float:
        return 0.0

    def complete(self, event: str) -> bool:
        self.completed.append(event)
        self.running = None if self.running == event else self.running
        return True

    def interrupt(self) -> list[SpeechReport]:
        self.interruptions += 1
        return []

    def keep_alive(self) -> None:
        self.kept_alive += 1

    def samples(self, event: str) -> int:
        return sum(count for name, count, _ in self.said if name == event)


class Desk:
    """A channel without a socket."""

    def __init__(self, rate: int = 24_000) -> None:
        self.speaker = FakeSpeaker()
        self.sent: list[Message] = []
        self.messages = SpeechMessages(self.speaker, rate, self.sent.append)  # type: ignore[arg-type]

    def send(self, **message: object) -> bool:
        return self.messages.text(json.dumps(message))

    @property
    def codes(self) -> list[object]:
        return [message["code"] for message in self.sent]


@pytest.mark.parametrize("rate", [8_000, 24_000, 44_100, 48_000])
def test_sound_of_every_rate_keeps_its_length(rate: int) -> None:
    desk = Desk(rate)
    for _ in range(10):
        assert desk.messages.binary(PCM)
    assert desk.send(type="agent.speak_end")
    assert desk.speaker.samples("event-1") == pytest.approx(24_000 * 48_000 / rate, abs=20)
    assert desk.speaker.completed == ["event-1"]
    assert desk.sent == []


def test_events_are_told_apart_by_their_ids() -> None:
    desk = Desk()
    desk.send(type="agent.speak", audio=TENTH, event_id="a", text="Hello")
    desk.messages.binary(PCM)
    desk.send(type="agent.speak", audio=TENTH, event_id="b")
    desk.send(type="agent.speak", audio=TENTH, event_id="a")
    desk.send(type="agent.speak_end", event_id="b")
    desk.send(type="agent.speak_end", event_id="a")
    desk.messages.binary(PCM)
    assert [event for event, _, _ in desk.speaker.said] == ["a", "a", "b", "a", "b", "a", "event-1"]
    assert desk.speaker.said[0][2] == "Hello"
    assert desk.speaker.completed == ["b", "a"]


def test_control_messages_reach_the_speaker() -> None:
    desk = Desk()
    desk.send(type="agent.start_listening")
    assert desk.speaker.listening
    desk.send(type="agent.stop_listening")
    assert not desk.speaker.listening
    desk.send(type="session.keep_alive")
    desk.send(type="agent.interrupt")
    assert (desk.speaker.interruptions, desk.speaker.kept_alive) == (1, 3)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "bad_message"),
        ("[1]", "bad_message"),
        ("[" * 100_000, "bad_message"),
        ('{"type": "session.keep_alive", "text": "\\ud800"}', "bad_message"),
        ('{"type": "session.keep_alive", "text": NaN}', "bad_message"),
        ('{"type": "session.keep_alive", "text": [' + "[]," * 20_000 + "[]]}", "bad_message"),
        ('{"type": "session.keep_alive", "text": [' + "1," * 20_000 + "1]}", "bad_message"),
        (json.dumps({"type": "agent.dance"}), "unknown_type"),
        (json.dumps({"type": ["agent.speak"]}), "unknown_type"),
        (json.dumps({"type": "agent.speak", "audio": 5}), "bad_audio"),
        (json.dumps({"type": "agent.speak", "audio": "%%%"}), "bad_audio"),
        (json.dumps({"type": "agent.speak", "audio": "AAAA"}), "bad_audio"),
        (json.dumps({"type": "agent.speak", "audio": TENTH, "event_id": 7}), "bad_message"),
        (json.dumps({"type": "agent.speak", "audio": TENTH, "event_id": "x" * 200}), "bad_message"),
        (json.dumps({"type": "agent.speak", "audio": TENTH, "text": "x" * 5000}), "bad_message"),
        (json.dumps({"type": "agent.speak_end", "event_id": "nobody"}), "unknown_event"),
    ],
)
def test_a_bad_message_is_one_error_and_the_session_goes_on(text: str, code: str) -> None:
    desk = Desk()
    assert desk.messages.text(text)
    assert desk.codes == [code]
    assert desk.messages.binary(PCM)
    assert len(desk.speaker.said) == 1


def test_a_message_that_is_too_large_ends_the_session() -> None:
    desk = Desk()
    assert not desk.messages.binary(bytes(MAX_PCM_BYTES + 2))
    assert not desk.send(type="agent.speak", audio="A" * (MAX_PCM_BYTES * 4 // 3 + 8))
    assert desk.codes == ["too_large", "too_large"]


def test_a_full_queue_refuses_the_rest_of_the_event() -> None:
    desk = Desk()
    desk.send(type="agent.speak", audio=TENTH, event_id="a")
    desk.speaker.failure = QueueFullError("more than 120 s of sound would wait")
    desk.send(type="agent.speak", audio=TENTH, event_id="a")
    desk.speaker.failure = None
    desk.send(type="agent.speak", audio=TENTH, event_id="a")
    desk.send(type="agent.speak", audio=TENTH, event_id="b")
    assert desk.codes == ["queue_full", "queue_full"]
    assert [message["event_id"] for message in desk.sent] == ["a", "a"]
    assert [event for event, _, _ in desk.speaker.said] == ["a", "b"]


def test_an_event_that_is_over_is_said_so() -> None:
    desk = Desk()
    desk.speaker.failure = EventOverError("the event 'a' is complete")
    desk.send(type="agent.speak", audio=TENTH, event_id="a")
    assert desk.codes == ["event_over"]
    assert desk.sent[0]["event_id"] == "a"


def test_reports_become_messages() -> None:
    desk = Desk()
    desk.messages.report(SpeechReport(SpeechStep.STARTED, "a", 0.0))
    desk.messages.report(SpeechReport(SpeechStep.ENDED, "a", 1.2345))
    desk.messages.report(SpeechReport(SpeechStep.INTERRUPTED, "b", 0.5))
    assert desk.sent == [
        {"type": "agent.speak_started", "event_id": "a"},
        {"type": "agent.speak_ended", "event_id": "a", "played_ms": 1234},
        {"type": "agent.speak_interrupted", "event_id": "b", "played_ms": 500},
    ]


def test_a_vanished_speaker_is_heard_to_the_end() -> None:
    desk = Desk()
    desk.send(type="agent.speak", audio=TENTH, event_id="a")
    desk.send(type="agent.speak", audio=TENTH, event_id="b")
    desk.messages.close()
    assert sorted(desk.speaker.completed) == ["a", "b"]


def test_events_that_are_never_ended_are_all_said() -> None:
    desk = Desk()
    for number in range(300):
        assert desk.send(type="agent.speak", audio=TENTH, event_id=str(number))
    assert desk.codes == []
    assert len({event for event, _, _ in desk.speaker.said}) == 300


async def test_a_client_that_breaks_a_bound_and_hangs_up_is_no_fault() -> None:
    class Gone:
        """A socket that brings one message too large, and takes nothing any more."""

        messages = iter([WSMessage(WSMsgType.BINARY, bytes(MAX_PCM_BYTES + 2), None)])
        closed: int | None = None

        def __aiter__(self) -> Gone:
            return self

        async def __anext__(self) -> WSMessage:
            return next(self.messages)

        async def send_str(self, _: str) -> None:
            raise ClientConnectionResetError("Cannot write to closing transport")

        async def close(self, code: int, message: bytes = b"") -> None:
            self.closed = code

    socket = Gone()
    await _Channel(socket, FakeSpeaker(), 24_000, None, None).run()  # type: ignore[arg-type]
    assert socket.closed == WSCloseCode.POLICY_VIOLATION


async def test_a_channel_pauses_for_as_long_as_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    paused: list[float] = []
    now = 0.0

    class Busy:
        """A socket that brings three messages, each of which takes 65 ms."""

        messages = [WSMessage(WSMsgType.BINARY, PCM, None)] * 3

        async def __aiter__(self) -> AsyncIterator[WSMessage]:
            for message in self.messages:
                yield message

    async def sleep(seconds: float) -> None:
        paused.append(seconds)

    def work(_: bytes) -> bool:
        nonlocal now
        now += 0.065
        return True

    channel = _Channel(Busy(), FakeSpeaker(), 24_000, None, None)  # type: ignore[arg-type]
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    monkeypatch.setattr(channel._messages, "binary", work)
    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "sleep", sleep)
        await channel._read()
    assert paused == [pytest.approx(0.065)] * 2
