"""Draws the half-body people that the embedded model is trained on: signed distances, coverage, soft shading.

Everything is closed-form arithmetic on the pixels of a batch, with the same steps for every person (what somebody does
not have is painted with coverage 0), so that it runs alike on CPU and GPU and a compiler can fuse it. It knows nothing
of speech, of audio or of training; how hands, head and lids move is in ``gestures.py``.

Lengths are in image heights with x = 0 in the middle of the image, or, on the head, in half heads: the origin in the
middle of the head, the crown at y = -1, the chin at y = 1. Distances are negative inside; where a shape has no exact
distance, the implicit function over the length of its gradient stands in for it, which is exact to first order at the
outline. The exact ones (capsules, polygon) follow Quilez, "2D distance functions".
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple, Self

import torch
from PIL import Image
from torch import Tensor

from echo_rtc.errors import EchoRtcError, InputError
from echo_rtc.train.gestures import rest_hands


@dataclass(frozen=True)
class Batch:
    """What :class:`People` and :class:`Motion` share: every field is a tensor whose first axis is the batch."""

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, **{field.name: change(getattr(self, field.name)) for field in fields(self)})

    def __len__(self) -> int:
        first: Tensor = getattr(self, fields(self)[0].name)
        return first.shape[0]

    def __getitem__(self, index: slice | Tensor | list[int]) -> Self:
        """The chosen members, still as a batch."""
        return self._map(lambda tensor: tensor[index])

    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def repeat_interleave(self, times: int) -> Self:
        """Each member ``times`` times in a row (one person for the frames of a clip)."""
        return self._map(lambda tensor: tensor.repeat_interleave(times, dim=0))


def _unit(colours: Sequence[str]) -> Tensor:
    """Hexadecimal colours -> (n, 3) in 0..1."""
    return torch.tensor([[int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)] for colour in colours])


# ---------------------------------------------------------------------------------------------------------------------
# What a person is
# ---------------------------------------------------------------------------------------------------------------------

NECKLINES = ("round", "v-neck", "shirt", "jacket", "turtleneck")

_SKINS = _unit(["fae0cd", "f5cfb0", "ecbb95", "dda37a", "c98d62", "ad7049", "8d5538", "6e4029", "533020"])
_HAIRS = _unit(["211c20", "2f211c", "4a2e20", "6b4128", "86512d", "94431f", "bd8a4d", "dcb87c", "9b9a9d", "d8d5d1"])
_IRISES = _unit(["4a2c1b", "6b4226", "7d6a3a", "5b7f55", "4f86a8", "76889a"])

# background top, background bottom, garment, shirt under a jacket
_PALETTES = torch.stack(
    [
        _unit(row)
        for row in (
            ["f3e3d3", "e2c3ac", "2f6f73", "f5efe6"],
            ["d9e8ea", "a9c8cf", "d8694f", "ffffff"],
            ["e9e4f2", "c4b8dc", "4a4478", "f6f1ea"],
            ["f7ecd2", "edcf9a", "34507a", "f3f3f1"],
            ["dcebdd", "a8cbb0", "8a3f4d", "faf4ec"],
            ["fbe4df", "f0bdb3", "3c4a5e", "f7f4f0"],
            ["dfe6f3", "a6b8dd", "e0a440", "ffffff"],
            ["ece7df", "c9bfb0", "6f8f6b", "f4efe7"],
            ["d5e2ef", "8fb0cf", "28395a", "e8eef5"],
            ["f2e8ee", "dab4c8", "7c4a70", "fbf5f2"],
            ["e2efe9", "8cc2b4", "e9e3d8", "3f5b63"],
            ["4d5f78", "2c3a50", "c7b08a", "f2efe9"],
            ["5c7a76", "33504f", "e5d3bb", "ffffff"],
            ["6a5a75", "43374f", "d78a77", "f6efe9"],
            ["f4efe6", "d9cfc0", "26292f", "f1f1f1"],
            ["e8eef0", "b9c6cc", "b23f46", "f6f2ee"],
            ["cfd9cf", "98aa98", "c9793f", "f8f2e8"],
            ["f0e6da", "cdb197", "5d6b8c", "ffffff"],
        )
    ]
)


class HairStyle(NamedTuple):
    """One way to wear hair, in half heads; ``apex`` is the hairline's highest point, ``ends`` where the front ends."""

    cover: float  # 0 bald, 1 hair
    top: float  # thickness over the crown
    side: float  # thickness beside the head
    apex: float
    part: float  # where the hairline is highest, of the face's half width
    bow: float  # exponent of the hairline: 1.3 a slope, 2 round, 4 a straight fringe
    cheek: float  # half width of the face left free, of the face's own
    ends: float  # y at which the hair beside the face ends
    back: float  # y down to which hair falls behind the head
    flare: float  # how much wider the hair is at its lower end
    quiff: float  # lift of the front
    bun: float
    curl: float
    strands: float
    sides: float  # opacity beside the head, 0..1: short sides are clipped shorter than the top


HAIR_STYLES: dict[str, HairStyle] = {
    "side-part": HairStyle(1, 0.17, 0.03, -0.58, -0.38, 2.3, 0.90, 0.06, 0.10, 0.0, 0.55, 0, 0.0, 0.8, 0.9),
    "crop": HairStyle(1, 0.07, 0.01, -0.55, 0.05, 2.7, 0.91, 0.02, 0.05, 0.0, 0.10, 0, 0.1, 0.3, 0.75),
    "quiff": HairStyle(1, 0.15, 0.00, -0.60, 0.25, 2.6, 0.91, 0.04, 0.05, 0.0, 1.00, 0, 0.1, 0.9, 0.65),
    "bald": HairStyle(0, 0.02, 0.00, -0.60, 0.00, 2.2, 0.93, 0.05, 0.05, 0.0, 0.00, 0, 0.0, 0.0, 1.0),
    "long": HairStyle(1, 0.17, 0.10, -0.72, 0.10, 1.65, 0.92, 1.72, 1.80, 0.26, 0.0, 0, 0.0, 1.0, 1.0),
    "long-swept": HairStyle(1, 0.20, 0.11, -0.68, -0.45, 1.75, 0.94, 1.45, 1.50, 0.34, 0.0, 0, 0.25, 1.0, 1.0),
    "bob": HairStyle(1, 0.19, 0.10, -0.66, 0.42, 1.8, 0.93, 0.98, 0.98, 0.24, 0.0, 0, 0.0, 0.9, 1.0),
    "fringe-bob": HairStyle(1, 0.18, 0.10, -0.34, 0.00, 4.5, 0.92, 0.90, 0.90, 0.20, 0.0, 0, 0.0, 0.9, 1.0),
    "bun": HairStyle(1, 0.12, 0.04, -0.64, 0.15, 2.0, 0.92, 0.08, 0.15, 0.0, 0.0, 1, 0.0, 0.9, 1.0),
    "curls": HairStyle(1, 0.24, 0.18, -0.58, 0.05, 2.4, 0.94, 0.66, 0.72, 0.06, 0.0, 0, 1.0, 0.2, 1.0),
    "afro": HairStyle(1, 0.34, 0.34, -0.60, 0.00, 2.2, 0.98, 0.42, 0.52, -0.18, 0.0, 0, 0.6, 0.0, 1.0),
    "pixie": HairStyle(1, 0.17, 0.07, -0.50, 0.48, 1.7, 0.91, 0.22, 0.30, 0.0, 0.10, 0, 0.1, 0.9, 1.0),
}


@dataclass(frozen=True)
class People(Batch):
    """A batch of people, (B,) or (B, k) each, float32. Shapes are factors around 1 unless said otherwise."""

    place: Tensor  # (B, 2) head centre x (0 = middle), y in image heights
    scale: Tensor  # (B,) half head in image heights
    shoulders: Tensor  # (B,) width
    neck: Tensor  # (B,) width
    face: Tensor  # (B, 4) width, length of the chin, breadth of the jaw, cheeks
    skin: Tensor  # (B, 3) colour
    blush: Tensor  # (B,) 0..1
    hair: Tensor  # (B, 15) a HairStyle
    hair_colour: Tensor  # (B, 3)
    eyes: Tensor  # (B, 5) width, height, spacing, y offset (half heads), slant
    iris: Tensor  # (B, 3) colour
    lashes: Tensor  # (B,) 0..1
    brows: Tensor  # (B, 4) thickness, arch, slope, y offset (half heads)
    nose: Tensor  # (B, 2) width, length
    mouth: Tensor  # (B, 4) width, fullness, smile, y offset (half heads)
    lips: Tensor  # (B, 3) colour
    ears: Tensor  # (B,) size
    earrings: Tensor  # (B,) 0..1
    glasses: Tensor  # (B, 3) opacity, roundness 0..1, thickness
    glasses_colour: Tensor  # (B, 3)
    beard: Tensor  # (B, 3) opacity of beard, of moustache, height of the beard's edge 0..1
    neckline: Tensor  # (B, 5) one-hot over NECKLINES
    cloth: Tensor  # (B, 2, 3) outer and inner colour
    ground: Tensor  # (B, 2, 3) upper and lower background colour
    shapes: Tensor  # (B, 3, 4) soft discs of the background: x, y, radius (image heights), strength -1..1

    @classmethod
    def default(cls) -> Self:
        """The one designed person: the product's default avatar."""
        colours = _unit(["f3c8a8", "613623", "4c7a5e", "d0706a", "3c4656", "3a4a7d", "fbf4ea", "e3f0ec", "a5cbc6"])

        def one(*values: float) -> Tensor:
            return torch.tensor([values])

        return cls(
            place=one(0.0, 0.342),
            scale=torch.tensor([0.222]),
            shoulders=torch.tensor([1.0]),
            neck=torch.tensor([0.95]),
            face=one(1.0, 1.0, 1.0, 1.0),
            skin=colours[0:1],
            blush=torch.tensor([0.8]),
            hair=torch.tensor([HAIR_STYLES["bob"]]),
            hair_colour=colours[1:2],
            eyes=one(1.03, 1.05, 1.0, 0.0, 0.25),
            iris=colours[2:3],
            lashes=torch.tensor([0.8]),
            brows=one(0.95, 1.1, 0.1, 0.0),
            nose=one(0.95, 1.0),
            mouth=one(1.02, 1.05, 1.15, 0.0),
            lips=colours[3:4],
            ears=torch.tensor([1.0]),
            earrings=torch.tensor([1.0]),
            glasses=one(0.0, 0.6, 1.0),
            glasses_colour=colours[4:5],
            beard=one(0.0, 0.0, 0.5),
            neckline=torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.0]]),
            cloth=colours[None, 5:7],
            ground=colours[None, 7:9],
            shapes=torch.tensor([[[0.0, 0.40, 0.37, 0.55], [-0.48, 0.9, 0.30, -0.25], [0.5, 0.08, 0.2, 0.3]]]),
        )

    @classmethod
    def sample(cls, count: int, generator: torch.Generator) -> Self:
        """``count`` plausible people: tones, hair and clothes are drawn together so that they go together."""

        def rand(*shape: int) -> Tensor:
            return torch.rand(count, *shape, generator=generator)

        def around(middle: float, spread: float) -> Tensor:
            """Mostly near the middle, never further than twice the spread."""
            return middle + spread * torch.randn(count, generator=generator).clamp(-2, 2)

        def chance(probability: float | Tensor) -> Tensor:
            return (rand() < probability).float()

        def along(anchors: Tensor, at: Tensor) -> Tensor:
            """Colours at positions 0..1 along a list of anchors, interpolated."""
            where = at.clamp(0, 1) * (len(anchors) - 1)
            low = where.floor().clamp(max=len(anchors) - 2).long()
            return torch.lerp(anchors[low], anchors[low + 1], (where - low)[:, None])

        depth = rand()  # of the skin's tone
        skin = (along(_SKINS, depth) * (1 + 0.012 * torch.randn(count, 3, generator=generator))).clamp(0.05, 0.99)
        feminine = rand()

        names = list(HAIR_STYLES)
        table = torch.tensor([HAIR_STYLES[name] for name in names])
        #                      side-part crop quiff bald long swept bob fringe bun curls afro pixie
        hers = torch.tensor([0.1, 0.1, 0.1, 0.05, 1.6, 1.6, 1.3, 1.1, 1.4, 1.2, 0.6, 1.0])
        his = torch.tensor([2.0, 1.8, 1.5, 0.9, 0.35, 0.1, 0.15, 0.0, 0.25, 0.8, 0.5, 0.5])
        weights = torch.lerp(his, hers, feminine.gt(0.5).float()[:, None])
        weights = weights * torch.lerp(torch.ones(12), torch.tensor([1.0] * 9 + [1.6, 3.0, 1.0]), depth[:, None])
        weights[:, 10] *= (depth > 0.55).float() * 0.95 + 0.05
        style = torch.multinomial(weights, 1, generator=generator)[:, 0]
        hair = table[style].clone()
        jitter = torch.tensor([0, 0.02, 0.015, 0.03, 0.06, 0.15, 0.015, 0.04, 0.12, 0.03, 0.08, 0, 0.06, 0.1, 0.05])
        hair = hair + hair[:, :1] * jitter * torch.randn(count, 15, generator=generator).clamp(-1.7, 1.7)
        hair[:, 4] = hair[:, 4] * (1 - 2 * chance(0.5))  # parted on the one side or the other
        hair[:, 1:3] = hair[:, 1:3].clamp(min=0)
        hair[:, [10, 12, 13, 14]] = hair[:, [10, 12, 13, 14]].clamp(0, 1)

        tone = rand() * torch.lerp(torch.tensor(0.95), torch.tensor(0.30), (depth * 1.6).clamp(0, 1))
        grey = chance(0.12)
        tone = torch.lerp(tone * 0.78, 0.88 + 0.12 * rand(), grey)
        hair_colour = (along(_HAIRS, tone) * (1 + 0.04 * torch.randn(count, 3, generator=generator))).clamp(0.06, 0.95)
        iris = along(_IRISES, rand() * torch.lerp(torch.tensor(1.0), torch.tensor(0.25), (depth * 1.7).clamp(0, 1)))

        rose = _unit(["c85a5e"]) * (1 - 0.25 * depth[:, None])
        lips = torch.lerp(
            skin * torch.tensor([0.90, 0.66, 0.64]), rose, (0.2 + 0.35 * rand() + 0.3 * feminine)[:, None]
        )

        palette = _PALETTES[torch.randint(len(_PALETTES), (count,), generator=generator)]
        palette = (palette + 0.02 * torch.randn(count, 4, 3, generator=generator)).clamp(0.03, 1)
        other = _PALETTES[torch.randint(len(_PALETTES), (count,), generator=generator)]
        cloth = torch.where(chance(0.25)[:, None, None] > 0, other[:, 2:], palette[:, 2:])
        neckline = torch.eye(5)[
            torch.multinomial(torch.tensor([1.2, 0.8, 1.0, 1.2, 0.6]), count, True, generator=generator)
        ]

        man = 1 - feminine.gt(0.5).float()
        bearded = man * chance(0.35)
        beard = torch.stack(
            [
                bearded * torch.maximum(0.5 + 0.45 * rand(), 0.92 * grey),
                torch.maximum(bearded, man * chance(0.08)) * (0.5 + 0.45 * rand()),
                rand(),
            ],
            dim=1,
        )
        shapes = torch.stack(
            [
                0.55 * (2 * rand(3) - 1),
                rand(3),
                0.12 + 0.3 * rand(3),
                0.40 * (2 * rand(3) - 1),
            ],
            dim=2,
        )
        return cls(
            place=torch.stack([around(0.0, 0.010), around(0.342, 0.006)], dim=1),
            scale=around(0.221, 0.004),
            shoulders=around(1.0, 0.03) + 0.06 * (man - 0.5),
            neck=around(1.0, 0.05) + 0.16 * (man - 0.5),
            face=torch.stack(
                [around(1.0, 0.035), around(1.0, 0.03), around(0.97, 0.08) + 0.2 * (man - 0.5), around(1.0, 0.3)], dim=1
            ),
            skin=skin,
            blush=(0.35 + 0.5 * rand()) * (0.5 + 0.5 * feminine),
            hair=hair,
            hair_colour=hair_colour,
            eyes=torch.stack(
                [around(1.0, 0.05), around(1.0, 0.08), around(1.0, 0.03), around(0.0, 0.015), around(0.15, 0.25)], dim=1
            ),
            iris=iris,
            lashes=feminine.gt(0.5).float() * (0.4 + 0.6 * rand()),
            brows=torch.stack(
                [around(1.05, 0.15) + 0.3 * (man - 0.5), around(1.0, 0.25), around(0.0, 0.3), around(0.0, 0.015)], dim=1
            ),
            nose=torch.stack([around(1.0, 0.09) + 0.25 * (depth - 0.4), around(1.0, 0.07)], dim=1),
            mouth=torch.stack(
                [
                    around(1.0, 0.04),
                    around(0.95, 0.12) + 0.2 * (feminine - 0.5) + 0.2 * depth,
                    around(1.0, 0.25),
                    around(0.0, 0.012),
                ],
                dim=1,
            ),
            lips=lips.clamp(0.05, 0.95),
            ears=around(1.0, 0.07),
            earrings=feminine.gt(0.5).float() * chance(0.5),
            glasses=torch.stack([chance(0.22), rand(), around(1.0, 0.15)], dim=1),
            glasses_colour=_unit(["23262d", "5a3a28", "8a6a3a", "3e4a66", "6d3440"])[
                torch.randint(5, (count,), generator=generator)
            ],
            beard=beard,
            neckline=neckline,
            cloth=cloth,
            ground=palette[:, :2],
            shapes=shapes,
        )


@dataclass(frozen=True)
class Motion(Batch):
    """What moves, one row a frame, float32. ``head`` should stay within 0.06 and 0.2 rad, see :func:`draw`."""

    mouth: Tensor
    """(B, 5): open 0..1, width -1 (rounded) .. 1 (spread), press 0..1 (p b m), teeth 0..1 (f v), tongue 0..1 (l th)."""
    blink: Tensor
    """(B,): 0 open .. 1 shut."""
    head: Tensor
    """(B, 3): dx, dy in fractions of the image, roll in radians, clockwise as seen."""
    hands: Tensor
    """(B, 2, 21, 2): x, y in 0..1 of the image; wrist, then thumb, index, middle, ring, little finger, base to tip."""
    hands_score: Tensor
    """(B, 2, 21): 0 hides a hand."""

    @classmethod
    def rest(cls, count: int) -> Self:
        """Nothing moves: mouth shut, eyes open, hands at rest."""
        return cls(
            mouth=torch.zeros(count, 5),
            blink=torch.zeros(count),
            head=torch.zeros(count, 3),
            hands=rest_hands()[None].repeat(count, 1, 1, 1),
            hands_score=torch.ones(count, 2, 21),
        )


VISEMES: dict[str, tuple[float, float, float, float, float]] = {
    "shut": (0.0, 0.0, 0.0, 0.0, 0.0),
    "a": (1.0, 0.1, 0.0, 0.0, 0.0),
    "e": (0.5, 0.6, 0.0, 0.0, 0.0),
    "i": (0.25, 1.0, 0.0, 0.0, 0.0),
    "o": (0.6, -0.7, 0.0, 0.0, 0.0),
    "u": (0.25, -1.0, 0.0, 0.0, 0.0),
    "m": (0.0, 0.0, 1.0, 0.0, 0.0),
    "f": (0.08, 0.1, 0.0, 1.0, 0.0),
    "l": (0.4, 0.2, 0.0, 0.0, 1.0),
    "s": (0.12, 0.7, 0.0, 0.6, 0.0),
}
"""Typical mouths of single sounds, in the columns of ``Motion.mouth``: for pictures and tests."""


# ---------------------------------------------------------------------------------------------------------------------
# Distances and paint
# ---------------------------------------------------------------------------------------------------------------------


class _Grid(NamedTuple):
    """Pixel centres in image heights, x (1, 1, 1, w) and y (1, 1, h, 1), and the side of a pixel."""

    x: Tensor
    y: Tensor
    pixel: float


def _map4(value: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return value[:, None, None, None]


def _colour(value: Tensor) -> Tensor:
    """(B, 3) -> (B, 3, 1, 1)."""
    return value[:, :, None, None]


def _cover(distance: Tensor, pixel: float | Tensor) -> Tensor:
    """How much of a pixel lies inside an outline at ``distance``: a linear edge one pixel wide."""
    return (0.5 - distance / pixel).clamp(0, 1)


def _soft(distance: Tensor, inner: float | Tensor, outer: float | Tensor) -> Tensor:
    """1 up to ``inner``, 0 from ``outer`` on, smooth between: shadows and blurred edges."""
    t = ((outer - distance) / (outer - inner)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def _paint(image: Tensor, colour: Tensor, coverage: Tensor) -> Tensor:
    return torch.lerp(image, colour, coverage)


def _union(a: Tensor, b: Tensor, radius: float) -> Tensor:
    """The nearer of two shapes, their meeting rounded with about ``radius`` (Quilez' polynomial smooth minimum)."""
    h = (radius - (a - b).abs()).clamp(min=0) / radius
    return torch.minimum(a, b) - h * h * (radius / 4)


def _ellipse(x: Tensor, y: Tensor, rx: Tensor | float, ry: Tensor | float) -> Tensor:
    u, v = x / rx, y / ry
    k = (u * u + v * v + 1e-9).sqrt()
    u, v = u / rx, v / ry
    return k * (k - 1) / (u * u + v * v + 1e-9).sqrt()


def _capsule(
    grid_x: Tensor, grid_y: Tensor, ends: tuple[Tensor, Tensor, Tensor, Tensor], radii: tuple[Tensor, Tensor]
) -> Tensor:
    """Distance to a stroke from (x0, y0) to (x1, y1) whose radius changes linearly along it."""
    x0, y0, x1, y1 = ends
    dx, dy = x1 - x0, y1 - y0
    px, py = grid_x - x0, grid_y - y0
    h = ((px * dx + py * dy) / (dx * dx + dy * dy + 1e-9)).clamp(0, 1)
    ex, ey = px - dx * h, py - dy * h
    return (ex * ex + ey * ey + 1e-12).sqrt() - radii[0] - (radii[1] - radii[0]) * h


def _dome(x: Tensor, y: Tensor, rx: Tensor | float, ry: Tensor | float, bow: Tensor | float) -> Tensor:
    """Upper half of a superellipse around (0, 0), its sides going straight down below."""
    u, v = x.abs() / rx, (-y / ry).clamp(min=0)
    u1, v1 = (u + 1e-6) ** (bow - 1), (v + 1e-6) ** (bow - 1)
    f = u1 * u + v1 * v + 1e-6
    g = f ** (1 / bow)
    slope = (u1 / rx) ** 2 + (v1 / ry) ** 2 + 1e-9
    return (g - 1) * (f / g) / slope.sqrt()


def _below(curve: Tensor, slope: Tensor, y: Tensor) -> Tensor:
    """Distance to what lies below a curve y(x) of the given slope: negative under it."""
    return (curve - y) * torch.rsqrt(1 + slope * slope)


# ---------------------------------------------------------------------------------------------------------------------
# The parts of a person
# ---------------------------------------------------------------------------------------------------------------------


class _Head(NamedTuple):
    """The head's own coordinates on a grid, (B, 1, h, w), in half heads, and what several of its parts share."""

    people: People
    tones: _Tones
    x: Tensor
    y: Tensor
    pixel: Tensor  # side of a pixel in half heads
    face: Tensor  # distance to the face's outline
    width: Tensor  # of the face, a factor
    mouth: _Mouth


class _Mouth(NamedTuple):
    """A mouth's measures in half heads, (B, 1, 1, 1) each."""

    y: Tensor  # of the corners' line in its middle
    half: Tensor  # half width
    up: Tensor  # how far the upper lip's inner edge rises
    down: Tensor  # how far the lower lip's inner edge sinks
    upper: Tensor  # thickness of the upper lip
    lower: Tensor  # thickness of the lower lip
    lift: Tensor  # how far the corners rise
    bow: Tensor  # exponent of the opening's outline: 1 pointed corners, 0.5 an ellipse
    teeth: Tensor
    tongue: Tensor
    round: Tensor
    jaw: Tensor  # how far the chin sinks


def _pose_mouth(people: People, motion: Motion) -> _Mouth:
    opening, width, press, teeth, tongue = (_map4(column) for column in motion.mouth.unbind(1))
    size, fullness, smile, offset = (_map4(column) for column in people.mouth.unbind(1))
    opening = opening.clamp(0, 1) * (1 - press)
    rounded, spread = (-width).clamp(0, 1), width.clamp(0, 1)
    apart = (opening * 6).clamp(0, 1)
    gap = 0.40 * opening + 0.05 * apart * (0.5 * spread + rounded)
    gap = torch.maximum(gap, torch.maximum(0.07 * teeth, 0.15 * tongue) * (1 - press))
    thick = fullness * (1 + 0.30 * rounded - 0.14 * spread - 0.08 * opening)
    return _Mouth(
        y=0.585 + offset + 0.02 * opening,
        half=0.315 * size * (1 + 0.18 * spread - 0.46 * rounded - 0.10 * opening * (1 - rounded) + 0.02 * press),
        up=(0.26 + 0.16 * rounded) * gap + 0.015 * teeth,
        down=(0.74 - 0.16 * rounded) * gap - 0.015 * teeth,
        upper=0.074 * thick * (1 - 0.62 * press),
        lower=0.100 * thick * (1 - 0.55 * press) * (1 - 0.30 * teeth * (1 - spread)),
        lift=0.060 * smile * (1 - 0.8 * rounded) * (1 - 0.35 * opening) + 0.02 * spread,
        bow=0.85 - 0.33 * opening - 0.20 * rounded * apart,
        teeth=teeth * (1 - press),
        tongue=tongue * (1 - press),
        round=rounded,
        jaw=0.13 * opening + 0.03 * tongue + 0.01 * teeth,
    )


def _head(people: People, motion: Motion, mouth: _Mouth, tones: _Tones, grid: _Grid) -> _Head:
    """Turns the grid into the head's coordinates: shifted with dx, dy, rolled about the chin."""
    scale = _map4(people.scale)
    dx, dy, roll = (_map4(column) for column in motion.head.unbind(1))
    pivot = 0.9 * scale
    px = grid.x - (_map4(people.place[:, 0]) + dx)
    py = grid.y - (_map4(people.place[:, 1]) + dy + pivot)
    cos, sin = roll.cos(), roll.sin()
    x = (px * cos + py * sin) / scale
    y = (py * cos - px * sin + pivot) / scale
    width, chin, jaw, cheeks = (_map4(column) for column in people.face.unbind(1))
    face = _face_outline(x / width, y, chin + mouth.jaw, jaw, cheeks)
    return _Head(people, tones, x, y, grid.pixel / scale, face, width, mouth)


def _face_outline(x: Tensor, y: Tensor, chin: Tensor, jaw: Tensor, cheeks: Tensor) -> Tensor:
    """A round skull and a round chin joined by their tangents, and cheeks."""
    ax = x.abs()
    r1, y1 = 0.74, -0.26
    r2 = 0.50 * jaw
    length = chin - r2 - y1
    b = (r1 - r2) / length
    a = (1 - b * b).sqrt()
    py = y - y1
    k = a * py - b * ax
    skull = (ax * ax + py * py + 1e-9).sqrt() - r1
    low = py - length
    point = (ax * ax + low * low + 1e-9).sqrt() - r2
    side = ax * a + py * b - r1
    outline = torch.where(k < 0, skull, torch.where(k > a * length, point, side))
    cheek = _ellipse(ax - 0.34, y - 0.20, 0.262 + 0.02 * cheeks, 0.50)
    return _union(outline, cheek, 0.16)


class _Tones(NamedTuple):
    """Colours made once for a batch, (B, 3, 1, 1) or (1, 3, 1, 1); shadows are darker and a little warmer."""

    skin: Tensor
    shade: Tensor  # skin in shadow
    deep: Tensor  # skin in folds
    blush: Tensor
    tooth: Tensor
    dim_tooth: Tensor
    tongue: Tensor
    throat: Tensor
    eye: Tensor
    gold: Tensor


def _tones(people: People) -> _Tones:
    fixed = torch.tensor(_FIXED_TONES, device=people.skin.device)[:, None, :, None, None].unbind(0)
    shadow, rosy, tooth, dim_tooth, tongue, throat, eye, gold = fixed
    skin = _colour(people.skin)
    shade = skin * shadow
    blush = (skin * rosy).clamp(0, 1)
    return _Tones(skin, shade, shade * shadow, blush, tooth, dim_tooth, tongue, throat, eye, gold)


_FIXED_TONES = (
    (0.86, 0.74, 0.72),  # skin to its shadow, a factor
    (1.02, 0.74, 0.72),  # skin to its blush, a factor
    (0.985, 0.965, 0.935),
    (0.808, 0.753, 0.729),
    (0.84, 0.40, 0.42),
    (0.30, 0.07, 0.09),
    (0.985, 0.975, 0.965),
    (0.95, 0.80, 0.48),
)


def _lit(colour: Tensor, amount: float) -> Tensor:
    return colour + amount * (1 - colour)


def _background(people: People, grid: _Grid) -> Tensor:
    upper, lower = _colour(people.ground[:, 0]), _colour(people.ground[:, 1])
    image = torch.lerp(upper, lower, (grid.y + 0.15 * grid.x).clamp(0, 1)).clone()
    for index in range(people.shapes.shape[1]):
        x, y, radius, strength = (_map4(column) for column in people.shapes[:, index].unbind(1))
        distance = ((grid.x - x) ** 2 + (grid.y - y) ** 2).sqrt() - radius
        goal = torch.where(strength > 0, _lit(upper, 0.5), lower * 0.86)
        image = _paint(image, goal, _cover(distance, grid.pixel) * strength.abs())
    return image


class _Hair(NamedTuple):
    """What the front and the back of the hair share."""

    style: dict[str, Tensor]
    colour: Tensor  # (B, 3, h, w), with its strands and highlight
    shell: Tensor  # distance to the outer outline, endless downwards


def _hair(head: _Head) -> _Hair:
    style = {name: _map4(column) for name, column in zip(HairStyle._fields, head.people.hair.unbind(1), strict=True)}
    base = _colour(head.people.hair_colour)
    x, y = head.x, head.y
    centre = -0.20
    rx = 0.755 * head.width + style["side"]
    ry = 0.80 + style["top"]
    fall = ((y - centre) / (style["back"] - centre + 0.05)).clamp(0, 1)
    tuck = ((style["back"] - 0.3) * 2).clamp(0, 1) * 0.13
    wide = 1 + style["flare"] * fall * fall * (3 - 2 * fall) - tuck * fall**5
    narrow = 1 - 0.10 * (1 - (style["side"] * 8).clamp(max=1)) * ((y - centre).clamp(0, 1))
    lift = 0.13 * style["quiff"] * torch.exp(-(((x - 0.3 * style["part"]) / 0.62) ** 4)) * _soft(y, -0.8, -0.2)
    shell = _dome(x / (wide * narrow), y - centre + lift, rx, ry, 2.0 + 0.6 * style["quiff"])
    angle = torch.atan2(x, 0.25 - y)
    wave = style["curl"] * 0.075 * ((8 * angle + 0.8 * (3 * angle).sin()).cos().abs() - 0.4)
    bun = _ellipse(x + 0.04, y + 1.04 + style["top"], 0.33, 0.27)
    shell = torch.where(style["bun"] > 0.5, torch.minimum(shell, bun), shell)

    flow = (x - style["part"] * head.width * 0.7) / (0.55 + (y + 1.15).clamp(0.0, 1.2))
    strands = (24 * flow + 2.2 * (3 * y + 2 * x).sin()).sin() * 0.5 + (41 * flow + 3 * y).sin() * 0.3
    tx, ty = x + 0.05 * (7 * y).sin(), y + 0.05 * (8 * x).sin()
    curls = (25 * tx).cos() + (12.5 * tx + 21.7 * ty).cos() + (12.5 * tx - 21.7 * ty).cos()
    texture = style["strands"] * 0.10 * strands + style["curl"] * 0.055 * curls
    radius = ((x / rx) ** 2 + ((y - centre) / ry) ** 2 + 1e-9).sqrt()
    shine = (
        torch.exp(-(((radius - 0.84) / 0.07) ** 2) - ((x + 0.22) / 0.42) ** 2)
        * _soft(y - centre, -0.35, 0.05)
        * (1 - 0.7 * style["curl"])
    )
    depth = _soft(-shell, 0.0, 0.30) * 0.12 + 0.10 * (0.5 * (y + 0.6)).clamp(0, 1)
    bright = 1 + texture - depth
    colour = (base * bright).clamp(0, 1)
    colour = _paint(colour, _lit(base, 0.42), shine * 0.55)
    return _Hair(style, colour, shell - wave)


def _ends(y: Tensor, end: Tensor, shell: Tensor, radius: float) -> Tensor:
    """The part of the shell above ``end``, the corners rounded."""
    low = y - end
    return -_union(-shell, -low, radius)


def _back_hair(image: Tensor, head: _Head, hair: _Hair) -> Tensor:
    end = hair.style["back"] - 0.08 * (1 - head.x * head.x)
    distance = _ends(head.y, end, hair.shell, 0.30)
    dark = hair.colour * (0.80 - 0.15 * _soft(head.face, 0.0, 0.35))
    return _paint(image, dark, _cover(distance, head.pixel) * hair.style["cover"])


def _front_hair(image: Tensor, head: _Head, hair: _Hair) -> Tensor:
    """Hair before the face: the shell without the opening that the hairline leaves, and its shadow on the skin."""
    style = hair.style
    opening = _opening(head, style)
    end = style["ends"] - 0.08 * (1 - head.x * head.x)
    distance = _ends(head.y, end, -_union(-hair.shell, opening, 0.02), 0.22)
    skin = _cover(head.face, head.pixel)
    shadow = _soft(torch.maximum(-opening, head.y - style["ends"]), -0.02, 0.10) * skin * 0.55 * style["cover"]
    image = _paint(image, head.tones.shade * 0.92, shadow)
    thin = 1 - (1 - style["sides"]) * _soft(-head.y, 0.15, 0.45)
    return _paint(image, hair.colour, _cover(distance, head.pixel) * style["cover"] * thin)


def _opening(head: _Head, style: dict[str, Tensor]) -> Tensor:
    half = 0.735 * head.width * style["cheek"]
    part = style["part"] * half
    foot = 0.10 + 0.15 * (style["bow"] < 3)
    jaw = ((head.y - foot) / 0.8).clamp(0, 1)
    x = head.x / (1 - 0.16 * jaw * jaw) - part
    reach = torch.where(x > 0, half - part, half + part)
    return _dome(x, head.y - foot, reach, foot - style["apex"], style["bow"])


def _ears(image: Tensor, head: _Head) -> Tensor:
    people = head.people
    size, skin, shade = _map4(people.ears), head.tones.skin, head.tones.shade
    cover, ends = people.hair[:, 0], people.hair[:, HairStyle._fields.index("ends")]
    shown = _map4(1 - cover * ((ends - 0.30) * 20).clamp(0, 1))  # long hair lies over the ears
    x, y = head.x.abs() - 0.735 * head.width, head.y - 0.14
    tilted = x - 0.18 * -y
    outer = _ellipse(tilted, y, 0.108 * size, 0.175 * size)
    inner = _ellipse(tilted - 0.02, y - 0.01, 0.050 * size, 0.105 * size)
    image = _paint(image, shade, _cover(outer, head.pixel) * shown)
    image = _paint(image, skin, _cover(outer + 0.022, head.pixel) * shown)
    image = _paint(image, shade * 0.94, _soft(inner, -0.03, 0.03) * shown)
    drop = _ellipse(x + 0.02, y - 0.215 * size, 0.034, 0.034)
    return _paint(image, head.tones.gold, _cover(drop, head.pixel) * _map4(people.earrings) * shown)


def _face(image: Tensor, head: _Head) -> Tensor:
    people = head.people
    skin, dark = head.tones.skin, head.tones.shade
    x, y = head.x, head.y
    side = _soft(-head.face, 0.0, 0.34) * (0.5 + 0.55 * x + 0.35 * y).clamp(0, 1)
    glow = torch.exp(-(((x + 0.16) / 0.42) ** 2) - ((y + 0.30) / 0.30) ** 2)
    colour = _paint(skin, dark, 0.62 * side)
    colour = _paint(colour, _lit(skin, 0.30), 0.42 * glow)
    ax = x.abs() - 0.42 * head.width
    blush = torch.exp(-((ax / 0.17) ** 2) - ((y - 0.34) / 0.12) ** 2)
    colour = _paint(colour, head.tones.blush, 0.55 * blush * _map4(people.blush))
    chin = torch.exp(
        -((x / 0.20) ** 2) - ((y - head.mouth.y - head.mouth.down - head.mouth.lower - 0.055) / 0.035) ** 2
    )
    colour = _paint(colour, dark, 0.40 * chin)
    return _paint(image, colour, _cover(head.face, head.pixel))


def _nose(image: Tensor, head: _Head) -> Tensor:
    skin, dark, deep = head.tones.skin, head.tones.shade, head.tones.deep * 0.92
    width, length = (_map4(column) for column in head.people.nose.unbind(1))
    x, y = head.x / width, head.y
    tip = 0.14 + 0.20 * length
    bridge = torch.exp(-(((x - 0.065) / 0.045) ** 2)) * _soft((y - 0.5 * tip).abs(), 0.02, 0.26)
    image = _paint(image, dark, 0.40 * bridge)
    ball = torch.exp(-((x / 0.11) ** 2) - ((y - tip - 0.035) / 0.035) ** 2)
    image = _paint(image, dark, 0.55 * ball)
    shine = torch.exp(-(((x + 0.02) / 0.045) ** 2) - ((y - tip + 0.075) / 0.055) ** 2)
    image = _paint(image, _lit(skin, 0.5), 0.42 * shine)
    ax = x.abs()
    nostril = _ellipse(ax - 0.055, y - tip - 0.018 + 0.25 * (ax - 0.055), 0.032, 0.015)
    image = _paint(image, deep, 0.75 * _soft(nostril, -0.015, 0.012))
    wing = (_ellipse(ax - 0.095, y - tip + 0.005, 0.045, 0.052)).abs() - 0.006
    return _paint(
        image, deep, 0.50 * _soft(wing, -0.006, 0.014) * _soft(-ax, -0.13, -0.10) * _soft(tip - 0.04 - y, -0.02, 0.02)
    )


def _eyes(image: Tensor, head: _Head, blink: Tensor) -> Tensor:
    """Both eyes at once in mirrored coordinates: white, iris, pupil, light, lids that meet when shut, lashes, brows."""
    people, tones = head.people, head.tones
    skin, dark, white = tones.skin, tones.shade, tones.eye
    wide, high, spacing, offset, slant = (_map4(column) for column in people.eyes.unbind(1))
    shut = _map4(blink).clamp(0, 1)
    half = 0.170 * wide
    sign = torch.where(head.x < 0, -1.0, 1.0)
    x = head.x.abs() - 0.325 * spacing * head.width
    y = head.y - 0.055 - offset + 0.10 * slant * x
    u = (x / half).clamp(-1.0, 1.0)
    arch = 1 - u * u
    lower = 0.062 * high * arch * (0.75 + 0.25 * arch)
    full = 0.118 * high * (arch + 1e-4) ** 0.75
    upper = -full + (full + lower * 0.86) * shut  # the upper lid's edge comes down to the lower one's
    slope = (0.118 * (1 - shut) - 0.05 * shut) * 2 * u / half
    open_lid = _below(upper, slope, y)
    eye = torch.maximum(torch.maximum(open_lid, -_below(lower, 0.062 * -2 * u / half, y)), x.abs() - half)

    socket = torch.exp(-((x / 0.21) ** 2) - ((y + 0.06) / 0.10) ** 2)
    image = _paint(image, dark, 0.30 * socket)
    white = _paint(white, white * 0.80, _soft(y - upper, 0.0, 0.07) * 0.8)
    inside = _cover(eye, head.pixel)
    image = _paint(image, white, inside)

    iris, radius = _colour(people.iris), 0.098 * high
    looking = x + 0.006
    distance = (looking * looking + (y + 0.022) ** 2 + 1e-9).sqrt()
    colour = _paint(iris * 0.55, _lit(iris, 0.28), _soft(-(y + 0.022), -0.08, 0.05))
    colour = _paint(colour, iris * 0.40, _soft(-distance, -radius, -radius + 0.03))
    image = _paint(image, colour, _cover(distance - radius, head.pixel) * inside)
    image = _paint(image, iris * 0.12, _cover(distance - 0.48 * radius, head.pixel) * inside)
    shade = _soft(y - upper, 0.0, 0.055) * 0.45
    image = _paint(image, iris * 0.15, _cover(distance - radius, head.pixel) * inside * shade)
    real = x * sign
    light = ((real + 0.034) ** 2 + (y + 0.055) ** 2).sqrt() - 0.030 * high
    glint = ((real - 0.035) ** 2 + (y - 0.018) ** 2).sqrt() - 0.014 * high
    image = _paint(image, _lit(white, 0.8), _cover(torch.minimum(light, glint), head.pixel) * inside)

    lid_colour = skin * 0.12 + 0.048
    lashes = _map4(people.lashes)
    thick = (0.014 + 0.009 * lashes) * (0.45 + 0.55 * arch) * (1 + 0.35 * u) + 0.004
    edge = torch.maximum(open_lid.abs() - thick, x.abs() - half)
    image = _paint(image, lid_colour, _cover(edge, head.pixel) * 0.92)
    flick = _capsule(
        x, y, (half * 0.93, -0.012 + 0.015 * shut, half * 1.16, -0.050 + 0.085 * shut), (half * 0.075, half * 0.02)
    )
    image = _paint(image, lid_colour, _cover(flick, head.pixel) * lashes * 0.9)
    under = torch.maximum(_below(lower, 0.062 * -2 * u / half, y).abs() - 0.006, x.abs() - 0.9 * half)
    image = _paint(image, tones.deep * 0.85, _cover(under, head.pixel) * 0.55)
    crease_y = -(full * 0.55 + 0.062) * (1 - 0.5 * shut)
    crease = torch.maximum(_below(crease_y, slope * 0.6, y).abs() - 0.006, x.abs() - 0.92 * half)
    image = _paint(image, tones.deep * 0.9, _cover(crease, head.pixel) * 0.55)

    thickness, curve, tilt, lift = (_map4(column) for column in people.brows.unbind(1))
    bx = x - 0.005
    v = (bx / (half * 1.30)).clamp(-1, 1)
    line = head.y + 0.190 - lift - 0.025 * shut + 0.050 * curve * (1 - (v - 0.12) ** 2) - (0.018 + 0.03 * tilt) * v
    weight = 0.033 * thickness * (1 - v**8).clamp(min=0).sqrt() * (0.82 - 0.42 * v + 0.02 * v * v)
    brow = torch.maximum(line.abs() - weight, bx.abs() - half * 1.30)
    tone = torch.lerp(_colour(people.hair_colour) * 0.70, skin * 0.35, 0.30)
    return _paint(image, tone, _soft(brow, -0.012, 0.012) * 0.92)


def _beard(image: Tensor, head: _Head) -> Tensor:
    amount, lip, edge = (_map4(column) for column in head.people.beard.unbind(1))
    m = head.mouth
    tone = torch.lerp(_colour(head.people.hair_colour) * 0.90, head.tones.skin * 0.5, 0.18)
    x, y = head.x, head.y
    u = x / (0.62 * head.width)
    line = 0.60 - 0.10 * edge - 0.55 * (u * u) ** 1.5 + 0.06 * torch.exp(-((x / 0.2) ** 2))
    top = _soft(line - y, -0.06, 0.07)
    inside = _soft(head.face, -0.03, 0.015)
    free = _ellipse(x, y - m.y - 0.4 * m.down, m.half + 0.01, 0.09 + 0.55 * (m.up + m.down))
    chin = _ellipse(x, y - m.y - m.down - m.lower - 0.10, 0.10, 0.06)
    shaved = torch.minimum(_soft(free, -0.02, 0.03), _soft(-chin, -0.03, 0.02))
    image = _paint(image, tone, amount * top * inside * (1 - shaved))
    across = (x / (m.half * 1.12)).clamp(-1, 1)
    taper = (1 - across * across + 1e-4).sqrt()
    bow = m.y - m.up - m.upper - 0.026 + 0.050 * across * across - 0.5 * m.lift * across * across
    hairy = (y - bow).abs() - 0.042 * taper * (1 - 0.25 * torch.exp(-((x / 0.05) ** 2)))
    hairy = torch.maximum(hairy, x.abs() - m.half * 1.12)
    return _paint(image, tone, lip * _soft(hairy, -0.018, 0.018))


def _lips(image: Tensor, head: _Head) -> Tensor:
    """The mouth: what is inside, then the lips around it, all between curves over the mouth's width."""
    m, tones, lips = head.mouth, head.tones, _colour(head.people.lips)
    x, y, pixel = head.x, head.y, head.pixel
    u = x / m.half
    q = (1 - u * u).clamp(min=0.0)
    steep = (1 - u * u).clamp(min=0.05)
    arch = (q + 1e-5) ** m.bow
    turn = -2 * u / m.half * m.bow * steep ** (m.bow - 1)
    corner = m.y - m.lift * (u * u - 0.25) + 0.006 * torch.exp(-((u / 0.22) ** 2))
    tilt = -2 * m.lift * u / m.half
    inner_up, inner_down = corner - m.up * arch, corner + m.down * arch

    full = m.half + 0.028
    w = x / full
    p = (1 - w * w).clamp(min=0.0)
    dome = (p + 1e-5).sqrt()
    dome_turn = -w / full / (p.clamp(min=0.10)).sqrt()
    cupid = 1 - 0.26 * torch.exp(-((w / 0.12) ** 2)) + 0.12 * torch.exp(-(((w.abs() - 0.27) / 0.17) ** 2))
    rest = 1 - w.abs().clamp(max=1)
    sharp = torch.lerp(rest * (1.5 - 0.5 * rest), dome, 0.25 + 0.55 * m.round)
    outer_up = inner_up - m.upper * sharp * cupid
    outer_down = inner_down + m.lower * torch.lerp(p, dome, 0.35 + 0.45 * m.round)
    side = x.abs() - full

    line_up = _below(inner_up, tilt - m.up * turn, y)
    line_down = -_below(inner_down, tilt + m.down * turn, y)
    inside = torch.maximum(torch.maximum(line_up, line_down), x.abs() - m.half)
    above = _below(outer_up, tilt - m.up * turn - m.upper * dome_turn, y)
    beneath = -_below(outer_down, tilt + m.down * turn + m.lower * dome_turn, y)
    outline = torch.maximum(torch.maximum(above, beneath), side)

    shadow = torch.exp(-((x / (m.half * 0.8)) ** 2) - ((y - outer_down - 0.03) / 0.03) ** 2)
    image = _paint(image, tones.shade, 0.40 * shadow)
    upper_lip = lips * 0.86
    lower_lip = _paint(
        lips,
        _lit(lips, 0.40),
        0.55 * torch.exp(-(((x + 0.03) / (0.5 * m.half)) ** 2) - ((y - inner_down - 0.42 * m.lower) / 0.028) ** 2),
    )
    split = 0.5 * (inner_up + inner_down)
    colour = _paint(upper_lip, lower_lip, _cover(split - y, pixel))
    image = _paint(image, colour, _cover(outline, pixel))

    gap = m.up + m.down
    visible = _cover(inside, pixel) * (gap * 40).clamp(0, 1)
    hole = _paint(tones.throat, tones.throat * 0.45, _soft(y - inner_up, 0.0, 0.22))
    image = _paint(image, hole, visible)

    bed = m.y + m.down
    reach = (0.40 * m.down) * (1 - m.tongue) + m.tongue * (0.86 * gap)
    tongue = _ellipse(x, y - bed - 0.02, 0.62 * m.half * (1 - 0.12 * m.tongue), reach + 0.02)
    body = _paint(tones.tongue, tones.tongue * 0.72, _soft(-tongue, 0.0, 0.05))
    body = _paint(body, tones.tongue * 0.72, 0.5 * torch.exp(-((x / 0.02) ** 2)))

    sunk = 0.05 * ((gap - 0.08) / 0.08).clamp(0, 1) * ((0.40 - gap) / 0.16).clamp(0, 1) * (1 - m.round)
    image = _paint(
        image,
        tones.tooth * 0.86,
        visible * _cover(bed - sunk - y, pixel) * _soft(u.abs(), 0.35, 0.75) * (sunk * 50).clamp(0, 1),
    )
    image = _paint(image, body, visible * _cover(tongue, pixel))
    hang = (0.62 * gap).clamp(max=0.105) * (1 - 0.9 * m.round)
    hang = torch.lerp(hang, gap + 0.016, m.teeth * 0.95)
    edge = m.y - m.up + hang * (1 - 0.25 * u * u) - m.lift * (u * u - 0.25)
    rim = torch.maximum(_below(edge, torch.zeros_like(u), y) * -1, line_up)
    shown = (
        _cover(rim, pixel)
        * _soft(u.abs(), 0.72, 0.93)
        * (gap * 40).clamp(0, 1)
        * (hang * 60).clamp(0, 1)
        * _cover(x.abs() - m.half, pixel)
    )
    shown = shown * torch.maximum(visible, m.teeth)
    enamel = _paint(tones.tooth, tones.dim_tooth, _soft(y - inner_up, 0.0, 0.05) * 0.8)
    image = _paint(image, enamel, shown)

    seam = (y - corner).abs() * torch.rsqrt(1 + tilt * tilt) - 0.007 - 0.005 * (1 - w.abs())
    seam = torch.maximum(seam, x.abs() - full - 0.008)
    closed = 1 - (gap * 22).clamp(0, 1)
    image = _paint(image, lips * 0.42, _cover(seam, pixel) * closed * 0.88)
    dimple = torch.exp(-(((x.abs() - full - 0.02) / 0.022) ** 2) - ((y - m.y + m.lift) / 0.022) ** 2)
    return _paint(image, tones.deep * 0.85, 0.35 * dimple * (1 - (2 * gap).clamp(max=0.8)))


def _glasses(image: Tensor, head: _Head) -> Tensor:
    opacity, round_, thick = (_map4(column) for column in head.people.glasses.unbind(1))
    spacing = _map4(head.people.eyes[:, 2])
    centre = 0.335 * spacing * head.width
    x, y = head.x.abs() - centre, head.y - 0.075
    radius = 0.08 + 0.14 * round_
    rx, ry = 0.245 - radius, (0.19 + 0.035 * round_) - radius
    ex, ey = x.abs() - rx, y.abs() - ry
    lens = (ex.clamp(min=0) ** 2 + ey.clamp(min=0) ** 2 + 1e-9).sqrt() + torch.maximum(ex, ey).clamp(max=0) - radius
    colour = _colour(head.people.glasses_colour)
    white = torch.ones_like(colour)
    glare = _soft((x + 0.7 * y + 0.06).abs(), 0.03, 0.05) * 0.14 + 0.05
    image = _paint(image, white, _cover(lens, head.pixel) * glare * opacity)
    frame = lens.abs() - 0.018 * thick
    bridge = torch.maximum(
        (y + 0.03 - 0.05 * (head.x / 0.1).clamp(-1, 1) ** 2).abs() - 0.016 * thick, head.x.abs() - centre + 0.245
    )
    temple = torch.maximum((y + 0.06).abs() - 0.018, (head.x.abs() - 0.49 * head.width).abs() - 0.25)
    temple = torch.maximum(temple, -lens)
    temple = torch.maximum(temple, head.x.abs() - 0.735 * head.width)
    shape = torch.minimum(torch.minimum(frame, bridge), temple)
    return _paint(image, colour, _cover(shape, head.pixel) * opacity)


# ---------------------------------------------------------------------------------------------------------------------
# Body, clothes, arms and hands
# ---------------------------------------------------------------------------------------------------------------------


def _polygon(x: Tensor, y: Tensor, corner_x: Tensor, corner_y: Tensor) -> Tensor:
    """Exact distance to a polygon of corners (B or 1, n, 1, 1); what is inside is told by counting crossings."""
    dx, dy = corner_x.roll(1, 1) - corner_x, corner_y.roll(1, 1) - corner_y
    px, py = x - corner_x, y - corner_y
    h = ((px * dx + py * dy) / (dx * dx + dy * dy + 1e-9)).clamp(0, 1)
    ex, ey = px - dx * h, py - dy * h
    nearest = (ex * ex + ey * ey + 1e-12).amin(1, keepdim=True).sqrt()
    crossing = ((py >= 0) != (py >= dy)) & ((dx * py - dy * px > 0) == (dy > 0))
    odd = crossing.sum(1, keepdim=True) % 2
    return nearest * (1 - 2 * odd)


def _body(
    image: Tensor, people: People, motion: Motion, tones: _Tones, arms: Sequence[_Arm], grid: _Grid
) -> tuple[Tensor, Tensor]:
    """Neck, shoulders, upper arms and clothes; also where cloth is. The shoulders stay; the neck leans to the head."""
    skin, dark = tones.skin, tones.shade
    outer, inner = _colour(people.cloth[:, 0]), _colour(people.cloth[:, 1])
    plain, vee, shirt, jacket, tube = (_map4(column) for column in people.neckline.unbind(1))
    scale = _map4(people.scale) / 0.222
    left, middle = _map4(people.place[:, 0]), _map4(people.place[:, 1])
    x, y = grid.x - left, grid.y - (middle - 0.342)
    wide, pixel = _map4(people.shoulders), grid.pixel

    bust = _union(_dome(x, y - 1.0, 0.372 * wide, 0.345, 2.0), _ellipse(x, y - 0.70, 0.145 * wide, 0.055), 0.10)
    upper = [_upper_arm(arm, wide, grid) for arm in arms]
    torso = _union(bust, torch.minimum(upper[0], upper[1]), 0.12)

    neck_half = 0.080 * _map4(people.neck) * scale
    roll = _map4(motion.head[:, 2])
    top_x = left + _map4(motion.head[:, 0]) - 0.06 * roll
    top_y = middle + 0.10 * scale + _map4(motion.head[:, 1])
    neck = _capsule(grid.x, grid.y, (top_x, top_y, left, middle - 0.342 + 0.70), (neck_half * 0.98, neck_half * 1.05))
    flesh = _union(neck, bust + 0.012, 0.06)
    under = _ellipse(grid.x - top_x - 0.012, grid.y - top_y - 0.118 * scale, 0.120 * scale, 0.060 * scale)
    colour = _paint(skin, dark, 0.80 * _soft(under, -0.030, 0.026) + 0.25 * _soft(-x, -0.09, 0.0))
    image = _paint(image, colour, _cover(flesh, pixel))

    cloth = _cover(torso, pixel)
    round_ = _ellipse(x, y - 0.635, 0.105 * wide, 0.062)
    v_cut = torch.maximum(x.abs() * 0.86 + (y - 0.79) * 0.52, x.abs() - 0.115)
    shirt_cut = x.abs() * 0.88 + (y - 0.735) * 0.48
    front = x.abs() * 0.90 + (y - 0.99) * 0.30
    light = 1.03 - 0.12 * _soft(-x, -0.40, -0.05) - 0.08 * _soft(-y, -1.05, -0.75)
    shadow = torch.lerp(
        light - 0.04 - 0.10 * _soft(front.abs(), 0.0, 0.03), light * 0.88, _cover(round_.abs() - 0.005, pixel)
    )
    image = _paint(image, inner * shadow, cloth * _cover(-round_ - 0.005, pixel) * jacket)

    hole = plain * round_ + vee * v_cut + shirt * shirt_cut + jacket * front + tube
    image = _paint(image, dark, _soft(hole.abs(), 0.0, 0.012) * cloth * 0.65 * (plain + vee + shirt))
    fold = 0.602 + 0.012 * (1 - (x / 0.1) ** 2).clamp(0, 1) - y
    roll_neck = _cover(torch.maximum(_union(neck - 0.008, bust, 0.04), fold), pixel) * tube
    solid = torch.maximum(cloth * _cover(-hole, pixel), roll_neck)

    # everything sewn onto the garment only changes how light it is and how much white is in it
    light = light * (1 - 0.18 * _cover((hole - 0.014).abs() - 0.0015, pixel) * (plain + vee))
    light = light * (1 - 0.20 * roll_neck * _soft((fold + 0.050).abs(), 0.001, 0.007) * _soft(x.abs(), 0.07, 0.11))
    light, white, flap = _tailoring(people, (x, y, front), light, pixel)
    solid = torch.maximum(solid, flap)
    inside = _soft(bust, -0.045, -0.005) * _soft(-y, -0.90, -0.80)
    for arm in upper:
        light = light * (1 - 0.17 * _soft(arm.abs(), 0.0, 0.012) * inside)
    return _paint(image, torch.lerp(outer, torch.ones_like(outer), white) * light, solid), torch.maximum(
        cloth, roll_neck
    )


def _upper_arm(arm: _Arm, wide: Tensor, grid: _Grid) -> Tensor:
    distance = _capsule(grid.x, grid.y, (*arm.shoulder, *arm.elbow), (0.074 * wide, 0.066 * wide))
    return distance + (1 - arm.score) * 2.0


def _tailoring(
    people: People, place: tuple[Tensor, Tensor, Tensor], light: Tensor, pixel: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A jacket's lapels, a shirt's collar and buttons, both halves at once in mirrored coordinates.

    Returns the garment's light, its share of white, and the collar's coverage, which reaches beyond the garment.
    """
    x, y, front = place
    shirt, jacket = _map4(people.neckline[:, 2]), _map4(people.neckline[:, 3])
    ax = x.abs()

    def polygon(*points: tuple[float, float]) -> Tensor:
        corners = torch.tensor(points, device=x.device)[None, :, :, None, None]
        return _polygon(ax, y, corners[:, :, 0], corners[:, :, 1])

    placket = _cover(torch.maximum((x - 0.020).abs() - 0.0015, 0.735 - y), pixel) * shirt
    spot = (x * x + ((y - 0.79 + 0.035) % 0.07 - 0.035) ** 2).sqrt() - 0.0065
    white = 0.40 * _cover(torch.maximum(spot, 0.76 - y), pixel) * shirt
    lapel = polygon((0.085, 0.610), (0.128, 0.645), (0.176, 0.738), (0.150, 0.758), (0.163, 0.786), (0.0, 0.99))
    flap = polygon((0.070, 0.602), (0.112, 0.634), (0.118, 0.700), (0.085, 0.750), (0.004, 0.720)) - 0.004
    light = light * (1 - 0.24 * placket)
    shade = torch.maximum(_soft(lapel, -0.004, 0.010) * jacket, _soft(flap, -0.004, 0.011) * shirt)
    light = light * (1 - 0.26 * shade)
    on_lapel, on_flap = _cover(torch.maximum(lapel, -front), pixel) * jacket, _cover(flap, pixel) * shirt
    raised = torch.maximum(on_lapel, on_flap)
    light = torch.lerp(light, light / (1 - 0.26 * shade), raised)
    return light, torch.lerp(white, 0.08 + 0.03 * shirt, raised), on_flap


class _Arm(NamedTuple):
    """One hand's keypoints in image heights, x and y (B, 21, 1, 1), its size, elbow and shoulder, (B, 1, 1, 1)."""

    x: Tensor
    y: Tensor
    size: Tensor
    score: Tensor
    elbow: tuple[Tensor, Tensor]
    shoulder: tuple[Tensor, Tensor]


# radii of the fingers' joints, thumb to little finger, in hand sizes
_WIDTHS = (
    (0.072, 0.063, 0.053, 0.045),
    (0.056, 0.052, 0.047, 0.042),
    (0.056, 0.053, 0.048, 0.043),
    (0.054, 0.051, 0.046, 0.041),
    (0.048, 0.044, 0.040, 0.036),
)


def _arm(people: People, motion: Motion, hand: int, aspect: float) -> _Arm:
    points = motion.hands[:, hand]
    xs = (points[..., 0] - 0.5) * aspect
    ys = points[..., 1]
    # the longest way from the wrist to a fingertip: what a turned or bent hand shortens least
    fx, fy = (torch.cat([axis[:, :1, None].expand(-1, 5, 1), axis[:, 1:].reshape(-1, 5, 4)], 2) for axis in (xs, ys))
    bones = (fx.diff(dim=2) ** 2 + fy.diff(dim=2) ** 2 + 1e-9).sqrt()
    size = bones[:, 1:].sum(2).amax(1).clamp(0.17, 0.34)
    side = 1.0 if hand == 0 else -1.0
    wide = people.shoulders
    shoulder_x = people.place[:, 0] + side * 0.292 * wide
    shoulder_y = people.place[:, 1] - 0.342 + 0.835
    # two bones of known length: the elbow lies where their circles meet, on the outer, lower side
    upper, fore = 0.33 * wide, 0.33 * wide
    dx, dy = xs[:, 0] - shoulder_x, ys[:, 0] - shoulder_y
    gap = (dx * dx + dy * dy + 1e-6).sqrt()
    along = ((upper * upper - fore * fore + gap * gap) / (2 * gap)).clamp(min=-0.3, max=0.3)
    out = (upper * upper - along * along).clamp(min=0.0025).sqrt()
    ux, uy = dx / gap, dy / gap
    elbow_x = shoulder_x + along * ux - side * out * uy * -1.0
    elbow_y = shoulder_y + along * uy - side * out * ux
    return _Arm(
        x=xs[:, :, None, None],
        y=ys[:, :, None, None],
        size=_map4(size),
        score=_map4(motion.hands_score[:, hand].mean(1)),
        elbow=(_map4(elbow_x), _map4(elbow_y)),
        shoulder=(_map4(shoulder_x), _map4(shoulder_y)),
    )


def _sleeve(image: Tensor, people: People, tones: _Tones, arm: _Arm, cloth: Tensor, grid: _Grid) -> Tensor:
    """The forearm and its cuff; ``cloth`` is what its shadow falls on."""
    outer, skin = _colour(people.cloth[:, 0]), tones.shade
    jacket = _map4(people.neckline[:, 3])
    wide = _map4(people.shoulders)
    ex, ey = arm.elbow
    wx, wy = arm.x[:, :1], arm.y[:, :1]
    dark = outer * 0.66
    cx, cy = ex + 0.90 * (wx - ex), ey + 0.90 * (wy - ey)
    wrist = _capsule(grid.x, grid.y, (cx, cy, wx, wy), (0.135 * arm.size, 0.125 * arm.size))
    image = _paint(image, skin * 0.96, _cover(wrist, grid.pixel) * arm.score)
    fore = _capsule(grid.x, grid.y, (ex, ey, cx, cy), (0.066 * wide, 0.185 * arm.size))
    # flat cuff: nothing of the round end beyond the sleeve's last point
    length = ((cx - ex) ** 2 + (cy - ey) ** 2 + 1e-9).sqrt()
    reach = ((grid.x - cx) * (cx - ex) + (grid.y - cy) * (cy - ey)) / length
    cut = torch.maximum(fore, reach - 0.012)
    image = _paint(image, dark, _soft(cut, 0.0, 0.026) * 0.55 * arm.score * cloth)
    across = ((grid.x - cx) * (cy - ey) - (grid.y - cy) * (cx - ex)) / length
    light = 0.98 - 1.1 * across.abs()
    image = _paint(image, outer * light, _cover(cut, grid.pixel) * arm.score)
    cuff = torch.maximum(cut, -reach - 0.010)
    trim = torch.lerp(outer * 0.84, _colour(people.cloth[:, 1]), jacket)
    return _paint(image, trim, _cover(cuff, grid.pixel) * arm.score)


def _hand(image: Tensor, tones: _Tones, arm: _Arm, grid: _Grid) -> Tensor:
    """The palm, and the fingers over it, each with a line that parts it from the next.

    Light is gathered as one number, 0 a line, 1 full light, and turned into colour once.
    """
    size, score, pixel = arm.size, arm.score, grid.pixel
    corners = [torch.cat([axis[:, :2], axis[:, 5::4]], 1) for axis in (arm.x, arm.y)]  # wrist, thumb, knuckles
    palm = _polygon(grid.x, grid.y, *corners) - 0.060 * size
    ends = (arm.x[:, :1], arm.y[:, :1], arm.x[:, 9:10], arm.y[:, 9:10])
    palm = _union(palm, _capsule(grid.x, grid.y, ends, (0.105 * size, 0.10 * size)), 0.03)
    edge = 0.0038
    inside = _cover(palm, pixel)
    light = inside * (1 - 0.36 * _soft(-palm, -0.004, 0.050))
    solid = _cover(palm - edge, pixel)
    image = _paint(image, tones.skin * 0.30, _soft(palm, 0.0, 0.030) * 0.28 * score)
    radii = torch.tensor(_WIDTHS, device=palm.device)[:, None, :, None, None] * size
    for number in (4, 3, 2, 1, 0):
        x, y = (axis[:, 4 * number + 1 : 4 * number + 5] for axis in (arm.x, arm.y))
        wide = radii[number]
        bones = _capsule(grid.x, grid.y, (x[:, :3], y[:, :3], x[:, 1:], y[:, 1:]), (wide[:, :3], wide[:, 1:]))
        finger = bones.amin(1, keepdim=True)
        # on the palm a finger rises gradually from its knuckle: no line runs around the joint
        away = ((grid.x - x[:, :1]) ** 2 + (grid.y - y[:, :1]) ** 2).sqrt()
        risen = torch.maximum(1 - _soft(away, 0.05 * size, 0.15 * size), 1 - inside)
        own = _cover(finger, pixel) * (1 - 0.27 * _soft(-finger, -0.002, 0.016))
        cover = _cover(finger - edge, pixel) * risen
        light = torch.lerp(light, own, cover)
        solid = torch.maximum(solid, cover)
    return _paint(image, torch.lerp(tones.deep * 0.94, _lit(tones.skin, 0.06), light), solid * score)


# ---------------------------------------------------------------------------------------------------------------------
# The picture
# ---------------------------------------------------------------------------------------------------------------------


class _Window(NamedTuple):
    """A part of the image, in pixels, that is known to hold a part of the person."""

    top: int
    bottom: int
    left: int
    right: int

    @classmethod
    def of(cls, rows: tuple[float, float], half_width: float, height: int, width: int) -> _Window:
        """Rows in image heights, columns up to ``half_width`` image heights from the middle."""
        reach = round(min(half_width * height, width))
        return cls(
            max(0, round(rows[0] * height)),
            min(height, round(rows[1] * height)),
            max(0, width // 2 - reach),
            min(width, width - width // 2 + reach),
        )

    def within(self, outer: _Window) -> _Window:
        """The same part, counted from the corner of a window around it."""
        return _Window(self.top - outer.top, self.bottom - outer.top, self.left - outer.left, self.right - outer.left)

    def cut(self, image: Tensor) -> Tensor:
        return image[..., self.top : self.bottom, self.left : self.right]

    def grid(self, grid: _Grid) -> _Grid:
        return _Grid(grid.x[..., self.left : self.right], grid.y[..., self.top : self.bottom, :], grid.pixel)

    def put(self, image: Tensor, part: Tensor) -> Tensor:
        rows = image[..., self.top : self.bottom, :]
        rows = torch.cat([rows[..., : self.left], part, rows[..., self.right :]], dim=3)
        return torch.cat([image[..., : self.top, :], rows, image[..., self.bottom :, :]], dim=2)


def draw(people: People, motion: Motion, size: int | tuple[int, int]) -> Tensor:
    """Draws a batch of people in motion.

    ``people`` and ``motion`` have the same length B and lie on the same device; ``size`` is the side of a square or
    (height, width) in pixels. Returns (B, 3, height, width) float32 in 0..1. The memory held at once is about ten
    times the result's. ``torch.compile(draw)`` gives the same picture many times faster on a GPU, for about two minutes
    of compiling. Head motion beyond 0.06 of the image or 0.2 rad may cut off parts of the head, which is drawn only
    where it can be. Raises ValueError where the lengths differ.
    """
    if len(people) != len(motion):
        raise ValueError(
            f"{len(people)} people and {len(motion)} motions; draw needs as many of the one as of the other"
        )
    height, width = (size, size) if isinstance(size, int) else size
    device = people.skin.device
    pixel = 1 / height
    grid = _Grid(
        ((torch.arange(width, device=device) + 0.5 - width / 2) * pixel)[None, None, None, :],
        ((torch.arange(height, device=device) + 0.5) * pixel)[None, None, :, None],
        pixel,
    )
    image = _background(people, grid)
    arms = [_arm(people, motion, number, width / height) for number in (0, 1)]

    around = _Window.of((0.0, 0.80), 0.37, height, width)
    tones = _tones(people)
    mouth = _pose_mouth(people, motion)
    head = _head(people, motion, mouth, tones, around.grid(grid))
    hair = _hair(head)
    image = around.put(image, _back_hair(around.cut(image), head, hair))

    below = _Window.of((0.42, 1.0), math.inf, height, width)
    part, cloth = _body(below.cut(image), people, motion, tones, arms, below.grid(grid))
    image = below.put(image, part)

    part = _face(_ears(around.cut(image), head), head)
    middle = _Window.of((0.18, 0.68), 0.24, height, width)
    features = _head(people, motion, mouth, tones, middle.grid(grid))
    inner = middle.within(around)
    details = _nose(inner.cut(part), features)
    details = _eyes(details, features, motion.blink)
    details = _lips(_beard(details, features), features)
    part = inner.put(part, _glasses(details, features))
    image = around.put(image, _front_hair(part, head, hair))

    part = below.cut(image)
    for arm in arms:
        part = _sleeve(part, people, tones, arm, cloth, below.grid(grid))
        part = _hand(part, tones, arm, below.grid(grid))
    return below.put(image, part).clamp(0, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Command
# ---------------------------------------------------------------------------------------------------------------------


def to_image(picture: Tensor) -> Image.Image:
    """(3, H, W) in 0..1 -> an RGB image."""
    pixels = (picture.clamp(0, 1) * 255 + 0.5).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(pixels)


def draw_reference(people: People, size: int, supersample: int = 2) -> Tensor:
    """People at rest as reference images, (B, 3, size, size), drawn larger and averaged."""
    large = draw(people, Motion.rest(len(people)).to(people.skin.device), size * supersample)
    return torch.nn.functional.avg_pool2d(large, supersample) if supersample > 1 else large


def main_person(argv: Sequence[str]) -> int:
    """``python -m echo_rtc.train person``: writes one person at rest as a PNG. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="echo-rtc train person", description="Draws one person at rest.")
    parser.add_argument("--seed", type=int, default=None, help="number of the person (default: the designed avatar)")
    parser.add_argument("--output", type=Path, required=True, help="PNG file to write")
    parser.add_argument("--size", type=int, default=512, help="side of the picture in pixels (default 512)")
    options = parser.parse_args(argv)
    try:
        if not 32 <= options.size <= 4096:
            raise InputError(f"--size {options.size} is out of range; give a number of pixels between 32 and 4096")
        if options.seed is None:
            people = People.default()
        else:
            people = People.sample(1, torch.Generator().manual_seed(options.seed))
        picture = to_image(draw_reference(people, options.size)[0])
        try:
            picture.save(options.output, format="PNG")
        except OSError as error:
            raise InputError(f"--output {options.output} cannot be written: {error.strerror or error}") from error
    except EchoRtcError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0
