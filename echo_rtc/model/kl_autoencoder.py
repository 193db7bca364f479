"""The published autoencoder, Stable Diffusion's (Rombach et al. 2022, "High-Resolution Image Synthesis with Latent
Diffusion Models", appendix D), under the parameter names of its files.

Knows the scale of the latents and the old names of the attention's parameters; knows nothing of files or frames.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from echo_rtc.model.blocks import GroupNorm, Pointwise, attention, image_of, tokens_of
from echo_rtc.model.config import KLConfig

LATENT_SCALE = 0.18215
"""Latents are the encoder's mean times this, by Stable Diffusion 1.5."""

_EPS = 1e-6
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(r"(?<=\.attentions\.0\.)(query|key|value|proj_attn)(?=\.(weight|bias)$)")


class Autoencoder(Protocol):
    """Images (B, 3, H, W) in -1..1 to latents (B, C, h, w) and back; deterministic, scaling included."""

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def scale(self) -> int: ...

    @property
    def latent_channels(self) -> int: ...

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...


class Resnet(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice; added to its input."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, in_channels, eps=_EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(groups, out_channels, eps=_EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = Pointwise(in_channels, out_channels) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C', h, w)."""
        y = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        out: Tensor = y + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return out


class PixelAttention(nn.Module):
    """Attention of each image's pixels over each other, in one head; added to its input."""

    heads = 1

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = GroupNorm(groups, width, eps=_EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        n = tokens_of(self.group_norm(x))
        y = attention(*(to(n)[:, None] for to in (self.to_q, self.to_k, self.to_v)))[:, 0]
        return x + image_of(self.to_out[0](y), *x.shape[2:])


class Middle(nn.Module):
    """Attention between two resnets, at the coarsest level."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(width, width, groups) for _ in range(2)])
        self.attentions = nn.ModuleList([PixelAttention(width, groups)])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.resnets[1](self.attentions[0](self.resnets[0](x)))
        return out


class Downsampler(nn.Module):
    """Halves the sides, rounding down, with zeros to the right of the image and below it only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return y


class Upsampler(nn.Module):
    """Doubles the sides by repetition, then a 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return y


class Level(nn.Module):
    """Resnets of one level, then the step to the next, where there is one."""

    def __init__(self, channels: tuple[int, int], resnets: int, groups: int) -> None:
        super().__init__()
        came, width = channels
        self.resnets = nn.ModuleList([Resnet(came if n == 0 else width, width, groups) for n in range(resnets)])
        self.downsamplers: nn.ModuleList | None = None
        self.upsamplers: nn.ModuleList | None = None

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *(self.downsamplers or ()), *(self.upsamplers or ())):
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Images to the moments of the latents: means, then logarithms of variances."""

    def __init__(self, config: KLConfig) -> None:
        super().__init__()
        widths, groups = config.widths, config.norm_groups
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        channels = itertools.pairwise((widths[0], *widths))
        self.down_blocks = nn.ModuleList([Level(pair, config.layers, groups) for pair in channels])
        for level, width in zip([*self.down_blocks][:-1], widths, strict=False):
            level.downsamplers = nn.ModuleList([Downsampler(width)])
        self.mid_block = Middle(widths[-1], groups)
        self.conv_norm_out = GroupNorm(groups, widths[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        y: Tensor = self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))
        return y


class Decoder(nn.Module):
    """Latents to images."""

    def __init__(self, config: KLConfig) -> None:
        super().__init__()
        widths, groups = config.widths[::-1], config.norm_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = Middle(widths[0], groups)
        channels = itertools.pairwise((widths[0], *widths))
        self.up_blocks = nn.ModuleList([Level(pair, config.layers + 1, groups) for pair in channels])
        for level, width in zip([*self.up_blocks][:-1], widths, strict=False):
            level.upsamplers = nn.ModuleList([Upsampler(width)])
        self.conv_norm_out = GroupNorm(groups, widths[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for level in self.up_blocks:
            x = level(x)
        y: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return y


class KLAutoencoder(nn.Module):
    """AutoencoderKL: the mean of its latents, scaled.

    ``config`` is the content of the published ``config.json``. Parameter names are those of the published file. Raises
    InputError for a configuration that cannot be.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        sizes = KLConfig.from_mapping(config)
        self.config = dict(config)
        self.sizes = sizes
        self.encoder, self.decoder = Encoder(sizes), Decoder(sizes)
        latent = sizes.latent_channels
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1) if sizes.quant_conv else None
        self.post_quant_conv = nn.Conv2d(latent, latent, 1) if sizes.post_quant_conv else None

    @property
    def scale(self) -> int:
        """Pixels per latent along a side."""
        return int(2 ** (len(self.sizes.widths) - 1))

    @property
    def latent_channels(self) -> int:
        return self.sizes.latent_channels

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in -1..1 -> the mean latents (B, C, h, w), scaled."""
        moments = self.encoder(images)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        latents: Tensor = moments[:, : self.latent_channels] * LATENT_SCALE
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Latents as :meth:`encode` gives them -> (B, 3, H, W), about -1..1 (not clamped)."""
        x = latents / LATENT_SCALE
        images: Tensor = self.decoder(x if self.post_quant_conv is None else self.post_quant_conv(x))
        return images


def new_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published autoencoder's state dict under today's names: older files call the attention's parts otherwise."""
    return {_OLD_NAME.sub(lambda match: _OLD_NAMES[match[1]], name): value for name, value in state.items()}
