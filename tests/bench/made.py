"""A parity folder of our own making, unlike the miniature: three levels, not square, another frame rate, other margins.

Its expected tensors come from the slow ways: frames moved instead of positions, DDIM written out, zeros for what the
unconditional half lacks, frames decoded one by one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor

from echo_rtc.model.audio import WhisperAudioEncoder, WhisperDims, frame_tokens
from echo_rtc.model.kl_autoencoder import LATENT_SCALE
from echo_rtc.model.pose_encoder import PoseEncoder
from echo_rtc.model.unet2d import ReferenceUNet
from echo_rtc.model.unet3d import DenoisingUNet
from tests.model.small import AUDIO_WIDTH, denoising_unet, motion_config, randomise, reference_unet, unet_config

FRAMES, FPS, STEPS = 5, 25, 3
WIDTH, HEIGHT, SCALE = 40, 24, 4
MARGINS = (1, 3)
CFG = 3.0
VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [8, 8, 8],
    "latent_channels": 4,
    "norm_num_groups": 4,
    "layers_per_block": 1,
}
POSE: dict[str, Any] = {"block_out_channels": [4, 4, 8], "conditioning_embedding_channels": 32}


def published_scheduler() -> DDIMScheduler:
    """The noise schedule as the published code sets it up."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="linear",
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,
        clip_sample=False,
    )


@torch.inference_mode()
def make_folder(folder: Path) -> Path:
    """Writes weights, config and expected tensors; returns the folder."""
    torch.manual_seed(11)
    weights = folder / "pretrained_weights"
    reference, denoiser, pose = reference_unet(), denoising_unet(), PoseEncoder(POSE)
    randomise(pose)
    vae, whisper = AutoencoderKL(**VAE).eval(), WhisperAudioEncoder(WhisperDims(80, 1500, AUDIO_WIDTH, 2, 1)).eval()
    for name in ("sd-vae-ft-mse", "sd-image-variations-diffusers/unet", "audio_processor"):
        (weights / name).mkdir(parents=True)
    state = denoiser.state_dict()
    torch.save(reference.state_dict(), weights / "reference_unet.pth")
    torch.save({k: v for k, v in state.items() if ".motion_modules." not in k}, weights / "denoising_unet_acc.pth")
    torch.save({k: v for k, v in state.items() if ".motion_modules." in k}, weights / "motion_module_acc.pth")
    torch.save(pose.state_dict(), weights / "pose_encoder.pth")
    torch.save(reference.state_dict(), weights / "sd-image-variations-diffusers/unet/diffusion_pytorch_model.bin")
    save_file(vae.state_dict(), weights / "sd-vae-ft-mse/diffusion_pytorch_model.safetensors")
    (weights / "sd-vae-ft-mse/config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", **VAE}))
    whisper.save_encoder(folder / "encoder.safetensors")
    dims = {name: getattr(whisper.dims, name) for name in WhisperDims.__dataclass_fields__}
    content = {"dims": dims, "model_state_dict": load_file(folder / "encoder.safetensors")}
    torch.save(content, weights / "audio_processor/tiny.pt")
    config = {
        "reference_unet": unet_config(cross_attention_dim=768),
        "denoising_unet": unet_config(),
        "denoising_unet_additional": motion_config(),
        "pose_encoder": POSE,
    }
    (folder / "config.json").write_text(json.dumps(config))
    tensors = _conditions(reference, pose, vae, whisper)
    for cfg in (CFG, 1.0):
        for start in ("fresh", "init"):
            tensors |= _case(denoiser, vae, tensors, (cfg, start))
    save_file(
        {name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()},
        folder / "expected.safetensors",
    )
    return folder


def _conditions(
    reference: ReferenceUNet, pose: PoseEncoder, vae: AutoencoderKL, whisper: WhisperAudioEncoder
) -> dict[str, Tensor]:
    """The inputs and everything before the diffusion."""
    image = torch.randint(256, (HEIGHT, WIDTH, 3), dtype=torch.uint8)
    poses = torch.rand(1, 3, FRAMES, HEIGHT, WIDTH)
    audio = 0.1 * torch.randn(16_000 * 2 + 16_000 * FRAMES // FPS)
    hidden = whisper.hidden_states(audio)
    pixels = image.permute(2, 0, 1)[None].float() / 127.5 - 1
    latents = vae.encode(pixels).latent_dist.mean * LATENT_SCALE
    tensors = {
        "image": image,
        "poses": poses,
        "audio": audio,
        "noise": torch.randn(1, 4, FRAMES, HEIGHT // SCALE, WIDTH // SCALE),
        "init_latents": torch.randn(1, 4, HEIGHT // SCALE, WIDTH // SCALE),
        "whisper_hidden": hidden,
        "reference_latents": latents,
        "pose_features": torch.stack([pose(poses[:, :, frame]) for frame in range(FRAMES)], dim=2),
    }
    for margin in MARGINS:
        tensors[f"audio_tokens_margin{margin}"] = frame_tokens(hidden, 2 * FPS + FRAMES, FPS, margin, 0)
    return tensors | {f"reference_bank.{name}": value for name, value in reference(latents).items()}


def _case(
    denoiser: DenoisingUNet, vae: AutoencoderKL, tensors: dict[str, Tensor], kind: tuple[float, str]
) -> dict[str, Tensor]:
    """One guidance scale, fresh or chained."""
    cfg, start = kind
    scheduler = published_scheduler()
    scheduler.set_timesteps(STEPS)
    audio = tensors[f"audio_tokens_margin{MARGINS[1]}"][None, 2 * FPS :]
    pose = tensors["pose_features"]
    prefix = "reference_bank."
    bank = {k.removeprefix(prefix): v.half().float() for k, v in tensors.items() if k.startswith(prefix)}
    x = tensors["noise"].clamp(-1.5, 1.5)
    if start == "init":
        x[:, :, 0] = 0.6 * tensors["init_latents"] + 0.4 * x[:, :, 0]
    made: dict[str, Tensor] = {"unet0.sample": x.expand(2, -1, -1, -1, -1) if cfg > 1 else x}
    for index, timestep in enumerate(scheduler.timesteps.tolist()):
        entering = [(frame + 3 * index) % FRAMES for frame in range(FRAMES)]
        out = torch.empty_like(x)
        with_all = denoiser(x[:, :, entering], timestep, audio[:, entering], pose[:, :, entering], bank)
        without = denoiser(
            x[:, :, entering], timestep, torch.zeros_like(audio), torch.zeros_like(pose[:, :, entering]), None
        )
        out[:, :, entering] = without + cfg * (with_all - without) if cfg > 1 else with_all
        if index == 0:
            made["unet0.output"] = torch.cat((without, with_all)) if cfg > 1 else with_all
        alpha = scheduler.alphas_cumprod[timestep]
        previous = timestep - 1000 // STEPS
        following = scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.final_alpha_cumprod
        clean = alpha.sqrt() * x - (1 - alpha).sqrt() * out
        noise = alpha.sqrt() * out + (1 - alpha).sqrt() * x
        x = following.sqrt() * clean + (1 - following).sqrt() * noise
        made |= {f"step{index}.guided_prediction": out, f"step{index}.latents": x}
    zeros = (torch.zeros_like(audio), torch.zeros_like(pose)) if cfg > 1 else (audio[:0], pose[:0])
    images = [vae.decode(x[:, :, frame] / LATENT_SCALE).sample for frame in range(FRAMES)]
    made |= {
        "unet0.audio": torch.cat((zeros[0], audio)),
        "unet0.pose": torch.cat((zeros[1], pose)),
        "final_latents": x,
        "video": (torch.stack(images, dim=2) / 2 + 0.5).clamp(0, 1),
    }
    return {f"cfg{cfg}_{start}.{name}": value for name, value in made.items()}
