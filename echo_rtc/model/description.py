"""Which files a model consists of: the published folder layout and our own, from one mapping of the YAML file.

Knows names and where they are looked for; reads config.json and nothing else. Our own layout is told by an
"autoencoder" section in config.json: then all networks are safetensors files beside it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from echo_rtc.errors import InputError, SettingsError
from echo_rtc.model.config import PUBLISHED

logger = logging.getLogger(__name__)

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".bin", ".pt")
"""Suffixes of weight files, in the order in which another kind of the same name is looked for."""

_PUBLISHED_NAMES: dict[str, str | None] = {
    "reference_unet": "reference_unet.pth",
    "denoising_unet": "denoising_unet_acc.pth",
    "motion_module": "motion_module_acc.pth",
    "pose_encoder": "pose_encoder.pth",
    "base_unet": "sd-image-variations-diffusers/unet",
    "vae": "sd-vae-ft-mse",
    "audio_encoder": "audio_processor/tiny.pt",
    "wav2vec2": "wav2vec2-base-960h",
    "wav2vec2_adapter": None,
    "tiny_vae": "taesd",
}
_OWN_NAMES: dict[str, str | None] = {
    "reference_unet": "reference_unet.safetensors",
    "denoising_unet": "denoising_unet.safetensors",
    "motion_module": None,
    "pose_encoder": "pose_encoder.safetensors",
    "base_unet": None,
    "vae": "autoencoder.safetensors",
    "audio_encoder": "audio_encoder.safetensors",
    "wav2vec2": "wav2vec2-base-960h",
    "wav2vec2_adapter": None,
    "tiny_vae": "taesd",
}
PUBLISHED_FILES = frozenset(
    f"{name}{suffix}.pth"
    for name, suffixes in (
        ("reference_unet", ("",)),
        ("denoising_unet", ("", "_acc")),
        ("motion_module", ("", "_acc")),
        ("pose_encoder", ("",)),
    )
    for suffix in suffixes
)
"""The weight files in the repository of EchoMimic-V2."""
_CACHED = {
    "vae": ("stabilityai/sd-vae-ft-mse", ""),
    "base_unet": ("lambdalabs/sd-image-variations-diffusers", "unet"),
    "tiny_vae": ("madebyollin/taesd", ""),
    "wav2vec2": ("facebook/wav2vec2-base-960h", ""),
}
"""Keys whose files may also lie in the cache of ``hf download``: the repository, and the folder in it."""
_WEIGHTS = "BadToBest/EchoMimicV2"
_OPTIONAL = frozenset({"motion_module", "base_unet", "wav2vec2_adapter"})
"""Keys that may be null."""


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """The files of a model, all paths absolute or relative to the working directory.

    ``config`` is the content of config.json: the networks' widths. ``motion_module`` and ``base_unet`` are None where
    ``denoising_unet`` holds everything. ``vae`` is a diffusers folder in the published layout, a file in our own;
    ``tiny_vae`` is a diffusers folder with a distilled decoder.
    """

    weights: Path
    config: Mapping[str, Any]
    reference_unet: Path
    denoising_unet: Path
    motion_module: Path | None
    pose_encoder: Path
    base_unet: Path | None
    vae: Path
    audio_encoder: Path
    wav2vec2: Path
    wav2vec2_adapter: Path | None
    tiny_vae: Path

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, str | None], base: Path) -> ModelDescription:
        """Reads the YAML file's ``model`` mapping.

        ``weights`` and ``config`` are relative to ``base``, all else to ``weights``. Without ``config``, config.json in
        or beside the weights folder holds if it describes networks, else the published full-size widths.

        Raises SettingsError for an unknown key or an impossible value, InputError for a missing or unreadable file.
        """
        known = ["weights", "config", *_PUBLISHED_NAMES]
        for key, value in mapping.items():
            if key not in known:
                raise SettingsError(f"model.{key} is unknown; known are {', '.join(known)}")
            if value is None and key not in _OPTIONAL and key != "config":
                raise SettingsError(f"model.{key} is null; it must be a path")
            if value is not None and (not isinstance(value, str) or not value):
                raise SettingsError(f"model.{key} is {value!r}; it must be a path")
        if not mapping.get("weights"):
            raise SettingsError("model.weights is missing; it must be the folder that holds the weights")
        weights = _join(base, str(mapping["weights"]))
        if weights.is_file():
            raise InputError(f"model.weights is {weights}, which is a file; name the folder that holds the weights")
        published = mapping.get("motion_module", "") is not None
        if not weights.is_dir() and published and (kept := cached_snapshot(_WEIGHTS)) is not None:
            logger.info("the weights folder %s does not exist; its files are read from %s", weights, kept)
            weights = kept
        if not weights.is_dir():
            raise InputError(f"the weights folder {weights} does not exist{_fetch_all(mapping, weights)}")
        given = mapping.get("config")
        config = _read_config(_join(base, given)) if given else _find_config(weights)
        paths: dict[str, Path | None] = {}
        for key, name in (_OWN_NAMES if "autoencoder" in config else _PUBLISHED_NAMES).items():
            if key in mapping:
                chosen = mapping[key]
                paths[key] = None if chosen is None else _same_kind(_join(weights, chosen))
            else:
                paths[key] = None if name is None else _same_kind(weights / name)
            if "autoencoder" not in config:
                paths[key] = _from_cache(key, paths[key])
        sound = paths["audio_encoder"]
        if sound is not None and sound.is_dir() and (sound / "tiny.pt").is_file():
            paths["audio_encoder"] = sound / "tiny.pt"
        return cls(weights=weights, config=config, **paths)  # type: ignore[arg-type]  # required ones are never None

    @property
    def files(self) -> list[Path]:
        """The files and folders of all networks, whether they are there and used or not."""
        places = (getattr(self, item.name) for item in fields(self) if item.name != "weights")
        return [place for place in places if isinstance(place, Path)]

    @property
    def own_layout(self) -> bool:
        """Whether the autoencoder is described by config.json, as in our own layout."""
        return "autoencoder" in self.config


def fetch_command(repository: str, folder: Path, options: str = "") -> str:
    """The command that fetches a repository, or the part of it that ``options`` choose, into a folder."""
    return f"hf download {repository} {options}--local-dir {shlex.quote(str(folder))}"


def cached_snapshot(repository: str) -> Path | None:
    """The folder in which ``hf download`` without --local-dir has put a repository; None if it has not."""
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    place = hub / f"models--{repository.replace('/', '--')}"
    try:
        revision = (place / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    snapshot = place / "snapshots" / revision
    return snapshot if re.fullmatch(r"[0-9a-f]+", revision) and snapshot.is_dir() else None


def _from_cache(key: str, path: Path | None) -> Path | None:
    """The path itself, or where its files lie in the hub's cache if they lie there only."""
    if path is None or path.exists() or key not in _CACHED:
        return path
    repository, folder = _CACHED[key]
    kept = cached_snapshot(repository)
    if kept is None or not (kept / folder).is_dir():
        return path
    logger.info("model.%s is read from %s", key, kept / folder)
    return kept / folder


def _join(base: Path, path: str) -> Path:
    """A path that starts from ``base``, without detours for messages (``configs/../pretrained_weights``)."""
    return Path(os.path.normpath(base / Path(path).expanduser()))


def _same_kind(path: Path) -> Path:
    """The path itself, or if only that exists, a file of the same name in another format or of half precision
    (``name.fp16.safetensors``)."""
    if path.exists() or path.suffix not in WEIGHT_SUFFIXES:
        return path
    variants = (path.with_suffix(""), path.with_suffix(".fp16"))
    others = (variant.with_name(variant.name + suffix) for variant in variants for suffix in WEIGHT_SUFFIXES)
    return next((other for other in others if other.exists()), path)


def _fetch_all(mapping: Mapping[str, str | None], weights: Path) -> str:
    """How to get the whole published folder; nothing where the mapping shows that it is another model."""
    if mapping.get("motion_module", "") is None:
        return "; check model.weights in the configuration"
    return f"; fetch it with: {fetch_command(_WEIGHTS, weights)}"


def _find_config(weights: Path) -> Mapping[str, Any]:
    """config.json in or beside the weights folder, if it is one of ours; else the published widths."""
    for path in (weights / "config.json", weights.absolute().parent / "config.json"):
        if path.is_file():
            content = _read_json(path)
            # Model hubs put files of this name into folders for purposes of their own.
            if "denoising_unet" in content:
                return content
    return PUBLISHED


def _read_config(path: Path) -> Mapping[str, Any]:
    content = _read_json(path)
    if "denoising_unet" not in content:
        raise InputError(f"model.config {path} describes no networks: it lacks denoising_unet")
    return content


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the file {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"the file {path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"the file {path} holds no JSON object")
    return content
