"""Attention of narrow heads, 40 wide, on Hopper GPUs.

Libraries pad such heads to 64 and fetch their lines, which are short, for each block again. This kernel multiplies 48
columns of queries and keys and 40 of values, searches for maxima only where they have grown by much, and has two blocks
share what they fetch. Triton has no tiles of 40 columns and no control over the order of its products, so it is
CUDA C++. Its numbers are those that were the fastest of those measured on an H100.
"""

from __future__ import annotations

import ctypes
import math
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock, Thread

import torch
from torch import Tensor

from echo_rtc.model.kernels.launch import cdiv
from echo_rtc.model.kernels.nvrtc import Function, Launch, TensorMap, compile_source

WIDTH = 40
_CAPABILITY = (9, 0)
_WARPGROUPS = 3
_ROWS = 64
"""Queries of a warpgroup."""
_KEYS = 128
"""Keys of a tile."""
_STAGES = 6
_LAG = 2
"""Tiles after which a stage is filled again: how far the warpgroups of a cluster may be apart."""
_CLUSTER = 2
"""Blocks that share keys and values."""
_LINE = 128
"""Bytes of a key or a value in shared memory."""
_SHARED = 2 * _STAGES * _KEYS * _LINE + 1024
"""Bytes of shared memory: keys and values, and what their alignment may cost."""


def product(name: str, columns: int, transposed: bool) -> str:
    """A device function: sums (64 x ``columns``) of a warpgroup plus 64 x 16 halves in registers times 16 x ``columns``
    in shared memory, ``transposed`` where these lie key by key."""
    count = columns // 2
    sums = ", ".join(f"%{index}" for index in range(count))
    halves = ", ".join(f"%{count + index}" for index in range(4))
    bound = ", ".join(f'"+f"(d[{index}])' for index in range(count))
    return f"""
__device__ __forceinline__ void {name}(float (&d)[{count}], u32 a0, u32 a1, u32 a2, u32 a3, u64 b, int add) {{
    asm volatile(
        "{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{count + 5}, 0;\\n"
        "wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.f16.f16 "
        "{{{sums}}}, {{{halves}}}, %{count + 4}, p, 1, 1, {int(transposed)};\\n}}"
        : {bound} : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(add));
}}
"""


def source() -> str:
    """The kernel's text: what it takes from here, then the file beside this one."""
    numbers = {
        "WIDTH": WIDTH, "WARPGROUPS": _WARPGROUPS, "ROWS": _ROWS, "KEYS": _KEYS, "STAGES": _STAGES, "LINE": _LINE,
        "LAG": _LAG, "CLUSTER": _CLUSTER,
    }  # fmt: skip
    return "".join(
        (
            "typedef unsigned int u32;\ntypedef unsigned long long u64;\n",
            *(f"constexpr int {name} = {number};\n" for name, number in numbers.items()),
            product("multiply_keys", _KEYS, transposed=False),
            product("multiply_values", WIDTH, transposed=True),
            Path(__file__).with_suffix(".cu").read_text(encoding="utf-8"),
        )
    )


@cache
def _compiled() -> bytes:
    return compile_source(source(), "sm_90a")


_COMPILING = Lock()


def _machine_code() -> bytes:
    """The kernel for Hopper, compiled once, also where two threads ask for it."""
    with _COMPILING:
        return _compiled()


def compile_ahead(device: str) -> None:
    """Compiles the kernel in a thread where the device can use it: NVRTC takes 1 to 2 s, in which weights are read."""
    if torch.cuda.get_device_capability(device) == _CAPABILITY:
        Thread(target=_compile, name="nvrtc").start()


def _compile() -> None:
    with suppress(RuntimeError, AttributeError, OSError):  # where it cannot be compiled another kernel is chosen
        _machine_code()


@cache
def _function(device: torch.device) -> Function:
    if torch.cuda.get_device_capability(device) != _CAPABILITY:
        raise RuntimeError("this kernel is for Hopper GPUs")
    return Function(_machine_code(), "narrow_attention", _SHARED)


def _aligned(x: Tensor) -> Tensor:
    """x (N, L, H, d) as the hardware's copies can fetch it."""
    images, lines, heads, width = x.stride()
    if width == 1 and heads == WIDTH and images % 8 == lines % 8 == 0 and x.data_ptr() % 16 == 0:
        return x
    return x.contiguous()


def launch_of(rows: int, heads: int, images: int) -> Launch:
    """Blocks for all queries, in whole clusters."""
    blocks = cdiv(rows, _WARPGROUPS * _ROWS * _CLUSTER) * _CLUSTER
    return Launch((blocks, heads, images), 128 * _WARPGROUPS, _SHARED)


def narrow_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of q (N, L, H, 40) over k and v (N, S, H, 40) -> (N, L, H, 40), float16 on a Hopper GPU.

    Raises ValueError for other tensors, RuntimeError where the GPU or the compiler is another.
    """
    images, rows, heads, width = q.shape
    if width != WIDTH or any(t.dtype != torch.float16 or not t.is_cuda for t in (q, k, v)):
        raise ValueError("this kernel is for float16 heads of width 40 on a GPU")
    if k.shape != v.shape or (k.shape[0], *k.shape[2:]) != (images, heads, width):
        raise ValueError("keys and values must be of the queries' images and heads")
    with torch.cuda.device(q.device):
        try:
            function = _function(q.device)
        except (AttributeError, OSError) as error:  # a library without a function, or a file that is not there
            raise RuntimeError(f"the kernel cannot be loaded ({error})") from error
        q, k, v = (_aligned(t) for t in (q, k, v))
        out = q.new_empty((images, rows, heads, width))
        function(
            launch_of(rows, heads, images),
            (
                TensorMap(k, _KEYS // _CLUSTER), TensorMap(v, _KEYS // _CLUSTER),
                ctypes.c_void_p(q.data_ptr()), ctypes.c_void_p(out.data_ptr()),
                ctypes.c_longlong(q.stride(0)), ctypes.c_longlong(q.stride(1)),
                ctypes.c_int(rows), ctypes.c_int(k.shape[1]), ctypes.c_float(math.log2(math.e) / math.sqrt(width)),
            ),
        )  # fmt: skip
    return out
