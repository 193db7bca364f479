"""CUDA C++ compiled at run time by NVRTC, which comes with PyTorch's builds for CUDA, and launched through the driver.

Every failure of the compiler or the driver, and their absence, is a RuntimeError: callers then take another kernel.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES."""
_FLOAT16 = 6
"""CU_TENSOR_MAP_DATA_TYPE_FLOAT16."""
_SWIZZLE_128_BYTES = 3
_PROMOTION_128_BYTES = 2
_MAP_BYTES = 128
_MAP_ALIGNMENT = 64


def _check(code: int, what: str) -> None:
    if code:
        raise RuntimeError(f"{what} failed with error {code}")


def _library(*names: str, mode: int = ctypes.DEFAULT_MODE) -> ctypes.CDLL:
    """The first of these libraries that loads."""
    for name in names:
        try:
            return ctypes.CDLL(name, mode)
        except OSError:
            continue
    raise RuntimeError(f"none of the libraries {', '.join(names)} can be loaded")


@cache
def _driver() -> ctypes.CDLL:
    return _library("libcuda.so.1")


@cache
def _compiler() -> ctypes.CDLL:
    """NVRTC of PyTorch's CUDA version, from the package beside PyTorch or from the system."""
    if torch.version.cuda is None:
        raise RuntimeError("this build of PyTorch has no CUDA")
    major = torch.version.cuda.split(".")[0]
    spec = find_spec("nvidia")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(place).glob(f"*/lib/libnvrtc.so.{major}*")):
            for part in sorted(path.parent.glob(f"libnvrtc-builtins.so.{major}*")):
                _library(str(part), mode=ctypes.RTLD_GLOBAL)
            return _library(str(path))
    return _library(f"libnvrtc.so.{major}", "libnvrtc.so")


def compile_source(source: str, architecture: str) -> bytes:
    """CUDA C++ as machine code (a cubin) for an architecture such as "sm_90a"."""
    compiler, program, size = _compiler(), ctypes.c_void_p(), ctypes.c_size_t()
    _check(
        compiler.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None),
        "nvrtcCreateProgram",
    )
    try:
        options = (f"--gpu-architecture={architecture}".encode(), b"--std=c++17", b"--use_fast_math")
        code = compiler.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        if code:
            compiler.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            text = ctypes.create_string_buffer(size.value)
            compiler.nvrtcGetProgramLog(program, text)
            raise RuntimeError(f"NVRTC refuses the kernel: {text.value.decode(errors='replace')}")
        _check(compiler.nvrtcGetCUBINSize(program, ctypes.byref(size)), "nvrtcGetCUBINSize")
        binary = ctypes.create_string_buffer(size.value)
        _check(compiler.nvrtcGetCUBIN(program, binary), "nvrtcGetCUBIN")
        return binary.raw
    finally:
        compiler.nvrtcDestroyProgram(ctypes.byref(program))


class TensorMap:
    """What the hardware's tensor copies know of a float16 tensor (N, L, H, d): tiles of ``rows`` lines of one head.

    In shared memory each line has 128 bytes, swizzled, with zeros behind the head's width.
    """

    def __init__(self, x: Tensor, rows: int) -> None:
        images, length, heads, width = x.shape
        self._memory = (ctypes.c_char * (_MAP_BYTES + _MAP_ALIGNMENT))()
        self.address = -(-ctypes.addressof(self._memory) // _MAP_ALIGNMENT) * _MAP_ALIGNMENT
        sizes = (ctypes.c_uint64 * 4)(width, length, heads, images)
        strides = (ctypes.c_uint64 * 3)(*(2 * x.stride(axis) for axis in (1, 2, 0)))
        tile, steps = (ctypes.c_uint32 * 4)(64, rows, 1, 1), (ctypes.c_uint32 * 4)(1, 1, 1, 1)
        code = _driver().cuTensorMapEncodeTiled(
            ctypes.c_void_p(self.address), _FLOAT16, 4, ctypes.c_void_p(x.data_ptr()), sizes, strides, tile, steps,
            0, _SWIZZLE_128_BYTES, _PROMOTION_128_BYTES, 0,
        )  # fmt: skip
        _check(code, "cuTensorMapEncodeTiled")


@dataclass(frozen=True, slots=True)
class Launch:
    """How a kernel is started: blocks in three directions, threads of a block, bytes of dynamic shared memory."""

    blocks: tuple[int, int, int]
    threads: int
    shared: int


class Function:
    """A kernel loaded on the current CUDA device."""

    def __init__(self, binary: bytes, name: str, shared: int) -> None:
        driver = _driver()
        module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        torch.cuda.current_stream()  # makes PyTorch's context the current one
        _check(driver.cuModuleLoadData(ctypes.byref(module), binary), "cuModuleLoadData")
        _check(driver.cuModuleGetFunction(ctypes.byref(self._function), module, name.encode()), "cuModuleGetFunction")
        _check(driver.cuFuncSetAttribute(self._function, _MAX_DYNAMIC_SHARED_SIZE_BYTES, shared), "cuFuncSetAttribute")

    def __call__(self, launch: Launch, arguments: Sequence[Any]) -> None:
        """Starts the kernel on PyTorch's current stream with ctypes values and tensor maps as arguments."""
        places = [a.address if isinstance(a, TensorMap) else ctypes.addressof(a) for a in arguments]
        code = _driver().cuLaunchKernel(
            self._function, *launch.blocks, launch.threads, 1, 1, launch.shared,
            ctypes.c_void_p(torch.cuda.current_stream().cuda_stream), (ctypes.c_void_p * len(places))(*places), None,
        )  # fmt: skip
        _check(code, "cuLaunchKernel")
