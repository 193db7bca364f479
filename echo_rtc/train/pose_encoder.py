"""Gives the pose encoder a start before the UNets: ``python -m echo_rtc.train pose-encoder``.

A 1x1 convolution reads off the features how hands, arms and head change the autoencoder's latents, averaged over a few
people; a linear layer reads off head and blink. Both readers are thrown away. In ``talking-face`` the encoder can then
be kept frozen, and the features of all poses are computed once.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from echo_rtc.model.autoencoder import AutoencoderConfig, PixelShuffleAutoencoder
from echo_rtc.model.pose_encoder import PoseEncoder
from echo_rtc.train.loop import Run, Schedule, best_device, start_log
from echo_rtc.train.person import Motion, People
from echo_rtc.train.recipe import NETWORKS
from echo_rtc.train.scenes import PoseBank, draw_all, to_network
from echo_rtc.train.talking_face import restore

log = logging.getLogger(__name__)

FEATURE_SIZE = 0.3
"""Mean square of the features that the loss asks for: about what the denoising UNet's first layer gives."""


class PoseReader(nn.Module):
    """Pose encoder and two readers: drawn poses (B, 3, H, W) -> features (B, C0, h, w), change of the latents
    (B, C, h, w), and head and blink (B, 4)."""

    def __init__(self, latent_channels: int) -> None:
        super().__init__()
        self.encoder = PoseEncoder(NETWORKS["pose_encoder"])
        width = self.encoder.conv_out.out_channels
        # Alone, the encoder has no other layer beside it that could begin to learn.
        nn.init.kaiming_normal_(self.encoder.conv_out.weight)
        self.latents = nn.Conv2d(width, latent_channels, 1)
        self.gestures = nn.Linear(width, 4)

    def forward(self, poses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features: Tensor = self.encoder(poses)
        return features, self.latents(features), self.gestures(features.mean(dim=(2, 3)))


@torch.inference_mode()
def mean_change(autoencoder: PixelShuffleAutoencoder, bank: PoseBank, size: int) -> Tensor:
    """How far the latents of each pose are from the mean over poses: (N, C, h, w), averaged over three people."""
    count = bank.blink.numel()
    motion = Motion(
        mouth=torch.zeros(count, 5, device=bank.blink.device),
        blink=bank.blink.flatten(0, 1),
        head=bank.head.flatten(0, 1),
        hands=bank.hands.flatten(0, 1),
        hands_score=bank.scores.flatten(0, 1),
    )
    people = [People.default(), *(People.sample(1, torch.Generator().manual_seed(seed)) for seed in (5, 6))]
    total = None
    for person in people:
        drawn = draw_all(person.repeat_interleave(count).to(bank.blink.device), motion, size)
        latents = torch.cat([autoencoder.encode(to_network(part)) for part in torch.split(drawn, 64)])
        change = latents - latents.mean(0)
        total = change if total is None else total + change
    assert total is not None
    return total / len(people)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="echo-rtc train pose-encoder", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="has the autoencoder; gets pose_encoder.safetensors")
    parser.add_argument("--pose-bank", type=Path, required=True, help="file of the command pose-bank")
    parser.add_argument("--minutes", type=float, default=2.0, help="training time, drawing excluded")
    parser.add_argument("--batch", type=int, default=8, help="poses a step")
    parser.add_argument("--size", type=int, default=256, help="side of the images, pixels")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    start_log()
    device = best_device(options.device)
    torch.manual_seed(options.seed)

    autoencoder = PixelShuffleAutoencoder(AutoencoderConfig())
    restore(autoencoder, options.folder / "autoencoder.safetensors")
    autoencoder.to(device).eval().requires_grad_(False)
    bank = PoseBank.load(options.pose_bank, device)
    images = bank.images.flatten(0, 1).permute(0, 3, 1, 2)
    change = mean_change(autoencoder, bank, options.size).clone()
    gestures = torch.cat([bank.head.flatten(0, 1), bank.blink.flatten()[:, None]], dim=1)
    gestures = (gestures - gestures.mean(0)) / gestures.std(0).clamp(min=1e-6)

    model = PoseReader(change.shape[1]).to(device)
    for _ in (run := Run([model], Schedule(options.minutes, 2e-3), "pose-encoder")):
        index = torch.randint(len(images), (options.batch,), device=device)
        features, latents, read = model(images[index].float() / 255)
        changed = (latents - change[index]).square().mean() / change.var()
        moved = (read - gestures[index]).square().mean()
        loss = changed + 0.1 * moved + 0.02 * (features.square().mean() - FEATURE_SIZE).abs()
        run.descend(loss, change=changed.detach(), gesture=moved.detach())

    state = {name: value.float().contiguous().cpu() for name, value in model.encoder.state_dict().items()}
    save_file(state, options.folder / "pose_encoder.safetensors")
    return 0
