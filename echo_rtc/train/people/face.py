"""From the five numbers of a mouth (:data:`echo_rtc.train.visemes.PARAMETERS`) to facial actions.

A pure function of mouth, lids and emphasis, so that sound and conditioning decide the whole face: a network that
predicts in one step blurs whatever is random to it.
"""

from __future__ import annotations

import numpy as np

from echo_rtc.clips import F32Array
from echo_rtc.train.people.asset import F32, F64, Asset

ACTIONS = (
    "jawOpen",
    "mouthFunnel",
    "mouthPucker",
    "mouthStretch",
    "mouthSmile",
    "mouthDimple",
    "mouthLowerDown",
    "mouthUpperUp",
    "mouthPress",
    "mouthRollLower",
    "mouthRollUpper",
    "mouthShrugUpper",
    "tongueOut",
    "cheekSquint",
    "browInnerUp",
    "browOuterUp",
    "eyeBlink",
    "eyeSquint",
    "eyeWide",
)
"""Facial actions in use, both sides of the face as one."""

TUCK = (0.20, 0.36)
"""Product of press and teeth from which the lower lip goes to the upper teeth (f, v), and where it is there."""


def action_shapes(asset: Asset, actions: F32) -> F32:
    """Offsets (len(ACTIONS), V, 3) from all of a body's (A, V, 3), left and right together."""
    number = {name: index for index, name in enumerate(asset.actions)}
    shapes = []
    for name in ACTIONS:
        names = [name] if name in number else [f"{name}Left", f"{name}Right"]
        shapes.append(sum(actions[number[one]] for one in names))
    return np.stack(shapes).astype(np.float32)


def facial_actions(mouth: F32Array, lids: F32Array, emphasis: F32Array, smile: float) -> F32:
    """Weights (N, len(ACTIONS)) for mouths (N, 5), lids (N,), emphasis (N,) in 0..1 and a person's smile at rest."""
    opening, width, press, teeth, tongue = mouth.astype(np.float64).T
    rounded, spread = np.maximum(-width, 0), np.maximum(width, 0)
    tuck = _ramp((press * teeth - TUCK[0]) / (TUCK[1] - TUCK[0]))
    shut = np.clip(press - tuck, 0, 1) * (1 - 0.6 * teeth * (1 - tuck))
    free = (1 - shut) * (1 - tuck)
    parted = _ramp(opening / 0.22) * free
    hiss = teeth * free * (1 - 0.5 * rounded)
    happy = smile * (1 - 0.75 * rounded) * (1 - 0.65 * opening)
    weights = {
        "jawOpen": free * (0.60 * opening**1.1 * (1 - 0.1 * rounded) + 0.05 * tongue) + 0.08 * tuck,
        "mouthFunnel": free * rounded * (0.30 + 0.75 * opening),
        "mouthPucker": free * rounded * np.clip(0.95 - 1.2 * opening, 0.15, 1),
        "mouthStretch": free * 0.33 * spread,
        "mouthSmile": happy + 0.22 * spread * free,
        "mouthDimple": 0.45 * happy,
        "mouthLowerDown": parted * (1 - 0.8 * rounded) * (0.22 + 0.30 * spread) + 0.38 * hiss,
        "mouthUpperUp": parted * (1 - 0.8 * rounded) * (0.20 + 0.22 * spread) + 0.26 * hiss + 0.50 * tuck,
        "mouthPress": 0.45 * shut,
        "mouthRollLower": 0.40 * shut + 0.75 * tuck,
        "mouthRollUpper": 0.35 * shut,
        "mouthShrugUpper": 0.20 * tuck,
        "tongueOut": 0.25 * tongue * parted * (1 - tuck),
        "cheekSquint": 0.7 * happy + 0.1 * spread,
        "browInnerUp": 0.10 + 0.35 * emphasis,
        "browOuterUp": 0.05 + 0.38 * emphasis,
        "eyeBlink": lids,
        "eyeSquint": 0.12 * happy * (1 - lids),
        "eyeWide": 0.22 * (1 - lids),
    }
    table: F32 = np.stack([np.broadcast_to(weights[name], opening.shape) for name in ACTIONS], 1).astype(np.float32)
    return table


def emphasis_of(sound: F32Array, rate: int, times_s: F32Array) -> F32:
    """How far the voice stands out at each time, 0..1: its level over 0.15 s against that of the 0.6 s before.

    ``sound`` (S,); ``times_s`` (N,) are seconds from its start.
    """
    power = np.concatenate([[0.0], np.cumsum(sound.astype(np.float64) ** 2)])

    def level(low_s: F32Array, high_s: F32Array) -> F32:
        low, high = (np.clip(np.round(t * rate).astype(int), 0, len(sound)) for t in (low_s, high_s))
        found: F32 = np.sqrt((power[high] - power[low]) / np.maximum(high - low, 1)).astype(np.float32)
        return found

    smooth = []
    for shift in (-0.08, -0.04, 0.0, 0.04, 0.08):  # brows are slower than the voice
        at = times_s + shift
        rise = level(at - 0.10, at + 0.05) - level(at - 0.70, at - 0.10)
        smooth.append(np.clip(rise / 0.10, 0, 1))
    emphasis: F32 = np.mean(smooth, 0).astype(np.float32)
    return emphasis


def _ramp(value: F64) -> F64:
    t = np.clip(value, 0, 1)
    return np.asarray(t * t * (3 - 2 * t))
