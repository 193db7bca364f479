"""Clips reach the engine in order, chained where asked, and are given up where they cannot be on time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from echo_rtc.clips import MEDIA_RATE, AudioClip, ClipFormat, F16Array, YuvFrames
from echo_rtc.engine.protocol import Avatar, RenderRequest, RenderResult
from echo_rtc.errors import RenderError
from echo_rtc.rtc.dispatch import MAX_PENDING_CLIPS, MAX_UNCHAINED_CLIPS, Dispatcher, RenderOrder
from echo_rtc.rtc.log import StreamLog
from tests.rtc.virtual import run

FORMAT = ClipFormat(fps=24, clip_frames=12, width=16, height=16)
CLIP_S = 0.5
LOOP_FRAMES = 10


def frames(count: int) -> YuvFrames:
    chroma = np.zeros((count, 8, 8), np.uint8)
    return YuvFrames(np.zeros((count, 16, 16), np.uint8), chroma, chroma)


def latent(value: int) -> F16Array:
    return np.full((1, 1, 1), value, np.float16)


def avatar(latents: bool = True) -> Avatar:
    stack = np.stack([latent(1000 + n) for n in range(LOOP_FRAMES)]) if latents else None
    return Avatar("someone", frames(LOOP_FRAMES), stack)


def clip(index: int) -> AudioClip:
    return AudioClip(index, index * 12, 12, np.zeros(40_000, np.float32), 8_000)


@dataclass
class Engine:
    """Takes ``seconds(clip)`` for each clip; clips of ``failing`` raise; the final latent of a clip is its number."""

    seconds: Callable[[int], float] = lambda _: 0.1
    failing: frozenset[int] = frozenset()
    latents: bool = True
    requests: list[RenderRequest] = field(default_factory=list)
    running: int = 0
    most_running: int = 0

    async def render(self, request: RenderRequest) -> RenderResult:
        number = request.pose_position // 12
        self.requests.append(request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(self.seconds(number))
        finally:
            self.running -= 1
        if number in self.failing:
            raise RenderError(f"clip {number} failed")
        return RenderResult(frames(12), latent(number) if self.latents else None)


@dataclass
class Sink:
    """Clip n is due ``delay_s`` after its sound ended, at ``begun + (n + 1) * CLIP_S``."""

    begun: float
    delay_s: float = 0.6
    done: list[tuple[int, float]] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)

    def put(self, clip_index: int, frames: YuvFrames, render_s: float, now: float) -> None:
        self.done.append((clip_index, render_s))

    def lose(self, clip_index: int) -> None:
        self.lost.append(clip_index)

    def leaves(self, media_sample: int) -> float:
        return self.begun + media_sample / MEDIA_RATE + self.delay_s


Play = Callable[[Dispatcher], Coroutine[Any, Any, None]]


def play(engine: Engine, script: Play, chained: bool = True, shown: Avatar | None = None) -> tuple[Sink, Dispatcher]:
    """Runs a dispatcher while ``script`` feeds it."""

    async def live() -> tuple[Sink, Dispatcher]:
        loop = asyncio.get_running_loop()
        sink = Sink(loop.time())
        order = RenderOrder(shown or avatar(), FORMAT, seed=7, chained=chained, expected_s=0.1)
        log = StreamLog(logging.getLogger("test"), "0123456789")
        dispatcher = Dispatcher(engine, order, sink, log, loop.time)
        task = asyncio.create_task(dispatcher.run())
        await script(dispatcher)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return sink, dispatcher

    return run(live())


def spoken(count: int, first: int = 0, tail_s: float = 2.0) -> Play:
    """``count`` clips of speech, each handed in when its sound is complete."""

    async def script(dispatcher: Dispatcher) -> None:
        for n in range(first, first + count):
            await asyncio.sleep(CLIP_S)
            dispatcher.submit(clip(n))
        await asyncio.sleep(tail_s)

    return script


def test_latents_are_chained_one_clip_at_a_time() -> None:
    engine = Engine(seconds=lambda n: 0.55 if n == 1 else 0.2)
    sink, dispatcher = play(engine, spoken(5))
    assert [number for number, _ in sink.done] == [0, 1, 2, 3, 4]
    assert engine.most_running == 1
    given = [float(r.init_latent[0, 0, 0]) for r in engine.requests if r.init_latent is not None]
    assert given == [1000 + (0 - 1) % LOOP_FRAMES, 0, 1, 2, 3]
    assert {r.seed for r in engine.requests} == {7}
    assert [r.pose_position for r in engine.requests] == [0, 12, 24, 36, 48]
    assert dispatcher.counters.rendered == 5


def test_after_silence_the_idle_loop_gives_the_latent() -> None:
    async def script(dispatcher: Dispatcher) -> None:
        dispatcher.submit(clip(0))
        await asyncio.sleep(CLIP_S)
        dispatcher.idle()
        await asyncio.sleep(CLIP_S)
        dispatcher.submit(clip(2))
        await asyncio.sleep(CLIP_S)

    engine = Engine()
    play(engine, script)
    assert engine.requests[1].init_latent is not None
    assert float(engine.requests[1].init_latent[0, 0, 0]) == 1000 + (24 - 1) % LOOP_FRAMES


def test_without_latents_or_chaining_each_clip_starts_fresh() -> None:
    engine = Engine(latents=False)
    play(engine, spoken(3), shown=avatar(latents=False))
    assert [r.init_latent for r in engine.requests] == [None] * 3
    engine = Engine()
    play(engine, spoken(3), chained=False)
    assert [r.init_latent for r in engine.requests] == [None] * 3


def test_unchained_clips_overlap_up_to_a_bound() -> None:
    async def script(dispatcher: Dispatcher) -> None:
        for n in range(6):
            dispatcher.submit(clip(n))
        await asyncio.sleep(1)

    engine = Engine()
    sink, _ = play(engine, script, chained=False)
    assert engine.most_running == MAX_UNCHAINED_CLIPS
    assert len(sink.done) == 6


def test_a_failed_clip_is_lost_and_the_next_one_goes_on_from_the_last_picture() -> None:
    engine = Engine(failing=frozenset({1}))
    sink, dispatcher = play(engine, spoken(3))
    assert sink.lost == [1]
    assert [number for number, _ in sink.done] == [0, 2]
    assert float(engine.requests[2].init_latent[0, 0, 0]) == 0  # type: ignore[index]
    assert dispatcher.counters.failed == 1
    assert dispatcher.counters.lost == 1


def test_a_slow_engine_loses_clips_and_never_falls_further_behind() -> None:
    engine = Engine(seconds=lambda _: 0.8)
    sink, dispatcher = play(engine, spoken(60))
    done = [number for number, _ in sink.done]
    assert dispatcher.counters.late == len(sink.lost)
    assert sorted(done + sink.lost) == list(range(60))
    # The engine is never idle for long, and what it begins is still of use: five clips take as long as eight last.
    assert len(done) >= 60 * 0.5 / 0.8 * 0.85
    gaps = np.diff(sorted(done))
    assert gaps.max() <= 3
    assert dispatcher.pending == 0


def test_after_a_stall_the_clips_are_on_time_again() -> None:
    engine = Engine(seconds=lambda n: 2.0 if n == 3 else 0.1)
    sink, _ = play(engine, spoken(20))
    done = dict(sink.done)
    assert set(range(9, 20)) <= set(done)
    assert 1 <= len(sink.lost) <= 4
    assert all(done[n] == pytest.approx(0.1) for n in range(9, 20))


def test_the_queue_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    async def script(dispatcher: Dispatcher) -> None:
        for n in range(100, 100 + MAX_PENDING_CLIPS + 5):
            dispatcher.submit(clip(n))
        assert dispatcher.pending == MAX_PENDING_CLIPS
        await asyncio.sleep(5)

    sink, dispatcher = play(Engine(), script)
    assert dispatcher.counters.overflowed == 5
    assert sink.lost == [100, 101, 102, 103, 104]
    assert len([record for record in caplog.records if "is lost" in record.message]) == 1


def test_a_fault_of_the_engine_itself_is_not_hidden() -> None:
    class Broken:
        async def render(self, request: RenderRequest) -> RenderResult:
            raise ZeroDivisionError

    async def live() -> None:
        loop = asyncio.get_running_loop()
        order = RenderOrder(avatar(), FORMAT, seed=1, chained=True, expected_s=0.1)
        log = StreamLog(logging.getLogger("test"), "0123456789")
        dispatcher = Dispatcher(Broken(), order, Sink(loop.time()), log, loop.time)
        dispatcher.submit(clip(0))
        with pytest.raises(ExceptionGroup):
            await dispatcher.run()

    run(live())
