"""``python -m echo_rtc.bench engine [settings]``: what the engine makes of its workers, and what it costs.

With the workers of the local engine, or of Ray (``--engine ray``): throughput with one worker and with several, each
kept busy by a stream of its own, and one stream spread over all; the share of the time in which a busy worker does not
render, with and without the next clip prepared; what handing a clip over costs; how long a killed worker is missed; and
how long a voice takes to move the picture, in real calls at workers that draw test cards in the time which the model
took.

On the CPU every worker gets the same share of the cores, however many there are, so that the figures compare.
``--random-weights`` takes networks of the published sizes with random weights instead of files. ``--cards SECONDS``
takes workers that draw test cards and wait, as if a GPU took so long for a clip: what remains is the engine's own part.
``--hold`` is the long run: two calls at test cards and one at the model.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import math
import os
import signal
import statistics
import sys
import tempfile
import wave
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil

from echo_rtc.bench.stream import babble
from echo_rtc.bench.support.calls import Caller, Seen
from echo_rtc.bench.support.report import report
from echo_rtc.clips import MEDIA_RATE, ClipFormat, F32Array, S16Array
from echo_rtc.engine.card import CardError, read_card
from echo_rtc.engine.devices import usable_cores
from echo_rtc.engine.factory import create_engine, fleet_options, worker_specs
from echo_rtc.engine.fleet import FleetEngine, FleetOptions
from echo_rtc.engine.local import LocalEngine
from echo_rtc.engine.ray_environment import RayOptions, prepare_environment
from echo_rtc.engine.testcard import CardLoader, TestCardEngine
from echo_rtc.engine.worker import ModelLoader, ModelSource, Renderer, WorkerSpec
from echo_rtc.errors import RenderError, SettingsError
from echo_rtc.offline.batch import Job, render_all
from echo_rtc.offline.render import OfflineOptions
from echo_rtc.rendering import Engine, Progress, RenderRequest, RenderResult
from echo_rtc.rtc.manager import ManagerOptions, StreamManager
from echo_rtc.settings import Settings, SettingsParser, settings_from
from echo_rtc.stream.stream import StreamOptions

if TYPE_CHECKING:
    from echo_rtc.model.generator import ClipGenerator, GeneratorSettings

Connect = Callable[[Caller], Awaitable[Callable[[], dict[str, object]]]]
"""Connects a caller; returns what reads its stream's counters."""

AHEAD = 3
"""Clips that each busy stream has on order: one renders, one is prepared, one waits."""

ONSETS = 5
SILENCE_S, SPEECH_S = 2.5, 1.0
"""The voice whose way to the picture is measured speaks so many times."""

RECOVERY_S = 1800.0
SETTLE_S = 15.0
"""Of a long run, before its drops and its memory count."""


@dataclass(frozen=True, slots=True)
class RandomLoader(ModelLoader):
    """As its base, but with networks of the published sizes and random weights."""

    @classmethod
    def of(cls, loader: ModelLoader) -> RandomLoader:
        """The same otherwise."""
        return cls(**{field.name: getattr(loader, field.name) for field in dataclasses.fields(loader)})

    def _source(self) -> ModelSource:
        from echo_rtc.model.config import PUBLISHED

        def load(settings: GeneratorSettings, progress: Progress) -> ClipGenerator:
            import torch

            from echo_rtc.bench.generation import random_networks
            from echo_rtc.model.generator import DTYPES, ClipGenerator

            progress("making random weights")
            device, tiny = torch.device(settings.device), settings.vae == "tiny"
            networks, audio = random_networks(device, DTYPES[settings.dtype], tiny=tiny)
            return ClipGenerator(networks, audio, settings)

        return ModelSource(load, [Path(__file__).with_name("generation.py")], PUBLISHED)


@dataclass(frozen=True, slots=True)
class SharingLoader:
    """A loader whose torch takes ``threads`` threads, whatever the machine has."""

    loader: ModelLoader
    threads: int

    def __call__(self, progress: Progress) -> Renderer:
        renderer = self.loader(progress)
        import torch

        torch.set_num_threads(self.threads)
        return renderer


@dataclass(frozen=True, slots=True)
class Throughput:
    """Frames a second of all workers together, the share of the time in which they did not render, and the milliseconds
    that handing over a clip took (median)."""

    frames_per_second: float
    idle_share: float
    handover_ms: float


def bench_specs(settings: Settings, most: int, random_weights: bool = False, cards_s: float = 0.0) -> list[WorkerSpec]:
    """``most`` workers: one on each CUDA device, or sharing the CPU. Raises SettingsError if there are too few."""
    if cards_s:
        cards = CardLoader(settings.clip_format, cards_s, settings.steps)
        return [WorkerSpec(f"card {number + 1}", cards) for number in range(most)]
    found = worker_specs(settings)
    if found[0].name == "cpu":
        found = [replace(found[0], name=f"cpu {number + 1}") for number in range(most)]
    if len(found) < most:
        raise SettingsError(
            f"--workers is {most}, but there are {len(found)} devices ({settings.devices}); ask for less"
        )
    specs = []
    for spec in found[:most]:
        loader = spec.loader
        assert isinstance(loader, ModelLoader)
        if random_weights:
            loader = RandomLoader.of(loader)
        threads = max(1, math.floor(usable_cores() / most))
        specs.append(replace(spec, loader=SharingLoader(loader, threads) if loader.device == "cpu" else loader))
    return specs


def over(settings: Settings, specs: Sequence[WorkerSpec], options: FleetOptions) -> FleetEngine:
    """An engine of the settings' kind with these workers."""
    if settings.engine == "local":
        return LocalEngine(settings.clip_format, lambda: specs, options)

    ray_options = RayOptions(settings.ray_address or "", settings.devices, len(specs))
    prepare_environment(ray_options.address)
    from echo_rtc.engine.ray_engine import RayEngine

    def spec(name: str, device: str, cores: float | None) -> WorkerSpec:
        given = specs[int(name.removeprefix("ray-"))]
        loader = given.loader
        return replace(
            given, name=name, loader=replace(loader, device=device) if isinstance(loader, ModelLoader) else loader
        )

    return RayEngine(settings.clip_format, spec, ray_options, options)


@asynccontextmanager
async def running(engine: FleetEngine) -> AsyncIterator[FleetEngine]:
    await engine.start(lambda line: _say(line))
    try:
        yield engine
    finally:
        await engine.close()


def window(clip_format: ClipFormat) -> F32Array:
    """A window of sound (history and clip) as loud as speech; what is said costs no more or less."""
    samples = clip_format.sample_of_frame(clip_format.history_frames + clip_format.clip_frames, clip_format.sample_rate)
    sound: F32Array = np.random.default_rng(0).normal(0.0, 0.1, samples).astype(np.float32)
    return sound


async def throughput(engine: FleetEngine, streams: int, clips: int, ahead: int = AHEAD) -> Throughput:
    """Keeps ``streams`` streams of ``clips`` clips each going as fast as the workers can, and measures them after the
    first of each."""
    clip_format, joined = engine.format, engine.continuity
    loop = asyncio.get_running_loop()
    handovers: list[float] = []
    warm = asyncio.Event()
    begun = asyncio.Barrier(streams)
    sound = window(clip_format)

    async def clip(stream: int, number: int) -> RenderResult:
        first = number * clip_format.clip_frames - joined.overlap_frames
        frames = clip_format.clip_frames + joined.overlap_frames
        name = next(iter(engine.avatars))
        request = RenderRequest(name, sound, frames, first, stream, stream=f"bench {stream}")
        return await engine.render(replace(request, chained=joined.chained and number > 0))

    async def stream(number: int) -> None:
        await clip(number, 0)
        await begun.wait()
        warm.set()
        turns = asyncio.Semaphore(ahead)

        async def one(index: int) -> None:
            try:
                handovers.append((await clip(number, index)).stages_ms["handover"])
            finally:
                turns.release()

        async with asyncio.TaskGroup() as tasks:
            for index in range(1, clips + 1):
                await turns.acquire()
                tasks.create_task(one(index))

    async with asyncio.TaskGroup() as tasks:
        for number in range(streams):
            tasks.create_task(stream(number))
        await warm.wait()
        since, before = loop.time(), sum(worker.rendering_s for worker in engine.workers)
    elapsed = loop.time() - since
    rendering_s = sum(worker.rendering_s for worker in engine.workers) - before
    return Throughput(
        streams * clips * clip_format.clip_frames / elapsed,
        1.0 - rendering_s / elapsed / len(engine.workers),
        statistics.median(handovers),
    )


async def recovery(engine: FleetEngine) -> float:
    """Kills a worker; seconds until its replacement has rendered a clip."""
    worker = engine.workers[0]
    assert worker.pid is not None
    loop = asyncio.get_running_loop()
    clips = worker.clips
    clip_format = engine.format
    request = RenderRequest(next(iter(engine.avatars)), window(clip_format), clip_format.clip_frames, 0, 0)
    begun = loop.time()
    os.kill(worker.pid, signal.SIGKILL)
    async with asyncio.timeout(RECOVERY_S):
        while engine.workers[0].restarts == worker.restarts or engine.workers[0].clips == clips:
            try:
                request = RenderRequest(
                    next(iter(engine.avatars)), window(engine.format), engine.format.clip_frames, 0, 0
                )
                await asyncio.gather(*(engine.render(request) for _ in engine.workers))
            except RenderError:
                await asyncio.sleep(0.01)
    return loop.time() - begun


async def offline(engine: FleetEngine, seconds: float) -> float:
    """Frames a second of a voice without a pause, rendered to a movie with all workers."""
    with tempfile.TemporaryDirectory() as folder:
        audio = Path(folder) / "voice.wav"
        with wave.open(str(audio), "wb") as file:
            file.setparams((1, 2, MEDIA_RATE, 0, "NONE", ""))
            file.writeframes(babble(0, round(seconds * MEDIA_RATE)).tobytes())
        begun = asyncio.get_running_loop().time()
        done: list[int] = []
        options = OfflineOptions(next(iter(engine.avatars)), vad_threshold=0.0)
        failed = await render_all(
            engine,
            [Job(audio, Path(folder) / "face.mp4")],
            options,
            lambda frames: None,
            lambda job, frames: done.append(frames),
        )
        for _, error in failed:
            raise error
        return sum(done) / (asyncio.get_running_loop().time() - begun)


def onsets_voice(clip_format: ClipFormat) -> tuple[Callable[[int, int], S16Array], list[int]]:
    """A voice that begins to speak ONSETS times, at odd places within a clip; and where (samples at 48 kHz)."""
    starts = []
    at = SILENCE_S
    for number in range(ONSETS):
        starts.append(round((at + (number * 0.37) % 1.0 * float(clip_format.clip_duration)) * MEDIA_RATE))
        at += SPEECH_S + SILENCE_S

    def voice(start: int, count: int) -> S16Array:
        t = np.arange(start, start + count)
        loud = np.zeros(count, bool)
        for begin in starts:
            loud |= (begin <= t) & (t < begin + SPEECH_S * MEDIA_RATE)
        tone = np.sin(2 * np.pi * 300 * t / MEDIA_RATE) * 10_000
        return np.where(loud, tone, 0).astype(np.int16)

    return voice, starts


async def speech_to_motion(clip_format: ClipFormat, clip_s: float) -> list[float]:
    """Milliseconds from the first sample of speech at the microphone to the first moving frame at the caller, for each
    onset, at a worker process that takes ``clip_s`` for a clip."""
    voice, starts = onsets_voice(clip_format)
    seen: list[tuple[float, bool]] = []

    def see(frame: Seen) -> None:
        try:
            seen.append((frame.arrived_s, read_card(frame.luma).idle))
        except CardError:
            seen.append((frame.arrived_s, True))

    specs = [WorkerSpec("card", CardLoader(clip_format, clip_s))]
    async with running(LocalEngine(clip_format, lambda: specs)) as engine, calls(engine, 1) as call:
        caller = Caller(voice, on_picture=see, codec="H264")
        try:
            await call(caller)
            await asyncio.sleep((starts[-1]) / MEDIA_RATE + SPEECH_S + 1.0)
        finally:
            await caller.close()
        assert caller.microphone is not None
        assert caller.microphone.began_s is not None
        began = caller.microphone.began_s
    moved = [after for (_, idle), (after, still) in itertools.pairwise(seen) if idle and not still]
    found = []
    for start in starts:
        spoken = began + start / MEDIA_RATE
        following = [when for when in moved if 0.0 < when - spoken < SPEECH_S + SILENCE_S]
        if following:
            found.append((following[0] - spoken) * 1000)
    return found


@asynccontextmanager
async def calls(engine: Engine, most: int, vad_threshold: float = 0.015) -> AsyncIterator[Connect]:
    """A server of calls in this process; yields what connects a caller and returns the stream's counters."""
    manager = StreamManager(engine, ManagerOptions(StreamOptions(vad_threshold=vad_threshold), max_streams=most))

    async def call(caller: Caller) -> Callable[[], dict[str, object]]:
        opened: list[str] = []

        async def exchange(offer: str) -> str:
            peer = await manager.open_call(offer, next(iter(engine.avatars)))
            opened.append(peer.stream)
            return peer.answer_sdp

        await caller.connect(exchange)
        return lambda: manager.statistics(opened[0]) or {}

    try:
        yield call
    finally:
        await manager.close()


def main(argv: list[str]) -> int:
    """Measures and prints; 1 if a long run dropped frames."""
    parser = SettingsParser("python -m echo_rtc.bench engine", "Measures the engine over its workers.")
    parser.add_argument("--workers", type=int, default=2, help="workers in all, compared with one [2]")
    parser.add_argument("--clips", type=int, default=24, help="clips that each stream renders [24]")
    parser.add_argument("--random-weights", action="store_true", help="networks of the published sizes, no files")
    parser.add_argument(
        "--cards", type=float, default=0.0, help="test cards that take so many seconds a clip [0: none]"
    )
    parser.add_argument("--hold", type=float, default=0.0, help="hold three calls for so many seconds instead [0]")
    arguments = parser.arguments(argv)
    if arguments.workers < 1 or arguments.clips < 1:
        raise SettingsError(f"--workers is {arguments.workers} and --clips {arguments.clips}; both must be at least 1")
    settings = settings_from(arguments, os.environ)
    if settings.engine == "testcard":
        raise SettingsError("engine is testcard; this measures the engines local and ray")
    if arguments.hold:
        return asyncio.run(hold(settings, arguments.hold))
    specs = bench_specs(settings, arguments.workers, arguments.random_weights, arguments.cards)
    return asyncio.run(measure(settings, specs, arguments.clips))


async def measure(settings: Settings, specs: Sequence[WorkerSpec], clips: int) -> int:
    """All figures but the long run's, with the first worker alone and with all of them."""
    clip_format, options, workers = settings.clip_format, fleet_options(settings), len(specs)
    rows: list[list[object]] = []

    def note(what: str, measured: Throughput) -> Throughput:
        rows.append([what, measured.frames_per_second, 100 * measured.idle_share, measured.handover_ms])
        return measured

    one = [specs[0]]
    async with running(over(settings, one, replace(options, prefetch=False))) as engine:
        before = note("1 worker, nothing prepared", await throughput(engine, 1, clips))
    async with running(over(settings, one, options)) as engine:
        alone = note("1 worker", await throughput(engine, 1, clips))
        movie_s = workers * clips * float(clip_format.clip_duration)
        movie_alone = await offline(engine, movie_s)
        rows.append(["1 worker, to a movie", movie_alone, "", ""])
        clip_s = engine.workers[0].p50_s or 0.0
        recovery_s = await recovery(engine)
    figures: dict[str, object] = {"handover_ms": round(alone.handover_ms, 2), "recovery_s": round(recovery_s, 2)}
    if workers > 1:
        # Chained whatever the speed, so that the figure is that of independent streams.
        chained = replace(options, overlap_frames=0)
        async with running(over(settings, specs, chained)) as engine:
            together = note(f"{workers} workers, {workers} streams", await throughput(engine, workers, clips))
            movie = await offline(engine, movie_s)
            rows.append([f"{workers} workers, to one movie", movie, "", ""])
        figures["offline_scaling"] = round(movie / movie_alone, 3)
        figures["scaling"] = round(together.frames_per_second / alone.frames_per_second, 3)
        if options.overlap_frames:
            async with running(over(settings, specs, replace(options, use_init_latent=False))) as engine:
                shared = note(
                    f"{workers} workers, 1 stream, cross-faded",
                    await throughput(engine, 1, clips * workers, ahead=AHEAD * workers),
                )
            figures["one_stream_scaling"] = round(shared.frames_per_second / alone.frames_per_second, 3)
    motions = await speech_to_motion(clip_format, clip_s)
    if motions:
        rows.append(["speech to motion, ms (median, most)", statistics.median(motions), max(motions), ""])
        bound_s = float(clip_format.clip_duration) + clip_s + StreamOptions().margin_s
        figures["speech_to_motion_ms"] = round(statistics.median(motions), 1)
        figures["speech_to_motion_bound_ms"] = round(1000 * bound_s, 1)
    figures |= {
        "idle_share_unprepared": round(before.idle_share, 4),
        "idle_share": round(alone.idle_share, 4),
        "device": specs[0].name,
        "size": f"{clip_format.width}x{clip_format.height}",
    }
    report(["", "frames/s", "idle %", "hand-over ms"], rows, figures)
    return 0


async def hold(settings: Settings, seconds: float) -> int:
    """Two calls at test cards and one at the model for ``seconds``; 1 if any of them dropped or held a frame."""
    cards = TestCardEngine(replace(settings.clip_format, width=512, height=512))
    model = create_engine(settings)
    process = psutil.Process()
    memory: list[tuple[float, float]] = []
    loop = asyncio.get_running_loop()
    callers = [Caller(babble, codec="H264") for _ in range(3)]
    try:
        for engine in (cards, model):
            await engine.start(_say)
        async with calls(cards, 2, 0.0) as call_cards, calls(model, 1, 0.0) as call_model:
            counters = [await call_cards(callers[0]), await call_cards(callers[1]), await call_model(callers[2])]
            await asyncio.sleep(SETTLE_S)
            before = [read() for read in counters]
            end = loop.time() + seconds
            while loop.time() < end:
                memory.append((loop.time(), process.memory_info().rss / 2**20))
                await asyncio.sleep(min(5.0, max(0.1, end - loop.time())))
            after = [read() for read in counters]
            for caller in callers:
                await caller.close()
    finally:
        await asyncio.gather(cards.close(), model.close())
    rows: list[list[object]] = []
    bad = 0
    for name, first, last in zip(("test card", "test card", "model"), before, after, strict=True):
        counts = [int(last[key]) - int(first[key]) for key in ("rendered", "held", "dropped")]  # type: ignore[call-overload]
        bad += counts[1] + counts[2]
        rows.append([name, *counts])
    times, sizes = np.array(memory).T
    slope = float(np.polyfit(times - times[0], sizes, 1)[0] * 600) if len(times) > 2 else 0.0
    report(
        ["call", "rendered", "held", "dropped"],
        rows,
        {"seconds": seconds, "held_or_dropped": bad, "rss_slope_mb_per_10min": round(slope, 2)},
    )
    return int(bad > 0)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
