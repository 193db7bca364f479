from __future__ import annotations

import numpy as np

from echo_rtc.train.people.light import Camera, backdrop, sample_background, sample_look


def test_camera_projects_its_middle_and_height() -> None:
    camera = Camera(np.array([0.0, -2.1, 0.7]), np.array([0.0, 0.0, 0.7]), 0.5)
    points = np.array([[0.0, 0, 0.7], [0.25, 0, 0.7], [0, 0, 0.95], [0, -0.3, 0.9]])
    found = camera.project(points)
    assert np.allclose(found[:3], [[0.5, 0.5], [1.0, 0.5], [0.5, 0.0]], atol=1e-6)
    assert found[3, 1] < 0.1  # what is nearer is larger


def test_backgrounds_are_many_and_repeatable() -> None:
    pictures = [sample_background(np.random.default_rng(seed), 48) for seed in range(24)]
    assert all(picture.shape == (48, 48, 3) and picture.dtype == np.uint8 for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == 24
    assert np.array_equal(pictures[5], sample_background(np.random.default_rng(5), 48))
    assert np.ptp([picture.mean() for picture in pictures]) > 60
    assert backdrop(32).shape == (32, 32, 3)


def test_looks_vary_but_stay_lit_from_the_front() -> None:
    looks = [sample_look(np.random.default_rng(seed)) for seed in range(30)]
    assert {float(np.sign(look.to_key[0])) for look in looks} == {-1.0, 1.0}
    assert all(look.to_key[1] < 0 and look.key.min() > 0.8 for look in looks)
