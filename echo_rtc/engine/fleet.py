"""An engine over any kind of workers: what it offers, what it has room for, and how a stream's clips are asked for.

What a worker is (a process of this machine, an actor on another) is told by ``open_worker``. The parts: ``slots.py``
for one worker's place, ``jobs.py`` for what workers are given, ``roster.py`` for avatars, ``supervision.py`` for start
and replacement, ``scheduling.py`` for which worker renders which clip when.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from echo_rtc.clips import DEFAULT_AVATAR, ClipFormat
from echo_rtc.engine import pace
from echo_rtc.engine.jobs import JobRules, Jobs
from echo_rtc.engine.pace import Budget
from echo_rtc.engine.roster import Roster
from echo_rtc.engine.scheduling import Scheduler, Ticket
from echo_rtc.engine.slots import OpenWorker, Slot
from echo_rtc.engine.supervision import Rules, Supervisor
from echo_rtc.engine.worker import WorkerSpec
from echo_rtc.errors import RenderError
from echo_rtc.rendering import (
    Avatar,
    AvatarFiles,
    Avatars,
    ClipPlan,
    Continuity,
    Progress,
    RenderRequest,
    RenderResult,
    TakeFrames,
    WorkerStatus,
)

logger = logging.getLogger(__name__)

TIMEOUT_CLIPS = 10
TIMEOUT_RENDERS = 12
MAX_RENDER_TIMEOUT_S = 300.0
"""A clip may take this many times its own length, or what rendering takes as measured, before its worker is replaced;
never longer than the bound (s)."""

PIECE_TIMEOUTS = 20
"""A piece of work between clips (of preparing or forgetting an avatar, of an idle loop) may take as long as this many
clips at their timeout, within the same bound."""

NEW_STREAM = "\0"
"""No stream has this name: asks what a further one would be given."""


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """How a fleet works; times in seconds.

    ``render_timeout_s``: for a clip on a worker; 0 sets it by the clips' length and the measured speed.
    ``start_timeout_s``: for loading and warming up. ``backoff_s``: before the second replacement in a row that comes to
    nothing, doubled with each further one up to ``max_backoff_s``; the first replacement comes at once.
    ``use_init_latent``, ``overlap_frames``: how clips join, see :attr:`FleetEngine.continuity`. ``prefetch``: whether
    busy workers prepare their next clip. ``steps``, ``min_steps``: denoising steps of an ordinary clip, and the fewest.
    ``avatar_name``: of the avatar that workers come with, where nothing else says it.
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
    avatar_name: str = DEFAULT_AVATAR

    def budget(self, clip_format: ClipFormat) -> Budget:
        """What these options and the clips' format leave for a clip."""
        overlap = self.overlap_frames / clip_format.clip_frames
        least = min(self.min_steps, self.steps)
        return Budget(float(clip_format.clip_duration), self.steps, least, overlap, self.use_init_latent)

    def wait_s(self, deaths: int) -> float:
        """How long to wait before replacing a worker that has died ``deaths`` times in a row (1 = the first)."""
        return 0.0 if deaths <= 1 else min(self.max_backoff_s, self.backoff_s * 2.0 ** min(deaths - 2, 30))

    def timeout_s(self, clip_s: float, render_s: float) -> float:
        """How long a clip of ``clip_s`` seconds may take that is expected to take ``render_s``."""
        by_itself = max(TIMEOUT_CLIPS * clip_s, TIMEOUT_RENDERS * render_s)
        return min(self.render_timeout_s or by_itself, MAX_RENDER_TIMEOUT_S)


class FleetEngine:
    """An Engine over workers. ``specs`` says which, and may raise SettingsError; ``open_worker`` makes them."""

    def __init__(
        self,
        clip_format: ClipFormat,
        specs: Callable[[], Awaitable[Sequence[WorkerSpec]]],
        open_worker: OpenWorker,
        options: FleetOptions | None = None,
    ) -> None:
        self._format = clip_format
        self._specs = specs
        self._open_worker = open_worker
        self._options = options or FleetOptions()
        self._budget = self._options.budget(clip_format)
        self._scheduler = Scheduler(self._options.prefetch, self._budget)
        self._slots: dict[str, Slot] = {}
        job_rules = JobRules(
            clip_format,
            self._ticket,
            lambda: self._timeout_s,
            lambda slot, worker: self._supervisor.go_down(slot, worker),
        )
        self._jobs = Jobs(self._scheduler, self._slots, job_rules)
        self._roster = Roster(self._slots, self._jobs.call, lambda: self._piece_timeout_s)
        rules = Rules(
            self._options.start_timeout_s,
            lambda: self._piece_timeout_s,
            self._options.wait_s,
            clip_format.clip_frames,
            self._options.overlap_frames,
            self._budget,
        )
        self._supervisor = Supervisor(self._slots, self._scheduler, self._jobs, self._roster, rules)
        self._closed = False

    @property
    def format(self) -> ClipFormat:
        return self._format

    @property
    def avatars(self) -> Avatars:
        return self._roster.offered

    @property
    def capacity(self) -> int:
        return pace.capacity(self._budget, self._clip_times())

    @property
    def capacity_steps(self) -> int:
        return pace.steps_of(self._budget, self._clip_times(), self.capacity)

    @property
    def expected_render_s(self) -> float:
        """After how long a clip can be shown that is rendered on the slowest worker that may be chosen for a further
        stream, beside the clips of the streams that it shares the worker with."""
        place = self._scheduler.place(NEW_STREAM)
        slots = [slot for slot in self._slots.values() if slot.at_start is not None]
        chosen = [slot for slot in slots if slot.name in place.workers] or slots
        cost = self._budget.cost(place.steps, 1.0 + self._budget.overlap * place.spread)
        others = self._scheduler.sharing(place.workers) / max(1, len(place.workers))
        speeds = [slot.speed(self._format.clip_frames) for slot in chosen]
        return max((speed.most_need_s + others * speed.most_s for speed in speeds), default=0.0) * cost

    @property
    def ready(self) -> bool:
        return any(slot.up for slot in self._slots.values())

    @property
    def trouble(self) -> str:
        return " ".join(filter(None, map(self._supervisor.trouble, self._slots.values())))

    @property
    def continuity(self) -> Continuity:
        """How the clips of a stream would join that is alone."""
        return self.plan(NEW_STREAM).continuity

    def plan(self, stream: str) -> ClipPlan:
        """How the next clip of a stream is to be asked for, as the workers and the other streams are now."""
        place = self._scheduler.place(stream)
        chained = self._options.use_init_latent and not place.spread
        return ClipPlan(Continuity(chained, self._options.overlap_frames if place.spread else 0), place.steps)

    @property
    def workers(self) -> list[WorkerStatus]:
        """The workers as they stand; what no worker has yet waits for each of them."""
        return [self._status(slot) for slot in self._slots.values()]

    def _status(self, slot: Slot) -> WorkerStatus:
        speed = None if slot.at_start is None else slot.speed(self._format.clip_frames)
        status = slot.meter.status(
            slot.name,
            up=slot.up,
            pid=None if slot.worker is None else slot.worker.pid,
            waiting=self._scheduler.waiting + max(0, self._scheduler.queue_of(slot.name) - 1),
        )
        rate = None if speed is None else speed.frames_per_second
        return replace(status, frames_per_second=rate, notice=slot.notice)

    @property
    def worker_pids(self) -> list[int]:
        """The process ids of the workers that are up and have one."""
        found = [slot.running.pid for slot in self._slots.values() if slot.up]
        return [pid for pid in found if pid is not None]

    async def start(self, progress: Progress) -> None:
        """Starts every worker in parallel, then renders the idle loops on the first. Raises InputError, SettingsError
        or RenderError with the worker's own sentence; no worker is left then."""
        try:
            specs = await self._specs()
            if self._closed:
                raise RenderError("the engine was closed while it started")
            self._slots.update((spec.name, Slot(spec)) for spec in specs)
            report = await self._supervisor.start(self._open_worker, progress)
            first = next(iter(self._slots.values())).running
            for name in report.avatars:
                progress(f"worker {first.name}: preparing the idle loop of avatar {name}")
                await self._roster.render_loaded(name, first, self._options.start_timeout_s)
            self._supervisor.come_up()
            held = "1 stream is" if self.capacity == 1 else f"{self.capacity} streams are"
            steps = f"{self.capacity_steps} of {self._options.steps} denoising steps"
            progress(f"{held} held in real time, with {steps}")
        except BaseException:
            await self.close()
            raise

    async def render(self, request: RenderRequest, on_frames: TakeFrames | None = None) -> RenderResult:
        """Renders one clip where and when its turn comes. Raises LateError or RenderError if it is lost."""
        if not self._slots:
            raise RenderError("the engine is closed" if self._closed else "the engine is not running; start it first")
        if request.avatar not in self.avatars:
            raise RenderError(f"there is no avatar {request.avatar!r}; there is {', '.join(self.avatars) or 'none'}")
        request = replace(request, avatar=self.avatars[request.avatar].name)
        if not any(slot.up for slot in self._slots.values()):
            # A clip that waits for a replacement would be late by the time it came.
            raise RenderError("the engine is closed" if self._closed else "no worker is up; one is being started")
        if not self._roster.available(request.avatar):
            raise RenderError(f"no worker that is up has avatar {request.avatar!r}")
        return await self._jobs.render(request, on_frames)

    async def prepare_avatar(self, files: AvatarFiles) -> Avatar:
        """Prepares an avatar on all workers that are up and renders its idle loop on one of them, piece by piece, each
        when the worker has nothing more urgent to do."""
        return await self._roster.prepare(files)

    async def remove_avatar(self, name: str) -> None:
        """Lets go of an avatar on all workers, each when it has nothing more urgent to do."""
        await self._roster.remove(name)

    async def failed(self) -> RenderError:
        """Never returns: workers that die are replaced, however often."""
        never: asyncio.Future[RenderError] = asyncio.get_running_loop().create_future()
        return await never

    async def close(self) -> None:
        """Ends every worker in bounded time; clips being rendered are lost. Closing twice is harmless."""
        self._closed = True
        await self._supervisor.close()
        await self._jobs.close()
        await self._roster.close()
        self._slots.clear()

    def _clip_times(self) -> list[pace.Times]:
        """Seconds that an ordinary clip takes on each worker that is up, or on all while none is."""
        slots = [slot for slot in self._slots.values() if slot.at_start is not None]
        up = [slot for slot in slots if slot.up] or slots
        return [{self._options.steps: slot.speed(self._format.clip_frames).median_s} for slot in up]

    @property
    def _timeout_s(self) -> float:
        slots = [slot for slot in self._slots.values() if slot.at_start is not None]
        slowest = max((slot.speed(self._format.clip_frames).most_s for slot in slots), default=0.0)
        return self._options.timeout_s(float(self._format.clip_duration), slowest)

    @property
    def _piece_timeout_s(self) -> float:
        """For work between clips; a worker that hangs in it must not be kept for as long as loading may take."""
        return min(PIECE_TIMEOUTS * self._timeout_s, MAX_RENDER_TIMEOUT_S)

    def _ticket(self, number: int, request: RenderRequest, after: int | None) -> Ticket:
        """A clip's place in the order."""
        count, fps = self._format.clip_frames, self._format.fps
        frames = request.frames / count
        return Ticket(
            number,
            request.stream,
            # A clip that ends after half of its frames are due costs as much as the next one, all of which is on time
            # if this one is left out.
            deadline_s=request.deadline_s - (count // 2) / fps,
            due_s=request.deadline_s - (count - 1) / fps,
            cost=self._budget.cost(request.steps or self._options.steps, frames),
            steps=request.steps or 0,
            after=after,
            unable=self._roster.lacking(request.avatar),
        )
