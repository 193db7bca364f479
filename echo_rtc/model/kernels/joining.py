"""Each frame's own keys and values beside the reference's, for attention over both."""

from __future__ import annotations

import torch
from torch import Tensor

from echo_rtc.model.kernels.launch import cdiv, fits, jit, tl

_ROWS = 32


@jit
def _joined_kernel(  # type: ignore[no-untyped-def]
    products, keys, values, out, own, seen, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    part, which, image = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = part * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, CHANNELS)
    wide = (channel < channels)[None, :]
    mine = (row < own)[:, None] & wide
    theirs = ((row >= own) & (row < own + seen))[:, None] & wide
    line = (image.to(tl.int64) * own + row)[:, None] * 3 * channels + (1 + which) * channels
    value = tl.load(products + line + channel[None, :], mask=mine, other=0.0)
    place = (row - own)[:, None] * channels + channel[None, :]
    if which == 0:
        value += tl.load(keys + place, mask=theirs, other=0.0)
    else:
        value += tl.load(values + place, mask=theirs, other=0.0)
    line = ((which * tl.num_programs(2) + image).to(tl.int64) * (own + seen) + row)[:, None] * channels
    tl.store(out + line + channel[None, :], value, mask=mine | theirs)


def joined(products: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values out of products (F, L, 3 C), contiguous, with the reference's (1, S, C) after each frame's own:
    both (F, L + S, C)."""
    if not fits(products):
        _, own_keys, own_values = products.chunk(3, dim=2)
        frames = len(products)
        return (
            torch.cat((own_keys, keys.expand(frames, -1, -1)), dim=1),
            torch.cat((own_values, values.expand(frames, -1, -1)), dim=1),
        )
    frames, own, triple = products.shape
    seen, channels = keys.shape[1], triple // 3
    out = products.new_empty((2, frames, own + seen, channels))
    width = 1 << (channels - 1).bit_length()
    rows = max(1, min(_ROWS, 8192 // width))
    _joined_kernel[(cdiv(own + seen, rows), 2, frames)](
        products, keys.contiguous(), values.contiguous(), out, own, seen, channels,
        ROWS=rows, CHANNELS=width, num_warps=4,
    )  # fmt: skip
    return out[0], out[1]
