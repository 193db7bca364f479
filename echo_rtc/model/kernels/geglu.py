"""The gated linear unit: value * GELU(gate), of one product twice as wide as what comes out of it.

Fused, a value and its gate meet in the registers of the product and only their gated product is written: half the bytes
of the product alone, a sixth of the bytes of both passes. For that the weight's rows alternate, a value's and its
gate's (:func:`interleaved`), so that a thread holds both.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from echo_rtc.model.kernels.eight_bits import Weight, product, quantise
from echo_rtc.model.kernels.launch import TensorDescriptor, cdiv, fits, jit, processors, tl

_ROWS = 128
"""Rows of a tile."""


@jit
def _normal(x):  # type: ignore[no-untyped-def]
    """The normal distribution's probability below x, to 1e-7 (Abramowitz & Stegun 7.1.26): a third of the operations of
    the library's error function, which would take as long as the product."""
    z = tl.abs(x) * 0.7071067811865476
    t = 1.0 / (1.0 + 0.3275911 * z)
    series = 0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
    beyond = 0.5 * t * series * tl.exp2(-1.4426950408889634 * z * z)
    return tl.where(x >= 0, 1.0 - beyond, beyond)


@jit
def _geglu_kernel(  # type: ignore[no-untyped-def]
    x, weight, bias, factors, out, rows, inner, channels, scale,
    EIGHT_BITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
    PROGRAMS: tl.constexpr,
):  # fmt: skip
    across, down = tl.cdiv(inner, COLUMNS), tl.cdiv(rows, ROWS)
    in_group = GROUP * across
    for number in tl.range(tl.program_id(0), across * down, PROGRAMS, flatten=True):
        # Tiles that run at the same time share rows of x and columns of the weight, which stay in the L2 cache.
        first = number // in_group * GROUP
        height = tl.minimum(down - first, GROUP)
        row = (first + number % in_group % height) * ROWS
        column = number % in_group // height * COLUMNS
        both = tl.zeros((ROWS, 2 * COLUMNS), tl.float32)
        for step in range(0, tl.cdiv(channels, DEPTH)):
            left = x.load([row, step * DEPTH])
            both = tl.dot(left, weight.load([2 * column, step * DEPTH]).T, both)
        places = 2 * column + tl.arange(0, 2 * COLUMNS)
        if EIGHT_BITS:
            both *= scale
        both += tl.load(bias + places, mask=places < 2 * inner, other=0.0).to(tl.float32)[None, :]
        value, gate = tl.split(tl.reshape(both, (ROWS, COLUMNS, 2)))
        y = value * gate * _normal(gate)
        if EIGHT_BITS:
            columns = column + tl.arange(0, COLUMNS)
            y = tl.clamp(y * tl.load(factors + columns, mask=columns < inner, other=0.0)[None, :], -448.0, 448.0)
        out.store([row, column], y.to(out.dtype))


@jit
def _gate_kernel(both, out, total, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < total
    value = tl.load(both + 2 * place, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(both + 2 * place + 1, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, value * gate * _normal(gate), mask=inside)


def interleaved(values: Tensor) -> Tensor:
    """A weight (2 I, C) or bias (2 I,) of values and then gates, as values and gates in turn."""
    return torch.stack(values.chunk(2), dim=1).flatten(0, 1)


def geglu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (N, L, C) by an interleaved weight (2 I, C) and bias (2 I,) -> (N, L, I)."""
    images, pixels, channels = x.shape
    inner = len(weight) // 2
    if not fits(x):
        value, gate = F.linear(x, weight, bias).view(images, pixels, inner, 2).unbind(-1)
        gated: Tensor = value * F.gelu(gate)
        return gated
    out = x.new_empty((images, pixels, inner))
    hopper = not x.is_cuda or torch.cuda.get_device_capability(x.device) >= (9, 0)
    if not hopper or x.element_size() > 2 or channels % 8 or inner % 8:
        # The fused kernel is made of Hopper's instructions; elsewhere the product is the library's.
        both = F.linear(x, weight, bias)
        block = 1024
        _gate_kernel[(cdiv(out.numel(), block),)](both, out, out.numel(), BLOCK=block, num_warps=4)
        return out
    # Measured on an H100: where rows are short, two small tiles at a time hide each other's ends.
    small = channels <= 640
    _launch(x, weight, bias, bias, out, 1.0, columns=64 if small else 128, depth=64, stages=3 if small else 4)
    return out


def geglu_eight_bits(x: Tensor, weight: Weight, bias: Tensor, factors: Tensor) -> Tensor:
    """The same of x (N, L, C) in eight bits -> (N, L, I) in eight bits, each column times its factor (I,) float32."""
    images, pixels, _ = x.shape
    inner = len(factors)
    if not fits(x):
        both = product(x, weight, bias, torch.float32)
        value, gate = both.view(images, pixels, inner, 2).unbind(-1)
        return quantise(value * F.gelu(gate), factors)
    out = x.new_empty((images, pixels, inner))
    _launch(x, weight.values, bias, factors, out, weight.number, columns=64, depth=128, stages=3)
    return out


def _launch(
    x: Tensor, weight: Tensor, bias: Tensor, factors: Tensor, out: Tensor, scale: float,
    columns: int, depth: int, stages: int,
) -> None:  # fmt: skip
    rows, channels, inner = x.shape[0] * x.shape[1], x.shape[2], out.shape[2]
    together = 2 if columns == 64 else 1
    programs = min(together * processors(x.device), cdiv(rows, _ROWS) * cdiv(inner, columns))
    _geglu_kernel[(programs,)](
        TensorDescriptor(x, [rows, channels], [channels, 1], [_ROWS, depth]),
        TensorDescriptor(weight, [2 * inner, channels], [channels, 1], [2 * columns, depth]),
        bias, factors,
        TensorDescriptor(out, [rows, inner], [inner, 1], [_ROWS, columns]),
        rows, inner, channels, scale,
        EIGHT_BITS=x.element_size() == 1, ROWS=_ROWS, COLUMNS=columns, DEPTH=depth, GROUP=8, PROGRAMS=programs,
        num_warps=4 * columns // 64, num_stages=stages,
    )  # fmt: skip
