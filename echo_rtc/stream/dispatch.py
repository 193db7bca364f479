"""Sends a stream's clips to the engine, and their frames to the playout.

All clips are handed to the engine as they come; it knows all streams and decides which is rendered next, and which
comes too late to be begun. It also says for each clip how it joins the one before (chained, from its last latent, or
cross-faded where several workers share the stream) and how many denoising steps it gets; here that is done. Knows no
peers and no packets; an engine is anything with ``plan`` and ``render``.
"""

from __future__ import annotations

import asyncio
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from echo_rtc.clips import MEDIA_RATE, AudioClip, ClipFormat, F16Array, YuvFrames
from echo_rtc.counting import CounterMetric, Histogram, HistogramMetric, counter, histogram, histograms
from echo_rtc.errors import LateError, RenderError
from echo_rtc.media.blend import CrossFader
from echo_rtc.media.idle_walk import IdleWalk
from echo_rtc.rendering import Avatar, ClipPlan, RenderRequest, RenderResult, TakeFrames
from echo_rtc.stream.log import Complaints, StreamLog

MAX_PENDING_CLIPS = 8
"""Clips of a stream that may be in flight; the oldest is cancelled when another one comes."""
LATEST_CLIPS = 5
"""Number of a stream's latest clips whose median time says whether its clips take longer than they last: a stall of one
or two of them does not."""
TIME_BOUNDS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.0, 5.0, 30.0)
MAX_STAGES = 16
"""Bound on the stages of rendering that are counted separately; the engines here have fewer."""

CLIPS = CounterMetric(
    "clips",
    "Clips with speech: rendered; failed in the engine; late or overflowed: given up before they began.",
    "outcome",
)
STEPS_CHANGES = CounterMetric(
    "steps_changes",
    "How often the denoising steps of a stream's clips were lowered because it was late, and raised again.",
    "direction",
)
CLIP_SECONDS = HistogramMetric(
    "clip_seconds", "Seconds from a clip's hand-over to the engine until its frames were there."
)
STAGE_SECONDS = HistogramMetric("clip_stage_seconds", "Seconds of each stage of rendering a clip.", "stage")


class ClipRenderer(Protocol):
    """The part of an engine that a stream uses."""

    def plan(self, stream: str) -> ClipPlan: ...

    async def render(self, request: RenderRequest, on_frames: TakeFrames | None = None) -> RenderResult: ...


class FrameSink(Protocol):
    """The part of the playout that takes frames. Times are of the monotonic clock, in seconds."""

    def put(self, clip_index: int, frames: YuvFrames, render_s: float, now: float) -> None: ...

    def blend(self, clip_index: int, frames: YuvFrames) -> None: ...

    def lose(self, clip_index: int) -> None: ...

    def playout_time(self, media_sample: int) -> float: ...


@dataclass(frozen=True, slots=True)
class RenderOrder:
    """What all clips of a stream have in common: its name for the engine, the avatar, the seed of its noise, and the
    ``walk`` through its idle loop (None: in its order)."""

    avatar: Avatar
    format: ClipFormat
    seed: int
    stream: str = ""
    walk: IdleWalk | None = None


@dataclass(slots=True)
class DispatchCounters:
    """Clips: rendered; failed in the engine; not begun because they would have been late; given up as one too many.
    ``steps_lowered``, ``steps_raised``: how often the number of steps fell and climbed."""

    rendered: int = counter(CLIPS, "rendered")
    failed: int = counter(CLIPS, "failed")
    late: int = counter(CLIPS, "late")
    overflowed: int = counter(CLIPS, "overflowed")
    steps_lowered: int = counter(STEPS_CHANGES, "lowered")
    steps_raised: int = counter(STEPS_CHANGES, "raised")

    @property
    def lost(self) -> int:
        """Clips that were admitted and have no frames."""
        return self.failed + self.late + self.overflowed


@dataclass(slots=True)
class RenderTimes:
    """How long rendered clips took, waiting included, and each stage of rendering that the engine reports."""

    clip_s: Histogram = histogram(CLIP_SECONDS, TIME_BOUNDS_S)
    stages_s: dict[str, Histogram] = histograms(STAGE_SECONDS)

    def observe(self, took_s: float, stages_ms: Mapping[str, float]) -> None:
        """A clip was rendered."""
        self.clip_s.observe(took_s)
        for stage, took_ms in stages_ms.items():
            if stage in self.stages_s or len(self.stages_s) < MAX_STAGES:
                self.stages_s.setdefault(stage, Histogram(TIME_BOUNDS_S)).observe(took_ms / 1000)

    def means_ms(self) -> dict[str, float]:
        """The mean of each stage in milliseconds."""
        return {stage: round(1000 * times.sum / times.count, 1) for stage, times in self.stages_s.items()}


@dataclass(frozen=True, slots=True)
class _Pending:
    clip: AudioClip
    after_idle: bool
    plan: ClipPlan


class Dispatcher:
    """Hands a stream's clips to the engine and its frames to the playout."""

    def __init__(
        self,
        engine: ClipRenderer,
        order: RenderOrder,
        sink: FrameSink,
        log: StreamLog,
        clock: Callable[[], float],
        on_steps: Callable[[int], None] = lambda steps: None,
    ) -> None:
        """``on_steps`` is called with the number of steps whenever it changes."""
        self._engine = engine
        self._order = order
        self._sink = sink
        self._log = log
        self._complaints = Complaints(log, clock)
        self._clock = clock
        self._on_steps = on_steps
        self._walk = order.walk or IdleWalk(len(order.avatar.idle), order.format.clip_frames)
        self._cross_fader = CrossFader()
        self._steps = engine.plan(order.stream).steps
        self._arrived: deque[_Pending] = deque()
        self._arrival = asyncio.Event()
        self._in_flight: dict[int, asyncio.Task[None]] = {}
        self._after_idle = True
        self._latent: F16Array | None = None
        self._latent_of = -1
        self._last_done_s = 0.0
        self._latest_took_s: deque[float] = deque([0.0] * LATEST_CLIPS, maxlen=LATEST_CLIPS)
        self.counters = DispatchCounters()
        self.times = RenderTimes()

    @property
    def pending(self) -> int:
        """Clips in flight: waiting or being rendered."""
        return len(self._arrived) + len(self._in_flight)

    @property
    def steps(self) -> int:
        """Denoising steps that the next clip gets."""
        return self._steps

    def idle(self) -> None:
        """A clip of silence: the idle loop is shown."""
        self._after_idle = True

    def submit(self, clip: AudioClip) -> None:
        """A clip to render, in order of media time."""
        while self.pending >= MAX_PENDING_CLIPS:
            self.counters.overflowed += 1
            if self._in_flight:
                oldest = min(self._in_flight)
                self._in_flight.pop(oldest).cancel()
            else:
                oldest = self._arrived.popleft().clip.index
            self._give_up(oldest, "too many clips are in flight")
        plan = self._engine.plan(self._order.stream)
        self._note_steps(plan.steps)
        self._arrived.append(_Pending(clip, self._after_idle, plan))
        self._after_idle = False
        self._arrival.set()

    def forget(self) -> None:
        """Gives up all clips that are on their way: they will not be shown, and nothing was lost with them."""
        self._arrived.clear()
        for task in self._in_flight.values():
            task.cancel()
        self._in_flight.clear()
        self._cross_fader = CrossFader()
        self._latent_of = -1
        self._after_idle = True

    async def run(self) -> None:
        """Dispatches until it is cancelled, which cancels every clip in flight."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                while self._arrived:
                    pending = self._arrived.popleft()
                    index = pending.clip.index
                    self._in_flight[index] = tasks.create_task(self._render(pending), name=f"clip {index}")
                self._arrival.clear()
                await self._arrival.wait()

    async def _render(self, pending: _Pending) -> None:
        clip = pending.clip
        begun = self._clock()
        try:
            result = await self._engine.render(
                self._request(pending), lambda frames: self._show(pending, frames, begun, last=False)
            )
            self.times.observe(self._clock() - begun, result.stages_ms)
            self._take(pending, result, begun)
        except LateError as error:
            self.counters.late += 1
            self._give_up(clip.index, str(error))
        except RenderError as error:
            self.counters.failed += 1
            self._give_up(clip.index, str(error))
        finally:
            self._in_flight.pop(clip.index, None)

    def _take(self, pending: _Pending, result: RenderResult, begun: float) -> None:
        """A clip is rendered: the frames that are left of it are shown, and the next one can continue it."""
        clip = pending.clip
        self._show(pending, result.frames, begun, last=True)
        if clip.index > self._latent_of:
            self._latent, self._latent_of = result.final_latent, clip.index
        now = self._clock()
        self._latest_took_s.append(now - max(begun, self._last_done_s))
        self._last_done_s = now
        self.counters.rendered += 1

    def _show(self, pending: _Pending, frames: YuvFrames, begun: float, last: bool) -> None:
        """Hands the next frames of a clip, and the finished cross-fades, to the playout, unless the clip was given up.
        ``last``: no others come."""
        clip, joined = pending.clip, pending.plan.continuity
        if clip.index not in self._in_flight:
            return
        now = self._clock()
        if joined.chained:
            begun = max(begun, self._last_done_s - self._counted_wait_s)
        own, seams = self._cross_fader.push(clip.index, frames, joined.overlap_frames, last)
        if len(own):
            # The last frames of a clip are cross-faded with what the next clip shows of them, and wait for it.
            self._sink.put(clip.index, own, now - begun + joined.overlap_frames / self._order.format.fps, now)
        for index, blended in seams:
            self._sink.blend(index, blended)

    @property
    def _counted_wait_s(self) -> float:
        """How much of its wait for the previous clip counts as a chained clip's own time (s).

        None, as a rule: it says nothing of the clip. But where most clips take longer than they last, each waits longer
        than the one before, until one is left out. With a delay that has room for that, those between are on time.
        """
        clip_s = float(self._order.format.clip_duration)
        return clip_s if statistics.median(self._latest_took_s) > clip_s else 0.0

    def _request(self, pending: _Pending) -> RenderRequest:
        clip, order, joined = pending.clip, self._order, pending.plan.continuity
        latent: F16Array | None = None
        if joined.chained:
            latent = self._latent
            idle = order.avatar.idle_latents
            if pending.after_idle or latent is None:
                latent = None if idle is None else idle[self._walk.place(clip.first_frame - 1)]
        overlap = joined.overlap_frames
        return RenderRequest(
            avatar=order.avatar.name,
            audio=clip.window,
            frames=clip.frames + overlap,
            pose_position=clip.first_frame - overlap,
            seed=order.seed,
            init_latent=latent,
            steps=pending.plan.steps,
            stream=order.stream,
            deadline_s=self._due(clip.first_frame + clip.frames - 1),
            chained=joined.chained and not pending.after_idle,
            idle_position=self._walk.place(clip.first_frame - overlap),
        )

    def _due(self, frame: int) -> float:
        """When a frame is due."""
        return self._sink.playout_time(self._order.format.sample_of_frame(frame, MEDIA_RATE))

    def _note_steps(self, steps: int) -> None:
        """Records the steps of clips from now on, and counts a change."""
        before, self._steps = self._steps, steps
        if steps == before:
            return
        self.counters.steps_lowered += steps < before
        self.counters.steps_raised += steps > before
        self._log.info("clips get %d denoising steps, after %d", steps, before)
        self._on_steps(steps)

    def _give_up(self, index: int, reason: str) -> None:
        self._sink.lose(index)
        self._complaints.warning("clip %d is lost: %s", index, reason)
