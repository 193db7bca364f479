"""Group normalisation of channels-last activations in three parts, so that each can ride on a neighbour's pass.

The moments of every channel are taken where an activation is made, in the pass that adds its bias and its residual
(:func:`add_moments`); they travel with it, and serve any grouping of channels, that of a concatenation too. The norm
itself is then a multiplication and an addition per channel, with SiLU, in one pass (:func:`affine`).

Variances are centred: each part of the pixels has its own mean, and the parts are joined by Chan, Golub and LeVeque's
formula ("Algorithms for computing the sample variance", 1983), never as a difference of large numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from echo_rtc.model.kernels.eight_bits import FORMAT, quantise
from echo_rtc.model.kernels.launch import cdiv, fits, jit, power_of_two, tl

_PIXELS = 128
_CHANNELS = 64
"""Pixels and channels of a tile, at most."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and centred sum of squares of each channel over parts of an image: ``parts`` (N, P, 2, C) float32.

    The image has ``pixels`` pixels; each part has ``part`` of them, the last one what is left.
    """

    parts: Tensor
    pixels: int
    part: int


def _channel_block(*channels: int) -> int:
    """The widest tile, a power of two up to 64, that divides all of these."""
    common = math.gcd(*channels)
    return min(_CHANNELS, common & -common)


@jit
def _add_moments_kernel(  # type: ignore[no-untyped-def]
    x, bias, residual, out, parts, pixels, channels, width,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, STORE: tl.constexpr, MOMENTS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    image, part, block = tl.program_id(2), tl.program_id(1), tl.program_id(0)
    pixel = part * PIXELS + tl.arange(0, PIXELS)
    channel = block * CHANNELS + tl.arange(0, CHANNELS)
    inside = (pixel < pixels)[:, None]
    place = (image.to(tl.int64) * pixels + pixel)[:, None] * channels + channel[None, :]
    if INTERLEAVED:
        # Output pixel (y, x) is in the quarter of the channels that its parities name, at (y + 1, x + 1) // 2.
        y, across = pixel // width, pixel % width
        line = image.to(tl.int64) * (pixels // width // 2 + 1) + (y + 1) // 2
        source = (line * (width // 2 + 1) + (across + 1) // 2) * 4 + y % 2 * 2 + across % 2
        value = tl.load(x + source[:, None] * channels + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    else:
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        value += tl.load(bias + channel).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        value += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    if STORE:
        tl.store(out + place, value, mask=inside)
    if MOMENTS:
        count = tl.minimum(pixels - part * PIXELS, PIXELS).to(tl.float32)
        mean = tl.sum(tl.where(inside, value, 0.0), axis=0) / count
        centred = tl.where(inside, value - mean[None, :], 0.0)
        squares = tl.sum(centred * centred, axis=0)
        row = (image * tl.num_programs(1) + part).to(tl.int64) * 2 * channels
        tl.store(parts + row + channel, mean)
        tl.store(parts + row + channels + channel, squares)


def add_moments(
    x: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, moments: bool = True
) -> tuple[Tensor, Moments | None]:
    """x (N, L, C) + bias (C,) + residual (N, L, C), and the moments of the sum (None where they are not wanted).

    Where there is nothing to add, the sum is ``x`` itself.
    """
    images, pixels, channels = x.shape
    adds = bias is not None or residual is not None
    if not fits(x):
        total = x
        if bias is not None:
            total = total + bias
        if residual is not None:
            total = total + residual
        return total, _moments(total) if moments else None
    out = torch.empty_like(x) if adds else x
    block = _channel_block(channels)
    size = min(_PIXELS, power_of_two(pixels))
    count = cdiv(pixels, size)
    parts = x.new_empty((images, count, 2, channels), dtype=torch.float32) if moments else x
    _add_moments_kernel[(channels // block, count, images)](
        x, bias if bias is not None else x, residual if residual is not None else x, out, parts, pixels, channels, 0,
        HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, STORE=adds, MOMENTS=moments, INTERLEAVED=False,
        PIXELS=size, CHANNELS=block, num_warps=4,
    )  # fmt: skip
    return out, Moments(parts, pixels, size) if moments else None


def interleave_moments(x: Tensor, bias: Tensor, height: int, width: int) -> tuple[Tensor, Moments]:
    """Four half-size images in the channels to one of ``height`` x ``width``, plus bias (C,), and its moments.

    x (N, (height / 2 + 1) * (width / 2 + 1), 4 C): the pixel (i, j) of the image whose rows are odd (a = 1) or even
    (a = 0) and whose columns are odd or even (b) lies at (i + a, j + b), in quarter 2 a + b of the channels.
    -> (N, height * width, C).
    """
    images, _, channels = x.shape[0], x.shape[1], x.shape[2] // 4
    if not fits(x):
        small = x.view(images, height // 2 + 1, width // 2 + 1, 2, 2, channels)
        image = x.new_empty((images, height, width, channels))
        for a in (0, 1):
            for b in (0, 1):
                image[:, a::2, b::2] = small[:, a : a + height // 2, b : b + width // 2, a, b]
        total = image.flatten(1, 2) + bias
        return total, _moments(total)
    pixels = height * width
    out = x.new_empty((images, pixels, channels))
    block = _channel_block(channels)
    size = min(_PIXELS, power_of_two(pixels))
    count = cdiv(pixels, size)
    parts = x.new_empty((images, count, 2, channels), dtype=torch.float32)
    _add_moments_kernel[(channels // block, count, images)](
        x, bias, x, out, parts, pixels, channels, width,
        HAS_BIAS=True, HAS_RESIDUAL=False, STORE=True, MOMENTS=True, INTERLEAVED=True,
        PIXELS=size, CHANNELS=block, num_warps=4,
    )  # fmt: skip
    return out, Moments(parts, pixels, size)


def _moments(x: Tensor) -> Moments:
    mean = x.float().mean(1)
    squares = (x.float() - mean[:, None]).square().sum(1)
    return Moments(torch.stack((mean, squares), dim=1)[:, None], x.shape[1], x.shape[1])


@jit
def _coefficients_kernel(  # type: ignore[no-untyped-def]
    first, second, weight, bias, offset, out, channels, first_channels, count, pixels, part, eps, group,
    HAS_OFFSET: tl.constexpr, PARTS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    image, number = tl.program_id(1), tl.program_id(0)
    inner = tl.arange(0, GROUP)
    channel = number * group + inner
    inside = inner < group
    from_first = channel < first_channels
    second_channels = channels - first_channels
    index = tl.arange(0, PARTS)
    there = index < count
    sizes = tl.where(there, tl.minimum(pixels - index * part, part), 0).to(tl.float32)
    row = (image * count + index)[:, None] * 2
    mask_first = there[:, None] & (inside & from_first)[None, :]
    mask_second = there[:, None] & (inside & (channel >= first_channels))[None, :]
    place_first = row * first_channels + channel[None, :]
    place_second = row * second_channels + (channel - first_channels)[None, :]
    means = tl.load(first + place_first, mask=mask_first, other=0.0)
    means += tl.load(second + place_second, mask=mask_second, other=0.0)
    squares = tl.load(first + place_first + first_channels, mask=mask_first, other=0.0)
    squares += tl.load(second + place_second + second_channels, mask=mask_second, other=0.0)
    if HAS_OFFSET:
        shift = tl.load(offset + channel, mask=inside, other=0.0).to(tl.float32)
        means += tl.where(there[:, None], shift[None, :], 0.0)
    weights = tl.where(inside[None, :], sizes[:, None], 0.0)
    total = pixels.to(tl.float32) * group
    mean = tl.sum(tl.sum(means * weights, axis=1), axis=0) / total
    centred = means - mean
    spread = tl.sum(tl.sum(weights * centred * centred + squares, axis=1), axis=0)
    rate = tl.rsqrt(spread / total + eps)
    scale = rate * tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    base = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32) - mean * scale
    if HAS_OFFSET:
        base += shift * scale
    place = image * 2 * channels + channel
    tl.store(out + place, scale, mask=inside)
    tl.store(out + place + channels, base, mask=inside)


def coefficients(
    moments: Sequence[Moments], weight: Tensor, bias: Tensor, groups: int, eps: float, offset: Tensor | None = None
) -> Tensor:
    """The norm as numbers per channel: (N, 2, C) float32, scale and shift.

    ``moments`` are those of one activation, or of two whose channels stand side by side. ``offset`` (C,) is added to
    the activation before it is normalised: the bias of the convolution that made it.
    """
    first, second = moments[0], moments[-1]
    channels = len(weight)
    if not fits(first.parts):
        return _plain_coefficients(moments, weight, bias, groups, eps, offset)
    if first.part != second.part or first.pixels != second.pixels:
        raise ValueError("activations that stand side by side must be of one size")
    images, count = first.parts.shape[:2]
    out = weight.new_empty((images, 2, channels), dtype=torch.float32)
    group = channels // groups
    _coefficients_kernel[(groups, images)](
        first.parts, second.parts, weight, bias, offset if offset is not None else weight, out,
        channels, first.parts.shape[3], count, first.pixels, first.part, eps, group,
        HAS_OFFSET=offset is not None, PARTS=max(2, power_of_two(count)), GROUP=max(2, power_of_two(group)),
        num_warps=1 if count * group <= 1024 else 4,
    )  # fmt: skip
    return out


def _plain_coefficients(
    moments: Sequence[Moments], weight: Tensor, bias: Tensor, groups: int, eps: float, offset: Tensor | None
) -> Tensor:
    parts = torch.cat([each.parts for each in moments], dim=3)  # (N, P, 2, C)
    images, count, _, channels = parts.shape
    sizes = torch.tensor(
        [min(moments[0].part, moments[0].pixels - index * moments[0].part) for index in range(count)],
        device=parts.device,
        dtype=torch.float32,
    )[None, :, None]
    means, squares = parts[:, :, 0], parts[:, :, 1]
    if offset is not None:
        means = means + offset.float()
    total = moments[0].pixels * (channels // groups)
    mean = (means * sizes).sum(1).view(images, groups, -1).sum(2) / total
    mean = mean.repeat_interleave(channels // groups, dim=1)  # (N, C)
    spread = (sizes * (means - mean[:, None]).square() + squares).sum(1).view(images, groups, -1).sum(2) / total
    scale = (spread + eps).rsqrt().repeat_interleave(channels // groups, dim=1) * weight.float()
    base = bias.float() - mean * scale
    if offset is not None:
        base = base + offset.float() * scale
    return torch.stack((scale, base), dim=1)


@jit
def _affine_kernel(  # type: ignore[no-untyped-def]
    first, second, numbers, out, pixels, channels, first_channels, factor,
    SILU: tl.constexpr, EIGHT_BITS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    image, part, block = tl.program_id(2), tl.program_id(1), tl.program_id(0)
    pixel = part * PIXELS + tl.arange(0, PIXELS)
    channel = block * CHANNELS + tl.arange(0, CHANNELS)
    inside = (pixel < pixels)[:, None]
    row = (image.to(tl.int64) * pixels + pixel)[:, None]
    scale = tl.load(numbers + image * 2 * channels + channel)[None, :]
    base = tl.load(numbers + (image * 2 + 1) * channels + channel)[None, :]
    if block * CHANNELS < first_channels:
        value = tl.load(first + row * first_channels + channel[None, :], mask=inside, other=0.0)
    else:
        other = channels - first_channels
        value = tl.load(second + row * other + (channel - first_channels)[None, :], mask=inside, other=0.0)
    y = value.to(tl.float32) * scale + base
    if SILU:
        y = y / (1.0 + tl.exp(-y))
    if EIGHT_BITS:
        y = tl.clamp(y * factor, -448.0, 448.0)
    tl.store(out + row * channels + channel[None, :], y.to(out.dtype.element_ty), mask=inside)


def affine(x: Sequence[Tensor], numbers: Tensor, silu: bool, factor: float | None = None) -> Tensor:
    """x (N, L, C), or two whose channels stand side by side, times scale plus shift, then SiLU if wanted: (N, L, C).

    With ``factor`` it is stored in eight bits, times that.
    """
    first, second = x[0], x[-1]
    images, pixels, first_channels = first.shape
    channels = numbers.shape[2]
    if not fits(first):
        joined = torch.cat(list(x), dim=2) if len(x) > 1 else first
        y = torch.addcmul(numbers[:, None, 1], joined.float(), numbers[:, None, 0])
        y = F.silu(y) if silu else y
        return y.to(first.dtype) if factor is None else quantise(y, factor)
    out = first.new_empty((images, pixels, channels), dtype=first.dtype if factor is None else FORMAT)
    block = _channel_block(*(each.shape[2] for each in x))
    size = min(_PIXELS, power_of_two(pixels))
    _affine_kernel[(channels // block, cdiv(pixels, size), images)](
        first, second, numbers, out, pixels, channels, first_channels, factor or 1.0,
        SILU=silu, EIGHT_BITS=factor is not None, PIXELS=size, CHANNELS=block, num_warps=4,
    )  # fmt: skip
    return out
