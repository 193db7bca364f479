"""Clips reach the engine in order, chained where asked, and are given up where they cannot be on time."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from echo_rtc.clips import MEDIA_RATE, AudioClip, ClipFormat, F16Array, YuvFrames
from echo_rtc.engine.fleet import FleetOptions
from echo_rtc.engine.testcard import ScriptedFaults, TestCardEngine, level_of, read_card
from echo_rtc.errors import RenderError
from echo_rtc.rendering import Avatar, ClipPlan, Continuity, RenderRequest, RenderResult, TakeFrames
from echo_rtc.stream.dispatch import MAX_PENDING_CLIPS, ClipRenderer, Dispatcher, RenderOrder
from echo_rtc.stream.log import StreamLog
from tests.support.virtual import run

FORMAT = ClipFormat(fps=24, clip_frames=12, width=16, height=16)
CLIP_S = 0.5
LOOP_FRAMES = 10
CHAINED = Continuity(chained=True)
LOG = StreamLog(logging.getLogger("test"), "0123456789")


def frames(count: int) -> YuvFrames:
    chroma = np.zeros((count, 8, 8), np.uint8)
    return YuvFrames(np.zeros((count, 16, 16), np.uint8), chroma, chroma)


def latent(value: int) -> F16Array:
    return np.full((1, 1, 1), value, np.float16)


def avatar(latents: bool = True) -> Avatar:
    stack = np.stack([latent(1000 + n) for n in range(LOOP_FRAMES)]) if latents else None
    return Avatar("default", frames(LOOP_FRAMES), stack)


def clip(index: int) -> AudioClip:
    return AudioClip(index, index * 12, 12, np.zeros(40_000, np.float32), 8_000)


@dataclass
class Engine:
    """Takes ``seconds(clip)`` for each clip, all at a time; clips of ``failing`` raise; the final latent of a clip is
    its number."""

    seconds: Callable[[int], float] = lambda _: 0.1
    failing: frozenset[int] = frozenset()
    latents: bool = True
    requests: list[RenderRequest] = field(default_factory=list)

    continuity: Continuity = CHAINED

    def plan(self, stream: str) -> ClipPlan:
        return ClipPlan(self.continuity, 1)

    async def render(self, request: RenderRequest, on_frames: TakeFrames | None = None) -> RenderResult:
        number = (request.pose_position + request.frames - 1) // 12
        self.requests.append(request)
        await asyncio.sleep(self.seconds(number))
        if number in self.failing:
            raise RenderError(f"clip {number} failed")
        return RenderResult(frames(request.frames), latent(number) if self.latents else None)


@dataclass
class Sink:
    """Clip n is due ``delay_s`` after its sound ended, at ``begun + (n + 1) * CLIP_S``."""

    begun: float
    delay_s: float = 0.6
    done: list[tuple[int, float]] = field(default_factory=list)
    shown: dict[int, YuvFrames] = field(default_factory=dict)
    blended: dict[int, YuvFrames] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)
    runs: list[tuple[int, int, float]] = field(default_factory=list)

    def put(self, clip_index: int, frames: YuvFrames, render_s: float, now: float) -> None:
        runs = [self.shown[clip_index], frames] if clip_index in self.shown else [frames]
        self.runs.append((clip_index, len(frames), round(render_s, 3)))
        self.shown[clip_index] = YuvFrames.joined(runs)
        if len(self.shown[clip_index]) == 12:
            self.done.append((clip_index, render_s))

    def blend(self, clip_index: int, frames: YuvFrames) -> None:
        assert clip_index in self.shown
        self.blended[clip_index] = frames

    def lose(self, clip_index: int) -> None:
        self.lost.append(clip_index)

    def playout_time(self, media_sample: int) -> float:
        return self.begun + media_sample / MEDIA_RATE + CLIP_S + self.delay_s


Play = Callable[[Dispatcher], Coroutine[Any, Any, None]]


def play(
    engine: ClipRenderer,
    script: Play,
    shown: Avatar | None = None,
    delay_s: float = 0.6,
) -> tuple[Sink, Dispatcher, list[int]]:
    """Runs a dispatcher while ``script`` feeds it; also returns the steps that it told."""

    async def live() -> tuple[Sink, Dispatcher, list[int]]:
        if isinstance(engine, TestCardEngine):
            await engine.start(lambda line: None)
        loop = asyncio.get_running_loop()
        sink = Sink(loop.time(), delay_s)
        order = RenderOrder(
            shown or avatar(),
            FORMAT,
            seed=7,
            stream="voice",
        )
        told: list[int] = []
        dispatcher = Dispatcher(engine, order, sink, LOG, loop.time, told.append)
        task = asyncio.create_task(dispatcher.run())
        await script(dispatcher)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        if isinstance(engine, TestCardEngine):
            await engine.close()
        return sink, dispatcher, told

    return run(live())


def spoken(count: int, first: int = 0, tail_s: float = 2.0) -> Play:
    """``count`` clips of speech, each handed in when its sound is complete."""

    async def script(dispatcher: Dispatcher) -> None:
        for n in range(first, first + count):
            await asyncio.sleep(CLIP_S)
            dispatcher.submit(clip(n))
        await asyncio.sleep(tail_s)

    return script


@dataclass
class OneByOne(Engine):
    """Renders one clip at a time."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def render(self, request: RenderRequest, on_frames: TakeFrames | None = None) -> RenderResult:
        async with self.turn:
            return await super().render(request, on_frames)


def test_the_wait_for_a_slow_clip_counts_up_to_a_clip() -> None:
    """Each clip takes 0.2 s longer than it lasts; what it waits for the one before counts for the delay."""
    sink, _, _ = play(OneByOne(lambda _: 0.7), spoken(7), delay_s=4.0)
    assert [round(took_s, 6) for _, took_s in sink.done] == [0.7, 0.7, 0.7, 1.2, 1.2, 1.2, 1.2]


def test_the_wait_for_clips_in_real_time_does_not_count() -> None:
    """Two clips hang; those behind them wait, but take no longer than ever."""
    sink, _, _ = play(OneByOne(lambda number: 0.9 if number in (1, 2) else 0.4), spoken(6), delay_s=3.0)
    assert [round(took_s, 6) for _, took_s in sink.done] == [0.4, 0.9, 0.9, 0.4, 0.4, 0.4]


def test_latents_are_chained() -> None:
    engine = Engine(seconds=lambda _: 0.2)
    sink, dispatcher, _ = play(engine, spoken(5))
    assert [number for number, _ in sink.done] == [0, 1, 2, 3, 4]
    given = [float(r.init_latent[0, 0, 0]) for r in engine.requests if r.init_latent is not None]
    assert given == [1000 + (0 - 1) % LOOP_FRAMES, 0, 1, 2, 3]
    assert [r.chained for r in engine.requests] == [False, True, True, True, True]
    assert {(r.seed, r.stream, r.steps) for r in engine.requests} == {(7, "voice", 1)}
    assert [r.pose_position for r in engine.requests] == [0, 12, 24, 36, 48]
    assert dispatcher.counters.rendered == 5


def test_a_clip_is_handed_over_before_the_one_before_is_done() -> None:
    engine = Engine(seconds=lambda n: 0.7 if n == 1 else 0.2)
    play(engine, spoken(4))
    (third,) = (r for r in engine.requests if r.pose_position == 24)
    assert third.chained, "the engine puts the latent of clip 1 in its place"
    assert third.init_latent is not None
    assert float(third.init_latent[0, 0, 0]) == 0


def test_each_clip_has_the_deadline_of_its_last_frame() -> None:
    engine = Engine()
    sink, _, _ = play(engine, spoken(3))
    expected = [sink.playout_time(sample) for sample in (22_000, 46_000, 70_000)]
    assert [r.deadline_s for r in engine.requests] == pytest.approx(expected)


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
    assert not engine.requests[1].chained
    assert float(engine.requests[1].init_latent[0, 0, 0]) == 1000 + (24 - 1) % LOOP_FRAMES


def test_without_latents_or_chaining_each_clip_starts_fresh() -> None:
    engine = Engine(latents=False)
    play(engine, spoken(3), shown=avatar(latents=False))
    assert [r.init_latent for r in engine.requests] == [None] * 3
    engine = Engine(continuity=Continuity(chained=False))
    play(engine, spoken(3))
    assert [(r.init_latent, r.chained) for r in engine.requests] == [(None, False)] * 3


def test_frames_are_shown_as_they_come_on_one_worker_and_on_two() -> None:
    """A worker that decodes for 0.12 s hands over 4 frames every 0.04 s. On two, the first 6 frames of each clip lead
    over from the one before, for which that one's last frames wait."""
    sink, dispatcher, _ = play(TestCardEngine(FORMAT, ScriptedFaults(delay_s=0.4, decode_s=0.12)), spoken(2))
    times = [0.32, 0.36, 0.4]
    assert sink.runs == [(clip, 4, took) for clip in range(2) for took in times]
    assert dispatcher.counters.rendered == 2
    slow = TestCardEngine(FORMAT, ScriptedFaults(delay_s=0.6, decode_s=0.12), workers=2)
    sink, _, _ = play(slow, spoken(4), delay_s=1.5)
    assert [run[:2] for run in sink.runs if run[0] == 1] == [(1, 2), (1, 4), (1, 4), (1, 2)]
    assert sorted(sink.blended) == [0, 1, 2]


def test_frames_of_a_clip_that_is_forgotten_are_not_shown() -> None:
    engine = TestCardEngine(FORMAT, ScriptedFaults(delay_s=0.4, decode_s=0.3))

    async def script(dispatcher: Dispatcher) -> None:
        dispatcher.submit(clip(0))
        await asyncio.sleep(0.25)
        dispatcher.forget()
        await asyncio.sleep(1.0)

    sink, dispatcher, _ = play(engine, script)
    assert [run[:2] for run in sink.runs] == [(0, 4)]
    assert dispatcher.pending == 0


def test_overlapping_clips_have_one_shape_and_are_cross_faded() -> None:
    # Clip 1 takes so long that clip 2 is there first.
    joined = Continuity(chained=False, overlap_frames=6)
    engine = Engine(seconds=lambda n: 0.8 if n == 1 else 0.1, continuity=joined)
    sink, _, _ = play(engine, spoken(4), delay_s=1.0)
    assert {(r.frames, len(r.audio)) for r in engine.requests} == {(18, 40_000)}
    assert [r.pose_position for r in engine.requests] == [-6, 6, 18, 30]
    assert [number for number, _ in sink.done] == [0, 2, 1, 3]
    assert {index: len(frames) for index, frames in sink.blended.items()} == {0: 6, 1: 6, 2: 6}


def test_after_a_failed_clip_the_next_chains_from_the_last_frame() -> None:
    engine = Engine(failing=frozenset({1}))
    sink, dispatcher, _ = play(engine, spoken(3))
    assert sink.lost == [1]
    assert [number for number, _ in sink.done] == [0, 2]
    assert float(engine.requests[2].init_latent[0, 0, 0]) == 0  # type: ignore[index]
    assert dispatcher.counters.failed == 1
    assert dispatcher.counters.lost == 1
    assert dispatcher.times.clip_s.count == 2


def test_a_slow_engine_loses_clips_and_builds_no_backlog() -> None:
    sink, dispatcher, _ = play(TestCardEngine(FORMAT, ScriptedFaults(delay_s=0.8)), spoken(60))
    done = [number for number, _ in sink.done]
    assert dispatcher.counters.late == len(sink.lost)
    assert sorted(done + sink.lost) == list(range(60))
    # The engine is never idle for long, and what it begins is still of use: five clips take as long as eight last.
    assert len(done) >= 60 * 0.5 / 0.8 * 0.85
    gaps = np.diff(sorted(done))
    assert gaps.max() <= 3
    assert dispatcher.pending == 0


def test_after_a_stall_the_clips_are_on_time_again() -> None:
    sink, _, _ = play(TestCardEngine(FORMAT, ScriptedFaults(delay_s=0.1, stalls_s={3: 1.9})), spoken(20))
    done = dict(sink.done)
    assert set(range(9, 20)) <= set(done)
    assert 1 <= len(sink.lost) <= 4
    assert all(done[n] == pytest.approx(0.1) for n in range(9, 20))


def test_a_stream_gets_the_steps_that_its_worker_holds() -> None:
    """Six steps take 0.6 s, which is more than a clip lasts; five take as long as it."""
    script = ScriptedFaults(delay_s=0.6)
    _, stubborn, _ = play(TestCardEngine(FORMAT, script, options=FleetOptions(steps=6, min_steps=6)), spoken(120))
    _, yielding, _ = play(TestCardEngine(FORMAT, script, options=FleetOptions(steps=6, min_steps=3)), spoken(120))
    assert stubborn.counters.late > 10
    assert yielding.counters.late == 0
    assert yielding.steps == 5


def test_steps_fall_with_the_speed_and_come_back_with_it() -> None:
    engine = TestCardEngine(
        FORMAT,
        ScriptedFaults(delay_s=0.3, stalls_s=dict.fromkeys(range(4, 12), 0.5)),
        options=FleetOptions(steps=6, min_steps=3),
    )
    _, dispatcher, told = play(engine, spoken(80))
    assert min(told) < 6
    assert told[-1] == dispatcher.steps == 6
    counters = dispatcher.counters
    assert counters.steps_lowered == sum(now < before for before, now in itertools.pairwise([6, *told]))
    assert counters.steps_lowered + counters.steps_raised == len(told)


def test_the_number_of_clips_on_their_way_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    async def script(dispatcher: Dispatcher) -> None:
        for n in range(100, 100 + MAX_PENDING_CLIPS):
            dispatcher.submit(clip(n))
        await asyncio.sleep(0.01)
        for n in range(100 + MAX_PENDING_CLIPS, 100 + MAX_PENDING_CLIPS + 5):
            dispatcher.submit(clip(n))
        assert dispatcher.pending == MAX_PENDING_CLIPS
        await asyncio.sleep(5)

    sink, dispatcher, _ = play(Engine(), script)
    assert dispatcher.counters.overflowed == 5
    assert sink.lost == [100, 101, 102, 103, 104]
    assert len(sink.done) == MAX_PENDING_CLIPS
    assert len([record for record in caplog.records if "is lost" in record.message]) == 1


def test_a_worker_that_exits_costs_its_clip_only(caplog: pytest.LogCaptureFixture) -> None:
    engine = TestCardEngine(FORMAT, ScriptedFaults(delay_s=0.2, deaths=frozenset({3})), workers=2)
    sink, dispatcher, _ = play(engine, spoken(10))
    assert sink.lost == [3]
    assert dispatcher.counters.rendered == 9
    assert "testcard" in caplog.text
    assert "is replaced" in caplog.text


def test_two_workers_share_a_stream_without_ghost_images() -> None:
    """Each card tells its frame and its loudness. Whatever is shown, blended or not, reads as the card of its moment:
    frames that were blended with those of another moment would not read at all."""
    levels = np.random.default_rng(5).uniform(0.05, 0.9, 12 * 24)
    tones = np.concatenate([np.full(16_000 // 24 + (n % 3 < 2), level) for n, level in enumerate(levels)])
    sound = np.concatenate([np.zeros(32_000), tones, np.zeros(16_000)]).astype(np.float32)
    signs = np.resize(np.array([1, -1], np.float32), len(sound))
    wide = ClipFormat(fps=24, clip_frames=12, width=160, height=160)
    engine = TestCardEngine(wide, ScriptedFaults(delay_s=0.55, stalls_s={7: 0.9, 11: 0.6}), workers=2)

    async def script(dispatcher: Dispatcher) -> None:
        assert engine.continuity == Continuity(chained=False, overlap_frames=6)
        for n in range(20):
            await asyncio.sleep(CLIP_S)
            end = wide.sample_of_frame((n + 1) * 12, 16_000) + 32_000
            window = (sound * signs)[end - 40_000 : end]
            dispatcher.submit(AudioClip(n, n * 12, 12, window, 8_000))
        await asyncio.sleep(3)

    sink, _, _ = play(engine, script, delay_s=2.5)
    assert not sink.lost
    assert [number for number, _ in sink.done] != sorted(number for number, _ in sink.done), "out of order"
    assert sorted(sink.blended) == list(range(19))
    for n, own in sink.shown.items():
        seam = sink.blended.get(n)
        for j, luma in enumerate(own.y):
            if seam is not None and j >= 6:
                luma = seam.y[j - 6]
            card = read_card(luma)
            assert card.frame == n * 12 + j
            begin, end = (wide.sample_of_frame(n * 12 + j + k, 16_000) + 32_000 for k in (0, 1))
            rms = float(np.sqrt(np.mean(np.square(sound[begin:end]))))
            assert card.level == pytest.approx(level_of(rms), abs=0.005)


def test_a_fault_of_the_engine_itself_is_not_hidden() -> None:
    class Broken:
        def plan(self, stream: str) -> ClipPlan:
            return ClipPlan(CHAINED, 1)

        async def render(self, request: RenderRequest, on_frames: TakeFrames | None = None) -> RenderResult:
            raise ZeroDivisionError

    async def live() -> None:
        loop = asyncio.get_running_loop()
        order = RenderOrder(avatar(), FORMAT, seed=1)
        dispatcher = Dispatcher(Broken(), order, Sink(loop.time()), LOG, loop.time)
        dispatcher.submit(clip(0))
        with pytest.raises(ExceptionGroup):
            await dispatcher.run()

    run(live())
