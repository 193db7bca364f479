"""Text that a stream says: order, look-ahead, errors and interruptions, with a voice of ours and a fake speaker."""

from __future__ import annotations

import asyncio

import pytest

from echo_rtc.stream.speech_input import SpeechRefusedError
from echo_rtc.tts.voices import Spoken, TtsError
from echo_rtc.web.messages import Message, SpeechMessages
from echo_rtc.web.text_speech import LEAD_S, MAX_TEXTS, TextSpeech, TextSpeeches, checked_text
from tests.support.virtual import run
from tests.web.test_messages import FakeSpeaker


class Talker(FakeSpeaker):
    """A speaker whose queue has a length that the test sets."""

    queued_s = 0.0
    __hash__ = object.__hash__

    @property
    def texts(self) -> list[str]:
        return [text for _, _, text in self.said if text]


class ScriptedVoice:
    """Needs a second for each sentence; fails at those that hold "bad"."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.cancelled = 0
        self.closed = False

    async def say(self, sentence: str) -> Spoken:
        self.asked.append(sentence)
        try:
            await asyncio.sleep(1.0)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if "bad" in sentence:
            raise TtsError("the text-to-speech server answers 500")
        return Spoken(b"\x01\x00" * 24_000, 24_000)

    async def close(self) -> None:
        self.closed = True


def scene() -> tuple[Talker, ScriptedVoice, TextSpeech, list[tuple[str, str]]]:
    speaker, voice = Talker(), ScriptedVoice()
    speech = TextSpeech(speaker, voice)  # type: ignore[arg-type]
    failures: list[tuple[str, str]] = []
    speech.failed = lambda event, code, detail: failures.append((event, code))
    return speaker, voice, speech, failures


def test_sentences_and_texts_are_said_in_order() -> None:
    async def live() -> None:
        speaker, voice, speech, failures = scene()
        assert speech.say("One. Two.") == "text-1"
        assert speech.say("Three.", "mine") == "mine"
        await asyncio.sleep(1.5)
        assert speaker.texts == ["One."]
        assert voice.asked == ["One.", "Two."]
        await asyncio.sleep(5)
        assert speaker.texts == ["One.", "Two.", "Three."]
        assert speaker.completed == ["text-1", "mine"]
        assert speaker.samples("text-1") == pytest.approx(96_000, abs=20)
        assert failures == []

    run(live())


def test_no_more_is_queued_than_is_needed() -> None:
    async def live() -> None:
        speaker, voice, speech, _ = scene()
        speaker.queued_s = LEAD_S + 5
        speech.say("One. Two.")
        await asyncio.sleep(4)
        assert voice.asked == ["One."]
        assert speaker.texts == []
        speaker.queued_s = 0.0
        await asyncio.sleep(10)
        assert speaker.texts == ["One.", "Two."]

    run(live())


def test_an_error_ends_its_event_and_no_other() -> None:
    async def live() -> None:
        speaker, _, speech, failures = scene()
        speech.say("One. A bad one. Three.", "a")
        speech.say("Four.", "b")
        await asyncio.sleep(10)
        assert failures == [("a", "tts_failed")]
        assert speaker.texts == ["One.", "Four."]
        assert speaker.completed == ["a", "b"]

    run(live())


def test_an_interruption_cancels_what_is_fetched() -> None:
    async def live() -> None:
        speaker, voice, speech, failures = scene()
        speech.say("One. Two.", "a")
        speech.say("Three.", "b")
        await asyncio.sleep(1.5)
        assert speech.forget() == ["a", "b"]
        assert speech.forget() == []
        await asyncio.sleep(5)
        assert (voice.cancelled, speaker.texts, failures) == (1, ["One."], [])
        speech.say("Four.", "c")
        await asyncio.sleep(5)
        assert speaker.texts == ["One.", "Four."]

    run(live())


def test_waiting_texts_are_bounded() -> None:
    async def live() -> None:
        _, _, speech, _ = scene()
        for _ in range(MAX_TEXTS):
            speech.say("One.")
        with pytest.raises(SpeechRefusedError, match="16 texts wait"):
            speech.say("One.")
        speech.forget()

    run(live())


def test_the_end_of_a_stream_ends_its_texts() -> None:
    async def live() -> None:
        speaker, voice = Talker(), ScriptedVoice()
        texts = TextSpeeches(voice)
        ending: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        speech = texts.of(speaker, ending)  # type: ignore[arg-type]
        assert speech is not None
        assert texts.of(speaker, ending) is speech  # type: ignore[arg-type]
        speech.say("One.")
        await asyncio.sleep(0.5)
        ending.set_result("over")
        await asyncio.sleep(0.5)
        assert voice.cancelled == 1
        await texts.close()
        assert voice.closed

    run(live())


def test_the_channel_says_texts_and_tells_errors() -> None:
    async def live() -> None:
        speaker, _, speech, _ = scene()
        sent: list[Message] = []
        messages = SpeechMessages(speaker, 24_000, sent.append, speech)  # type: ignore[arg-type]
        messages.text('{"type": "agent.speak_text", "text": "One.", "event_id": "a"}')
        messages.text('{"type": "agent.speak_text", "text": "A bad one.", "event_id": "b"}')
        messages.text('{"type": "agent.speak_text", "text": "?!"}')
        await asyncio.sleep(5)
        assert speaker.texts == ["One."]
        assert [(message["code"], message.get("event_id")) for message in sent] == [
            ("bad_message", None),
            ("tts_failed", "b"),
        ]
        deaf = SpeechMessages(speaker, 24_000, sent.append)  # type: ignore[arg-type]
        deaf.text('{"type": "agent.speak_text", "text": "One."}')
        assert sent[-1]["code"] == "not_configured"

    run(live())


@pytest.mark.parametrize("text", [None, 5, "", "  ", "...", "x" * 4097])
def test_texts_that_cannot_be_said_are_refused(text: object) -> None:
    with pytest.raises(ValueError, match="text"):
        checked_text(text)
