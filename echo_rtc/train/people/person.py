"""What one person is made of: a specification that can be sampled, and its mesh at rest.

Everybody is an adult, stylised to be pleasant on a small picture: a large head, large eyes, a small nose.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from echo_rtc.train.people.asset import F32, F64, Asset

Colour = tuple[float, float, float]
"""Linear red, green, blue."""


def linear(code: str) -> Colour:
    """The linear colour of an sRGB code as ``dea68f``."""
    values = np.array([int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)])
    found = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(found[0]), float(found[1]), float(found[2])


@dataclass(frozen=True)
class Outfit:
    """What a person wears: a shirt (round or V neck, roll neck) and perhaps a jacket or an open cardigan over it."""

    shirt: Colour
    neck: str = "round"
    jacket: Colour | None = None
    stripes: float = 0.0


NECKS = ("round", "vee", "roll", "boat")


@dataclass(frozen=True)
class Spec:
    """One person. ``phenotype``: gender (0 male, 1 female), age (2/3 young, 1 old), muscle, weight in 0..1 and shares
    african, asian, caucasian. ``local``: shape names without sign, ``*`` for both sides, to strengths of either sign.
    Other numbers are factors of what is usual unless said."""

    phenotype: dict[str, float]
    local: dict[str, float]
    hair: str
    skin: Colour
    lips: Colour
    iris: Colour
    hair_dark: Colour
    hair_light: Colour
    brow: Colour
    outfit: Outfit
    head: float = 1.25
    iris_radius: float = 0.58
    hair_shine: float = 0.8
    brow_width: float = 1.0
    blush: float = 0.8
    makeup: float = 0.0
    beard: str = ""
    liner: float = 0.8
    freckles: float = 0.0
    glasses: str = ""
    smile: float = 0.45
    seed: int = 0


_VARIATIONS = {
    "gender": ((0.0, "male"), (1.0, "female")),
    "age": ((1 / 3, "child"), (2 / 3, "young"), (1.0, "old")),
    "muscle": ((0.0, "minmuscle"), (0.5, "averagemuscle"), (1.0, "maxmuscle")),
    "weight": ((0.0, "minweight"), (0.5, "averageweight"), (1.0, "maxweight")),
}


def shape_weights(asset: Asset, spec: Spec) -> F32:
    """(S,) weights of the asset's shapes at rest; facial actions are zero. Raises KeyError for an unknown shape."""
    share: dict[str, float] = {}
    for name, anchors in _VARIATIONS.items():
        value = spec.phenotype.get(name, 0.5)
        places = [place for place, _ in anchors]
        for index, (_, variation) in enumerate(anchors):
            share[variation] = float(np.interp(value, places, np.eye(len(places))[index]))
    races = ("african", "asian", "caucasian")
    total = sum(spec.phenotype.get(race, 0.0) for race in races)
    share |= {race: spec.phenotype.get(race, 0.0) / total if total else 1 / 3 for race in races}

    weights = np.zeros(len(asset.shape_names), np.float32)
    for index, name in enumerate(asset.shape_names):
        keys = name.split("*")
        if all(key in share for key in keys):
            weights[index] = float(np.prod([share[key] for key in keys]))
    for name, value in spec.local.items():
        for one in ("l" + name[1:], "r" + name[1:]) if name.startswith("*") else (name,):
            weights[asset.shape[f"{one}{'+' if value > 0 else '-'}"]] = abs(value)
    return weights


@dataclass(frozen=True, eq=False)
class Body:
    """A person's coarse mesh at rest: ``vertices`` (V, 3), bones' ``heads`` and ``tails`` (J, 3), facial ``actions``
    (A, V, 3) and the ``eyes`` as centre (2, 3) and radius (2,), the person's left one first."""

    vertices: F32
    heads: F32
    tails: F32
    actions: F32
    eyes: F32
    eye_radius: F32


def build_body(asset: Asset, spec: Spec) -> Body:
    """The mesh of a person, the head enlarged about the neck."""
    weights = shape_weights(asset, spec)
    used = np.flatnonzero(weights)

    def shaped(base: F32, offsets: np.ndarray[tuple[int, ...], np.dtype[np.float16]]) -> F32:
        total: F32 = base + np.tensordot(weights[used], offsets[used].astype(np.float32), 1)
        return total

    vertices = shaped(asset.template, asset.shapes)
    heads = shaped(asset.heads, asset.head_shapes)
    tails = shaped(asset.tails, asset.tail_shapes)
    grown = asset.below("head").astype(np.float32)
    for name, share in (("neck03", 0.66), ("neck02", 0.33), ("neck01", 0.1)):
        grown[asset.bone[name]] = share
    origin = heads[asset.bone["neck01"]].copy()
    more = spec.head - 1
    by_vertex = asset.weights @ grown
    vertices += more * by_vertex[:, None] * (vertices - origin)
    heads += more * grown[:, None] * (heads - origin)
    tails += more * grown[:, None] * (tails - origin)
    first = asset.shape[asset.actions[0]]
    actions = asset.shapes[first : first + len(asset.actions)].astype(np.float32) * (1 + more * by_vertex)[:, None]
    low, high = [], []
    for part in ("eye_left", "eye_right"):
        points = vertices[np.unique(asset.quads[part])]
        low.append(points.min(0))
        high.append(points.max(0))
    low_, high_ = np.array(low), np.array(high)
    return Body(
        vertices,
        heads,
        tails,
        actions,
        ((low_ + high_) / 2).astype(np.float32),
        (high_ - low_)[:, 0].astype(np.float32) / 2,
    )


# ------------------------------------------------------------------------------------------------------ random people

_SKIN = [
    "f2cdb6",
    "f0c8b0",
    "e8b89c",
    "dea68f",
    "cf9a80",
    "c08a6c",
    "b9856c",
    "a06a50",
    "8a5a44",
    "7d5140",
    "6b4433",
    "5c3a2c",
    "4a2e24",
]
_IRIS = ["4f7a68", "4a7a66", "5a3a22", "6b4a2a", "3a2415", "4a6f95", "6a8ab0", "7a6a3a", "5a5f66", "2c1a10"]
_HAIR = (
    ("3a2015", "6d4128"),
    ("17110f", "33251e"),
    ("100b0a", "2e1f18"),
    ("1d1410", "46301f"),
    ("7a5530", "b98d55"),
    ("4a2416", "7d4228"),
    ("8a8680", "c4c0ba"),
    ("a67c45", "d9b67c"),
    ("2b2622", "55463a"),
    ("b9b4ad", "e2dfda"),
)
_CLOTH = [
    "f1eee8",
    "34456f",
    "3a6669",
    "7a3b49",
    "d9a441",
    "2e3f6b",
    "9a3a34",
    "4a7a4a",
    "222428",
    "8a8f98",
    "c9b9a0",
    "5d4a78",
    "e0a8a0",
    "6fa0c0",
    "b0522e",
    "557a8a",
]

WOMEN_HAIR = ("bob", "lob", "bun", "curls", "afro", "long", "ponytail", "pixie", "waves", "fringe", "braids")
MEN_HAIR = ("short", "crop", "side", "quiff", "curls", "afro", "buzz", "bald", "receding", "waves", "slick")

_LOCAL = {
    "*-eye-scale-incr": (0.7, 1.6),
    "*-eye-height2-incr": (-0.1, 0.4),
    "*-eye-corner1-up": (-0.3, 0.3),
    "*-eye-trans-out": (-0.25, 0.25),
    "nose-scale-horiz-incr": (-0.6, 0.3),
    "nose-volume-incr": (-0.6, 0.2),
    "nose-scale-vert-incr": (-0.5, 0.2),
    "nose-point-up": (-0.2, 0.4),
    "nose-hump-incr": (-0.3, 0.3),
    "chin-width-incr": (-0.9, 0.4),
    "chin-height-incr": (-0.3, 0.3),
    "head-scale-horiz-incr": (-0.35, 0.2),
    "*-cheek-volume-incr": (-0.3, 0.4),
    "*-cheek-bones-incr": (-0.2, 0.4),
    "mouth-scale-horiz-incr": (0.1, 0.8),
    "mouth-lowerlip-volume-incr": (-0.3, 0.5),
    "mouth-upperlip-volume-incr": (-0.3, 0.4),
    "mouth-scale-vert-incr": (-0.2, 0.3),
    "mouth-angles-up": (0.0, 0.5),
    "head-fat-incr": (-0.3, 0.25),
    "eyebrows-trans-up": (-0.3, 0.3),
    "eyebrows-angle-up": (-0.2, 0.3),
    "*-hand-scale-incr": (-0.7, -0.2),
    "neck-scale-horiz-incr": (-0.2, 0.3),
    "forehead-scale-vert-incr": (-0.2, 0.2),
    "*-ear-scale-incr": (-0.3, 0.2),
    "*-ear-wing-incr": (-0.5, 0.2),
}


def sample_spec(seed: int) -> Spec:
    """The random person of this number; the same number gives the same person."""
    rng = np.random.default_rng([seed, 1])
    uniform = rng.uniform
    woman = rng.random() < 0.53
    races = rng.dirichlet((0.8, 0.8, 0.8))
    age = float(rng.choice([uniform(0.56, 0.67), uniform(0.67, 0.76), uniform(0.76, 0.88)], p=[0.45, 0.33, 0.22]))
    grey = age > 0.78 and rng.random() < 0.7
    dark, light = _HAIR[int(rng.choice([6, 9]))] if grey else _HAIR[int(rng.choice([0, 0, 1, 2, 3, 4, 5, 7, 8]))]
    skin = int(np.clip(round(rng.normal(2.5 + 8.0 * races[0] + 1.0 * races[1], 1.6)), 0, len(_SKIN) - 1))
    if skin > 7 and not grey:
        dark, light = _HAIR[int(rng.choice([1, 2, 3]))]
    hair = str(rng.choice(WOMEN_HAIR if woman or rng.random() < 0.06 else MEN_HAIR))
    beard = (
        ""
        if woman
        else str(rng.choice(["", "stubble", "moustache", "full", "goatee"], p=[0.54, 0.32, 0.03, 0.06, 0.05]))
    )
    tint = 1 + rng.normal(size=3) * (0.015 if grey else 0.08)
    hair_dark = _tinted(linear(dark), tint)
    return Spec(
        phenotype={
            "gender": uniform(0.78, 1.0) if woman else uniform(0.0, 0.22),
            "age": age,
            "muscle": uniform(0.4, 0.65),
            "weight": uniform(0.32, 0.62),
            "african": races[0],
            "asian": races[1],
            "caucasian": races[2],
        },
        local={name: uniform(*limits) for name, limits in _LOCAL.items()},
        hair=hair,
        skin=_tinted(linear(_SKIN[skin]), 1 + rng.normal(size=3) * 0.035),
        lips=_tinted((0.82, 0.47, 0.48) if woman else (0.84, 0.56, 0.53), 1 + rng.normal(size=3) * 0.07),
        iris=_tinted(
            linear(str(rng.choice(_IRIS if skin < 6 else ["5a3a22", "6b4a2a", "3a2415", "2c1a10"]))),
            1 + rng.normal(size=3) * 0.1,
        ),
        hair_dark=hair_dark,
        hair_light=_tinted(linear(light), tint),
        brow=_tinted(hair_dark, np.full(3, uniform(0.4, 0.6) if grey else uniform(0.9, 1.7))),
        outfit=_outfit(rng),
        head=uniform(1.14, 1.30),
        iris_radius=uniform(0.53, 0.61),
        hair_shine=uniform(0.35, 0.9),
        brow_width=uniform(0.85, 1.25),
        blush=uniform(0.4, 1.1),
        makeup=uniform(0.0, 0.6) if woman else 0.0,
        beard=beard,
        liner=uniform(0.7, 1.0) if woman else uniform(0.45, 0.7),
        freckles=max(0.0, float(rng.normal(-0.6, 0.8))) if skin < 4 else 0.0,
        glasses=str(rng.choice(["round", "square", "thin"])) if rng.random() < 0.2 else "",
        smile=uniform(0.3, 0.6),
        seed=seed,
    )


def _tinted(colour: Colour, factors: F64) -> Colour:
    found = np.clip(np.array(colour) * factors, 0.003, 0.95)
    return float(found[0]), float(found[1]), float(found[2])


def _outfit(rng: np.random.Generator) -> Outfit:
    def colour() -> Colour:
        return _tinted(linear(str(rng.choice(_CLOTH))), (1 + rng.normal(size=3) * 0.05) * (1 + rng.normal() * 0.1))

    jacket = colour() if rng.random() < 0.45 else None
    neck = (
        str(rng.choice(NECKS, p=[0.4, 0.25, 0.15, 0.2]))
        if jacket is None
        else str(rng.choice(["round", "vee", "roll"]))
    )
    return Outfit(colour(), neck, jacket, float(rng.random() < 0.12))


# ------------------------------------------------------------------------------------------------------- named people


def _gentle(**changes: float) -> dict[str, float]:
    """Local shapes that all named people share, with changes."""
    return {
        "*-eye-scale-incr": 1.4,
        "*-eye-height2-incr": 0.3,
        "nose-scale-horiz-incr": -0.4,
        "nose-volume-incr": -0.4,
        "nose-scale-vert-incr": -0.3,
        "mouth-scale-horiz-incr": 0.6,
        "mouth-angles-up": 0.35,
        "mouth-lowerlip-volume-incr": 0.25,
        "*-hand-scale-incr": -0.6,
        "*-ear-wing-incr": -0.3,
    } | {name.replace("_", "-").replace("both-", "*-"): value for name, value in changes.items()}


NAMED: dict[str, Spec] = {
    "mia": Spec(
        phenotype={"gender": 1.0, "age": 0.6, "muscle": 0.45, "weight": 0.42, "asian": 0.15, "caucasian": 0.85},
        local=_gentle(
            chin_width_incr=-0.9, chin_height_incr=-0.25, head_scale_horiz_incr=-0.35, nose_scale_vert_incr=-0.4
        ),
        hair="bob",
        skin=linear("dea68f"),
        lips=(0.80, 0.42, 0.45),
        iris=linear("4a7a66"),
        hair_dark=linear("3a2015"),
        hair_light=linear("6d4128"),
        brow=linear("5a3a26"),
        outfit=Outfit(linear("f1eee8"), "vee", linear("33436a")),
        head=1.28,
        iris_radius=0.59,
        makeup=0.4,
        smile=0.5,
        seed=7,
    ),
    "omar": Spec(
        phenotype={
            "gender": 0.06,
            "age": 0.66,
            "muscle": 0.55,
            "weight": 0.5,
            "african": 0.2,
            "asian": 0.25,
            "caucasian": 0.55,
        },
        local=_gentle(
            chin_width_incr=0.2,
            chin_bones_incr=0.25,
            eyebrows_trans_up=0.1,
            both_eye_scale_incr=1.35,
            eyebrows_angle_up=0.2,
            both_eye_height2_incr=0.4,
        ),
        hair="short",
        skin=linear("b9856c"),
        lips=(0.82, 0.56, 0.52),
        iris=linear("5a3a22"),
        hair_dark=linear("17110f"),
        hair_light=linear("33251e"),
        brow=linear("2a1f1a"),
        outfit=Outfit(linear("3a6669"), "round"),
        head=1.22,
        brow_width=1.15,
        beard="stubble",
        liner=0.6,
        blush=0.6,
        smile=0.68,
        seed=2,
    ),
    "nia": Spec(
        phenotype={"gender": 0.97, "age": 0.69, "muscle": 0.48, "weight": 0.55, "african": 0.9, "caucasian": 0.1},
        local=_gentle(chin_width_incr=-0.3, nose_scale_horiz_incr=-0.3, both_eye_scale_incr=1.3),
        hair="curls",
        skin=linear("7d5140"),
        lips=(0.82, 0.46, 0.47),
        iris=linear("3a2415"),
        hair_dark=linear("1c1715"),
        hair_light=linear("4a423d"),
        brow=linear("241812"),
        outfit=Outfit(linear("f4efe6"), "round", linear("7a3b49")),
        head=1.24,
        hair_shine=0.4,
        brow_width=1.05,
        makeup=0.3,
        smile=0.68,
        seed=3,
    ),
}
"""The people who ship with the embedded model."""


def spec_of(person: str | int) -> Spec:
    """A named person, or the random one of a number."""
    return sample_spec(person) if isinstance(person, int) else NAMED[person]


def recoloured(spec: Spec, seed: int) -> Spec:
    """The same face and hair in other colours and clothes: cheap variety."""
    other = sample_spec(seed)
    names = (
        "skin",
        "lips",
        "iris",
        "hair_dark",
        "hair_light",
        "brow",
        "outfit",
        "makeup",
        "blush",
        "freckles",
        "glasses",
    )
    return replace(spec, **{name: getattr(other, name) for name in names})
