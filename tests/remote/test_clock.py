"""When frames from elsewhere are due."""

from __future__ import annotations

import pytest

from echo_rtc.remote.clock import MARGIN_S, MAX_DEPTH_S, WINDOW_S, ArrivalClock


def test_what_comes_late_decides_for_all() -> None:
    clock = ArrivalClock()
    due_s = []
    for number in range(500):
        sound_wall_s, picture_wall_s = 5000.0 + number * 0.02, 5000.0 + number * 0.02
        clock.due_s(picture_wall_s, picture_wall_s - 4000.0 + 0.03)
        due_s.append(clock.due_s(sound_wall_s, sound_wall_s - 4000.0 + 0.11) - sound_wall_s)
    assert due_s[-1] == pytest.approx(-4000.0 + 0.11 + MARGIN_S)
    assert max(due_s) - min(due_s) < 1e-6
    assert clock.depth_s == pytest.approx(0.08 + MARGIN_S)


def test_one_stall_is_waited_for_and_forgotten() -> None:
    clock = ArrivalClock()
    clock.due_s(100.0, 10.0)
    clock.due_s(101.0, 11.4)
    assert clock.depth_s == pytest.approx(0.4 + MARGIN_S)
    clock.due_s(102.0, 15.0)
    assert clock.depth_s == pytest.approx(MAX_DEPTH_S + MARGIN_S)
    for second in range(int(WINDOW_S) + 3):
        clock.due_s(106.0 + second, 16.0 + second)
    assert clock.depth_s == pytest.approx(MARGIN_S)
