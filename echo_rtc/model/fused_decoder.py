"""The published autoencoder's decoder in the form that is quick on a GPU: the same parameters and mathematics, all
frames of a part at once, with the passes and the upsampling of ``fused.py``. Runs anywhere, so that tests compare the
two.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from echo_rtc.model.attention import AttentionChoice
from echo_rtc.model.blocks import image_of, tokens_of
from echo_rtc.model.fused import DoubledConvolution, FusedResnet, Picture, convolve, normalise, picture
from echo_rtc.model.kl_autoencoder import LATENT_SCALE, KLAutoencoder


class FusedDecoder:
    """Latents to images, with the parameters of a :class:`KLAutoencoder`.

    ``eight_bits``: the convolutions that follow a norm in eight bits. Lossy.
    """

    def __init__(self, autoencoder: KLAutoencoder, attend: AttentionChoice, eight_bits: bool = False) -> None:
        decoder: Any = autoencoder.decoder
        self._entry, self._decoder, self._attend = autoencoder.post_quant_conv, decoder, attend
        mid = decoder.mid_block
        self._mid = [FusedResnet(block, eight_bits) for block in mid.resnets]
        self._ups = [
            (
                [FusedResnet(block, eight_bits) for block in up.resnets],
                DoubledConvolution(up.upsamplers[0].conv) if up.upsamplers else None,
            )
            for up in decoder.up_blocks
        ]

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (N, C, h, w) -> images (N, 3, H, W), about -1..1 (not clamped), channels_last."""
        decoder = self._decoder
        x = latents.contiguous(memory_format=torch.channels_last) / LATENT_SCALE
        if self._entry is not None:
            x = self._entry(x)
        height, width = x.shape[2:]
        y = picture(*convolve(tokens_of(x), height, width, decoder.conv_in), decoder.conv_in.bias)
        y = self._mid[0]([y])
        for attention in decoder.mid_block.attentions:
            y = self._look(y, attention)
        y = self._mid[1]([y])
        for resnets, doubled in self._ups:
            for resnet in resnets:
                y = resnet([y])
            if doubled is not None:
                y = doubled(y, (2 * y.height, 2 * y.width))
        z = normalise([y], decoder.conv_norm_out, silu=True)
        out = decoder.conv_out
        return F.conv2d(image_of(z, y.height, y.width), out.weight, out.bias, padding=1)

    def _look(self, x: Picture, attention: Any) -> Picture:
        """Attention of each image's pixels over each other, added."""
        n = normalise([x], attention.group_norm, silu=False)
        q, k, v = (to(n).unflatten(2, (attention.heads, -1)) for to in (attention.to_q, attention.to_k, attention.to_v))
        y = F.linear(self._attend(q, k, v).flatten(2), attention.to_out[0].weight)
        return picture(y, x.height, x.width, attention.to_out[0].bias, x.tokens)
