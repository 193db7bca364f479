"""Hair: strands that grow from the scalp along a comb field, held to the skull and drawn together in clumps.

A style is a :class:`Style`: how long strands are, how far from the skull they lie, and which way they are combed. The
strands are ribbons that move with the head as one piece. Template coordinates (a vertex's place in the neutral mesh)
tell where on the scalp a root is, so that one style fits every head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from echo_rtc.train.people.asset import F32, F64, I32, Bool

_LINE_Y = [-0.20, -0.150, -0.135, -0.118, -0.100, -0.085, -0.072, -0.062, -0.056, -0.045, -0.036, -0.030, 0.008, 0.022]
_LINE_Z = [0.812, 0.808, 0.803, 0.795, 0.783, 0.769, 0.757, 0.738, 0.722, 0.716, 0.725, 0.752, 0.752, 0.712]
_HAIRLINE = np.array([[*_LINE_Y, 0.045, 0.12], [*_LINE_Z, 0.672, 0.655]])
"""Height of the hairline in the template, from the forehead to the nape."""


def smoothstep(low: float, high: float, value: NDArray[np.floating]) -> F64:
    """0 below ``low``, 1 above ``high``, smooth between; ``low`` may lie above ``high``."""
    t = np.clip((np.asarray(value, np.float64) - low) / (high - low), 0, 1)
    found: F64 = t * t * (3 - 2 * t)
    return found


def above_hairline(template: F32, receding: float = 0.0) -> F64:
    """How far points of the template lie above the hairline, metres; ``receding`` moves its corners back."""
    x, y, z = template.T
    corners = receding * 0.045 * smoothstep(0.012, 0.04, np.abs(x)) * smoothstep(-0.03, -0.09, y)
    found: F64 = z - np.interp(y, *_HAIRLINE) - corners - 0.012 * receding * smoothstep(-0.05, -0.12, y)
    return found


@dataclass(frozen=True, eq=False)
class Head:
    """The surface that hair grows on: fine vertices ``at``, ``normal`` and ``template`` (N, 3), ``triangles``,
    ``scalp`` (N,) 0..1, where ears are (N,), and the ``scale`` of the head."""

    at: F32
    normal: F32
    template: F32
    triangles: I32
    scalp: F32
    ears: F32
    scale: float


@dataclass(frozen=True, eq=False)
class Strands:
    """N strands of K points as ribbons: ``at`` and ``along`` (N * K * 2, 3); ``tone`` (.., 4): share of the length,
    depth (0 inner .. 1 outer), random of the strand, random of the clump; ``side`` (.., 2): -1 or 1, half width."""

    at: F32
    along: F32
    tone: F32
    side: F32
    triangles: I32

    def __add__(self, other: Strands) -> Strands:
        return Strands(
            np.concatenate([self.at, other.at]),
            np.concatenate([self.along, other.along]),
            np.concatenate([self.tone, other.tone]),
            np.concatenate([self.side, other.side]),
            np.concatenate([self.triangles, other.triangles + len(self.at)]),
        )


@dataclass(frozen=True)
class Place:
    """What a comb field may look at, for N strands: points ``p`` and roots in the template ``root`` (N, 3), share of
    the length, normal of the nearest skin and distance from it, middle of the head and its scale."""

    p: F64
    root: F64
    share: float
    normal: F64
    distance: F64
    centre: F64
    scale: float

    def local(self) -> F64:
        """Points from the middle of the head, in heads."""
        found: F64 = (self.p - self.centre) / self.scale
        return found


Comb = Callable[[Place], F64]
Length = Callable[[F64], F64]


@dataclass(frozen=True)
class Style:
    """How hair is worn. Lengths in metres for a head of scale 1."""

    comb: Comb
    length: Length
    lift: Length
    strands: int = 5200
    points: int = 12
    width: float = 0.00125
    clumps: int = 420
    gather: float = 0.45
    stiff: float = 0.5
    hug: float = 0.8
    loose: float = 0.06
    unruly: float = 0.09
    uneven: float = 0.05
    rise: float = 0.3
    curl: tuple[float, float] | None = None
    frames_face: bool = False
    receding: float = 0.0
    tail: Callable[[np.random.Generator, F64, float], F64] | None = None


@dataclass(frozen=True, eq=False)
class _Roots:
    """N strands before they grow: where, which way, where in the template; ``clump`` numbers and the ``guides`` of the
    clumps; ``tones`` (N, 3) depth, random, random of the clump; lengths and lifts in metres; ``stray`` (N, 3)."""

    at: F64
    outward: F64
    template: F64
    clump: NDArray[np.int64]
    guides: NDArray[np.int64]
    tones: F64
    length: F64
    lift: F64
    stray: F64


def grow(style: Style, head: Head, rng: np.random.Generator) -> Strands:
    """Strands of a style on a head."""
    skin = head.at[_solid(head)].astype(np.float64)
    centre = np.array([0.0, float(skin[:, 1].mean()), float(skin[:, 2].max()) - 0.10 * head.scale])
    roots = _roots(style, head, rng)
    lines = _comb(style, head, roots, centre)
    kept = np.ones(len(lines), bool)
    if style.frames_face:
        kept = ~_crosses_face(lines, centre, head.scale)
    # Guides that went lost leave their clumps to the strand that is nearest to where they grew.
    guides = np.flatnonzero(kept)[cKDTree(roots.at[kept]).query(roots.at[roots.guides])[1]]
    along = np.linspace(0, 1, style.points)[None, :, None]
    pull = along**1.2 * style.gather * (1 - 0.4 * roots.tones[:, 1, None, None])
    lines = lines + (lines[guides][roots.clump] - lines) * pull
    if style.curl is not None:
        lines = _curled(lines, style.curl, roots.length, roots.tones)
    if style.frames_face:
        kept &= ~_crosses_face(lines, centre, head.scale)
    strands = ribbons(lines[kept], style.width * head.scale, roots.tones[kept])
    if style.tail is not None:
        tail = style.tail(rng, centre, head.scale)
        strands += ribbons(tail, style.width * head.scale, rng.random((len(tail), 3)))
    return strands


def _roots(style: Style, head: Head, rng: np.random.Generator) -> _Roots:
    """Roots spread evenly over the scalp."""
    on_scalp = head.scalp[head.triangles].min(1) > 0.3
    triangles = head.triangles[on_scalp]
    corners = head.at[triangles].astype(np.float64)
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    count = style.strands
    face = rng.choice(len(triangles), count, p=area / area.sum())
    share = rng.dirichlet((1, 1, 1), count)[..., None]
    at = (corners[face] * share).sum(1)
    outward = (head.normal[triangles[face]] * share).sum(1)
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    template = (head.template[triangles[face]] * share).sum(1).astype(np.float64)
    guides = rng.choice(count, min(style.clumps, count), replace=False)
    clump = cKDTree(at[guides]).query(at)[1]
    clump_tone = rng.random(len(guides))[clump]
    depth, tone = rng.random(count) ** 0.8, rng.random(count)
    length = style.length(template) * (1 + rng.normal(size=count) * style.uneven) * head.scale
    lift = style.lift(template) * (0.25 + 0.75 * depth) * head.scale
    stray = rng.normal(size=(count, 3)) * style.loose + (rng.normal(size=(len(guides), 3)) * style.unruly)[clump]
    return _Roots(at, outward, template, clump, guides, np.stack([depth, tone, clump_tone], 1), length, lift, stray)


def _comb(style: Style, head: Head, roots: _Roots, centre: F64) -> F64:
    """Grows strands (N, K, 3) step by step: combed, held to the skull, kept out of it."""
    solid = _solid(head)
    skin, skin_normal = head.at[solid].astype(np.float64), head.normal[solid].astype(np.float64)
    tree = cKDTree(skin)

    def nearby(point: F64) -> tuple[F64, F64, F64]:
        """Distance of the nearest skin, its normal, and height above it."""
        near, nearest = tree.query(point)
        normal = skin_normal[nearest]
        return near, normal, ((point - skin[nearest]) * normal).sum(1)

    point = roots.at + roots.outward * 0.001
    heading = roots.outward * style.rise
    path = [point]
    steps = 2 * style.points - 1  # twice as fine as what is drawn, or strands shoot off where the skull bends
    for index in range(1, steps):
        u = index / (steps - 1)
        near, normal, height = nearby(point)
        wish = style.comb(Place(point, roots.template, u, normal, height, centre, head.scale)) + roots.stray
        hold = np.clip((roots.lift - height) / 0.015, -1.6, 1.6)[:, None] * normal * style.hug
        wish = wish + np.where((near < 0.05)[:, None], hold, 0)
        wish /= np.linalg.norm(wish, axis=1, keepdims=True) + 1e-9
        heading = heading * style.stiff + wish * (1 - style.stiff)
        heading /= np.linalg.norm(heading, axis=1, keepdims=True) + 1e-9
        point = point + heading * (roots.length / (steps - 1))[:, None]
        near, normal, height = nearby(point)
        least = np.minimum(roots.lift * min(1.0, u * 4) + 0.001, 0.9) * 0.8
        point = point + normal * np.where(near < 0.06, np.clip(least - height, 0, 0.03), 0)[:, None]
        path.append(point)
    return np.stack(path[::2], 1)


def _solid(head: Head) -> Bool:
    """Vertices that strands may not enter: head and neck without the ears and the inside of the mouth."""
    x, y, z = np.abs(head.template[:, 0]), head.template[:, 1], head.template[:, 2]
    ear = (x > 0.0725) & (z < 0.762) & (z > 0.66) & (y < 0.045) & (y > -0.055)
    mouth = (y > -0.135) & (y < -0.02) & (x < 0.04) & (z < 0.71) & (z > 0.64)
    found: Bool = (z > 0.5) & (head.ears < 0.3) & ~ear & (x < 0.2) & ~mouth
    return found


def _crosses_face(lines: F64, centre: F64, scale: float) -> Bool:
    """(N,) which strands (N, K, 3) hang into the face or before the throat."""
    x, y, z = ((lines - centre) / scale).transpose(2, 0, 1)
    wide = np.abs(x)
    face = (wide < 0.056) & (y < -0.045) & (z < 0.035)
    throat = (wide < 0.056) & (z < -0.085) & (y < 0.02)
    found: Bool = (face | throat).any(1)
    return found


def _curled(lines: F64, curl: tuple[float, float], length: F64, tones: F64) -> F64:
    """Strands wound about their own course: radius in metres and turns as rad a metre."""
    radius, rate = curl
    points = lines.shape[1]
    phase = (tones[:, 1] * 2 + tones[:, 2] * 12) * np.pi
    angle = np.arange(points) / (points - 1) * length[:, None] * rate + phase[:, None]
    along = np.gradient(lines, axis=1)
    along /= np.linalg.norm(along, axis=2, keepdims=True) + 1e-9
    first = np.cross(along, [0, 0, 1.0001])
    first /= np.linalg.norm(first, axis=2, keepdims=True) + 1e-6
    second = np.cross(along, first)
    around = np.cos(angle)[..., None] * first + np.sin(angle)[..., None] * second
    found: F64 = lines + radius * around * np.minimum(1, np.linspace(0, 1, points)[None, :, None] * 4)
    return found


def ribbons(lines: F64, width: float, tones: F64) -> Strands:
    """Lines (N, K, 3) with tones (N, 3) as ribbons that taper towards their ends."""
    count, points, _ = lines.shape
    along = np.gradient(lines, axis=1)
    along /= np.linalg.norm(along, axis=2, keepdims=True) + 1e-9
    share = np.linspace(0, 1, points)
    taper = np.where(share < 0.7, 1.0, np.sqrt(np.clip((1 - share) / 0.3, 0, 1)) * 0.85 + 0.15)

    def both(values: NDArray[np.floating]) -> F32:
        """A value for each point, for both edges."""
        wide = np.broadcast_to(values[:, :, None], (count, points, 2, *values.shape[2:]))
        return np.ascontiguousarray(wide.reshape(count * points * 2, -1), np.float32)

    tone = np.concatenate(
        [
            np.broadcast_to(share[None, :, None], (count, points, 1)),
            np.broadcast_to(tones[:, None], (count, points, 3)),
        ],
        -1,
    )
    edge = np.tile(np.array([-1.0, 1.0]), count * points)[:, None]
    widths = both(np.broadcast_to((width * taper)[None, :, None], (count, points, 1)))
    strand, segment = np.meshgrid(np.arange(count), np.arange(points - 1), indexing="ij")
    first = ((strand * points + segment) * 2).ravel()
    triangles = np.concatenate(
        [np.stack([first, first + 1, first + 2], 1), np.stack([first + 1, first + 3, first + 2], 1)]
    )
    side = np.concatenate([edge, widths], 1).astype(np.float32)
    return Strands(both(lines), both(along), both(tone), side, triangles.astype(np.int32))


# -------------------------------------------------------------------------------------------------------------- styles


def _down_to(cut: float) -> Length:
    """Long enough to fall to a height of the template."""
    return lambda root: np.clip(root[:, 2] - cut, 0.05, 1) + 0.075 * smoothstep(0.76, 0.84, root[:, 2])


def _falling(part: float, cut: float, inward: float = 0.5, volume: float = 1.0) -> Style:
    """Parted and falling on both sides; ``part`` is where in x, ``cut`` where it ends in z."""

    def comb(at: Place) -> F64:
        local = at.local()
        height = local[:, 2] / 0.1
        crown = np.clip(height, 0, 1)
        front = smoothstep(-0.04, -0.11, at.root[:, 1])
        side = np.sign(at.root[:, 0] - part + 1e-6)
        wish = np.stack(
            [
                side * (1.1 * crown + 0.02),
                0.70 * crown * front + 0.30 * front * (height > -0.2) - 0.03 * (1 - front),
                np.full(len(local), -0.85),
            ],
            1,
        )
        near = smoothstep(0.07, 0.035, at.distance) * smoothstep(-0.35, 0.25, height)
        wish -= at.normal * ((wish * at.normal).sum(1) * near)[:, None]
        low = np.clip((cut + 0.05 * at.scale - at.p[:, 2]) / 0.06, 0, 1)
        outward = np.stack([at.p[:, 0], at.p[:, 1] - at.centre[1], np.zeros(len(local))], 1)
        outward /= np.linalg.norm(outward, axis=1, keepdims=True) + 1e-9
        return np.asarray(wish - outward * (low * inward)[:, None])

    def lift(root: F64) -> F64:
        parting = np.exp(-(((root[:, 0] - part) / 0.022) ** 2)) * smoothstep(0.80, 0.82, root[:, 2])
        return np.asarray((0.012 + 0.009 * smoothstep(0.72, 0.83, root[:, 2])) * volume * (1 - 0.6 * parting))

    return Style(
        comb, _down_to(cut), lift, strands=6000, points=14, width=0.00115, stiff=0.55, loose=0.05, unruly=0.07,
        uneven=0.025, rise=0.15, frames_face=True,
    )  # fmt: skip


def _cropped(top: float, sides: float, comb_top: tuple[float, float, float], front_up: float = 0.5) -> Style:
    """Short hair: lengths on top and at the sides, and which way the top is combed."""

    def comb(at: Place) -> F64:
        crown = smoothstep(0.775, 0.815, at.root[:, 2]) * smoothstep(0.06, -0.02, at.root[:, 1])
        wish = np.stack(
            [
                comb_top[0] * crown,
                comb_top[1] * crown + 0.35 * (1 - crown),
                -0.95 * (1 - crown) + (comb_top[2] - 0.5 * at.share) * crown,
            ],
            1,
        )
        front = smoothstep(-0.09, -0.135, at.root[:, 1]) * crown
        return np.asarray(wish + at.normal * (front_up * front * (at.share < 0.45))[:, None])

    def length(root: F64) -> F64:
        crown = smoothstep(0.765, 0.82, root[:, 2]) * smoothstep(0.085, 0.0, root[:, 1])
        return np.asarray(sides + (top - sides) * crown + 0.3 * sides * (root[:, 1] > 0.02))

    def lift(root: F64) -> F64:
        return np.asarray(0.0035 + min(0.4 * top, 0.018) * smoothstep(0.77, 0.83, root[:, 2]))

    return Style(
        comb, length, lift, points=8, width=0.00125, clumps=480, gather=0.45, hug=0.7, loose=0.09, unruly=0.15,
        uneven=0.1, rise=1.0,
    )  # fmt: skip


def _gathered(knot: tuple[float, float], tail: Callable[[np.random.Generator, F64, float], F64]) -> Style:
    """Combed back to a knot (y and z from the head's middle), with more hair from there."""

    def comb(at: Place) -> F64:
        wish = at.centre + np.array([0, *knot]) * at.scale - at.p
        return np.asarray(wish / (np.linalg.norm(wish, axis=1, keepdims=True) + 1e-9))

    goal = np.array([0.0, knot[0] - 0.02, 0.765 + knot[1]])
    return Style(
        comb,
        lambda root: 0.05 + np.linalg.norm(root - goal, axis=1) * 0.98,
        lambda root: 0.004 + 0.004 * smoothstep(0.75, 0.83, root[:, 2]),
        points=12, width=0.00125, clumps=320, gather=0.3, stiff=0.45, hug=0.9, loose=0.02, unruly=0.05, rise=0.1,
        tail=tail,
    )  # fmt: skip


def _bun(rng: np.random.Generator, centre: F64, scale: float) -> F64:
    middle = centre + np.array([0, 0.075, 0.094]) * scale
    count, points = 1300, 14
    start = rng.random(count) * 2 * np.pi
    tilt = np.clip(rng.normal(size=count) * 0.5, -1.2, 1.2)
    radius = (0.034 + 0.004 * rng.random(count)) * scale
    angle = np.linspace(0, 2.6, points)[None] + start[:, None]
    axis = np.array([0, 0.35, 1.0]) / np.hypot(0.35, 1)
    first = np.array([1.0, 0, 0])
    second = np.cross(axis, first)
    height = tilt[:, None] + 0.25 * np.sin(angle * 2 + start[:, None])
    ring = np.cos(angle)[..., None] * first + np.sin(angle)[..., None] * second
    shell = np.cos(height)[..., None] * ring + np.sin(height)[..., None] * axis * 0.8
    return np.asarray(middle + radius[:, None, None] * shell)


def _ponytail(rng: np.random.Generator, centre: F64, scale: float) -> F64:
    """A tail that rises from the back of the head and falls over one shoulder."""
    count, points = 1500, 14
    side = 1.0 if rng.random() < 0.5 else -1.0
    course = np.array(
        [
            [0, 0.095, 0.06],
            [0.02, 0.125, 0.07],
            [0.055, 0.135, 0.02],
            [0.085, 0.10, -0.06],
            [0.10, 0.04, -0.13],
            [0.10, -0.01, -0.20],
        ]
    )
    course = course * scale * [side, 1, 1]
    where = np.linspace(0, len(course) - 1, points)
    line = np.stack([np.interp(where, np.arange(len(course)), column) for column in course.T], 1)
    thickness = np.interp(where / (len(course) - 1), [0, 0.15, 0.6, 1], [0.006, 0.016, 0.018, 0.004]) * scale
    offset = rng.normal(size=(count, 1, 3)) * 0.55
    wave = 0.25 * np.sin(where[None] * 1.5 + rng.random((count, 1)) * 6)[..., None]
    return np.asarray(centre + line[None] + (offset + wave * [1, 1, 0]) * thickness[None, :, None])


def _braids(rng: np.random.Generator, centre: F64, scale: float) -> F64:
    """Two plaits that hang from behind the ears before the shoulders."""
    count, points = 700, 26
    plaits = []
    for side in (1.0, -1.0):
        share = np.linspace(0, 1, points)
        line = np.stack([side * (0.078 + 0.018 * share), 0.035 - 0.065 * share, -0.055 - 0.17 * share], 1) * scale
        third = rng.integers(3, size=count) * 2 * np.pi / 3
        angle = share[None] * 22 + third[:, None]
        weave = np.stack([np.cos(angle), np.sin(2 * angle) * 0.6, 0 * angle], -1) * 0.010 * scale
        spread = rng.normal(size=(count, 1, 3)) * 0.0042 * scale
        plaits.append(
            centre + line[None] + (weave + spread) * np.interp(share, [0, 0.9, 1], [1, 0.85, 0.3])[None, :, None]
        )
    return np.concatenate(plaits)


def _curly(length: float, radius: float = 0.0052, rate: float = 560.0, clumps: int = 700) -> Style:
    """Curls that stand away from the head on all sides."""

    def comb(at: Place) -> F64:
        wish = at.normal.copy()
        wish[:, 2] -= 0.45 * at.share
        wish[:, 1] += 0.15
        return np.asarray(wish)

    def reach(root: F64) -> F64:
        shape = 0.8 + 0.35 * smoothstep(0.70, 0.82, root[:, 2]) - 0.35 * smoothstep(-0.06, -0.13, root[:, 1])
        return np.asarray(length * shape)

    return Style(
        comb, reach, lambda root: np.full(len(root), 0.02), strands=4600, points=20, width=0.0015, clumps=clumps,
        gather=0.8, stiff=0.6, hug=0.1, loose=0.1, unruly=0.3, uneven=0.07, rise=1.0, curl=(radius, rate),
    )  # fmt: skip


def _straight_back() -> Style:
    """Combed back flat."""

    def comb(at: Place) -> F64:
        local = at.local()
        down = smoothstep(0.02, -0.05, local[:, 2])
        return np.stack([0.15 * np.sign(at.root[:, 0]) * down, np.full(len(local), 0.9), 0.35 - 1.1 * down], 1)

    return Style(
        comb, lambda root: 0.05 + 0.05 * smoothstep(0.76, 0.82, root[:, 2]),
        lambda root: 0.004 + 0.006 * smoothstep(0.77, 0.83, root[:, 2]),
        points=10, width=0.0012, clumps=300, gather=0.4, hug=0.9, loose=0.03, unruly=0.06, rise=0.7,
    )  # fmt: skip


def _fringe(style: Style) -> Style:
    """The same with a fringe over the forehead."""
    inner, length = style.comb, style.length

    def is_front(root: F64) -> F64:
        return smoothstep(-0.085, -0.11, root[:, 1]) * smoothstep(0.055, 0.045, np.abs(root[:, 0]))

    def comb(at: Place) -> F64:
        front = is_front(at.root)[:, None]
        down = np.stack(
            [0.1 * np.sign(at.root[:, 0]), np.full(len(front), -0.75 + 0.9 * at.share), np.full(len(front), -0.9)], 1
        )
        return np.asarray(inner(at) * (1 - front) + down * front)

    def shorter(root: F64) -> F64:
        front = is_front(root)
        return np.asarray(length(root) * (1 - front) + front * (0.028 + 0.9 * np.clip(root[:, 2] - 0.795, 0, 0.05)))

    return replace(style, comb=comb, length=shorter, frames_face=False)


STYLES: dict[str, Callable[[], Style | None]] = {
    "bald": lambda: None,
    "buzz": lambda: replace(_cropped(0.007, 0.006, (0.1, 0.2, 0.6)), strands=6500, points=4, gather=0.0, width=0.001),
    "short": lambda: _cropped(0.050, 0.014, (0.75, 0.55, 0.25)),
    "crop": lambda: _cropped(0.030, 0.011, (0.1, -0.55, 0.2), 0.0),
    "side": lambda: _cropped(0.062, 0.016, (-0.95, 0.25, 0.15)),
    "quiff": lambda: _cropped(0.062, 0.012, (0.15, 0.45, 0.95), 1.2),
    "pixie": lambda: replace(_cropped(0.062, 0.034, (0.8, -0.25, 0.0), 0.15), uneven=0.2),
    "receding": lambda: replace(_cropped(0.032, 0.014, (0.35, 0.45, 0.2)), receding=1.0),
    "slick": _straight_back,
    "bob": lambda: _falling(0.020, 0.662),
    "lob": lambda: _falling(-0.022, 0.600, 0.3),
    "long": lambda: replace(_falling(0.0, 0.50, 0.15, 1.1), points=18, strands=6500),
    "waves": lambda: replace(_falling(0.018, 0.59, 0.2, 1.25), curl=(0.0065, 75.0), points=18, unruly=0.1, clumps=260),
    "fringe": lambda: _fringe(_falling(0.0, 0.640, 0.5)),
    "bun": lambda: _gathered((0.085, 0.075), _bun),
    "ponytail": lambda: _gathered((0.095, 0.06), _ponytail),
    "braids": lambda: replace(_falling(0.0, 0.715, 0.7, 0.6), tail=_braids),
    "curls": lambda: _curly(0.040),
    "afro": lambda: _curly(0.062, 0.0045, 700.0, 900),
}
"""How each style is made; ``bald`` has no strands."""
