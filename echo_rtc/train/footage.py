"""Rendered takes on the accelerator: pictures, latents, drawn poses, boxes and sound, ready for batches.

A take is a file of arrays, written by the renderer (:data:`KEYS`). It knows nothing of networks but the autoencoder's
:meth:`encode`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from echo_rtc.errors import InputError
from echo_rtc.model.life import paint_life
from echo_rtc.model.pose import Pose
from echo_rtc.model.pose_drawing import draw_pose
from echo_rtc.train.recipe import FPS, HISTORY_SAMPLES, POSE_SIDE, SAMPLE_RATE

log = logging.getLogger(__name__)

KEYS = ("frames", "reference", "waveform", "hands", "mouth", "lids", "life", "boxes", "speaking")
"""Arrays of a take of N frames: ``frames`` (N, S, S, 3) uint8, ``reference`` (S, S, 3) uint8, ``waveform`` float32 at
16 kHz from two seconds before the first frame to the end of the last, ``hands`` (N, 2, 21, 3) x, y and score, ``mouth``
(N, 5), ``lids`` (N,) from 0 open to 1 shut, ``life`` (N, 6), ``boxes`` (N, 5, 4) of mouth, eyes and hands as x0, y0,
x1, y1 in 0..1, ``speaking`` (N,) bool."""

BOX_WEIGHTS = (8.0, 6.0, 6.0, 4.0, 4.0)
"""How much more an error counts in the boxes of mouth, left and right eye, left and right hand."""

Arrays = dict[str, NDArray[Any]]


def pack(take: Arrays) -> Arrays:
    """What is kept of a take: channels first, its ``poses`` (N, 3, P, P) uint8 drawn, ``sound`` int16."""
    drawn = [pose_picture(hands, life) for hands, life in zip(take["hands"], take["life"], strict=True)]
    sound = np.zeros(HISTORY_SAMPLES + -(-len(drawn) * SAMPLE_RATE // FPS), np.float32)
    given = take["waveform"][: len(sound)]
    sound[: len(given)] = given
    return {
        "frames": np.ascontiguousarray(np.moveaxis(take["frames"], -1, 1)),
        "poses": np.ascontiguousarray(np.moveaxis(np.stack(drawn), -1, 1)),
        "reference": np.ascontiguousarray(np.moveaxis(take["reference"], -1, 0)),
        "boxes": take["boxes"].astype(np.float32),
        "mouth": take["mouth"].astype(np.float32),
        "lids": take["lids"].astype(np.float32),
        "hands": take["hands"].astype(np.float32),
        "sound": (sound.clip(-1, 1) * 32767).astype(np.int16),
    }


def save(path: Path, arrays: Arrays) -> None:
    """Writes a file that appears whole or not at all."""
    unfinished = path.with_suffix(".part")
    with unfinished.open("wb") as file:
        np.savez(file, **cast(dict[str, Any], arrays))
    unfinished.replace(path)


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of :func:`save`. Raises InputError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: torch.from_numpy(file[key]) for key in file.files}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise InputError(f"{path} is damaged ({error}); render it again") from error


def pose_picture(hands: NDArray[np.float32], life: NDArray[np.float32]) -> NDArray[np.uint8]:
    """What the pose encoder sees of hands (2, 21, 3) and life (6,): (POSE_SIDE, POSE_SIDE, 3) uint8."""
    picture = draw_pose(Pose(hands[..., :2].astype(np.float64), hands[..., 2].astype(np.float64)), POSE_SIDE, POSE_SIDE)
    return paint_life(picture, life)


def box_weights(boxes: Tensor, sides: tuple[int, int], weights: Sequence[float] = BOX_WEIGHTS) -> Tensor:
    """Weights (N, 1, h, w) of cells or pixels: those of the boxes (N, 5, 4) that touch them, else 1."""
    height, width = sides
    out = torch.ones(len(boxes), 1, height, width, device=boxes.device)
    x = torch.arange(width, device=boxes.device)
    y = torch.arange(height, device=boxes.device)
    for number, weight in enumerate(weights):
        x0, y0, x1, y1 = torch.nan_to_num(boxes[:, number], nan=-9.0).unbind(-1)  # a box not seen is outside
        across = (x + 1 > x0[:, None] * width) & (x < x1[:, None] * width)
        down = (y + 1 > y0[:, None] * height) & (y < y1[:, None] * height)
        inside = (down[:, :, None] & across[:, None, :])[:, None]
        out = torch.where(inside, out.clamp(min=weight), out)
    return out


@dataclass
class Footage:
    """K takes, their T frames one after the other: ``frames`` (T, 3, S, S) uint8, ``poses`` (T, 3, P, P) uint8,
    ``boxes`` (T, 5, 4), ``mouth`` (T, 5), ``lids`` (T,), ``references`` (K, 3, S, S) uint8, ``sound`` (K, samples)
    int16, ``first`` and ``length`` (K,); ``latents`` (T, C, h, w) and ``reference_latents`` (K, C, h, w) float16 once
    :meth:`encode` was called."""

    frames: Tensor
    poses: Tensor
    boxes: Tensor
    mouth: Tensor
    lids: Tensor
    references: Tensor
    sound: Tensor
    first: Tensor
    length: Tensor
    latents: Tensor
    reference_latents: Tensor

    @classmethod
    def load(cls, paths: Sequence[Path], device: torch.device, threads: int = 4) -> Footage:
        """Reads takes that were packed; damaged files are left out with a warning. Raises InputError where none is
        left."""
        takes: list[dict[str, Tensor]] = []
        with ThreadPoolExecutor(threads) as pool:
            for path, future in [(path, pool.submit(read, path)) for path in paths]:
                try:
                    takes.append({key: value.to(device) for key, value in future.result().items()})
                except InputError as error:
                    log.warning("%s: %s", path.name, error)
        if not takes:
            raise InputError("no take could be read; render some first")
        longest = max(len(take["sound"]) for take in takes)
        sound = torch.zeros(len(takes), longest, dtype=torch.int16, device=device)
        for row, take in zip(sound, takes, strict=True):
            row[: len(take["sound"])] = take["sound"]
        length = torch.tensor([len(take["frames"]) for take in takes], device=device)
        joined: dict[str, Tensor] = {}
        for key in ("frames", "poses", "boxes", "mouth", "lids"):
            joined[key] = torch.cat([take.pop(key) for take in takes])
        return cls(
            **joined,
            references=torch.stack([take["reference"] for take in takes]),
            sound=sound,
            first=length.cumsum(0) - length,
            length=length,
            latents=torch.empty(0, device=device),
            reference_latents=torch.empty(0, device=device),
        )

    @torch.inference_mode()
    def encode(self, encode: Callable[[Tensor], Tensor], part: int = 64) -> None:
        """Fills in the latents; ``encode`` takes pictures in -1..1."""

        def all_of(pictures: Tensor) -> Tensor:
            parts = [encode(pixels.float() / 127.5 - 1).half() for pixels in torch.split(pictures, part)]
            return torch.cat(parts).clone()

        self.latents, self.reference_latents = all_of(self.frames), all_of(self.references)

    def windows(self, take: Tensor, frame: Tensor, samples: int) -> Tensor:
        """Sound (B, samples) float32 whose last clip begins at ``frame`` (B,) of ``take`` (B,)."""
        start = frame * SAMPLE_RATE // FPS
        index = start[:, None] + torch.arange(samples, device=frame.device)
        return self.sound[take[:, None], index.clamp(max=self.sound.shape[1] - 1)].float() / 32768
