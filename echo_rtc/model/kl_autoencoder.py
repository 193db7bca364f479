"""The published autoencoder (diffusers' AutoencoderKL) behind the small interface that the generator uses.

Knows the scale of the latents and the old names of the attention's parameters; knows nothing of files or frames.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

from diffusers import AutoencoderKL
from torch import Tensor, nn

LATENT_SCALE = 0.18215
"""Latents are the encoder's mean times this, by Stable Diffusion 1.5."""

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


class KLAutoencoder(nn.Module):
    """AutoencoderKL: the mean of its latents, scaled.

    ``config`` is the content of the published ``config.json``. Parameter names are those of the published file.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)
        self.vae = AutoencoderKL.from_config(self.config)

    @property
    def scale(self) -> int:
        """Pixels per latent along a side."""
        return int(2 ** (len(self.vae.config["block_out_channels"]) - 1))

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config["latent_channels"])

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in -1..1 -> the mean latents (B, C, h, w), scaled."""
        latents: Tensor = self.vae.encode(images).latent_dist.mean * LATENT_SCALE
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Latents as :meth:`encode` gives them -> (B, 3, H, W), about -1..1 (not clamped)."""
        images: Tensor = self.vae.decode(latents / LATENT_SCALE).sample
        return images


def new_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published autoencoder's state dict under today's names: older files call the attention's parts otherwise."""
    return {_OLD_NAME.sub(lambda match: _OLD_NAMES[match[1]], name): value for name, value in state.items()}
