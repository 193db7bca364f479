"""The networks' configuration: every value that our networks do not compute is refused in one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from echo_rtc.errors import InputError
from echo_rtc.model.config import MotionConfig, PoseEncoderConfig, UNetConfig
from tests.model.small import motion_config, unet_config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"block_out_channels": []}, "x.block_out_channels is []"),
        ({"block_out_channels": [32, "64"]}, "channel numbers is needed"),
        ({"block_out_channels": [32, 40]}, "has 40, which 16 norm groups"),
        ({"block_out_channels": "320"}, "x.block_out_channels is '320'"),
        ({"layers_per_block": 0}, "x.layers_per_block is 0"),
        ({"layers_per_block": True}, "x.layers_per_block is True"),
        ({"in_channels": None}, "x.in_channels is None"),
        ({"attention_head_dim": [4, 4]}, "x.attention_head_dim is [4, 4]"),
        ({"attention_head_dim": 0}, "x.attention_head_dim is 0"),
        ({"down_block_types": ["DownBlock2D"]}, "3 block types are needed"),
        ({"down_block_types": ["UpBlock2D"] * 3}, "must be one of CrossAttnDownBlock2D"),
        ({"up_block_types": ["AttnUpBlock2D"] * 3}, "x.up_block_types has 'AttnUpBlock2D'"),
        ({"mid_block_type": None}, "x.mid_block_type is None"),
        ({"act_fn": "gelu"}, "x.act_fn is 'gelu'; only 'silu' is supported"),
        ({"center_input_sample": True}, "x.center_input_sample is True"),
        ({"use_linear_projection": True}, "x.use_linear_projection is True"),
    ],
)
def test_impossible_unets_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        UNetConfig.from_mapping(unet_config(**changes), "x")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"motion_module_type": "Other"}, "x.motion_module_type is 'Other'"),
        ({"unet_use_cross_frame_attention": True}, "x.unet_use_cross_frame_attention is True"),
        ({"motion_module_resolutions": 1}, "x.motion_module_resolutions is 1"),
        ({"motion_module_kwargs": []}, "x.motion_module_kwargs is []"),
        ({"motion_module_kwargs": {"attention_block_types": ["Spatial"]}}, "only 'Temporal_Self' is supported"),
        ({"motion_module_kwargs": {"num_attention_heads": 5}}, "5 heads"),
        ({"motion_module_kwargs": {"norm_num_groups": 7}}, "7 norm groups"),
    ],
)
def test_impossible_motion_modules_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        MotionConfig.from_mapping(motion_config(**changes), (32, 64), "x")
    assert words in str(caught.value)


@pytest.mark.parametrize("changes", [{"block_out_channels": [16]}, {"conditioning_channels": 0}])
def test_impossible_pose_encoders_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"pose_encoder\."):
        PoseEncoderConfig.from_mapping({"block_out_channels": [16, 32], **changes}, "pose_encoder")


def test_a_section_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(InputError, match="denoising_unet is 3; a mapping is needed"):
        UNetConfig.from_mapping(3, "denoising_unet")  # type: ignore[arg-type]


def test_block_types_default_to_the_published_kind() -> None:
    config = UNetConfig.from_mapping(unet_config(), "x")
    assert config.down_attention == (True, True, False)
    assert config.up_attention == (False, True, True)
