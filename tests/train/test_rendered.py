"""What the training on rendered takes is made of: packed takes, weights, streams, flat parameters, losses, reading."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from echo_rtc.errors import InputError, SettingsError
from echo_rtc.model.life import COLUMNS
from echo_rtc.train import budget as budget_module
from echo_rtc.train.budget import Budget, load_checkpoint, save_checkpoint
from echo_rtc.train.evaluate import reading, runs_of
from echo_rtc.train.flat import FlatParameters
from echo_rtc.train.footage import Footage, box_weights, pack, read, save
from echo_rtc.train.loop import Schedule
from echo_rtc.train.pixels import Adversary, Discriminator, picture_loss, weighted
from echo_rtc.train.ranks import Ranks
from echo_rtc.train.talking_face import Streams

ALONE = Ranks(0, 1, torch.device("cpu"))


def take(frames: int = 26, side: int = 8) -> dict[str, Any]:
    rng = np.random.default_rng(frames)
    return {
        "frames": rng.integers(0, 255, (frames, side, side, 3), dtype=np.uint8),
        "reference": rng.integers(0, 255, (side, side, 3), dtype=np.uint8),
        "waveform": rng.uniform(-1, 1, 70_000).astype(np.float32),
        "hands": np.full((frames, 2, 21, 3), 0.5, np.float32),
        "mouth": np.zeros((frames, 5), np.float32),
        "lids": np.zeros(frames, np.float32),
        "life": np.zeros((frames, len(COLUMNS)), np.float32),
        "boxes": np.full((frames, 5, 4), np.nan, np.float32),
    }


@pytest.fixture
def footage(tmp_path: Path) -> Footage:
    for number, frames in enumerate((26, 30)):
        save(tmp_path / f"{number}.npz", pack(take(frames)))
    (tmp_path / "2.npz").write_bytes(b"cut off")
    footage = Footage.load(sorted(tmp_path.glob("*.npz")), torch.device("cpu"))
    footage.encode(lambda pictures: pictures[:, :, ::4, ::4])
    return footage


def test_takes_come_back_one_after_the_other(footage: Footage) -> None:
    assert footage.first.tolist() == [0, 26]
    assert footage.length.tolist() == [26, 30]
    assert footage.frames.shape == (56, 3, 8, 8)
    assert footage.latents.shape == (56, 3, 2, 2)
    window = footage.windows(torch.tensor([1]), torch.tensor([12]), 40_000)
    assert window[0, 0] == pytest.approx(footage.sound[1, 8_000].item() / 32768)


def test_a_damaged_take_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match="is damaged"):
        read(tmp_path / "a.npz")
    with pytest.raises(InputError, match="no take could be read"):
        Footage.load([tmp_path / "a.npz"], torch.device("cpu"))


def test_boxes_weigh_their_cells() -> None:
    boxes = torch.full((1, 5, 4), float("nan"))
    boxes[0, 0] = torch.tensor([0.5, 0.5, 0.74, 0.74])
    weights = box_weights(boxes, (4, 4))[0, 0]
    assert weights[2, 2] == 8
    assert weights.sum() == 15 + 8


def test_streams_go_on_from_what_was_made(footage: Footage) -> None:
    streams = Streams(footage, 6, torch.Generator().manual_seed(1))
    for step in range(1, 6):
        before = streams.frame.clone()
        made = torch.full((6, 3, 2, 2), float(step))
        streams.advance(made)
        went_on = streams.frame == before + 12
        assert (streams.own[went_on] == step).all()
        assert (streams.frame + 12 <= footage.length[streams.take]).all()
        assert (streams.frame[~went_on] < 12).all()


def trained(steps: int, flat: FlatParameters, net: nn.Linear) -> None:
    for step in range(steps):
        (net(torch.full((1, 2), 1.0 + step)) - 3).square().sum().backward()
        flat.step(0.01)


def test_flat_parameters_train_and_resume_exactly() -> None:
    torch.manual_seed(0)
    net = nn.Linear(2, 2)
    flat = FlatParameters([net])
    trained(3, flat, net)
    state = {key: value.clone() if isinstance(value, Tensor) else value for key, value in flat.state().items()}
    trained(2, flat, net)
    wanted = flat.value.detach().clone()
    other = nn.Linear(2, 2)
    again = FlatParameters([other])
    again.restore(state)
    trained(2, again, other)
    assert other.weight.data_ptr() != net.weight.data_ptr()
    assert torch.allclose(again.value, wanted, atol=2e-2)
    with flat.averaged():
        assert torch.equal(flat.value.data, flat.average)
    assert torch.equal(flat.value.detach(), wanted)


def test_a_gradient_that_is_not_finite_is_left_out() -> None:
    net = nn.Linear(1, 1)
    flat = FlatParameters([net])
    (net(torch.ones(1, 1)) * float("nan")).sum().backward()
    flat.step(0.1)
    assert flat.value.isfinite().all()
    assert not flat.gradient.any()


def test_a_budget_ends_and_goes_on_where_it_was(tmp_path: Path) -> None:
    saved = []
    budget = Budget("x", ALONE, Schedule(1e-9, 1e-3), lambda: saved.append(1), 60.0)
    assert list(budget) == []
    assert saved == [1]
    budget.spent_s, budget.step = 7.5, 42
    torch.manual_seed(5)
    save_checkpoint(tmp_path, "x", budget, {"a": 1})
    wanted = torch.rand(3)
    fresh = Budget("x", ALONE, Schedule(1.0, 1e-3), lambda: None, 60.0)
    assert load_checkpoint(tmp_path, "x", fresh)["a"] == 1
    assert (fresh.spent_s, fresh.step) == (7.5, 42)
    assert torch.equal(torch.rand(3), wanted)
    with pytest.raises(InputError, match="is no checkpoint"):
        load_checkpoint(tmp_path, "y", fresh)


def test_a_piece_of_a_budget_ends_before_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget_module, "LOOK_EVERY", 1)
    seconds = iter(range(0, 1000, 6))
    monkeypatch.setattr(budget_module, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    saved: list[float] = []
    budget = Budget("x", ALONE, Schedule(1.0, 1e-3, piece_minutes=0.4), lambda: saved.append(budget.spent_s), 600.0)
    assert len(list(budget)) == 3
    assert (saved, budget.over) == ([24.0], False)
    assert len(list(budget)) == 3
    assert len(list(budget)) == 1
    assert budget.over
    with pytest.raises(SettingsError, match="--piece-minutes is 0"):
        Schedule(1.0, 1e-3, piece_minutes=0)


class Second(Ranks):
    """The second of two ranks, whose clock is behind; the first said 30."""

    def share_(self, value: torch.Tensor) -> None:
        value.fill_(30.0)

    def wait(self) -> None:
        """The first rank is a stand-in."""


def test_all_ranks_take_the_first_ones_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget_module, "time", SimpleNamespace(monotonic=lambda: 1.0))
    second = Second(1, 2, torch.device("cpu"))
    assert second.agree(7.0) == 30.0
    minute = second.agree(0.7) / 60
    assert list(Budget("x", second, Schedule(minute, 1e-3), lambda: None, 60.0)) == []


def test_losses_are_nothing_for_equal_pictures_and_weigh_boxes() -> None:
    picture, weights = torch.rand(1, 3, 16, 16), torch.ones(1, 1, 16, 16)
    assert picture_loss(picture, picture, weights)[0] == 0
    error = torch.zeros(1, 3, 16, 16)
    error[..., 0, 0] = 1
    plain = weighted(error, weights)
    weights[..., 0, 0] = 8
    assert weighted(error, weights) > 7 * plain


def test_the_adversary_gives_a_gradient_of_the_own_ones_size() -> None:
    torch.manual_seed(0)
    adversary = Adversary(Discriminator(8))
    real, made, weights = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32), torch.ones(2, 1, 32, 32)
    own = torch.full_like(made, 0.01)
    gradient = adversary.gradient(made, real, weights, own, 1.0)
    assert 0.05 < float(gradient.norm() / own.norm()) < 1.0
    assert adversary.learn(made, real) > 0


def test_a_value_is_read_off_patches() -> None:
    rng = np.random.default_rng(0)
    values, way = rng.uniform(0, 1, 60), 20 * rng.normal(size=30)
    true = values[:, None] * way + 0.1 * rng.normal(size=(60, 30))
    assert np.corrcoef(reading(true, values, true[::-1]), values[::-1])[0, 1] > 0.99


def test_blinks_are_runs_of_frames() -> None:
    assert runs_of(np.array([1, 1, 0, 1, 0, 1, 1, 1], bool), 2) == 2
