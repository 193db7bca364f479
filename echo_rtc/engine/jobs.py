"""Jobs of workers: clips, and calls between clips. Queues them and runs them where the scheduler says."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from echo_rtc.clips import ClipFormat, F16Array, YuvFrames
from echo_rtc.engine.arrivals import Arrivals
from echo_rtc.engine.scheduling import NO_STREAM, Done, Drop, Prepare, Recall, Scheduler, Start, Ticket
from echo_rtc.engine.slots import ClipTimes, Slot, Worker, WorkerGoneError
from echo_rtc.errors import LateError, RenderError
from echo_rtc.rendering import RenderRequest, RenderResult, TakeFrames

logger = logging.getLogger(__name__)

FAILURES_TO_REPLACE = 3
"""Lost clips in a row after which a worker that still runs counts as broken (a CUDA error stays) and is replaced."""

CALL_PATIENCE_S = 1.0
"""A call waits so long (s) for a gap between clips into which it fits; then it goes first."""


@dataclass(slots=True, eq=False)
class ClipJob:
    """A clip to render, and the future of its result. ``followers`` continue it."""

    ticket: Ticket
    result: asyncio.Future[RenderResult]
    request: RenderRequest
    arrivals: Arrivals
    followers: list[ClipJob] = field(default_factory=list)
    running: bool = False

    def fail(self, error: Exception) -> None:
        """It is lost, unless it is done; what continues it begins where it would have."""
        if not self.result.done():
            self.result.set_exception(error)
            self.pass_on(self.request.init_latent)

    def pass_on(self, latent: F16Array | None) -> None:
        """What continues it begins from ``latent``."""
        for follower in self.followers:
            follower.request = replace(follower.request, init_latent=latent)


@dataclass(slots=True, eq=False)
class CallJob:
    """A call of a worker between clips, and the future of its answer. ``counted``: whether it is work, for which gaps
    between clips are sought, or only a question."""

    ticket: Ticket
    result: asyncio.Future[Any]
    call: Callable[[Worker], Awaitable[Any]]
    counted: bool = True
    running: bool = False

    def fail(self, error: Exception) -> None:
        """It is lost, unless it is done."""
        if not self.result.done():
            self.result.set_exception(error)


Job: TypeAlias = ClipJob | CallJob


@dataclass(frozen=True, slots=True)
class JobRules:
    """What jobs are told by the engine. ``format``: of clips. ``ticket``: that of a clip, from its number, request and
    the number of the clip that it continues. ``timeout_s``: for a clip on a worker. ``go_down``: a worker is dead or to
    be replaced."""

    format: ClipFormat
    ticket: Callable[[int, RenderRequest, int | None], Ticket]
    timeout_s: Callable[[], float]
    go_down: Callable[[Slot, Worker], None]


class Jobs:
    """All jobs of an engine that are not done."""

    def __init__(self, scheduler: Scheduler, slots: Mapping[str, Slot], rules: JobRules) -> None:
        self._scheduler = scheduler
        self._slots = slots
        self._rules = rules
        self._jobs: dict[int, Job] = {}
        self._latest: dict[str, ClipJob] = {}
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._jobs)

    async def render(self, request: RenderRequest, on_frames: TakeFrames | None) -> RenderResult:
        """Renders a clip, which follows on the one that it continues; its frames go to ``on_frames``, the last of them,
        or all where it is None, with the result. Raises LateError or RenderError."""
        kept: list[YuvFrames] = []
        result = await self._through(self._clip_job(request, on_frames or kept.append))
        assert isinstance(result, RenderResult)
        return replace(result, frames=YuvFrames.joined([*kept, result.frames])) if kept else result

    async def call(self, slot: Slot, call: Callable[[Worker], Awaitable[Any]]) -> Any:
        """Runs a call on a worker, in a gap between clips. Raises WorkerGoneError, or what the call raises."""
        waiting_since = self._now
        while slot.up and (left_s := waiting_since + CALL_PATIENCE_S - self._now) > 0:
            wait_s = slot.gaps.wait_s(self._now, float(self._rules.format.clip_duration))
            if wait_s <= 0:
                break
            slot.job_ended.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(slot.job_ended.wait(), min(wait_s, left_s))
        return await self.ask(slot, call, counted=True)

    async def ask(self, slot: Slot, call: Callable[[Worker], Awaitable[Any]], counted: bool = False) -> Any:
        """Runs a call on a worker as soon as it is free. Raises as :meth:`call`."""
        if not slot.up:
            raise WorkerGoneError(f"worker {slot.name} is gone")
        ticket = Ticket(
            next(self._numbers), NO_STREAM, deadline_s=self._now, cost=0.0, worker=slot.name, droppable=False
        )
        return await self._through(CallJob(ticket, asyncio.get_running_loop().create_future(), call, counted))

    def act(self) -> None:
        """Does what the scheduler says is to be done now."""
        for action in self._scheduler.decide(self._now):
            match action:
                case Start(name, ticket, taken_from):
                    self._discard(taken_from, ticket)
                    job = self._jobs[ticket.number]
                    job.running = True
                    task = asyncio.create_task(self._run(self._slots[name], job))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                case Prepare(name, ticket):
                    prepared = self._jobs[ticket.number]
                    assert isinstance(prepared, ClipJob)
                    self._slots[name].running.prepare(ticket.number, prepared.request)
                case Recall(name, ticket):
                    self._discard(name, ticket)
                case Drop(ticket, holder):
                    self._discard(holder, ticket)
                    late = LateError("it could not have been on time any more, and was not begun")
                    self._end(self._jobs[ticket.number]).fail(late)

    def dismiss(self, reason: str, which: Callable[[Job], bool] = lambda job: True) -> None:
        """Fails all jobs of a kind that wait for a worker."""
        for job in [*self._jobs.values()]:
            if not job.running and which(job):
                self._discard(self._scheduler.withdraw(job.ticket.number), job.ticket)
                gone = isinstance(job, CallJob)
                self._end(job).fail(WorkerGoneError(reason) if gone else RenderError(reason))

    def dismiss_clips(self, unavailable: Callable[[str], bool], reason: str) -> None:
        """Fails the clips that wait for a worker and whose avatar is unavailable; ``reason`` has a place for it."""
        for job in [*self._jobs.values()]:
            if isinstance(job, ClipJob) and unavailable(job.request.avatar):
                self.dismiss(reason.format(job.request.avatar), lambda other, job=job: other is job)  # type: ignore[misc]

    async def close(self) -> None:
        """Waits for what runs on workers that are closed."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _clip_job(self, request: RenderRequest, on_frames: TakeFrames) -> ClipJob:
        before = self._latest.get(request.stream) if request.chained and request.stream else None
        ticket = self._rules.ticket(next(self._numbers), request, None if before is None else before.ticket.number)
        loop = asyncio.get_running_loop()
        job = ClipJob(
            ticket, loop.create_future(), request, Arrivals(self._rules.format, request, on_frames, loop.time)
        )
        if before is not None:
            before.followers.append(job)
        if request.stream:
            self._latest[request.stream] = job
        return job

    async def _through(self, job: Job) -> Any:
        """Queues a job and waits for its result; a job whose caller gives up leaves the queue."""
        self._jobs[job.ticket.number] = job
        self._scheduler.submit(job.ticket, self._now)
        self.act()
        try:
            return await job.result
        finally:
            if isinstance(job, ClipJob):
                job.arrivals.close()
            if job.ticket.number in self._jobs and job.result.cancelled():
                self._withdraw(job)
            # Break the cycle traceback -> frame -> job -> exception: lost clips would live until the next collection.
            del job

    async def _run(self, slot: Slot, job: Job) -> None:
        """One job on one worker, from its start to what follows from its end."""
        worker, begun = slot.running, self._now
        if isinstance(job, ClipJob) or job.counted:
            slot.gaps.began(begun, isinstance(job, ClipJob))
        done: Done | None = None
        try:
            if isinstance(job, ClipJob):
                answer, done = await self._clip(slot, worker, job)
            else:
                answer = await job.call(worker)
                done = Done(self._now - begun, self._now - begun)
            if not job.result.done():
                job.result.set_result(answer)
        except Exception as error:
            self._failed(slot, worker, job, begun, error)
        finally:
            job.fail(RenderError("the engine is closed"))  # where all this was cancelled
            self._end(job)
            self._scheduler.finished(slot.name, job.ticket, self._now, done)
            slot.answered_s = self._now
            if isinstance(job, ClipJob):
                slot.clip_ended_s = self._now
            if isinstance(job, ClipJob) or job.counted:
                slot.gaps.ended(self._now)
            slot.job_ended.set()
            del job  # as in _through
        self.act()

    async def _clip(self, slot: Slot, worker: Worker, job: ClipJob) -> tuple[RenderResult, Done]:
        begun, arrivals = self._now, job.arrivals
        arrivals.begin()
        try:
            timeout_s = self._rules.timeout_s()
            result, rendering_s = await worker.render(job.ticket.number, job.request, timeout_s, arrivals.take)
            arrivals.note(result.frames)
            job.pass_on(result.final_latent)
            took_s = self._now - begun
            slot.clip_rendered(ClipTimes(took_s, rendering_s, arrivals.need_s, job.ticket.cost))
            return result, Done(took_s, rendering_s, arrivals.slack_s)
        finally:
            del job  # as in _through

    def _failed(self, slot: Slot, worker: Worker, job: Job, begun: float, error: Exception) -> None:
        """A job has failed: its caller is told, and the worker is judged."""
        is_clip = isinstance(job, ClipJob)
        if isinstance(error, WorkerGoneError):
            if is_clip:
                slot.meter.failed(self._now - begun)
            self._rules.go_down(slot, worker)
        elif is_clip:
            if not isinstance(error, RenderError):  # a fault of this program costs the clip, and no stream
                logger.error("worker %s lost a clip to a fault of the engine", slot.name, exc_info=error)
                error = RenderError(f"worker {slot.name} lost the clip to a fault of the engine")
            job.fail(error)
            self._clip_lost(slot, worker, begun)
            return
        job.fail(error)

    def _clip_lost(self, slot: Slot, worker: Worker, begun: float) -> None:
        """A worker that lives has lost a clip. One that loses several in a row is replaced."""
        slot.meter.failed(self._now - begun)
        slot.failures += 1
        if slot.failures >= FAILURES_TO_REPLACE:
            logger.error("worker %s lost %d clips in a row and is replaced", slot.name, slot.failures)
            worker.kill()
            self._rules.go_down(slot, worker)

    def _end(self, job: Job) -> Job:
        """Removes a job."""
        self._jobs.pop(job.ticket.number, None)
        if isinstance(job, ClipJob) and self._latest.get(job.request.stream) is job:
            del self._latest[job.request.stream]
        return job

    def _withdraw(self, job: Job) -> None:
        """Takes back a job whose caller gave up. One that runs goes on, and its worker is free again when it ends."""
        if job.running:
            return
        self._discard(self._scheduler.withdraw(job.ticket.number), job.ticket)
        self._end(job)
        self.act()

    def _discard(self, name: str | None, ticket: Ticket) -> None:
        if name is not None and (worker := self._slots[name].worker) is not None:
            worker.discard(ticket.number)
