"""What the workers' processes and GPUs have in use, seen from the server's process: by psutil, and by NVML where the
package ``nvidia-ml-py`` and a driver are there. Loads no torch; every call here blocks for a moment.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import psutil

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GpuUse:
    """One GPU, used by any process: bytes in use and in all, and the share (0..1) of NVML's last sampling period in
    which it was at work; None where NVML does not report it."""

    memory_bytes: int
    memory_total_bytes: int
    utilisation: float | None


@dataclass(frozen=True, slots=True)
class Use:
    """What a worker uses: processor time (s) and resident memory of its process, and its GPU; None: not known."""

    cpu_s: float | None = None
    memory_bytes: int | None = None
    gpu: GpuUse | None = None


class Gpus(Protocol):
    """Reads GPUs by the names that torch has for them in this process's environment."""

    def use(self, device: str) -> GpuUse | None: ...


class Usage:
    """What the workers, by their names, and this process used at the last :meth:`look`."""

    def __init__(self, gpus: Gpus | None = None) -> None:
        self._gpus = gpus or NvmlGpus()
        self.latest: Mapping[str, Use] = {}
        self.server = Use()

    def of(self, worker: str) -> Use:
        return self.latest.get(worker, Use())

    def look(self, workers: Sequence[tuple[str, int | None]]) -> None:
        """Samples the use of the workers of the given names and process ids (None: no process of its own). Blocks; may
        run in any thread."""
        self.latest = {name: _use(pid, self._gpus.use(name)) for name, pid in workers}
        self.server = _use(os.getpid(), None)


def _use(pid: int | None, gpu: GpuUse | None) -> Use:
    if pid is not None:
        with contextlib.suppress(psutil.Error):  # it died just now
            process = psutil.Process(pid)
            with process.oneshot():
                times = process.cpu_times()
                return Use(times.user + times.system, process.memory_info().rss, gpu)
    return Use(gpu=gpu)


class NvmlGpus:
    """GPUs by NVML, asked for the first time when the first CUDA device is named. CUDA counts its devices in the order
    of CUDA_VISIBLE_DEVICES, and this class takes NVML's order for CUDA's where that says nothing, which holds where all
    GPUs are alike."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._tried = False

    def use(self, device: str) -> GpuUse | None:
        """None for what is no CUDA device ("cuda:0"), and where NVML cannot be had."""
        found = re.fullmatch(r"cuda(?::(\d+))?", device)
        nvml = self._library() if found else None
        if found is None or nvml is None:
            return None
        try:
            handle = self._handle(nvml, int(found[1] or 0))
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        except nvml.NVMLError as error:
            logger.debug("NVML does not report %s: %s", device, error)
            return None
        utilisation: float | None = None
        with contextlib.suppress(nvml.NVMLError):  # not reported for a part of a GPU (MIG), nor by some drivers
            utilisation = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        return GpuUse(int(memory.used), int(memory.total), utilisation)

    def _library(self) -> Any:
        if not self._tried:
            self._tried = True
            try:
                import pynvml
            except ImportError:
                logger.info("the package nvidia-ml-py is not installed; the GPUs' use is not measured")
                return None
            try:
                pynvml.nvmlInit()
            except pynvml.NVMLError as error:
                logger.info("NVML cannot be used (%s); the GPUs' use is not measured", error)
                return None
            self._nvml = pynvml
        return self._nvml

    @staticmethod
    def _handle(nvml: Any, number: int) -> Any:
        visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        name = visible[number] if number < len(visible) else str(number)
        if name.isdigit():
            return nvml.nvmlDeviceGetHandleByIndex(int(name))
        return nvml.nvmlDeviceGetHandleByUUID(name)
