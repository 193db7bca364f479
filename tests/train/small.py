"""What the tests of the training share: a corpus and networks that are small, and a clock that counts its readings."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from echo_rtc.model.audio import WhisperAudioEncoder, WhisperDims
from echo_rtc.model.autoencoder import AutoencoderConfig, PixelShuffleAutoencoder
from echo_rtc.train import loop
from echo_rtc.train.recipe import NETWORKS
from echo_rtc.train.speech import SPEECH_RATE, TRACK_RATE, Corpus

AUDIO_WIDTH = 32

SMALL_UNET = {"block_out_channels": [32, 32], "cross_attention_dim": AUDIO_WIDTH, "norm_num_groups": 8}
SMALL: dict[str, dict[str, Any]] = {
    "reference_unet": SMALL_UNET,
    "denoising_unet": SMALL_UNET,
    "pose_encoder": {"conditioning_embedding_channels": 32, "block_out_channels": [4, 8, 8, 16, 16]},
    "whisper": {"n_audio_state": AUDIO_WIDTH, "n_audio_head": 2, "n_audio_layer": 1},
}
"""Changes to the recipe's widths."""


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the recipe's networks small for one test."""
    for section, changes in SMALL.items():
        monkeypatch.setitem(NETWORKS, section, {**NETWORKS[section], **changes})


def step_clock(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Lets a training of one minute run for exactly ``steps`` steps, however long they take."""
    now = -1

    def monotonic() -> float:
        nonlocal now
        now += 1
        return max(0, now - 1) * 60 / steps

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=monotonic))


def write_corpus(path: Path, takes: int = 3, seconds: float = 5.0) -> Path:
    """A corpus of noise that comes and goes twice a second, and mouths that open with it."""
    rng = np.random.default_rng(0)
    times = (np.arange(round(seconds * TRACK_RATE)) + 0.5) / TRACK_RATE
    phase = rng.uniform(0, 1, (takes, 1))
    opening = 0.5 - 0.5 * np.cos(2 * np.pi * (2 * times + phase))
    mouth = np.zeros((takes, len(times), 5), np.float16)
    mouth[..., 0] = opening
    loud = np.repeat(opening, SPEECH_RATE // TRACK_RATE, axis=1)
    audio = (8000 * loud * rng.standard_normal(loud.shape)).clip(-32000, 32000).astype(np.int16)
    Corpus(audio, mouth, np.zeros(takes, np.int32), ("espeak:en",)).save(path)
    return path


def write_frozen(folder: Path) -> None:
    """An untrained autoencoder and audio encoder of the recipe's widths."""
    torch.manual_seed(0)
    autoencoder = PixelShuffleAutoencoder(AutoencoderConfig())
    save_file(autoencoder.state_dict(), folder / "autoencoder.safetensors")
    WhisperAudioEncoder(WhisperDims.from_mapping(NETWORKS["whisper"])).save_encoder(
        folder / "audio_encoder.safetensors"
    )
