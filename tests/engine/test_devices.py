"""Which devices are meant: by name, by number, and where there are none."""

from __future__ import annotations

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


def test_with_a_driver_a_child_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(devices, "_DRIVERS", (str(tmp_path),))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "_COUNT", "print(3)")
    assert devices.count_cuda_devices() == 3
    monkeypatch.setattr(devices, "_COUNT", "raise SystemExit(1)")
    with pytest.raises(SettingsError, match="cannot be counted"):
        devices.count_cuda_devices()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.count_cuda_devices() == 0


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
    found, said = cuda_probe.probe(torch)
    assert found == count
    assert why in said
    assert bool(said) == (count == 0)


def test_a_gpu_that_cannot_be_used_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(devices, "_DRIVERS", (str(tmp_path),))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "_COUNT", "print(0); print('the driver is too old; update it')")
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
