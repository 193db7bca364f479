"""The walk through an idle loop: every frame follows the one before or looks like it, and no period is left."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from echo_rtc.clips import YuvFrames
from echo_rtc.media.idle_walk import FADE_FRAMES, KEPT_CLIPS, IdleWalk

LENGTH, CLIP = 192, 12
LEAPS = tuple(((n + 60) % LENGTH, (n + 101) % LENGTH) for n in range(LENGTH))


def test_a_loop_without_leaps_is_shown_in_its_order() -> None:
    walk = IdleWalk(LENGTH, CLIP, seed=7)
    assert [walk.place(n) for n in range(-3, 400)] == [n % LENGTH for n in range(-3, 400)]


@pytest.mark.parametrize("seed", range(1, 6))
def test_no_period_is_left_within_a_minute(seed: int) -> None:
    walk = IdleWalk(LENGTH, CLIP, LEAPS, seed)
    places = [walk.place(n) for n in range(60 * 24)]
    for period in range(24, 30 * 24):
        same = sum(a == b for a, b in zip(places, places[period:], strict=False)) / (len(places) - period)
        assert same < 0.7, f"a period of {period} frames"


def test_leaps_lead_to_frames_that_look_alike() -> None:
    walk = IdleWalk(LENGTH, CLIP, LEAPS, seed=3)
    places = [walk.place(n) for n in range(3000)]
    leapt = [(a, b) for a, b in itertools.pairwise(places) if b != (a + 1) % LENGTH]
    assert len(leapt) > 20
    assert all(b in LEAPS[(a + 1) % LENGTH] for a, b in leapt)


def test_streams_begin_at_different_places_of_the_loop() -> None:
    assert len({IdleWalk(LENGTH, CLIP, LEAPS, seed).place(0) for seed in range(1, 9)}) > 4


def test_earlier_frames_can_be_asked_for_again() -> None:
    walk = IdleWalk(LENGTH, CLIP, LEAPS, seed=4)
    places = {n: walk.place(n) for n in range(20 * CLIP)}
    assert all(walk.place(n) == place for n, place in places.items())


def test_what_is_remembered_is_bounded() -> None:
    walk = IdleWalk(LENGTH, CLIP, LEAPS, seed=4)
    walk.place(CLIP * (KEPT_CLIPS + 500))
    assert len(walk._starts) == KEPT_CLIPS
    assert 0 <= walk.place(0) < LENGTH


def test_a_leap_is_a_fade() -> None:
    walk = IdleWalk(LENGTH, CLIP, LEAPS, seed=3)
    luma = np.repeat(np.arange(LENGTH, dtype=np.uint8), 4).reshape(LENGTH, 2, 2)
    idle = YuvFrames(luma, luma[:, :1, :1], luma[:, :1, :1])
    clip = next(n for n in range(1, 50) if walk.place(n * CLIP) != (walk.place(n * CLIP - 1) + 1) % LENGTH)
    first, left, landed = clip * CLIP, walk.place(clip * CLIP - 1) + 1, walk.place(clip * CLIP)
    shown = [int(walk.picture(idle, first + n).y[0, 0, 0]) for n in range(CLIP)]
    assert abs(shown[0] - left) < abs(shown[0] - landed)
    assert shown[FADE_FRAMES:] == [landed + n for n in range(FADE_FRAMES, CLIP)]
    assert int(walk.picture(idle, first - 1).y[0, 0, 0]) == left - 1
