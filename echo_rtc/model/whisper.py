"""Whisper's audio encoder (Radford et al. 2022, section 2.2) under the parameter names of OpenAI's files.

Written out here because importing the library that has it takes several seconds of each start. Knows log-mels and
hidden states; knows no sound and no files.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echo_rtc.model.blocks import draw_weights

_INITIAL_STD = 0.02
"""Standard deviation of new weights."""


class Attention(nn.Module):
    """Self-attention of several heads; the keys have no bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, P, C) -> (B, P, C)."""
        scale = (x.shape[-1] // self.heads) ** -0.5
        # Scaled before the product, as the published code does: in half precision the order shows.
        projected = (self.query(x) * scale, self.key(x), self.value(x))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2).contiguous() for part in projected)
        y = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        out: Tensor = self.out(y.transpose(1, 2).flatten(-2))
        return out


class Block(nn.Module):
    """Attention and two linear layers, each behind a norm and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.attn_ln = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.mlp_ln = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, P, C) -> (B, P, C)."""
        x = x + self.attn(self.attn_ln(x))
        x = x + self.mlp(self.mlp_ln(x))
        if x.dtype == torch.float16:  # what overflows must not become infinite
            bound = torch.finfo(x.dtype).max - 1000
            x = x.clamp(-bound, bound)
        return x


class WhisperEncoder(nn.Module):
    """Two convolutions, the second of which halves the rate, positions, and blocks; without the final norm.

    A new one has random weights and the sinusoidal positions of the paper, which are not trained.
    """

    def __init__(self, mels: int, positions: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(mels, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.positional_embedding = nn.Parameter(_sinusoids(positions, width), requires_grad=False)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d):
                draw_weights(module.weight, _INITIAL_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, mels: Tensor) -> list[Tensor]:
        """(B, mels, 2 * positions) -> the first block's input and each block's output, (B, positions, C) each."""
        x = F.gelu(self.conv2(F.gelu(self.conv1(mels)))).transpose(1, 2) + self.positional_embedding
        states = [x]
        for block in self.blocks:
            states.append(block(states[-1]))
        return states


def _sinusoids(positions: int, width: int) -> Tensor:
    """(positions, width) on the default device: sines, then cosines, at geometric frequencies from 1 down to
    1/10000."""
    frequencies = 10_000.0 ** -np.linspace(0.0, 1.0, width // 2)
    angles = np.arange(positions)[:, None] * frequencies
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
    return torch.from_numpy(table).to(torch.get_default_device())
