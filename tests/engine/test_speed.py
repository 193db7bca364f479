"""How long clips take on a worker."""

from __future__ import annotations

from echo_rtc.engine.speed import Speed


def test_the_median_counts_not_the_slow_first_clip() -> None:
    assert Speed(12, (2.0, 0.25, 0.25)).frames_per_second == 48.0


def test_what_nearly_every_clip_keeps() -> None:
    assert Speed(12, (0.3, 0.2, 0.25)).most_s == 0.3
    assert Speed(12, tuple(n / 100 for n in range(1, 101))).most_s == 0.95
