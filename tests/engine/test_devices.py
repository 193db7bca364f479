"""Which devices are meant: by name, by number, and where there are none."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from echo_rtc.engine import devices
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


def test_without_a_driver_nobody_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(devices, "_DRIVERS", (str(tmp_path / "none"),))
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
