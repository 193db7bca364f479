"""Trains the embedded model's autoencoder on drawn people: ``python -m echo_rtc.train autoencoder``.

The loss is L1 on the pixels and on their differences at three scales; the latter keeps edges sharp without an
adversary. A little noise on the latents during training keeps the decoder smooth around what the UNet will hand it.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from echo_rtc.model.autoencoder import AutoencoderConfig, PixelShuffleAutoencoder
from echo_rtc.train.gestures import sample_gestures
from echo_rtc.train.loop import Run, Schedule, best_device, make_folder, start_log
from echo_rtc.train.person import Motion, People
from echo_rtc.train.scenes import draw_all, random_mouths, to_network

log = logging.getLogger(__name__)

LATENT_NOISE = 0.05
"""Standard deviation of the noise on the latents in training, in units of their own standard deviation."""


def random_scenes(count: int, size: int, device: torch.device, generator: torch.Generator) -> Tensor:
    """(count, 3, size, size) uint8: random people with random mouths, hands and blinks."""
    gestures = sample_gestures(max(1, count // 8), 64, 24, generator)
    sequence = torch.randint(gestures.hands.shape[0], (count,), generator=generator)
    frame = torch.randint(gestures.hands.shape[1], (count,), generator=generator)
    motion = Motion(
        mouth=random_mouths(count, generator).to(device),
        blink=gestures.blink[sequence, frame].to(device),
        head=gestures.head[sequence, frame].to(device),
        hands=gestures.hands[sequence, frame].to(device),
        hands_score=gestures.scores[sequence, frame].to(device),
    )
    return draw_all(People.sample(count, generator).to(device), motion, size)


def edges_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean L1 between horizontal and vertical differences at full, half and quarter scale."""
    loss = output.new_zeros(())
    for _ in range(3):
        for dim in (-1, -2):
            loss = loss + (output.diff(dim=dim) - target.diff(dim=dim)).abs().mean()
        output, target = F.avg_pool2d(output, 2), F.avg_pool2d(target, 2)
    return loss


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="echo-rtc train autoencoder", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for autoencoder.safetensors and its config")
    parser.add_argument("--minutes", type=float, default=5.0, help="training time")
    parser.add_argument("--size", type=int, default=256, help="side of the drawn images, pixels")
    parser.add_argument("--batch", type=int, default=64, help="images a step")
    parser.add_argument("--pool", type=int, default=4096, help="images drawn ahead; a sixteenth is redrawn at a time")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    scale = PixelShuffleAutoencoder(AutoencoderConfig()).scale
    if options.size < scale or options.size % scale:
        parser.error(f"--size is {options.size}; it must be a multiple of {scale}")
    if min(options.batch, options.pool) < 1:
        parser.error(f"--batch is {options.batch} and --pool {options.pool}; both must be at least 1")
    start_log()
    make_folder(options.output)
    device = best_device(options.device)
    generator = torch.Generator().manual_seed(options.seed)
    torch.manual_seed(options.seed)

    model = PixelShuffleAutoencoder(AutoencoderConfig()).to(device)
    pool = random_scenes(options.pool, options.size, device, generator)
    refresh = max(1, options.pool // 16)
    run = Run([model], Schedule(options.minutes, 1.5e-3), "autoencoder")
    for step in run:
        if step and step % 20 == 0 and run.progress < 0.9:
            start = step // 20 * refresh % options.pool
            pool[start : start + refresh] = random_scenes(
                min(refresh, options.pool - start), options.size, device, generator
            )
        images = to_network(pool[torch.randint(options.pool, (options.batch,), device=device)])
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" and run.progress < 0.8):
            latents = model.encoder(images)
            spread = latents.detach().std()
            restored = model.decoder(latents + LATENT_NOISE * spread * torch.randn_like(latents))
        pixels = (restored.float() - images).abs().mean()
        # A weak pull to the unit ball keeps latents of a size half precision likes.
        loss = pixels + 0.5 * edges_loss(restored.float(), images) + 1e-4 * latents.float().square().mean()
        run.descend(loss, l1=pixels.detach())

    model.eval()
    with torch.inference_mode():
        latents = torch.cat([model.encoder(to_network(part)) for part in torch.split(pool[:2048], 64)])
        model.latent_mean.copy_(latents.mean(dim=(0, 2, 3)))
        model.latent_std.copy_(latents.std(dim=(0, 2, 3)).clamp(min=1e-3))
        fresh = to_network(random_scenes(256, options.size, device, generator))
        restored = torch.cat([model.decode(model.encode(part)) for part in torch.split(fresh, 64)]).clamp(-1, 1)
        error = ((restored - fresh) / 2).square().mean(dim=(1, 2, 3))
        log.info("autoencoder: PSNR on fresh drawings %.2f dB", float((-10 * error.log10()).mean()))

    state = {name: value.float().contiguous().cpu() for name, value in model.state_dict().items()}
    save_file(state, options.output / "autoencoder.safetensors")
    (options.output / "autoencoder.json").write_text(json.dumps(model.config, indent=1) + "\n")
    return 0
