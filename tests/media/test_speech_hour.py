"""An hour of pushed speech in virtual time, by schedules of chance: what must hold whatever comes, in whatever order.

Each event is of one loud level that no other of its schedule has, so that a sample that was heard says whose it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import numpy as np
import pytest

from echo_rtc.clips import MEDIA_RATE, S16Array
from echo_rtc.media.playout import FrameKind
from echo_rtc.media.speech import FADE_S, EventOverError, MarkKind, QueueFullError
from tests.media.test_speech import LOUD, SpeechRig

SCHEDULES, LENGTH_S, REST_S = 12, 260.0, 40.0
"""Each schedule pushes for LENGTH_S; then all that waits is said."""
TICK_S = 0.05
BLOCK, HANDED_OVER_S = 2880, 0.02
"""What is read at once, and how long before it is due: together 80 ms."""
FADE = round(FADE_S * MEDIA_RATE)


@dataclass
class Pushed:
    """What became of an event: samples taken; whether all of it came at once; when it was interrupted, and how many
    samples were reported as heard by then."""

    level: int
    samples: int = 0
    at_once: bool = True
    cut_s: float | None = None
    reported: int | None = None


class HourRig(SpeechRig):
    """A speaker of whom everything is known. ``refused``: pushes to events that were over, or beyond the queue."""

    def __init__(self, seed: int) -> None:
        self.chance = np.random.default_rng(seed)
        super().__init__(render=self._render_s)
        self.pushed: dict[str, Pushed] = {}
        self.came: list[str] = []
        """Events as they came first."""
        self.noted = 0
        self.refused = 0
        self.numbers = count()
        self.kinds_shown: list[FrameKind] = []

    def _render_s(self, _: int) -> float:
        """The worker is slow now and then, and once in a while far too slow."""
        return float(self.chance.choice([0.1, 0.2, 0.4, 2.5], p=[0.5, 0.4, 0.08, 0.02]))

    # What is pushed

    def script(self) -> None:
        """Events of all kinds, at times of chance."""
        kinds = (self.burst, self.stream, self.crumbs, self.cut)
        now_s = 2.0
        while now_s < LENGTH_S:
            kinds[self.chance.choice(len(kinds), p=[0.35, 0.3, 0.1, 0.25])](now_s)
            now_s += float(self.chance.exponential(2.5))

    def burst(self, at_s: float) -> None:
        """Whole events at once."""
        for _ in range(self.chance.integers(1, 4)):
            self.put(at_s, self.new_event(), float(self.chance.uniform(0.03, 4.0)), complete=True)

    def stream(self, at_s: float) -> None:
        """An event in pieces, faster or slower than speech, whose source vanishes in the end or forgets to end it."""
        event, pace = self.new_event(), float(self.chance.uniform(0.3, 1.6))
        for _ in range(self.chance.integers(1, 12)):
            seconds = float(self.chance.uniform(0.05, 0.8))
            self.put(at_s, event, seconds, complete=False)
            self.pushed[event].at_once = False
            at_s += seconds * pace
        if self.chance.random() < 0.7:
            self.at(at_s, lambda now: self.end(event, now))

    def crumbs(self, at_s: float) -> None:
        """Many tiny events."""
        for _ in range(self.chance.integers(5, 40)):
            self.put(at_s, self.new_event(), float(self.chance.choice([0.0, 0.001, 0.01, 0.02])), complete=True)

    def cut(self, at_s: float) -> None:
        """Interruptions, some of them at once again."""
        for _ in range(self.chance.integers(1, 3)):
            self.interrupt(at_s)
            at_s += float(self.chance.uniform(0.0, 0.3))

    def new_event(self) -> str:
        number = next(self.numbers)
        self.pushed[str(number)] = Pushed(LOUD + 2 + 11 * number)
        return str(number)

    def put(self, at_s: float, event: str, seconds: float, complete: bool) -> None:
        def act(now: float) -> None:
            sound = np.full(round(seconds * MEDIA_RATE), self.pushed[event].level, np.int16)
            try:
                self.queue.push(event, sound, now)
                self.pushed[event].samples += len(sound)
                self.came = [*self.came, event] if event not in self.came else self.came
            except (EventOverError, QueueFullError):
                self.refused += 1
            if complete:
                self.queue.complete(event)
            self.tick(now)

        self.at(at_s, act)

    def end(self, event: str, now: float) -> None:
        self.queue.complete(event)
        self.tick(now)

    def interrupt(self, at_s: float) -> None:
        super().interrupt(at_s)

        def note(now: float) -> None:
            for event, played in self.played[self.noted :]:
                self.pushed[event].cut_s, self.pushed[event].reported = now - self.began_s, played
            self.noted = len(self.played)

        self.at(at_s, note)

    # What is heard

    def live(self) -> None:
        """Runs the whole schedule."""
        self.script()
        for number in range(round((LENGTH_S + REST_S) / TICK_S)):
            self.at(number * TICK_S, self.tick)
        self.ticked_s = LENGTH_S + REST_S + 1
        self.run(LENGTH_S + REST_S)

    def listen(self, now: float) -> None:
        while self.playout.due(self.position) - HANDED_OVER_S <= now:
            while self.format.sample_of_frame(self.next_frame, MEDIA_RATE) < self.position + BLOCK:
                self.kinds_shown.append(self.playout.frame(self.next_frame)[1])
                self.next_frame += 1
            self.sound.append(self.playout.sound(self.position, BLOCK))
            self.position += BLOCK


def heard(sound: S16Array) -> dict[int, list[tuple[int, int]]]:
    """Where each level was heard, as (first sample, behind the last one). In fades no two samples are the same."""
    changes = np.flatnonzero(np.diff(sound)) + 1
    begins, ends = np.concatenate([[0], changes]), np.concatenate([changes, [len(sound)]])
    runs: dict[int, list[tuple[int, int]]] = {}
    for begin, end in zip(begins[ends - begins > 1], ends[ends - begins > 1], strict=True):
        runs.setdefault(int(sound[begin]), []).append((int(begin), int(end)))
    return runs


@pytest.mark.parametrize("seed", range(SCHEDULES))
def test_what_holds_for_any_schedule_of_speech(seed: int) -> None:
    rig = HourRig(seed)
    rig.live()
    runs_of, origin_s = heard(rig.heard), rig.playout.due(0) - rig.began_s
    marks = [(mark.kind, mark.event, mark.played) for _, mark in rig.marks if mark.kind is not MarkKind.TEXT]
    ended = {event: played for kind, event, played in marks if kind is MarkKind.ENDED}
    started = [event for kind, event, _ in marks if kind is MarkKind.STARTED]
    assert len(set(marks)) == len(marks)
    assert started == [event for event in rig.came if event in started]
    last = -1
    for event in rig.came:
        one = rig.pushed[event]
        runs = runs_of.get(one.level, [])
        breaks, said = max(0, len(runs) - 1), sum(end - begin for begin, end in runs)
        if runs:
            # Said in the order in which they came.
            assert runs[0][0] >= last
            last = runs[-1][1]
            assert event in started
        if one.cut_s is None:
            # Whole, but for fades after breaks.
            assert one.samples - FADE * breaks <= said <= one.samples
            assert ended.get(event, one.samples) == one.samples
            assert event in ended or event == rig.came[-1]
        else:
            assert one.reported is not None
            assert event not in ended
            assert not runs or origin_s + runs[-1][1] / MEDIA_RATE <= one.cut_s + 0.08
            assert abs(said - one.reported) <= FADE * (breaks + 1)
        # There are no breaks where all was there in time.
        assert not (one.at_once and breaks)
    statistics = rig.playout.statistics()
    assert rig.queue.queued_samples == statistics.underruns == 0
    assert statistics.rendered + statistics.idle + statistics.held == len(rig.kinds_shown)
    assert rig.kinds_shown.count(FrameKind.HELD) < len(rig.kinds_shown) / 10
    assert rig.kinds_shown[-1] is FrameKind.IDLE
