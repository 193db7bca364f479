"""The failures of workers under live calls, where the workers are actors of a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from echo_rtc.engine.fleet import FleetEngine, FleetOptions
from echo_rtc.engine.worker import WorkerSpec
from tests.engine.faulty import FaultyLoader
from tests.engine.on_ray import GivenRayEngine
from tests.rtc.test_failures import (
    FORMAT,
    Fleet,
    test_a_clip_that_never_ends_costs_its_worker,
    test_killed_workers_are_replaced_under_a_live_call,
    test_overload_costs_steps_then_frames_and_is_told,
)

__all__ = [
    "test_a_clip_that_never_ends_costs_its_worker",
    "test_killed_workers_are_replaced_under_a_live_call",
    "test_overload_costs_steps_then_frames_and_is_told",
]


@pytest.fixture
def fleet(ray_cluster: Any) -> Fleet:
    def on_ray(workers: int, faults: Path, options: FleetOptions, clip_s: float, steps: int) -> FleetEngine:
        specs = [WorkerSpec(f"card {n}", FaultyLoader(FORMAT, faults, clip_s, steps)) for n in range(workers)]
        return GivenRayEngine(FORMAT, lambda: specs, ray_cluster.address, options)

    return on_ray
