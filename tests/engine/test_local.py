"""LocalEngine with real worker processes, in which a renderer without a model does what it is told."""

from __future__ import annotations

import asyncio
import errno
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from echo_rtc.clips import ClipFormat, YuvFrames
from echo_rtc.engine import local, supervision
from echo_rtc.engine.fleet import FleetEngine, FleetOptions
from echo_rtc.engine.handover import Area, Payload
from echo_rtc.engine.jobs import FAILURES_TO_REPLACE
from echo_rtc.engine.local import LocalEngine
from echo_rtc.engine.process import Arriving
from echo_rtc.engine.worker import WorkerSpec
from echo_rtc.errors import EchoRtcError, InputError, RenderError, SettingsError, StorageError
from echo_rtc.rendering import AvatarFiles, RenderRequest
from tests.engine.fakes import FIRST_FRAMES, IDLE_FRAMES, LATENT_SHAPE, Deed, FakeLoader
from tests.media.rig import number_of, numbered_frames

FORMAT = ClipFormat(width=64, height=48)
BOUND_S = 30.0
"""Nothing that is waited for here takes as long, however busy the machine."""


def request(deed: Deed = Deed.PLAIN, position: int = 0, latent: float | None = None) -> RenderRequest:
    init = None if latent is None else np.full(LATENT_SHAPE, latent, np.float16)
    return RenderRequest("default", np.zeros(40_000, np.float32), 12, position, deed, init)


def workers(*names: str, misfires: Path | None = None) -> Callable[[], list[WorkerSpec]]:
    return lambda: [WorkerSpec(name, FakeLoader(FORMAT, misfires=misfires), niceness=3) for name in names]


@asynccontextmanager
async def running(
    specs: Callable[[], list[WorkerSpec]], options: FleetOptions | None = None
) -> AsyncIterator[LocalEngine]:
    engine = LocalEngine(FORMAT, specs, options or FleetOptions(render_timeout_s=BOUND_S))
    await engine.start(lambda line: None)
    try:
        yield engine
    finally:
        await engine.close()


async def until(condition: Callable[[], bool]) -> None:
    """Waits for something that another process brings about."""
    async with asyncio.timeout(BOUND_S):
        while not condition():  # noqa: ASYNC110 (another process sets no event here)
            await asyncio.sleep(0.005)


async def lost(engine: FleetEngine, deed: Deed) -> str:
    with pytest.raises(RenderError) as caught:
        await engine.render(request(deed))
    return str(caught.value)


async def test_renders_on_a_worker_and_hands_everything_over() -> None:
    lines: list[str] = []
    engine = LocalEngine(FORMAT, workers("cpu"))
    assert not engine.ready
    await engine.start(lines.append)
    try:
        assert engine.ready
        assert engine.capacity >= 1
        assert 0.0 < engine.expected_render_s < BOUND_S
        result = await engine.render(request(position=24, latent=5.0))
        assert result.frames.y.shape == (12, 48, 64)
        assert (result.frames.y == 24).all()
        assert (result.frames.v == 24).all()
        assert result.final_latent is not None
        assert (result.final_latent == 29.0).all()
        assert result.stages_ms.keys() == {"draw", "handover"}
        assert result.stages_ms["handover"] > 0
        niceness = (await engine.render(request(Deed.TELL_NICENESS))).frames.y[0, 0, 0]
        assert niceness == os.nice(0) + 3
    finally:
        await engine.close()
    assert not engine.ready
    lines.remove("worker cpu: preparing the idle loop of avatar default")  # the parent's own, at any place
    assert lines[:2] == ["worker cpu: reading nothing", "worker cpu: warming up"]
    assert lines[2].startswith("worker cpu: ready, ")
    assert await lost(engine, Deed.PLAIN) == "the engine is closed"


async def test_frames_are_handed_over_as_they_come() -> None:
    async with running(workers("cpu")) as engine:
        for position in (7, 8):
            came: list[YuvFrames] = []
            result = await engine.render(request(position=position), came.append)
            assert [len(run) for run in [*came, result.frames]] == [1] * FIRST_FRAMES + [12 - FIRST_FRAMES]
            assert all((run.y == position).all() and (run.v == position).all() for run in [*came, result.frames])


def test_frames_whose_message_comes_after_the_answer_come_once() -> None:
    area = Area(multiprocessing.get_context("spawn"), 100_000)
    frames = [numbered_frames(n, 1) for n in range(3)]
    runs: list[Payload] = []
    for run in frames:
        runs.append(area.put(run, runs[-1].end if runs else 0))
    came: list[YuvFrames] = []
    arriving = Arriving(5, area, came.append)
    arriving.take(0, runs[0])
    arriving.take_all(runs)
    arriving.take(1, runs[1])
    assert [number_of(run) for run in came] == [0, 1, 2]


async def test_the_idle_loop_arrives_whole_in_pieces() -> None:
    async with running(workers("cpu")) as engine:
        avatar = engine.avatars["default"]
        assert len(avatar.idle) == IDLE_FRAMES  # no multiple of a clip
        assert avatar.idle.y[:, 0, 0].tolist() == list(range(IDLE_FRAMES))
        assert avatar.idle_latents is not None
        assert avatar.idle_latents.dtype == np.float16
        assert avatar.idle_latents[:, 0, 0, 0].tolist() == list(range(IDLE_FRAMES))


async def test_clips_wait_for_a_free_worker_in_the_order_they_came() -> None:
    async with running(workers("one", "two")) as engine:
        order: list[int] = []

        async def render(position: int) -> None:
            result = await engine.render(request(position=position))
            assert (result.frames.y == position).all()
            order.append(position)

        hanging = asyncio.create_task(engine.render(request(Deed.HANG)))
        await asyncio.sleep(0)  # so that it takes worker one, and the others share worker two
        await asyncio.gather(*(render(position) for position in range(8)))
        assert order == list(range(8))
        hanging.cancel()


async def test_killed_while_rendering_loses_one_clip_and_is_replaced() -> None:
    async with running(workers("one", "two")) as engine:
        hanging = asyncio.create_task(engine.render(request(Deed.HANG)))
        await asyncio.sleep(0)
        names = [worker.name for worker in engine.workers]
        at = next(i for i, name in enumerate(names) if engine._scheduler.queue_of(name))
        victim, other = engine.worker_pids[at], engine.worker_pids[1 - at]
        os.kill(victim, signal.SIGKILL)
        # It may die before the clip has reached it.
        with pytest.raises(RenderError, match=f"worker {names[at]} (died while rendering a clip|is gone)"):
            await hanging
        assert engine.worker_pids == [other]
        assert (await engine.render(request(position=7))).frames.y[0, 0, 0] == 7
        dead, well = engine.workers[at], engine.workers[1 - at]
        assert (dead.up, dead.lost, dead.clips) == (False, 1, 0)
        assert (well.up, well.lost, well.clips) == (True, 0, 1)
        assert well.pid == other
        assert well.p50_s == well.p95_s == well.busy_s
        await until(lambda: len(engine.worker_pids) == 2)
        assert [worker.restarts for worker in engine.workers] == [1 - at, at]
        assert victim not in engine.worker_pids
        assert not psutil.pid_exists(victim)


async def test_killed_while_idle_is_replaced_too() -> None:
    async with running(workers("cpu")) as engine:
        (victim,) = engine.worker_pids
        os.kill(victim, signal.SIGKILL)
        await until(lambda: not engine.ready)
        assert await lost(engine, Deed.PLAIN) == "no worker is up; one is being started"
        await until(lambda: engine.ready)
        await engine.render(request())


async def test_a_clip_over_time_is_lost_and_its_worker_replaced() -> None:
    async with running(workers("cpu"), FleetOptions(render_timeout_s=1.5)) as engine:
        (slow,) = engine.worker_pids
        hanging = asyncio.create_task(engine.render(request(Deed.HANG)))
        waiting = asyncio.create_task(engine.render(request()))
        with pytest.raises(RenderError, match=r"worker cpu was rendering a clip for more than 1\.5 s and was ended"):
            await hanging
        with pytest.raises(RenderError, match=r"no worker was free within 1\.5 s|the last worker is gone"):
            await waiting
        await until(lambda: engine.ready)
        assert engine.worker_pids != [slow]
        assert not psutil.pid_exists(slow)
        await engine.render(request())


async def test_an_idle_worker_that_is_stopped_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "HEARTBEAT_S", 0.1)
    async with running(workers("cpu")) as engine:
        (stopped,) = engine.worker_pids
        monkeypatch.setattr(supervision, "HEARTBEAT_TIMEOUT_S", 0.5)
        os.kill(stopped, signal.SIGSTOP)
        await until(lambda: engine.worker_pids not in ([], [stopped]))
        monkeypatch.setattr(supervision, "HEARTBEAT_TIMEOUT_S", BOUND_S)
        await engine.render(request())
        assert not psutil.pid_exists(stopped)


async def test_one_error_costs_a_clip_and_several_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    async with running(workers("cpu")) as engine:
        (first,) = engine.worker_pids
        for _ in range(FAILURES_TO_REPLACE - 1):
            told = await lost(engine, Deed.FAIL)
            assert told == "worker cpu lost a clip: FloatingPointError: nothing but NaN"
        await engine.render(request())  # ends the row
        assert engine.worker_pids == [first]
        for _ in range(FAILURES_TO_REPLACE):
            await lost(engine, Deed.FAIL)
        await until(lambda: engine.ready)
        assert engine.worker_pids != [first]
    told_here = [record for record in caplog.records if record.name == "echo_rtc.engine.worker"]
    assert any(record.getMessage().startswith("worker cpu lost a clip\nTraceback") for record in told_here)


async def test_a_worker_that_dies_repeatedly_is_always_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        (tmp_path / str(number)).touch()
    options = FleetOptions(render_timeout_s=BOUND_S, backoff_s=0.01)
    async with running(workers("cpu", misfires=tmp_path), options) as engine:
        assert "worker cpu died" in await lost(engine, Deed.DIE)
        await until(lambda: engine.ready)
        await engine.render(request())
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert told == ["the replacement of worker cpu did not come up: worker cpu died while loading"] * 2
    waits = [record.getMessage()[-6:] for record in caplog.records if "starts in" in record.getMessage()]
    assert waits == [" 0.0 s"] * 3


def test_the_wait_before_a_replacement_doubles_up_to_its_bound() -> None:
    options = FleetOptions(backoff_s=1.0, max_backoff_s=60.0)
    assert [options.wait_s(deaths) for deaths in (1, 2, 3, 4, 7, 8, 9, 10_000)] == [0, 1, 2, 4, 32, 60, 60, 60]


async def test_who_gives_up_leaves_the_worker_to_others() -> None:
    async with running(workers("cpu")) as engine:
        given_up = [asyncio.create_task(engine.render(request(position=n))) for n in range(4)]
        await asyncio.sleep(0)
        last = asyncio.create_task(engine.render(request(position=9)))
        await asyncio.sleep(0)
        for task in given_up:  # one is being rendered, three wait
            task.cancel()
        assert (await last).frames.y[0, 0, 0] == 9
        assert all(
            isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*given_up, return_exceptions=True)
        )


async def test_an_unknown_avatar_is_refused() -> None:
    async with running(workers("cpu")) as engine:
        with pytest.raises(RenderError, match="there is no avatar 'nobody'; there is default"):
            await engine.render(RenderRequest("nobody", np.zeros(8000, np.float32), 12, 0, 0))


async def test_a_request_too_large_to_share_is_refused_in_words() -> None:
    async with running(workers("cpu")) as engine:
        with pytest.raises(RenderError, match="the clip cannot be handed to worker cpu: arrays of 8000000 bytes"):
            await engine.render(RenderRequest("default", np.zeros(2_000_000, np.float32), 12, 0, 0))
        await engine.render(request())


@pytest.mark.parametrize(
    ("trouble", "kind", "sentence"),
    [
        ("input", InputError, "the weights folder nowhere does not exist"),
        ("settings", SettingsError, "width is 7; choose another"),
        ("crash", RenderError, "worker bad could not start: ValueError: a detail"),
        ("death", RenderError, "worker bad died while loading"),
        ("hang", RenderError, "worker bad was loading for more than 0.5 s and was ended"),
    ],
)
async def test_trouble_at_start_reaches_the_caller_as_one_sentence(
    trouble: str, kind: type[EchoRtcError], sentence: str
) -> None:
    """The other worker, which starts well, is ended with it: the leak check of every test sees to that."""

    def specs() -> list[WorkerSpec]:
        bad = WorkerSpec("bad", FakeLoader(FORMAT, trouble))
        return [bad] if trouble == "hang" else [WorkerSpec("good", FakeLoader(FORMAT)), bad]

    engine = LocalEngine(FORMAT, specs, FleetOptions(start_timeout_s=0.5 if trouble == "hang" else BOUND_S))
    with pytest.raises(kind) as caught:
        await engine.start(lambda line: None)
    assert str(caught.value) == sentence
    assert not engine.ready


async def test_trouble_with_the_devices_reaches_the_caller() -> None:
    def specs() -> list[WorkerSpec]:
        raise SettingsError("devices is cuda:9, but this machine has none")

    with pytest.raises(SettingsError, match="cuda:9"):
        await LocalEngine(FORMAT, specs).start(lambda line: None)


async def test_a_start_that_is_cancelled_leaves_nothing() -> None:
    born = asyncio.Event()
    engine = LocalEngine(FORMAT, lambda: [WorkerSpec("bad", FakeLoader(FORMAT, "hang"))])
    starting = asyncio.create_task(engine.start(lambda line: born.set()))
    await born.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting


async def test_close_ends_a_worker_that_hangs_and_may_be_repeated() -> None:
    async with running(workers("cpu")) as engine:
        hanging = asyncio.create_task(engine.render(request(Deed.HANG)))
        waiting = asyncio.create_task(engine.render(request()))
        await asyncio.sleep(0)
        await engine.close()
        for task in (hanging, waiting):
            with pytest.raises(RenderError):
                await task


async def test_a_further_avatar_is_on_all_workers_and_replacements(tmp_path: Path) -> None:
    async with running(workers("one", "two")) as engine:
        files = AvatarFiles("anna", tmp_path / "anna.png", tmp_path)
        files.reference_image.touch()
        clips = [asyncio.create_task(engine.render(request(position=n))) for n in range(6)]
        avatar = await engine.prepare_avatar(files)
        assert [int((await clip).frames.y[0, 0, 0]) for clip in clips] == list(range(6))
        assert engine.avatars["anna"] is avatar
        assert avatar.idle.y[:, 0, 0].tolist() == list(range(IDLE_FRAMES))
        for pid in engine.worker_pids:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: not engine.ready)
        await until(lambda: len(engine.worker_pids) == 2)
        tellers = [replace(request(Deed.TELL_AVATARS), avatar="anna") for _ in range(2)]
        told = await asyncio.gather(*(engine.render(teller) for teller in tellers))
        assert [int(result.frames.y[0, 0, 0]) for result in told] == [2, 2]
        await engine.remove_avatar("anna")
        assert list(engine.avatars) == ["default"]
        with pytest.raises(RenderError, match="no avatar 'anna'"):
            await engine.render(tellers[0])
        told = await asyncio.gather(*(engine.render(request(Deed.TELL_AVATARS)) for _ in range(2)))
        assert [int(result.frames.y[0, 0, 0]) for result in told] == [1, 1]


async def test_a_name_can_be_used_again_after_refusal_or_removal(tmp_path: Path) -> None:
    good, bad = (AvatarFiles("anna", tmp_path / name, tmp_path) for name in ("good.png", "bad.png"))
    teller = replace(request(Deed.TELL_AVATARS), avatar="anna")
    async with running(workers("one")) as engine:
        with pytest.raises(InputError):
            await engine.prepare_avatar(bad)
        await engine.prepare_avatar(good)
        assert int((await engine.render(teller)).frames.y[0, 0, 0]) == 2
        await engine.remove_avatar("anna")
        await engine.prepare_avatar(good)
        assert int((await engine.render(teller)).frames.y[0, 0, 0]) == 2
        # Anew under the same name: a picture that cannot be used changes nothing.
        with pytest.raises(InputError):
            await engine.prepare_avatar(bad)
        assert int((await engine.render(teller)).frames.y[0, 0, 0]) == 2
        assert "anna" in engine.avatars


async def test_an_avatar_that_cannot_be_prepared_disturbs_no_call(tmp_path: Path) -> None:
    for name in ("bad.png", "deadly.png"):
        (tmp_path / name).touch()
    async with running(workers("one", "two")) as engine:
        pids = engine.worker_pids
        with pytest.raises(InputError, match=r"bad\.png is no picture"):
            await engine.prepare_avatar(AvatarFiles("bad", tmp_path / "bad.png", tmp_path))
        assert engine.worker_pids == pids
        with pytest.raises(RenderError, match="died while preparing an avatar"):
            await engine.prepare_avatar(AvatarFiles("deadly", tmp_path / "deadly.png", tmp_path))
        assert list(engine.avatars) == ["default"]
        await until(lambda: len(engine.worker_pids) == 2)
        await engine.render(request())


async def test_chained_clips_submitted_together_render_in_order() -> None:
    async with running(workers("one", "two")) as engine:

        def chained(position: int) -> RenderRequest:
            return replace(request(position=position, latent=0.0), stream="voice", chained=position > 0)

        results = await asyncio.gather(*(engine.render(chained(position)) for position in range(4)))
        latents = [float(result.final_latent.flat[0]) for result in results if result.final_latent is not None]
        assert latents == [0, 1, 3, 6]  # each adds its own position to the latent before it


async def test_ctrl_c_in_the_terminal_leaves_workers_to_their_parent() -> None:
    async with running(workers("cpu")) as engine:
        (pid,) = engine.worker_pids
        os.kill(pid, signal.SIGINT)
        await engine.render(request())
        assert engine.worker_pids == [pid]


def test_no_worker_outlives_a_parent_that_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-m", "tests.engine.parent_process"], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        orphans = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(orphans) == 2
    finally:
        parent.kill()
        parent.communicate()
    gone, alive = psutil.wait_procs(orphans, timeout=BOUND_S)
    assert len(gone) == 2, f"still there: {alive}"


def test_the_parent_never_loads_torch() -> None:
    probe = "import sys, echo_rtc.engine.factory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


async def test_a_lack_of_shared_memory_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(local, "WorkerProcess", refuse)
    engine = LocalEngine(FORMAT, workers("cpu"))
    with pytest.raises(StorageError, match=r"\(/dev/shm\) cannot be had: No space left on device; make it larger"):
        await engine.start(lambda _: None)
    await engine.close()
