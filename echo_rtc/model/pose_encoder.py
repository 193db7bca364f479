"""The pose encoder: drawn poses to features that are added after the denoising UNet's first convolution.

Knows nothing of how poses are stored or drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echo_rtc.model.blocks import draw_weights
from echo_rtc.model.config import PoseEncoderConfig


class PoseEncoder(nn.Module):
    """Convolutions with SiLU between them; every second one halves the sides.

    ``config`` is a mapping with ``block_out_channels`` (n >= 2 widths, n - 1 halvings),
    ``conditioning_channels`` and ``conditioning_embedding_channels``.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = parsed = PoseEncoderConfig.from_mapping(config, "pose_encoder")
        self.conv_in = nn.Conv2d(parsed.in_channels, parsed.widths[0], 3, padding=1)
        blocks: list[nn.Module] = []
        for width, following in pairwise(parsed.widths):
            blocks.append(nn.Conv2d(width, width, 3, padding=1))
            blocks.append(nn.Conv2d(width, following, 3, padding=1, stride=2))
        self.blocks = nn.ModuleList(blocks)
        self.conv_out = nn.Conv2d(parsed.widths[-1], parsed.out_channels, 3, padding=1)
        # SiLU halves small values, and a drawn pose is nearly all black: with PyTorch's own weights nothing of it would
        # be left after a few layers, nor any gradient. A gain of two keeps its size.
        for convolution in (self.conv_in, *self.blocks):
            assert isinstance(convolution, nn.Conv2d)
            draw_weights(convolution.weight, 2 / math.sqrt(convolution.weight[0].numel()))
            assert convolution.bias is not None
            nn.init.zeros_(convolution.bias)
        # A pose without influence is where training starts from.
        for parameter in self.conv_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, poses: Tensor) -> Tensor:
        """Drawn poses (N, 3, H, W) in 0..1 -> features (N, C0, H / scale, W / scale), channels_last."""
        x = F.silu(self.conv_in(poses.contiguous(memory_format=torch.channels_last)))
        for block in self.blocks:
            x = F.silu(block(x))
        features: Tensor = self.conv_out(x)
        return features
