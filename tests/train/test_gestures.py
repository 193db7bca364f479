"""Tests of the gestures: smooth, in the picture, off the face; head and lids follow from the same frame's hands."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from echo_rtc.model.pose_files import load_pose_sequence
from echo_rtc.train.gestures import (
    Gestures,
    blink_of_hands,
    head_of_hands,
    main_poses,
    rest_hands,
    sample_gestures,
    write_pose_sequence,
)

FPS = 24
TIPS = (8, 12, 16, 20)
KNUCKLES = (5, 9, 13, 17)


def _sample(count: int = 16, frames: int = 480, seed: int = 0, loop: bool = False) -> Gestures:
    return sample_gestures(count, frames, FPS, torch.Generator().manual_seed(seed), loop=loop)


def _blinks(blink: Tensor) -> list[int]:
    """First frames of the blinks of one sequence."""
    shut = blink > 0.5
    return [int(frame) for frame in (shut[1:] & ~shut[:-1]).nonzero()[:, 0] + 1]


def test_shapes_and_ranges() -> None:
    gestures = _sample(3, 50)
    assert gestures.hands.shape == (3, 50, 2, 21, 2)
    assert gestures.scores.shape == (3, 50, 2, 21)
    assert gestures.head.shape == (3, 50, 3)
    assert gestures.blink.shape == (3, 50)
    assert torch.isfinite(gestures.hands).all()
    assert (gestures.blink >= 0).all()
    assert (gestures.blink <= 1).all()


def test_at_rest_the_head_is_still_and_the_eyes_are_open() -> None:
    rest = rest_hands()
    assert rest.shape == (2, 21, 2)
    assert float(head_of_hands(rest).abs().max()) == 0
    assert float(blink_of_hands(rest)) == 0


def test_head_and_blink_are_functions_of_the_frames_own_hands() -> None:
    gestures = _sample(4, 100)
    for frame in (0, 37, 99):
        torch.testing.assert_close(head_of_hands(gestures.hands[:, frame]), gestures.head[:, frame])
        torch.testing.assert_close(blink_of_hands(gestures.hands[:, frame]), gestures.blink[:, frame])


def test_the_head_leans_to_where_the_hands_are() -> None:
    rest = rest_hands()
    right = head_of_hands(rest + torch.tensor([0.05, 0.0]))
    raised = head_of_hands(rest - torch.tensor([0.0, 0.05]))
    one = rest.clone()
    one[0, :, 1] -= 0.06
    assert right[0] > 0.01
    assert right[2] > 0.01
    assert abs(float(right[1])) < 1e-6
    assert raised[1] < -0.01
    assert abs(float(raised[0])) < 1e-6
    assert head_of_hands(one)[2] < -0.02


def test_the_head_is_a_smooth_bounded_function() -> None:
    gestures = _sample()
    limits = torch.tensor([0.03, 0.02, 0.14])
    assert (gestures.head.abs() <= limits).all()
    assert gestures.head.abs().amax((0, 1)).gt(limits * 0.25).all(), "the head hardly moves"
    wild = torch.rand(100, 2, 21, 2, generator=torch.Generator().manual_seed(1)) * 4 - 2
    assert (head_of_hands(wild).abs() <= limits).all()
    step = head_of_hands(rest_hands() + 1e-3).abs()
    assert (step < torch.tensor([1e-3, 1e-3, 5e-3])).all()


def test_a_tap_of_the_fingers_does_not_move_the_head() -> None:
    hands = rest_hands()
    tapped = hands.clone()
    for tip in (6, 7, 8, 10, 11, 12):
        tapped[:, tip] = hands[:, 5 if tip < 9 else 9]
    assert torch.equal(head_of_hands(tapped), head_of_hands(hands))
    assert float(blink_of_hands(tapped)) == 1


def test_blinks_are_regular_short_and_complete() -> None:
    gestures = _sample(24, 24 * 30)
    gaps, lengths = [], []
    for blink in gestures.blink:
        starts = _blinks(blink)
        gaps += [(after - before) / FPS for before, after in pairwise(starts)]
        for start in starts[1:-1]:
            window = blink[start - 5 : start + 10]
            assert window.max() > 0.95
            lengths.append(int((window > 0.02).sum()))
    assert min(gaps) >= 2.0
    assert max(gaps) <= 5.5
    assert 3.0 < sum(gaps) / len(gaps) < 4.0
    assert min(lengths) >= 4
    assert max(lengths) <= 8


def test_between_blinks_the_eyes_stay_open() -> None:
    gestures = _sample(24, 24 * 20, seed=7)
    for blink in gestures.blink:
        near = torch.nn.functional.max_pool1d((blink > 0.9).float()[None, None], 11, 1, 5)[0, 0] > 0
        assert float(blink[~near][8:-8].max()) < 0.05


def test_a_blink_is_plain_to_see_in_the_fingers() -> None:
    gestures = _sample(8, 24 * 12)
    span = (gestures.hands[..., TIPS, :] - gestures.hands[..., KNUCKLES, :]).norm(dim=-1)  # (B, F, 2, 4)
    shut, open_ = gestures.blink > 0.95, gestures.blink < 0.01
    index_and_middle = span[..., :2].mean((-1, -2))
    assert float(index_and_middle[shut].mean()) < 0.6 * float(index_and_middle[open_].mean())


def test_motion_is_smooth() -> None:
    gestures = _sample(16, 480)
    wrists = gestures.hands[:, :, :, 0]
    speed = wrists.diff(dim=1).norm(dim=-1)
    assert speed.max() < 0.05, "a hand jumps"
    jerk = wrists.diff(n=2, dim=1).norm(dim=-1)
    assert jerk.max() < 0.02
    assert gestures.head.diff(dim=1).abs().amax((0, 1)).lt(torch.tensor([0.012, 0.012, 0.05])).all()


def test_hands_gesture_and_rest() -> None:
    gestures = _sample(16, 480)
    palms = gestures.hands[..., KNUCKLES, :].mean(-2)  # (B, F, 2, 2)
    travel = palms.amax(1) - palms.amin(1)
    assert float(travel.amax(-1).mean()) > 0.10, "hands hardly move"
    slow = palms.diff(dim=1).norm(dim=-1).amax(-1) < 0.002
    assert 0.2 < float(slow.float().mean()) < 0.95


def test_hands_stay_in_the_lower_picture_off_the_mouth() -> None:
    hands = _sample(64, 240, seed=3).hands
    assert float(hands[..., 1].min()) > 0.60
    assert float(hands[..., 1].max()) < 1.02
    assert float(hands[..., 0].min()) > 0.03
    assert float(hands[..., 0].max()) < 0.97
    assert (hands[..., 0, 0, 0] > hands[..., 1, 0, 0]).all(), "hand 0 is the one on the right"


def test_a_loop_closes_as_smoothly_as_it_runs() -> None:
    gestures = _sample(32, 144, seed=5, loop=True)
    wrapped = torch.cat([gestures.hands, gestures.hands[:, :2]], dim=1)
    step = wrapped.diff(dim=1).abs().amax((2, 3, 4))  # (B, F + 1)
    assert (step[:, -2] <= step[:, :-2].amax(1) * 1.05).all()
    bend = wrapped[:, :, :, 0].diff(n=2, dim=1).norm(dim=-1)
    assert float(bend[:, -2:].max()) < 0.02


def test_the_same_seed_gives_the_same_gestures() -> None:
    assert torch.equal(_sample(2, 48, seed=1).hands, _sample(2, 48, seed=1).hands)
    assert not torch.equal(_sample(2, 48, seed=1).hands, _sample(2, 48, seed=2).hands)


def test_hands_keep_their_size() -> None:
    hands = _sample(8, 240).hands
    length = (hands[..., 9, :] - hands[..., 0, :]).norm(dim=-1)
    assert float(length.max()) < 0.13
    assert math.isclose(float(length.max()), 0.12, abs_tol=0.01)


def test_a_written_sequence_reads_back(tmp_path: Path) -> None:
    gestures = _sample(1, 12)
    write_pose_sequence(tmp_path / "poses", gestures.hands[0], gestures.scores[0])
    poses = load_pose_sequence(tmp_path / "poses")
    assert len(poses) == 12
    for frame, pose in enumerate(poses):
        torch.testing.assert_close(torch.from_numpy(pose.hands.copy()).float(), gestures.hands[0, frame])
        assert pose.hands_score.min() == 1
        region = pose.region
        assert region.height == region.width == region.row_end == region.col_end
        assert region.row_begin == region.col_begin == 0


def test_the_command_writes_a_loop_and_refuses_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_poses(["--output", str(tmp_path / "loop"), "--frames", "30", "--seed", "2"]) == 0
    assert sorted(int(path.stem) for path in (tmp_path / "loop").iterdir()) == list(range(30))
    assert main_poses(["--output", str(tmp_path / "loop"), "--frames", "3"]) == 2
    assert "--frames 3 is too short" in capsys.readouterr().err
    (tmp_path / "file").write_text("in the way")
    assert main_poses(["--output", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err
