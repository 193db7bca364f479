"""The reference UNet: what the reference image looks like to each transformer block, the "bank".

Stable Diffusion 1.5's UNet without text cross-attention and without an output head. Knows nothing of frames, audio or
the networks that use the bank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from echo_rtc.model.blocks import (
    Attention,
    Downsample,
    FeedForward,
    GroupNorm,
    Pointwise,
    ResnetBlock,
    TimestepEmbedding,
    Upsample,
    image_of,
    join,
    tokens_of,
    up_channels,
)
from echo_rtc.model.config import UNetConfig

Bank = dict[str, Tensor]
"""Block name -> (B, L, C), the output of that transformer block's norm1. Batch B is one entry per identity."""


class ReferenceBlock(nn.Module):
    """norm1 -> self-attention -> norm3 -> feed-forward, each added to its input; keeps norm1's output."""

    name = ""
    """The block's name in the bank, set by the UNet that owns it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, heads)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, bank: Bank) -> Tensor:
        """x (B, L, C) -> (B, L, C); writes bank[name] (B, L, C)."""
        y = bank[self.name] = self.norm1(x)
        x = x + self.attn1(y)
        x = x + self.ff(self.norm3(x))
        return x


class ReferenceTransformer(nn.Module):
    """A transformer block over the pixels of an image, between two 1x1 convolutions."""

    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, width, eps=1e-6)
        self.proj_in = Pointwise(width, width)
        self.transformer_blocks = nn.ModuleList([ReferenceBlock(width, heads)])
        self.proj_out = Pointwise(width, width)

    def forward(self, x: Tensor, bank: Bank) -> Tensor:
        """x (B, C, h, w) -> (B, C, h, w)."""
        tokens = self.proj_in(tokens_of(self.norm(x)))
        for block in self.transformer_blocks:
            tokens = block(tokens, bank)
        return x + image_of(self.proj_out(tokens), *x.shape[2:])


class ReferenceDown(nn.Module):
    """``layers`` times resnet and transformer at one level, then half the sides unless it is the coarsest."""

    def __init__(self, config: UNetConfig, level: int) -> None:
        super().__init__()
        width, before = config.widths[level], config.widths[max(level - 1, 0)]
        self.resnets = nn.ModuleList(
            [ResnetBlock(before if layer == 0 else width, width, config) for layer in range(config.layers)]
        )
        self.attentions = nn.ModuleList(
            [ReferenceTransformer(width, config.heads[level], config.norm_groups) for _ in range(config.layers)]
            if config.down_attention[level]
            else []
        )
        last = level == len(config.widths) - 1
        self.downsamplers = nn.ModuleList([] if last else [Downsample(width)])

    def forward(self, x: Tensor, time: Tensor, skips: list[Tensor], bank: Bank) -> Tensor:
        for layer, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if self.attentions:
                x = self.attentions[layer](x, bank)
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            skips.append(x)
        return x


class ReferenceMid(nn.Module):
    """Resnet, transformer, resnet at the coarsest level."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        width = config.widths[-1]
        self.attentions = nn.ModuleList([ReferenceTransformer(width, config.heads[-1], config.norm_groups)])
        self.resnets = nn.ModuleList([ResnetBlock(width, width, config) for _ in range(2)])

    def forward(self, x: Tensor, time: Tensor, bank: Bank) -> Tensor:
        x = self.resnets[0](x, time)
        x = self.attentions[0](x, bank)
        out: Tensor = self.resnets[1](x, time)
        return out


class ReferenceUp(nn.Module):
    """``layers`` + 1 times resnet over the joined skip and transformer, then twice the sides unless it is the finest.

    ``index`` counts from the coarsest level.
    """

    def __init__(self, config: UNetConfig, index: int) -> None:
        super().__init__()
        level = len(config.widths) - 1 - index
        width = config.widths[level]
        self.resnets = nn.ModuleList([ResnetBlock(c, width, config) for c in up_channels(config, index)])
        self.attentions = nn.ModuleList(
            [ReferenceTransformer(width, config.heads[level], config.norm_groups) for _ in self.resnets]
            if config.up_attention[index]
            else []
        )
        self.upsamplers = nn.ModuleList([Upsample(width)] if level else [])

    def forward(self, x: Tensor, time: Tensor, skips: list[Tensor], bank: Bank) -> Tensor:
        for layer, resnet in enumerate(self.resnets):
            x = resnet(join(x, skips.pop()), time)
            if self.attentions:
                x = self.attentions[layer](x, bank)
        for upsample in self.upsamplers:
            x = upsample(x, tuple(skips[-1].shape[2:]))
        return x


class ReferenceUNet(nn.Module):
    """The 2D UNet whose transformer blocks' norm1 outputs condition the denoising UNet.

    ``config`` is a mapping of the form of the published UNet configuration (widths, layers, heads, block types).
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = parsed = UNetConfig.from_mapping(config, "reference_unet")
        levels = range(len(parsed.widths))
        self.conv_in = nn.Conv2d(parsed.in_channels, parsed.widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(parsed)
        self.down_blocks = nn.ModuleList([ReferenceDown(parsed, level) for level in levels])
        self.mid_block = ReferenceMid(parsed)
        self.up_blocks = nn.ModuleList([ReferenceUp(parsed, index) for index in levels])
        for name, module in self.named_modules():
            if isinstance(module, ReferenceBlock):
                module.name = name

    def forward(self, latents: Tensor, timestep: Tensor | float = 0.0) -> Bank:
        """latents (B, C, h, w) of the reference images -> the bank, (B, L, C) for every transformer block."""
        time = self.time_embedding(timestep, len(latents))
        x = self.conv_in(latents.contiguous(memory_format=torch.channels_last))
        bank: Bank = {}
        skips = [x]
        for down in self.down_blocks:
            x = down(x, time, skips, bank)
        x = self.mid_block(x, time, bank)
        for up in self.up_blocks:
            x = up(x, time, skips, bank)
        return bank
