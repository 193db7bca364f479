"""The networks of a model from its files, and a model into files of our own layout: safetensors beside one config.json.

Knows the order in which the published files overlay each other; knows nothing of clips,
conditioning or rendering. Whisper's and wav2vec2's files are read in ``audio.py``, each file by
``weights.py``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from echo_rtc.errors import InputError
from echo_rtc.model.audio import WhisperAudioEncoder
from echo_rtc.model.autoencoder import AutoencoderConfig, PixelShuffleAutoencoder
from echo_rtc.model.description import PUBLISHED_FILES, WEIGHT_SUFFIXES, ModelDescription, fetch_command
from echo_rtc.model.kl_autoencoder import Autoencoder, KLAutoencoder, new_names
from echo_rtc.model.pose_encoder import PoseEncoder
from echo_rtc.model.tiny_decoder import TinyDecoder, build_tiny_decoder
from echo_rtc.model.trained import Trained
from echo_rtc.model.unet2d import ReferenceUNet
from echo_rtc.model.unet3d import DenoisingUNet
from echo_rtc.model.weights import State, fill, read_state, require_file

_DIFFUSERS_FILES = tuple(
    f"diffusion_pytorch_model{variant}{suffix}"
    for variant in ("", ".fp16")
    for suffix in (".safetensors", ".bin", ".pth")
)
"""Names of the weights in a folder of diffusers, in the order in which they are looked for; fp16 is the half-precision
variant of the same weights."""


@dataclass(frozen=True, slots=True)
class Networks:
    """The networks that make pictures, loaded and on their device. The audio encoder is apart: there are two kinds.

    ``tiny`` decodes in place of the autoencoder, where it is wanted.
    """

    reference: ReferenceUNet
    denoiser: DenoisingUNet
    pose: PoseEncoder
    autoencoder: Autoencoder
    tiny: TinyDecoder | None = None


def load_networks(
    description: ModelDescription,
    device: torch.device,
    dtype: torch.dtype,
    progress: Callable[[str], None],
    tiny: bool = False,
) -> Networks:
    """Loads the networks of a model, in evaluation mode, channels_last, without gradients; the distilled decoder only
    if it is wanted (``tiny``).

    Raises InputError in one sentence naming the file, and what is missing, unexpected or misshapen in it.
    """
    config = description.config
    with torch.device("meta"):
        reference = ReferenceUNet(_section(config, "reference_unet"))
        denoiser = DenoisingUNet(_section(config, "denoising_unet"), _section(config, "denoising_unet_additional"))
        pose = PoseEncoder(_section(config, "pose_encoder"))
    files = _Files.of(description)

    def settle(network: nn.Module, state: State, source: Path) -> None:
        fill(network, state, source, dtype)
        network.eval().requires_grad_(False).to(device)

    progress(f"reading the reference UNet from {description.reference_unet}")
    settle(reference, read_state(files.reference_unet), description.reference_unet)
    progress(f"reading the denoising UNet from {description.denoising_unet}")
    settle(denoiser, _denoising_state(files, denoiser), description.denoising_unet)
    progress(f"reading the pose encoder from {description.pose_encoder}")
    settle(pose, read_state(files.pose_encoder), description.pose_encoder)
    progress(f"reading the autoencoder from {description.vae}")
    autoencoder = _load_autoencoder(description, files.autoencoder, settle)
    decoder: TinyDecoder | None = None
    if tiny:
        progress(f"reading the distilled decoder from {description.tiny_vae}")
        decoder = build_tiny_decoder(_folder_of(description.tiny_vae), autoencoder)
        settle(decoder.vae, read_state(_diffusers_file(description.tiny_vae)), description.tiny_vae)
    networks = Networks(reference, denoiser, pose, autoencoder, decoder)
    _check_together(networks, Trained.from_config(config).pose_size is None)
    return networks


@dataclass(frozen=True, slots=True)
class _Files:
    """The weight files of a model, all there: found out before the first of them, gigabytes maybe, is read."""

    reference_unet: Path
    denoising_unet: Path
    pose_encoder: Path
    autoencoder: Path
    motion_module: Path | None
    base_unet: Path | None

    @classmethod
    def of(cls, description: ModelDescription) -> _Files:
        """Raises InputError about the first missing one, with the command that fetches it."""
        vae = description.vae
        if not description.own_layout:
            mend = _fetch(description, "stabilityai/sd-vae-ft-mse", _folder_of(vae))
            require_file(_folder_of(vae) / "config.json", mend)
            vae = require_file(_diffusers_file(vae), mend)
        base = description.base_unet
        if base is not None:
            folder = _folder_of(base)
            place = folder.parent if folder.name == "unet" else folder
            mend = _fetch(description, "lambdalabs/sd-image-variations-diffusers", place, "--include 'unet/*' ")
            base = require_file(_diffusers_file(base), mend)
        named = {name: getattr(description, name) for name in ("reference_unet", "denoising_unet", "pose_encoder")}
        if description.motion_module is not None:
            named["motion_module"] = description.motion_module
        found = {name: require_file(path, _whole(description, name, path)) for name, path in named.items()}
        return cls(
            reference_unet=found["reference_unet"],
            denoising_unet=found["denoising_unet"],
            pose_encoder=found["pose_encoder"],
            autoencoder=vae if not description.own_layout else require_file(vae, _whole(description, "vae", vae)),
            motion_module=found.get("motion_module"),
            base_unet=base,
        )


def _folder_of(path: Path) -> Path:
    """A folder of diffusers, given by itself or by the weight file in it."""
    return path.parent if path.suffix in WEIGHT_SUFFIXES and not path.is_dir() else path


def _whole(description: ModelDescription, key: str, path: Path) -> str:
    """How a missing file of the model's own repository is mended."""
    if not description.own_layout and path.name not in PUBLISHED_FILES:
        return f"check model.{key} in the configuration"
    mend = _fetch(description, "BadToBest/EchoMimicV2", path.parent)
    plain = path.with_name(path.name.replace("_acc", ""))
    if plain != path and plain.is_file():
        return (
            f"the unaccelerated {plain.name} is there: to use it, set model.denoising_unet to denoising_unet.pth and "
            f"model.motion_module to motion_module.pth, and take --steps 30; for the accelerated one, {mend}"
        )
    return mend


def save_safetensors_layout(
    folder: Path, networks: Networks, audio: WhisperAudioEncoder, config: Mapping[str, Any], dtype: torch.dtype
) -> None:
    """Writes a model in our own layout, floating-point parameters as ``dtype``; the folder is made if need be.

    ``config`` is what the networks were built from; its "autoencoder" and "whisper" sections are written from the
    networks themselves. :class:`ModelDescription` reads the folder back.
    """
    folder.mkdir(parents=True, exist_ok=True)
    autoencoder = networks.autoencoder
    modules: dict[str, nn.Module] = {
        "reference_unet": networks.reference,
        "denoising_unet": networks.denoiser,
        "pose_encoder": networks.pose,
        "autoencoder": _module(autoencoder),
    }
    for name, module in modules.items():
        state = {key: value.detach().to("cpu", dtype).contiguous() for key, value in module.state_dict().items()}
        save_file(state, folder / f"{name}.safetensors")
    copy.deepcopy(audio).to(dtype).save_encoder(folder / "audio_encoder.safetensors")
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # the library writes files that only their owner can read
    written = {name: config[name] for name in _SECTIONS} | {
        "whisper": {name: getattr(audio.dims, name) for name in audio.dims.__dataclass_fields__},
        "autoencoder": dict(autoencoder.config),
    }
    (folder / "config.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


_SECTIONS = ("reference_unet", "denoising_unet", "denoising_unet_additional", "pose_encoder")


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if name not in config:
        raise InputError(f"the model's config.json lacks the section {name}")
    section: Mapping[str, Any] = config[name]
    return section


def _fetch(description: ModelDescription, repository: str, folder: Path, options: str = "") -> str:
    """How a missing file is mended: by the command that fetches its repository, or in our own layout by the user."""
    if description.own_layout:
        return f"check model.weights in the configuration, which is {description.weights}"
    return f"fetch it with: {fetch_command(repository, folder, options)}"


def _denoising_state(files: _Files, denoiser: DenoisingUNet) -> State:
    """Base UNet (what fits of it), then motion modules, then the denoising UNet's own file; later ones win."""
    state: State = {}
    if files.base_unet is not None:
        shapes = {name: value.shape for name, value in denoiser.state_dict().items()}
        base = read_state(files.base_unet)
        state |= {name: value for name, value in base.items() if shapes.get(name) == value.shape}
    if files.motion_module is not None:
        state |= read_state(files.motion_module)
    return state | read_state(files.denoising_unet)


def _diffusers_file(path: Path) -> Path:
    """The weight file in a diffusers folder, or the path itself if it is a file."""
    if path.suffix in WEIGHT_SUFFIXES and not path.is_dir():
        return path
    candidates = [path / name for name in _DIFFUSERS_FILES]
    return next((file for file in candidates if file.is_file()), candidates[0])


def _load_autoencoder(
    description: ModelDescription, path: Path, settle: Callable[[nn.Module, State, Path], None]
) -> Autoencoder:
    if description.own_layout:
        config = _section(description.config, "autoencoder")
        if config.get("_class_name") != "AutoencoderKL":
            try:
                with torch.device("meta"):
                    small = PixelShuffleAutoencoder(AutoencoderConfig.from_mapping(config))
            except (ValueError, TypeError) as error:
                raise InputError(f"the autoencoder in config.json cannot be built: {error}") from error
            settle(small, read_state(path), path)
            return small
    else:
        settings = _folder_of(description.vae) / "config.json"
        try:
            config = json.loads(settings.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"the file {settings} cannot be read as JSON: {error}") from error
    try:
        with torch.device("meta"):
            published = KLAutoencoder(config)
    except InputError as error:
        raise InputError(f"the configuration of the autoencoder {description.vae} cannot be used: {error}") from error
    settle(published, new_names(read_state(path)), path)
    return published


def _check_together(networks: Networks, drawn_alike: bool) -> None:
    """Whether the networks fit each other. ``drawn_alike``: poses are drawn as large as pictures. Raises InputError."""
    reference, denoiser = networks.reference.config, networks.denoiser.config
    pose, autoencoder = networks.pose.config, networks.autoencoder
    for name, channels in (("reference_unet", reference.in_channels), ("denoising_unet", denoiser.in_channels)):
        if channels != autoencoder.latent_channels:
            raise InputError(
                f"{name}.in_channels is {channels}, but the autoencoder's latents have {autoencoder.latent_channels}"
            )
    if denoiser.out_channels != denoiser.in_channels:
        raise InputError(
            f"denoising_unet.out_channels is {denoiser.out_channels}; it must be in_channels, {denoiser.in_channels}"
        )
    if pose.out_channels != denoiser.widths[0]:
        raise InputError(
            f"pose_encoder.conditioning_embedding_channels is {pose.out_channels}; "
            f"it must be the first of denoising_unet.block_out_channels, {denoiser.widths[0]}"
        )
    if drawn_alike and pose.scale != autoencoder.scale:
        raise InputError(
            f"pose_encoder.block_out_channels makes features of 1/{pose.scale} of the sides, "
            f"but the autoencoder's latents are 1/{autoencoder.scale}"
        )
    kinds = ("widths", "layers", "down_attention", "up_attention")
    if any(getattr(reference, kind) != getattr(denoiser, kind) for kind in kinds):
        raise InputError("reference_unet and denoising_unet differ in widths, layers or block types; they must agree")


def _module(autoencoder: Autoencoder) -> nn.Module:
    if not isinstance(autoencoder, nn.Module):
        raise TypeError(f"{type(autoencoder).__name__} is no network")
    return autoencoder
