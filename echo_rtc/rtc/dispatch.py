"""Sends a stream's clips to the engine, in order, and their frames to the playout.

Where latents are chained, a clip begins where the one before ended, so one clip is on its way at a time. A clip that
can no longer be on time is given up for the next one before it is begun, so that a slow engine costs frames and never
falls further behind. Knows no peers and no packets; an engine is anything with ``render``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from echo_rtc.clips import MEDIA_RATE, AudioClip, ClipFormat, F16Array, YuvFrames
from echo_rtc.engine.protocol import Avatar, RenderRequest, RenderResult
from echo_rtc.errors import RenderError
from echo_rtc.rtc.log import Complaints, StreamLog

MAX_PENDING_CLIPS = 8
"""Clips of a stream that may wait for the engine; the oldest is given up for a further one."""
MAX_UNCHAINED_CLIPS = 4
"""Clips of a stream on their way at a time where latents are not chained."""
RENDER_SMOOTHING = 0.3
"""Weight of the latest clip in the expected render time."""


class Renderer(Protocol):
    """The part of an engine that a stream uses."""

    async def render(self, request: RenderRequest) -> RenderResult: ...


class FrameSink(Protocol):
    """The part of the playout that takes frames. Times are of the monotonic clock, in seconds."""

    def put(self, clip_index: int, frames: YuvFrames, render_s: float, now: float) -> None: ...

    def lose(self, clip_index: int) -> None: ...

    def leaves(self, media_sample: int) -> float: ...


@dataclass(frozen=True, slots=True)
class RenderOrder:
    """What all clips of a stream have in common: its name for the engine, the avatar, its seed, and whether latents are
    chained.

    ``expected_s``: seconds a clip is expected to take before one has been measured.
    """

    avatar: Avatar
    format: ClipFormat
    seed: int
    chained: bool
    expected_s: float
    stream: str = ""


@dataclass(slots=True)
class DispatchCounters:
    """Clips: rendered; failed in the engine; given up before they began because they were late, or one too many."""

    rendered: int = 0
    failed: int = 0
    late: int = 0
    overflowed: int = 0

    @property
    def lost(self) -> int:
        """Clips that were admitted and have no frames."""
        return self.failed + self.late + self.overflowed


@dataclass(frozen=True, slots=True)
class _Pending:
    clip: AudioClip
    after_idle: bool


class Dispatcher:
    """The clips of one stream on their way to the engine and back."""

    def __init__(
        self,
        engine: Renderer,
        order: RenderOrder,
        sink: FrameSink,
        log: StreamLog,
        clock: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._order = order
        self._sink = sink
        self._complaints = Complaints(log, clock)
        self._clock = clock
        self._pending: deque[_Pending] = deque()
        self._arrived = asyncio.Event()
        self._slots = asyncio.Semaphore(1 if order.chained else MAX_UNCHAINED_CLIPS)
        self._after_idle = True
        self._latent: F16Array | None = None
        self.expected_s = order.expected_s
        self.counters = DispatchCounters()

    @property
    def pending(self) -> int:
        """Clips that wait."""
        return len(self._pending)

    def idle(self) -> None:
        """A clip went by in silence: the picture is the idle loop's."""
        self._after_idle = True

    def submit(self, clip: AudioClip) -> None:
        """A clip to render, in order of media time."""
        while len(self._pending) >= MAX_PENDING_CLIPS:
            self.counters.overflowed += 1
            self._give_up(self._pending.popleft(), "too many wait for the engine")
        self._pending.append(_Pending(clip, self._after_idle))
        self._after_idle = False
        self._arrived.set()

    async def run(self) -> None:
        """Dispatches for ever; every clip on its way ends with this task."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._slots.acquire()
                pending = await self._next()
                tasks.create_task(self._render(pending), name=f"clip {pending.clip.index}")

    async def _next(self) -> _Pending:
        while True:
            while not self._pending:
                self._arrived.clear()
                await self._arrived.wait()
            pending = self._pending.popleft()
            # The newest clip is rendered in any case: only so does the playout learn how slow the engine has become,
            # and lengthens the delay.
            if not self._pending or self._in_time(pending.clip):
                return pending
            self.counters.late += 1
            self._give_up(pending, "it cannot be on time any more")

    def _in_time(self, clip: AudioClip) -> bool:
        """Whether at least the clip's last frame can still be shown."""
        return self._clock() + self.expected_s <= self._leaves(clip)

    def _leaves(self, clip: AudioClip) -> float:
        """When the clip's last frame is shown."""
        last_frame = clip.first_frame + clip.frames - 1
        return self._sink.leaves(self._order.format.sample_of_frame(last_frame, MEDIA_RATE))

    async def _render(self, pending: _Pending) -> None:
        clip = pending.clip
        begun = self._clock()
        try:
            result = await self._engine.render(self._request(pending))
            now = self._clock()
            self.expected_s += RENDER_SMOOTHING * (now - begun - self.expected_s)
            self._latent = result.final_latent
            self._sink.put(clip.index, result.frames, now - begun, now)
            self.counters.rendered += 1
        except RenderError as error:
            self.counters.failed += 1
            self._give_up(pending, str(error))
        finally:
            self._slots.release()

    def _request(self, pending: _Pending) -> RenderRequest:
        clip, order = pending.clip, self._order
        latent: F16Array | None = None
        if order.chained:
            latent = self._latent
            idle = order.avatar.idle_latents
            if pending.after_idle or latent is None:
                latent = None if idle is None else idle[(clip.first_frame - 1) % len(idle)]
        return RenderRequest(
            avatar=order.avatar.name,
            audio=clip.window,
            frames=clip.frames,
            pose_position=clip.first_frame,
            seed=order.seed,
            init_latent=latent,
            stream=order.stream,
            deadline_s=self._leaves(clip),
        )

    def _give_up(self, pending: _Pending, reason: str) -> None:
        self._sink.lose(pending.clip.index)
        self._complaints.warning("clip %d is lost: %s", pending.clip.index, reason)
