"""What workers use: a real process by psutil, GPUs by a made-up NVML (there is none where the tests run)."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from echo_rtc.operations.usage import GpuUse, NvmlGpus, Usage, Use


class MadeUpNvml:
    """Two GPUs of 1000 bytes: the first has 100 in use, the second 200; "GPU-b" is the second."""

    class NVMLError(Exception):
        pass

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken
        self.begun = 0

    def nvmlInit(self) -> None:
        self.begun += 1
        if self.broken:
            raise self.NVMLError("no driver")

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index > 1:
            raise self.NVMLError("not found")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        return {"GPU-a": 0, "GPU-b": 1}[uuid]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(used=100 * (handle + 1), total=1000)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return SimpleNamespace(gpu=25 * (handle + 1))


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> MadeUpNvml:
    made_up = MadeUpNvml()
    monkeypatch.setitem(sys.modules, "pynvml", made_up)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return made_up


def test_a_process_is_measured_and_a_dead_one_is_not() -> None:
    usage = Usage()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    usage.look([("cpu", os.getpid()), ("other", child.pid), ("testcard", None)])
    use = usage.of("cpu")
    assert use.cpu_s is not None
    assert use.cpu_s > 0
    assert use.memory_bytes is not None
    assert use.memory_bytes > 10_000_000
    assert usage.of("other").memory_bytes
    assert usage.of("testcard") == usage.of("nobody") == Use()
    child.communicate(b"\n")
    usage.look([("other", child.pid)])
    assert usage.of("other") == usage.of("cpu") == Use()


def test_gpus_are_found_by_torchs_names(nvml: MadeUpNvml) -> None:
    gpus = NvmlGpus()
    assert gpus.use("cpu") is None
    assert nvml.begun == 0, "without a GPU nothing is begun"
    assert gpus.use("cuda:0") == GpuUse(100, 1000, 0.25)
    assert gpus.use("cuda") == gpus.use("cuda:0")
    assert gpus.use("cuda:1") == GpuUse(200, 1000, 0.5)
    assert gpus.use("cuda:7") is None
    assert nvml.begun == 1


@pytest.mark.parametrize("visible", ["1,0", "GPU-b, GPU-a"])
def test_what_cuda_sees_is_what_is_measured(nvml: MadeUpNvml, visible: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpus = NvmlGpus()
    assert gpus.use("cuda:0") == GpuUse(200, 1000, 0.5)
    assert gpus.use("cuda:1") == GpuUse(100, 1000, 0.25)


def test_memory_is_told_where_utilisation_is_not(nvml: MadeUpNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(handle: int) -> Any:
        raise nvml.NVMLError("not supported")

    monkeypatch.setattr(nvml, "nvmlDeviceGetUtilizationRates", refused)
    assert NvmlGpus().use("cuda:1") == GpuUse(200, 1000, None)


def test_without_a_driver_or_the_package_nothing_is_measured(nvml: MadeUpNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.broken = True
    gpus = NvmlGpus()
    assert gpus.use("cuda:0") is gpus.use("cuda:0") is None
    assert nvml.begun == 1, "it is tried once"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert NvmlGpus().use("cuda:0") is None
