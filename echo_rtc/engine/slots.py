"""The slot of one worker: its state, what is known of its speed, and what it has done. Replacements inherit it.

Also what a worker is, whatever runs it: a process of this machine, an actor on another.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from echo_rtc.engine.gaps import Gaps
from echo_rtc.engine.meter import WorkerMeter
from echo_rtc.engine.speed import Speed
from echo_rtc.engine.worker import WorkerReport, WorkerSpec
from echo_rtc.errors import RenderError
from echo_rtc.rendering import Avatar, AvatarFiles, Progress, RenderRequest, RenderResult, TakeFrames

RECENT_CLIPS, ENOUGH_CLIPS = 48, 12
"""A worker's speed is that of its latest clips, once it has rendered enough of them."""

STEADY_CLIPS = 20
"""Number of clips after which a worker counts as sound: if it dies later, its replacement is started at once."""


class WorkerGoneError(RenderError):
    """The worker died, or was killed for taking too long."""


class Worker(Protocol):
    """One worker, from start to exit, as the engine sees it. Not reusable: a replacement is a new object."""

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
        """Discards a prepared clip."""
        ...

    async def render(
        self, number: int, request: RenderRequest, timeout_s: float, on_frames: TakeFrames
    ) -> tuple[RenderResult, float]:
        """Renders a clip, prepared or not; with it go the seconds that rendering itself took. Frames may be handed to
        ``on_frames`` as they come; the result has those that are left, at least one. Raises RenderError;
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


OpenWorker = Callable[[WorkerSpec, Progress, Callable[[], None]], Worker]
"""Makes a worker, without starting it: what it is to be, where its progress goes, and what to call when it is gone."""


class SlotState(Enum):
    """EMPTY: no worker was opened. STARTING: it loads. UP: it takes work. DOWN: it is dead or dying, and is replaced.
    WAITING: its replacement starts later."""

    EMPTY = "empty"
    STARTING = "starting"
    UP = "up"
    DOWN = "down"
    WAITING = "waiting"


_NEXT = {
    SlotState.EMPTY: {SlotState.STARTING},
    SlotState.STARTING: {SlotState.UP, SlotState.DOWN},
    SlotState.UP: {SlotState.DOWN},
    SlotState.DOWN: {SlotState.WAITING},
    SlotState.WAITING: {SlotState.STARTING, SlotState.WAITING},
}


@dataclass(frozen=True, slots=True)
class ClipTimes:
    """How long a clip of ``cost`` times an ordinary one took: in all, to render, and until its first frame could be
    shown so that no other would be late (s)."""

    took_s: float
    rendering_s: float
    need_s: float
    cost: float


class Slot:
    """The place of one worker."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.state = SlotState.EMPTY
        self.worker: Worker | None = None
        self.failures = 0
        """Clips lost in a row by this worker."""
        self.deaths = 0
        """Workers lost in a row, none of which rendered for long."""
        self.rendered = 0
        """Clips of this worker."""
        self.retry_at_s: float | None = None
        """When the replacement starts, while it waits."""
        self.replacing = False
        """Whether a task sees to its replacement."""
        self.meter = WorkerMeter()
        self.at_start: Speed | None = None
        self.notice = ""
        """What users should know of how the worker computes, a sentence; empty if nothing."""
        self.recent_s: deque[float] = deque(maxlen=RECENT_CLIPS)
        """What ordinary clips took lately, or would have."""
        self.recent_needs_s: deque[float] = deque(maxlen=RECENT_CLIPS)
        """Until their first frame could be shown, likewise."""
        self.gaps = Gaps()
        self.job_ended = asyncio.Event()
        """Set whenever a job has ended, or the worker is down."""
        self.answered_s = -math.inf
        """When a job last ended."""
        self.clip_ended_s = -math.inf
        """When a clip last ended, or the speed was last measured."""

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def up(self) -> bool:
        return self.state is SlotState.UP

    @property
    def running(self) -> Worker:
        """The worker that was opened."""
        assert self.worker is not None, f"slot {self.name} has no worker"
        return self.worker

    def open(self, worker: Worker) -> None:
        """A worker is opened; it starts."""
        self._become(SlotState.STARTING)
        self.worker, self.retry_at_s = worker, None

    def come_up(self, now: float) -> None:
        """It has started and takes work."""
        self._become(SlotState.UP)
        self.failures = self.rendered = 0
        self.recent_s.clear()
        self.recent_needs_s.clear()
        self.answered_s = self.clip_ended_s = now

    def go_down(self) -> bool:
        """It is dead or dying. Returns whether it took work until now."""
        was_up = self.up
        if self.state in (SlotState.STARTING, SlotState.UP):
            self._become(SlotState.DOWN)
            self.job_ended.set()
        return was_up

    def wait(self, until_s: float) -> None:
        """Its replacement starts at ``until_s``."""
        self._become(SlotState.WAITING)
        self.retry_at_s = until_s

    def clip_rendered(self, times: ClipTimes) -> None:
        """A clip was rendered."""
        self.failures = 0
        self.rendered += 1
        if self.rendered >= STEADY_CLIPS:
            self.deaths = 0
        self.meter.rendered(times.took_s, times.rendering_s)
        self.recent_s.append(times.took_s / times.cost)
        self.recent_needs_s.append(times.need_s / times.cost)

    def measured(self, speed: Speed, now: float) -> None:
        """The speed was measured again."""
        self.clip_ended_s = now
        for recent, seconds in ((self.recent_s, speed.median_s), (self.recent_needs_s, speed.most_need_s)):
            recent.clear()
            recent.extend([seconds] * ENOUGH_CLIPS)

    def speed(self, frames: int) -> Speed:
        """With ordinary clips, which have ``frames`` frames: as seen lately, or at the start."""
        assert self.at_start is not None
        if len(self.recent_s) < ENOUGH_CLIPS:
            return self.at_start
        return Speed(frames, tuple(self.recent_s), tuple(self.recent_needs_s))

    def _become(self, state: SlotState) -> None:
        assert state in _NEXT[self.state], f"slot {self.name} cannot go from {self.state.value} to {state.value}"
        self.state = state
