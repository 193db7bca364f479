"""Motion modules: self-attention over the frame axis at every pixel, the only place where frames meet.

Knows nothing of audio, poses or references. Frames arrive folded into the batch, (B*F, C, h, w).
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from echo_rtc.model.blocks import Attention, FeedForward, GroupNorm, attention, image_of, tokens_of
from echo_rtc.model.config import MotionConfig


def frame_sinusoid(first: int, count: int, width: int) -> Tensor:
    """(count, width) float32 for the positions from ``first`` on: sines in even, cosines in odd channels.

    Vaswani et al. 2017, "Attention Is All You Need", section 3.5. Computed on the CPU, then on the default device: for
    arithmetic on the meta device torch imports its compiler, which takes a second or more.
    """
    with torch.device("cpu"):
        position = torch.arange(first, first + count, dtype=torch.float32)[:, None]
        rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10000.0) / width))
        table = torch.zeros(count, width)
        table[:, 0::2] = torch.sin(position * rate)
        table[:, 1::2] = torch.cos(position * rate)[:, : width // 2]
    return table.to(torch.get_default_device())


class FramePositions(nn.Module):
    """The positions of frames: a stored table, continued by the same sinusoid where there are more frames."""

    pe: Tensor

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.register_buffer("pe", frame_sinusoid(0, length, width)[None])  # (1, length, width)

    def forward(self, frames: int) -> Tensor:
        """-> (frames, width)."""
        stored = self.pe[0, :frames]
        if frames == len(stored):
            return stored
        further = frame_sinusoid(len(stored), frames - len(stored), stored.shape[1])
        return torch.cat((stored, further.to(stored)))


class FrameAttention(Attention):
    """Self-attention over the frames at every pixel, each frame marked with its position."""

    def __init__(self, width: int, config: MotionConfig) -> None:
        super().__init__(width, config.heads)
        self.pos_encoder = FramePositions(width, config.positions) if config.positions else None

    def across(self, x: Tensor, frames: int, order: Tensor) -> Tensor:
        """x (B*F, L, C) -> (B*F, L, C). Frame j stands at position order[j]."""
        if self.pos_encoder is not None:
            positions = self.pos_encoder(frames)[order]  # (F, C)
            x = (x.view(-1, frames, *x.shape[1:]) + positions[:, None]).flatten(0, 1)
        q, k, v = (
            rearrange(to(x), "(b f) l (h d) -> (b l) h f d", f=frames, h=self.heads)
            for to in (self.to_q, self.to_k, self.to_v)
        )
        y = attention(q, k, v)
        out: Tensor = self.to_out[0](rearrange(y, "(b l) h f d -> (b f) l (h d)", l=x.shape[1]))
        return out


class MotionBlock(nn.Module):
    """Self-attentions over the frames, then a feed-forward, each after a layer norm and added to its input."""

    def __init__(self, width: int, config: MotionConfig) -> None:
        super().__init__()
        self.attention_blocks = nn.ModuleList([FrameAttention(width, config) for _ in range(config.attentions)])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(config.attentions)])
        self.ff = FeedForward(width)
        self.ff_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, frames: int, order: Tensor) -> Tensor:
        """x (B*F, L, C) -> (B*F, L, C)."""
        for block, norm in zip(self.attention_blocks, self.norms, strict=True):
            assert isinstance(block, FrameAttention)
            x = x + block.across(norm(x), frames, order)
        x = x + self.ff(self.ff_norm(x))
        return x


class MotionTransformer(nn.Module):
    """Group norm per frame, linear in, motion blocks, linear out; added to its input."""

    def __init__(self, width: int, config: MotionConfig) -> None:
        super().__init__()
        inner = width // config.width_divisor
        self.norm = GroupNorm(config.norm_groups, width, eps=1e-6)
        self.proj_in = nn.Linear(width, inner)
        self.transformer_blocks = nn.ModuleList([MotionBlock(inner, config) for _ in range(config.blocks)])
        self.proj_out = nn.Linear(inner, width)
        # Untrained, a motion module leaves the frames as they are.
        for parameter in self.proj_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, frames: int, order: Tensor) -> Tensor:
        """x (B*F, C, h, w) -> (B*F, C, h, w)."""
        tokens = self.proj_in(tokens_of(self.norm(x)))
        for block in self.transformer_blocks:
            tokens = block(tokens, frames, order)
        return x + image_of(self.proj_out(tokens), *x.shape[2:])


class MotionModule(nn.Module):
    """The published checkpoints' wrapper around a motion transformer."""

    def __init__(self, width: int, config: MotionConfig) -> None:
        super().__init__()
        self.temporal_transformer = MotionTransformer(width, config)

    def forward(self, x: Tensor, frames: int, order: Tensor) -> Tensor:
        """x (B*F, C, h, w) -> (B*F, C, h, w)."""
        out: Tensor = self.temporal_transformer(x, frames, order)
        return out
