"""Starts the workers of an engine, asks idle ones whether they answer, and replaces those that are lost."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from echo_rtc.engine.jobs import Jobs
from echo_rtc.engine.pace import Budget, seconds
from echo_rtc.engine.roster import Roster
from echo_rtc.engine.scheduling import Scheduler
from echo_rtc.engine.slots import OpenWorker, Slot, SlotState, Worker, WorkerGoneError
from echo_rtc.engine.speed import Speed
from echo_rtc.engine.worker import WorkerReport
from echo_rtc.errors import EchoRtcError, RenderError
from echo_rtc.rendering import Progress

logger = logging.getLogger(__name__)

OVERLAP_SHARE = 0.8
"""Workers are warmed up for overlapping clips if a clip of the fewest steps takes more than this share of real time."""

HEARTBEAT_S = 5.0
"""A worker that has done nothing for so long (s) is asked whether it still answers."""

HEARTBEAT_TIMEOUT_S = 10.0
"""How long its answer may take (s); a process on a machine that is overloaded or swaps needs seconds."""

TIMER_S = 0.01
"""Timers may be early by as much (s)."""

MEASURE_AGAIN_S = 30.0
SLOWED_DOWN = 1.1
"""A worker that was so much slower lately than at its start, and has been idle for so long (s), is measured again: it
may have cooled down, and is given no stream that it could not hold before."""


@dataclass(frozen=True, slots=True)
class Rules:
    """``start_timeout_s``: for loading and warming up. ``piece_timeout_s``: for work between clips. ``wait_s(n)``:
    before the replacement after n deaths in a row. ``clip_frames``, ``overlap_frames``: of an ordinary clip, and those
    that clips of a spread stream render once more. ``budget``: of a clip."""

    start_timeout_s: float
    piece_timeout_s: Callable[[], float]
    wait_s: Callable[[int], float]
    clip_frames: int
    overlap_frames: int
    budget: Budget


class Supervisor:
    """Looks after the workers in ``slots``."""

    def __init__(
        self, slots: Mapping[str, Slot], scheduler: Scheduler, jobs: Jobs, roster: Roster, rules: Rules
    ) -> None:
        self._slots = slots
        self._scheduler = scheduler
        self._jobs = jobs
        self._roster = roster
        self._rules = rules
        self._open: OpenWorker | None = None
        self._progress: Progress = logger.info
        self._tasks: set[asyncio.Task[None]] = set()
        self._overlaps = False
        self._closed = False

    async def start(self, open_worker: OpenWorker, progress: Progress) -> WorkerReport:
        """Starts all workers side by side; the report of the first. Raises what the first that fails raises."""
        self._open, self._progress = open_worker, progress
        slots = [*self._slots.values()]
        starts = [self._open_in(slot).start(self._rules.start_timeout_s) for slot in slots]
        reports: list[WorkerReport] = await all_or_first_error(starts)
        for slot, report in zip(slots, reports, strict=True):
            slot.at_start, slot.notice = report.speed, report.notice
        await self._prepare_overlap()
        return reports[0]

    def come_up(self) -> None:
        """Has all workers that have started take work. One that died meanwhile is being replaced, or already was."""
        for slot in self._slots.values():
            if slot.state is SlotState.STARTING and not slot.replacing:
                self._come_up(slot)

    def go_down(self, slot: Slot, worker: Worker) -> None:
        """A worker is dead, or is to be replaced: it gets no more work, and what only it could do is lost."""
        if slot.worker is not worker or not slot.go_down():
            return
        self._scheduler.remove_worker(slot.name)
        self._jobs.dismiss(f"worker {slot.name} is gone", lambda job: job.ticket.worker == slot.name)
        if not any(each.up for each in self._slots.values()):
            self._jobs.dismiss("the last worker is gone; another is being started")
        self._jobs.dismiss_clips(
            lambda avatar: not self._roster.available(avatar), "the last worker with avatar {!r} is gone"
        )

    async def close(self) -> None:
        """Ends every worker in bounded time."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for name, slot in self._slots.items():
            slot.go_down()
            self._scheduler.remove_worker(name)
        self._jobs.dismiss("the engine is closed")
        await asyncio.gather(*(slot.worker.close() for slot in self._slots.values() if slot.worker is not None))

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _open_in(self, slot: Slot) -> Worker:
        """A new worker in a slot, not started yet."""
        assert self._open is not None
        opened: list[Worker] = []

        def gone() -> None:
            if slot.worker is opened[0]:
                self._lost(slot)

        opened.append(self._open(slot.spec, lambda line: self._progress(line), gone))
        slot.open(opened[0])
        return opened[0]

    async def _prepare_overlap(self) -> None:
        """Warms the workers up for clips that overlap, if one of them is so slow that streams may have to be spread."""
        budget, overlap = self._rules.budget, self._rules.overlap_frames
        slowest = max(slot.at_start.median_s for slot in self._slots.values() if slot.at_start is not None)
        near = slowest * budget.cost(budget.min_steps) > OVERLAP_SHARE * budget.clip_s
        self._overlaps = overlap > 0 and len(self._slots) > 1 and (near or not budget.chained)
        if self._overlaps:
            frames = self._rules.clip_frames + overlap
            self._progress(f"a stream may take more than one worker: clips of {frames} frames are prepared for")
            workers = [slot.running for slot in self._slots.values()]
            await all_or_first_error([worker.measure(frames, self._rules.start_timeout_s) for worker in workers])

    def _come_up(self, slot: Slot) -> None:
        assert slot.at_start is not None
        slot.come_up(self._now)
        if not self._closed:
            self._spawn(self._watch(slot, slot.running), f"heartbeat of {slot.name}")
        self._scheduler.add_worker(slot.name, slot.at_start.median_s)
        self._jobs.act()

    def _lost(self, slot: Slot) -> None:
        """A slot's worker is dead. One that has never been up concerns only the start."""
        self.go_down(slot, slot.running)
        if not self._closed and slot.at_start is not None and not slot.replacing:
            slot.replacing = True
            self._spawn(self._replace(slot), f"replace {slot.name}")

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Runs what lasts as long as the engine at most."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Idle workers

    async def _watch(self, slot: Slot, worker: Worker) -> None:
        """Asks an idle worker now and then whether it answers, as long as it is up. One that does not is replaced
        before a clip is lost to it."""
        while slot.up and slot.worker is worker:
            await asyncio.sleep(max(0.0, slot.answered_s + HEARTBEAT_S - self._now))
            if not slot.up or slot.worker is not worker or self._now - slot.answered_s < HEARTBEAT_S - TIMER_S:
                continue
            try:
                if self._now - slot.clip_ended_s >= MEASURE_AGAIN_S and self._slowed_down(slot):
                    await self._measure_again(slot)
                else:
                    await self._jobs.ask(slot, lambda worker: worker.ping(HEARTBEAT_TIMEOUT_S))
            except RenderError as error:
                logger.warning("worker %s does not answer: %s", slot.name, error)
                return

    def _slowed_down(self, slot: Slot) -> bool:
        times = self._scheduler.times().get(slot.name)
        if times is None or slot.at_start is None:
            return False
        return seconds(self._rules.budget, times, self._rules.budget.steps) > SLOWED_DOWN * slot.at_start.median_s

    async def _measure_again(self, slot: Slot) -> None:
        frames, timeout_s = self._rules.clip_frames, self._rules.piece_timeout_s()
        speed: Speed = await self._jobs.ask(slot, lambda worker: worker.measure(frames, timeout_s))
        logger.info("worker %s was idle and measured again: %.1f frames/s", slot.name, speed.frames_per_second)
        slot.measured(speed, self._now)
        self._scheduler.measured(slot.name, speed.median_s)

    # Replacements

    async def _replace(self, slot: Slot) -> None:
        """Replaces a dead worker, and replacements that come to nothing, until one is up."""
        while True:
            await slot.running.close()
            slot.deaths += 1
            slot.meter.restarts += 1
            wait_s = self._rules.wait_s(slot.deaths)
            slot.wait(self._now + wait_s)
            logger.warning("worker %s is gone; a replacement starts in %.1f s", slot.name, wait_s)
            await asyncio.sleep(wait_s)
            try:
                await self._bring_up(slot, self._open_in(slot))
                logger.warning("worker %s is replaced", slot.name)
                return
            except EchoRtcError as error:
                logger.error("the replacement of worker %s did not come up: %s", slot.name, error)
            except Exception:  # a boundary: whatever it is, a slot without a task that looks after it is lost for good
                logger.exception("the replacement of worker %s did not come up", slot.name)
            slot.running.kill()
            slot.go_down()

    async def _bring_up(self, slot: Slot, worker: Worker) -> None:
        """Starts a replacement, and prepares on it what the others have."""
        report = await worker.start(self._rules.start_timeout_s)
        if self._overlaps:
            frames = self._rules.clip_frames + self._rules.overlap_frames
            await worker.measure(frames, self._rules.start_timeout_s)
        slot.at_start, slot.notice = report.speed, report.notice
        async with self._roster.lock:
            await self._roster.restore(slot)
            if slot.state is not SlotState.STARTING:
                raise WorkerGoneError(f"worker {slot.name} died before its first clip")
            slot.replacing = False
            self._come_up(slot)

    def trouble(self, slot: Slot) -> str:
        """What is wrong with a slot that was up once, in a sentence; empty if nothing is."""
        if slot.up or slot.at_start is None or self._closed:
            return ""
        begins = "is being started again"
        if slot.retry_at_s is not None and slot.retry_at_s > self._now:
            begins = f"starts again in {math.ceil(slot.retry_at_s - self._now)} s"
        times = f" {slot.deaths} times in a row" if slot.deaths > 1 else ""
        return f"Worker {slot.name} was lost{times} and {begins}."


async def all_or_first_error(starts: Sequence[Awaitable[Any]]) -> list[Any]:
    """Waits for all side by side; the first that fails is the answer, the others are not waited for."""
    tasks = [asyncio.ensure_future(start) for start in starts]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done():
                task.result()
        return [task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
