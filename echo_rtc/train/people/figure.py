"""One person ready to be drawn: everything that does not change from frame to frame, and the mesh of each frame.

Shapes and bone weights are subdivided once; a frame then is a sum of facial actions, one linear blend over the bones
and the normals, for many frames at once on the accelerator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from echo_rtc.train.people.asset import F32, F64, I32, MASKS, Asset
from echo_rtc.train.people.clothes import NECKLINES, covered, dress
from echo_rtc.train.people.face import action_shapes
from echo_rtc.train.people.hair import STYLES, Head, Strands, above_hairline, grow, smoothstep
from echo_rtc.train.people.person import Body, Spec, build_body, linear
from echo_rtc.train.people.renderer import Mesh, Uniforms
from echo_rtc.train.people.skeleton import Pose, Skeleton
from echo_rtc.train.people.surface import Surface, normals, subdivide, vertex_normals

_LEVELS = {"body": 1, "cloth": 1, "upper_teeth": 2, "lower_teeth": 2, "tongue": 1, "lashes": 1}
_TOOTH_SHIFT = {"upper_teeth": (0.0, -0.0005, -0.0062), "lower_teeth": (0.0, -0.0005, 0.0022)}
_LASH_SHIFT = (0.0, -0.0012, 0.0)
_BEARDS = {
    "": (0, 0, 0, 0),
    "stubble": (0, 0.9, 0, 0),
    "moustache": (0, 0.5, 1, 0),
    "full": (1, 0, 0, 0),
    "goatee": (0, 0.6, 0, 1),
}
"""How much of a full beard, stubble, moustache and goatee each has."""


class Anatomy:
    """The asset's fine surfaces and what is known of their vertices, made once and shared by all people."""

    def __init__(self, asset: Asset) -> None:
        self.asset = asset
        count = len(asset.template)
        self.surfaces: dict[str, Surface] = {
            name: subdivide(asset.quads[name], count, level) for name, level in _LEVELS.items()
        }
        self.templates = {name: surface.apply(asset.template) for name, surface in self.surfaces.items()}
        corner = np.zeros((count, len(MASKS)), np.float32)
        times = np.zeros(count, np.float32)
        np.add.at(corner, asset.quads["body"].ravel(), asset.masks.reshape(-1, len(MASKS)).astype(np.float32))
        np.add.at(times, asset.quads["body"].ravel(), 1)
        masks = self.surfaces["body"].apply(corner / np.maximum(times, 1)[:, None])
        self.masks = {name: masks[:, index] for index, name in enumerate(MASKS)}
        self.lid_line = self._lid_line()

    def _lid_line(self) -> F32:
        """(N,) how much of a line along the lashes each vertex of the skin has."""
        from scipy.spatial import cKDTree

        lashes = self.templates["lashes"]
        roots = lashes[lashes[:, 1] > -0.1352]
        upper, lower = roots[roots[:, 2] > 0.7279], roots[roots[:, 2] <= 0.7279]
        skin = self.templates["body"]
        to_upper, to_lower = cKDTree(upper).query(skin)[0], cKDTree(lower).query(skin)[0]
        line = np.maximum(smoothstep(0.0030, 0.0008, to_upper), 0.45 * smoothstep(0.0022, 0.0006, to_lower))
        return line.astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Piece:
    """A skinned piece of N vertices: places, bone weights and facial actions (A, N, 3) at rest, the renderer's
    attributes (N, 11), triangles of the surface (all of them count for normals) and which of them are drawn."""

    at: F32
    weights: F32
    actions: F32
    attributes: F32
    triangles: I32
    drawn: I32


class Figure:
    """A person's geometry: ``meshes``, ``attributes`` and ``strands`` for the renderer, frames of the skinned mesh."""

    def __init__(self, anatomy: Anatomy, spec: Spec, device: torch.device) -> None:
        self.spec = spec
        self.device = device
        self._anatomy = anatomy
        asset = anatomy.asset
        self.body: Body = build_body(asset, spec)
        self.skeleton = Skeleton(asset, self.body.heads, self.body.tails, device)
        self.lips = np.flatnonzero(anatomy.masks["lips"] > 0.5)
        self._shapes = action_shapes(asset, self.body.actions)
        self._pieces: list[_Piece] = []
        self._meshes: list[Mesh] = []
        self._add_skin()
        self._add_mouth()
        self._add_clothes()
        self.meshes: Sequence[Mesh] = [*self._meshes, *self._eyes(), *_glasses(spec, self.body)]
        self.attributes = np.concatenate([piece.attributes for piece in self._pieces])
        self.strands = self._hair(self._pieces[0].at)
        self.hair_uniforms = {"c0": spec.hair_dark, "c1": spec.hair_light, "shine": spec.hair_shine}
        starts = np.cumsum([0] + [len(piece.at) for piece in self._pieces])
        triangles = [piece.triangles + start for piece, start in zip(self._pieces, starts, strict=False)]
        self._at = torch.from_numpy(np.concatenate([piece.at for piece in self._pieces])).to(device)
        self._weights = torch.from_numpy(np.concatenate([piece.weights for piece in self._pieces])).to(device)
        self._actions = torch.from_numpy(np.concatenate([piece.actions for piece in self._pieces], 1)).to(device)
        self._triangles = torch.from_numpy(np.concatenate(triangles)).long().to(device)

    # ---------------------------------------------------------------------------------------------------- what is fixed

    def _add(self, piece: _Piece, material: str, uniforms: Uniforms, shadow: bool = True) -> None:
        start = sum(len(other.at) for other in self._pieces)
        self._pieces.append(piece)
        self._meshes.append(Mesh(material, piece.drawn + start, uniforms, shadow))

    def _flesh(self, name: str, tone: F32, shift: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> _Piece:
        """A part of the asset that facial actions move, ``shift`` for a head of scale 1."""
        surface = self._anatomy.surfaces[name]
        moved = surface.apply(np.moveaxis(self._shapes, 0, 1))
        attributes = np.concatenate([self._anatomy.templates[name], tone, np.zeros((len(surface), 4))], 1)
        return _Piece(
            surface.apply(self.body.vertices) + np.array(shift, np.float32) * self.spec.head,
            surface.apply(self._anatomy.asset.weights),
            np.ascontiguousarray(np.moveaxis(moved, 1, 0)),
            attributes.astype(np.float32),
            surface.triangles,
            surface.triangles,
        )

    def _add_skin(self) -> None:
        spec, template, masks = self.spec, self._anatomy.templates["body"], self._anatomy.masks
        style = STYLES[spec.hair]()
        hairline = smoothstep(-0.006, 0.006, above_hairline(template, style.receding if style else 1.0))
        self._scalp = (hairline * (template[:, 2] > 0.6) * (1 - np.clip(2 * masks["ears"], 0, 1))).astype(np.float32)
        inside = masks["inside-mouth"]
        depth = np.clip((template[:, 1] + 0.150) / 0.035, 0, 1)
        shade = np.where(inside > 0.5, (1 - 0.92 * depth) * 0.55, 1.0)
        cover = self._scalp if style else 0 * self._scalp
        tone = np.stack([cover, shade, inside, self._anatomy.lid_line * spec.liner], 1).astype(np.float32)
        piece = self._flesh("body", tone)
        piece.attributes[:, 7:] = np.stack([masks["lips"], masks["eyelids"], masks["fingernails"], inside], 1)
        shown = ~covered(self._anatomy.asset, template, spec.outfit)
        piece = replace(piece, drawn=piece.triangles[shown[piece.triangles].any(1)])
        full, stubble, moustache, goatee = _BEARDS[spec.beard]
        uniforms = {
            "c0": spec.skin,
            "c1": spec.lips,
            "c2": tuple(0.55 * value for value in spec.hair_dark),
            "c3": spec.brow,
            "q0": (full, spec.blush, spec.freckles, spec.makeup),
            "q1": (spec.brow_width, stubble, moustache, goatee),
        }
        self._add(piece, "skin", uniforms)

    def _add_mouth(self) -> None:
        """Teeth and tongue, darker towards the throat, and the lashes."""
        templates = self._anatomy.templates
        ivory = tuple(1.02 * value for value in linear("fff3e2"))
        for name, dim in (("upper_teeth", 1.0), ("lower_teeth", 0.78)):
            where = templates[name]
            height = (where[:, 2] - where[:, 2].min()) / np.ptp(where[:, 2])
            gum = np.clip(((height if name == "upper_teeth" else 1 - height) - 0.62) * 4, 0, 1)
            back = np.clip((where[:, 1] + 0.152) / 0.03, 0, 1)
            tone = np.stack([0 * gum, (1 - 0.85 * back) * 0.92 * dim, gum, 0 * gum], 1)
            self._add(self._flesh(name, tone.astype(np.float32), _TOOTH_SHIFT[name]), "teeth", {"c0": ivory}, False)
        back = np.clip((templates["tongue"][:, 1] + 0.14) / 0.05, 0, 1)
        tone = np.stack([0 * back, (1 - 0.8 * back) * 0.62, 0 * back, 0 * back], 1).astype(np.float32)
        self._add(self._flesh("tongue", tone), "tongue", {"c0": (0.62, 0.20, 0.19)}, False)
        tone = np.ones((len(templates["lashes"]), 4), np.float32)
        self._add(self._flesh("lashes", tone, _LASH_SHIFT), "lashes", {"c0": (0.020, 0.014, 0.012)}, False)

    def _add_clothes(self) -> None:
        outfit, surface = self.spec.outfit, self._anatomy.surfaces["cloth"]
        template = self._anatomy.templates["cloth"]
        height, slope, radius, throat, vee, dip = NECKLINES[outfit.neck]
        for garment in dress(self._anatomy.asset, surface, self.body.vertices, outfit):
            relief = 0.16 if garment.material == "shirt" and outfit.jacket else 0.34
            uniforms = {
                "c0": garment.colour,
                "q0": (garment.stripes, dip, vee, relief),
                "q1": (height, slope, radius, throat),
            }
            still = np.zeros((len(self._shapes), len(surface), 3), np.float32)
            attributes = np.concatenate([template, garment.tone, np.zeros((len(surface), 4), np.float32)], 1)
            drawn = surface.triangles[garment.shown[surface.triangles].any(1)]
            piece = _Piece(garment.at, garment.weights, still, attributes, surface.triangles, drawn)
            self._add(piece, garment.material, uniforms)

    def _eyes(self) -> list[Mesh]:
        directions, triangles = _sphere(28)
        spec = self.spec
        meshes = []
        for index, (radius, name) in enumerate(zip(self.body.eye_radius, ("eye_left", "eye_right"), strict=True)):
            vertices = np.concatenate([directions * radius, directions], 1).astype(np.float32)
            dark = tuple(0.35 * value for value in spec.iris)
            uniforms = {"c1": spec.iris, "c2": dark, "q0": (spec.iris_radius, 0.42, 3.0 + index + spec.seed % 97, 0)}
            meshes.append(Mesh("eye", triangles, uniforms, True, name, vertices, directions))
        return meshes

    def _hair(self, skin: F32) -> Strands | None:
        style = STYLES[self.spec.hair]()
        surface = self._anatomy.surfaces["body"]
        facing = normals(skin, surface.triangles)
        template, ears = self._anatomy.templates["body"], self._anatomy.masks["ears"]
        top = skin[:, 2].max()
        self._hair_top = float(top)
        self._hair_centre = np.array([0.0, float(skin[template[:, 2] > 0.65, 1].mean()), top - 0.10 * self.spec.head])
        if style is None:
            return None
        head = Head(skin, facing, template, surface.triangles, self._scalp, ears, self.spec.head)
        strands = grow(style, head, np.random.default_rng([self.spec.seed, 2]))
        self._hair_top = max(self._hair_top, float(np.percentile(strands.at[:, 2], 99.9)))
        return strands

    @property
    def eye_level(self) -> float:
        """Height of the eyes at rest, metres."""
        return float(self.body.eyes[:, 2].mean())

    @property
    def top(self) -> float:
        """Height of the top of hair or head at rest, metres."""
        return self._hair_top

    # ---------------------------------------------------------------------------------------------------------- frames

    def frames(self, pose: Pose, actions: Tensor, batch: int) -> Iterator[F32]:
        """Skinned vertices (V, 6), places and normals, of each frame; ``actions`` (N, A) weights of facial actions."""
        matrices = self.skeleton.bone_matrices(pose)
        for start in range(0, len(actions), batch):
            part = slice(start, start + batch)
            at = self.positions(matrices[part], actions[part])
            both = torch.cat([at, vertex_normals(at, self._triangles)], -1).cpu().numpy()
            yield from both

    def positions(self, matrices: Tensor, actions: Tensor) -> Tensor:
        """Places (B, V, 3) of the skinned vertices for bone matrices (B, J, 3, 4) and actions (B, A)."""
        at = self._at + torch.einsum("ba,avc->bvc", actions, self._actions)
        blend = torch.einsum("vj,bjrc->bvrc", self._weights, matrices)
        moved: Tensor = (blend[..., :3] @ at[..., None])[..., 0] + blend[..., 3]
        return moved

    def models(self, pose: Pose, gaze: Tensor) -> Iterator[tuple[dict[str, F64], F64]]:
        """Model matrices of the rigid pieces of each frame and the middle of the hair; ``gaze`` (N, 2) turns the eyes
        to the person's left and up, rad, against the head."""
        head = self._anatomy.asset.bone["head"]
        turns, places = pose.turn[:, head].double().cpu().numpy(), pose.place[:, head].double().cpu().numpy()
        rest = self.body.heads[head]
        for turn, place, (sideways, up) in zip(turns, places, gaze.double().cpu().numpy(), strict=True):
            whole = np.eye(4)
            whole[:3, :3] = turn
            whole[:3, 3] = place - turn @ rest
            models = {"hair": whole, "glasses": whole}
            look = _about_z(sideways) @ _about_x(-up)
            for name, centre in zip(("eye_left", "eye_right"), self.body.eyes, strict=True):
                eye = np.eye(4)
                eye[:3, :3] = turn @ look
                eye[:3, 3] = turn @ centre + whole[:3, 3]
                models[name] = eye
            yield models, turn @ self._hair_centre + whole[:3, 3]


def _about_z(angle: float) -> F64:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def _about_x(angle: float) -> F64:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _sphere(rings: int) -> tuple[F32, I32]:
    """Unit directions of a sphere whose pole looks along -y, and its triangles."""
    theta = np.linspace(0, np.pi, rings)[:, None]
    phi = np.linspace(0, 2 * np.pi, 2 * rings)[None]
    points = np.stack(
        [np.sin(theta) * np.cos(phi), -np.cos(theta) * np.ones_like(phi), np.sin(theta) * np.sin(phi)], -1
    )
    return points.reshape(-1, 3).astype(np.float32), _grid(rings, 2 * rings)


def _grid(rows: int, columns: int) -> I32:
    row, column = np.meshgrid(np.arange(rows - 1), np.arange(columns - 1), indexing="ij")
    a = (row * columns + column).ravel()
    first = np.stack([a, a + 1, a + columns], 1)
    second = np.stack([a + 1, a + columns + 1, a + columns], 1)
    return np.concatenate([first, second]).astype(np.int32)


_RIMS = {"round": (1.0, 1.0, 2.0, 0.0017), "square": (1.12, 0.88, 5.0, 0.0022), "thin": (1.08, 0.90, 3.0, 0.0009)}
"""Width, height, squareness and thickness of glasses' rims."""


def _glasses(spec: Spec, body: Body) -> list[Mesh]:
    """Two rims, a bridge and the temples, as tubes that move with the head."""
    if not spec.glasses:
        return []
    wide, high, square, thick = _RIMS[spec.glasses]
    size = spec.head
    tubes = []
    angle = np.linspace(0, 2 * np.pi, 49)
    front = float((body.eyes[:, 1] - body.eye_radius).min()) - 0.016 * size
    inner, outer = [], []
    for side, centre in zip((1.0, -1.0), body.eyes, strict=True):
        x = np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** (2 / square) * 0.0265 * size * wide
        z = np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** (2 / square) * 0.0245 * size * high
        curve = np.stack(
            [centre[0] + 0.002 * side + x, front + 0.9 * np.maximum(side * x, 0) ** 2 / 0.03, centre[2] - 0.003 + z], 1
        )
        tubes.append((curve, thick * size))
        inner.append(curve[np.argmin(side * curve[:, 0])])
        outer.append(curve[np.argmax(side * curve[:, 0])])
    bow = np.linspace(0, 1, 9)[:, None]
    bridge = inner[0] * (1 - bow) + inner[1] * bow + np.array([0, -0.002, 0.005]) * np.sin(np.pi * bow)
    tubes.append((bridge, thick * size))
    for side, corner in zip((1.0, -1.0), outer, strict=True):
        end = np.array([side * 0.079 * size, front + 0.115 * size, corner[2] + 0.004])
        knee = np.array([side * max(abs(corner[0]) + 0.003, 0.074 * size), front + 0.02 * size, corner[2] + 0.004])
        tubes.append((np.stack([corner, knee, end]), thick * size))
    colour = spec.brow if spec.glasses != "thin" else (0.35, 0.33, 0.30)
    dark = tuple(0.5 * value for value in colour)
    return [_tube(curve, radius, dark) for curve, radius in tubes]


def _tube(curve: F64, radius: float, colour: Sequence[float]) -> Mesh:
    along = np.gradient(curve, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    across = np.cross(along, [0.0, 1.0, 0.05])
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    other = np.cross(along, across)
    turn = np.linspace(0, 2 * np.pi, 9)[None, :, None]
    facing = np.cos(turn) * across[:, None] + np.sin(turn) * other[:, None]
    at = curve[:, None] + radius * facing
    vertices = np.concatenate([at, facing], -1).reshape(-1, 6).astype(np.float32)
    triangles = _grid(len(curve), 9)
    uniforms = {"c0": colour, "q0": (0.35, 0, 0, 0)}
    return Mesh("frame", triangles, uniforms, True, "glasses", vertices, np.zeros((len(vertices), 3), np.float32))
