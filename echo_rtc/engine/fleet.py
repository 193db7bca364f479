"""An engine over any kind of workers: who takes which clip, what happens when one dies, and what there is room for.

Clips go to workers as ``scheduling.py`` decides. A worker that dies or takes too long loses the clip that it was
rendering and is replaced while the others go on. Nothing of a stream is kept here but the order of its clips; what a
worker is (a process of this machine, an actor on another) is told by who makes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from echo_rtc.clips import ClipFormat, F16Array
from echo_rtc.engine import pace
from echo_rtc.engine.gaps import Gaps
from echo_rtc.engine.meter import WorkerMeter
from echo_rtc.engine.pace import Budget
from echo_rtc.engine.scheduling import NOBODY, Drop, Prepare, Recall, Scheduler, Start, Ticket
from echo_rtc.engine.speed import Speed
from echo_rtc.engine.worker import WorkerReport, WorkerSpec
from echo_rtc.errors import EchoRtcError, InputError, LateError, RenderError
from echo_rtc.rendering import (
    Avatar,
    AvatarFiles,
    ClipPlan,
    Continuity,
    Progress,
    RenderRequest,
    RenderResult,
    WorkerStatus,
)

logger = logging.getLogger(__name__)

FAILURES_TO_REPLACE = 3
"""After so many lost clips in a row a worker that still lives is taken for broken (a CUDA error stays) and replaced."""

STEADY_CLIPS = 20
"""A worker that has rendered so many clips is well; if it dies later, that is a new story and its replacement comes at
once."""

TIMEOUT_CLIPS = 10
TIMEOUT_RENDERS = 12
MAX_RENDER_TIMEOUT_S = 300.0
"""A clip may take this many times its own length, or what rendering took at the start, before its worker is replaced;
never longer than the bound (s)."""

PIECE_TIMEOUTS = 20
"""A piece of work between clips (of preparing or forgetting an avatar, of an idle loop) may take as long as this many
clips at their timeout, within the same bound."""

RECENT_CLIPS, ENOUGH_CLIPS = 48, 12
"""A worker's speed is that of its latest clips, once it has rendered enough of them."""

OVERLAP_SHARE = 0.8
"""Workers are warmed up for overlapping clips if a clip of the fewest steps takes more than this share of real time."""

NEW_STREAM = "\0"
"""No stream has this name: asks what a further one would be given."""

HEARTBEAT_S = 5.0
"""A worker that has done nothing for so long (s) is asked whether it still answers."""

JUST_S = 0.01
"""Timers may be early by as much (s)."""

MEASURE_AGAIN_S = 30.0
SLOWED_DOWN = 1.1
"""A worker that was so much slower at the end than at its start, and has been idle for so long (s), is measured again:
it may have cooled down, and is given no stream that it could not hold before."""

HEARTBEAT_TIMEOUT_S = 10.0
"""How long its answer may take (s); a process on a machine that is overloaded or swaps needs seconds."""

ERRAND_PATIENCE_S = 1.0
"""The preparation of an avatar waits so long (s) for a gap between clips into which its next piece fits; then the piece
goes first."""


class WorkerGoneError(RenderError):
    """The worker died, or was killed for taking too long."""


class Worker(Protocol):
    """One worker from birth to burial, as the fleet sees it. Not reusable: a replacement is a new object."""

    @property
    def name(self) -> str: ...

    @property
    def pid(self) -> int | None:
        """Of its process, once known; None if it has none on this machine."""
        ...

    async def start(self, timeout_s: float) -> WorkerReport:
        """Loads and warms up. Raises what the loader raises, WorkerGoneError if it dies."""
        ...

    async def measure(self, frames: int, timeout_s: float) -> Speed:
        """Warms up for clips of ``frames`` frames and measures them."""
        ...

    def prepare(self, number: int, request: RenderRequest) -> None:
        """Has clip ``number`` prepared beside whatever is being rendered. Returns at once and never fails."""
        ...

    def discard(self, number: int) -> None:
        """Nobody wants a prepared clip any more."""
        ...

    async def render(self, number: int, request: RenderRequest, timeout_s: float) -> tuple[RenderResult, float]:
        """Renders a clip, prepared or not; with it go the seconds that rendering itself took. Raises RenderError;
        WorkerGoneError if the worker is no more."""
        ...

    async def idle_piece(self, avatar: str, first: bool, timeout_s: float) -> Avatar | None:
        """The next piece of an avatar's idle loop, or the ``first``; None after the last. Raises as ``render``."""
        ...

    async def prepare_avatar(self, files: AvatarFiles, first: bool, timeout_s: float) -> bool:
        """Prepares the next piece of an avatar, or the ``first``; whether there is more to do. Raises InputError, or as
        ``render``."""
        ...

    async def forget_avatar(self, name: str, timeout_s: float) -> None:
        """Lets go of an avatar, prepared or half prepared. Raises as ``render``."""
        ...

    async def ping(self, timeout_s: float) -> None:
        """Has it answer between clips. Kills it and raises WorkerGoneError if it does not within ``timeout_s``."""
        ...

    def kill(self) -> None: ...

    async def close(self) -> None:
        """Ends it in bounded time."""
        ...


Open = Callable[[WorkerSpec, Progress, Callable[[], None]], Worker]
"""Makes a worker, without starting it: what it is to be, where its progress goes, and what to call when it is gone."""


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """How a fleet works; times in seconds.

    ``render_timeout_s``: for a clip on a worker; 0 sets it by the clips' length and the measured speed.
    ``start_timeout_s``: for loading and warming up. ``backoff_s``: before the second replacement in a row that comes to
    nothing, doubled with each further one up to ``max_backoff_s``; the first replacement comes at once.
    ``use_init_latent``, ``overlap_frames``: how clips join, see :attr:`FleetEngine.continuity`. ``prefetch``: whether
    busy workers prepare their next clip. ``steps``, ``min_steps``: denoising steps of an ordinary clip, and the fewest.
    """

    render_timeout_s: float = 0.0
    start_timeout_s: float = 1800.0
    backoff_s: float = 1.0
    max_backoff_s: float = 60.0
    use_init_latent: bool = True
    overlap_frames: int = 6
    prefetch: bool = True
    steps: int = 1
    min_steps: int = 1

    def budget(self, format: ClipFormat) -> Budget:
        """What these options and the clips' format leave for a clip."""
        overlap = self.overlap_frames / format.clip_frames
        least = min(self.min_steps, self.steps)
        return Budget(float(format.clip_duration), self.steps, least, overlap, self.use_init_latent)

    def wait_s(self, deaths: int) -> float:
        """How long to wait before replacing a worker that has died ``deaths`` times in a row (1 = the first)."""
        return 0.0 if deaths <= 1 else min(self.max_backoff_s, self.backoff_s * 2.0 ** min(deaths - 2, 30))

    def timeout_s(self, clip_s: float, render_s: float) -> float:
        """How long a clip of ``clip_s`` seconds may take that is expected to take ``render_s``."""
        by_itself = max(TIMEOUT_CLIPS * clip_s, TIMEOUT_RENDERS * render_s)
        return min(self.render_timeout_s or by_itself, MAX_RENDER_TIMEOUT_S)


class _Slot:
    """The place of one worker, which its replacements inherit."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.worker: Worker | None = None
        self.alive = False  # the worker is not known to be dead
        self.up = False
        self.failures = 0  # clips lost in a row by this worker
        self.deaths = 0  # workers lost in a row, none of which rendered for long
        self.rendered = 0  # clips of this worker
        self.retry_at_s: float | None = None  # when its replacement starts, while that is waited for
        self.meter = WorkerMeter()
        self.at_start: Speed | None = None
        self.recent_s: deque[float] = deque(maxlen=RECENT_CLIPS)  # what ordinary clips took, or would have
        self.gaps = Gaps()
        self.lacking: set[str] = set()  # avatars that this worker could not prepare although others have them
        self.turned = asyncio.Event()  # set whenever a job has ended on it
        self.answered_s = -math.inf  # when a job last ended on it
        self.clip_ended_s = -math.inf  # when a clip last ended on it, or it was last measured

    def speed(self, frames: int) -> Speed:
        """With ordinary clips, which have ``frames`` frames: as seen lately, or at the start."""
        assert self.at_start is not None
        return Speed(frames, tuple(self.recent_s)) if len(self.recent_s) >= ENOUGH_CLIPS else self.at_start


@dataclass(slots=True)
class _Job:
    """Something to do on a worker, and who waits for its result. ``request`` is None for what is no clip; a ``ping`` is
    not counted as work."""

    ticket: Ticket
    result: asyncio.Future[Any]
    request: RenderRequest | None = None
    errand: Callable[[Worker], Awaitable[Any]] | None = None
    followers: list[_Job] = field(default_factory=list)
    running: bool = False
    ping: bool = False

    def fail(self, error: Exception) -> None:
        """Nothing comes of it, if nothing has; those that continue it begin where it would have."""
        if self.result.done():
            return
        self.result.set_exception(error)
        if self.request is not None:
            self.pass_on(self.request.init_latent)

    def pass_on(self, latent: F16Array | None) -> None:
        """Those that continue it begin from ``latent``."""
        for follower in self.followers:
            assert follower.request is not None
            follower.request = replace(follower.request, init_latent=latent)


class FleetEngine:
    """An Engine over workers. ``specs`` says which, and may raise SettingsError; ``open_worker`` makes them."""

    def __init__(
        self,
        format: ClipFormat,
        specs: Callable[[], Awaitable[Sequence[WorkerSpec]]],
        open_worker: Open,
        options: FleetOptions | None = None,
    ) -> None:
        self._format = format
        self._specs = specs
        self._open = open_worker
        self._options = options or FleetOptions()
        self._budget = self._options.budget(format)
        self._scheduler = Scheduler(self._options.prefetch, self._budget)
        self._progress: Progress = logger.info
        self._slots: dict[str, _Slot] = {}
        self._jobs: dict[int, _Job] = {}
        self._latest: dict[str, _Job] = {}
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._forgetting: set[asyncio.Task[Any]] = set()
        self._keepers: set[asyncio.Task[None]] = set()
        self._avatars: dict[str, Avatar] = {}
        self._files: dict[str, AvatarFiles] = {}
        self._preparing = asyncio.Lock()
        self._overlaps = False
        self._closed = False

    @property
    def format(self) -> ClipFormat:
        return self._format

    @property
    def avatars(self) -> dict[str, Avatar]:
        return self._avatars

    @property
    def capacity(self) -> int:
        up = [slot for slot in self._slots.values() if slot.up] or [*self._slots.values()]
        return pace.capacity(self._budget, self._clip_times(up))

    @property
    def capacity_steps(self) -> int:
        up = [slot for slot in self._slots.values() if slot.up] or [*self._slots.values()]
        return pace.steps_of(self._budget, self._clip_times(up), self.capacity)

    @property
    def expected_render_s(self) -> float:
        """What a clip takes on the slowest worker that may be chosen for a further stream, beside the clips of the
        streams that it shares the worker with."""
        place = self._scheduler.place(NEW_STREAM)
        slots = [slot for name, slot in self._slots.items() if slot.at_start is not None]
        chosen = [slot for slot in slots if slot.spec.name in place.workers] or slots
        cost = self._budget.cost(place.steps, 1.0 + self._budget.overlap * place.spread)
        turns = 1 + self._scheduler.sharing(place.workers) / max(1, len(place.workers))
        return max((slot.speed(self._format.clip_frames).most_s for slot in chosen), default=0.0) * cost * turns

    @property
    def ready(self) -> bool:
        return any(slot.up for slot in self._slots.values())

    @property
    def trouble(self) -> str:
        now = asyncio.get_running_loop().time()
        sentences = []
        for slot in self._slots.values():
            if slot.up or slot.at_start is None or self._closed:
                continue
            begins = "is being started again"
            if slot.retry_at_s is not None and slot.retry_at_s > now:
                begins = f"starts again in {math.ceil(slot.retry_at_s - now)} s"
            times = f" {slot.deaths} times in a row" if slot.deaths > 1 else ""
            sentences.append(f"Worker {slot.spec.name} was lost{times} and {begins}.")
        return " ".join(sentences)

    @property
    def continuity(self) -> Continuity:
        """How the clips of a stream would join that is alone."""
        return self.plan(NEW_STREAM).continuity

    def plan(self, stream: str) -> ClipPlan:
        """How the next clip of a stream is to be asked for, as the workers and the other streams are now."""
        place = self._scheduler.place(stream)
        chained = self._options.use_init_latent and not place.spread
        return ClipPlan(Continuity(chained, self._options.overlap_frames if place.spread else 0), place.steps)

    def _clip_times(self, slots: Sequence[_Slot]) -> list[pace.Times]:
        """Seconds that an ordinary clip takes on each of these workers."""
        frames, steps = self._format.clip_frames, self._options.steps
        return [{steps: slot.speed(frames).median_s} for slot in slots if slot.at_start is not None]

    @property
    def workers(self) -> list[WorkerStatus]:
        """The workers as they stand; what no worker has yet waits for each of them."""
        waiting = self._scheduler.waiting
        return [
            slot.meter.status(
                name,
                up=slot.up,
                pid=None if slot.worker is None else slot.worker.pid,
                waiting=waiting + max(0, self._scheduler.queue_of(name) - 1),
            )
            for name, slot in self._slots.items()
        ]

    @property
    def worker_pids(self) -> list[int]:
        """The process ids of the workers that are up and have one."""
        found = [slot.worker.pid for slot in self._slots.values() if slot.up and slot.worker is not None]
        return [pid for pid in found if pid is not None]

    async def start(self, progress: Progress) -> None:
        """Starts every worker in parallel, then renders the idle loops on the first. Raises InputError, SettingsError
        or RenderError with the worker's own sentence; no worker is left then."""
        self._progress = progress
        try:
            specs = await self._specs()
            if self._closed:
                raise RenderError("the engine was closed while it started")
            self._slots = {spec.name: _Slot(spec) for spec in specs}
            timeout_s = self._options.start_timeout_s
            starts = [self._open_in(slot).start(timeout_s) for slot in self._slots.values()]
            reports: list[WorkerReport] = await _all_or_first_error(starts)
            for slot, report in zip(self._slots.values(), reports, strict=True):
                slot.at_start = report.speed
            await self._prepare_overlap()
            first = next(iter(self._slots.values())).worker
            assert first is not None
            for name in reports[0].avatars:
                progress(f"worker {first.name}: rendering the idle loop of avatar {name}")
                pieces: list[Avatar] = []
                while piece := await first.idle_piece(name, not pieces, timeout_s):
                    pieces.append(piece)
                self._avatars[name] = Avatar.joined(pieces)
            for slot in self._slots.values():
                # One that died meanwhile is being replaced, or already was.
                if slot.alive and not slot.up and slot.retry_at_s is None:
                    self._come_up(slot)
        except BaseException:
            await self.close()
            raise

    async def render(self, request: RenderRequest) -> RenderResult:
        """Renders one clip where and when its turn comes. Raises LateError or RenderError if it is lost."""
        if not self._slots:
            raise RenderError("the engine is closed" if self._closed else "the engine is not running; start it first")
        if request.avatar not in self._avatars:
            raise RenderError(f"there is no avatar {request.avatar!r}; there is {', '.join(self._avatars) or 'none'}")
        if not self.ready:
            # A clip that waits for a replacement would be late by the time it came.
            raise RenderError("the engine is closed" if self._closed else "no worker is up; one is being started")
        if not self._had(request.avatar):
            raise RenderError(f"no worker that is up has avatar {request.avatar!r}")
        result = await self._through(self._clip_job(request))
        assert isinstance(result, RenderResult)
        return result

    async def prepare_avatar(self, files: AvatarFiles) -> Avatar:
        """Prepares an avatar on all workers that are up and renders its idle loop on one of them, piece by piece, each
        when the worker has nothing more urgent to do."""
        try:
            return await self._prepare_avatar(files)
        except BaseException:
            if files.name not in self._avatars:
                self._forget(files.name)
            raise

    async def remove_avatar(self, name: str) -> None:
        """Lets go of an avatar on all workers, each when it has nothing more urgent to do."""
        async with self._preparing:
            self._avatars.pop(name, None)
            self._files.pop(name, None)
            for slot in self._slots.values():
                slot.lacking.discard(name)
            self._forget(name)

    def _forget(self, name: str) -> None:
        """Has all workers that are up let go of an avatar. One that dies of it, or before it, has let go too."""
        timeout_s = self._piece_timeout_s
        for slot in self._slots.values():
            if slot.up:
                task = asyncio.create_task(
                    self._on(slot, lambda worker: worker.forget_avatar(name, timeout_s)), name=f"forget avatar {name}"
                )
                self._forgetting.add(task)
                task.add_done_callback(self._forgot)

    def _forgot(self, task: asyncio.Task[Any]) -> None:
        self._forgetting.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.debug("an avatar could not be forgotten: %s", error)

    async def _prepare_on(self, slot: _Slot, files: AvatarFiles) -> None:
        """Prepares an avatar on one worker, between clips."""
        timeout_s = self._piece_timeout_s
        first = True
        while await self._on(slot, lambda worker: worker.prepare_avatar(files, first, timeout_s)):  # noqa: B023
            first = False

    async def _prepare_avatar(self, files: AvatarFiles) -> Avatar:
        async with self._preparing:
            # One that is to be forgotten must not be forgotten after it was prepared anew.
            await asyncio.gather(*self._forgetting, return_exceptions=True)
            up = [slot for slot in self._slots.values() if slot.up]
            if not up:
                raise RenderError("no worker is up to prepare an avatar; one is being started")
            outcomes = await asyncio.gather(*(self._prepare_on(slot, files) for slot in up), return_exceptions=True)
            errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
            for error in errors:
                # A worker that died is replaced, and its replacement prepares the avatar; all else is the avatar's.
                if not isinstance(error, WorkerGoneError) or len(errors) == len(up):
                    raise error
            before = self._files.get(files.name)
            self._files[files.name] = files
            able = [slot for slot, outcome in zip(up, outcomes, strict=True) if not isinstance(outcome, BaseException)]
            for slot in able:
                slot.lacking.discard(files.name)
        try:
            avatar = await self._idle_loop(files.name, able)
        except BaseException:
            if before is None:
                self._files.pop(files.name, None)
            else:
                self._files[files.name] = before
            raise
        self._avatars[files.name] = avatar
        return avatar

    async def _idle_loop(self, name: str, able: Sequence[_Slot]) -> Avatar:
        """Renders an avatar's idle loop on one worker, between clips; on the next if that one dies."""
        timeout_s = self._piece_timeout_s
        gone: WorkerGoneError | None = None
        for slot in able:
            pieces: list[Avatar] = []
            try:
                while True:
                    first = not pieces
                    piece = await self._on(slot, lambda worker: worker.idle_piece(name, first, timeout_s))  # noqa: B023
                    if piece is None:
                        return Avatar.joined(pieces)
                    pieces.append(piece)
            except WorkerGoneError as error:
                gone = error
        assert gone is not None
        raise gone

    async def failed(self) -> RenderError:
        """Never returns: workers that die are replaced, however often."""
        never: asyncio.Future[RenderError] = asyncio.get_running_loop().create_future()
        return await never

    async def close(self) -> None:
        """Ends every worker in bounded time; clips being rendered are lost. Closing twice is harmless."""
        self._closed = True
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for name, slot in self._slots.items():
            slot.up = False
            slot.turned.set()
            self._scheduler.remove_worker(name)
        self._dismiss("the engine is closed")
        await asyncio.gather(*(slot.worker.close() for slot in self._slots.values() if slot.worker is not None))
        await asyncio.gather(*self._tasks, *self._forgetting, return_exceptions=True)
        self._slots.clear()

    # Inside: clips

    @property
    def _timeout_s(self) -> float:
        return self._options.timeout_s(float(self._format.clip_duration), self.expected_render_s)

    @property
    def _piece_timeout_s(self) -> float:
        """For work between clips; a worker that hangs in it must not be kept for as long as loading may take."""
        return min(PIECE_TIMEOUTS * self._timeout_s, MAX_RENDER_TIMEOUT_S)

    def _cost(self, request: RenderRequest) -> float:
        """What a clip takes against an ordinary one."""
        return self._budget.cost(request.steps or self._options.steps, request.frames / self._format.clip_frames)

    def _clip_job(self, request: RenderRequest) -> _Job:
        """A clip's job, which follows on that of the clip that it continues."""
        before = self._latest.get(request.stream) if request.chained and request.stream else None
        ticket = Ticket(
            next(self._numbers),
            request.stream,
            deadline_s=request.deadline_s,
            due_s=request.deadline_s - (self._format.clip_frames - 1) / self._format.fps,
            cost=self._cost(request),
            steps=request.steps or 0,
            after=None if before is None else before.ticket.number,
            unable=frozenset(name for name, slot in self._slots.items() if request.avatar in slot.lacking),
        )
        job = _Job(ticket, asyncio.get_running_loop().create_future(), request)
        if before is not None:
            before.followers.append(job)
        if request.stream:
            self._latest[request.stream] = job
        return job

    async def _through(self, job: _Job) -> Any:
        """Queues a job and waits for its result; who gives up on it takes it out of the queue."""
        self._jobs[job.ticket.number] = job
        self._scheduler.submit(job.ticket, self._now)
        self._act()
        try:
            return await job.result
        finally:
            if job.ticket.number in self._jobs and job.result.cancelled():
                self._withdraw(job)
            # An error keeps the frames that it passes and all that they name: this would keep the job, which keeps the
            # error, and an overloaded server the clips that it lost until Python looks for such rings.
            del job

    async def _on(self, slot: _Slot, errand: Callable[[Worker], Awaitable[Any]]) -> Any:
        """Runs something other than a clip on a worker, in a gap between clips."""
        waiting_since = self._now
        while slot.up and (left_s := waiting_since + ERRAND_PATIENCE_S - self._now) > 0:
            wait_s = slot.gaps.wait_s(self._now, float(self._format.clip_duration))
            if wait_s <= 0:
                break
            slot.turned.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(slot.turned.wait(), min(wait_s, left_s))
        if not slot.up:
            raise WorkerGoneError(f"worker {slot.spec.name} is gone")
        return await self._through(self._errand(slot, errand))

    def _errand(self, slot: _Slot, errand: Callable[[Worker], Awaitable[Any]], ping: bool = False) -> _Job:
        ticket = Ticket(
            next(self._numbers),
            NOBODY,
            deadline_s=self._now,
            cost=0.0,
            worker=slot.spec.name,
            droppable=False,
        )
        return _Job(ticket, asyncio.get_running_loop().create_future(), errand=errand, ping=ping)

    def _act(self) -> None:
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
                    worker, request = self._slots[name].worker, self._jobs[ticket.number].request
                    assert worker is not None
                    assert request is not None
                    worker.prepare(ticket.number, request)
                case Recall(name, ticket):
                    self._discard(name, ticket)
                case Drop(ticket, holder):
                    self._discard(holder, ticket)
                    late = LateError("it could not have been on time any more, and was not begun")
                    self._end(self._jobs[ticket.number]).fail(late)

    async def _run(self, slot: _Slot, job: _Job) -> None:
        """One job on one worker, from its start to what follows from its end."""
        worker = slot.worker
        assert worker is not None
        begun = self._now
        if not job.ping:
            slot.gaps.began(begun, job.request is not None)
        took_s: float | None = None
        try:
            if job.request is not None:
                result, rendering_s = await worker.render(job.ticket.number, job.request, self._timeout_s)
                job.pass_on(result.final_latent)
                took_s = self._now - begun
                slot.failures = 0
                slot.rendered += 1
                if slot.rendered >= STEADY_CLIPS:
                    slot.deaths = 0
                slot.meter.rendered(took_s, rendering_s)
                slot.recent_s.append(took_s / job.ticket.cost)
                answer: Any = result
            else:
                assert job.errand is not None
                answer = await job.errand(worker)
                took_s = self._now - begun
            if not job.result.done():
                job.result.set_result(answer)
        except WorkerGoneError as error:
            if job.request is not None:
                slot.meter.failed(self._now - begun)
            self._go_down(slot, worker)
            job.fail(error)
        except RenderError as error:
            job.fail(error)
            if job.request is not None:
                self._clip_lost(slot, worker, begun)
        except Exception as error:  # a fault of this program
            if job.request is None:
                job.fail(error)
            else:  # it costs the clip and no stream
                logger.exception("worker %s lost a clip to a fault of the engine", slot.spec.name)
                job.fail(RenderError(f"worker {slot.spec.name} lost the clip to a fault of the engine"))
                self._clip_lost(slot, worker, begun)
        finally:
            job.fail(RenderError("the engine is closed"))  # where all this was cancelled
            self._end(job)
            self._scheduler.finished(slot.spec.name, job.ticket, self._now, took_s)
            if not job.ping:
                slot.gaps.ended(self._now)
            slot.answered_s = self._now
            if job.request is not None:
                slot.clip_ended_s = self._now
            slot.turned.set()
            del job  # as in _through
        self._act()

    def _clip_lost(self, slot: _Slot, worker: Worker, begun_s: float) -> None:
        """A worker that lives has lost a clip. One that loses several in a row is replaced."""
        slot.meter.failed(self._now - begun_s)
        slot.failures += 1
        if slot.failures >= FAILURES_TO_REPLACE:
            logger.error("worker %s lost %d clips in a row and is replaced", slot.spec.name, slot.failures)
            worker.kill()
            self._go_down(slot, worker)

    def _end(self, job: _Job) -> _Job:
        """Forgets a job."""
        self._jobs.pop(job.ticket.number, None)
        if job.request is not None and self._latest.get(job.request.stream) is job:
            del self._latest[job.request.stream]
        return job

    def _withdraw(self, job: _Job) -> None:
        """Takes back a job that nobody waits for. One that runs goes on, so that its worker is free again only when it
        is."""
        if job.running:
            return
        self._discard(self._scheduler.withdraw(job.ticket.number), job.ticket)
        self._end(job)
        self._act()

    def _discard(self, name: str | None, ticket: Ticket) -> None:
        if name is not None and (worker := self._slots[name].worker) is not None:
            worker.discard(ticket.number)

    def _dismiss(self, reason: str) -> None:
        """Sends away all who wait for a worker."""
        for job in [*self._jobs.values()]:
            if not job.running:
                self._scheduler.withdraw(job.ticket.number)
                self._end(job).fail(RenderError(reason))

    # Inside: workers

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _open_in(self, slot: _Slot) -> Worker:
        """A new worker in a slot, not started yet."""
        opened: list[Worker] = []

        def gone() -> None:
            if slot.worker is opened[0]:
                slot.alive = False
                self._lost(slot)

        opened.append(self._open(slot.spec, lambda line: self._progress(line), gone))
        slot.worker, slot.alive = opened[0], True
        return opened[0]

    async def _prepare_overlap(self) -> None:
        """Warms the workers up for clips that overlap, if one of them is so slow that streams may have to be spread."""
        slowest = max(slot.at_start.median_s for slot in self._slots.values() if slot.at_start is not None)
        near = slowest * self._budget.cost(self._budget.min_steps) > OVERLAP_SHARE * self._budget.clip_s
        wanted = self._options.overlap_frames > 0 and len(self._slots) > 1
        self._overlaps = wanted and (near or not self._options.use_init_latent)
        if self._overlaps:
            frames = self._format.clip_frames + self._options.overlap_frames
            self._progress(f"a stream may take more than one worker: clips of {frames} frames are prepared for")
            workers = [slot.worker for slot in self._slots.values() if slot.worker is not None]
            await _all_or_first_error([worker.measure(frames, self._options.start_timeout_s) for worker in workers])

    def _come_up(self, slot: _Slot) -> None:
        slot.up = True
        slot.answered_s = self._now
        if not self._closed:
            self._keep(self._beat(slot, slot.worker), f"heartbeat of {slot.spec.name}")
        slot.failures = slot.rendered = 0
        slot.retry_at_s = None
        assert slot.at_start is not None
        slot.recent_s.clear()
        self._scheduler.add_worker(slot.spec.name, slot.at_start.median_s)
        self._act()

    def _go_down(self, slot: _Slot, worker: Worker) -> None:
        if slot.worker is worker and slot.up:
            slot.up = False
            slot.turned.set()
            self._scheduler.remove_worker(slot.spec.name)
            for job in [*self._jobs.values()]:
                if job.ticket.worker == slot.spec.name and not job.running:
                    self._scheduler.withdraw(job.ticket.number)
                    self._end(job).fail(WorkerGoneError(f"worker {slot.spec.name} is gone"))
            if not self.ready:
                self._dismiss("the last worker is gone; another is being started")
            for job in [*self._jobs.values()]:
                if job.request is not None and not job.running and not self._had(job.request.avatar):
                    self._discard(self._scheduler.withdraw(job.ticket.number), job.ticket)
                    self._end(job).fail(RenderError(f"the last worker with avatar {job.request.avatar!r} is gone"))

    def _had(self, avatar: str) -> bool:
        """Whether a worker that is up has an avatar of the offer."""
        return any(slot.up and avatar not in slot.lacking for slot in self._slots.values())

    def _lost(self, slot: _Slot) -> None:
        """A slot's worker is dead. One that has never been up is the business of whoever starts it."""
        assert slot.worker is not None
        self._go_down(slot, slot.worker)
        if not self._closed and slot.at_start is not None and slot.retry_at_s is None:
            slot.retry_at_s = self._now
            self._keep(self._replace(slot), f"replace {slot.spec.name}")

    def _keep(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Runs what lasts as long as the engine at most."""
        keeper = asyncio.create_task(work, name=name)
        self._keepers.add(keeper)
        keeper.add_done_callback(self._keepers.discard)

    async def _beat(self, slot: _Slot, worker: Worker | None) -> None:
        """Asks an idle worker now and then whether it answers, as long as it is up. One that does not is replaced
        before a clip is lost to it."""
        while slot.up and slot.worker is worker:
            await asyncio.sleep(max(0.0, slot.answered_s + HEARTBEAT_S - self._now))
            if slot.up and slot.worker is worker and self._now - slot.answered_s >= HEARTBEAT_S - JUST_S:
                try:
                    if self._now - slot.clip_ended_s >= MEASURE_AGAIN_S and self._slowed_down(slot):
                        await self._measure_again(slot)
                    else:
                        job = self._errand(slot, lambda worker: worker.ping(HEARTBEAT_TIMEOUT_S), ping=True)
                        await self._through(job)
                except RenderError as error:
                    logger.warning("worker %s does not answer: %s", slot.spec.name, error)
                    return

    def _slowed_down(self, slot: _Slot) -> bool:
        times = self._scheduler.times().get(slot.spec.name)
        if times is None or slot.at_start is None:
            return False
        return pace.seconds(self._budget, times, self._options.steps) > SLOWED_DOWN * slot.at_start.median_s

    async def _measure_again(self, slot: _Slot) -> None:
        frames, timeout_s = self._format.clip_frames, self._piece_timeout_s
        speed: Speed = await self._through(self._errand(slot, lambda worker: worker.measure(frames, timeout_s), True))
        logger.info("worker %s was idle and measured again: %.1f frames/s", slot.spec.name, speed.frames_per_second)
        slot.clip_ended_s = self._now
        slot.recent_s.clear()
        slot.recent_s.extend(speed.median_s for _ in range(ENOUGH_CLIPS))
        self._scheduler.measured(slot.spec.name, speed.median_s)

    async def _replace(self, slot: _Slot) -> None:
        """Replaces a dead worker, and replacements that come to nothing, until one is up."""
        while True:
            assert slot.worker is not None
            await slot.worker.close()
            slot.deaths += 1
            slot.meter.restarts += 1
            wait_s = self._options.wait_s(slot.deaths)
            slot.retry_at_s = self._now + wait_s
            logger.warning("worker %s is gone; a replacement starts in %.1f s", slot.spec.name, wait_s)
            await asyncio.sleep(wait_s)
            worker = self._open_in(slot)
            try:
                slot.at_start = await self._as_the_others(worker)
                async with self._preparing:
                    slot.lacking.clear()
                    for files in tuple(self._files.values()):
                        if self._files.get(files.name) is not files:  # its idle loop could not be rendered meanwhile
                            continue
                        await self._prepare_again(slot, worker, files)
                    if not slot.alive:
                        raise WorkerGoneError(f"worker {slot.spec.name} died before its first clip")
                    self._come_up(slot)
                logger.warning("worker %s is replaced", slot.spec.name)
                return
            except EchoRtcError as error:
                logger.error("the replacement of worker %s did not come up: %s", slot.spec.name, error)
                worker.kill()
            except Exception:  # a boundary: whatever it is, a place that nobody looks after any more is lost for good
                logger.exception("the replacement of worker %s did not come up", slot.spec.name)
                worker.kill()

    async def _prepare_again(self, slot: _Slot, worker: Worker, files: AvatarFiles) -> None:
        """Prepares an avatar of the offer on a replacement. One whose files have gone bad meanwhile is left out there,
        and is not offered any more once no worker has it."""
        try:
            first = True
            while await worker.prepare_avatar(files, first, self._piece_timeout_s):
                first = False
        except InputError as error:
            logger.error("worker %s goes without avatar %s: %s", slot.spec.name, files.name, error)
            await worker.forget_avatar(files.name, self._piece_timeout_s)
            slot.lacking.add(files.name)
            if all(files.name in each.lacking for each in self._slots.values()):
                logger.error("no worker has avatar %s any more; it is not offered", files.name)
                self._avatars.pop(files.name, None)
                self._files.pop(files.name, None)

    async def _as_the_others(self, worker: Worker) -> Speed:
        """Starts a replacement, and warms it up for the clips that are asked for here."""
        report = await worker.start(self._options.start_timeout_s)
        if self._overlaps:
            frames = self._format.clip_frames + self._options.overlap_frames
            await worker.measure(frames, self._options.start_timeout_s)
        return report.speed


async def _all_or_first_error(starts: Sequence[Awaitable[Any]]) -> list[Any]:
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
