"""What the kernels of a computation take on a device, summed by name and by part of the networks.

On the CPU, which has no kernels, PyTorch's operators stand for them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

PARTS: tuple[tuple[str, str], ...] = (
    ("attention over frames", r"frame_attention"),
    ("attention over pixels and sound", r"sdpa|flash|fmha|attention|softmax"),
    ("feed-forward's first product with its gate", r"geglu|_gate_kernel|gelu"),
    ("convolutions", r"conv|fprop|implicit|dgrad|nhwc"),
    ("layer norms", r"layer_norm|layernorm"),
    ("group norms, residuals, moments", r"moments|coefficients|affine|group_norm|groupnorm"),
    ("products", r"gemm|nvjet|cutlass|cublas|matmul|addmm|bmm|aten::mm|linear|splitk|scaled_mm"),
    ("copies and the rest", r""),
)
"""The parts of the networks, and what the names of their kernels have in them, in lower case; the first that fits."""

NAME_LENGTH = 90
"""Characters of a kernel's name that are kept."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """All calls of one kernel in a computation: how many, and how long they took in all (ms)."""

    name: str
    calls: float
    ms: float

    @property
    def part(self) -> str:
        """Which of PARTS it computes, by its name."""
        name = self.name.lower()
        return next(part for part, pattern in PARTS if re.search(pattern, name))


def kernels_of(compute: Callable[[], object], device: torch.device, times: int = 1) -> list[Kernel]:
    """The kernels of ``compute``, those that take longest first: means of so many ``times``. Empty if the device's
    profiler saw none."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        for _ in range(times):
            compute()
        if on_gpu:
            torch.cuda.synchronize(device)
    found = []
    for each in seen.key_averages():
        if on_gpu and each.device_type.name != "CUDA":
            continue  # a call on the host, which has its kernels' time, too
        taken_us = each.self_device_time_total if on_gpu else each.self_cpu_time_total
        if taken_us > 0:
            found.append(Kernel(str(each.key)[:NAME_LENGTH], each.count / times, taken_us / 1000 / times))
    return sorted(found, key=lambda kernel: -kernel.ms)


def parts_of(kernels: Sequence[Kernel]) -> dict[str, float]:
    """The sums of the parts (ms), in their order; those without a kernel are left out."""
    sums = {part: sum(kernel.ms for kernel in kernels if kernel.part == part) for part, _ in PARTS}
    return {part: ms for part, ms in sums.items() if ms}
