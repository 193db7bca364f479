"""Crowds, random mouths, drawing in batches, and files that are no pose bank."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from echo_rtc.errors import InputError
from echo_rtc.train import scenes
from echo_rtc.train.person import Motion, People, draw
from echo_rtc.train.scenes import PoseBank, crowd, draw_all, random_mouths, to_network


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.3, 40, 80), (1.0, 200, 200)])
def test_a_crowd_has_the_default_avatar_as_often_as_told(share: float, low: int, high: int) -> None:
    people = crowd(200, share, torch.Generator().manual_seed(0))
    assert len(people) == 200
    assert low <= int((people.skin == People.default().skin).all(1).sum()) <= high


def test_no_person_in_a_crowd_resembles_the_default_avatar() -> None:
    people = crowd(50, 0.5, torch.Generator().manual_seed(1))
    default, other = People.default(), People.sample(50, torch.Generator().manual_seed(1))
    known = (people.skin == default.skin).all(1)
    assert known.any()
    assert not known.all()
    for field in fields(People):
        value = getattr(people, field.name)
        expected = getattr(default, field.name).expand_as(value)
        assert torch.equal(value[known], expected[known]), field.name
        assert torch.equal(value[~known], getattr(other, field.name)[~known]), field.name


def test_people_are_drawn_alike_in_batches_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    people = People.sample(5, torch.Generator().manual_seed(2))
    whole = draw(people, Motion.rest(5), 32)
    monkeypatch.setattr(scenes, "CPU_DRAW_BATCH", 2)
    drawn = draw_all(people, Motion.rest(5), 32)
    assert drawn.dtype == torch.uint8
    assert drawn.shape == (5, 3, 32, 32)
    assert (drawn.float() - 255 * whole).abs().max() <= 0.51


def test_random_mouths_cover_their_range_a_third_nearly_shut() -> None:
    mouths = random_mouths(4000, torch.Generator().manual_seed(0))
    low, high = mouths.amin(0), mouths.amax(0)
    assert torch.all(low >= torch.tensor([0.0, -1.0, 0.0, 0.0, 0.0]))
    assert torch.all(high <= 1.0)
    assert torch.all(high > 0.95)
    assert low[1] < -0.95
    assert 0.3 < (mouths[:, 0] < 0.1).float().mean() < 0.5
    # Pressed lips are not open.
    assert torch.all(mouths[:, 0] <= 1 - mouths[:, 2] + 1e-6)


def test_images_for_the_network_run_from_minus_one_to_one() -> None:
    images = torch.tensor([0, 255, 51], dtype=torch.uint8)
    assert to_network(images).tolist() == pytest.approx([-1.0, 1.0, -0.6])
    assert to_network(images, torch.float16).dtype == torch.float16


def bank_file(path: Path, **without: bool) -> Path:
    arrays = {
        "images": np.zeros((1, 2, 4, 4, 3), np.uint8),
        "hands": np.zeros((1, 2, 2, 21, 2), np.float32),
        "scores": np.ones((1, 2, 2, 21), np.float32),
        "head": np.zeros((1, 2, 3), np.float32),
        "blink": np.zeros((1, 2), np.float32),
    }
    kept: dict[str, Any] = {name: value for name, value in arrays.items() if name not in without}
    with path.open("wb") as file:
        np.savez_compressed(file, **kept)
    return path


def test_a_pose_bank_is_read(tmp_path: Path) -> None:
    bank = PoseBank.load(bank_file(tmp_path / "bank"), torch.device("cpu"))
    assert bank.images.shape == (1, 2, 4, 4, 3)
    assert bank.images.dtype == torch.uint8
    assert bank.hands.shape == (1, 2, 2, 21, 2)


def test_what_is_no_pose_bank_is_told_in_one_sentence(tmp_path: Path) -> None:
    whole = bank_file(tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "damaged.npz").write_bytes(whole[:60] + bytes(40) + whole[100:])
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").touch()
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "pickled.npz", images=np.array([{}], dtype=object))
    bank_file(tmp_path / "headless.npz", head=True)
    for name in ("cut.npz", "damaged.npz", "text.npz", "empty.npz", "one.npy", "pickled.npz", "headless.npz", "none"):
        with pytest.raises(InputError, match=r"is not a pose bank .* make one with the command pose-bank") as caught:
            PoseBank.load(tmp_path / name, torch.device("cpu"))
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
