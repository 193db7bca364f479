"""What makes pictures right and crisp: weighted pixel and edge errors, and an adversary that learns beside them.

No pretrained network is used. Pictures are (N, 3, H, W) in -1..1 and weights (N, 1, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

SCALES = 3


def weighted(error: Tensor, weights: Tensor) -> Tensor:
    """The mean of ``error`` (N, C, H, W) under ``weights`` (N, 1, H, W)."""
    return (error * weights).sum() / (weights.sum() * error.shape[1]).clamp(min=1e-6)


def picture_loss(output: Tensor, target: Tensor, weights: Tensor, edges: float = 1.0) -> tuple[Tensor, Tensor]:
    """L1 of the pixels plus ``edges`` times that of their differences at three scales; and the first by itself."""
    pixels = weighted((output - target).abs(), weights)
    loss = pixels
    for scale in range(SCALES):
        if scale:
            output, target, weights = (F.avg_pool2d(x, 2) for x in (output, target, weights))
        for dim, where in ((-1, weights[..., 1:]), (-2, weights[..., 1:, :])):
            loss = loss + edges * weighted((output.diff(dim=dim) - target.diff(dim=dim)).abs(), where)
    return loss, pixels


class Discriminator(nn.Module):
    """Tells real patches from made ones at 1/4 and 1/8 of the sides, with spectral normalisation (Miyato et al. 2018,
    "Spectral Normalization for Generative Adversarial Networks")."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(3, width, 4, 2, 1),
                spectral_norm(nn.Conv2d(width, width, 3, 1, 1)),
                spectral_norm(nn.Conv2d(width, 2 * width, 4, 2, 1)),
                spectral_norm(nn.Conv2d(2 * width, 3 * width, 4, 2, 1)),
            ]
        )
        self.middle = spectral_norm(nn.Conv2d(2 * width, 1, 3, 1, 1))
        self.last = spectral_norm(nn.Conv2d(3 * width, 1, 3, 1, 1))

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Verdicts at two scales, and the features of all layers."""
        features = []
        x = x.contiguous(memory_format=torch.channels_last)  # as the convolutions of accelerators want it
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return [self.middle(features[2]), self.last(features[3])], features


def discriminator_loss(real: Sequence[Tensor], made: Sequence[Tensor]) -> Tensor:
    """The hinge loss of the discriminator on its verdicts."""
    terms = [F.relu(1 - a.float()).mean() + F.relu(1 + b.float()).mean() for a, b in zip(real, made, strict=True)]
    return torch.stack(terms).sum()


def adversarial_loss(verdicts: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The maker's hinge loss, weighted."""
    terms = []
    for verdict in verdicts:
        terms.append(-weighted(verdict.float(), F.interpolate(weights, size=verdict.shape[-2:], mode="area")))
    return torch.stack(terms).sum()


def feature_loss(made: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """Distance of the discriminator's features, each layer in units of its own size."""
    terms = [
        (a.float() - b.float()).abs().mean() / (b.float().abs().mean() + 1e-4) for a, b in zip(made, real, strict=True)
    ]
    return torch.stack(terms).sum()


class Adversary:
    """A discriminator, trained beside what makes the pictures.

    :meth:`gradient` gives the gradient on the made pictures that the maker follows besides its own loss's, in shares
    of that one's norm, so that the balance does not depend on how certain the discriminator is.
    """

    def __init__(self, discriminator: Discriminator, adversarial: float = 0.35, features: float = 0.5) -> None:
        self.discriminator, self.adversarial, self.features = discriminator, adversarial, features

    def learn(self, made: Tensor, real: Tensor) -> Tensor:
        """The discriminator's loss, its backward pass already done."""
        with torch.autocast(made.device.type, torch.bfloat16, enabled=made.is_cuda):
            verdicts_real, _ = self.discriminator(real)
            verdicts_made, _ = self.discriminator(made.detach())
        loss = discriminator_loss(verdicts_real, verdicts_made)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def gradient(self, made: Tensor, real: Tensor, weights: Tensor, own: Tensor, strength: float) -> Tensor:
        """The gradient (N, 3, H, W) on ``made``; ``own`` is that of the maker's loss."""
        made = made.detach().requires_grad_(True)
        self.discriminator.requires_grad_(False)
        with torch.autocast(made.device.type, torch.bfloat16, enabled=made.is_cuda):
            verdicts, features = self.discriminator(made)
            with torch.no_grad():
                _, wanted = self.discriminator(real)
        (fool,) = torch.autograd.grad(adversarial_loss(verdicts, weights), made, retain_graph=True)
        (match,) = torch.autograd.grad(feature_loss(features, wanted), made)
        self.discriminator.requires_grad_(True)
        size = own.norm()
        total = self.adversarial * fool / (fool.norm() + 1e-9) + self.features * match / (match.norm() + 1e-9)
        gradient: Tensor = strength * size * total
        return gradient
