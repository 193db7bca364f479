"""Whether Triton is there, and whether a tensor is for it.

The kernels are decorated at import, so a machine without Triton gets a decorator that leaves them alone; they are never
launched there. With ``TRITON_INTERPRET=1`` in the environment Triton runs kernels on the CPU, which the tests use.
"""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
    from triton.tools.tensor_descriptor import TensorDescriptor

    AVAILABLE = True
except ImportError:
    AVAILABLE = False
    if not TYPE_CHECKING:

        class _Language:
            """Takes the place of Triton's words in the kernels' signatures."""

            constexpr = Any

        tl = _Language()
        TensorDescriptor = None

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def jit(kernel: Any) -> Any:
    """``triton.jit`` where there is Triton."""
    return triton.jit(kernel) if AVAILABLE else kernel


@cache
def processors(device: torch.device) -> int:
    """How many multiprocessors a device has: as many programs run at a time, at least."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least ``n``."""
    return 1 << max(n - 1, 0).bit_length()


def fits(*tensors: Tensor | None) -> bool:
    """Whether these tensors are for Triton: on a CUDA device, or anywhere while Triton interprets."""
    return AVAILABLE and all(t is None or t.is_cuda or INTERPRETED for t in tensors)


__all__ = ["AVAILABLE", "INTERPRETED", "TensorDescriptor", "cdiv", "fits", "jit", "power_of_two", "processors", "tl"]
