"""Which devices there are to render on, found out without importing torch into this process."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from echo_rtc.errors import SettingsError

logger = logging.getLogger(__name__)

DETECTION_TIMEOUT_S = 60.0
"""The first CUDA call of a machine can take long while its driver wakes up."""

_QUOTA = "/sys/fs/cgroup/cpu.max"
_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
_PCI = "/sys/bus/pci/devices"
_NVIDIA_VENDOR, _DISPLAY_CLASS = "0x10de", "0x03"
_PROBE = Path(__file__).with_name("cuda_probe.py")
_PROGRAM = f"import runpy; runpy.run_path({str(_PROBE)!r}, run_name='__main__')"
"""What the child runs: it prints the compute capability of each device, and why none of them can be used, if so."""

_EIGHT_BITS_FROM = [9, 0]
"""The compute capability from which our kernels multiply 8-bit floating point: Hopper's. On Ada only torchao does, for
the plain networks, which are half as quick as ours without it."""


def resolve_devices(devices: str) -> tuple[str, ...]:
    """The devices that the setting ``devices`` means here, one worker each; blocks while a machine with a GPU is asked.

    ``auto``: every CUDA device, else the CPU. ``cuda``: every CUDA device. Otherwise the list itself.
    Raises SettingsError if CUDA is asked for where there is none, or a number that does not exist.
    """
    wanted = [name.strip() for name in devices.split(",")]
    if wanted == ["cpu"]:
        return ("cpu",)
    count = count_cuda_devices()
    if wanted == ["auto"]:
        return tuple(f"cuda:{i}" for i in range(count)) or ("cpu",)
    resolved: list[str] = []
    for name in wanted:
        resolved.extend([f"cuda:{i}" for i in range(count)] if name == "cuda" else [name])
        number = name.removeprefix("cuda:")
        if name.startswith("cuda") and (count == 0 or (number.isdigit() and int(number) >= count)):
            raise SettingsError(
                f"devices is {devices}, but this machine has {count} usable CUDA device{'' if count == 1 else 's'}; "
                "choose auto, cpu or numbers below that count"
            )
    return tuple(resolved)


def count_cuda_devices() -> int:
    """How many CUDA devices torch can use, as CUDA_VISIBLE_DEVICES and the driver have it.

    Asked of a short-lived child, which holds no context of a device and asks torch wherever the driver's answer may not
    be the one that workers will meet; only where there is a driver at all. Raises SettingsError if the child fails or
    takes too long.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return 0
    if not (any(Path(driver).exists() for driver in _DRIVERS) or shutil.which("nvidia-smi")):
        if _has_nvidia_card():
            _warn("no driver for it is loaded; install NVIDIA's driver, or pass the GPU to the container (--gpus all)")
        return 0
    try:
        capabilities, why = _answer()
        if why:
            _warn(why)
        return len(capabilities)
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        raise SettingsError(
            f"the CUDA devices cannot be counted ({error}); mend the driver, or choose --devices cpu"
        ) from error


def has_eight_bits(devices: Sequence[str]) -> bool:
    """Whether our kernels multiply 8-bit floating point on all these devices, as :func:`resolve_devices` names them.
    Blocks while GPUs are asked. Raises SettingsError."""
    if "cpu" in devices or importlib.util.find_spec("triton") is None:
        return False
    try:
        capabilities, _ = _answer()
        return all(capabilities[int(name.partition(":")[2] or 0)] >= _EIGHT_BITS_FROM for name in devices)
    except (subprocess.SubprocessError, OSError, ValueError, IndexError) as error:
        raise SettingsError(
            f"the CUDA devices cannot be asked what they can do ({error}); mend the driver, or choose --devices cpu"
        ) from error


def _answer() -> tuple[list[list[int]], str]:
    """What a short-lived child says: the compute capability of each device, and why there are none."""
    said = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        capture_output=True,
        text=True,
        timeout=DETECTION_TIMEOUT_S,
        check=True,
        stdin=subprocess.DEVNULL,
    ).stdout
    found = json.loads(said)
    return found["capabilities"], found["why"]


def _warn(why: str) -> None:
    logger.warning("this machine has a GPU that cannot be used: %s; --devices cpu takes the CPU without a word", why)


def _has_nvidia_card() -> bool:
    """Whether an NVIDIA GPU is on the PCI bus, by what Linux says of it."""
    for card in Path(_PCI).glob("*"):
        try:
            vendor, kind = ((card / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor == _NVIDIA_VENDOR and kind.startswith(_DISPLAY_CLASS):
            return True
    return False


def usable_cores() -> float:
    """How many cores this process may fill: those it is bound to, or less where a container has a quota of time."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        # "200000 100000": microseconds in each period of so many microseconds; "max 100000": no quota.
        quota, period = Path(_QUOTA).read_text().split()
        return min(cores, int(quota) / int(period))
    except (OSError, ValueError):
        return cores
