"""Workers that die, break, hang or are too slow, with a live call attached: sound never stops, the stream goes on.

The workers are real ones, drawing test cards, so that every frame can be read. Real time cannot be avoided.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from echo_rtc.bench.stream import babble
from echo_rtc.bench.support.calls import Caller
from echo_rtc.clips import ClipFormat
from echo_rtc.engine.fleet import FleetEngine, FleetOptions
from echo_rtc.engine.jobs import FAILURES_TO_REPLACE
from echo_rtc.engine.local import LocalEngine
from echo_rtc.engine.worker import WorkerSpec
from echo_rtc.rendering import Continuity
from echo_rtc.rtc.manager import ManagerOptions
from echo_rtc.stream.stream import StreamOptions
from tests.engine.faulty import Fault, FaultyLoader
from tests.rtc.test_calls import STARVED_S, House, Sight, house, until

FORMAT = ClipFormat(fps=24, clip_frames=6, width=160, height=160)
SPEAKING = StreamOptions(vad_threshold=0.0)
"""Every clip is rendered."""

Fleet = Callable[[int, Path, FleetOptions, float, int], FleetEngine]
"""Makes an engine: so many workers, the folder of their faults, options, what a clip takes (s), of how many steps."""


def local(workers: int, faults: Path, options: FleetOptions, clip_s: float, steps: int) -> FleetEngine:
    specs = [WorkerSpec(f"card {n}", FaultyLoader(FORMAT, faults, clip_s, steps)) for n in range(workers)]
    return LocalEngine(FORMAT, lambda: specs, options)


@pytest.fixture
def fleet() -> Fleet:
    return local


@dataclass
class Live:
    """One call of somebody who talks all the time."""

    home: House
    engine: FleetEngine
    caller: Caller
    sight: Sight
    stream_id: str

    @property
    def statistics(self) -> dict[str, Any]:
        return self.home.statistics(self.stream_id)

    async def shows_more(self, cards: int = 18) -> None:
        """Waits until so many further cards were rendered for the voice."""
        before = len(self.sight.spoken)
        await until(lambda: len(self.sight.spoken) >= before + cards)

    def check_sound(self) -> None:
        """It came without a gap, and nothing was missing when it was due."""
        statistics = self.statistics
        assert statistics["playout"]["underruns"] == 0
        assert len(self.sight.sound) > 50
        if statistics["output"]["worst_late_s"] < STARVED_S:
            assert statistics["output"]["skipped_blocks"] == 0
            assert set(np.diff([heard.pts for heard in self.sight.sound])) == {960}

    def check_picture(self) -> None:
        """Every rendered card shows its moment, in order."""
        assert np.diff([card.frame for card in self.sight.spoken]).min() >= 0


@asynccontextmanager
async def live(engine: FleetEngine, options: StreamOptions = SPEAKING) -> AsyncIterator[Live]:
    sight = Sight()
    async with house(engine, ManagerOptions(stream=options, max_streams=1)) as home:
        caller = Caller(babble, sight.hear, sight.see, "H264")
        stream_id = await home.call(caller)
        call = Live(home, engine, caller, sight, stream_id)
        await call.shows_more()
        yield call
        call.check_sound()
        call.check_picture()
        assert stream_id in home.manager.streams


@pytest.mark.parametrize("workers", [1, 2])
async def test_killed_workers_are_replaced_under_a_live_call(workers: int, fleet: Fleet, tmp_path: Path) -> None:
    async with live(fleet(workers, tmp_path, FleetOptions(), 0.1, 1)) as call:
        before = call.engine.worker_pids
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: len(set(call.engine.worker_pids) - set(before)) == workers)
        await call.shows_more()
        assert sum(worker.restarts for worker in call.engine.workers) == workers
        assert call.statistics["clips"]["failed"] >= 1


async def test_with_a_second_worker_the_picture_goes_on_at_once(fleet: Fleet, tmp_path: Path) -> None:
    async with live(fleet(2, tmp_path, FleetOptions(), 0.1, 1)) as call:
        (home,) = call.engine._scheduler.place(call.stream_id).workers
        (victim,) = (worker.pid for worker in call.engine.workers if worker.name == home)
        failed = call.statistics["clips"]["failed"]
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        await until(lambda: call.engine.workers[0].restarts + call.engine.workers[1].restarts == 1)
        await call.shows_more()
        assert call.statistics["clips"]["failed"] - failed <= 1


async def test_two_workers_share_a_stream_that_is_too_much_for_one(fleet: Fleet, tmp_path: Path) -> None:
    """A clip of 0.25 s takes 0.3 s, and a third more with what it shares; what is blended still reads as a card."""
    async with live(fleet(2, tmp_path, FleetOptions(overlap_frames=2), 0.3, 1)) as call:
        assert call.engine.continuity == Continuity(chained=False, overlap_frames=2)
        await call.shows_more(48)
        assert min(worker.clips for worker in call.engine.workers) >= 3
        os.kill(call.engine.worker_pids[0], signal.SIGKILL)
        await call.shows_more()


async def test_a_broken_device_costs_a_few_clips_and_its_worker(fleet: Fleet, tmp_path: Path) -> None:
    async with live(fleet(1, tmp_path, FleetOptions(), 0.05, 1)) as call:
        Fault.CUDA.strike(tmp_path)
        await until(lambda: call.engine.workers[0].restarts == 1 and call.engine.ready)
        await call.shows_more()
        assert call.engine.workers[0].lost >= FAILURES_TO_REPLACE


async def test_out_of_memory_costs_one_clip(fleet: Fleet, tmp_path: Path) -> None:
    async with live(fleet(1, tmp_path, FleetOptions(), 0.05, 1)) as call:
        Fault.MEMORY.strike(tmp_path)
        await until(lambda: call.engine.workers[0].lost == 1)
        await call.shows_more()
        assert call.engine.workers[0].restarts == 0
        assert call.statistics["clips"]["failed"] == 1


async def test_a_clip_that_never_ends_costs_its_worker(fleet: Fleet, tmp_path: Path) -> None:
    async with live(fleet(1, tmp_path, FleetOptions(render_timeout_s=1.0), 0.05, 1)) as call:
        Fault.HANG.strike(tmp_path)
        await until(lambda: call.engine.workers[0].restarts == 1 and call.engine.ready)
        await call.shows_more()
        assert {"type": "state", "state": "behind"} in call.caller.events
        assert call.statistics["held"] > 0


async def test_overload_costs_steps_then_frames_and_is_told(fleet: Fleet, tmp_path: Path) -> None:
    """A clip lasts 0.25 s. Six steps take 0.5 s, the least, four, 0.33 s: even these are too slow."""
    options = StreamOptions(vad_threshold=0.0, max_latency_s=1.5)
    async with live(fleet(1, tmp_path, FleetOptions(steps=6, min_steps=4), 0.5, 6), options) as call:
        await until(lambda: call.statistics["held"] > 12 and call.statistics["clips"]["late"] >= 2)
        assert call.statistics["steps"] == 4, "from the start: more were never held"
        assert {"type": "state", "state": "behind"} in call.caller.events


async def test_nothing_is_rendered_for_a_silent_stream(fleet: Fleet, tmp_path: Path) -> None:
    engine = fleet(1, tmp_path, FleetOptions(), 0.05, 1)
    sight = Sight()
    async with house(engine, ManagerOptions(max_streams=1)) as home:
        await home.call(Caller(lambda start, count: np.zeros(count, np.int16), sight.hear, sight.see, "H264"))
        await until(lambda: len(sight.cards) > 60)
        (worker,) = engine.workers
        assert (worker.clips, worker.waiting) == (0, 0)
