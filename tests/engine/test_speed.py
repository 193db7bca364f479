"""What a measured speed promises."""

from __future__ import annotations

import pytest

from echo_rtc.engine.speed import CAPACITY_MARGIN, RENDER_MARGIN, Speed, capacity, expected_render_s


def test_the_median_counts_not_the_slow_first_clip() -> None:
    assert Speed(12, (2.0, 0.25, 0.25)).frames_per_second == 48.0


def test_capacity_is_the_sum_of_the_workers_with_a_margin() -> None:
    fast, slow = Speed(12, (0.1,)), Speed(12, (0.2,))  # 120 and 60 frames/s
    assert capacity([fast], 24) == int(5 * CAPACITY_MARGIN) == 4
    assert capacity([fast, slow], 24) == int(7.5 * CAPACITY_MARGIN) == 6


def test_a_slow_worker_still_has_room_for_one() -> None:
    assert capacity([Speed(12, (5.0,))], 24) == 1
    assert capacity([], 24) == 1


def test_a_stream_expects_the_slowest_worker() -> None:
    speeds = [Speed(12, (0.1, 0.12)), Speed(12, (0.3, 0.2))]
    assert expected_render_s(speeds) == pytest.approx(0.3 * RENDER_MARGIN)
    assert expected_render_s([]) == 0.0
