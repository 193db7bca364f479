"""Trains the embedded model's autoencoder on rendered people: ``echo-rtc train autoencoder``.

The loss is L1 on the pixels and on their differences at three scales, several times as much on eyes, mouth and hands;
for the last part of the time a light adversary with feature matching is added. Noise on the latents keeps the decoder
smooth around what the UNet will hand it. Pictures may still be arriving while it runs: new files are taken up.

Runs on all GPUs under ``torchrun``.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from echo_rtc.errors import InputError
from echo_rtc.model.autoencoder import PixelShuffleAutoencoder
from echo_rtc.model.weights import check, read_state
from echo_rtc.train.budget import Budget, load_checkpoint, save_checkpoint
from echo_rtc.train.flat import FlatParameters
from echo_rtc.train.footage import box_weights, read
from echo_rtc.train.loop import Schedule, make_folder, start_log
from echo_rtc.train.pixels import Adversary, Discriminator, picture_loss
from echo_rtc.train.ranks import Ranks
from echo_rtc.train.recipe import AUTOENCODER, SIDE

log = logging.getLogger(__name__)

LATENT_NOISE = 0.08
"""Standard deviation of the noise on the latents in training, in units of their own standard deviation."""

BOX_WEIGHTS = (6.0, 10.0, 10.0, 3.0, 3.0)
"""Mouth, left and right eye, left and right hand."""

CROP = 288
"""Side of the squares cut out of pictures for a step, pixels."""

BOX_SHARE = 0.6
"""Share of crops that are centred near one of the boxes."""

ADVERSARY_FROM = 0.6
"""Progress at which the adversary begins to learn; the autoencoder follows it a little later, over a ramp."""

SAVE_S = 60.0
"""Seconds between two checkpoints."""

LOOK_STEPS = 200
"""Steps between two looks for new files."""


class Pictures:
    """Pictures (N, 3, S, S) uint8 and boxes (N, 5, 4) from the files of some folders, on the device; files that come
    later are found by :meth:`look`. With several ranks each takes every n-th file.

    A file has ``images`` and ``boxes``, or is a take, of which every ``stride``-th frame is used.
    """

    def __init__(self, folders: Sequence[Path], ranks: Ranks, most: int, stride: int = 6) -> None:
        self._folders, self._ranks, self._most, self._stride = folders, ranks, most, stride
        self._seen: set[Path] = set()
        self._images = torch.empty(most, 3, SIDE, SIDE, dtype=torch.uint8, device=ranks.device)
        self._boxes = torch.empty(most, 5, 4, device=ranks.device)
        self._count = 0

    def look(self, files: int = 1_000_000) -> None:
        """Reads at most ``files`` new files."""
        found = sorted(path for folder in self._folders for path in folder.glob("*.npz"))
        mine = [path for path in found if path not in self._seen]
        for path in mine[: files * self._ranks.count]:
            self._seen.add(path)
            if _number(path) % self._ranks.count != self._ranks.rank or self._count == self._most:
                continue
            try:
                arrays = read(path)
            except InputError as error:
                log.warning("%s", error)
                continue
            step = self._stride if "frames" in arrays else 1
            images = arrays["frames" if "frames" in arrays else "images"][::step]
            kept = min(len(images), self._most - self._count)
            self._images[self._count : self._count + kept] = images[:kept].to(self._images.device)
            self._boxes[self._count : self._count + kept] = arrays["boxes"][::step][:kept].to(self._boxes)
            self._count += kept

    @property
    def images(self) -> Tensor:
        return self._images[: self._count]

    @property
    def boxes(self) -> Tensor:
        return self._boxes[: self._count]

    def __len__(self) -> int:
        return self._count

    def batch(self, count: int, crop: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Crops (count, 3, crop, crop) in -1..1 of random pictures, colours varied, and weights (count, 1, ...)."""
        index = rng.integers(len(self.images), size=count)
        boxes = self.boxes[torch.from_numpy(index).to(self.boxes.device)].cpu().numpy()
        side = self.images.shape[-1]
        pixels, places = [], []
        for number, around in zip(index, boxes, strict=True):
            left, top = rng.integers(0, side - crop + 1, size=2)
            seen = around[np.isfinite(around).all(1) & (around[:, 2] > around[:, 0]) & (around[:, 0] < 1)]
            if len(seen) and rng.random() < BOX_SHARE:
                box = seen[rng.integers(len(seen))]
                centre = (box[:2] + box[2:]) / 2 * side + rng.normal(size=2) * crop * 0.15
                left, top = (centre - crop / 2).clip(0, side - crop).astype(int)
            pixels.append(self.images[number, :, top : top + crop, left : left + crop])
            places.append((around * side - np.array([left, top, left, top])) / crop)
        x = torch.stack(pixels).float() / 255
        weights = box_weights(
            torch.from_numpy(np.stack(places).astype(np.float32)).to(x.device), (crop, crop), BOX_WEIGHTS
        )
        gamma = np.exp(0.15 * rng.normal(size=(count, 1, 1, 1))).astype(np.float32)
        gain = (1 + 0.1 * rng.normal(size=(count, 3, 1, 1))).astype(np.float32)
        x = (x.clamp(min=1e-4) ** torch.from_numpy(gamma).to(x.device) * torch.from_numpy(gain).to(x.device)).clamp(
            0, 1
        )
        flipped = torch.from_numpy(rng.random((count, 1, 1, 1)) < 0.5).to(x.device)
        x, weights = (torch.where(flipped, value.flip(-1), value) for value in (x, weights))
        return (2 * x - 1).contiguous(memory_format=torch.channels_last), weights


def _number(path: Path) -> int:
    """The number in a file's name."""
    digits = "".join(c for c in path.stem if c.isdigit())
    return int(digits or 0)


@torch.inference_mode()
def normalise(model: PixelShuffleAutoencoder, images: Tensor, ranks: Ranks) -> None:
    """Sets the mean and spread of the latents from pictures (N, 3, S, S) uint8."""
    parts = [model.encoder(part.float() / 127.5 - 1) for part in torch.split(images, 32)]
    latents = torch.cat(parts)
    mean, square = latents.mean(dim=(0, 2, 3)), latents.square().mean(dim=(0, 2, 3))
    ranks.mean_(mean)
    ranks.mean_(square)
    model.latent_mean.copy_(mean)
    model.latent_std.copy_((square - mean.square()).clamp(min=1e-6).sqrt())


@torch.inference_mode()
def restored_db(model: PixelShuffleAutoencoder, images: Tensor) -> float:
    """Mean PSNR (dB) of pictures (N, 3, S, S) uint8 against what the autoencoder makes of them."""
    values = []
    for part in torch.split(images, 16):
        wanted = part.float() / 127.5 - 1
        error = ((model.decode(model.encode(wanted)).clamp(-1, 1) - wanted) / 2).square().mean(dim=(1, 2, 3))
        values.append(-10 * error.clamp(min=1e-10).log10())
    return float(torch.cat(values).mean())


def write(model: PixelShuffleAutoencoder, folder: Path) -> None:
    """Weights and widths of the autoencoder."""
    state = {name: value.float().contiguous().cpu() for name, value in model.state_dict().items()}
    path = folder / "autoencoder.safetensors"
    save_file(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)
    (folder / "autoencoder.json").write_text(json.dumps(model.config, indent=1) + "\n")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="echo-rtc train autoencoder", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for autoencoder.safetensors and checkpoints")
    parser.add_argument("--pictures", type=Path, nargs="+", required=True, help="folders of rendered pictures or takes")
    parser.add_argument("--held-out", type=Path, help="folder of pictures of other people, to report on")
    parser.add_argument("--begin-with", type=Path, help="weights to begin with instead of random ones")
    parser.add_argument("--minutes", type=float, default=5.0, help="training time")
    parser.add_argument("--piece-minutes", type=float, default=math.inf, help="end after this part of the time")
    parser.add_argument("--batch", type=int, default=24, help="crops a step on each GPU")
    parser.add_argument("--most", type=int, default=20_000, help="pictures kept on each GPU")
    parser.add_argument("--crop", type=int, default=CROP, help="side of the crops, pixels")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the folder, exactly")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    model = PixelShuffleAutoencoder(AUTOENCODER)
    if options.crop % model.scale or not model.scale <= options.crop <= SIDE:
        parser.error(f"--crop is {options.crop}; it must be a multiple of {model.scale} up to {SIDE}")
    if options.batch < 1:
        parser.error(f"--batch is {options.batch}; it must be at least 1")
    start_log()
    make_folder(options.output)
    ranks = Ranks.join(options.device)
    torch.manual_seed(options.seed)
    if options.begin_with is not None:
        state = read_state(options.begin_with)
        check(model, state, options.begin_with)
        model.load_state_dict({name: value.float() for name, value in state.items()})
    model.to(ranks.device)
    discriminator = Discriminator().to(ranks.device)
    parameters = FlatParameters([model], decay=0.998, weight_decay=1e-4)
    judge = FlatParameters([discriminator], betas=(0.5, 0.95))
    pictures = Pictures(options.pictures, ranks, options.most)
    pictures.look()
    if not len(pictures):
        raise InputError(f"there are no pictures in {options.pictures[0]}; render some first")
    log.info("%d pictures", len(pictures))

    def keep() -> None:
        parts: dict[str, object] = {"rng": rng}
        if ranks.first:
            parts |= {"model": parameters.state(), "judge": judge.state()}
            with parameters.averaged():
                normalise(model, pictures.images[:256], Ranks(0, 1, ranks.device))
                write(model, options.output)
        save_checkpoint(options.output, "autoencoder", budget, parts)

    schedule = Schedule(options.minutes, options.learning_rate, piece_minutes=options.piece_minutes)
    budget = Budget("autoencoder", ranks, schedule, keep, SAVE_S)
    rng = np.random.default_rng([options.seed, ranks.rank])
    if options.resume:
        parts = load_checkpoint(options.output, "autoencoder", budget)
        parameters.restore(parts["model"])
        judge.restore(parts["judge"])
        rng = parts["rng"]
    adversary, follows = Adversary(discriminator), 0
    for step in budget:
        if step % LOOK_STEPS == LOOK_STEPS - 1 and budget.progress < 0.9:
            pictures.look(files=8)
        wanted, weights = pictures.batch(options.batch, options.crop, rng)
        figures = _step(model, adversary, wanted, weights, min(1.0, max(0.0, (follows - 150) / 300)))
        if budget.progress > ADVERSARY_FROM:
            follows += 1
            figures["judge"] = adversary.learn(figures.pop("made"), wanted)
            ranks.mean_(judge.gradient)
            judge.step(3e-4)
        figures.pop("made", None)
        ranks.mean_(parameters.gradient)
        parameters.step(budget.rate, limit=0.5)
        budget.figures = figures

    parameters.take_average()
    model.eval()
    normalise(model, pictures.images[:1024], ranks)
    if ranks.first:
        write(model, options.output)
        log.info("autoencoder: %.2f dB on pictures of the training", restored_db(model, pictures.images[:128]))
        if options.held_out is not None:
            others = Pictures([options.held_out], Ranks(0, 1, ranks.device), 256)
            others.look()
            log.info("autoencoder: %.2f dB on %d held-out pictures", restored_db(model, others.images), len(others))
    ranks.wait()
    ranks.leave()
    return 0


def _step(
    model: PixelShuffleAutoencoder, adversary: Adversary, wanted: Tensor, weights: Tensor, strength: float
) -> dict[str, Tensor]:
    """Forward and backward pass of one batch; the gradient is added to the parameters'. Returns figures, and what was
    ``made``."""
    with torch.autocast(wanted.device.type, torch.bfloat16, enabled=wanted.is_cuda):
        latents = model.encoder(wanted)
        noise = LATENT_NOISE * latents.detach().std() * torch.randn_like(latents)
        restored = model.decoder(latents + noise)
    made = restored.detach().float().requires_grad_(True)
    loss, pixels = picture_loss(made, wanted, weights)
    (gradient,) = torch.autograd.grad(loss, made)
    if strength > 0:
        gradient = gradient + adversary.gradient(made, wanted, weights, gradient, strength)
    # A weak pull to the unit ball keeps latents of a size half precision likes.
    pull = (2e-4 * latents.detach().float() / latents.numel()).to(latents.dtype)
    torch.autograd.backward([restored, latents], [gradient.to(restored.dtype), pull])
    return {"loss": loss.detach(), "l1": pixels.detach(), "made": made.detach()}
