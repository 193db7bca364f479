"""A small autoencoder whose decoder does its work at low resolution, for the embedded model.

The published model decodes with AutoencoderKL, which convolves at full resolution: 35 to 75 ms a 256 x 256 frame on a
laptop core. Here all layers run at 1/16, 1/8 and 1/4 of the image's sides and a pixel shuffle (Shi et al. 2016,
"Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural Network") makes the
pixels at the end. There are no normalisation layers: at these sizes they would cost as much as the convolutions.

It knows nothing of frames, clips or conditioning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 4
"""Side of the pixel block that the outermost layers read and write at once."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """Widths. ``encoder_channels`` and ``encoder_blocks`` run from 1/4 of the sides inwards, ``decoder_channels`` and
    ``decoder_blocks`` from the latents outwards; all have one entry a level (no ``encoder_blocks``: 1 each).
    ``upscales`` are the factors between the decoder's levels, from the latents outwards (empty: 2 each); the encoder's
    are the same in the other order."""

    latent_channels: int = 32
    encoder_channels: tuple[int, ...] = (48, 80, 112)
    decoder_channels: tuple[int, ...] = (160, 96, 48)
    decoder_blocks: tuple[int, ...] = (2, 1, 1)
    encoder_blocks: tuple[int, ...] = ()
    upscales: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        levels = len(self.decoder_channels)
        names = ("encoder_channels", "decoder_channels", "decoder_blocks")
        numbers = [len(getattr(self, name)) for name in names] + [len(self.encoder_blocks or self.encoder_channels)]
        if levels < 1 or any(number != levels for number in numbers):
            listed = ", ".join(f"{name} {getattr(self, name)}" for name in (*names, "encoder_blocks"))
            raise ValueError(f"autoencoder: {listed} must have the same number of levels")
        if len(self.factors) != levels - 1 or not all(factor in (2, 3) for factor in self.factors):
            raise ValueError(
                f"autoencoder: upscales {self.upscales} must be {levels - 1} factors of 2 or 3 between {levels} levels"
            )

    @property
    def factors(self) -> tuple[int, ...]:
        """The factors between the decoder's levels, from the latents outwards."""
        return self.upscales or (2,) * (len(self.decoder_channels) - 1)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> AutoencoderConfig:
        """Reads the ``autoencoder`` section of a model's config.json. Raises ValueError naming an unknown key."""
        unknown = set(mapping) - set(cls.__dataclass_fields__)
        if unknown:
            known = ", ".join(cls.__dataclass_fields__)
            raise ValueError(f"autoencoder: unknown key {sorted(unknown)[0]!r}; known are {known}")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, Sequence) else value for key, value in mapping.items()
        }
        return cls(**values)


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))), without normalisation. (B, C, h, w) -> (B, C, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        # Starting as the identity keeps a stack without normalisation trainable.
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(F.silu(self.conv1(F.silu(x))))
        return out


def _shrink(channels: int, following: int, factor: int) -> list[nn.Module]:
    """Layers that make the sides ``factor`` (2 or 3) times smaller."""
    if factor == 2:
        return [nn.Conv2d(channels, following, 3, stride=2, padding=1)]
    return [nn.PixelUnshuffle(factor), nn.Conv2d(channels * factor**2, following, 1)]


class PixelShuffleAutoencoder(nn.Module):
    """Image (B, 3, H, W) in -1..1 <-> latents (B, C, H/16, W/16) of zero mean and unit variance per channel
    (1/16 with three levels; in general 1 / ``scale``)."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: AutoencoderConfig | None = None) -> None:
        super().__init__()
        self.settings = config or AutoencoderConfig()
        pixels = 3 * PATCH * PATCH
        latent = self.settings.latent_channels

        widths = self.settings.encoder_channels
        encoder: list[nn.Module] = [nn.PixelUnshuffle(PATCH), nn.Conv2d(pixels, widths[0], 3, padding=1)]
        for level, blocks in enumerate(self.settings.encoder_blocks or (1,) * len(widths)):
            if level:
                encoder += _shrink(widths[level - 1], widths[level], self.settings.factors[-level])
            encoder += [ResidualBlock(widths[level]) for _ in range(blocks)]
        encoder += [nn.Conv2d(widths[-1], latent, 1)]
        self.encoder = nn.Sequential(*encoder)

        widths = self.settings.decoder_channels
        decoder: list[nn.Module] = [nn.Conv2d(latent, widths[0], 3, padding=1)]
        for level, blocks in enumerate(self.settings.decoder_blocks):
            if level:
                factor = self.settings.factors[level - 1]
                decoder += [nn.Conv2d(widths[level - 1], factor**2 * widths[level], 1), nn.PixelShuffle(factor)]
            decoder += [ResidualBlock(widths[level]) for _ in range(blocks)]
        decoder += [nn.SiLU(), nn.Conv2d(widths[-1], pixels, 3, padding=1), nn.PixelShuffle(PATCH)]
        self.decoder = nn.Sequential(*decoder)

        self.register_buffer("latent_mean", torch.zeros(latent))
        self.register_buffer("latent_std", torch.ones(latent))

    @property
    def config(self) -> dict[str, Any]:
        """The ``autoencoder`` section of a model's config.json."""
        return asdict(self.settings)

    @property
    def scale(self) -> int:
        """How many times smaller the latents' sides are than the image's."""
        return PATCH * math.prod(self.settings.factors)

    @property
    def latent_channels(self) -> int:
        return self.settings.latent_channels

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in -1..1 -> latents (B, C, H/scale, W/scale), normalised."""
        mean, std = self.latent_mean[:, None, None], self.latent_std[:, None, None]
        latents: Tensor = (self.encoder(images) - mean) / std
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Latents as :meth:`encode` gives them -> images (B, 3, H, W), about -1..1 (not clamped)."""
        mean, std = self.latent_mean[:, None, None], self.latent_std[:, None, None]
        images: Tensor = self.decoder(latents * std + mean)
        return images
