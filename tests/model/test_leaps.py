"""Which frames of an idle loop look alike."""

from __future__ import annotations

import numpy as np

from echo_rtc.clips import U8Array
from echo_rtc.model.leaps import AWAY_FRAMES, cells_of, find_leaps


def swaying(count: int = 192, rounds: int = 3) -> U8Array:
    """A bright bar that goes to and fro ``rounds`` times in a loop."""
    luma = np.full((count, 64, 64), 80, np.uint8)
    for number, frame in enumerate(luma):
        left = round(20 + 12 * np.sin(2 * np.pi * rounds * number / count))
        frame[:, left : left + 16] = 180
    return luma


def test_the_same_phase_of_another_round_looks_alike() -> None:
    leaps = find_leaps(cells_of(swaying()))
    assert all(leaps)
    assert {64, 128} <= set(leaps[0])
    assert 32 not in leaps[0], "there the bar moves the other way"


def test_a_lid_that_shuts_is_no_small_thing() -> None:
    luma = swaying()
    luma[64:68, 16:32, 48:64] = 20
    leaps = find_leaps(cells_of(luma))
    assert 64 not in leaps[0]
    assert 128 in leaps[0]


def test_a_loop_of_one_frame_has_no_leaps() -> None:
    assert find_leaps(cells_of(np.zeros((1, 8, 8), np.uint8))) == ((),)
    assert not any(find_leaps(cells_of(np.zeros((AWAY_FRAMES, 8, 8), np.uint8))))
