"""Renders a file's voice to a movie with the parts that render live: the same resampler, clipper and gate, the same
engine. Only time is missing: nothing is ever late, and a clip that fails is tried again instead of held.

With several workers the voice is cut into parts that are rendered side by side: at its pauses, where each clip starts
from the idle loop anyway, and in long speech every few clips. Such a part begins one clip early, and the last frames
of that clip are cross-faded with those of the part before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from echo_rtc.clips import MEDIA_RATE, AudioClip, ClipFormat, F16Array, S16Array, YuvFrames
from echo_rtc.codec.resampling import SpeechResampler, mono_mix
from echo_rtc.errors import RenderError
from echo_rtc.media.blend import cross_fade
from echo_rtc.media.clipper import Clipper
from echo_rtc.media.gate import SpeechGate
from echo_rtc.media.idle_walk import IdleWalk
from echo_rtc.offline.files import MovieFile, MovieMarking, SoundFile
from echo_rtc.rendering import Avatar, Engine, RenderRequest, RenderResult

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a clip is tried before the rendering is given up."""

PART_CLIPS = 16
"""Most clips of long speech that are rendered one after another; the first of a further part is the last of the one
before once more."""

AHEAD_CLIPS = 7
"""Clips on order beyond the one that is finished next, where there is one part at a time."""

READY_POLL_S = 0.1
READY_TIMEOUT_S = 600.0
"""How long a replacement of the engine's last worker may take to come up (s), and how often it is asked for."""

Tick = Callable[[int], object]
"""Called with the number of frames that were just finished."""


@dataclass(frozen=True, slots=True)
class OfflineOptions:
    """How a voice is rendered. ``avatar``: its name. ``vad_threshold``: RMS 0..1 below which a clip shows the
    idle loop. ``chained``: each clip begins where the one before ended. ``seed``: of the initial noise.
    ``fade_frames``: how many frames lead from one part of long speech to the next. ``marking``: how movies say that
    they are synthetic."""

    avatar: str
    vad_threshold: float = 0.015
    chained: bool = True
    seed: int = 0
    fade_frames: int = 6
    marking: MovieMarking = field(default_factory=MovieMarking)


async def render_voice(
    engine: Engine,
    source: SoundFile,
    movie: MovieFile,
    options: OfflineOptions,
    tick: Tick,
    parts: Callable[[], int] = lambda: 1,
    part_clips: int = PART_CLIPS,
) -> int:
    """Renders all sound of a file into a movie with a started engine; returns the number of frames.

    Frame n shows the sound from n / fps on. The last clip is filled up with silence for the engine, and the movie ends
    with the frame in which the sound does. ``parts()`` is how many parts may be rendered in parallel, asked again as
    the work goes on; ``part_clips`` how many clips each has at most. Raises RenderError if a clip fails again and
    again, InputError as the files do.
    """
    sound = _Sound(source, engine.format)
    orders = _PendingClips(engine, options, parts, part_clips)
    loop = asyncio.get_running_loop()
    ahead: deque[_PendingClip] = deque()

    async def finish_oldest() -> int:
        ordered = ahead.popleft()
        frames = await ordered.own()
        if ahead and (head := await ahead[0].head()) is not None:
            frames = _ending_with(frames, head)
        clip = ordered.clip
        frames = frames[: sound.frames - clip.first_frame]
        own = sound.take(clip.first_frame + clip.frames)
        await loop.run_in_executor(encoder, movie.add, frames, own)
        tick(len(frames))
        return len(frames)

    # Leaving the pool waits for the frames that are being encoded: nothing is written after the movie is closed.
    with ThreadPoolExecutor(1, "echo-encode") as encoder:
        try:
            done = 0
            for clip in sound.clips():
                ahead.append(orders.add(clip))
                while len(ahead) > AHEAD_CLIPS + (parts() - 1) * part_clips:
                    done += await finish_oldest()
            while ahead:
                done += await finish_oldest()
            return done
        finally:
            await orders.close()


def even_parts(clips: int, workers: int) -> int:
    """How many clips each part of a voice of ``clips`` clips should have so that ``workers`` workers are done with them
    at the same time; at most PART_CLIPS, and 2 at least, as one of them is the lead."""
    count = workers * -(-clips // (workers * (PART_CLIPS - 1)))
    return max(2, -(-clips // max(1, count)) + 1)


class _Sound:
    """A file's sound on its two ways: cut into clips for the engine, and as it is for the movie."""

    def __init__(self, source: SoundFile, clip_format: ClipFormat) -> None:
        self._source = source
        self._format = clip_format
        self._waiting: deque[S16Array] = deque()
        self._taken = 0
        self._read = 0

    @property
    def frames(self) -> int:
        """How many frames the sound read so far fills, the last one perhaps in part."""
        return -(-self._read * self._format.fps // MEDIA_RATE)

    def clips(self) -> Iterator[AudioClip]:
        """All clips. Those yielded before the last are full of sound; the last is filled up with silence."""
        resampler, clipper = SpeechResampler(self._format.sample_rate), Clipper(self._format)
        frames = 0
        for block in self._source.blocks():
            self._waiting.append(block)
            self._read += len(block)
            for clip in clipper.push(resampler.push(mono_mix(block))):
                frames += clip.frames
                yield clip
        while frames < self.frames:
            end = self._format.sample_of_frame(frames + self._format.clip_frames, MEDIA_RATE)
            # One more period of the model's rate, in case both roundings went down.
            missing = end - self._read + MEDIA_RATE // self._format.sample_rate + 1
            for clip in clipper.push(resampler.push(np.zeros(missing, np.int16))):
                frames += clip.frames
                yield clip

    def take(self, before_frame: int) -> S16Array:
        """The sound (samples, channels) that was not taken yet, up to where frame ``before_frame`` begins."""
        count = self._format.sample_of_frame(before_frame, MEDIA_RATE) - self._taken
        parts: list[S16Array] = [np.zeros((0, self._source.channels), np.int16)]
        while self._waiting and count > 0:
            block = self._waiting.popleft()
            if len(block) > count:
                self._waiting.appendleft(block[count:])
                block = block[:count]
            parts.append(block)
            count -= len(block)
        taken = np.concatenate(parts)
        self._taken += len(taken)
        return taken


@dataclass(frozen=True, slots=True)
class _PendingClip:
    """A clip in flight. ``idle``: its frames if it is silent, else ``task`` brings them, after ``shared`` frames that
    belong to the clip before; ``lead`` brings that whole clip once more."""

    clip: AudioClip
    idle: YuvFrames | None = None
    task: asyncio.Task[YuvFrames] | None = None
    shared: int = 0
    lead: asyncio.Task[YuvFrames] | None = None
    fade_frames: int = 0

    async def own(self) -> YuvFrames:
        """The clip's own frames."""
        if self.task is None:
            assert self.idle is not None
            return self.idle
        return (await self.task)[self.shared :]

    async def head(self) -> YuvFrames | None:
        """What it shows of the end of the clip before, to be cross-faded with that."""
        if self.lead is not None and self.fade_frames:
            return (await self.lead)[-self.fade_frames :]
        if self.task is not None and self.shared:
            return (await self.task)[: self.shared]
        return None


def _ending_with(frames: YuvFrames, head: YuvFrames) -> YuvFrames:
    """``frames``, whose end leads over to ``head``, which shows the same moments."""
    kept = len(frames) - len(head)
    end = cross_fade(frames[kept:], head)
    planes = (np.concatenate([getattr(frames, plane)[:kept], getattr(end, plane)]) for plane in ("y", "u", "v"))
    return YuvFrames(*planes)


class _Part:
    """Clips that are rendered one after another. ``latent`` is the last one's, as far as it is there."""

    def __init__(self, number: int) -> None:
        self.stream = f"part {number}"
        self.clips = 0
        self.latent: F16Array | None = None


class _PendingClips:
    """Clips on order: through the gate, then from the engine or out of the idle loop."""

    def __init__(self, engine: Engine, options: OfflineOptions, parts: Callable[[], int], part_clips: int) -> None:
        self._engine = engine
        self._options = options
        self._parts = parts
        self._part_clips = part_clips
        self._avatar: Avatar = engine.avatars[options.avatar]
        self._walk = IdleWalk(len(self._avatar.idle), engine.format.clip_frames, self._avatar.leaps, options.seed)
        self._gate = SpeechGate(options.vad_threshold, engine.format.sample_rate)
        self._part: _Part | None = None
        self._before: AudioClip | None = None
        self._made = 0
        self._tasks: set[asyncio.Task[YuvFrames]] = set()

    def add(self, clip: AudioClip) -> _PendingClip:
        """Orders the next clip."""
        if not self._gate.admit(clip):
            self._part = self._before = None
            idle = [self._walk.picture(self._avatar.idle, clip.first_frame + n) for n in range(clip.frames)]
            planes = (np.concatenate([getattr(frame, plane) for frame in idle]) for plane in ("y", "u", "v"))
            return _PendingClip(clip, YuvFrames(*planes))
        before, self._before = self._before, clip
        if not self._options.chained:
            shared = self._engine.continuity.overlap_frames
            part = self._new_part()
            return _PendingClip(clip, task=self._order(part, clip, shared), shared=shared)
        lead: asyncio.Task[YuvFrames] | None = None
        if self._part is None:
            self._part = self._new_part()
        elif self._part.clips >= self._part_clips and self._parts() > 1 and before is not None:
            self._part = self._new_part()
            lead = self._order(self._part, before)
        task = self._order(self._part, clip)
        return _PendingClip(clip, task=task, lead=lead, fade_frames=self._options.fade_frames)

    async def close(self) -> None:
        """Takes back all that is still on order."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _new_part(self) -> _Part:
        self._made += 1
        return _Part(self._made)

    def _order(self, part: _Part, clip: AudioClip, shared: int = 0) -> asyncio.Task[YuvFrames]:
        first = part.clips == 0
        part.clips += 1
        task = asyncio.create_task(self._render(part, clip, first, shared), name=f"clip {clip.index} of {part.stream}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _render(self, part: _Part, clip: AudioClip, first: bool, shared: int) -> YuvFrames:
        """The frames of a clip, with ``shared`` frames before it. Raises RenderError after all attempts."""
        options = self._options
        request = RenderRequest(
            avatar=options.avatar,
            audio=clip.window,
            frames=clip.frames + shared,
            pose_position=clip.first_frame - shared,
            seed=options.seed,
            stream=part.stream,
            chained=options.chained and not first,
            idle_position=self._walk.place(clip.first_frame - shared),
        )
        result = await self._tried(request, part, clip)
        part.latent = result.final_latent
        return result.frames

    async def _tried(self, request: RenderRequest, part: _Part, clip: AudioClip) -> RenderResult:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                # The engine puts the latent of the clip before in its place, if that is still on its way.
                return await self._engine.render(replace(request, init_latent=self._latent(part, clip)))
            except RenderError as error:
                logger.info("attempt %d of %d at frame %d failed: %s", attempt, ATTEMPTS, request.pose_position, error)
                if attempt == ATTEMPTS:
                    raise
                # Whatever comes after it is on its way already, so it begins where the last one that is there ended.
                request = replace(request, chained=False)
                await self._until_ready()
        raise AssertionError("there is at least one attempt")

    def _latent(self, part: _Part, clip: AudioClip) -> F16Array | None:
        if not self._options.chained:
            return None
        idle = self._avatar.idle_latents
        if part.latent is not None:
            return part.latent
        return None if idle is None else idle[self._walk.place(clip.first_frame - 1)]

    async def _until_ready(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_TIMEOUT_S):
                while not self._engine.ready:  # noqa: ASYNC110 (engines tell their state, not its changes)
                    await asyncio.sleep(READY_POLL_S)
