"""What nearly every clip needs: one slow clip moves nothing, a few do for a while, and it does not swing for long."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_rtc.counting import percentile
from echo_rtc.media.need import FEWEST_CLIPS, MEMORY_S, SWING_S, RecentNeed

CLIP_S = 0.5
MEMORY = round(MEMORY_S / CLIP_S)


def fed(*needs_s: float, expected_s: float = 0.3, clip_s: float = CLIP_S) -> RecentNeed:
    need = RecentNeed(clip_s, expected_s)
    for need_s in needs_s:
        need.add(need_s)
    return need


@pytest.mark.parametrize("clip_s", [0.1, 0.25, 0.5, 2.0])
@given(place=st.integers(0, 120), slow_s=st.floats(0.3, 30.0))
def test_one_slow_clip_moves_nothing_wherever_it_is(clip_s: float, place: int, slow_s: float) -> None:
    need = fed(clip_s=clip_s)
    for clip in range(150):
        need.add(slow_s if clip == place else 0.3)
        assert need.seconds == 0.3


def test_the_second_slow_clip_raises_the_need() -> None:
    assert fed(0.3, 1.1).seconds == 0.3
    assert fed(0.3, 1.1, 0.9).seconds == 0.9
    assert fed(0.9, 0.9, expected_s=0.0).seconds == 0.9


@given(slow=st.integers(2, 8), before=st.integers(0, 60))
def test_a_stall_is_forgotten_after_its_memory(slow: int, before: int) -> None:
    need = fed(*[0.3] * before, *[2.0] * slow, *[0.3] * (MEMORY - 2))
    assert need.seconds == 2.0
    need.add(0.3)
    assert need.seconds == 0.3


def test_what_was_expected_is_forgotten_too() -> None:
    assert fed(*[0.3] * (MEMORY - 2), expected_s=1.5).seconds == 1.5
    assert fed(*[0.3] * (MEMORY - 1), expected_s=1.5).seconds == 0.3


def test_long_clips_have_as_many_before_one_counts() -> None:
    assert fed(4.0, clip_s=4.0).seconds == 0.3
    assert fed(*[4.0, 4.0], *[0.3] * (FEWEST_CLIPS - 2), clip_s=4.0).seconds == 4.0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.0, 3.0), max_size=200), st.floats(0.0, 3.0))
def test_the_need_never_lies_below_that_of_the_latest_clips(needs_s: list[float], expected_s: float) -> None:
    need = RecentNeed(CLIP_S, expected_s)
    latest = [expected_s] * MEMORY
    for need_s in needs_s:
        need.add(need_s)
        latest = [*latest[1:], need_s]
        assert percentile(latest, 95) <= need.seconds <= max(expected_s, *needs_s)


def swings(needs_s: list[float]) -> int:
    """How often the need falls by SWING_S and more, and rises again."""
    need = RecentNeed(CLIP_S, 0.3)
    seen = []
    for need_s in needs_s:
        need.add(need_s)
        seen.append(need.seconds > 0.3 + SWING_S)
    return int(np.count_nonzero(np.diff(np.array(seen, np.int8)) > 0))


@pytest.mark.parametrize("period", [21, 30, 60, 100, 150])
def test_stalls_that_come_again_and_again_do_not_swing_the_need(period: int) -> None:
    """An hour of speech with two slow clips in every ``period``: it swings a few times, then once in minutes."""
    needs_s = [1.2 if clip % period < 2 else 0.3 for clip in range(7200)]
    assert swings(needs_s[:600]) <= 6
    assert swings(needs_s) <= 3600 / 200


def test_clips_at_the_limit_do_not_swing_the_need() -> None:
    """Seven in a hundred are slow, at random: at times two in 20, at times fewer."""
    rng = np.random.default_rng(5)
    assert swings(list(np.where(rng.random(7200) < 0.07, 1.2, 0.3))) <= 3600 / 200
