"""Our attention kernel for narrow heads: what the GPU is given, what is refused, and on Hopper the results."""

from __future__ import annotations

import ctypes
import re
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from echo_rtc.model.attention import AttentionChoice
from echo_rtc.model.kernels import narrow_attention as narrow
from echo_rtc.model.kernels import nvrtc
from echo_rtc.model.kernels.narrow_attention import WIDTH, launch_of, narrow_attention, product, source

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)


def test_other_tensors_are_refused() -> None:
    x = torch.zeros(1, 4, 2, WIDTH, dtype=torch.float16)
    for other in (x, x.float(), x[..., :8]):
        with pytest.raises(ValueError, match="float16 heads of width 40 on a GPU"):
            narrow_attention(other, other, other)


def test_auto_goes_on_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it would be the fastest, too."""
    times = iter([5.0, 4.0, 3.0, 2.0, 1.0])

    def time_ms(compute: Any) -> float:
        compute()
        return next(times)

    monkeypatch.setattr("echo_rtc.model.attention._time_ms", time_ms)
    q = torch.zeros(1, 4, 2, WIDTH)
    choice = AttentionChoice()
    choice._kernels = {name: choice._kernels[name] for name in ("product", "narrow")}
    assert choice._fastest(q, q, q) == "product"


@pytest.mark.parametrize(("capability", "expected"), [((9, 0), 1), ((8, 9), 0), ((10, 0), 0)])
def test_it_is_compiled_ahead_where_it_can_be_used(
    capability: tuple[int, int], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler that fails is no failure of the start: another kernel is chosen then."""
    asked: list[str] = []

    def fail(text: str, architecture: str) -> bytes:
        asked.append(architecture)
        raise RuntimeError("NVRTC refuses the kernel")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(narrow, "compile_source", fail)
    narrow._compiled.cache_clear()
    narrow.compile_ahead("cuda:0")
    for thread in threading.enumerate():
        if thread.name == "nvrtc":
            thread.join()
    assert asked == ["sm_90a"] * expected


@pytest.mark.parametrize(("rows", "blocks"), [(1, 2), (192, 2), (384, 2), (385, 4), (4096, 22)])
def test_all_queries_have_a_block_in_a_whole_cluster(rows: int, blocks: int) -> None:
    launch = launch_of(rows, 8, 12)
    assert launch.blocks == (blocks, 8, 12)
    assert launch.shared <= 227 * 1024


@pytest.mark.parametrize(("columns", "transposed"), [(40, True), (128, False)])
def test_a_product_names_each_of_its_operands(columns: int, transposed: bool) -> None:
    """Half as many sums as columns, four registers of halves, a descriptor, and whether to add: in that order."""
    text = product("multiply", columns, transposed)
    count = columns // 2
    assert f"m64n{columns}k16" in text
    assert [int(number) for number in re.findall(r"%(\d+)", text)] == [count + 5, *range(count + 5)]
    assert re.findall(r"d\[(\d+)\]\)", text) == [str(index) for index in range(count)]
    assert f"p, 1, 1, {int(transposed)};" in text


def test_the_source_has_no_name_without_a_value() -> None:
    text = source()
    names = {"WIDTH", "WARPGROUPS", "ROWS", "KEYS", "STAGES", "LINE", "LAG", "CLUSTER", "HEADROOM"}
    assert names <= set(re.findall(r"constexpr \w+ (\w+) =", text))
    assert text.count("{") == text.count("}")


def test_a_tensor_map_has_bytes_and_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def encode(*arguments: Any) -> int:
        calls.append(arguments)
        return 0

    monkeypatch.setattr(nvrtc, "_driver", lambda: SimpleNamespace(cuTensorMapEncodeTiled=encode))
    joined = torch.zeros(3, 10, 3 * 8 * WIDTH, dtype=torch.float16)
    keys = joined.chunk(3, dim=2)[1].view(3, 10, 8, WIDTH)
    made = nvrtc.TensorMap(keys, 64)
    place, _, axes, data, sizes, strides, tile, *_ = calls[0]
    assert made.address == place.value
    assert made.address % 64 == 0
    assert (axes, data.value) == (4, joined.data_ptr() + 2 * 8 * WIDTH)
    assert list(sizes) == [WIDTH, 10, 8, 3]
    assert list(strides) == [2 * 3 * 8 * WIDTH, 2 * WIDTH, 2 * 10 * 3 * 8 * WIDTH]
    assert list(tile) == [64, 64, 1, 1]


def test_what_the_driver_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "_driver", lambda: SimpleNamespace(cuTensorMapEncodeTiled=lambda *_: 1))
    with pytest.raises(RuntimeError, match="cuTensorMapEncodeTiled failed with error 1"):
        nvrtc.TensorMap(torch.zeros(1, 4, 2, WIDTH, dtype=torch.float16), 64)


def test_what_the_compiler_refuses_is_an_error_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    words = b"error: no such thing"

    def log_size(_: Any, size: Any) -> int:
        size._obj.value = len(words) + 1
        return 0

    def log(_: Any, text: Any) -> int:
        ctypes.memmove(text, words, len(words))
        return 0

    destroyed: list[int] = []
    compiler = SimpleNamespace(
        nvrtcCreateProgram=lambda *_: 0,
        nvrtcCompileProgram=lambda *_: 6,
        nvrtcGetProgramLogSize=log_size,
        nvrtcGetProgramLog=log,
        nvrtcDestroyProgram=lambda *_: destroyed.append(1),
    )
    monkeypatch.setattr(nvrtc, "_compiler", lambda: compiler)
    with pytest.raises(RuntimeError, match="NVRTC refuses the kernel: error: no such thing"):
        nvrtc.compile_source("nothing", "sm_90a")
    assert destroyed == [1]


def test_a_missing_library_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"none of the libraries libmissing\.so\.0 can be loaded"):
        nvrtc._library("libmissing.so.0")


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2).float() for t in (q, k, v))
    return torch.softmax(q @ k.transpose(2, 3) * WIDTH**-0.5, dim=-1).matmul(v).transpose(1, 2)


@pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")
@pytest.mark.parametrize(
    ("rows", "keys", "rise"),
    [(4096, 4096, 1.0), (65, 129, 1.0), (1, 1, 1.0), (385, 6, 1.0), (300, 2000, 60.0)],
)
def test_it_is_attention_to_the_rounding_of_halves(rows: int, keys: int, rise: float) -> None:
    """Also with rows and keys that fill no tile, and with scores that rise by much behind the first tiles."""
    generator = torch.Generator("cuda").manual_seed(rows)
    q, k, v = (
        torch.randn(2, length, 8, WIDTH, device="cuda", dtype=torch.float16, generator=generator)
        for length in (rows, keys, keys)
    )
    k[:, 3 * keys // 4 :] *= rise
    expected = exact(q, k, v)
    error = (narrow_attention(q, k, v).float() - expected).norm() / expected.norm()
    assert error < 5e-4
