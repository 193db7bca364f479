"""Pushed speech in virtual time: queue, rendering ahead, dry sources, interruption at every point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_rtc.clips import MEDIA_RATE, S16Array
from echo_rtc.media.delay_line import DelayPolicy
from echo_rtc.media.playout import FrameKind, Playout
from echo_rtc.media.speech import (
    AHEAD_S,
    MAX_EVENTS,
    MAX_QUEUED_S,
    MAX_WORDS_CHARACTERS,
    EventOverError,
    Mark,
    MarkKind,
    QueueFullError,
    SpeechQueue,
    Words,
)
from tests.media.rig import FORMAT, IDLE, LEAD_S, Rig, numbered_frames, voice

RENDER_S = 0.2
POLICY = DelayPolicy(render_s=RENDER_S, margin_s=0.15, ahead_s=AHEAD_S)
DELAY_S = RENDER_S + 0.15
FRAME_S = 1 / 24
LOUD = 2000


@dataclass
class SpeechRig(Rig):
    """A call whose voice is pushed. Times of the script are seconds after the beginning."""

    policy: DelayPolicy = POLICY
    render: Callable[[int], float | None] = lambda _: RENDER_S
    chained: bool = True
    jumps: bool = True
    marks: list[tuple[float, Mark]] = field(default_factory=list)
    played: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.queue = SpeechQueue(self.format)
        self.playout = Playout(self.format, IDLE, self.policy)
        self.interrupted = 0

    def tick(self, now: float) -> None:
        left = self.playout.next_sample(now)
        if frames := self.queue.frames_to_border(left, now):
            self.queue.jump(self.playout.jump(self.playout.next_frame(now) + frames, now))
        self.take(self.queue.advance(now), now)
        self.listen(now)
        self.note_marks(now, self.playout.media_sample(self.playout.media_now(now)))

    def note_marks(self, now: float, left: int) -> None:
        for mark in self.queue.marks_until(left):
            self.marks.append((now - self.began_s, mark))

    def take(self, pieces: list[tuple[int, S16Array]], now: float) -> None:
        self.playout.discipline(self.queue.arrived(now), now)
        for start, pcm in pieces:
            self.media.append(pcm)
            self.playout.push_sound(start, pcm, now)
            decimated = pcm[-start % 3 :: 3].astype(np.float32) / np.float32(32768.0)
            for clip in self.clipper.push(decimated):
                wanted = self.queue.wanted(clip.first_frame, clip.frames)
                if not wanted:
                    self.gate.rest()
                self.admitted[clip.index] = wanted and self.gate.admit(clip)
                self.playout.expect(clip, self.admitted[clip.index])
                if self.admitted[clip.index]:
                    self.start_render(clip.index, now)

    def start_render(self, index: int, now: float) -> None:
        asked = self.interrupted

        def deliver(when: float) -> None:
            if asked == self.interrupted:
                frames = self.format.clip_frames
                self.playout.put(index, numbered_frames(index * frames, frames), seconds, when)

        seconds = self.render(index) or 0.0
        self.busy_until = max(now, self.busy_until) + seconds
        self.at(self.busy_until - self.began_s, deliver)

    def say(self, event: str, sound: S16Array, at_s: float, complete: bool = True) -> None:
        def act(now: float) -> None:
            self.queue.push(event, sound, now)
            if complete:
                self.queue.complete(event)
            self.tick(now)

        self.at(at_s, act)

    def interrupt(self, at_s: float) -> None:
        def act(now: float) -> None:
            self.note_marks(now, self.playout.next_sample(now))
            guard = self.format.sample_of_frame(2, MEDIA_RATE)
            cuts, pieces, target = self.queue.interrupt(self.playout.next_sample(now), guard)
            self.take(pieces, now)
            self.queue.jump(self.playout.jump(self.format.frame_of_sample(target, MEDIA_RATE), now))
            self.clipper.forget()
            self.gate.rest()
            self.busy_until = now
            self.interrupted += 1
            self.played += [(cut.event, cut.played) for cut in cuts]
            self.tick(now)

        self.at(at_s, act)

    def loud_at(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """When each loud sample left, in seconds after the beginning."""
        origin = self.playout.due(0) - self.began_s
        places: np.ndarray[tuple[int], np.dtype[np.float64]] = (
            origin + np.flatnonzero(np.abs(self.heard.astype(np.int32)) > LOUD) / MEDIA_RATE
        )
        return places

    def shown_at(self, kind: FrameKind) -> list[float]:
        origin = self.playout.due(0) - self.began_s
        return [origin + shown.number * FRAME_S for shown in self.shown if shown.kind is kind]


def test_an_event_is_heard_whole_and_seen_in_step() -> None:
    rig = SpeechRig()
    said = voice(4.3)
    rig.say("a", said, 2.03)
    rig.run(9.0)
    heard = rig.heard
    first = np.flatnonzero(np.abs(heard.astype(np.int32)) > LOUD)[0]
    assert np.array_equal(heard[first : first + len(said)], said)
    assert not np.any(heard[first + len(said) :])
    assert rig.loud_at()[0] - 2.03 == pytest.approx(DELAY_S, abs=0.03)
    assert rig.shown_at(FrameKind.RENDERED)[0] - 2.03 <= RENDER_S + 0.2
    assert not rig.shown_at(FrameKind.HELD)
    rig.assert_in_step()


def test_marks_tell_when_an_event_leaves() -> None:
    rig = SpeechRig()
    rig.say("a", voice(1.5), 1.0)
    rig.say("b", voice(1.0, seed=2), 1.1)
    rig.run(6.0)
    kinds = [(mark.event, mark.kind, mark.played) for _, mark in rig.marks]
    assert kinds == [
        ("a", MarkKind.STARTED, 0),
        ("a", MarkKind.ENDED, round(1.5 * MEDIA_RATE)),
        ("b", MarkKind.STARTED, 0),
        ("b", MarkKind.ENDED, MEDIA_RATE),
    ]
    times = [when for when, _ in rig.marks]
    assert times[0] - 1.0 == pytest.approx(DELAY_S, abs=0.05)
    assert times[1] - times[0] == pytest.approx(1.5, abs=0.05)
    assert times[2] - times[1] <= 0.03


def test_bursts_leave_no_gap() -> None:
    rig = SpeechRig()
    said = voice(6.0)
    for index in range(12):
        rig.say("a", said[index * 24_000 : (index + 1) * 24_000], 1.0 + 0.2 * index, complete=index == 11)
    rig.run(9.0)
    heard = rig.heard
    first = np.flatnonzero(np.abs(heard.astype(np.int32)) > LOUD)[0]
    assert np.array_equal(heard[first : first + len(said)], said)
    assert not rig.shown_at(FrameKind.HELD)


def test_a_source_at_the_pace_of_speech_is_heard_whole() -> None:
    rig = SpeechRig()
    said = voice(5.0)
    for index in range(50):
        rig.say("a", said[index * 4800 : (index + 1) * 4800], 1.0 + 0.1 * index, complete=index == 49)
    rig.run(9.0)
    heard = rig.heard
    loud = np.flatnonzero(np.abs(heard.astype(np.int32)) > LOUD)
    assert len(loud) >= len(said) - 20 * 960
    assert not rig.shown_at(FrameKind.HELD)


def test_an_underrun_of_speech_ends_and_resumes_without_a_click() -> None:
    rig = SpeechRig()
    tone = (8000 * np.sin(2 * np.pi * 220 * np.arange(2 * MEDIA_RATE) / MEDIA_RATE)).astype(np.int16)
    rig.say("a", tone[: MEDIA_RATE + 55], 1.0, complete=False)
    rig.say("a", tone[MEDIA_RATE + 55 :], 4.0)
    rig.run(8.0)
    heard = rig.heard.astype(np.int32)
    assert np.max(np.abs(np.diff(heard))) <= np.max(np.abs(np.diff(tone.astype(np.int32)))) + 40
    assert np.count_nonzero(heard) == pytest.approx(np.count_nonzero(tone), abs=600)
    assert not rig.shown_at(FrameKind.HELD)
    idle = [when for when in rig.shown_at(FrameKind.IDLE) if 3.0 < when < 4.0]
    assert len(idle) >= 23
    assert [mark.kind for _, mark in rig.marks] == [MarkKind.STARTED, MarkKind.ENDED]


@pytest.mark.parametrize("at_s", [1.05, 1.2, 1.31, 1.6, 2.0, 2.333, 3.9, 4.29, 4.4, 6.0])
def test_an_interruption_silences_and_rests_the_face(at_s: float) -> None:
    rig = SpeechRig()
    rig.say("a", voice(3.0), 1.0)
    rig.say("b", voice(2.0, seed=3), 1.0)
    rig.interrupt(at_s)
    rig.run(9.0)
    loud = rig.loud_at()
    assert not np.any(loud > at_s + 0.08 + 0.01 + LEAD_S)
    rendered = rig.shown_at(FrameKind.RENDERED)
    assert not [when for when in rendered if when > at_s + 0.25]
    assert not rig.shown_at(FrameKind.HELD)
    heard = {event: played / MEDIA_RATE for event, played in rig.played}
    total = (loud[-1] - loud[0]) if len(loud) else 0.0
    assert sum(heard.values()) + (3.0 if "a" not in heard else 0.0) == pytest.approx(total, abs=0.02)


def test_speech_goes_on_after_interruptions() -> None:
    rig = SpeechRig()
    rig.say("a", voice(5.0), 1.0)
    rig.interrupt(2.0)
    rig.interrupt(2.01)
    said = voice(1.2, seed=4)
    rig.say("b", said, 2.02)
    rig.run(6.0)
    heard = rig.heard
    loud = rig.loud_at()
    later = loud[loud > 2.02 + 0.2]
    assert later[0] - 2.02 == pytest.approx(DELAY_S, abs=0.06)
    origin = rig.playout.due(0) - rig.began_s
    first = round((later[0] - origin) * MEDIA_RATE)
    assert np.array_equal(heard[first : first + len(said)], said)
    assert not rig.shown_at(FrameKind.HELD)


def test_a_full_queue_takes_nothing_and_loses_nothing() -> None:
    queue = SpeechQueue(FORMAT)
    queue.advance(0.0)
    second = np.ones(MEDIA_RATE, np.int16)
    for _ in range(round(MAX_QUEUED_S)):
        queue.push("a", second, 0.0)
    with pytest.raises(QueueFullError):
        queue.push("b", second[:1], 0.0)
    assert queue.queued_samples == MAX_QUEUED_S * MEDIA_RATE


def test_events_that_have_not_left_are_bounded() -> None:
    """However short they are: their sound has its place at once."""
    queue = SpeechQueue(FORMAT)
    for number in range(MAX_EVENTS):
        queue.push(str(number), np.full(2, 9, np.int16), 10.0)
        queue.advance(10.0)
    assert queue.queued_samples < 2 * MAX_EVENTS
    with pytest.raises(QueueFullError, match="more than 256 events"):
        queue.push("more", np.full(2, 9, np.int16), 10.0)
    queue.marks_until(10 * MEDIA_RATE)
    queue.push("more", np.full(2, 9, np.int16), 12.0)


def test_a_complete_event_takes_no_more() -> None:
    queue = SpeechQueue(FORMAT)
    queue.push("a", np.ones(10, np.int16), 0.0)
    assert queue.complete("a")
    with pytest.raises(EventOverError):
        queue.push("a", np.ones(10, np.int16), 0.0)
    queue.advance(0.0)
    with pytest.raises(EventOverError):
        queue.push("a", np.ones(10, np.int16), 0.0)
    assert not queue.complete("unknown")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_media_time_is_contiguous_whatever_comes(data: st.DataObject) -> None:
    queue = SpeechQueue(FORMAT)
    now, head, pushed, number = 0.0, 0, 0, 0
    for _ in range(data.draw(st.integers(1, 60))):
        now += data.draw(st.floats(0.0, 1.5))
        action = data.draw(st.sampled_from(["push", "more", "complete", "interrupt", "wait"]))
        pieces: list[tuple[int, S16Array]] = []
        if action == "push":
            number += 1
            queue.push(str(number), np.full(data.draw(st.integers(1, 60_000)), 9, np.int16), now)
        elif action == "more" and queue.running:
            queue.push(queue.running, np.full(data.draw(st.integers(1, 9_000)), 9, np.int16), now)
        elif action == "complete" and queue.running:
            queue.complete(queue.running)
        elif action == "interrupt":
            _, pieces, target = queue.interrupt(max(0, head - 5000), 4000)
            assert target % 24_000 == 0
            queue.jump(max(0, target - round(queue.arrived(now))))
        pieces = pieces + queue.advance(now)
        for start, pcm in pieces:
            assert start == head
            head += len(pcm)
            pushed += len(pcm)
        assert head >= int(queue.arrived(now)) - 0.05 * MEDIA_RATE or queue.queued_samples
        assert head <= queue.arrived(now) + (AHEAD_S + 1.1) * MEDIA_RATE


def test_sound_in_tiny_pieces_costs_no_more_than_in_large_ones() -> None:
    queue, said = SpeechQueue(FORMAT), voice(2.0)[:48_000]
    queue.advance(0.0)
    for sample in range(len(said)):
        queue.push("a", said[sample : sample + 1], 0.1, Words(f"{sample}"))
    pieces = queue.advance(0.1)
    spoken = np.concatenate([pcm for _, pcm in pieces])
    begin = next(mark.sample for mark in queue.marks_until(1 << 40) if mark.kind is MarkKind.STARTED)
    assert np.array_equal(spoken[begin - pieces[0][0] :][: len(said)], said)
    assert len(pieces) < 20


def test_words_that_follow_at_once_are_shown_together() -> None:
    queue = SpeechQueue(FORMAT)
    queue.advance(0.0)
    queue.push("a", np.zeros(0, np.int16), 0.1, Words("zero"))  # whose sound a filter holds
    words = [Words("one"), Words("two"), Words("x" * MAX_WORDS_CHARACTERS), Words("three")]
    for each, samples in zip(words, (2400, 2400, 2400, 48_000), strict=True):
        queue.push("a", np.ones(samples, np.int16), 0.1, each)
    queue.complete("a")
    queue.advance(0.1)
    marks = [mark for mark in queue.marks_until(1 << 40) if mark.words is not None]
    assert [mark.words.text for mark in marks if mark.words] == ["zero one two", words[2].text]
    assert [mark.words.samples for mark in marks if mark.words] == [4800, 50_400]
    assert marks[1].sample - marks[0].sample == 4800
    # What viewers have seen begin is not changed any more.
    queue.push("b", np.ones(480, np.int16), 0.2, first := Words("four"))
    queue.push("b", np.ones(48_000, np.int16), 0.2)
    queue.advance(0.2)
    queue.marks_until(1 << 40)
    queue.push("b", np.ones(480, np.int16), 0.3, Words("five"))
    assert (first.begun, first.text) == (True, "four")
