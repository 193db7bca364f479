"""The recipe: its networks fit each other, the shipped model, the size limit, and what live rendering hears."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from echo_rtc.media.clipper import Clipper
from echo_rtc.model.audio import WhisperAudioEncoder, WhisperDims
from echo_rtc.model.autoencoder import AutoencoderConfig, PixelShuffleAutoencoder
from echo_rtc.model.pose_encoder import PoseEncoder
from echo_rtc.model.unet2d import ReferenceUNet
from echo_rtc.model.unet3d import DenoisingUNet
from echo_rtc.settings import load_settings
from echo_rtc.train.evaluate import EMBEDDED
from echo_rtc.train.package import MAX_BYTES
from echo_rtc.train.recipe import (
    CLIP_FRAMES,
    FPS,
    HISTORY_FRAMES,
    HISTORY_SAMPLES,
    MARGIN,
    NETWORKS,
    POSE_SIDE,
    SAMPLE_RATE,
    SIDE,
    WINDOW_SAMPLES,
)


def test_the_networks_fit_each_other_and_the_package() -> None:
    with torch.device("meta"):
        reference = ReferenceUNet(NETWORKS["reference_unet"])
        denoiser = DenoisingUNet(NETWORKS["denoising_unet"], NETWORKS["denoising_unet_additional"])
        pose = PoseEncoder(NETWORKS["pose_encoder"])
        autoencoder = PixelShuffleAutoencoder(AutoencoderConfig.from_mapping(NETWORKS["autoencoder"]))
        audio = WhisperAudioEncoder(WhisperDims.from_mapping(NETWORKS["whisper"]))
    assert reference.config.in_channels == denoiser.config.in_channels == autoencoder.latent_channels
    assert denoiser.config.out_channels == autoencoder.latent_channels
    assert denoiser.config.audio_width == audio.width
    assert POSE_SIDE // pose.config.scale == SIDE // autoencoder.scale
    assert pose.config.out_channels == denoiser.config.widths[0]
    numbers = sum(p.numel() for part in (reference, denoiser, pose, autoencoder, audio) for p in part.parameters())
    assert 2 * numbers < MAX_BYTES <= 40_000_000


def test_training_hears_what_live_rendering_does() -> None:
    settings = load_settings([], {})
    clip = settings.clip_format
    assert (clip.fps, clip.clip_frames, clip.sample_rate) == (FPS, CLIP_FRAMES, SAMPLE_RATE)
    assert clip.history_frames == HISTORY_FRAMES
    assert settings.audio_margin == MARGIN
    first = Clipper(clip).push(np.zeros(SAMPLE_RATE, np.float32))[0]
    assert len(first.window) == WINDOW_SAMPLES
    assert len(first.window) - first.own_samples == HISTORY_SAMPLES
    audio = WhisperAudioEncoder(WhisperDims.from_mapping(NETWORKS["whisper"]))
    assert audio.max_samples >= WINDOW_SAMPLES


def test_the_shipped_model_is_of_this_recipe() -> None:
    shipped: dict[str, Any] = json.loads((EMBEDDED / "config.json").read_text())
    assert shipped == json.loads(json.dumps(NETWORKS))
