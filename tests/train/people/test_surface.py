from __future__ import annotations

import numpy as np

from echo_rtc.train.people.surface import neighbour_mean, normals, subdivide

CUBE = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)
SIDES = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]], np.int32)


def test_cube_becomes_round() -> None:
    surface = subdivide(SIDES, 8, 2)
    fine = surface.apply(CUBE)
    radius = np.linalg.norm(fine, axis=1)
    assert fine.shape == (98, 3)
    assert np.ptp(radius) < 0.15 * radius.mean()
    assert np.allclose(np.asarray(surface.matrix.sum(1)), 1, atol=1e-6)


def test_no_levels_keep_used_vertices() -> None:
    surface = subdivide(SIDES[:1], 8, 0)
    assert np.array_equal(surface.apply(CUBE), CUBE[[0, 1, 2, 3]])
    assert len(surface.triangles) == 2


def test_flat_grid_stays_flat_within_its_border() -> None:
    x, y = np.meshgrid(np.arange(4.0), np.arange(4.0))
    grid = np.stack([x.ravel(), y.ravel(), 0 * x.ravel()], 1).astype(np.float32)
    quads = np.array([[4 * r + c, 4 * r + c + 1, 4 * r + c + 5, 4 * r + c + 4] for r in range(3) for c in range(3)])
    fine = subdivide(quads.astype(np.int32), 16, 1).apply(grid)
    assert np.abs(fine[:, 2]).max() == 0
    assert fine.min() >= 0
    assert fine[:, :2].max() <= 3


def test_normals_point_outwards() -> None:
    surface = subdivide(SIDES, 8, 1)
    fine = surface.apply(CUBE)
    facing = normals(fine, surface.triangles)
    outward = fine / np.linalg.norm(fine, axis=1, keepdims=True)
    agreement = (facing * outward).sum(1)
    assert np.abs(agreement).min() > 0.9
    assert len(set(np.sign(agreement))) == 1


def test_mean_of_neighbours_smooths() -> None:
    surface = subdivide(SIDES, 8, 1)
    mean = neighbour_mean(surface.triangles, len(surface))
    assert np.allclose(np.asarray(mean.sum(1)), 1)
    spike = np.zeros(len(surface))
    spike[0] = 1
    assert (mean @ spike).max() < 1
