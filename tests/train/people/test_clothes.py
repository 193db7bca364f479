from __future__ import annotations

import numpy as np
import pytest

from echo_rtc.train.people.clothes import NECKLINES, covered, dress, jacket_distance, shirt_distance
from echo_rtc.train.people.figure import Anatomy, Figure
from echo_rtc.train.people.person import Outfit

CHEST, CHIN, SHOULDER = (0.0, -0.10, 0.45), (0.0, -0.14, 0.64), (0.17, 0.0, 0.54)


@pytest.mark.parametrize("neck", sorted(NECKLINES))
def test_shirts_cover_the_chest_and_not_the_chin(neck: str) -> None:
    chest, chin, shoulder = shirt_distance(np.array([CHEST, CHIN, SHOULDER], np.float32), neck)
    assert chest > 0
    assert shoulder > 0
    assert chin < 0


def test_a_v_neck_is_deeper_than_a_round_one() -> None:
    throat = np.array([[0.0, -0.07, 0.53]], np.float32)
    assert shirt_distance(throat, "vee") < shirt_distance(throat, "round")


def test_jackets_are_open_in_front() -> None:
    inside = jacket_distance(np.array([(0.0, -0.10, 0.50), SHOULDER], np.float32))[0]
    assert inside[0] < 0 < inside[1]


def test_garments_lie_outside_of_the_body(anatomy: Anatomy, omar: Figure) -> None:
    outfit = Outfit((0.5, 0.5, 0.5), "round", (0.2, 0.2, 0.2))
    shirt, jacket = dress(anatomy.asset, anatomy.surfaces["cloth"], omar.body.vertices, outfit)
    rest = anatomy.surfaces["cloth"].apply(omar.body.vertices)
    assert np.linalg.norm(shirt.at - rest, axis=1).max() < 0.04
    assert np.linalg.norm(jacket.at - rest, axis=1).mean() > np.linalg.norm(shirt.at - rest, axis=1).mean()
    assert not shirt.shown.all()
    assert np.allclose(jacket.weights.sum(1), 1, atol=1e-3)
    hidden = covered(anatomy.asset, anatomy.templates["body"], outfit)
    assert 0.1 < hidden.mean() < 0.8
    assert not hidden[anatomy.masks["lips"] > 0.5].any()
