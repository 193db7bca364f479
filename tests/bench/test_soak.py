"""Visitors come and go at a real server for a short while; the long form is ``python -m echo_rtc.bench soak``."""

from __future__ import annotations

import numpy as np
import pytest

from echo_rtc.bench import soak
from echo_rtc.bench.soak import Belongings, Soaked
from echo_rtc.bench.support.visitors import Leaving, Part

SECONDS, JOINS = 8.0, 20


async def test_visitors_that_come_and_go_leave_nothing() -> None:
    soaked = await soak.soak(SECONDS, JOINS, size=64, seed=3)
    leaked = dict(soaked.leaked)
    # A pool of threads begins one where all others are busy, at whatever visitor that is; one left by each is more.
    assert leaked.pop("threads") < JOINS / 4
    assert leaked == {"sockets": 0, "descriptors": 0, "children": 0}
    assert soaked.troubles == []
    assert soaked.joined.total() + soaked.refused.total() == JOINS
    assert soaked.refused.total() < JOINS / 4
    assert all(soaked.joined[part] for part in Part)
    assert soaked.left.total() == soaked.joined.total()
    assert all(soaked.left[how] for how in Leaving)
    assert soaked.frames > 200


def test_the_slope_is_that_after_the_warm_part() -> None:
    soaked = Soaked(
        memory=[(float(s), 100.0 + (50.0 if s < 300 else 60.0 + (s - 300) / 600)) for s in range(0, 1200, 2)]
    )
    assert soaked.slope_mb_per_10min() == pytest.approx(1.0, abs=0.01)


def test_each_part_of_the_time_has_its_mean() -> None:
    soaked = Soaked(memory=[(float(s), 100.0 + s // 240) for s in range(0, 1200, 2)] + [(1200.0, 104.0)])
    expected = [(240.0 * part, 240.0 * (part + 1), 100.0 + part) for part in range(5)]
    assert np.array(soaked.memory_by_part()) == pytest.approx(np.array(expected))


def test_only_what_is_more_than_before_is_left_over() -> None:
    assert Belongings(3, 9, 5, 1).beyond(Belongings(1, 10, 5, 1)) == {
        "sockets": 2,
        "descriptors": 0,
        "threads": 0,
        "children": 0,
    }
