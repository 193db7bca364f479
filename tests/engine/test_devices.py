"""Which devices are meant: by name, by number, and where there are none."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import subprocess
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from echo_rtc.engine import cuda_probe, devices
from echo_rtc.errors import SettingsError


@pytest.mark.parametrize(
    ("wanted", "present", "meant"),
    [
        ("auto", 0, ("cpu",)),
        ("auto", 2, ("cuda:0", "cuda:1")),
        ("cpu", 2, ("cpu",)),
        ("cuda", 2, ("cuda:0", "cuda:1")),
        ("cuda:1", 2, ("cuda:1",)),
        ("cuda:1, cuda:0", 2, ("cuda:1", "cuda:0")),
        ("cpu,cuda:0", 1, ("cpu", "cuda:0")),
    ],
)
def test_devices_by_name(wanted: str, present: int, meant: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "count_cuda_devices", lambda: present)
    assert devices.resolve_devices(wanted) == meant


@pytest.mark.parametrize(("wanted", "present"), [("cuda", 0), ("cuda:0", 0), ("cuda:0,cuda:2", 2), ("cpu,cuda:7", 1)])
def test_a_device_that_is_not_there(wanted: str, present: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "count_cuda_devices", lambda: present)
    with pytest.raises(SettingsError, match=rf"devices is {wanted}, but this machine has {present} usable CUDA device"):
        devices.resolve_devices(wanted)


def test_without_a_driver_nothing_is_queried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(devices, "_DRIVERS", (str(tmp_path / "none"),))
    monkeypatch.setattr(devices, "_PCI", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("a child was started"))
    assert devices.count_cuda_devices() == 0


def prints(capabilities: list[list[int]], why: str = "") -> str:
    """A program that answers as the probe does."""
    return f"print({json.dumps({'capabilities': capabilities, 'why': why})!r})"


@pytest.mark.parametrize(
    ("present", "asked", "triton", "able"),
    [
        ([[9, 0]], ["cuda:0"], True, True),
        ([[8, 9], [9, 0]], ["cuda:1"], True, True),
        ([[8, 9], [9, 0]], ["cuda:0", "cuda:1"], True, False),
        ([[10, 3]], ["cuda"], True, True),
        ([[9, 0]], ["cuda:0"], False, False),
        ([[9, 0]], ["cpu", "cuda:0"], True, False),
    ],
)
def test_eight_bits_are_for_hopper_and_later(
    present: list[list[int]], asked: list[str], triton: bool, able: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if triton else None)
    monkeypatch.setattr(devices, "_PROGRAM", prints(present))
    assert devices.has_eight_bits(asked) is able


def test_eight_bits_of_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(devices, "_PROGRAM", prints([[9, 0]]))
    with pytest.raises(SettingsError, match="cannot be asked what they can do"):
        devices.has_eight_bits(["cuda:1"])


def test_with_a_driver_a_child_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(devices, "_DRIVERS", (str(tmp_path),))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "_PROGRAM", prints([[9, 0]] * 3))
    assert devices.count_cuda_devices() == 3
    for broken in ("raise SystemExit(1)", "print('a word of a driver')"):
        monkeypatch.setattr(devices, "_PROGRAM", broken)
        with pytest.raises(SettingsError, match="cannot be counted"):
            devices.count_cuda_devices()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.count_cuda_devices() == 0


class FakeDriver:
    """The driver's library, as far as the probe calls it: devices of these capabilities."""

    def __init__(self, *capabilities: tuple[int, int], version: int = 12080, failing: str = "") -> None:
        self._capabilities, self._version, self._failing = capabilities, version, failing

    def _answer(self, name: str, place: Any, value: int) -> int:
        place._obj.value = value
        return 999 * (name == self._failing)

    def cuInit(self, flags: int) -> int:
        return 999 * (self._failing == "cuInit")

    def cuDriverGetVersion(self, place: Any) -> int:
        return self._answer("cuDriverGetVersion", place, self._version)

    def cuDeviceGetCount(self, place: Any) -> int:
        return self._answer("cuDeviceGetCount", place, len(self._capabilities))

    def cuDeviceGet(self, place: Any, number: int) -> int:
        return self._answer("cuDeviceGet", place, 100 + number)

    def cuDeviceGetAttribute(self, place: Any, attribute: int, device: Any) -> int:
        value = self._capabilities[device.value - 100][{75: 0, 76: 1}[attribute]]
        return self._answer("cuDeviceGetAttribute", place, value)


CALLS = ("cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetAttribute")
WHEEL = cuda_probe.Build("2.9.1+cu128", (12, 8))


def test_common_devices_are_counted_by_the_driver() -> None:
    assert cuda_probe.ask_driver(FakeDriver((9, 0), (10, 3)), WHEEL) == [(9, 0), (10, 3)]
    assert cuda_probe.ask_driver(FakeDriver((9, 0), version=12000), WHEEL) == [(9, 0)]


@pytest.mark.parametrize(
    "driver",
    [
        FakeDriver(),
        FakeDriver((9, 0), version=11080),
        FakeDriver((9, 0), (7, 0)),
        *(FakeDriver((9, 0), failing=call) for call in CALLS),
    ],
)
def test_torch_decides_where_the_driver_leaves_a_doubt(driver: FakeDriver) -> None:
    assert cuda_probe.ask_driver(driver, WHEEL) is None


@pytest.mark.parametrize(
    ("version", "cuda", "own", "machine", "sure"),
    [
        ("2.9.1+cu128", (12, 8), (8, 6), "x86_64", True),
        ("2.9.1", (12, 8), (8, 9), "AMD64", True),
        ("2.9.1", (13, 0), (8, 7), "aarch64", False),
        ("2.9.1", (13, 0), (9, 0), "aarch64", True),
        ("2.9.1", (13, 0), (12, 1), "aarch64", True),
        ("2.6.0+cu126", (12, 6), (12, 0), "x86_64", False),
        ("2.9.1", (13, 0), (11, 0), "aarch64", False),
        ("2.9.1", (14, 0), (9, 0), "x86_64", False),
        ("2.0.1", (11, 7), (9, 0), "x86_64", False),
        ("2.6.0a0+ecf3bae40a.nv25.01", (12, 8), (9, 0), "x86_64", False),
        ("2.10.0a0+git1234567", (12, 8), (9, 0), "x86_64", False),
    ],
)
def test_which_kernels_a_build_has_for_certain(
    version: str, cuda: tuple[int, int], own: tuple[int, int], machine: str, sure: bool
) -> None:
    assert cuda_probe.surely_supports(cuda_probe.Build(version, cuda), own, machine) is sure


@pytest.mark.parametrize(
    ("said", "build"),
    [
        ("__version__ = '2.9.1+cu128'\ncuda = '12.8'\nhip = None\n", WHEEL),
        ("__version__ = '2.9.1+cpu'\ncuda = None\nhip = None\n", None),
        ("__version__ = '2.9.1+rocm6.4'\ncuda = None\nhip = '6.4'\n", None),
    ],
)
def test_a_build_is_known_without_importing_it(
    said: str, build: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "version.py").write_text(said)
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert cuda_probe.installed_build() == build


def test_the_quick_answer_is_the_driver_s_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_probe, "installed_build", lambda: WHEEL)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver((9, 0)))
    assert cuda_probe.quick_answer() == ([(9, 0)], "")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver((9, 0), failing="cuInit"))
    assert cuda_probe.quick_answer() is None


def test_without_a_library_there_is_no_quick_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_probe, "installed_build", lambda: WHEEL)
    monkeypatch.setattr(cuda_probe, "_LIBRARY", "no library of this name")
    assert cuda_probe.quick_answer() is None


def fake_torch(
    count: int = 1, built: str | None = "13.0", arches: str = "sm_80 sm_90", own: tuple[int, int] = (9, 0)
) -> Any:
    """A torch module as far as the probe looks at it."""

    def is_available() -> bool:
        if not count:
            warnings.warn("CUDA initialization: the NVIDIA driver is too old", stacklevel=1)
        return count > 0

    cuda = SimpleNamespace(
        is_available=is_available,
        device_count=lambda: count,
        get_arch_list=arches.split,
        get_device_capability=lambda number: own,
    )
    return SimpleNamespace(cuda=cuda, version=SimpleNamespace(cuda=built, hip=None))


@pytest.mark.parametrize(
    ("torch", "count", "why"),
    [
        (fake_torch(2), 2, ""),
        (fake_torch(0, built=None), 0, "is a build for CPUs; install its build for CUDA"),
        (fake_torch(0), 0, "the NVIDIA driver is too old'; update the GPU's driver"),
        (fake_torch(own=(5, 0)), 0, "built for other GPUs (sm_80, sm_90)"),
        (fake_torch(own=(8, 6)), 1, ""),
        (fake_torch(own=(12, 0)), 0, "built for other GPUs"),
        (fake_torch(own=(12, 0), arches="sm_90 compute_90"), 1, ""),
        (fake_torch(arches=""), 1, ""),
    ],
)
def test_why_no_device_can_be_used(torch: Any, count: int, why: str) -> None:
    capabilities, said = cuda_probe.probe(torch)
    assert len(capabilities) == count
    assert why in said
    assert bool(said) == (count == 0)


def test_a_gpu_that_cannot_be_used_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(devices, "_DRIVERS", (str(tmp_path),))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "_PROGRAM", prints([], "the driver is too old; update it"))
    assert devices.resolve_devices("auto") == ("cpu",)
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "has a GPU that cannot be used: the driver is too old; update it" in record.getMessage()


def test_a_card_without_its_driver_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(devices, "_DRIVERS", ())
    monkeypatch.setattr(devices, "_PCI", str(tmp_path / "pci"))
    card = tmp_path / "pci" / "0000:01:00.0"
    card.mkdir(parents=True)
    for vendor, kind, warned in (("0x8086", "0x030000", 0), ("0x10de", "0x040300", 0), ("0x10de", "0x030200", 1)):
        (card / "vendor").write_text(vendor + "\n")
        (card / "class").write_text(kind + "\n")
        assert devices.resolve_devices("auto") == ("cpu",)
        assert len(caplog.records) == warned
    assert "install NVIDIA's driver" in caplog.text


@pytest.mark.parametrize(
    ("quota", "share"), [("max 100000", None), ("50000 100000", 0.5), ("no numbers", None), (None, None)]
)
def test_a_container_has_fewer_cores_than_its_machine(
    quota: str | None, share: float | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "cpu.max"
    if quota is not None:
        path.write_text(quota + "\n")
    monkeypatch.setattr(devices, "_QUOTA", str(path))
    assert devices.usable_cores() == (share or len(os.sched_getaffinity(0)))
