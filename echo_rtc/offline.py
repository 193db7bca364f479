"""Renders a file's voice to a movie with the code that renders live: the same resampler, clipper, gate and dispatcher,
the same engine. Only time is missing: nothing is ever late, and a clip that fails is tried again instead of held.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from echo_rtc.clips import MEDIA_RATE, AudioClip, ClipFormat, S16Array, YuvFrames
from echo_rtc.engine.protocol import Continuity, Engine, RenderRequest, RenderResult
from echo_rtc.errors import RenderError
from echo_rtc.files import MovieFile, SoundFile
from echo_rtc.media.clipper import Clipper
from echo_rtc.media.gate import SpeechGate
from echo_rtc.rtc.dispatch import MAX_PENDING_CLIPS, Dispatcher, RenderOrder
from echo_rtc.rtc.log import StreamLog
from echo_rtc.rtc.microphone import SpeechResampler

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a clip is tried before the rendering is given up."""

AHEAD_CLIPS = MAX_PENDING_CLIPS - 1
"""Clips on order beyond the one that is finished next; the dispatcher would give up the oldest of more."""

READY_POLL_S = 0.1
READY_TIMEOUT_S = 600.0
"""How long a replacement of the engine's last worker may take to come up (s), and how often it is asked for."""

Tick = Callable[[int], object]
"""Called with the number of frames that were just finished."""


@dataclass(frozen=True, slots=True)
class OfflineOptions:
    """How a voice is rendered. ``avatar``: whose face speaks. ``vad_threshold``: RMS 0..1 below which a clip shows the
    idle loop. ``chained``: each clip begins where the one before ended. ``seed``: of the initial noise."""

    avatar: str
    vad_threshold: float = 0.015
    chained: bool = True
    seed: int = 0


async def render_voice(engine: Engine, source: SoundFile, movie: MovieFile, options: OfflineOptions, tick: Tick) -> int:
    """Renders all sound of a file into a movie with a started engine; returns the number of frames.

    Frame n shows the sound from n / fps on. The last clip is filled up with silence for the engine, and the movie ends
    with the frame in which the sound does. Raises RenderError if a clip fails again and again, InputError as the files
    do.
    """
    sound = _Sound(source, engine.format)
    orders = _Orders(engine, options)
    dispatching = asyncio.create_task(orders.dispatcher.run(), name="dispatch clips")
    loop = asyncio.get_running_loop()
    ahead: deque[tuple[AudioClip, asyncio.Future[YuvFrames | None]]] = deque()

    async def finish_oldest() -> int:
        clip, future = ahead.popleft()
        either: set[asyncio.Future[Any]] = {future, dispatching}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not future.done():
            dispatching.result()  # it never ends but by an error
        frames = future.result()
        if frames is None:
            raise orders.error or RenderError(f"clip {clip.index} could not be rendered")
        frames = frames[: sound.frames - clip.first_frame]
        own = sound.take(clip.first_frame + clip.frames)
        await loop.run_in_executor(encoder, movie.add, frames, own)
        tick(len(frames))
        return len(frames)

    # Leaving the pool waits for the frames that are being encoded, so that nobody writes when the movie is closed.
    with ThreadPoolExecutor(1, "echo-encode") as encoder:
        try:
            done = 0
            for clip in sound.clips():
                ahead.append((clip, orders.order(clip)))
                if len(ahead) > AHEAD_CLIPS:
                    done += await finish_oldest()
            while ahead:
                done += await finish_oldest()
            return done
        finally:
            dispatching.cancel()
            await asyncio.wait({dispatching})


class _Sound:
    """A file's sound on its two ways: cut into clips for the engine, and as it is for the movie."""

    def __init__(self, source: SoundFile, format: ClipFormat) -> None:
        self._source = source
        self._format = format
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
            for clip in clipper.push(resampler.push(_mono(block))):
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


def _mono(block: S16Array) -> S16Array:
    """(samples, channels) to (samples,): the mean, as the live microphone takes it."""
    mean: S16Array = (block.sum(axis=1, dtype=np.int32) // block.shape[1]).astype(np.int16)
    return mean


class _Orders:
    """Clips on order: through the gate, then from the dispatcher or out of the idle loop."""

    def __init__(self, engine: Engine, options: OfflineOptions) -> None:
        self._engine = engine
        self._idle = engine.avatars[options.avatar].idle
        self._gate = SpeechGate(options.vad_threshold, engine.format.sample_rate)
        self._futures: dict[int, asyncio.Future[YuvFrames | None]] = {}
        self.error: RenderError | None = None
        order = RenderOrder(
            avatar=engine.avatars[options.avatar],
            format=engine.format,
            seed=options.seed,
            continuity=Continuity(options.chained),
            expected_s=0.0,
        )
        loop = asyncio.get_running_loop()
        self.dispatcher = Dispatcher(self, order, self, StreamLog(logger, "offline"), loop.time)

    def order(self, clip: AudioClip) -> asyncio.Future[YuvFrames | None]:
        """The clip's frames to be; None if it is lost, for the reason in ``error``."""
        future: asyncio.Future[YuvFrames | None] = asyncio.get_running_loop().create_future()
        if self._gate.admit(clip):
            self._futures[clip.index] = future
            self.dispatcher.submit(clip)
        else:
            self.dispatcher.idle()
            numbers = np.arange(clip.first_frame, clip.first_frame + clip.frames) % len(self._idle)
            future.set_result(YuvFrames(self._idle.y[numbers], self._idle.u[numbers], self._idle.v[numbers]))
        return future

    async def render(self, request: RenderRequest) -> RenderResult:
        """For the dispatcher: an engine that does not give up at once. Raises RenderError after all attempts."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._engine.render(request)
            except RenderError as error:
                self.error = error
                logger.info("attempt %d of %d at frame %d failed: %s", attempt, ATTEMPTS, request.pose_position, error)
                await self._until_ready()
        assert self.error is not None
        raise self.error

    async def _until_ready(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_TIMEOUT_S):
                while not self._engine.ready:  # noqa: ASYNC110 (engines tell their state, not its changes)
                    await asyncio.sleep(READY_POLL_S)

    def put(self, clip_index: int, frames: YuvFrames, render_s: float, now: float) -> None:
        self._futures.pop(clip_index).set_result(frames)

    def blend(self, clip_index: int, frames: YuvFrames) -> None:
        raise AssertionError("clips that do not overlap have no seams")

    def lose(self, clip_index: int) -> None:
        self._futures.pop(clip_index).set_result(None)

    def leaves(self, media_sample: int) -> float:
        """Nothing leaves before it is there."""
        return math.inf
