"""Attention over the frames at every pixel.

Sequences are as long as a clip has frames, a dozen, and there is one for every pixel and head: as a batch of small
products they leave a GPU idle. Here a tile holds the frames of several pixels, and what belongs to different pixels
is masked out of one ordinary product.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from echo_rtc.model.kernels.launch import cdiv, fits, jit, tl

_TILE = 64


@jit
def _frame_attention_kernel(  # type: ignore[no-untyped-def]
    qkv, out, pixels, frames, channels, scale, groups,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    head, tile, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = tl.arange(0, TILE)
    inner = row // frames
    pixel = tile * groups + inner
    frame = row % frames
    inside = (inner < groups) & (pixel < pixels)
    column = tl.arange(0, PADDED)
    mask = inside[:, None] & (column < WIDTH)[None, :]
    line = (sample * frames + frame).to(tl.int64) * pixels + pixel
    place = line[:, None] * 3 * channels + head * WIDTH + column[None, :]
    q = tl.load(qkv + place, mask=mask, other=0.0)
    k = tl.load(qkv + place + channels, mask=mask, other=0.0)
    v = tl.load(qkv + place + 2 * channels, mask=mask, other=0.0)
    # Rows beyond the last pixel attend to each other, so that no row is without any key.
    together = inner[:, None] == inner[None, :]
    scores = tl.where(together, tl.dot(q, tl.trans(k)) * scale, float("-inf"))
    scores -= tl.max(scores, axis=1)[:, None]
    shares = tl.exp2(scores)
    shares = shares / tl.sum(shares, axis=1)[:, None]
    y = tl.dot(shares.to(v.dtype), v)
    tl.store(out + line[:, None] * channels + head * WIDTH + column[None, :], y, mask=mask)


def frame_attention(qkv: Tensor, frames: int, heads: int) -> Tensor:
    """Attention of each pixel's frames over each other: qkv (B*F, L, 3 C), queries, keys and values side by side, ->
    (B*F, L, C)."""
    images, pixels, triple = qkv.shape
    channels = triple // 3
    width = channels // heads
    if not fits(qkv) or frames > _TILE:
        q, k, v = rearrange(qkv, "(b f) l (t h d) -> t (b l) h f d", f=frames, t=3, h=heads)
        y = F.scaled_dot_product_attention(q, k, v)
        return rearrange(y, "(b l) h f d -> (b f) l (h d)", l=pixels)
    groups = _TILE // frames
    out = qkv.new_empty((images, pixels, channels))
    _frame_attention_kernel[(heads, cdiv(pixels, groups), images // frames)](
        qkv, out, pixels, frames, channels, math.log2(math.e) / math.sqrt(width), groups,
        WIDTH=width, PADDED=max(16, 1 << (width - 1).bit_length()), TILE=_TILE, num_warps=4,
    )  # fmt: skip
    return out
