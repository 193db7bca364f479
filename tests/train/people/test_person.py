from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from echo_rtc.train.people.asset import Asset
from echo_rtc.train.people.hair import STYLES
from echo_rtc.train.people.person import NAMED, build_body, linear, sample_spec, shape_weights


def test_the_same_number_is_the_same_person() -> None:
    assert sample_spec(12) == sample_spec(12)
    assert sample_spec(12) != sample_spec(13)


def test_people_differ() -> None:
    people = [sample_spec(number) for number in range(300)]
    assert len({person.hair for person in people}) >= 15
    assert {person.hair for person in people} <= set(STYLES)
    assert len({person.beard for person in people}) == 5
    assert 0.1 < np.mean([bool(person.glasses) for person in people]) < 0.3
    assert 0.4 < np.mean([person.phenotype["gender"] > 0.5 for person in people]) < 0.65
    assert np.ptp([person.skin[0] for person in people]) > 0.4
    assert min(person.phenotype["age"] for person in people) >= 0.55


def test_shapes_of_a_person_sum_up(asset: Asset) -> None:
    weights = shape_weights(asset, NAMED["mia"])
    races = [weights[asset.shape[name]] for name in asset.shape_names if name.count("*") == 2 and "caucasian" in name]
    assert weights.min() >= 0
    assert sum(races) == pytest.approx(0.85, abs=1e-5)
    with pytest.raises(KeyError):
        shape_weights(asset, replace(NAMED["mia"], local={"third-eye-incr": 1.0}))


def test_larger_head_scales_face_and_bones(asset: Asset) -> None:
    small, large = (build_body(asset, replace(NAMED["mia"], head=head)) for head in (1.0, 1.3))
    assert np.linalg.norm(large.eyes[0] - large.eyes[1]) == pytest.approx(
        1.3 * np.linalg.norm(small.eyes[0] - small.eyes[1]), rel=0.01
    )
    wrist = asset.bone["wrist.L"]
    assert np.allclose(small.heads[wrist], large.heads[wrist])


def test_colours_are_linear() -> None:
    assert linear("ffffff") == (1.0, 1.0, 1.0)
    assert linear("808080")[0] == pytest.approx(0.2159, abs=1e-3)
