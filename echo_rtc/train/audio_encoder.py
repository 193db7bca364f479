"""Trains the embedded model's Whisper-shaped audio encoder: ``python -m echo_rtc.train audio-encoder``.

A linear head reads mouth parameters off the last hidden state at every position; after training only the encoder is
kept, whose hidden states then carry what a mouth needs. Windows are cut as the server cuts them, so that the encoder
learns to do with the little future that the end of a clip has.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from echo_rtc.model.audio import WhisperAudioEncoder, WhisperDims, log_mel_spectrogram
from echo_rtc.train.augment import augment
from echo_rtc.train.loop import Run, Schedule, best_device, make_folder, start_log
from echo_rtc.train.recipe import HISTORY_SAMPLES, NETWORKS, WINDOW_SAMPLES
from echo_rtc.train.takes import Takes

log = logging.getLogger(__name__)

MOUTH_SCALE = (3.0, 1.5, 2.0, 1.0, 0.7)
"""How much an error in each mouth parameter counts: opening most, then the lips' closure."""

HEARD_WINDOWS = 1024
"""Windows on which the trained encoder is reported."""


class MouthReader(nn.Module):
    """Audio encoder and a head: log-mels (B, 80, T) -> mouth parameters (B, T // 2, 5) at 50 positions a second."""

    def __init__(self, dims: WhisperDims) -> None:
        super().__init__()
        self.encoder = WhisperAudioEncoder(dims)
        self.head = nn.Sequential(nn.LayerNorm(dims.n_audio_state), nn.Linear(dims.n_audio_state, 5))

    def forward(self, mels: Tensor) -> Tensor:
        mouth: Tensor = self.head(self.encoder(mels)[:, :, -1])
        return mouth


def targets(takes: Takes, take: Tensor, place: Tensor, positions: int) -> Tensor:
    """Mouth parameters (B, positions, 5) of windows from ``place`` on, at the middles of positions of 20 ms."""
    return takes.mouths(take, place, (torch.arange(positions, device=place.device) + 0.5) / 50)


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson correlation of two flat tensors."""
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-9))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="echo-rtc train audio-encoder", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for audio_encoder.safetensors")
    parser.add_argument("--corpus", type=Path, required=True, help="file of the command speech")
    parser.add_argument("--held-out", type=Path, help="corpus of other voices, to report on")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--batch", type=int, default=128, help="windows a step")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if options.batch < 1:
        parser.error(f"--batch is {options.batch}; it must be at least 1")
    start_log()
    make_folder(options.output)
    device = best_device(options.device)
    torch.manual_seed(options.seed)
    cpu = torch.Generator().manual_seed(options.seed)
    noise = torch.Generator(device=device).manual_seed(options.seed)

    corpus = Takes.load(options.corpus, device)
    held_out = None if options.held_out is None else Takes.load(options.held_out, device)
    model = MouthReader(WhisperDims.from_mapping(NETWORKS["whisper"])).to(device)
    scale = torch.tensor(MOUTH_SCALE, device=device)
    run = Run([model], Schedule(options.minutes, 1e-3), "audio-encoder")
    for _ in run:
        take, place = corpus.random_places(options.batch, 0, WINDOW_SAMPLES, cpu)
        mels = log_mel_spectrogram(augment(corpus.windows(take, place, WINDOW_SAMPLES), noise))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            mouth = model(mels).float()
        error = (mouth - targets(corpus, take, place, mouth.shape[1])) * scale
        # The clip itself is what will be shown; its history matters only as context.
        weight = torch.linspace(0.3, 1.0, mouth.shape[1], device=device)[None, :, None]
        loss = (torch.nn.functional.smooth_l1_loss(error, torch.zeros_like(error), reduction="none") * weight).mean()
        run.descend(loss)

    model.eval()
    for name, heard in (("training voices", corpus), ("held-out voices", held_out)):
        if heard is None:
            continue
        with torch.inference_mode():
            take, place = heard.random_places(HEARD_WINDOWS, 0, WINDOW_SAMPLES, cpu)
            windows = heard.windows(take, place, WINDOW_SAMPLES)
            made = torch.cat([model(log_mel_spectrogram(part)) for part in torch.split(windows, 128)])
            true = targets(heard, take, place, made.shape[1])
        own = slice(made.shape[1] * HISTORY_SAMPLES // WINDOW_SAMPLES, None)
        figures = [f"{correlation(made[:, own, i].flatten(), true[:, own, i].flatten()):.3f}" for i in range(5)]
        log.info("%s: correlation of open, width, press, teeth, tongue: %s", name, " ".join(figures))
    model.encoder.to("cpu").save_encoder(options.output / "audio_encoder.safetensors")
    return 0
