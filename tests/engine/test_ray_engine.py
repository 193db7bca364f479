"""RayEngine on real Ray clusters of this machine.

The tests that are imported here are the local engine's own: what holds for worker processes holds for actors.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from echo_rtc.clips import ClipFormat
from echo_rtc.engine.factory import create_engine
from echo_rtc.engine.fleet import FleetOptions
from echo_rtc.engine.ray_engine import RayEngine, RayWorker
from echo_rtc.engine.ray_environment import RayOptions
from echo_rtc.engine.worker import WorkerSpec
from echo_rtc.errors import RenderError, SettingsError
from echo_rtc.settings import Settings
from tests.engine import test_local
from tests.engine.fakes import Deed, FakeLoader
from tests.engine.on_ray import GivenRayEngine
from tests.engine.test_local import (
    FORMAT,
    lost,
    request,
    running,
    test_a_clip_over_time_is_lost_and_its_worker_replaced,
    test_a_further_avatar_is_on_all_workers_and_replacements,
    test_a_start_that_is_cancelled_leaves_nothing,
    test_chained_clips_submitted_together_render_in_order,
    test_close_ends_a_worker_that_hangs_and_may_be_repeated,
    test_the_idle_loop_arrives_whole_in_pieces,
    test_trouble_at_start_reaches_the_caller_as_one_sentence,
    test_trouble_with_the_devices_reaches_the_caller,
    test_who_gives_up_leaves_the_worker_to_others,
    workers,
)

__all__ = [
    "test_a_clip_over_time_is_lost_and_its_worker_replaced",
    "test_a_further_avatar_is_on_all_workers_and_replacements",
    "test_a_start_that_is_cancelled_leaves_nothing",
    "test_chained_clips_submitted_together_render_in_order",
    "test_close_ends_a_worker_that_hangs_and_may_be_repeated",
    "test_the_idle_loop_arrives_whole_in_pieces",
    "test_trouble_at_start_reaches_the_caller_as_one_sentence",
    "test_trouble_with_the_devices_reaches_the_caller",
    "test_who_gives_up_leaves_the_worker_to_others",
]


Make = Callable[..., RayEngine]


@pytest.fixture(autouse=True)
def ray_engine(ray_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a Ray engine; the tests of the local engine get one where they ask for a local one."""

    def engine(clip_format: ClipFormat, specs: Any, options: FleetOptions | None = None) -> RayEngine:
        return GivenRayEngine(clip_format, specs, ray_cluster.address, options)

    monkeypatch.setattr(test_local, "LocalEngine", engine)
    return engine


def specs_for(options: RayOptions, gpus: int, cpus: float, nodes: int) -> list[tuple[str, str, float | None]]:
    """Name, device and cores of the workers that a cluster of this size gets."""
    made: list[tuple[str, str, float | None]] = []

    def spec(name: str, device: str, cores: float | None) -> WorkerSpec:
        made.append((name, device, cores))
        return WorkerSpec(name, FakeLoader(FORMAT))

    RayEngine(FORMAT, spec, options)._specs_for(gpus, cpus, nodes)
    return made


def test_which_workers_a_cluster_gets() -> None:
    gpu = [("ray-0", "cuda:0", None), ("ray-1", "cuda:0", None)]
    assert specs_for(RayOptions(), gpus=2, cpus=16, nodes=1) == gpu
    assert specs_for(RayOptions(workers=1), gpus=2, cpus=16, nodes=1) == gpu[:1]
    assert specs_for(RayOptions(devices="cpu"), gpus=2, cpus=16, nodes=1) == [("ray-0", "cpu", 16.0)]
    assert specs_for(RayOptions(), gpus=0, cpus=12, nodes=2) == [("ray-0", "cpu", 6.0), ("ray-1", "cpu", 6.0)]
    assert [cores for *_, cores in specs_for(RayOptions(workers=3), gpus=0, cpus=8, nodes=2)] == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"devices": "cuda"}, "devices is cuda, but the Ray cluster has no GPU; choose --devices cpu, or add a node"),
        ({"workers": 9}, "ray_workers is 9, but the Ray cluster has 4 CPUs; choose that or fewer"),
        (
            {"devices": "cuda:1"},
            "devices is cuda:1, but with engine ray it is Ray that chooses the devices; it must be auto, cuda or cpu",
        ),
    ],
)
def test_what_a_cluster_cannot_give_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=f"^{re.escape(sentence)}$"):
        specs_for(RayOptions(**options), gpus=0, cpus=4, nodes=2)


async def test_a_clip_comes_back_whole_and_its_way_is_measured(ray_engine: Make) -> None:
    lines: list[str] = []
    engine = ray_engine(FORMAT, workers("one"))
    await engine.start(lines.append)
    try:
        result = await engine.render(request(position=24, latent=5.0))
    finally:
        await engine.close()
    assert (result.frames.y == 24).all()  # read after the connection to Ray is gone
    assert result.frames.y.flags.writeable
    assert result.final_latent is not None
    assert (result.final_latent == 29.0).all()
    assert result.stages_ms["handover"] > 0
    assert "worker one: reading nothing" in lines
    assert any(line.startswith("worker one: ready, ") for line in lines)
    assert await lost(engine, Deed.PLAIN) == "the engine is closed"


async def test_a_killed_actor_costs_one_clip_and_restarts() -> None:
    async with running(workers("one", "two")) as engine:
        hanging = asyncio.create_task(engine.render(request(Deed.HANG)))
        await asyncio.sleep(0)
        (at,) = (i for i, worker in enumerate(engine.workers) if engine._scheduler.queue_of(worker.name))
        victim = engine.worker_pids[at]
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(RenderError, match=f"worker {engine.workers[at].name} died while rendering a clip"):
            await hanging
        assert (await engine.render(request(position=7))).frames.y[0, 0, 0] == 7
        await test_local.until(lambda: len(engine.worker_pids) == 2)
        assert victim not in engine.worker_pids
        assert [worker.restarts for worker in engine.workers] == [1 - at, at]
        assert engine.workers[at].lost == 1


async def test_a_clip_for_an_earlier_incarnation_is_lost_with_it() -> None:
    """Ray passes on to the new incarnation what was sent before anybody heard of the death."""
    async with running(workers("one")) as engine:
        worker = engine._slots["one"].worker
        assert isinstance(worker, RayWorker)
        assert worker._where is not None
        worker._where = replace(worker._where, incarnation="an earlier one")
        assert await lost(engine, Deed.PLAIN) == "worker one died while rendering a clip"
        await test_local.until(lambda: engine.ready)
        await engine.render(request())
        assert (engine.workers[0].restarts, engine.workers[0].lost) == (1, 1)


async def test_errors_are_logged_and_several_cost_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    async with running(workers("one")) as engine:
        (first,) = engine.worker_pids
        for _ in range(3):
            assert await lost(engine, Deed.FAIL) == "worker one lost a clip: FloatingPointError: nothing but NaN"
        await test_local.until(lambda: engine.ready and engine.worker_pids != [first])
        await engine.render(request())
    told = [record.getMessage() for record in caplog.records if record.name == "echo_rtc.engine.worker"]
    assert any("lost a clip" in text and "Traceback" in text for text in told)


async def test_workers_spread_over_nodes_and_a_lost_node_costs_its_own(ray_cluster: Any) -> None:
    node = ray_cluster.add_node(num_cpus=1, resources={"third": 1}, object_store_memory=2**27)
    try:
        async with running(workers("one", "two", "three", "four", "five")) as engine:  # five CPUs, one each
            ray_cluster.remove_node(node, allow_graceful=False)
            node = None
            await test_local.until(lambda: sum(worker.up for worker in engine.workers) == 4)
            await engine.render(request())
            assert "was lost" in engine.trouble
    finally:
        if node is not None:
            ray_cluster.remove_node(node)


async def test_a_cluster_without_room_is_told(ray_engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("echo_rtc.engine.ray_engine.PLACE_S", 3.0)
    names = [f"w{n}" for n in range(5)]  # for four CPUs
    with pytest.raises(SettingsError, match=r"^no node of the Ray cluster has 1 free CPUs for worker w\d; the command"):
        await ray_engine(FORMAT, workers(*names)).start(lambda line: None)


async def test_a_cluster_that_does_not_answer_is_told() -> None:
    engine = GivenRayEngine(FORMAT, workers("one"), "127.0.0.1:1")
    with pytest.raises(SettingsError, match=r"^the Ray cluster at 127\.0\.0\.1:1 cannot be joined .*start --head"):
        await engine.start(lambda line: None)


def test_a_model_on_a_cluster_of_its_own() -> None:
    """The whole way: settings, a cluster that is started and ended with the engine, the embedded model. In a process
    of its own, since one process has one connection to Ray."""
    probe = subprocess.run(
        [sys.executable, "-m", "tests.engine.embedded_on_ray"], capture_output=True, text=True, timeout=240, check=False
    )
    assert probe.returncode == 0, probe.stderr
    frames, mean, torch_here, children = probe.stdout.split()
    assert frames == "8"
    assert 20 < float(mean) < 235
    assert (torch_here, children) == ("False", "0")


async def test_an_actor_that_cannot_be_ended_does_not_block_close(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Unreachable:
        name = "ray-0"

        def end(self) -> None:
            raise ConnectionError("the head is gone")

    left: list[bool] = []
    engine = create_engine(Settings(engine="ray", model={"weights": "weights"}))
    monkeypatch.setattr(engine, "_actors", {"ray-0": Unreachable()})
    monkeypatch.setattr(engine, "_thread", ThreadPoolExecutor(1))
    monkeypatch.setattr("ray.shutdown", lambda: left.append(True))
    await engine.close()
    assert left == [True]
    assert "ray-0 could not be ended" in caplog.text


def test_settings_make_a_ray_engine() -> None:
    engine = create_engine(Settings(engine="ray", model={"weights": "weights"}, ray_workers=2))
    assert isinstance(engine, RayEngine)


def test_without_ray_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "echo_rtc.engine.ray_engine", None)
    with pytest.raises(SettingsError, match=r"^engine is ray, but Ray cannot be imported .*echo-rtc\[ray\]"):
        create_engine(Settings(engine="ray", model={"weights": "weights"}))
