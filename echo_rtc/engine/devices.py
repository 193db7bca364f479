"""Which devices there are to render on, found out without importing torch into this process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from echo_rtc.errors import SettingsError

DETECTION_TIMEOUT_S = 60.0
"""The first CUDA call of a machine can take long while its driver wakes up."""

_QUOTA = "/sys/fs/cgroup/cpu.max"
_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
_COUNT = "import torch; print(torch.cuda.device_count())"


def resolve_devices(devices: str) -> tuple[str, ...]:
    """The devices that the setting ``devices`` means here, one worker each; blocks for seconds on a machine with a GPU.

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

    Asked of a short-lived child with torch in it, and only where there is a driver at all: torch's own count is the
    one that the workers will meet. Raises SettingsError if the child fails or takes too long.
    """
    if not (any(Path(driver).exists() for driver in _DRIVERS) or shutil.which("nvidia-smi")):
        return 0
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return 0
    try:
        answer = subprocess.run(
            [sys.executable, "-c", _COUNT],
            capture_output=True,
            text=True,
            timeout=DETECTION_TIMEOUT_S,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        return int(answer.stdout)
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        raise SettingsError(
            f"the CUDA devices cannot be counted ({error}); mend the driver, or choose --devices cpu"
        ) from error


def usable_cores() -> float:
    """How many cores this process may fill: those it is bound to, or less where a container has a quota of time."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        # "200000 100000": microseconds in each period of so many microseconds; "max 100000": no quota.
        quota, period = Path(_QUOTA).read_text().split()
        return min(cores, int(quota) / int(period))
    except (OSError, ValueError):
        return cores
