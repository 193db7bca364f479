"""The command pose-bank: what it draws is what live rendering draws, and how it ends when it cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from echo_rtc.errors import InputError
from echo_rtc.model.pose import Pose
from echo_rtc.model.pose_drawing import draw_pose
from echo_rtc.train.gestures import sample_gestures
from echo_rtc.train.pose_bank import main
from echo_rtc.train.recipe import FPS
from echo_rtc.train.scenes import PoseBank

SMALL = ["--sequences", "2", "--size", "32", "--processes", "1", "--seed", "3"]


def test_a_bank_of_loops(tmp_path: Path) -> None:
    path = tmp_path / "new" / "bank"  # no suffix is appended
    assert main(["--output", str(path), "--frames", "24", "--loop", *SMALL]) == 0
    bank = PoseBank.load(path, torch.device("cpu"))
    assert bank.images.shape == (2, 48, 32, 32, 3)
    assert bank.images.dtype == torch.uint8
    assert torch.equal(bank.images[:, :24], bank.images[:, 24:])
    gestures = sample_gestures(2, 24, FPS, torch.Generator().manual_seed(3), loop=True)
    assert torch.equal(bank.hands[:, :24], gestures.hands)
    assert torch.equal(bank.blink[:, 24:], gestures.blink)
    assert torch.equal(bank.head[:, 24:], gestures.head)
    drawn = draw_pose(Pose(gestures.hands[1, 5].numpy(), gestures.scores[1, 5].numpy()), 32, 32)
    assert drawn.any()
    assert np.array_equal(bank.images[1, 5].numpy(), drawn)


@pytest.mark.parametrize("flag", ["--sequences", "--frames", "--size", "--processes"])
def test_numbers_below_one_are_refused(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--output", str(tmp_path / "bank.npz"), flag, "0"])
    assert caught.value.code == 2
    assert f"{flag} is 0; it must be at least 1" in capsys.readouterr().err


def test_an_impossible_folder_is_told_before_anything_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("echo_rtc.train.pose_bank.sample_gestures", None)
    with pytest.raises(InputError, match="cannot be made"):
        main(["--output", str(tmp_path / "file" / "bank.npz")])


def test_an_output_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--output .* cannot be written .*; name another"):
        main(["--output", str(tmp_path), "--frames", "2", *SMALL])
