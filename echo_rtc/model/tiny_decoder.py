"""A distilled decoder in place of the autoencoder's: a few milliseconds a clip instead of dozens, and a softer picture.

The form is diffusers' AutoencoderTiny ("TAESD"); its latents are those of Stable Diffusion's autoencoder, scaled as
everywhere here. Knows the folder it is given; knows nothing of clips.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from echo_rtc.errors import InputError
from echo_rtc.model.kl_autoencoder import Autoencoder
from echo_rtc.model.libraries import import_library


class TinyDecoder(nn.Module):
    """Latents to images by a distilled decoder. ``config`` is the content of its config.json."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.vae: Any = import_library("diffusers").AutoencoderTiny.from_config(dict(config))

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (N, C, h, w) -> images (N, 3, H, W), about -1..1 (not clamped)."""
        images: Tensor = self.vae.decode(latents).sample
        return images


def build_tiny_decoder(folder: Path, beside: Autoencoder) -> TinyDecoder:
    """The decoder that a folder's config.json describes, on the meta device, for the latents of ``beside``.

    Raises InputError if the file cannot be used or the latents are others.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it holds no JSON object")
        with torch.device("meta"):
            decoder = TinyDecoder(config)
    except OSError as error:
        raise InputError(
            f"the distilled decoder {path} cannot be read ({error.strerror or error}); "
            f"fetch it with: hf download madebyollin/taesd --local-dir {folder}"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise InputError(f"the distilled decoder {path} cannot be used: {error}") from error
    channels = int(decoder.vae.config["latent_channels"])
    scale = 2 ** (len(decoder.vae.config["decoder_block_out_channels"]) - 1)
    if (channels, scale) != (beside.latent_channels, beside.scale):
        raise InputError(
            f"the distilled decoder {path} is for latents of {channels} channels at 1/{scale} of the sides; "
            f"this model's have {beside.latent_channels} at 1/{beside.scale}"
        )
    return decoder
