"""Clothes cut from the layer that hugs the body.

A garment is that layer smoothed and pushed outwards. Necklines, lapels and cuffs are signed distances in template
coordinates, positive inside the cloth: written once, they fit everybody, and a fragment at a negative distance is
dropped, so that edges are smooth at any resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echo_rtc.train.people.asset import F32, F64, Asset
from echo_rtc.train.people.hair import smoothstep
from echo_rtc.train.people.person import Colour, Outfit
from echo_rtc.train.people.surface import Surface, neighbour_mean, normals

_JACKET_BOTTOM = 0.345
_CUFF = 0.012


NECKLINES = {
    "round": (0.566, 0.45, 0.064, 0.572, 0.0, 0.016),
    "vee": (0.566, 0.45, 0.066, 0.572, 1.05, 0.0),
    "boat": (0.566, 0.30, 0.084, 0.572, 0.0, 0.006),
    "roll": (0.600, 0.25, 0.2, 0.604, 0.0, 0.0),
}
"""Of each neck: height of its edge and slope towards the back, radius about the neck, height of the throat, depth of a
V and of a round dip in front. The shader evaluates the same distance for each fragment."""


@dataclass(frozen=True, eq=False)
class Garment:
    """``material`` names the shader's branch. ``at`` (N, 3) and ``weights`` (N, J) at rest; ``tone`` (N, 4): distance
    inside the cloth at the vertices, inside the cuff, along the jacket's front, and from the wrist. ``shown`` (N,) is
    what nothing hides."""

    material: str
    at: F32
    weights: F32
    tone: F32
    colour: Colour
    stripes: float
    shown: NDArray[np.bool_]


def wrist_distance(asset: Asset, template: F32) -> F64:
    """Distance up the forearm from the wrist, metres in the template; large where no forearm is."""
    found = np.full(len(template), 9.0)
    for side in "LR":
        elbow, wrist = (asset.heads[asset.bone[f"{name}.{side}"]] for name in ("lowerarm01", "wrist"))
        axis = (wrist - elbow) / np.linalg.norm(wrist - elbow)
        same = (np.sign(template[:, 0]) == np.sign(wrist[0])) & (np.abs(template[:, 0]) > 0.25)
        found = np.where(same, (wrist - template) @ axis, found)
    return found


def shirt_distance(template: F32, neck: str) -> F64:
    """Signed distance inside a shirt with this neck, without its cuffs."""
    x, y, z = template.astype(np.float64).T
    wide = np.abs(x)
    around = np.hypot(x, y + 0.012)
    height, slope, radius, throat, vee, dip = NECKLINES[neck]
    lower = vee * np.maximum(0.052 - wide, 0) + dip * np.maximum(1 - (wide / 0.06) ** 2, 0)
    plane = height + slope * np.maximum(y + 0.02, 0) - lower * smoothstep(0.0, -0.04, y)
    opening = np.maximum(plane - z, around - radius)
    chin = np.maximum(np.maximum(throat - z, y + 0.035), wide - 0.066)
    return np.asarray(np.minimum(opening, chin))


def jacket_distance(template: F32) -> tuple[F64, F64, F64]:
    """Signed distance inside a jacket, from the edge of its front, and height along that edge from 0 at the button."""
    x, y, z = template.astype(np.float64).T
    wide = np.abs(x)
    height = np.clip((z - _JACKET_BOTTOM) / (0.565 - _JACKET_BOTTOM), 0, 1.4)
    inside = wide - (0.008 + 0.070 * height**1.1)
    front = np.maximum(np.maximum(inside, (y + 0.045) * 1.5), _JACKET_BOTTOM - z)
    around = np.hypot(x, y + 0.012)
    collar = np.maximum(0.592 - z + 0.25 * (y - 0.03), around - 0.070)
    chin = np.maximum(np.maximum(0.575 - z, y + 0.035), wide - 0.066)
    return np.minimum(np.minimum(front, collar), chin), inside, height


def covered(asset: Asset, template: F32, outfit: Outfit) -> NDArray[np.bool_]:
    """Which points of the skin lie under the clothes for certain."""
    field = shirt_distance(template, outfit.neck)
    found: NDArray[np.bool_] = (field > 0.022) & (wrist_distance(asset, template) > 0.03) & (template[:, 2] < 0.60)
    return found


def dress(asset: Asset, cloth: Surface, vertices: F32, outfit: Outfit) -> list[Garment]:
    """The garments of an outfit on a body with the asset's ``vertices`` (V, 3) at rest."""
    template = cloth.apply(asset.template)
    x, y, z = template.astype(np.float64).T
    wide = np.abs(x)
    wrist = wrist_distance(asset, template)
    mean = neighbour_mean(cloth.triangles, len(cloth))
    rest, weights = cloth.apply(vertices), cloth.apply(asset.weights)

    def relaxed(values: F32, steps: int, share: F64) -> F32:
        for _ in range(steps):
            values = values + (share[:, None] * (mean @ values - values)).astype(np.float32)
        return values

    field = shirt_distance(template, outfit.neck)
    hug = smoothstep(0.008, 0.05, field)
    share = 0.5 * hug
    outward = normals(rest, cloth.triangles)

    def outside(values: F32, least: float) -> F32:
        """Smoothing draws round parts inwards, where the skin would show through: they go back out."""
        height = ((values - rest) * outward).sum(1)
        back = outward * np.maximum(least - height, 0)[:, None].astype(np.float32)
        return np.asarray(values + back)

    at = outside(relaxed(rest, 10, share), 0.002)
    away = 0.0022 + 0.004 * hug
    at = at + normals(at, cloth.triangles) * away[:, None].astype(np.float32)
    cuff = wrist + 0.001 if outfit.jacket else wrist - _CUFF
    inside = np.minimum(field, cuff)
    tone = np.stack([inside, cuff, 0 * inside, wrist], 1).astype(np.float32)
    shown = np.ones(len(at), bool)
    if outfit.jacket is not None:  # else a bent elbow pokes through the sleeve
        shown = ~((jacket_distance(template)[0] > 0.02) & (wrist > 0.05))
    garments = [Garment("shirt", at, relaxed(weights, 10, share), tone, outfit.shirt, outfit.stripes, shown)]
    if outfit.jacket is None:
        return garments

    field, _, height = jacket_distance(template)
    field = np.minimum(field, wrist - 0.016)
    arm = smoothstep(0.15, 0.24, wide)
    neck = smoothstep(0.555, 0.575, z)
    share = 0.5 * (1 - 0.45 * arm) * (1 - neck)
    at = outside(relaxed(rest, 24, share), 0.004)
    edge = np.array([0.112, 0.128]) / np.hypot(0.112, 0.128)
    outer = (wide - 0.010) * edge[1] - (z - _JACKET_BOTTOM) * edge[0]
    lower = np.maximum(outer, z - (0.476 - 0.06 * (wide - 0.055)))
    upper = np.maximum(wide - 0.097 - 0.10 * (z - 0.50), (0.476 + 0.42 * (wide - 0.055) - z) * 0.92)
    lapel = smoothstep(0.002, -0.003, np.minimum(lower, upper)) * smoothstep(-0.02, -0.05, y)
    lapel *= (z > _JACKET_BOTTOM) & (z < 0.60)
    shoulder = smoothstep(0.10, 0.17, wide) * smoothstep(0.46, 0.54, z) * (1 - smoothstep(0.19, 0.26, wide))
    away = 0.011 + 0.006 * lapel * (1 - neck) - 0.006 * neck + 0.010 * shoulder + 0.004 * arm
    at = at + normals(at, cloth.triangles) * away[:, None].astype(np.float32)
    tone = np.stack([field, wrist - 0.016, height, wrist], 1).astype(np.float32)
    garments.append(
        Garment("jacket", at, relaxed(weights, 24, share), tone, outfit.jacket, 0.0, np.ones(len(at), bool))
    )
    return garments
