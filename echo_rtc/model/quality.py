"""The ladder of qualities: what each rung changes of the settings, so that a slower card keeps real time.

Each rung has what the one above it has, and one thing more. Knows settings by name, and neither devices nor speeds;
``engine/ladder.py`` measures. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from echo_rtc.model.description import ModelDescription
from echo_rtc.model.trained import Trained

S = TypeVar("S", bound=Any)

AUTO = "auto"

LADDER: dict[str, str] = {
    "best": "as the other settings say",
    "high": "guidance in half of the steps only",
    "good": "no guidance, as the accelerated weights are published for",
    "fair": "two thirds of the steps",
    "low": "8-bit floating point",
    "lower": "the distilled decoder",
    "lowest": "width and height of three quarters",
}
"""Each rung by its name, the best first, and what it does beyond the one above it."""

RUNGS = tuple(LADDER)
KEYS = ("steps", "guided_steps", "quantize_fp8", "vae", "width", "height")
"""The settings that rungs change."""

SIDE = 64
"""Sides of smaller pictures are multiples of this (pixels)."""

DENOISE_MS, GUIDED_MS, DECODE_MS = 41.0, 29.8, 57.0
FP8_DENOISE, FP8_DECODE, TINY_DECODE = 0.86, 0.72, 0.23
AREA_POWER = 1.3
"""Of one H100, full size at 512 x 512: a step, its guidance, and a clip's decoding (ms); what is left of them with
8-bit floating point and the distilled decoder; the time of a step grows with the area to this power."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What the rungs change, at one of them."""

    steps: int
    cfg: float
    guided_steps: int | None
    quantize_fp8: bool
    vae: str
    width: int
    height: int

    @classmethod
    def of(cls, settings: Any) -> Choice:
        """What settings say of these."""
        return cls(**{name: getattr(settings, name) for name in (*KEYS, "cfg")})

    @property
    def guided(self) -> int:
        """Steps with guidance."""
        if self.cfg <= 1:
            return 0
        return self.steps if self.guided_steps is None else min(self.guided_steps, self.steps)

    @property
    def cost(self) -> float:
        """What a clip takes against one of other choices on the same card, as far as arithmetic can tell."""
        area = self.width * self.height / 512**2
        denoise = DENOISE_MS * self.steps + GUIDED_MS * self.guided
        decode = DECODE_MS * (TINY_DECODE if self.vae == "tiny" else 1.0)
        if self.quantize_fp8:
            denoise, decode = denoise * FP8_DENOISE, decode * FP8_DECODE
        return float(denoise * area**AREA_POWER + decode * area)

    def __str__(self) -> str:
        guidance = f"guidance in {self.guided} of them" if self.guided < self.steps else "all guided"
        parts = [
            f"{self.steps} step{'' if self.steps == 1 else 's'}",
            guidance if self.guided else "without guidance",
            *(["8-bit floating point"] if self.quantize_fp8 else []),
            *(["the distilled decoder"] if self.vae == "tiny" else []),
            f"{self.width} x {self.height}",
        ]
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Able:
    """What a machine and a model can do: 8-bit floating point; the distilled decoder, which is there; the pictures and
    steps that the model knows."""

    fp8: bool = False
    tiny: bool = False
    trained: Trained = field(default_factory=Trained)

    @classmethod
    def of(cls, description: ModelDescription, fp8: bool) -> Able:
        """What the model of a description can do, on devices with 8-bit floating point or without. Raises
        InputError."""
        return cls(fp8, description.tiny_vae.exists(), Trained.from_config(description.config))


def preset(rung: str, base: Choice, kept: Collection[str] = ()) -> dict[str, Any]:
    """What a rung changes of the ``base`` settings, by the settings' names, but for those of the names ``kept``."""
    level = RUNGS.index(rung)
    changes: dict[str, Any] = {}
    if level >= RUNGS.index("high") and base.cfg > 1:
        guided = math.ceil(base.steps / 2) if level < RUNGS.index("good") else 0
        if guided < base.guided:
            changes["guided_steps"] = guided
    if level >= RUNGS.index("fair"):
        changes["steps"] = math.ceil(base.steps * 2 / 3)
    if level >= RUNGS.index("low"):
        changes["quantize_fp8"] = True
    if level >= RUNGS.index("lower"):
        changes["vae"] = "tiny"
    if level >= RUNGS.index("lowest"):
        changes |= {name: _smaller(getattr(base, name)) for name in ("width", "height")}
    return {name: value for name, value in changes.items() if name not in kept}


def _smaller(pixels: int) -> int:
    """Three quarters of a side, as far as sides go."""
    return min(pixels, max(SIDE, round(pixels * 3 / 4 / SIDE) * SIDE))


def on_rung(settings: S, rung: str, kept: Collection[str]) -> S:
    """The settings on a rung, but for those of the names ``kept``, which stay as they are."""
    return replace(settings, **{**preset(rung, Choice.of(settings), kept), "quality": rung})
