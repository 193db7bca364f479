"""Pictures as the autoencoder makes them to what is stored or encoded: RGB bytes, or YUV 4:2:0 planes.

Computed with torch on whatever device the pictures are on. Knows nothing of frames' times or of encoders.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

_LUMA = (65.481, 128.553, 24.966)
_CHROMA = ((-37.797, -74.203, 112.0), (112.0, -93.786, -18.214))
"""BT.601, limited range, for RGB in 0..1 (ITU-R BT.601-7, section 2.5.1, to 219 and 224 levels)."""


@cache
def _kernels(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Luma's 1x1 and chroma's 2x2 kernel and their biases, for RGB in -1..1; half a level is added for rounding."""
    luma = torch.tensor(_LUMA, device=device) / 2
    chroma = torch.tensor(_CHROMA, device=device) / 2
    return (
        luma.reshape(1, 3, 1, 1),
        16.5 + luma.sum().reshape(1),
        (chroma / 4).reshape(2, 3, 1, 1).expand(2, 3, 2, 2).contiguous(),
        128.5 + chroma.sum(dim=1),
    )


def rgb_bytes(images: Tensor) -> Tensor:
    """(F, 3, H, W) in -1..1, clamped -> (F, H, W, 3) uint8."""
    levels = images.float().clamp(-1, 1) * 127.5 + 128.0
    return levels.permute(0, 2, 3, 1).to(torch.uint8)


def yuv_planes(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(F, 3, H, W) in -1..1, clamped, with even sides -> y (F, H, W), u and v (F, H/2, W/2), uint8.

    BT.601 limited range; each chroma sample is the mean of its 2x2 pixels.
    """
    clamped = images.float().clamp(-1, 1)
    luma, luma_bias, chroma, chroma_bias = _kernels(images.device)
    y = F.conv2d(clamped, luma, luma_bias)[:, 0]
    uv = F.conv2d(clamped, chroma, chroma_bias, stride=2)
    return y.to(torch.uint8), uv[:, 0].to(torch.uint8), uv[:, 1].to(torch.uint8)


TOP_SHARE = 0.25
"""Of what is cut off above and below, so much is taken above: that is where heads are."""


def fitted(images: Tensor, width: int, height: int) -> Tensor:
    """Pictures (F, 3, H, W) cropped to the shape of width x height and scaled to it: (F, 3, height, width) float32."""
    rows, columns = images.shape[-2:]
    kept_rows = min(rows, round(columns * height / width))
    kept_columns = min(columns, round(rows * width / height))
    top = round(TOP_SHARE * (rows - kept_rows))
    left = (columns - kept_columns) // 2
    part = images[..., top : top + kept_rows, left : left + kept_columns].float()
    if part.shape[-2:] == (height, width):
        return part
    shrinks = kept_rows > height
    return F.interpolate(part, (height, width), mode="bicubic", antialias=shrinks, align_corners=False)
