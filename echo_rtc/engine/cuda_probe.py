"""Which CUDA devices PyTorch can use here, and why it can use none: a program for a short-lived process.

Prints one line of JSON, the :class:`Found`. Importing torch takes seconds, so the driver itself is asked first; torch
decides wherever the driver's answer leaves a doubt, and only torch says why no device can be used. Imports nothing of
this package.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import platform
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

Capability = tuple[int, int]
"""A device's compute capability, as (9, 0) of Hopper."""

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h."""

_KNOWN_FROM, _KNOWN_BELOW = (11, 8), (14, 0)
"""The CUDA versions, the latter excluded, for which :func:`surely_supports` knows PyTorch's own builds."""


class Found(NamedTuple):
    """The capability of each device, by number, and why there are none; ("" where there are)."""

    capabilities: list[Capability]
    why: str = ""


class Build(NamedTuple):
    """A build of PyTorch: its version, and that of CUDA."""

    version: str
    cuda: tuple[int, int]

    @property
    def official(self) -> bool:
        """Whether its version is one that PyTorch's own builds have, as 2.9.1 or 2.9.1+cu128."""
        number, _, local = self.version.partition("+")
        return all(part.isdigit() for part in number.split(".")) and (not local or local.startswith("cu"))


def installed_build() -> Build | None:
    """The installed build, without importing it; None where it is none for CUDA, or does not say so."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return None
    said = runpy.run_path(str(Path(spec.submodule_search_locations[0]) / "version.py"))
    if said.get("hip") or not said.get("cuda"):
        return None
    major, minor = str(said["cuda"]).split(".")[:2]
    return Build(str(said["__version__"]), (int(major), int(minor)))


def ask_driver(library: Any, build: Build) -> list[Capability] | None:
    """The capabilities of the devices that ``library``, the driver's, counts; None where it is not certain that this
    build can use all of them."""
    version, count, device, value = (ctypes.c_int() for _ in range(4))
    if library.cuInit(0) or library.cuDriverGetVersion(ctypes.byref(version)):
        return None
    # Within a major version of CUDA, newer libraries run on older drivers.
    if version.value // 1000 < build.cuda[0] or library.cuDeviceGetCount(ctypes.byref(count)):
        return None
    found: list[Capability] = []
    for number in range(count.value):
        if library.cuDeviceGet(ctypes.byref(device), number):
            return None
        numbers: list[int] = []
        for attribute in (_MAJOR, _MINOR):
            if library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
                return None
            numbers.append(value.value)
        found.append((numbers[0], numbers[1]))
    return found if found and all(surely_supports(build, own) for own in found) else None


def surely_supports(build: Build, own: Capability, machine: str = platform.machine()) -> bool:
    """Whether a device's kernels are in a build for certain: those of common GPUs in PyTorch's own builds."""
    if not build.official or not _KNOWN_FROM <= build.cuda < _KNOWN_BELOW:
        return False
    if own[0] == 8:  # on ARM these are small boards, which have builds of their own
        return machine.lower() in ("x86_64", "amd64")
    return own[0] == 9 or (own[0] in (10, 12) and build.cuda >= (12, 8))


def quick_answer() -> Found | None:
    """What the driver says, where that leaves no doubt."""
    try:
        build = installed_build()
        found = build and ask_driver(ctypes.CDLL(_LIBRARY), build)
    except Exception:  # torch says what is wrong, or that nothing is
        return None
    return Found(found) if found else None


def probe(torch: Any) -> Found:
    """The devices that the module ``torch`` can use, all of them if it can use any."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count and any(supports(torch, number) for number in range(count)):
        return Found([torch.cuda.get_device_capability(number) for number in range(count)])
    if count:
        built_for = ", ".join(torch.cuda.get_arch_list())
        why = f"this PyTorch is built for other GPUs ({built_for}); install a version that was built for this one"
        return Found([], why)
    if not (torch.version.cuda or torch.version.hip):
        why = "this PyTorch is a build for CPUs; install its build for CUDA (https://pytorch.org has the command)"
        return Found([], why)
    said = str(told[0].message).splitlines()[0][:200] if told else "no device is available"
    return Found([], f"PyTorch says {said!r}; update the GPU's driver, or install the PyTorch that fits it")


def supports(torch: Any, number: int) -> bool:
    """Whether a device's kernels are in this build: for its own architecture, an earlier one of the same major version,
    or as code that the driver compiles (PTX)."""
    names = torch.cuda.get_arch_list()
    own = torch.cuda.get_device_capability(number)
    machine, portable = (
        [(int(name[len(kind) : -1]), int(name[-1])) for name in names if name.startswith(kind) and name[-1].isdigit()]
        for kind in ("sm_", "compute_")
    )
    if torch.version.hip or not machine:
        return True
    return any(have[0] == own[0] and have <= own for have in machine) or any(have <= own for have in portable)


if __name__ == "__main__":
    found = quick_answer()
    if found is None:
        import torch

        found = probe(torch)
    sys.stdout.write(json.dumps(found._asdict()) + "\n")
