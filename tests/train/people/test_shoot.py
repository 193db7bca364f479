from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from echo_rtc.errors import InputError
from echo_rtc.train.people.asset import Asset
from echo_rtc.train.people.face import ACTIONS
from echo_rtc.train.people.figure import Figure
from echo_rtc.train.people.light import Look, backdrop
from echo_rtc.train.people.motion import RESTS
from echo_rtc.train.people.person import sample_spec
from echo_rtc.train.people.shoot import (
    Shot,
    Speech,
    Studio,
    frame_person,
    make_picture,
    make_take,
    random_mouth,
    resting_face,
    speaking_of,
)

SIDE = 96
PERSON = 16


@pytest.fixture(scope="module")
def studio(asset: Asset) -> Iterator[Studio]:
    try:
        studio = Studio(asset, torch.device("cpu"), SIDE)
    except InputError as error:
        pytest.skip(f"{error}")
    yield studio
    studio.close()


def shot_of(figure: Figure, life: list[list[float]]) -> Shot:
    count = len(life)
    moments = np.array(life, np.float32)
    actions = np.repeat(resting_face(figure.spec), count, 0)
    actions[:, ACTIONS.index("eyeBlink")] = moments[:, 3]
    hands = np.repeat(np.stack(RESTS[0])[None], count, 0).astype(np.float32)
    return Shot(
        figure, frame_person(figure), Look(), backdrop(SIDE), moments, hands, actions, np.ones((count, 2), np.float32)
    )


def test_a_take_is_complete_and_repeatable(studio: Studio) -> None:
    take = make_take(studio, Speech.silence(), 3, frames=3, person=PERSON)
    again = make_take(studio, Speech.silence(), 3, frames=3, person=PERSON)
    assert take["frames"].shape == (3, SIDE, SIDE, 3)
    assert take["reference"].shape == (SIDE, SIDE, 3)
    assert len(take["waveform"]) == 34_000
    for name, shape in {
        "hands": (3, 2, 21, 3),
        "mouth": (3, 5),
        "life": (3, 6),
        "boxes": (3, 5, 4),
        "lids": (3,),
    }.items():
        assert take[name].shape == shape, name
        assert np.array_equal(take[name], again[name], equal_nan=True), name
    assert np.abs(take["frames"].astype(int) - again["frames"]).max() <= 2
    assert not take["speaking"].any()
    assert take["person"] == str(PERSON)
    assert take["frames"].std() > 20


def test_drawn_hands_are_the_rendered_ones(studio: Studio) -> None:
    figure = studio.figure(sample_spec(PERSON))
    shot = shot_of(figure, [[0.0] * 6])
    _, hands, boxes = studio.shoot(shot)
    joints = figure.skeleton.hand_joints(shot.pose(torch.device("cpu"))).numpy()
    assert np.allclose(hands[..., :2], shot.camera.project(joints), atol=1e-6)
    assert (hands[..., 2] == 1).all()
    right, left = boxes[0, 3], boxes[0, 4]  # on the picture's left and right
    assert right[0] < left[0]
    mouth, left_eye, right_eye = boxes[0, :3]
    assert left_eye[0] < right_eye[0]
    assert mouth[1] > left_eye[3]


def test_lids_change_the_eyes_and_nothing_below(studio: Studio) -> None:
    figure = studio.figure(sample_spec(PERSON))
    frames, _, boxes = studio.shoot(shot_of(figure, [[0.0] * 6, [0, 0, 0, 1.0, 0, 0]]))
    change = np.abs(frames[1].astype(int) - frames[0]).max(-1)
    x0, y0, x1, y1 = (boxes[0, 1] * SIDE).astype(int)
    assert change[y0:y1, x0:x1].max() > 40
    assert change[SIDE // 2 :].max() <= 3


def test_the_head_turns_as_life_says(studio: Studio) -> None:
    figure = studio.figure(sample_spec(PERSON))
    _, _, boxes = studio.shoot(
        shot_of(figure, [[0.0] * 6, [0.2, 0, 0, 0, 0, 0], [0, 0.15, 0, 0, 0, 0], [0, 0, 0.1, 0, 0, 0]])
    )
    still, right, up, clockwise = boxes
    assert right[0, [0, 2]].mean() > still[0, [0, 2]].mean() + 0.01
    assert up[0, [1, 3]].mean() < still[0, [1, 3]].mean() - 0.01
    assert clockwise[1, 1] < still[1, 1] < still[2, 1] + 0.01
    assert clockwise[2, 1] > clockwise[1, 1] + 0.005


def test_pictures_have_boxes(studio: Studio) -> None:
    picture, boxes = make_picture(studio, 2, person=PERSON)
    again, _ = make_picture(studio, 2, person=PERSON)
    assert picture.shape == (SIDE, SIDE, 3)
    assert np.abs(picture.astype(int) - again).max() <= 2
    assert np.isfinite(boxes[:3]).all()
    seen = boxes[np.isfinite(boxes).all(1)]
    assert seen.min() >= 0
    assert seen.max() <= 1
    assert (seen[:, 2:] > seen[:, :2]).all()


def test_sound_and_mouth_are_cut_at_the_same_place() -> None:
    audio = np.zeros((1, 160_000), np.int16)
    mouth = np.zeros((1, 1000, 5), np.float16)
    audio[0, 80_000:96_000] = 8000
    mouth[0, 500:600, 0] = 1
    speech = Speech(audio, mouth, np.zeros(1, np.int32), ("tone",))
    for seed in range(6):
        sound, track, voice = speech.cut(np.random.default_rng(seed), 96)
        assert voice == "tone"
        assert len(sound) == 32_000 + 64_000
        loud = np.array([np.abs(part).max() > 0.1 for part in np.array_split(sound[32_000:], 96)])
        moving = track[:, 0] > 0.5
        assert (loud != moving).sum() <= 2
    with pytest.raises(InputError, match="needed"):
        speech.cut(np.random.default_rng(0), 500)


def test_speaking_spans_short_closures() -> None:
    mouth = np.zeros((60, 5), np.float32)
    mouth[10:40, 0] = 0.4
    mouth[20:23] = 0
    speaking = speaking_of(mouth)
    assert speaking[8:42].all()
    assert not speaking[:5].any()
    assert not speaking[46:].any()


def test_random_mouths_cover_their_range() -> None:
    rng = np.random.default_rng(1)
    mouths = np.array([random_mouth(rng) for _ in range(400)])
    assert (mouths[:, 0] == 0).mean() > 0.1
    assert mouths[:, 0].max() > 0.8
    assert mouths[:, 1].min() < -0.8


def test_other_files_are_no_corpus(tmp_path: Path) -> None:
    (tmp_path / "speech.safetensors").write_bytes(b"none")
    with pytest.raises(InputError, match="command speech"):
        Speech.load(tmp_path / "speech.safetensors")
