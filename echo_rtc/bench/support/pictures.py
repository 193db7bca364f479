"""How alike two runs of pictures are: PSNR and SSIM of their luma, as the field computes them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

PEAK = 255.0
LUMA = (0.299, 0.587, 0.114)
WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
"""Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity"."""


def luma(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) in about -1..1 -> (N, 1, H, W) in whole levels 0..255."""
    weights = torch.tensor(LUMA)[None, :, None, None]
    levels = ((images.clamp(-1, 1) + 1) / 2 * PEAK).round()
    return (levels * weights).sum(1, keepdim=True)


def psnr(a: Tensor, b: Tensor) -> float:
    """Of luma (N, 1, H, W), in dB; infinity where both are the same."""
    error = float((a.double() - b.double()).square().mean())
    return math.inf if error == 0 else 10 * math.log10(PEAK**2 / error)


def ssim(a: Tensor, b: Tensor) -> float:
    """Of luma (N, 1, H, W) with sides of at least WINDOW, the mean over a Gaussian window at each pixel."""
    at = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    line = torch.exp(-at.square() / (2 * SIGMA**2))
    window = torch.outer(line, line)[None, None] / line.sum() ** 2
    a, b = a.double(), b.double()
    mean_a, mean_b = F.conv2d(a, window), F.conv2d(b, window)
    var_a = F.conv2d(a * a, window) - mean_a.square()
    var_b = F.conv2d(b * b, window) - mean_b.square()
    both = F.conv2d(a * b, window) - mean_a * mean_b
    above = (2 * mean_a * mean_b + C1) * (2 * both + C2)
    return float((above / ((mean_a.square() + mean_b.square() + C1) * (var_a + var_b + C2))).mean())
