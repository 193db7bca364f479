"""The 3x3 convolution of channels-last images in eight bits, as one product over nine shifted views of the image.

A tile is 128 pixels of a small rectangle; the hardware's copies of rectangles of tensors fetch each view, with zeros
beyond the border. Bias, residual and the moments of the result (``group_norm.py``) are computed from the registers,
which spares the passes that the vendor's convolution needs for them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echo_rtc.model.kernels.eight_bits import Weight
from echo_rtc.model.kernels.group_norm import Moments, add_moments
from echo_rtc.model.kernels.launch import TensorDescriptor, cdiv, fits, jit, processors, tl

_PIXELS = 128


@jit
def _convolution_kernel(  # type: ignore[no-untyped-def]
    x, weight, bias, residual, out, parts, images, height, width, channels, made, scale,
    HAS_RESIDUAL: tl.constexpr, ROWS: tl.constexpr, ACROSS: tl.constexpr, MADE: tl.constexpr, DEPTH: tl.constexpr,
    GROUP: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    PIXELS: tl.constexpr = ROWS * ACROSS
    tiles_across, tiles_down = width // ACROSS, height // ROWS
    per_image = tiles_across * tiles_down
    down, across = images * per_image, tl.cdiv(made, MADE)
    in_group = GROUP * across
    steps = tl.cdiv(channels, DEPTH)
    for number in tl.range(tl.program_id(0), across * down, PROGRAMS, flatten=True):
        first = number // in_group * GROUP
        size = tl.minimum(down - first, GROUP)
        tile = first + number % in_group % size
        column = number % in_group // size * MADE
        image, part = tile // per_image, tile % per_image
        top, left = part // tiles_across * ROWS, part % tiles_across * ACROSS
        total = tl.zeros((PIXELS, MADE), tl.float32)
        for step in range(0, 9 * steps):
            tap, depth = step // steps, step % steps * DEPTH
            view = x.load([image, top + tap // 3 - 1, left + tap % 3 - 1, depth]).reshape(PIXELS, DEPTH)
            total = tl.dot(view, weight.load([column, tap * channels + depth]).T, total)
        pixel = tl.arange(0, PIXELS)
        row = (image.to(tl.int64) * height + top + pixel // ACROSS) * width + left + pixel % ACROSS
        channel = column + tl.arange(0, MADE)
        inside = (channel < made)[None, :]
        place = row[:, None] * made + channel[None, :]
        total = total * scale + tl.load(bias + channel, mask=channel < made, other=0.0).to(tl.float32)[None, :]
        if HAS_RESIDUAL:
            total += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)
        mean = tl.sum(total, axis=0) / PIXELS
        centred = total - mean[None, :]
        at = parts + tile.to(tl.int64) * 2 * made + channel
        tl.store(at, mean, mask=channel < made)
        tl.store(at + made, tl.sum(centred * centred, axis=0), mask=channel < made)


class EightBitConvolution:
    """A 3x3 convolution in eight bits. ``factor`` is that of its input."""

    def __init__(self, conv: nn.Conv2d, factor: float) -> None:
        flat = conv.weight.permute(0, 2, 3, 1).flatten(1)  # (C', 9 C)
        self._weight = Weight.of(flat, factor)
        self._made, self._channels = conv.out_channels, conv.in_channels

    @staticmethod
    def suits(conv: nn.Conv2d, height: int, width: int) -> bool:
        """Whether the kernel computes this convolution of images of this size, and sooner than the vendor's does in
        half precision (measured on an H100)."""
        rows, across = _tile(height, width)
        wide = conv.out_channels % 128 == 0 or conv.in_channels >= 640
        return rows * across == _PIXELS and conv.in_channels % 16 == 0 and conv.out_channels % 16 == 0 and wide

    def __call__(
        self, x: Tensor, height: int, width: int, bias: Tensor, residual: Tensor | None = None
    ) -> tuple[Tensor, Moments]:
        """x (N, height * width, C) in eight bits, convolved, plus bias and residual (N, L, C') -> (N, L, C') of the
        bias's type, and its moments."""
        images, made, channels = len(x), self._made, self._channels
        if not fits(x):
            return self._plain(x, height, width, bias, residual)
        rows, across = _tile(height, width)
        out = x.new_empty((images, height * width, made), dtype=bias.dtype)
        tiles = height * width // _PIXELS
        parts = x.new_empty((images, tiles, 2, made), dtype=torch.float32)
        # Measured on an H100: two programs at a time hide each other's ends, but for the widest.
        columns, together = (256, 1) if made % 512 == 0 else (128, 2)
        programs = min(together * processors(x.device), images * tiles * cdiv(made, columns))
        _convolution_kernel[(programs,)](
            TensorDescriptor(
                x, [images, height, width, channels],
                [height * width * channels, width * channels, channels, 1], [1, rows, across, 128],
            ),
            TensorDescriptor(self._weight.values, [made, 9 * channels], [9 * channels, 1], [columns, 128]),
            bias, residual if residual is not None else bias, out, parts, images, height, width, channels, made,
            self._weight.number, HAS_RESIDUAL=residual is not None, ROWS=rows, ACROSS=across, MADE=columns, DEPTH=128,
            GROUP=8, PROGRAMS=programs, num_warps=8 // together, num_stages=3,
        )  # fmt: skip
        return out, Moments(parts, height * width, _PIXELS)

    def _plain(
        self, x: Tensor, height: int, width: int, bias: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Moments]:
        weight = self._weight.values.float().view(self._made, 3, 3, self._channels).permute(0, 3, 1, 2)
        image = x.float().view(len(x), height, width, self._channels).permute(0, 3, 1, 2)
        y = (F.conv2d(image, weight, padding=1) * self._weight.number).permute(0, 2, 3, 1).flatten(1, 2)
        total, moments = add_moments(y.to(bias.dtype), bias, residual)
        assert moments is not None
        return total, moments


def _tile(height: int, width: int) -> tuple[int, int]:
    """The sides of a tile: powers of two that divide the image's, 128 pixels where that is possible."""
    across = min(width & -width, _PIXELS)
    return min(height & -height, _PIXELS // across), across
