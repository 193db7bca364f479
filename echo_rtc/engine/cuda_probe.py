"""Which CUDA devices PyTorch can use here, and why it can use none: a program for a short-lived process.

Prints the number of devices, then a line with the reason where there is none. Imports nothing of this package.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any


def probe(torch: Any) -> tuple[int, str]:
    """The number of devices that the module ``torch`` can use, and why that is 0; ("" where it is not)."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count and any(supports(torch, number) for number in range(count)):
        return count, ""
    if count:
        built_for = ", ".join(torch.cuda.get_arch_list())
        return 0, f"this PyTorch is built for other GPUs ({built_for}); install a version that was built for this one"
    if not (torch.version.cuda or torch.version.hip):
        return 0, "this PyTorch is a build for CPUs; install its build for CUDA (https://pytorch.org has the command)"
    said = str(told[0].message).splitlines()[0][:200] if told else "no device is available"
    return 0, f"PyTorch says {said!r}; update the GPU's driver, or install the PyTorch that fits it"


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
    import torch

    found, why = probe(torch)
    sys.stdout.write(f"{found}\n{why}\n")
