"""Pushed speech through a whole stream in virtual time: what leaves, what is reported, what an interruption leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import numpy as np
import pytest

from echo_rtc.clips import MEDIA_RATE, ClipFormat, S16Array
from echo_rtc.engine.testcard import AVATAR, ScriptedFaults, TestCardEngine
from echo_rtc.media.speech import EventOverError, Words
from echo_rtc.stream.queues import QueueClosedError
from echo_rtc.stream.speech import Speaker, SpeechReport, SpeechStep
from echo_rtc.stream.speech_input import SpeechInput, SpeechRefusedError
from echo_rtc.stream.stream import Stream, StreamOptions, StreamState, VoiceSource
from tests.stream.test_stream import whole
from tests.support.virtual import run

FORMAT = ClipFormat(fps=24, clip_frames=12, width=32, height=32)
RENDER_S = 0.2


def loud(seconds: float) -> S16Array:
    """A square wave of 200 Hz: no block of it is quiet."""
    return np.resize(np.repeat(np.array([9000, -9000], np.int16), 120), round(seconds * MEDIA_RATE))


class Watched:
    """A stream of pushed speech, when its sound left, and what it reported and told its page."""

    def __init__(self, stream: Stream) -> None:
        speaker = stream.speaker
        assert speaker is not None
        self.stream = stream
        self.speaker: Speaker = speaker
        self.loop = asyncio.get_running_loop()
        self.began_s = 0.0
        """When it may be spoken to."""
        self.reports: list[tuple[float, SpeechReport]] = []
        self.events: list[dict[str, object]] = []
        self.loud_s: list[float] = []
        speaker.report_to(lambda report: self.reports.append((self.loop.time(), report)))
        stream.subscribe(self._note)

    def _note(self, event: dict[str, object]) -> bool:
        self.events.append(event)
        return True

    async def hear(self) -> None:
        tap = self.stream.add_tap()
        with suppress(QueueClosedError):
            while True:
                frame, _ = await tap.sound.get()
                if np.abs(frame.to_ndarray().astype(np.int32)).max() > 4000:
                    self.loud_s.append(self.loop.time())

    @property
    def steps(self) -> list[tuple[str, SpeechStep]]:
        return [(report.event, report.step) for _, report in self.reports]


@asynccontextmanager
async def talking(
    faults: ScriptedFaults | None = None, timeout_s: float = 0.0, clip_format: ClipFormat = FORMAT
) -> AsyncIterator[Watched]:
    engine = TestCardEngine(clip_format, faults or ScriptedFaults(delay_s=RENDER_S))
    await engine.start(lambda _: None)
    options = StreamOptions(source=VoiceSource.PUSHED, voice_timeout_s=timeout_s)
    stream = Stream(engine, engine.avatars[AVATAR], options, whole)
    watched = Watched(stream)
    stream.begin()
    hearing = asyncio.create_task(watched.hear())
    try:
        await asyncio.sleep(2.0)
        watched.began_s = watched.loop.time()
        yield watched
    finally:
        await stream.close("enough")
        await hearing
        await engine.close()


def test_pushed_events_are_said_in_order_and_reported() -> None:
    async def live() -> None:
        async with talking() as watched:
            pushed = watched.loop.time()
            watched.speaker.say("a", loud(1.2), Words("one"))
            watched.speaker.say("b", loud(0.8), Words("two"))
            watched.speaker.complete("b")
            assert watched.speaker.queued_s == pytest.approx(2.0, abs=0.01)
            await asyncio.sleep(4.0)
            assert watched.steps == [
                ("a", SpeechStep.STARTED),
                ("a", SpeechStep.ENDED),
                ("b", SpeechStep.STARTED),
                ("b", SpeechStep.ENDED),
            ]
            assert watched.loud_s[0] - pushed <= watched.stream.delay_s + 0.06
            assert watched.loud_s[-1] - watched.loud_s[0] == pytest.approx(2.0, abs=0.05)
            first, last = watched.reports[0][0], watched.reports[-1][0]
            assert first == pytest.approx(watched.loud_s[0], abs=0.03)
            assert last - first == pytest.approx(2.0, abs=0.01)
            captions = [event for event in watched.events if event["type"] == "caption"]
            assert [caption["text"] for caption in captions] == ["one", "two"]
            assert captions[1]["start_ms"] == captions[0]["end_ms"]
            assert StreamState.SPEAKING in [event.get("state") for event in watched.events]
            assert not watched.speaker.speaking

    run(live())


@pytest.mark.parametrize("after_s", [0.0, 0.1, 0.35, 0.6, 1.0, 2.9])
def test_an_interruption_reports_what_was_heard(after_s: float) -> None:
    async def live() -> None:
        async with talking() as watched:
            watched.speaker.say("a", loud(3.0))
            watched.speaker.say("b", loud(1.0))
            await asyncio.sleep(after_s)
            cut = watched.loop.time()
            reports = watched.speaker.interrupt()
            assert watched.speaker.interrupt() == []
            await asyncio.sleep(3.0)
            heard_s = 0.02 * len(watched.loud_s)
            assert {report.event for report in reports} == {"a", "b"}
            assert reports[0].played_s == pytest.approx(heard_s, abs=0.04)
            assert reports[1].played_s == 0.0
            assert all(when <= cut + 0.08 for when in watched.loud_s)
            watched.loud_s.clear()
            watched.speaker.say("c", loud(0.5))
            watched.speaker.complete("c")
            await asyncio.sleep(2.0)
            assert 0.02 * len(watched.loud_s) == pytest.approx(0.5, abs=0.03)
            assert watched.steps[-2:] == [("c", SpeechStep.STARTED), ("c", SpeechStep.ENDED)]
            assert watched.stream.tally().counts["frames", "held"] == 0

    run(live())


@pytest.mark.parametrize("after_s", [0.6, 1.2, 3.0])
def test_an_open_event_is_interrupted_too(after_s: float) -> None:
    """Its sound has its place already, and its end is not known."""

    async def live() -> None:
        async with talking() as watched:
            watched.speaker.say("a", loud(2.0))
            await asyncio.sleep(after_s)
            assert watched.speaker.speaking == (after_s < 2.0)
            cut = watched.loop.time()
            [report] = watched.speaker.interrupt()
            await asyncio.sleep(3.0)
            assert report.played_s == pytest.approx(0.02 * len(watched.loud_s), abs=0.05)
            assert all(when <= cut + 0.08 for when in watched.loud_s)
            assert not watched.speaker.speaking
            with pytest.raises(EventOverError):
                watched.speaker.say("a", loud(0.1))

    run(live())


def test_listening_shows_until_the_next_speech() -> None:
    async def live() -> None:
        async with talking() as watched:
            watched.speaker.listening = True
            await asyncio.sleep(0.5)
            states = [watched.stream.state]
            watched.speaker.say("a", loud(1.0))
            await asyncio.sleep(1.0)
            states.append(watched.stream.state)
            await asyncio.sleep(3.0)
            states.append(watched.stream.state)
            assert states == [StreamState.LISTENING, StreamState.SPEAKING, StreamState.IDLE]

    run(live())


def test_a_stream_without_a_speaker_ends() -> None:
    async def live() -> None:
        async with talking(timeout_s=20.0) as watched:
            watched.speaker.say("a", loud(1.0))
            await asyncio.sleep(15.0)
            watched.speaker.keep_alive()
            await asyncio.sleep(15.0)
            assert not watched.stream.ended.done()
            await asyncio.sleep(10.0)
            assert watched.stream.ended.result() == "no client spoke or viewed for 20 s"

    run(live())


def test_the_source_of_the_voice_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def live() -> None:
        async with talking() as watched:
            assert watched.stream.statistics()["source"] == "pushed"
            assert watched.stream.vitals.source is VoiceSource.PUSHED

    caplog.set_level(logging.INFO, "echo_rtc")
    run(live())
    assert "ended: enough; voice pushed, 2" in caplog.text


def test_a_worker_that_dies_mid_event_costs_no_sound() -> None:
    async def live() -> None:
        async with talking(ScriptedFaults(delay_s=RENDER_S, deaths=frozenset({5}))) as watched:
            watched.speaker.say("a", loud(6.0))
            watched.speaker.complete("a")
            await asyncio.sleep(9.0)
            assert 0.02 * len(watched.loud_s) == pytest.approx(6.0, abs=0.03)
            assert max(np.diff(watched.loud_s)) <= 0.05
            assert watched.steps == [("a", SpeechStep.STARTED), ("a", SpeechStep.ENDED)]
            assert watched.stream.tally().counts["clips", "failed"] >= 1
            assert watched.stream.state is StreamState.IDLE

    run(live())


def test_streams_spoken_to_at_once_stay_apart() -> None:
    async def live() -> None:
        async with talking() as first, talking() as second:
            first.speaker.say("same", loud(3.0), Words("one"))
            second.speaker.say("same", loud(2.0), Words("two"))
            second.speaker.complete("same")
            await asyncio.sleep(1.0)
            [report] = first.speaker.interrupt()
            await asyncio.sleep(3.0)
            assert 0.02 * len(first.loud_s) == pytest.approx(report.played_s, abs=0.04)
            assert 0.02 * len(second.loud_s) == pytest.approx(2.0, abs=0.03)
            assert second.steps == [("same", SpeechStep.STARTED), ("same", SpeechStep.ENDED)]
            told = [[event["text"] for event in one.events if event["type"] == "caption"] for one in (first, second)]
            # An interruption ends the caption by one without words.
            assert told == [["one", ""], ["two"]]

    run(live())


def test_short_clips_ahead_do_not_overflow() -> None:
    async def live() -> None:
        async with talking(ScriptedFaults(delay_s=0.1), clip_format=replace(FORMAT, clip_frames=6)) as watched:
            watched.speaker.say("a", loud(6.0))
            watched.speaker.complete("a")
            await asyncio.sleep(9.0)
            assert watched.stream.tally().counts["clips", "overflowed"] == 0
            assert watched.stream.tally().counts["frames", "held"] == 0

    run(live())


def test_a_clip_that_is_lost_costs_no_sound() -> None:
    async def live() -> None:
        async with talking(ScriptedFaults(delay_s=RENDER_S, failures=frozenset({4}))) as watched:
            watched.speaker.say("a", loud(3.0))
            watched.speaker.complete("a")
            await asyncio.sleep(5.0)
            assert 0.02 * len(watched.loud_s) == pytest.approx(3.0, abs=0.03)
            assert watched.steps == [("a", SpeechStep.STARTED), ("a", SpeechStep.ENDED)]

    run(live())


@pytest.mark.parametrize(("after_s", "taken_away"), [(1.0, True), (3.2, False)])
def test_an_interruption_takes_the_words_away(after_s: float, taken_away: bool) -> None:
    async def live() -> None:
        async with talking() as watched:
            watched.speaker.say("a", loud(2.0), Words("one"))
            watched.speaker.say("a", loud(2.0))
            await asyncio.sleep(after_s)
            watched.speaker.interrupt()
            watched.speaker.interrupt()
            captions = [event for event in watched.events if event["type"] == "caption"]
            assert [caption["text"] for caption in captions] == (["one", ""] if taken_away else ["one"])
            if taken_away:
                shown, over = captions
                assert over["start_ms"] == shown["start_ms"]
                assert int(str(shown["start_ms"])) < int(str(over["end_ms"])) < int(str(shown["end_ms"]))

    run(live())


@pytest.mark.parametrize("after_s", [0.0, 0.3, 1.2, 4.0])
def test_an_event_without_an_end_can_be_interrupted(after_s: float) -> None:
    async def live() -> None:
        async with talking() as watched:
            watched.speaker.say("a", loud(2.0))
            await asyncio.sleep(after_s)
            assert watched.speaker.speaking == (after_s < 3.0)
            assert [report.event for report in watched.speaker.interrupt()] == ["a"]
            assert not watched.speaker.speaking
            watched.loud_s.clear()
            await asyncio.sleep(3.0)
            assert 0.02 * len(watched.loud_s) <= 0.1

    run(live())


def test_speech_for_a_stream_that_is_over_is_refused() -> None:
    """A client may push, end or interrupt events while its stream closes."""

    async def live() -> None:
        async with talking() as watched:
            pushed = SpeechInput(watched.speaker)
            pushed.push("a", loud(1.0).tobytes(), 24_000)
        with pytest.raises(SpeechRefusedError, match="the stream is over") as refused:
            pushed.push("b", loud(1.0).tobytes(), 24_000)
        assert refused.value.code == "event_over"
        with pytest.raises(SpeechRefusedError, match="the stream is over"):
            pushed.hold("c")
        pushed.complete_all()
        watched.speaker.complete("a")
        assert watched.speaker.interrupt() == []
        watched.speaker.tick()

    run(live())
