"""Layer normalisation of tokens in the pass that adds a branch to its residual."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echo_rtc.model.kernels.eight_bits import FORMAT, quantise
from echo_rtc.model.kernels.launch import cdiv, fits, jit, power_of_two, tl


@jit
def _add_layer_norm_kernel(  # type: ignore[no-untyped-def]
    x, branch, branch_scale, constant, ahead, total, weight, bias, position, out, rows, pixels, frames, channels, eps,
    factor,
    HAS_BRANCH: tl.constexpr, HAS_CONSTANT: tl.constexpr, HAS_AHEAD: tl.constexpr, HAS_POSITION: tl.constexpr,
    EIGHT_BITS: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, CHANNELS)
    wide = channel < channels
    inside = (row < rows)[:, None] & wide[None, :]
    place = row.to(tl.int64)[:, None] * channels + channel[None, :]
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if HAS_BRANCH:
        value += branch_scale * tl.load(branch + place, mask=inside, other=0.0).to(tl.float32)
        if HAS_CONSTANT:
            value += tl.load(constant + channel, mask=wide, other=0.0).to(tl.float32)[None, :]
        kept = value
        if HAS_AHEAD:
            kept += tl.load(ahead + channel, mask=wide, other=0.0).to(tl.float32)[None, :]
        tl.store(total + place, kept, mask=inside)
    mean = tl.sum(value, axis=1) / channels
    centred = tl.where(wide[None, :], value - mean[:, None], 0.0)
    rate = tl.rsqrt(tl.sum(centred * centred, axis=1) / channels + eps)
    y = centred * rate[:, None] * tl.load(weight + channel, mask=wide, other=0.0).to(tl.float32)[None, :]
    y += tl.load(bias + channel, mask=wide, other=0.0).to(tl.float32)[None, :]
    if HAS_POSITION:
        frame = (row // pixels) % frames
        y += tl.load(position + frame[:, None] * channels + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    if EIGHT_BITS:
        y = tl.clamp(y * factor, -448.0, 448.0)
    tl.store(out + place, y.to(out.dtype.element_ty), mask=inside)


def add_layer_norm(
    x: Tensor,
    norm: nn.LayerNorm,
    branch: Tensor | None = None,
    *,
    scale: float = 1.0,
    constant: Tensor | None = None,
    ahead: Tensor | None = None,
    position: Tensor | None = None,
    factor: float | None = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """(sum + ahead, norm of sum) with sum = x + scale * branch + constant, all (N, L, C); without a branch the sum is
    ``x`` itself.

    ``constant`` and ``ahead`` (C,) go with a branch only; ``ahead`` is a bias that the next addition to the sum can
    leave out then. ``position`` (F, C) is added to the norm of image n as its row n modulo F. With ``factor`` the norm
    is stored in eight bits, times that. ``out``: where to write both.
    """
    if not fits(x):
        total = x if branch is None else x + scale * branch
        if constant is not None:
            total = total + constant
        y = F.layer_norm(total, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        if position is not None:
            y = (y.view(-1, len(position), *y.shape[1:]) + position[:, None]).flatten(0, 1)
        if ahead is not None:
            total = total + ahead
        if factor is not None:
            y = quantise(y, factor)
        if out is None:
            return total, y
        return out[0].copy_(total), out[1].copy_(y)
    images, pixels, channels = x.shape
    if out is None:
        made = torch.empty_like(x, dtype=x.dtype if factor is None else FORMAT)
        out = (x if branch is None else torch.empty_like(x), made)
    width = power_of_two(channels)
    rows = max(1, 4096 // width)
    _add_layer_norm_kernel[(cdiv(images * pixels, rows),)](
        x, branch if branch is not None else x, scale, constant if constant is not None else x,
        ahead if ahead is not None else x, out[0], norm.weight, norm.bias, position if position is not None else x,
        out[1], images * pixels, pixels, 1 if position is None else len(position), channels, norm.eps, factor or 1.0,
        HAS_BRANCH=branch is not None, HAS_CONSTANT=constant is not None, HAS_AHEAD=ahead is not None,
        HAS_POSITION=position is not None, EIGHT_BITS=factor is not None, ROWS=rows, CHANNELS=width, num_warps=4,
    )  # fmt: skip
    return out
