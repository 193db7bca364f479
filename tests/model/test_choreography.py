"""What an avatar's body does: rest in silence, gestures in speech, and the way between; life as background levels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from echo_rtc.clips import ClipFormat
from echo_rtc.errors import InputError, SettingsError
from echo_rtc.model.choreography import Choreography, activity, between, calm_loop
from echo_rtc.model.colour import fitted
from echo_rtc.model.life import make_life
from echo_rtc.model.pose import Pose
from echo_rtc.model.pose_files import PACKED_POSES, load_pose_sequence, save_pose_sequence
from echo_rtc.model.sampler import Sampler, bridged, reference_latents
from echo_rtc.model.trained import Trained

FPS = 24


def pose(x: float) -> Pose:
    return Pose(np.full((2, 21, 2), x), np.ones((2, 21)))


def sound(*loud: tuple[float, float], seconds: float = 2.5) -> np.ndarray:
    samples = np.zeros(round(seconds * 16_000), np.float32)
    for start, stop in loud:
        samples[round(start * 16_000) : round(stop * 16_000)] = 0.1
    return samples


def test_silence_is_rest() -> None:
    assert not activity(sound(), 12, FPS, 16_000).any()


def test_speech_raises_the_hands_within_half_a_second() -> None:
    rising = activity(sound((2.0, 2.5)), 12, FPS, 16_000)
    assert rising[0] < 0.05
    assert (np.diff(rising) > 0).all()
    assert rising[-1] == 1


def test_hands_come_to_rest_within_half_a_second() -> None:
    assert activity(sound((0.0, 1.98)), 12, FPS, 16_000)[-1] == 0
    assert activity(sound((0.0, 2.45)), 12, FPS, 16_000).min() == 1


def test_consecutive_clips_agree() -> None:
    """The same frames read off two windows, the second half a second later."""
    long = sound((0.4, 1.2), (1.9, 2.3), seconds=3.5)
    early, late = activity(long[: 3 * 16_000], 12, FPS, 16_000), activity(long[8_000:], 24, FPS, 16_000)
    assert np.allclose(early, late[:12], atol=1e-6)


def test_the_calmest_stretch_is_found_and_closes() -> None:
    wild = [pose(0.3 + 0.2 * (n % 2)) for n in range(200)]
    calm = [pose(0.5 + 0.0001 * n) for n in range(150)]
    loop = calm_loop(wild + calm + wild, FPS)
    steps = [abs(a.hands[0, 0, 0] - b.hands[0, 0, 0]) for a, b in zip(loop, [*loop[1:], loop[0]], strict=True)]
    assert len(loop) == 8 * FPS
    assert max(steps) < 0.001


def test_between_two_poses_lies_their_middle() -> None:
    assert np.allclose(between(pose(0.2), pose(0.4), 0.5).hands, 0.3)
    lost = Pose(np.full((2, 21, 2), -1.0), np.zeros((2, 21)))
    assert np.allclose(between(lost, pose(0.4), 0.25).hands, 0.4)


def test_idle_shows_other_poses_and_streams_start_apart() -> None:
    dance = Choreography([pose(0.1 + n / 1000) for n in range(300)], [pose(0.9)], FPS, None, seed=1)
    assert dance.moment(0, 5, 0.0).pose.hands[0, 0, 0] == pytest.approx(0.9)
    assert dance.moment(12, 5, 1.0).pose.hands[0, 0, 0] == pytest.approx(0.112)
    assert len({dance.start_of(seed) for seed in range(1, 9)}) > 4
    assert dance.moment(0, 5, 0.0).life is None


def test_life_is_painted_where_nothing_is_drawn() -> None:
    dance = Choreography([pose(0.5)], [pose(0.5)], FPS, 1.0, seed=1)
    picture = dance.moment(3, 3, 1.0).draw(128, 128)
    assert len(np.unique(picture[0].reshape(-1, 3), axis=0)) == 1
    assert (picture[0] != picture[4]).any()


@pytest.mark.parametrize("seed", range(4))
def test_blinks_are_12_to_20_a_minute(seed: int) -> None:
    shut = make_life(seed, 60 * FPS, FPS).lids > 0.8
    starts = np.flatnonzero(np.diff(shut.astype(int)) == 1)
    assert 12 <= len(starts) <= 20
    assert len(set(np.diff(starts))) > 4


@pytest.mark.parametrize("seed", range(8))
def test_a_short_loop_has_a_usual_number_of_blinks(seed: int) -> None:
    shut = make_life(seed, 8 * FPS, FPS).lids > 0.8
    assert np.count_nonzero(np.diff(shut.astype(int)) == 1) == 2


def test_a_sequence_in_one_file_comes_back(tmp_path: Path) -> None:
    save_pose_sequence(tmp_path, [pose(0.25), pose(0.5)])
    assert [float(each.hands[1, 3, 0]) for each in load_pose_sequence(tmp_path)] == [0.25, 0.5]


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04" + bytes(40)])
def test_a_damaged_sequence_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / PACKED_POSES).write_bytes(content)
    with pytest.raises(InputError, match=PACKED_POSES):
        load_pose_sequence(tmp_path)


def test_pictures_are_cropped_and_scaled() -> None:
    image = torch.zeros(1, 3, 64, 64)
    image[:, :, :8] = 1
    assert fitted(image, 64, 64) is not None
    wide = fitted(image, 128, 64)
    assert wide.shape == (1, 3, 64, 128)
    assert wide[0, 0, 0].mean() < 0.2  # a quarter of what is cut off comes off above
    assert fitted(image, 32, 48).shape == (1, 3, 48, 32)


def test_formats_that_were_not_tested_are_refused() -> None:
    trained = Trained.from_config({"trained": {"size": [384, 384], "frame_rates": [24], "clip_frames": [12]}})
    clip = ClipFormat(width=512, height=512, fps=24, clip_frames=12)
    trained.check(clip, 1)
    assert trained.render_size(clip) == (384, 384)
    with pytest.raises(SettingsError, match=r"clip_frames is 8, .* choose 12, or give --untrained"):
        trained.check(ClipFormat(fps=24, clip_frames=8), 1)
    with pytest.raises(SettingsError, match=r"fps is 30"):
        trained.check(ClipFormat(fps=30, clip_frames=12), 1)
    with pytest.raises(SettingsError, match=r"clip_frames is 30, .* choose 6 to 24"):
        Trained().check(ClipFormat(fps=25, clip_frames=30), 6)


@pytest.mark.parametrize(
    "section", [3, {"sise": [1, 1]}, {"size": [1]}, {"size": "x"}, {"start_timestep": 0}, {"liveliness": "very"}]
)
def test_a_wrong_description_is_told(section: object) -> None:
    with pytest.raises(InputError, match="trained"):
        Trained.from_config({"trained": section})


def test_a_clips_first_frame_lies_between_its_neighbours() -> None:
    clip = torch.arange(10.0, 14.0).view(1, 1, 4, 1, 1).expand(1, 2, 4, 3, 3)
    joined = bridged(clip, torch.full((2, 3, 3), 9.5))
    assert joined[0, 0, :, 0, 0].tolist() == [10.25, 11, 12, 13]
    assert bridged(clip, None)[0, 0, :, 0, 0].tolist() == [11, 11, 12, 13]
    assert bridged(clip[:, :, :1], None).shape == (1, 2, 1, 3, 3)


def test_a_hand_that_moves_is_not_shown_at_two_places() -> None:
    before, clip = torch.ones(2, 9, 9), torch.ones(1, 2, 3, 9, 9)
    clip[:, :, 0] = 1.5
    clip[:, :, 0, :3, :3] = 3.0
    before[:, :3, 0] = clip[:, :, 1, :3, 2] = 5.0
    joined = bridged(clip, before)
    assert (joined[:, :, 0, :3, :3] == 3).all()
    assert (joined[:, :, 0, 6:] == 1).all()
    assert (joined[:, :, 0, :, 6:] == 1).all()
    assert torch.equal(joined[:, :, 1:], clip[:, :, 1:])


def test_a_clip_can_start_from_the_reference() -> None:
    reference, last = torch.ones(1, 2, 3, 3), torch.full((2, 3, 3), 5.0)
    start = reference_latents(reference, 4, last)
    assert start.shape == (1, 2, 4, 3, 3)
    assert (start[:, :, 0] == 5).all()
    assert (start[:, :, 1:] == 1).all()
    with pytest.raises(ValueError, match="takes one"):
        Sampler(None, 2, 1.0, start=100)  # type: ignore[arg-type]  # never called
    assert Sampler(None, 1, 1.0, start=100).timesteps == [100]  # type: ignore[arg-type]
