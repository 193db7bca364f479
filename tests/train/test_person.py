"""Tests of the drawn people: what moves in the picture, and only where, when one thing of the motion changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from echo_rtc.train.gestures import rest_hands
from echo_rtc.train.person import (
    HAIR_STYLES,
    VISEMES,
    Motion,
    People,
    draw,
    draw_reference,
    main_person,
)

SIZE = 128


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _default(motion: Motion) -> Tensor:
    return draw(People.default().repeat_interleave(len(motion)), motion, SIZE)


def _changed(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns, in fractions of the picture, of the pixels that differ visibly between two pictures."""
    rows, columns = torch.nonzero((a - b).abs().amax(0) > 0.02, as_tuple=True)
    assert len(rows), "the two pictures are the same"
    return (rows + 0.5) / a.shape[1], (columns + 0.5) / a.shape[2]


def _mouth(*mouths: tuple[float, ...]) -> Motion:
    return replace(Motion.rest(len(mouths)), mouth=torch.tensor(mouths))


def _dark_red(picture: Tensor) -> int:
    """Pixels in the colour of an open mouth's inside."""
    red, green, blue = picture
    return int(((red < 0.40) & (red > 2 * green) & (red > 2 * blue)).sum())


def test_pictures_are_finite_colours_of_the_asked_shape() -> None:
    people = People.sample(6, torch.Generator().manual_seed(1))
    picture = draw(people, Motion.rest(6), (96, 80))
    assert picture.shape == (6, 3, 96, 80)
    assert picture.dtype == torch.float32
    assert torch.isfinite(picture).all()
    assert 0 <= picture.min() < 0.2
    assert 0.8 < picture.max() <= 1


def test_people_and_motion_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 people and 3 motions"):
        draw(People.default().repeat_interleave(2), Motion.rest(3), 32)


def test_a_batch_draws_what_its_members_draw_alone() -> None:
    people = People.sample(3, torch.Generator().manual_seed(2))
    mouths = torch.tensor([VISEMES["a"], VISEMES["u"], VISEMES["f"]])
    motion = replace(Motion.rest(3), mouth=mouths, blink=torch.tensor([0.0, 0.5, 1.0]))
    together = draw(people, motion, 64)
    for index in range(3):
        alone = draw(people[index : index + 1], motion[index : index + 1], 64)
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-5, rtol=0)


def test_a_seed_determines_the_people_sampled() -> None:
    first = People.sample(4, torch.Generator().manual_seed(3))
    again = People.sample(4, torch.Generator().manual_seed(3))
    other = People.sample(4, torch.Generator().manual_seed(4))
    for field in fields(People):
        value = getattr(first, field.name)
        assert torch.equal(value, getattr(again, field.name)), field.name
        assert value.shape[0] == 4
        assert value.dtype == torch.float32, field.name
    assert not torch.equal(first.skin, other.skin)


def test_sampled_people_cover_the_wide_range_they_promise() -> None:
    people = People.sample(600, torch.Generator().manual_seed(5))
    bright = people.skin.mean(1)
    assert bright.min() < 0.25
    assert bright.max() > 0.85
    assert set(people.neckline.argmax(1).tolist()) == {0, 1, 2, 3, 4}
    assert 0.1 < people.glasses[:, 0].mean() < 0.4
    assert 0.05 < (people.beard[:, 0] > 0).float().mean() < 0.4
    assert 0.01 < (people.hair[:, 0] == 0).float().mean() < 0.2


def test_every_hair_style_looks_different() -> None:
    people = People.default().repeat_interleave(len(HAIR_STYLES))
    people = replace(people, hair=torch.tensor(list(HAIR_STYLES.values())))
    pictures = draw(people, Motion.rest(len(people)), 64)
    for first in range(len(people)):
        for second in range(first):
            rows, _ = _changed(pictures[first], pictures[second])
            assert len(rows) > 30


def test_an_open_mouth_shows_its_inside_and_a_shut_one_does_not() -> None:
    pictures = _default(_mouth(VISEMES["shut"], VISEMES["m"], VISEMES["e"], VISEMES["a"]))
    shut, pressed, half, wide = (_dark_red(picture) for picture in pictures)
    assert shut == 0
    assert pressed == 0
    assert 0 < half < wide


def test_the_inside_grows_steadily_with_the_opening() -> None:
    steps = torch.linspace(0, 1, 11)
    mouths = torch.zeros(11, 5)
    mouths[:, 0] = steps
    pictures = _default(replace(Motion.rest(11), mouth=mouths))
    sizes = [_dark_red(picture) for picture in pictures]
    assert sizes == sorted(sizes)
    # nothing pops: a small step of the opening changes the picture little
    for before, after in pairwise(pictures):
        assert float((after - before).abs().mean()) < 0.006


def test_each_viseme_is_told_apart_by_the_mouth_alone() -> None:
    pictures = _default(_mouth(*VISEMES.values()))
    for first in range(len(pictures)):
        for second in range(first):
            rows, columns = _changed(pictures[first], pictures[second])
            assert rows.min() > 0.36  # the cheeks follow the jaw
            assert rows.max() < 0.66
            assert columns.min() > 0.30
            assert columns.max() < 0.70


def test_pressing_shuts_a_mouth_however_open() -> None:
    pictures = _default(_mouth((1.0, 0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0, 0.0)))
    assert float((pictures[0] - pictures[1]).abs().max()) < 0.02


def test_head_and_mouth_are_large_enough_to_see() -> None:
    picture = draw(People.default(), Motion.rest(1), 256)[0]
    lips = picture[0] > 1.55 * picture[1]
    columns = lips[112:132, 103:153].any(0).nonzero()[:, 0]
    assert 32 <= int(columns.max() - columns.min()) <= 42
    bald = replace(People.default(), hair=torch.tensor([HAIR_STYLES["bald"]]))
    skin = draw(bald, Motion.rest(1), 256)[0, :, :, 128]
    rows = (skin[0] > 1.1 * skin[1]).nonzero()[:, 0]
    assert int(rows.min()) < 32
    assert int(rows.max()) > 140


def test_a_blink_changes_the_eyes_and_hides_the_white() -> None:
    motion = replace(Motion.rest(2), blink=torch.tensor([0.0, 1.0]))
    eyes_open, shut = _default(motion)
    rows, _ = _changed(eyes_open, shut)
    assert rows.min() > 0.26
    assert rows.max() < 0.42
    white = [(picture[:, 40:50, 45:83].amin(0) > 0.93).sum() for picture in (eyes_open, shut)]
    assert white[0] > 3
    assert white[1] == 0


@pytest.mark.parametrize(("shift", "axis"), [((0.05, 0.0, 0.0), 1), ((0.0, 0.05, 0.0), 0)])
def test_the_head_moves_by_the_fraction_it_is_told(shift: tuple[float, float, float], axis: int) -> None:
    plain = replace(People.default(), shapes=torch.zeros(1, 3, 4)).repeat_interleave(2)
    plain = replace(plain, ground=torch.ones(2, 2, 3))
    motion = replace(Motion.rest(2), head=torch.tensor([(0.0, 0.0, 0.0), shift]))
    pictures = draw(plain, motion, 200)[:, :, :100]
    hair = pictures.mean(1) < 0.6
    first = [int(picture.any(1 - axis).nonzero()[0]) for picture in hair]
    assert (first[1] - first[0]) / 200 == pytest.approx(0.05, abs=0.011)


def test_rolling_the_head_is_clockwise_and_leaves_the_hands() -> None:
    motion = replace(Motion.rest(2), head=torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.12]]))
    still, rolled = _default(motion)
    assert float((still - rolled)[:, int(0.82 * SIZE) :].abs().max()) == 0
    crown = [(picture[:, : SIZE // 4].mean(0) < 0.4).nonzero()[:, 1].float().mean() for picture in (still, rolled)]
    assert crown[1] > crown[0] + 2


def test_hands_follow_their_keypoints_and_stay_off_the_mouth() -> None:
    hands = rest_hands()[None].repeat(2, 1, 1, 1)
    hands[1, 0] += torch.tensor([0.15, -0.02])
    motion = replace(Motion.rest(2), hands=hands)
    before, after = _default(motion)
    rows, columns = _changed(before, after)
    assert rows.min() > 0.6
    assert columns.max() > 0.7
    x, y = (after.shape[2] * hands[1, 0, 9]).long()
    hand_colour = after[:, y, x]
    skin = People.default().skin[0]
    assert float((hand_colour / hand_colour.sum() - skin / skin.sum()).abs().max()) < 0.05


def test_a_hand_without_score_is_not_drawn() -> None:
    scores = torch.ones(2, 2, 21)
    scores[1] = 0
    seen, hidden = _default(replace(Motion.rest(2), hands_score=scores))
    x, y = (SIZE * rest_hands()[0, 9]).long()
    skin = People.default().skin[0]
    assert float((seen[:, y, x] - skin).abs().max()) < 0.15
    assert float((hidden[:, y, x] - skin).abs().max()) > 0.2


def _glasses(people: People) -> People:
    return replace(people, glasses=torch.tensor([[1.0, 0.6, 1.0]]))


def _beard(people: People) -> People:
    return replace(people, beard=torch.tensor([[0.9, 0.9, 0.5]]))


@pytest.mark.parametrize(
    ("change", "rows"), [(_glasses, (0.27, 0.44)), (_beard, (0.25, 0.60))], ids=["glasses", "beard"]
)
def test_what_is_put_on_a_face_lies_where_it_belongs(
    change: Callable[[People], People], rows: tuple[float, float]
) -> None:
    bald = replace(People.default(), hair=torch.tensor([HAIR_STYLES["bald"]]))
    plain = draw(bald, Motion.rest(1), SIZE)[0]
    dressed = draw(change(bald), Motion.rest(1), SIZE)[0]
    found, _ = _changed(plain, dressed)
    assert rows[0] < found.min()
    assert found.max() < rows[1]


def test_a_reference_is_a_smoother_picture_of_the_same_person() -> None:
    people = People.default()
    smooth = draw_reference(people, 64)
    assert smooth.shape == (1, 3, 64, 64)
    assert float((smooth - draw(people, Motion.rest(1), 64)).abs().mean()) < 0.02


def test_the_command_writes_the_asked_person(tmp_path: Path) -> None:
    for name, arguments in {"default": [], "first": ["--seed", "1"], "again": ["--seed", "1"]}.items():
        assert main_person(["--output", str(tmp_path / f"{name}.png"), "--size", "64", *arguments]) == 0
    pictures = {path.stem: path.read_bytes() for path in tmp_path.iterdir()}
    assert pictures["first"] == pictures["again"] != pictures["default"]
    with Image.open(tmp_path / "default.png") as image:
        assert image.size == (64, 64)
        assert image.mode == "RGB"


def test_the_command_refuses_what_it_cannot_do_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_person(["--output", str(tmp_path / "x.png"), "--size", "7"]) == 2
    assert "--size 7 is out of range" in capsys.readouterr().err
    assert main_person(["--output", str(tmp_path / "no" / "x.png"), "--size", "64"]) == 2
    error = capsys.readouterr().err
    assert "cannot be written" in error
    assert error.count("\n") == 1
