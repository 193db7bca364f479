"""Text that a stream says: order, look-ahead, errors and interruptions, with a voice of ours and a fake speaker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from echo_rtc.stream.speech import SpeechStep
from echo_rtc.stream.speech_input import SpeechRefusedError
from echo_rtc.tts.voices import Spoken, TtsError
from echo_rtc.web.clients import Clients
from echo_rtc.web.limits import LimitOptions, Limits
from echo_rtc.web.messages import Message, SpeechMessages
from echo_rtc.web.text_speech import LEAD_S, MAX_TEXTS, LimitedTexts, TextSpeech, TextSpeeches, checked_text
from tests.stream.test_speech import loud, talking
from tests.support.virtual import run
from tests.web.test_clients import request
from tests.web.test_messages import FakeSpeaker

HALF = loud(0.5)[::2].tobytes()
"""Half a second at 24 kHz."""


class Talker(FakeSpeaker):
    """A speaker whose queue has a length that the test sets."""

    queued_s = 0.0
    __hash__ = object.__hash__

    def queued_until_s(self, event: str) -> float:
        return self.queued_s

    @property
    def texts(self) -> list[str]:
        return [text for _, _, text in self.said if text]


class ScriptedVoice:
    """Needs a second for each sentence, and another one for its second half; fails at those that hold "bad", and in the
    middle of those that hold "worse"."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.cancelled = 0
        self.closed = False

    async def say(self, sentence: str) -> AsyncGenerator[Spoken, None]:
        self.asked.append(sentence)
        try:
            for half in range(2):
                await asyncio.sleep(1.0)
                if "bad" in sentence or (half and "worse" in sentence):
                    raise TtsError("the text-to-speech server answers 500")
                yield Spoken(HALF, 24_000)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise

    async def close(self) -> None:
        self.closed = True


def scene() -> tuple[Talker, ScriptedVoice, TextSpeech]:
    speaker, voice = Talker(), ScriptedVoice()
    return speaker, voice, TextSpeech(speaker, voice)  # type: ignore[arg-type]


def test_sentences_and_texts_are_said_in_order() -> None:
    async def live() -> None:
        speaker, voice, speech = scene()
        assert speech.say("One. Two.") == "text-1"
        assert speech.say("Three.", "mine") == "mine"
        assert speech.say("Four.", "text-1") == "text-1"
        await asyncio.sleep(1.5)
        assert (speaker.texts, voice.asked) == (["One."], ["One."])
        assert 0 < speaker.samples("text-1") <= 24_000
        await asyncio.sleep(8)
        assert speaker.texts == ["One.", "Two.", "Four.", "Three."]
        assert speaker.completed == ["text-1", "mine"]
        assert speaker.samples("text-1") == pytest.approx(3 * 48_000, abs=20)
        assert speaker.failures == []

    run(live())


def test_no_more_is_queued_than_is_needed() -> None:
    async def live() -> None:
        speaker, voice, speech = scene()
        speaker.queued_s = LEAD_S + 5
        speech.say("One. Two.")
        await asyncio.sleep(4)
        assert (speaker.running, voice.asked, speaker.texts) == ("text-1", [], [])
        speaker.queued_s = 0.0
        await asyncio.sleep(10)
        assert speaker.texts == ["One.", "Two."]

    run(live())


def test_sound_of_a_texts_event_follows_the_text() -> None:
    async def live() -> None:
        speaker, _, speech = scene()
        sent: list[Message] = []
        messages = SpeechMessages(speaker, 48_000, sent.append, speech)  # type: ignore[arg-type]
        messages.text('{"type": "agent.speak_text", "text": "One. Two.", "event_id": "a"}')
        messages.binary(bytes(9600))
        messages.binary(bytes(9600))
        messages.text('{"type": "agent.speak_end"}')
        await asyncio.sleep(1.5)
        assert speaker.running == "a"
        await asyncio.sleep(5)
        assert [count for _, count, _ in speaker.said][-2:] == [4800, 4800]
        assert {event for event, _, _ in speaker.said} == {"a"}
        assert (speaker.completed, sent) == (["a"], [])
        messages.binary(bytes(9600))
        assert speaker.said[-1] == ("event-1", 4800, "")

    run(live())


def test_an_error_ends_its_event_and_no_other() -> None:
    async def live() -> None:
        speaker, _, speech = scene()
        speech.say("One. A worse one. Three.", "a")
        speech.push("a", bytes(4800), 24_000)
        speech.say("Four.", "b")
        await asyncio.sleep(10)
        detail = "the text-to-speech server answers 500"
        assert speaker.failures == [("a", "tts_failed", detail)]
        assert speaker.texts == ["One.", "A worse one.", "Four."]
        assert speaker.samples("a") == pytest.approx(72_000, abs=20)
        assert speaker.completed == ["a", "b"]

    run(live())


def test_an_interruption_cancels_what_is_fetched() -> None:
    async def live() -> None:
        speaker, voice, speech = scene()
        speech.say("One. Two.", "a")
        speech.say("Three.", "b")
        await asyncio.sleep(2.5)
        speaker.drop_prepared()
        speaker.drop_prepared()
        await asyncio.sleep(5)
        assert (voice.cancelled, speaker.texts, speaker.failures) == (1, ["One."], [])
        speech.say("Four.", "c")
        await asyncio.sleep(5)
        assert speaker.texts == ["One.", "Four."]

    run(live())


def test_waiting_texts_are_bounded() -> None:
    async def live() -> None:
        _, _, speech = scene()
        for _ in range(MAX_TEXTS):
            speech.say("One.")
        with pytest.raises(SpeechRefusedError, match="16 texts wait"):
            speech.say("One.")
        speech.drop()

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
        speaker, _, speech = scene()
        sent: list[Message] = []
        messages = SpeechMessages(speaker, 24_000, sent.append, speech)  # type: ignore[arg-type]
        messages.text('{"type": "agent.speak_text", "text": "One.", "event_id": "a"}')
        messages.text('{"type": "agent.speak_text", "text": "?!"}')
        await asyncio.sleep(5)
        assert speaker.texts == ["One."]
        deaf = SpeechMessages(speaker, 24_000, sent.append)  # type: ignore[arg-type]
        deaf.text('{"type": "agent.speak_text", "text": "One."}')
        assert [message["code"] for message in sent] == ["bad_message", "not_configured"]

    run(live())


def test_the_channel_refuses_texts_beyond_the_clients_limit() -> None:
    async def live() -> None:
        speaker, _, speech = scene()
        sent: list[Message] = []
        limits = Limits(LimitOptions(texts_per_minute=1), Clients(), asyncio.get_running_loop().time)
        texts = LimitedTexts.of(speech, lambda: limits.count_text(request("192.0.2.1")))
        messages = SpeechMessages(speaker, 24_000, sent.append, texts)  # type: ignore[arg-type]
        for _ in range(2):
            assert messages.text('{"type": "agent.speak_text", "text": "One."}'), "the session goes on"
        [error] = sent
        assert error["code"] == "too_many"
        assert "More than 1 texts a minute" in str(error["detail"])
        await asyncio.sleep(60.0)
        assert messages.text('{"type": "agent.speak_text", "text": "Two."}')
        await asyncio.sleep(5.0)
        assert (sent, speaker.texts) == ([error], ["One.", "Two."])

    run(live())


def test_sound_that_comes_during_a_text_waits_behind_it() -> None:
    async def live() -> None:
        async with talking() as watched:
            speech = TextSpeech(watched.speaker, ScriptedVoice())
            speech.say("One. Two.", "text")
            watched.speaker.say("sound", loud(1.0))
            watched.speaker.complete("sound")
            await asyncio.sleep(9.0)
            assert watched.steps == [
                ("text", SpeechStep.STARTED),
                ("text", SpeechStep.ENDED),
                ("sound", SpeechStep.STARTED),
                ("sound", SpeechStep.ENDED),
            ]
            assert watched.reports[1][1].played_s == pytest.approx(2.0, abs=0.01)
            # The first half of a sentence is said before the second has come.
            assert watched.reports[0][0] < watched.began_s + 2.0
            captions = [event for event in watched.events if event["type"] == "caption"]
            assert [caption["text"] for caption in captions] == ["One.", "One.", "Two.", "Two."]
            for guess, exact in zip(captions[::2], captions[1::2], strict=True):
                assert guess["start_ms"] == exact["start_ms"]
                assert int(str(exact["end_ms"])) - int(str(exact["start_ms"])) == pytest.approx(1000, abs=5)

    run(live())


@pytest.mark.parametrize("after_s", [0.2, 1.6, 3.5])
def test_a_text_is_interrupted_at_any_time(after_s: float) -> None:
    async def live() -> None:
        async with talking() as watched:
            voice = ScriptedVoice()
            speech = TextSpeech(watched.speaker, voice)
            speech.say("One. Two. Three.", "a")
            speech.say("Four.", "b")
            await asyncio.sleep(after_s)
            cut_s = watched.loop.time()
            reports = watched.speaker.interrupt()
            assert [report.event for report in reports] == ["a", "b"]
            assert reports[1].played_s == 0.0
            await asyncio.sleep(6.0)
            assert voice.cancelled == 1
            assert all(when <= cut_s + 0.08 for when in watched.loud_s)
            assert not watched.speaker.speaking
            speech.say("Five.")
            await asyncio.sleep(4.0)
            assert watched.steps[-1] == ("text-1", SpeechStep.ENDED)

    run(live())


@pytest.mark.parametrize("text", [None, 5, "", "  ", "...", "x" * 4097])
def test_texts_that_cannot_be_said_are_refused(text: object) -> None:
    with pytest.raises(ValueError, match="text"):
        checked_text(text)
