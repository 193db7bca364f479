"""The layers that both UNets share: residual blocks, attention, feed-forward, resampling, the timestep embedding.

Module and parameter names are those of the published checkpoints (Stable Diffusion 1.5's). Knows no frames and no
conditions: images are (N, C, h, w), preferably channels_last, and tokens (N, L, C).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from echo_rtc.model.config import UNetConfig


def tokens_of(x: Tensor) -> Tensor:
    """(N, C, h, w) -> (N, h*w, C); a view where x is channels_last."""
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(n, h * w, c)


def image_of(tokens: Tensor, height: int, width: int) -> Tensor:
    """(N, h*w, C) -> (N, C, h, w), channels_last: the inverse of :func:`tokens_of`, always a view."""
    n, _, c = tokens.shape
    return tokens.view(n, height, width, c).permute(0, 3, 1, 2)


def sinusoid(timesteps: Tensor, width: int, flip_sin_to_cos: bool, freq_shift: float) -> Tensor:
    """(B,) timesteps -> (B, width) float32: sines and cosines at geometric frequencies from 1 down to 1/10000.

    The embedding of Vaswani et al. 2017, "Attention Is All You Need", section 3.5, sines first unless flipped.
    """
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / (half - freq_shift)
    angles = timesteps.float()[:, None] * torch.exp(-math.log(10000.0) * exponents)
    parts = (angles.cos(), angles.sin()) if flip_sin_to_cos else (angles.sin(), angles.cos())
    return F.pad(torch.cat(parts, dim=1), (0, width % 2))


def draw_weights(weight: Tensor, std: float) -> None:
    """Fills new weights with normal numbers. On the meta device there is nothing to fill, and torch would import its
    compiler for it, which takes a second or more."""
    if not weight.is_meta:
        nn.init.normal_(weight, std=std)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution, computed as the linear layer over channels that it is: no layout changes, and PyTorch has no
    quick 1x1 convolution for few images on one thread."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N, L, C) -> (N, L, C'), or an image (N, C, h, w) -> (N, C', h, w), channels_last."""
        if x.dim() == 3:
            out: Tensor = F.linear(x, self.weight.flatten(1), self.bias)
            return out
        return image_of(self(tokens_of(x)), *x.shape[2:])


class ShiftedConv2d(nn.Conv2d):
    """A convolution with a vector that is added to its bias, at no pass of its own."""

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """(N, C, h, w) and (C',) -> (N, C', h, w)."""
        bias = self.bias if shift is None or self.bias is None else self.bias + shift
        out: Tensor = self._conv_forward(x, self.weight, bias)
        return out


class GroupNorm(nn.GroupNorm):
    """Group normalisation (Wu & He 2018) that is quick and exact for channels_last images on the CPU.

    PyTorch's own kernel for that case takes the variance as a difference of large numbers, at float32 five to ten times
    less exact, and three times slower at the sizes of the embedded model.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        if x.device.type != "cpu" or x.dtype == torch.float64 or not x.is_contiguous(memory_format=torch.channels_last):
            return super().forward(x)
        n, c, h, w = x.shape
        tokens = x.permute(0, 2, 3, 1).reshape(n, h * w, c)  # a view
        groups = (n, self.num_groups, c // self.num_groups)
        mean = tokens.mean(1, dtype=torch.float32).view(groups).mean(2, keepdim=True).expand(groups).reshape(n, 1, c)
        centred = tokens - mean
        variance = centred.square().mean(1).view(groups).mean(2, keepdim=True)  # (N, G, 1)
        scale = (variance + self.eps).rsqrt() * self.weight.view(groups[1:])  # (N, G, C / G)
        y = torch.addcmul(self.bias, centred, scale.view(n, 1, c))
        return image_of(y.to(x.dtype), h, w)


class TimestepEmbedding(nn.Module):
    """Timesteps to the vector that every residual block is given."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        width = config.widths[0]
        self.width, self.flip, self.shift = width, config.flip_sin_to_cos, config.freq_shift
        self.linear_1 = nn.Linear(width, 4 * width)
        self.linear_2 = nn.Linear(4 * width, 4 * width)

    def forward(self, timestep: Tensor | float, batch: int) -> Tensor:
        """A number or (B,) -> (1 or B, 4 * width), SiLU already applied (every block begins with it)."""
        weight = self.linear_1.weight
        # A number becomes a tensor on the device: a copy from the host would end a recording of what runs there.
        steps = (
            timestep.to(weight.device)
            if isinstance(timestep, Tensor)
            else torch.full((1,), timestep, device=weight.device)
        ).reshape(-1)
        if len(steps) not in (1, batch):
            raise ValueError(f"{len(steps)} timesteps for a batch of {batch}")
        wave = sinusoid(steps, self.width, self.flip, self.shift).to(weight.dtype)
        embedding: Tensor = self.linear_2(F.silu(self.linear_1(wave)))
        activated: Tensor = F.silu(embedding)
        return activated


def up_channels(config: UNetConfig, index: int) -> list[int]:
    """Input channels of the resnets of up block ``index`` (from the coarsest level): what comes up plus the skip."""
    level = len(config.widths) - 1 - index
    width = config.widths[level]
    coming = config.widths[min(level + 1, len(config.widths) - 1)]
    finest_skip = config.widths[max(level - 1, 0)]
    skips = [width] * config.layers + [finest_skip]
    return [(coming if layer == 0 else width) + skip for layer, skip in enumerate(skips)]


def join(x: Tensor, skip: Tensor) -> Tensor:
    """(N, C, h, w) and (N, C', h, w) -> (N, C + C', h, w)."""
    return torch.cat((x, skip), dim=1)


class ResnetBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, the timestep, and once more; added to its input."""

    def __init__(self, in_channels: int, out_channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.norm1 = GroupNorm(config.norm_groups, in_channels, eps=config.norm_eps)
        self.conv1 = ShiftedConv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(4 * config.widths[0], out_channels)
        self.norm2 = GroupNorm(config.norm_groups, out_channels, eps=config.norm_eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = Pointwise(in_channels, out_channels) if in_channels != out_channels else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (N, C, h, w), time (1 or B, T) with N a multiple of B, samples outermost -> (N, C', h, w)."""
        y = F.silu(self.norm1(x))
        shift = self.time_emb_proj(time)  # (1 or B, C')
        if len(shift) == 1:  # one timestep for all: it is part of the convolution's bias, no pass of its own
            y = self.conv1(y, shift[0])
        else:
            shift = shift.repeat_interleave(len(x) // len(shift), dim=0)
            y = self.conv1(y) + shift[:, :, None, None]
        y = self.conv2(F.silu(self.norm2(y)))
        out: Tensor = y + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return out


class Downsample(nn.Module):
    """Halves the sides, rounding up: (N, C, h, w) -> (N, C, ceil(h/2), ceil(w/2))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


class Upsample(nn.Module):
    """Grows the sides to ``size`` (those of the features it will meet) by repetition, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        y: Tensor = self.conv(F.interpolate(x, size=size, mode="nearest"))
        return y


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention of q (..., L, d) over k and v (..., S, d) -> (..., L, d).

    In float32 on the CPU whatever the type: PyTorch's kernel is slower in half precision there.
    """
    if q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Multi-head attention of queries from one sequence over keys and values from another."""

    def __init__(self, width: int, heads: int, context_width: int | None = None, inner: int | None = None) -> None:
        super().__init__()
        context_width, inner = context_width or width, inner or width
        self.heads = heads
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_k = nn.Linear(context_width, inner, bias=False)
        self.to_v = nn.Linear(context_width, inner, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner, width)])

    @property
    def output_bias(self) -> Tensor:
        """What attention gives where all values are zeros: (width,)."""
        out = self.to_out[0]
        assert isinstance(out.bias, Tensor)  # of a linear layer, or of its form in integers
        return out.bias

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query (..., L, inner) over key and value (..., S, inner), already projected -> (..., L, width)."""
        q, k, v = (rearrange(t, "... l (h d) -> ... h l d", h=self.heads) for t in (query, key, value))
        y: Tensor = rearrange(attention(q, k, v), "... h l d -> ... l (h d)")
        out: Tensor = self.to_out[0](y)
        return out

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x (N, L, width), context (N, S, context_width) or x itself -> (N, L, width)."""
        context = x if context is None else context
        return self.attend(self.to_q(x), self.to_k(context), self.to_v(context))


class GEGLU(nn.Module):
    """A linear layer gated by the GELU of another (Shazeer 2020, "GLU Variants Improve Transformer")."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        gated: Tensor = value * F.gelu(gate)
        return gated


class FeedForward(nn.Module):
    """GEGLU to four times the width and back. The published ``net.1`` is a dropout and has no parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GEGLU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x
