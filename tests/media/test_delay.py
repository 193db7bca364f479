"""How the delay of a call comes back after its renderer was slow, in virtual time: one worker, clips in order."""

from __future__ import annotations

import numpy as np
import pytest

from echo_rtc.clips import MEDIA_RATE
from echo_rtc.media.delay_line import DelayPolicy
from echo_rtc.media.need import MEMORY_S
from echo_rtc.media.playout import FrameKind
from tests.media.rig import Rig, loud, phrases, voice

RENDER_S, MARGIN_S = 0.3, 0.1
NEED_S = 0.5 + RENDER_S + MARGIN_S
NEAR_S = 0.1
PAUSED = 0.05
"""The delay shrinks by at least this share of the time of speech (0.2 to 0.6 s of 2.4 s are pauses)."""


class OneWorker:
    """Renders clips one after another, RENDER_S each; those of ``slow_s`` take so long, and those behind them wait."""

    def __init__(self, slow_s: dict[int, float]) -> None:
        self._slow_s = slow_s
        self._free_s = 0.0
        self.waited_s = 0.0
        """The longest that a clip took, waiting included."""
        self.late_until_s = 0.0
        """When the last clip that waited was done."""

    def __call__(self, clip: int) -> float:
        came_s = (clip + 1) * 0.5
        self._free_s = max(came_s, self._free_s) + self._slow_s.get(clip, RENDER_S)
        took_s = self._free_s - came_s
        self.waited_s = max(self.waited_s, took_s)
        if took_s > RENDER_S + 1e-6:
            self.late_until_s = self._free_s
        return took_s


def call(slow_s: dict[int, float], seconds: float = 45.0, floor: int = 60) -> tuple[Rig, OneWorker]:
    worker = OneWorker(slow_s)
    rig = Rig(DelayPolicy(RENDER_S, MARGIN_S), worker)
    rig.speak(np.append(phrases(seconds, floor), np.zeros(5 * MEDIA_RATE, np.int16)))
    rig.run(seconds + 5.0)
    return rig, worker


def back_s(rig: Rig) -> float:
    """From when on the delay is within NEAR_S of what is needed."""
    return max((when for when, delay in rig.delays if delay > NEED_S + NEAR_S), default=0.0)


@pytest.mark.parametrize("first", [0, 9])
@pytest.mark.parametrize("stall_s", [0.3, 0.7, 1.2, 2.5])
def test_a_stall_does_not_slow_the_call_down(stall_s: float, first: int) -> None:
    rig, worker = call({first: RENDER_S + stall_s})
    statistics = rig.playout.statistics()
    excess_s = worker.waited_s - RENDER_S
    assert back_s(rig) <= worker.late_until_s + MEMORY_S + excess_s / PAUSED
    assert NEED_S - 0.031 <= statistics.delay_s <= NEED_S + NEAR_S
    # Frames are held for the stall only, not for the delay that shrinks after it.
    held = [shown.number / 24 for shown in rig.shown if shown.kind is FrameKind.HELD]
    assert max(held) < worker.late_until_s + NEED_S
    assert statistics.rendered + statistics.held + statistics.idle == len(rig.shown)
    # What was rendered was shown or is counted as dropped.
    shown_pictures = {shown.source for shown in rig.shown if shown.kind is FrameKind.RENDERED}
    assert len(shown_pictures) + statistics.dropped == 12 * sum(rig.admitted.values())
    assert statistics.underruns == 0
    rig.assert_in_step()
    said = loud(rig.media_time)
    assert np.array_equal(loud(rig.heard), said[: len(loud(rig.heard))])


@pytest.mark.parametrize("floor", [0, 60, 200], ids=["digital silence", "a quiet room", "a loud room"])
def test_pauses_between_phrases_bring_the_delay_back(floor: int) -> None:
    """What the engine expected was wrong by a second; no pause is longer than 0.6 s."""
    rig = Rig(DelayPolicy(RENDER_S + 1.0, MARGIN_S), lambda _: RENDER_S)
    rig.speak(phrases(40.0, floor))
    rig.run(40.0)
    assert NEED_S - 0.031 <= rig.playout.statistics().delay_s <= NEED_S + NEAR_S
    assert back_s(rig) <= 1.0 + MEMORY_S + 1.0 / PAUSED
    assert rig.playout.statistics().held == 0
    rig.assert_in_step()


def test_the_delay_does_not_grow_beyond_its_maximum() -> None:
    """Not by part of a frame either, where the maximum is no whole number of them away."""
    rig = Rig(DelayPolicy(RENDER_S, margin_s=0.967 - 0.8 - 2 / 24, max_latency_s=1.0), lambda _: RENDER_S + 0.5)
    rig.speak(phrases(20.0, 60))
    rig.run(20.0)
    delays = [delay for _, delay in rig.delays]
    assert 0.95 < max(delays) <= 1.0 + 1e-6


def test_without_a_pause_the_delay_stays_and_nothing_is_lost() -> None:
    rig = Rig(DelayPolicy(RENDER_S + 1.0, MARGIN_S), lambda _: RENDER_S)
    said = voice(27.0, [(25.0, 27.0)])
    rig.speak(said)
    rig.run(27.0 + 1.5)
    delays = np.array(rig.delays)
    spoken = delays[(delays[:, 0] > 1.0) & (delays[:, 0] < 25.0), 1]
    assert np.ptp(spoken) < 0.003
    # The first pause takes most of it back at once.
    assert delays[-1, 1] < NEED_S + 0.5
    assert np.array_equal(loud(rig.heard), loud(said)[: len(loud(rig.heard))])
    assert rig.playout.statistics().held == 0


@pytest.mark.parametrize("wrong_s", [-0.028, 0.04])
def test_less_than_a_frame_is_made_up_for_without_a_pause(wrong_s: float) -> None:
    rig = Rig(DelayPolicy(RENDER_S + wrong_s, MARGIN_S), lambda _: RENDER_S)
    said = voice(80.0)
    rig.speak(said)
    rig.run(80.0)
    assert rig.playout.delay_s == pytest.approx(NEED_S, abs=0.01)
    assert np.array_equal(rig.heard, said[: len(rig.heard)])
    statistics = rig.playout.statistics()
    assert statistics.stretched == statistics.cut == statistics.held == statistics.dropped == 0
    rig.assert_in_step()


def test_stalls_again_and_again_end_in_a_delay_that_stays() -> None:
    """Two clips in 13 s of speech are slow: the delay grows once more after it fell, and then no frame is held."""
    rig = Rig(DelayPolicy(RENDER_S, MARGIN_S), lambda clip: RENDER_S + 0.5 * (clip % 26 in (4, 5)))
    rig.speak(phrases(120.0, 60))
    rig.run(120.0)
    when, delays = np.array(rig.delays).T
    steps = np.diff(delays)
    assert np.any(steps[when[1:] < 40.0] < -0.03)
    assert not np.any(np.abs(steps[when[1:] > 60.0]) > 0.03)
    assert max(shown.number / 24 for shown in rig.shown if shown.kind is FrameKind.HELD) < 40.0
    assert rig.playout.statistics().delay_s == pytest.approx(NEED_S + 0.5, abs=0.05)
