"""Light, lens and background of a picture, named or random."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from echo_rtc.train.people.asset import F32, F64

U8 = NDArray[np.uint8]


def _vector(*values: float) -> F64:
    return np.array(values, np.float64)


@dataclass(frozen=True, eq=False)
class Look:
    """Directions to the lights (any length), their colours, the sky's and the ground's, exposure and saturation."""

    to_key: F64 = field(default_factory=lambda: _vector(-0.62, -0.85, 0.62))
    to_fill: F64 = field(default_factory=lambda: _vector(0.95, -0.6, 0.12))
    to_rim: F64 = field(default_factory=lambda: _vector(0.85, 0.75, 0.45))
    to_rim2: F64 = field(default_factory=lambda: _vector(-0.9, 0.8, 0.35))
    to_box: F64 = field(default_factory=lambda: _vector(-0.40, -0.9, 0.34))
    key: F64 = field(default_factory=lambda: _vector(1.75, 1.645, 1.52))
    fill: F64 = field(default_factory=lambda: _vector(0.36, 0.40, 0.44))
    rim: F64 = field(default_factory=lambda: _vector(1.5, 1.455, 1.425))
    rim2: F64 = field(default_factory=lambda: _vector(0.765, 0.837, 0.9))
    sky: F64 = field(default_factory=lambda: _vector(0.40, 0.44, 0.48))
    ground: F64 = field(default_factory=lambda: _vector(0.23, 0.19, 0.175))
    exposure: float = 0.82
    saturation: float = 0.98


def sample_look(rng: np.random.Generator) -> Look:
    """A soft key from either side, with a fill and two rims of varied strength."""
    usual = Look()
    mirror = np.array([1.0 if rng.random() < 0.65 else -1.0, 1, 1])
    warm = 1 + rng.normal() * 0.05 * np.array([1, 0, -1])

    def turned(direction: F64, by: float) -> F64:
        return np.asarray(direction * mirror + rng.normal(size=3) * by)

    return Look(
        turned(usual.to_key, 0.18),
        turned(usual.to_fill, 0.15),
        turned(usual.to_rim, 0.1),
        turned(usual.to_rim2, 0.1),
        turned(usual.to_box, 0.08),
        usual.key * rng.uniform(0.75, 1.15) * warm,
        usual.fill * rng.uniform(0.7, 1.5),
        usual.rim * rng.uniform(0.3, 1.2),
        usual.rim2 * rng.uniform(0.3, 1.2),
        usual.sky * rng.uniform(0.8, 1.3) * warm,
        usual.ground * rng.uniform(0.8, 1.3),
        rng.uniform(0.72, 0.92),
        rng.uniform(0.9, 1.03),
    )


@dataclass(frozen=True, eq=False)
class Camera:
    """A lens at ``eye`` that looks ``at`` a point (3,), where the picture is ``height`` metres high."""

    eye: F64
    at: F64
    height: float

    def matrix(self) -> F64:
        """(4, 4) from the world to clip space."""
        forward = self.at - self.eye
        distance = float(np.linalg.norm(forward))
        forward = forward / distance
        right = np.cross(forward, [0, 0, 1.0])
        right /= np.linalg.norm(right)
        rotation = np.stack([right, np.cross(right, forward), -forward])
        view = np.eye(4)
        view[:3, :3] = rotation
        view[:3, 3] = -rotation @ self.eye
        near, far = 0.4, 5.0
        lens = np.zeros((4, 4))
        lens[0, 0] = lens[1, 1] = 2 * distance / self.height
        lens[2, 2], lens[2, 3] = -(far + near) / (far - near), -2 * far * near / (far - near)
        lens[3, 2] = -1
        return np.asarray(lens @ view)

    def project(self, points: NDArray[np.floating]) -> F32:
        """Points (..., 3) -> x right, y down (..., 2), 0..1 inside the picture."""
        matrix = self.matrix()
        clip = points @ matrix[[0, 1, 3], :3].T + matrix[[0, 1, 3], 3]
        found = clip[..., :2] / clip[..., 2:]
        return np.stack([0.5 + 0.5 * found[..., 0], 0.5 - 0.5 * found[..., 1]], -1).astype(np.float32)


# --------------------------------------------------------------------------------------------------------- backgrounds

_TINTS = [
    "cfe6e2",
    "8fc0b8",
    "eef8f4",
    "dcebe7",
    "a9cec7",
    "d8d0c4",
    "b8a890",
    "c0ccd8",
    "8898a8",
    "404850",
    "e8e4e0",
    "707478",
    "c8a8a0",
    "a0b890",
    "d8c8e0",
    "303338",
    "586878",
    "f4f4f4",
    "6a8a9a",
    "2a3038",
    "e6d8c8",
]


def _rgb(code: str) -> F64:
    return np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)], np.float64)


def backdrop(side: int, top: str = "dcebe7", bottom: str = "a9cec7") -> U8:
    """A studio's wall: a gradient with a glow behind the head, (side, side, 3)."""
    return _finished(_gradient(side, _rgb(top), _rgb(bottom), 0.6))


def sample_background(rng: np.random.Generator, side: int) -> U8:
    """A wall, a gradient, a blurred room or lights out of focus, (side, side, 3)."""
    first, second = (_rgb(str(rng.choice(_TINTS))) * rng.uniform(0.85, 1.1) for _ in range(2))
    kind = rng.choice(["plain", "gradient", "room", "bokeh"], p=[0.15, 0.35, 0.3, 0.2])
    if kind == "plain":
        return _finished(_gradient(side, first, first * rng.uniform(0.85, 1.0), rng.uniform(0, 0.5)))
    if kind == "gradient":
        return _finished(_gradient(side, first, second, rng.uniform(0, 0.8)))
    if kind == "room":
        return _finished(_room(rng, side, first, second))
    return _finished(_bokeh(rng, side, first, second))


def _finished(picture: F64) -> U8:
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def _gradient(side: int, top: F64, bottom: F64, glow: float) -> F64:
    y, x = np.mgrid[0:side, 0:side] / side
    t = (y * y * (3 - 2 * y))[..., None]
    picture = top * (1 - t) + bottom * t
    light = glow * 0.7 * np.exp(-(((x - 0.5) / 0.34) ** 2 + ((y - 0.4) / 0.34) ** 2))[..., None]
    found: F64 = picture + (np.minimum(top * 1.15 + 12, 252) - picture) * light
    edge = 1 - 0.16 * (np.hypot(x - 0.5, y - 0.5) * 1.35) ** 2.5
    return np.asarray(found * edge[..., None])


def _room(rng: np.random.Generator, side: int, wall: F64, thing: F64) -> F64:
    """A wall with a window, shelves, a picture or a plant, out of focus."""
    picture = np.ascontiguousarray(_gradient(side, wall, wall * 0.88, 0.2))

    def box(x0: float, y0: float, x1: float, y1: float, colour: F64) -> None:
        start, end = (int(x0 * side), int(y0 * side)), (int(x1 * side), int(y1 * side))
        cv2.rectangle(picture, start, end, tuple(float(v) for v in np.clip(colour, 0, 255)), -1)

    left = rng.random() < 0.5

    def mirrored(x0: float, x1: float) -> tuple[float, float]:
        return (x0, x1) if left else (1 - x1, 1 - x0)

    x0, x1 = mirrored(rng.uniform(-0.1, 0.05), rng.uniform(0.22, 0.34))
    if rng.random() < 0.6:  # a window
        top, bottom = rng.uniform(0.0, 0.1), rng.uniform(0.5, 0.75)
        box(x0 - 0.015, top - 0.015, x1 + 0.015, bottom + 0.015, np.full(3, 225.0))
        box(x0, top, x1, bottom, np.array([214, 230, 244.0]) * rng.uniform(0.85, 1.05))
        box((x0 + x1) / 2 - 0.006, top, (x0 + x1) / 2 + 0.006, bottom, np.full(3, 215.0))
    else:  # a picture in its frame
        box(x0, 0.12, x1, 0.42, thing * 0.5)
        box(x0 + 0.015, 0.135, x1 - 0.015, 0.405, thing * 0.9 + 20)
    x0, x1 = mirrored(rng.uniform(0.66, 0.78), 1.1)
    for shelf in np.arange(rng.uniform(0.1, 0.25), 0.8, rng.uniform(0.18, 0.28)):  # shelves with books
        at = x0
        while at < x1:
            width, height = rng.uniform(0.012, 0.035), rng.uniform(0.07, 0.14)
            if rng.random() < 0.8:
                box(at, shelf - height, at + width, shelf, _rgb(str(rng.choice(_TINTS))) * rng.uniform(0.5, 0.95))
            at += width + 0.003
        box(x0, shelf, x1, shelf + 0.014, thing * 0.7)
    if rng.random() < 0.5:  # a plant
        middle = mirrored(0.12, 0.2)[0]
        for _ in range(26):
            angle, length = rng.uniform(0.2, 2.9), rng.uniform(0.05, 0.16)
            start = (int(middle * side), int(0.8 * side))
            end = (int((middle + length * np.cos(angle)) * side), int((0.8 - 1.6 * length * np.sin(angle)) * side))
            green = np.array([70, 110, 70]) * rng.uniform(0.6, 1.2)
            cv2.line(picture, start, end, tuple(float(v) for v in green), max(1, side // 60))
    blur = side * rng.uniform(0.010, 0.028)
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), blur), np.float64)


def _bokeh(rng: np.random.Generator, side: int, first: F64, second: F64) -> F64:
    """Lights out of focus before a dim gradient."""
    picture = np.ascontiguousarray(_gradient(side, first * 0.5, second * 0.35, 0.2))
    for _ in range(int(rng.integers(12, 34))):
        layer = np.zeros((side, side), np.float64)
        centre = (int(rng.uniform(0, 1) * side), int(rng.uniform(0, 0.8) * side))
        cv2.circle(layer, centre, int(side * rng.uniform(0.015, 0.06)), 1.0, -1, cv2.LINE_AA)
        layer = np.asarray(cv2.GaussianBlur(layer, (0, 0), side * 0.005), np.float64)
        colour = np.array([255, 215, 160.0]) if rng.random() < 0.6 else _rgb(str(rng.choice(_TINTS)))
        picture += layer[..., None] * colour * rng.uniform(0.15, 0.5)
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), side * 0.006), np.float64)
