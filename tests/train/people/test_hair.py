from __future__ import annotations

import numpy as np
import pytest

from echo_rtc.train.people.figure import Anatomy, Figure
from echo_rtc.train.people.hair import STYLES, Head, _crosses_face, grow, ribbons
from echo_rtc.train.people.surface import normals


@pytest.fixture(scope="module")
def head(anatomy: Anatomy, omar: Figure) -> Head:
    skin = omar._pieces[0].at
    surface, template = anatomy.surfaces["body"], anatomy.templates["body"]
    facing = normals(skin, surface.triangles)
    return Head(skin, facing, template, surface.triangles, omar._scalp, anatomy.masks["ears"], omar.spec.head)


@pytest.mark.parametrize("name", ["bob", "short", "bun", "curls"])
def test_strands_start_on_the_scalp_and_stay_near(head: Head, name: str) -> None:
    style = STYLES[name]()
    assert style is not None
    strands = grow(style, head, np.random.default_rng(1))
    again = grow(style, head, np.random.default_rng(1))
    assert np.isfinite(strands.at).all()
    assert np.array_equal(strands.at, again.at)
    assert strands.triangles.max() < len(strands.at)
    top = head.at[:, 2].max()
    assert strands.at[:, 2].max() < top + 0.12
    assert np.abs(strands.at[:, 0]).max() < 0.22


def test_long_hair_leaves_the_face_free(head: Head) -> None:
    style = STYLES["lob"]()
    assert style is not None
    strands = grow(style, head, np.random.default_rng(2))
    eyes = (np.abs(strands.at[:, 0]) < 0.05) & (strands.at[:, 1] < -0.19)
    level = head.at[:, 2].max() - 0.12 * head.scale
    assert not (eyes & (strands.at[:, 2] < level)).any()


def test_what_hangs_before_the_face_is_found() -> None:
    beside = np.array([[[0.09, -0.05, 0.05], [0.09, -0.06, -0.1]]])
    before = np.array([[[0.02, -0.08, 0.08], [0.02, -0.10, 0.0]]])
    assert _crosses_face(np.concatenate([beside, before]), np.zeros(3), 1.0).tolist() == [False, True]


def test_ribbons_have_two_edges_a_point() -> None:
    lines = np.zeros((3, 5, 3))
    lines[..., 2] = np.linspace(0, 1, 5)
    strands = ribbons(lines, 0.01, np.zeros((3, 3)))
    assert strands.at.shape == (30, 3)
    assert strands.triangles.shape == (24, 3)
    assert set(strands.side[:, 0]) == {-1.0, 1.0}
    assert np.allclose(strands.along, [0, 0, 1])
