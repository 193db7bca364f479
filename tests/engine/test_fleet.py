"""The fleet over workers without processes, in virtual time: what is chained, what losing a worker means and tells."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from echo_rtc.clips import ClipFormat, F32Array, YuvFrames
from echo_rtc.engine.fleet import FleetEngine, FleetOptions
from echo_rtc.engine.slots import STEADY_CLIPS, WorkerGoneError
from echo_rtc.engine.speed import Speed
from echo_rtc.engine.supervision import HEARTBEAT_S, HEARTBEAT_TIMEOUT_S, MEASURE_AGAIN_S
from echo_rtc.engine.testcard import CardLoader
from echo_rtc.engine.worker import WorkerReport, WorkerSpec
from echo_rtc.errors import InputError, LateError, RenderError, StorageError
from echo_rtc.rendering import Avatar, AvatarFiles, Continuity, Progress, RenderRequest, RenderResult, TakeFrames
from tests.support.virtual import run

FORMAT = ClipFormat(fps=24, clip_frames=12, width=16, height=16)
CLIP_S = 0.5
FRAMES = YuvFrames(*(np.zeros((12, side, side), np.uint8) for side in (16, 8, 8)))


class Scripted:
    """A worker whose clips take ``seconds(position)``; its latents are positions; a negative time kills it."""

    def __init__(self, spec: WorkerSpec, seconds: Callable[[int], float], on_gone: Callable[[], None]) -> None:
        self.name, self.pid = spec.name, None
        self._seconds = seconds
        self._on_gone = on_gone
        self.begun: list[tuple[int, float | None]] = []
        self.discarded: list[int] = []
        self._dead = False
        self.pings = 0
        self.silent = False

    async def start(self, timeout_s: float) -> WorkerReport:
        return WorkerReport(("default",), Speed(12, (0.4,)))

    async def measure(self, frames: int, timeout_s: float) -> Speed:
        return Speed(frames, (0.4 * frames / 12,))

    def prepare(self, number: int, request: RenderRequest) -> None: ...

    def discard(self, number: int) -> None:
        self.discarded.append(number)

    async def render(
        self, number: int, request: RenderRequest, timeout_s: float, on_frames: TakeFrames
    ) -> tuple[RenderResult, float]:
        latent = None if request.init_latent is None else float(request.init_latent.flat[0])
        self.begun.append((request.pose_position, latent))
        seconds = self._seconds(request.pose_position)
        if seconds < 0:
            self.kill()
            raise WorkerGoneError(f"worker {self.name} died")
        await asyncio.sleep(seconds)
        if self._dead:
            raise WorkerGoneError(f"worker {self.name} died")
        return RenderResult(FRAMES, np.full((1, 1, 1), request.pose_position, np.float16)), seconds

    async def idle_piece(self, avatar: str, first: bool, timeout_s: float) -> Avatar | None:
        return Avatar(avatar, FRAMES) if first else None

    async def prepare_avatar(self, files: AvatarFiles, first: bool, timeout_s: float) -> bool:
        return False

    async def forget_avatar(self, name: str, timeout_s: float) -> None: ...

    async def ping(self, timeout_s: float) -> None:
        self.pings += 1
        if self.silent:
            await asyncio.sleep(timeout_s)
            self.kill()
            raise WorkerGoneError(f"worker {self.name} was silent for more than {timeout_s:g} s and was ended")

    def kill(self) -> None:
        if not self._dead:
            self._dead = True
            asyncio.get_running_loop().call_soon(self._on_gone)

    async def close(self) -> None:
        self._dead = True


class House:
    """A fleet of scripted workers."""

    def __init__(
        self,
        workers: int,
        seconds: Callable[[int], float],
        options: FleetOptions | None = None,
        kind: type[Scripted] = Scripted,
    ) -> None:
        self.opened: list[Scripted] = []

        async def specs() -> list[WorkerSpec]:
            return [WorkerSpec(f"w{number}", CardLoader(FORMAT)) for number in range(workers)]

        def open_worker(spec: WorkerSpec, progress: Progress, on_gone: Callable[[], None]) -> Scripted:
            self.opened.append(kind(spec, seconds, on_gone))
            return self.opened[-1]

        self.engine = FleetEngine(FORMAT, specs, open_worker, options)

    async def __aenter__(self) -> House:
        await self.engine.start(lambda line: None)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.engine.close()


def clip(number: int, stream: str = "voice", deadline_s: float = float("inf"), latent: float = -1.0) -> RenderRequest:
    first = np.full((1, 1, 1), latent, np.float16)
    sound = np.zeros(40_000, np.float32)
    return RenderRequest("default", sound, 12, 12 * number, 0, first, None, stream, deadline_s, chained=number > 0)


def test_a_clip_that_is_dropped_does_not_break_the_chain() -> None:
    """Clip 1 is given up while clip 0 takes too long; clip 2 then begins where clip 0 ended."""

    async def work() -> None:
        async with House(1, lambda position: 2.0 if position == 0 else 0.1) as house:
            begun = asyncio.get_running_loop().time()
            tasks = []
            for number in range(3):
                deadline = begun + 10.0 if number != 1 else begun + 1.5
                tasks.append(asyncio.create_task(house.engine.render(clip(number, deadline_s=deadline))))
                await asyncio.sleep(0.1)
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(results[1], LateError)
            assert house.opened[0].begun == [(0, -1.0), (24, 0.0)]
            assert house.opened[0].discarded == [1]

    run(work())


@pytest.mark.parametrize(("late_frames", "begun"), [(5, [0, 12, 24]), (7, [0, 24])])
def test_a_clip_that_ends_after_half_is_due_is_left_out(late_frames: int, begun: list[int]) -> None:
    """Clip 1 would end when so many of its frames are late; clip 2 waits."""

    async def work() -> None:
        async with House(1, lambda position: 0.4) as house:
            now = asyncio.get_running_loop().time()
            deadlines = [now + 10.0, now + 0.8 + (11.01 - late_frames) / FORMAT.fps, now + 10.0]
            requests = [clip(number, deadline_s=deadline) for number, deadline in enumerate(deadlines)]
            await asyncio.gather(*(house.engine.render(request) for request in requests), return_exceptions=True)
            assert [position for position, _ in house.opened[0].begun] == begun

    run(work())


@pytest.mark.parametrize(("seconds", "error"), [((2.0,) * 4, LateError), ((0.1, -1.0, 0.1, 0.1), WorkerGoneError)])
def test_a_lost_clip_is_freed(seconds: tuple[float, ...], error: type[RenderError]) -> None:
    """Without garbage collection: the clips that an overloaded server loses would wait for it."""

    async def work() -> None:
        async with House(2, lambda position: seconds[position // 12]) as house:
            deadline_s = asyncio.get_running_loop().time() + 2.5
            sounds: list[weakref.ref[F32Array]] = []
            lost = 0

            async def render(number: int) -> None:
                nonlocal lost
                request = clip(number, deadline_s=deadline_s)
                sounds.append(weakref.ref(request.audio))
                try:
                    await house.engine.render(request)
                except error:
                    lost += 1

            await asyncio.gather(*(render(number) for number in range(len(seconds))))
            assert lost
            assert all(sound() is None for sound in sounds)

    gc.disable()
    try:
        run(work())
    finally:
        gc.enable()


def test_a_failed_clip_does_not_move_the_next_one() -> None:
    async def work() -> None:
        seconds = {0: 0.1, 12: -1.0, 24: 0.1}
        async with House(2, lambda position: seconds[position]) as house:
            tasks = [asyncio.create_task(house.engine.render(clip(number))) for number in range(3)]
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(results[1], WorkerGoneError)
            assert [entry for worker in house.opened for entry in worker.begun if entry[0] == 24] == [(24, 0.0)]

    run(work())


def test_streams_keep_to_themselves() -> None:
    async def work() -> None:
        async with House(2, lambda position: 0.3) as house:
            requests = [clip(number, stream, latent=-2.0) for number in range(3) for stream in ("a", "b")]
            await asyncio.gather(*(house.engine.render(request) for request in requests))
            for worker in house.opened:
                assert worker.begun == [(0, -2.0), (12, 0.0), (24, 12.0)]

    run(work())


def test_a_worker_that_keeps_dying_is_started_ever_later() -> None:
    async def work() -> list[float]:
        loop = asyncio.get_running_loop()
        deadly = True
        async with House(1, lambda position: -1.0 if deadly else 0.1, FleetOptions(backoff_s=1.0)) as house:
            gaps = []
            for number in range(5):
                with pytest.raises(WorkerGoneError):
                    await house.engine.render(clip(0))
                since = loop.time()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                if number == 4:
                    assert "lost 5 times in a row and starts again in 8 s" in house.engine.trouble
                    with pytest.raises(RenderError, match="no worker is up"):
                        await house.engine.render(clip(0))
                while not house.engine.ready:  # noqa: ASYNC110 (time is virtual, and engines tell their state only)
                    await asyncio.sleep(0.01)
                gaps.append(loop.time() - since)
            deadly = False
            assert house.engine.trouble == ""
            for _ in range(STEADY_CLIPS):
                await house.engine.render(clip(0))
            deadly = True
            with pytest.raises(WorkerGoneError):
                await house.engine.render(clip(0))
            since = loop.time()
            while not house.engine.ready:  # noqa: ASYNC110 (time is virtual, and engines tell their state only)
                await asyncio.sleep(0.01)
            gaps.append(loop.time() - since)
            return gaps

    assert run(work()) == pytest.approx([0, 1, 2, 4, 8, 0], abs=0.05)


def test_a_worker_lost_at_the_start_is_down_until_replaced() -> None:
    replacement_s = 5.0

    class Loading(Scripted):
        """Loads for some time, but for the very first; the first worker's idle loop takes a second."""

        async def start(self, timeout_s: float) -> WorkerReport:
            if asyncio.get_running_loop().time() > began:
                await asyncio.sleep(replacement_s)
            return await super().start(timeout_s)

        async def idle_piece(self, avatar: str, first: bool, timeout_s: float) -> Avatar | None:
            await asyncio.sleep(0.5)
            return await super().idle_piece(avatar, first, timeout_s)

    began = 0.0

    async def work() -> None:
        nonlocal began
        loop = asyncio.get_running_loop()
        began = loop.time()
        house = House(2, lambda position: 0.1, FleetOptions(), Loading)
        loop.call_later(0.2, lambda: house.opened[1].kill())
        async with house:
            assert [worker.up for worker in house.engine.workers] == [True, False]
            await asyncio.sleep(replacement_s)
            assert [worker.up for worker in house.engine.workers] == [True, True]
            await house.engine.render(clip(0))

    run(work())


def test_a_replacement_that_breaks_is_replaced_too(caplog: pytest.LogCaptureFixture) -> None:
    class Breaking(Scripted):
        started = 0

        async def start(self, timeout_s: float) -> WorkerReport:
            Breaking.started += 1
            if Breaking.started == 2:
                raise ZeroDivisionError("a fault of our own")
            return await super().start(timeout_s)

    async def work() -> None:
        async with House(1, lambda position: 0.1, FleetOptions(), Breaking) as house:
            house.opened[0].kill()
            await asyncio.sleep(2)
            assert house.engine.ready
            assert house.engine.workers[0].restarts == 2

    run(work())
    assert "a fault of our own" in caplog.text


def test_a_fault_of_the_engine_costs_a_clip_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def seconds(position: int) -> float:
        if position == 0:
            raise ZeroDivisionError("a fault of our own")
        return 0.1

    async def work() -> None:
        async with House(1, seconds) as house:
            with pytest.raises(RenderError, match=r"^worker w0 lost the clip to a fault of the engine$"):
                await house.engine.render(clip(0))
            await house.engine.render(clip(1))
            assert (house.engine.workers[0].lost, house.engine.workers[0].restarts) == (1, 0)

    run(work())
    assert "a fault of our own" in caplog.text


def test_an_avatar_that_fails_does_not_stop_a_replacement() -> None:
    class Busy(Scripted):
        prepared: list[str] = []  # noqa: RUF012 (of all of them)
        slow = False

        async def prepare_avatar(self, files: AvatarFiles, first: bool, timeout_s: float) -> bool:
            Busy.prepared.append(files.name)
            await asyncio.sleep(5.0 if Busy.slow else 0.0)
            return False

        async def idle_piece(self, avatar: str, first: bool, timeout_s: float) -> Avatar | None:
            if avatar == "anna":
                Busy.slow = True
                house.opened[1].kill()
                await asyncio.sleep(1.0)
                raise RenderError("it cannot be rendered")
            return await super().idle_piece(avatar, first, timeout_s)

    house = House(2, lambda position: 0.1, FleetOptions(), Busy)

    async def work() -> None:
        async with house:
            await house.engine.prepare_avatar(AvatarFiles("bert", Path("b.png"), Path("poses")))
            with pytest.raises(RenderError, match="cannot be rendered"):
                await house.engine.prepare_avatar(AvatarFiles("anna", Path("a.png"), Path("poses")))
            await asyncio.sleep(10)
            assert [(worker.up, worker.restarts) for worker in house.engine.workers] == [(True, 0), (True, 1)]

    run(work())
    assert Busy.prepared == ["bert", "bert", "anna", "anna", "bert"]


def test_a_worker_that_hangs_between_clips_is_noticed_soon() -> None:
    class Hanging(Scripted):
        async def _hang(self, timeout_s: float) -> None:
            await asyncio.sleep(timeout_s)
            self.kill()
            raise WorkerGoneError("it hung")

        async def prepare_avatar(self, files: AvatarFiles, first: bool, timeout_s: float) -> bool:
            if files.name == "stuck":
                await self._hang(timeout_s)
            return False

        async def idle_piece(self, avatar: str, first: bool, timeout_s: float) -> Avatar | None:
            if avatar == "idle":
                await self._hang(timeout_s)
            return await super().idle_piece(avatar, first, timeout_s)

        async def forget_avatar(self, name: str, timeout_s: float) -> None:
            if name == "default":
                await self._hang(timeout_s)

    async def work() -> None:
        async with House(1, lambda position: 0.1, FleetOptions(), Hanging) as house:
            clock = asyncio.get_running_loop().time
            for name in ("stuck", "idle"):
                begun = clock()
                with pytest.raises(WorkerGoneError):
                    await house.engine.prepare_avatar(AvatarFiles(name, Path("a.png"), Path("poses")))
                assert clock() - begun < 310
                await asyncio.sleep(10)
            await house.engine.remove_avatar("default")
            await asyncio.sleep(310)
            assert house.engine.workers[0].restarts == 3

    run(work())


@pytest.mark.parametrize("workers", [1, 2])
def test_a_replacement_leaves_out_an_avatar_without_files(workers: int, caplog: pytest.LogCaptureFixture) -> None:
    class Bare(Scripted):
        deleted = False
        has_it = False

        async def prepare_avatar(self, files: AvatarFiles, first: bool, timeout_s: float) -> bool:
            if Bare.deleted:
                raise InputError("a.png cannot be read")
            self.has_it = True
            return False

        async def render(
            self, number: int, request: RenderRequest, timeout_s: float, on_frames: TakeFrames
        ) -> tuple[RenderResult, float]:
            if request.avatar == "anna" and not self.has_it:
                raise RenderError("no such avatar")
            return await super().render(number, request, timeout_s, on_frames)

    async def work() -> None:
        async with House(workers, lambda position: 0.1, FleetOptions(), Bare) as house:
            await house.engine.prepare_avatar(AvatarFiles("anna", Path("a.png"), Path("poses")))
            Bare.deleted = True
            house.opened[0].kill()
            await asyncio.sleep(2)
            assert [worker.up for worker in house.engine.workers] == [True] * workers
            assert house.engine.workers[0].restarts == 1
            assert ("anna" in house.engine.avatars) == (workers == 2)
            if workers == 2:
                voices = [replace(clip(0, stream), avatar="anna") for stream in ("a", "b", "c")]
                await asyncio.gather(*(house.engine.render(voice) for voice in voices))
                house.opened[1].kill()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                with pytest.raises(RenderError, match="anna"):
                    await house.engine.render(voices[0])
                await asyncio.sleep(2)
                assert "anna" not in house.engine.avatars
            await house.engine.render(clip(0))

    run(work())
    assert "goes without avatar anna: a.png cannot be read" in caplog.text


def test_capacity_follows_the_latest_speed_of_workers_up() -> None:
    """Measured at 30 frames/s each, less the margin: 25.5, which is one stream of 24 each."""

    async def work() -> list[int]:
        slow = 0.4
        capacities = []
        async with House(3, lambda position: slow) as house:
            capacities.append(house.engine.capacity)
            slow = 0.8  # 15 frames/s
            for _ in range(20):
                await asyncio.gather(*(house.engine.render(clip(0, stream)) for stream in "xyz"))
            capacities.append(house.engine.capacity)
            slow = 0.2
            for _ in range(60):
                await asyncio.gather(*(house.engine.render(clip(0, stream)) for stream in "xyz"))
            capacities.append(house.engine.capacity)
            house.opened[0].kill()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            capacities.append(house.engine.capacity)
            return capacities

    assert run(work()) == [3, 1, 6, 4]


def test_slow_workers_share_streams_and_overlap_costs_capacity() -> None:
    async def work() -> tuple[Continuity, int, Continuity, int]:
        quick = ClipFormat(fps=33, clip_frames=12, width=16, height=16)

        async def specs() -> list[WorkerSpec]:
            return [WorkerSpec(f"w{number}", CardLoader(quick)) for number in range(4)]

        found: list[object] = []
        for overlap in (6, 0):
            engine = FleetEngine(
                quick,
                specs,
                lambda spec, progress, gone: Scripted(spec, lambda position: 0.4, gone),
                FleetOptions(overlap_frames=overlap),
            )
            await engine.start(lambda line: None)
            found += [engine.continuity, engine.capacity]
            await engine.close()
        return tuple(found)  # type: ignore[return-value]

    # 4 x 30 frames/s x 0.85 = 102: three streams of 33, or with six frames of each eighteen rendered twice, two.
    assert run(work()) == (Continuity(False, 6), 2, Continuity(False, 0), 3)


def test_the_timeout_follows_clip_length_and_speed_in_bounds() -> None:
    options = FleetOptions()
    assert options.timeout_s(0.5, 0.1) == 5.0
    assert options.timeout_s(0.5, 2.0) == 24.0
    assert options.timeout_s(4.0, 60.0) == 300.0
    assert replace(options, render_timeout_s=7.0).timeout_s(0.5, 2.0) == 7.0


def test_an_idle_worker_that_hangs_is_replaced_and_costs_no_clip() -> None:
    async def work() -> None:
        async with House(1, lambda position: 0.1) as house:
            first = house.opened[0]
            await asyncio.sleep(3.5 * HEARTBEAT_S)
            assert first.pings == 3, "while it does nothing"
            for number in range(40):
                await house.engine.render(clip(number))
                await asyncio.sleep(0.4)
            assert first.pings == 3, "its clips say enough"
            first.silent = True
            await asyncio.sleep(HEARTBEAT_S + HEARTBEAT_TIMEOUT_S + 1.0)
            assert len(house.opened) == 2
            await house.engine.render(clip(40))
            assert (house.engine.workers[0].restarts, house.engine.workers[0].lost) == (1, 0)

    run(work())


def test_a_slow_worker_is_measured_again_when_idle() -> None:
    """Its stream has gone to the other one, and nothing else would say that it has cooled down."""

    async def work() -> list[float]:
        slow = 0.9
        async with House(2, lambda position: slow) as house:
            for number in range(8):
                await house.engine.render(clip(number))
            found = [house.engine._scheduler.times()["w0"][1]]
            await asyncio.sleep(MEASURE_AGAIN_S + 2 * HEARTBEAT_S)
            return [*found, house.engine._scheduler.times()["w0"][1]]

    assert run(work()) == pytest.approx([0.9, 0.4])


def test_a_replacement_that_cannot_be_opened_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        async with House(1, lambda position: 0.1) as house:
            opened, supervisor = house.opened, house.engine._supervisor
            original, failures = supervisor._open, iter([StorageError("no memory to share")] * 2)

            def open_worker(spec: WorkerSpec, progress: Progress, gone: Callable[[], None]) -> Scripted:
                for failure in failures:
                    raise failure
                assert original is not None
                original(spec, progress, gone)
                return opened[-1]

            supervisor._open = open_worker
            opened[0].kill()
            await asyncio.sleep(10.0)
            await house.engine.render(clip(0))

    run(work())
    assert caplog.text.count("no memory to share") == 2


def test_who_gives_up_takes_the_clip_out_of_the_queue() -> None:
    async def work() -> None:
        async with House(1, lambda position: 1.0) as house:
            tasks = [asyncio.create_task(house.engine.render(clip(0, f"{n}"))) for n in range(4)]
            await asyncio.sleep(0.1)
            for task in tasks[1:]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert len(house.opened[0].begun) == 1
            assert house.opened[0].discarded == [1, 2, 3], "each was prepared when the one before was taken back"
            assert not len(house.engine._jobs)
            assert house.engine._scheduler.waiting == 0

    run(work())
