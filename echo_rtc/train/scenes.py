"""Batches of drawn people in motion, made on the accelerator as fast as training eats them.

Joins ``person`` (how to draw) and ``gestures`` (how hands move). It knows nothing of networks.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from echo_rtc.errors import InputError
from echo_rtc.train.person import Motion, People, draw

DRAW_BATCH = 128
CPU_DRAW_BATCH = 16
"""People drawn in one call: bounds the memory of the intermediate images, and keeps them near the processor."""


@dataclass(frozen=True)
class PoseBank:
    """N gesture sequences of F frames: ``images`` (N, F, H, W, 3) uint8 as drawn for the networks, ``hands``
    (N, F, 2, 21, 2), ``scores`` (N, F, 2, 21), ``head`` (N, F, 3) and ``blink`` (N, F)."""

    images: Tensor
    hands: Tensor
    scores: Tensor
    head: Tensor
    blink: Tensor

    @classmethod
    def load(cls, path: Path, device: torch.device) -> PoseBank:
        """Reads a file of the command ``pose-bank``. Raises InputError."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(**{key: torch.from_numpy(file[key]).to(device) for key in cls.__dataclass_fields__})
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
            raise InputError(f"{path} is not a pose bank ({error}); make one with the command pose-bank") from error


def crowd(count: int, default_share: float, generator: torch.Generator) -> People:
    """``count`` people: the default avatar as often as ``default_share`` says, others sampled."""
    sampled = People.sample(count, generator)
    shipped = People.default()
    known = torch.rand(count, generator=generator) < default_share
    values = {}
    for field in fields(People):
        other = getattr(sampled, field.name)
        mask = known.view(-1, *(1,) * (other.ndim - 1))
        values[field.name] = torch.where(mask, getattr(shipped, field.name), other)
    return replace(sampled, **values)


def draw_all(people: People, motion: Motion, size: int) -> Tensor:
    """Draws any number of people in batches. Returns (B, 3, size, size) uint8."""
    count = len(motion)
    out = torch.empty((count, 3, size, size), dtype=torch.uint8, device=motion.mouth.device)
    batch = DRAW_BATCH if motion.mouth.is_cuda else CPU_DRAW_BATCH
    for start in range(0, count, batch):
        part = slice(start, start + batch)
        out[part] = (draw(people[part], motion[part], size) * 255 + 0.5).clamp(0, 255).to(torch.uint8)
    return out


def random_mouths(count: int, generator: torch.Generator) -> Tensor:
    """(count, 5) mouth parameters that cover their range, a third of them shut or nearly so."""
    mouth = torch.rand(count, 5, generator=generator)
    mouth[:, 1] = 2 * mouth[:, 1] - 1
    mouth[:, 2:] = (2.5 * mouth[:, 2:] - 1.5).clamp(min=0)
    shut = torch.rand(count, generator=generator) < 0.3
    mouth[shut, 0] *= 0.1
    mouth[:, 0] *= 1 - mouth[:, 2]
    return mouth


def to_network(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 images 0..255 -> -1..1."""
    return images.to(dtype) / 127.5 - 1
