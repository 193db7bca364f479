"""Steps fall while clips come late and climb back when there is room, without swinging."""

from __future__ import annotations

import pytest

from echo_rtc.engine.steps import CLIMB_CLIPS, MAX_CLIMB_CLIPS, StepLadder


def play(ladder: StepLadder, clips: int, slack_s: float, first: int = 0, render_s: float = 0.4) -> list[int]:
    """The steps after each of ``clips`` clips that come ``slack_s`` before they are due."""
    seen = []
    for clip in range(first, first + clips):
        if slack_s < 0:
            ladder.late(clip, clip + 1)
        else:
            ladder.on_time(clip, slack_s, render_s, clip + 1)
        seen.append(ladder.steps)
    return seen


def test_late_clips_cost_a_step_for_each_two_down_to_the_least() -> None:
    assert play(StepLadder(6, 3), 10, -0.1) == [6, 5, 5, 4, 4, 3, 3, 3, 3, 3]


def test_one_late_clip_is_an_accident() -> None:
    ladder = StepLadder(6, 3)
    for start in range(0, 50, 5):
        play(ladder, 1, -0.1, start)
        play(ladder, 4, 0.2, start + 1)
    assert ladder.steps == 6


def test_clips_asked_for_before_a_change_are_no_judgement_on_it() -> None:
    ladder = StepLadder(6, 3)
    ladder.late(0, 8)
    for clip in range(1, 8):  # all on their way with six steps when the first two came late
        ladder.late(clip, 8)
    assert ladder.steps == 5


def test_steps_climb_back_one_by_one() -> None:
    ladder = StepLadder(6, 4)
    play(ladder, 4, -0.1)
    assert ladder.steps == 4
    seen = play(ladder, 2 * CLIMB_CLIPS, 0.5, 4)
    assert seen[CLIMB_CLIPS - 2 : CLIMB_CLIPS] == [4, 5]
    assert seen[-1] == 6


def test_without_room_for_a_step_more_they_stay() -> None:
    ladder = StepLadder(6, 4)
    play(ladder, 4, -0.1)
    assert set(play(ladder, 100, 0.05, 4)) == {4}  # a step takes 0.1 s


def test_attempts_that_fail_become_rarer() -> None:
    ladder = StepLadder(6, 5)
    ladder.late(0, 1)
    ladder.late(1, 2)
    lengths, clip = [], 2
    for _ in range(8):
        since = clip
        while ladder.steps == 5:
            ladder.on_time(clip, 0.5, 0.4, clip + 1)
            clip += 1
        lengths.append(clip - since)
        while ladder.steps == 6:
            ladder.late(clip, clip + 1)
            clip += 1
    assert lengths[:3] == [CLIMB_CLIPS, 2 * CLIMB_CLIPS, 4 * CLIMB_CLIPS]
    assert lengths[-1] == MAX_CLIMB_CLIPS


@pytest.mark.parametrize(("full", "least"), [(0, 0), (3, 4), (3, 0)])
def test_impossible_bounds_are_refused(full: int, least: int) -> None:
    with pytest.raises(ValueError, match="steps between"):
        StepLadder(full, least)
