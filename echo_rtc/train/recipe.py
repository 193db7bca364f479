"""The embedded model's widths and the constants that its training and its rendering share."""

from __future__ import annotations

from typing import Any

from echo_rtc.model.autoencoder import AutoencoderConfig, PixelShuffleAutoencoder

FPS = 24
CLIP_FRAMES = 12
HISTORY_FRAMES = 48
SAMPLE_RATE = 16_000
MARGIN = 2
HISTORY_SAMPLES = HISTORY_FRAMES * SAMPLE_RATE // FPS
WINDOW_SAMPLES = (HISTORY_FRAMES + CLIP_FRAMES) * SAMPLE_RATE // FPS

SIDE = 384
"""Side of the rendered pictures, pixels."""

POSE_SIDE = 128
"""Side of the drawn pose pictures, pixels."""

START_TIMESTEP = 100
"""The diffusion starts here, from the reference's latents, and takes one step."""

_LATENTS = 96
_WIDTHS = [96, 128]
_UNET: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": _LATENTS,
    "out_channels": _LATENTS,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "block_out_channels": _WIDTHS,
    "layers_per_block": 1,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_num_groups": 16,
    "norm_eps": 1e-5,
    "attention_head_dim": 4,
}

AUTOENCODER = AutoencoderConfig(
    latent_channels=_LATENTS,
    encoder_channels=(64, 128, 192),
    encoder_blocks=(1, 2, 2),
    decoder_channels=(224, 80, 40),
    decoder_blocks=(3, 1, 1),
    upscales=(3, 2),
)

NETWORKS: dict[str, Any] = {
    "reference_unet": {
        **_UNET,
        "cross_attention_dim": 96,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    },
    "denoising_unet": {
        **_UNET,
        "cross_attention_dim": 96,
        "down_block_types": ["CrossAttnDownBlock3D", "CrossAttnDownBlock3D"],
        "mid_block_type": "UNetMidBlock3DCrossAttn",
        "up_block_types": ["CrossAttnUpBlock3D", "CrossAttnUpBlock3D"],
    },
    "denoising_unet_additional": {
        "use_inflated_groupnorm": True,
        "unet_use_cross_frame_attention": False,
        "unet_use_temporal_attention": False,
        "use_motion_module": True,
        "motion_module_resolutions": [1, 2],
        "motion_module_mid_block": True,
        "motion_module_decoder_only": False,
        "motion_module_type": "Vanilla",
        "motion_module_kwargs": {
            "num_attention_heads": 4,
            "norm_num_groups": 16,
            "num_transformer_block": 1,
            "attention_block_types": ["Temporal_Self", "Temporal_Self"],
            "temporal_position_encoding": True,
            "temporal_position_encoding_max_len": 32,
            "temporal_attention_dim_div": 1,
        },
    },
    "pose_encoder": {
        "conditioning_embedding_channels": _WIDTHS[0],
        "conditioning_channels": 3,
        "block_out_channels": [24, 48, 64, 96],
    },
    "whisper": {
        "n_mels": 80,
        "n_audio_ctx": 150,
        "n_audio_state": 96,
        "n_audio_head": 4,
        "n_audio_layer": 3,
        "n_vocab": 0,
        "n_text_ctx": 0,
        "n_text_state": 0,
        "n_text_head": 0,
        "n_text_layer": 0,
    },
    "autoencoder": PixelShuffleAutoencoder(AUTOENCODER).config,
    "trained": {
        "size": [SIDE, SIDE],
        "pose_size": [POSE_SIDE, POSE_SIDE],
        "frame_rates": [FPS],
        "clip_frames": [CLIP_FRAMES],
        "steps": [1],
        "start_timestep": START_TIMESTEP,
        "bridged": True,
        "liveliness": 0.6,
        "renderings_only": True,
    },
}
"""The content of the embedded model's config.json."""
