"""The widths of the networks, read from mappings of the form of the published configuration files.

Knows the keys and which of their values our networks compute; knows no files and no torch. Whatever a configuration
asks for beyond that is an error here, never something silently computed in another way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from echo_rtc.errors import InputError

_DOWN_TYPES = {
    "CrossAttnDownBlock2D": True,
    "DownBlock2D": False,
    "CrossAttnDownBlock3D": True,
    "DownBlock3D": False,
}
_UP_TYPES = {"CrossAttnUpBlock2D": True, "UpBlock2D": False, "CrossAttnUpBlock3D": True, "UpBlock3D": False}
_ONLY: dict[str, object] = {
    "center_input_sample": False,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "class_embed_type": None,
    "num_class_embeds": None,
    "use_linear_projection": False,
    "dual_cross_attention": False,
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
}
"""UNet keys of which we compute one value only."""
_ONLY_ADDITIONAL: dict[str, object] = {
    "use_inflated_groupnorm": True,
    "unet_use_cross_frame_attention": False,
    "unet_use_temporal_attention": False,
    "motion_module_type": "Vanilla",
}


def _integer(section: str, mapping: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = mapping.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{section}.{key} is {value!r}; a whole number from 1 up is needed")
    return value


def _widths(section: str, mapping: Mapping[str, Any], key: str, least: int) -> tuple[int, ...]:
    value = mapping.get(key)
    if (
        not isinstance(value, list | tuple)
        or len(value) < least
        or not all(isinstance(width, int) and not isinstance(width, bool) and width > 0 for width in value)
    ):
        raise InputError(f"{section}.{key} is {value!r}; a list of at least {least} channel numbers is needed")
    return tuple(value)


def _only(section: str, mapping: Mapping[str, Any], allowed: Mapping[str, object]) -> None:
    for key, value in allowed.items():
        if mapping.get(key, value) != value:
            raise InputError(f"{section}.{key} is {mapping[key]!r}; only {value!r} is supported")


def _mapping(section: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{section} is {value!r}; a mapping is needed")
    return value


@dataclass(frozen=True, slots=True)
class UNetConfig:
    """Widths of one UNet.

    ``widths`` are the channels of each level, from the finest; ``down_attention`` and ``up_attention`` say which
    levels have transformers (``up_attention`` from the coarsest level). ``heads`` are the attention heads of each level
    (the published configuration calls their *number* ``attention_head_dim``).
    """

    in_channels: int
    out_channels: int
    widths: tuple[int, ...]
    layers: int
    down_attention: tuple[bool, ...]
    up_attention: tuple[bool, ...]
    heads: tuple[int, ...]
    norm_groups: int
    norm_eps: float
    audio_width: int
    flip_sin_to_cos: bool
    freq_shift: float

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], section: str) -> UNetConfig:
        """Reads a UNet configuration; ``section`` names it in errors. Raises InputError."""
        mapping = _mapping(section, mapping)
        _only(section, mapping, _ONLY)
        widths = _widths(section, mapping, "block_out_channels", 1)
        groups = _integer(section, mapping, "norm_num_groups", 32)
        heads_value = mapping.get("attention_head_dim", 8)
        heads = tuple(heads_value) if isinstance(heads_value, list | tuple) else (heads_value,) * len(widths)
        if len(heads) != len(widths) or not all(isinstance(head, int) and head > 0 for head in heads):
            raise InputError(f"{section}.attention_head_dim is {heads_value!r}; one number of heads, or one per level")
        for width, head in zip(widths, heads, strict=True):
            if width % groups or width % head:
                raise InputError(
                    f"{section}.block_out_channels has {width}, which {groups} norm groups and {head} heads must divide"
                )
        mid = mapping.get("mid_block_type", "UNetMidBlock3DCrossAttn")
        if mid not in ("UNetMidBlock3DCrossAttn", "UNetMidBlock2DCrossAttn"):
            raise InputError(f"{section}.mid_block_type is {mid!r}; only the cross-attention kind is supported")
        return cls(
            in_channels=_integer(section, mapping, "in_channels", 4),
            out_channels=_integer(section, mapping, "out_channels", 4),
            widths=widths,
            layers=_integer(section, mapping, "layers_per_block", 2),
            down_attention=_attention(section, mapping, "down_block_types", _DOWN_TYPES, len(widths)),
            up_attention=_attention(section, mapping, "up_block_types", _UP_TYPES, len(widths)),
            heads=heads,
            norm_groups=groups,
            norm_eps=float(mapping.get("norm_eps", 1e-5)),
            audio_width=_integer(section, mapping, "cross_attention_dim", 384),
            flip_sin_to_cos=bool(mapping.get("flip_sin_to_cos", True)),
            freq_shift=float(mapping.get("freq_shift", 0)),
        )


def _attention(
    section: str, mapping: Mapping[str, Any], key: str, types: Mapping[str, bool], levels: int
) -> tuple[bool, ...]:
    names = mapping.get(key)
    if names is None:  # the published kind: transformers everywhere but at the coarsest level
        return (True,) * (levels - 1) + (False,) if types is _DOWN_TYPES else (False,) + (True,) * (levels - 1)
    if not isinstance(names, list | tuple) or len(names) != levels:
        raise InputError(f"{section}.{key} is {names!r}; {levels} block types are needed, as block_out_channels has")
    for name in names:
        if name not in types:
            raise InputError(f"{section}.{key} has {name!r}; it must be one of {', '.join(types)}")
    return tuple(types[name] for name in names)


@dataclass(frozen=True, slots=True)
class MotionConfig:
    """Where the motion modules are and how they are built.

    ``down``, ``mid`` and ``up`` say which blocks have them (``up`` from the coarsest level), ``attentions`` is the
    number of self-attentions over the frames in each of ``blocks`` blocks, ``positions`` the length of the stored
    table of frame positions (0: no positions), ``width_divisor`` divides the inner width.
    """

    down: tuple[bool, ...]
    mid: bool
    up: tuple[bool, ...]
    heads: int
    blocks: int
    attentions: int
    positions: int
    width_divisor: int
    norm_groups: int

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], widths: tuple[int, ...], section: str) -> MotionConfig:
        """Reads a "denoising_unet_additional" mapping for a UNet of these widths. Raises InputError."""
        mapping = _mapping(section, mapping)
        _only(section, mapping, _ONLY_ADDITIONAL)
        inner = _mapping(f"{section}.motion_module_kwargs", mapping.get("motion_module_kwargs", {}))
        section_inner = f"{section}.motion_module_kwargs"
        kinds = inner.get("attention_block_types", ["Temporal_Self", "Temporal_Self"])
        if not isinstance(kinds, list | tuple) or not kinds or set(kinds) != {"Temporal_Self"}:
            raise InputError(f"{section_inner}.attention_block_types is {kinds!r}; only 'Temporal_Self' is supported")
        used = bool(mapping.get("use_motion_module", True))
        resolutions = mapping.get("motion_module_resolutions", [1, 2, 4, 8])
        if not isinstance(resolutions, list | tuple):
            raise InputError(f"{section}.motion_module_resolutions is {resolutions!r}; a list of numbers is needed")
        levels = len(widths)
        here = [used and 2**level in resolutions for level in range(levels)]
        decoder_only = bool(mapping.get("motion_module_decoder_only", False))
        config = cls(
            down=tuple(level and not decoder_only for level in here),
            mid=used and bool(mapping.get("motion_module_mid_block", True)),
            up=tuple(reversed(here)),
            heads=_integer(section_inner, inner, "num_attention_heads", 8),
            blocks=_integer(section_inner, inner, "num_transformer_block", 1),
            attentions=len(kinds),
            positions=(
                _integer(section_inner, inner, "temporal_position_encoding_max_len", 32)
                if inner.get("temporal_position_encoding", True)
                else 0
            ),
            width_divisor=_integer(section_inner, inner, "temporal_attention_dim_div", 1),
            norm_groups=_integer(section_inner, inner, "norm_num_groups", 32),
        )
        for width in widths if used else ():
            if width % config.norm_groups or width % (config.heads * config.width_divisor):
                raise InputError(
                    f"{section_inner} has {config.heads} heads, {config.norm_groups} norm groups and a divisor of "
                    f"{config.width_divisor}, which must divide the width {width}"
                )
        return config


@dataclass(frozen=True, slots=True)
class PoseEncoderConfig:
    """Widths of the pose encoder: ``widths`` of its convolutions, ``out_channels`` those of the UNet's finest level."""

    in_channels: int
    widths: tuple[int, ...]
    out_channels: int

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], section: str) -> PoseEncoderConfig:
        """Reads a "pose_encoder" mapping. Raises InputError."""
        mapping = _mapping(section, mapping)
        return cls(
            in_channels=_integer(section, mapping, "conditioning_channels", 3),
            widths=_widths(section, mapping, "block_out_channels", 2),
            out_channels=_integer(section, mapping, "conditioning_embedding_channels", 320),
        )

    @property
    def scale(self) -> int:
        """Pixels per feature along a side."""
        return int(2 ** (len(self.widths) - 1))


_WIDTHS = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
}
PUBLISHED: dict[str, Any] = {
    "reference_unet": _WIDTHS | {"cross_attention_dim": 768},
    "denoising_unet": _WIDTHS | {"cross_attention_dim": 384},
    "denoising_unet_additional": {
        "use_motion_module": True,
        "motion_module_resolutions": [1, 2, 4, 8],
        "motion_module_mid_block": True,
        "motion_module_kwargs": {"num_attention_heads": 8, "temporal_position_encoding_max_len": 32},
    },
    "pose_encoder": {
        "conditioning_embedding_channels": 320,
        "conditioning_channels": 3,
        "block_out_channels": [16, 32, 96, 256],
    },
}
"""The configuration of the published full-size networks."""


_ONLY_AUTOENCODER: dict[str, object] = {"act_fn": "silu", "mid_block_add_attention": True}


@dataclass(frozen=True, slots=True)
class KLConfig:
    """Widths of the published kind of autoencoder. ``widths`` are the channels of each level, from the finest."""

    in_channels: int
    out_channels: int
    latent_channels: int
    widths: tuple[int, ...]
    layers: int
    norm_groups: int
    quant_conv: bool
    post_quant_conv: bool

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> KLConfig:
        """Reads the configuration of an AutoencoderKL. Raises InputError."""
        section = "autoencoder"
        mapping = _mapping(section, mapping)
        _only(section, mapping, _ONLY_AUTOENCODER)
        widths = _widths(section, mapping, "block_out_channels", 1)
        for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            names = mapping.get(key, [kind] * len(widths))
            _only(section, {key: list(names) if isinstance(names, tuple) else names}, {key: [kind] * len(widths)})
        groups = _integer(section, mapping, "norm_num_groups", 32)
        if any(width % groups for width in widths):
            raise InputError(f"{section}.block_out_channels is {list(widths)}, which {groups} norm groups must divide")
        return cls(
            in_channels=_integer(section, mapping, "in_channels", 3),
            out_channels=_integer(section, mapping, "out_channels", 3),
            latent_channels=_integer(section, mapping, "latent_channels", 4),
            widths=widths,
            layers=_integer(section, mapping, "layers_per_block", 1),
            norm_groups=groups,
            quant_conv=bool(mapping.get("use_quant_conv", True)),
            post_quant_conv=bool(mapping.get("use_post_quant_conv", True)),
        )
