"""Smooth surfaces from the coarse mesh: Catmull-Clark subdivision as a sparse matrix, and vertex normals.

Because subdivision is linear, a matrix takes positions, shapes and bone weights alike to the fine mesh once for each
person; what remains for each frame is one sum of shapes and one linear blend over the bones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from echo_rtc.train.people.asset import F32, I32

Matrix = Any
"""A scipy sparse matrix in rows."""


@dataclass(frozen=True, eq=False)
class Surface:
    """``matrix`` (N, V) takes the asset's vertices to the N fine ones; ``triangles`` (T, 3) between those."""

    matrix: Matrix
    triangles: I32

    def __len__(self) -> int:
        return int(self.matrix.shape[0])

    def apply(self, values: NDArray[Any]) -> F32:
        """Values at the asset's vertices (V, ...) -> values at the fine ones (N, ...)."""
        flat = np.asarray(values, np.float32).reshape(values.shape[0], -1)
        fine = np.asarray(self.matrix @ flat, np.float32)
        return fine.reshape(len(self), *values.shape[1:])


def subdivide(quads: I32, vertices: int, levels: int) -> Surface:
    """The surface of ``quads`` (F, 4) after some levels of Catmull-Clark; 0 levels keep the vertices used."""
    matrix: Matrix = None
    current, count = quads.astype(np.int64), vertices
    for _ in range(levels):
        step, current = _catmull_clark(current, count)
        matrix = step if matrix is None else step @ matrix
        count = step.shape[0]
    if matrix is None:
        used = np.unique(current)
        matrix = sparse.identity(vertices, format="csr", dtype=np.float32)[used]
        number = np.full(vertices, -1)
        number[used] = np.arange(len(used))
        current = number[current]
    triangles = np.concatenate([current[:, [0, 1, 2]], current[:, [0, 2, 3]]])
    return Surface(matrix.tocsr().astype(np.float32), triangles.astype(np.int32))


def _catmull_clark(quads: NDArray[np.int64], count: int) -> tuple[Matrix, NDArray[np.int64]]:
    """One level: the matrix from old to new vertices (old ones used, edges' and faces' points), and the new quads."""
    faces = len(quads)
    edges = np.sort(np.stack([quads, np.roll(quads, -1, 1)], -1).reshape(-1, 2), 1)
    unique, edge_of = np.unique(edges, axis=0, return_inverse=True)
    edge_of = edge_of.reshape(faces, 4)
    edge_count = len(unique)
    corner_face = np.repeat(np.arange(faces), 4)

    def ones(rows: NDArray[np.int64], columns: NDArray[np.int64], shape: tuple[int, int]) -> Matrix:
        return sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape)

    def scaled(values: NDArray[np.float64], matrix: Matrix) -> Matrix:
        return sparse.diags(values) @ matrix

    face_points = 0.25 * ones(corner_face, quads.ravel(), (faces, count))
    middles = 0.5 * ones(np.repeat(np.arange(edge_count), 2), unique.ravel(), (edge_count, count))
    inside = np.bincount(edge_of.ravel(), minlength=edge_count) == 2
    beside = ones(edge_of.ravel(), corner_face, (edge_count, faces))
    edge_points = scaled(np.where(inside, 0.5, 1.0), middles) + scaled(
        np.where(inside, 0.25, 0.0), beside @ face_points
    )

    around_faces = ones(quads.ravel(), corner_face, (count, faces))
    around_edges = ones(unique.ravel(), np.repeat(np.arange(edge_count), 2), (count, edge_count))
    valence = np.maximum(np.asarray(around_faces.sum(1)).ravel(), 1)
    edge_valence = np.maximum(np.asarray(around_edges.sum(1)).ravel(), 1)
    border_edges = np.asarray(around_edges[:, ~inside].sum(1)).ravel()
    border = border_edges > 0
    identity = sparse.identity(count, format="csr")
    within = (
        scaled(1 / valence**2, around_faces @ face_points)
        + scaled(2 / (valence * edge_valence), around_edges @ middles)
        + scaled((valence - 3) / valence, identity)
    )
    along = 0.5 * identity + scaled(0.5 / np.maximum(border_edges, 1), around_edges[:, ~inside] @ middles[~inside])
    moved = scaled((~border).astype(float), within) + scaled(border.astype(float), along)

    used = np.unique(quads)
    number = np.full(count, -1)
    number[used] = np.arange(len(used))
    first_edge, first_face = len(used), len(used) + edge_count
    fine = [
        np.stack(
            [
                number[quads[:, k]],
                first_edge + edge_of[:, k],
                first_face + np.arange(faces),
                first_edge + edge_of[:, (k - 1) % 4],
            ],
            1,
        )
        for k in range(4)
    ]
    matrix = sparse.vstack([moved.tocsr()[used], edge_points, face_points]).tocsr()
    return matrix, np.stack(fine, 1).reshape(-1, 4)


def neighbour_mean(triangles: I32, count: int) -> Matrix:
    """(N, N) matrix that replaces each vertex by the mean of its neighbours."""
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    edges = np.concatenate([edges, edges[:, ::-1]])
    links = sparse.csr_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), (count, count))
    links.data[:] = 1
    degree = np.maximum(np.asarray(links.sum(1)).ravel(), 1)
    return sparse.diags(1 / degree) @ links


def normals(positions: F32, triangles: I32) -> F32:
    """Unit normals (N, 3) at vertices (N, 3)."""
    fine = vertex_normals(torch.from_numpy(positions)[None], torch.from_numpy(triangles).long())
    return fine[0].numpy()


def vertex_normals(positions: Tensor, triangles: Tensor) -> Tensor:
    """Unit normals (B, N, 3) of B states (B, N, 3) of one mesh with triangles (T, 3) int64, weighted by area."""
    a, b, c = (positions[:, triangles[:, corner]] for corner in range(3))
    facing = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(positions)
    for corner in range(3):
        total.index_add_(1, triangles[:, corner], facing)
    unit: Tensor = total / total.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return unit
