"""The measures of the command evaluate on pictures of which one knows what they show, and the command itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from echo_rtc.errors import InputError, SettingsError
from echo_rtc.model.pose_files import load_pose_sequence
from echo_rtc.settings import load_settings
from echo_rtc.train import evaluate
from echo_rtc.train.evaluate import (
    EMBEDDED,
    VOICES,
    Figures,
    Stage,
    Talk,
    border_ratio,
    held_out_voices,
    main,
    render,
    speak,
)
from echo_rtc.train.gestures import sample_gestures
from echo_rtc.train.person import VISEMES, People
from echo_rtc.train.recipe import CLIP_FRAMES, FPS, SAMPLE_RATE
from echo_rtc.train.speech import Phoneme

SIZE = 128
NUMBERS = (0, 40, 90, 184)
"""Frames of the pose sequence with different heads and hands; the last is the second over again."""


@pytest.fixture(scope="module")
def stage() -> Stage:
    torch.set_num_threads(1)
    return Stage(People.default(), NUMBERS, SIZE)


def mouths(*names: str) -> Tensor:
    return torch.tensor([VISEMES[name] for name in names])


def test_the_pose_sequence_is_the_one_that_ships() -> None:
    gestures = sample_gestures(1, evaluate.LOOP_FRAMES, FPS, torch.Generator().manual_seed(0), loop=True)
    poses = load_pose_sequence(EMBEDDED / "poses")
    assert len(poses) == evaluate.LOOP_FRAMES
    for number in (0, 77, 143):
        assert np.allclose(poses[number].hands, gestures.hands[0, number].numpy(), atol=1e-6)


def test_drawings_are_as_open_as_they_are(stage: Stage) -> None:
    shut, wide = stage.draw(torch.zeros(4, 5)), stage.draw(mouths("shut", "a", "shut", "a"))
    assert stage.openness(shut).tolist() == pytest.approx([0] * 4, abs=1e-6)
    assert stage.openness(wide).tolist() == pytest.approx([0, 1, 0, 1], abs=0.1)
    order = [float(stage.openness(stage.draw(mouths(name).expand(4, 5)))[2]) for name in ("m", "i", "e", "a")]
    assert order == sorted(order)
    assert order[0] < 0.1 < order[1]


def test_faces_are_found_where_they_are_and_measured_there(stage: Stage) -> None:
    drawn = stage.draw(mouths("a", "e", "shut", "o"))
    assert not stage.offsets(drawn).any()
    moved = drawn.roll((-4, 3), (2, 3))
    assert stage.offsets(moved).tolist() == [[3, -4]] * 4
    assert stage.openness(moved).tolist() == pytest.approx(stage.openness(drawn).tolist(), abs=1e-4)


def test_identity_does_not_see_the_mouth_but_everything_else(stage: Stage) -> None:
    drawn, speaking = stage.draw(torch.zeros(4, 5)), stage.draw(mouths("a", "u", "f", "e"))
    assert stage.likeness_db(drawn, drawn) == pytest.approx(100)
    assert stage.likeness_db(speaking, drawn) > 60
    brighter = (drawn.int() + 5).clamp(max=255).to(torch.uint8)
    assert stage.likeness_db(brighter, drawn) == pytest.approx(20 * np.log10(255 / 5), abs=0.5)
    stranger = Stage(People.sample(1, torch.Generator().manual_seed(1)), NUMBERS, SIZE).draw(torch.zeros(4, 5))
    assert stage.likeness_db(stranger, drawn) < 20
    # Hands in other places are not another person.
    assert stage.likeness_db(drawn[[1, 1, 3, 3]], drawn) > stage.likeness_db(stranger, drawn)


def test_a_jump_where_clips_meet_is_seen() -> None:
    level = torch.arange(48) * 2
    pictures = level.view(-1, 1, 1, 1).expand(-1, 3, 4, 4).to(torch.uint8)
    assert border_ratio(pictures) == pytest.approx(1.0)
    jumping = (level + 6 * (torch.arange(48) // CLIP_FRAMES)).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).to(torch.uint8)
    assert border_ratio(jumping) == pytest.approx(4.0)
    assert border_ratio(torch.zeros(24, 3, 4, 4, dtype=torch.uint8)) == 0


def test_frames_speak_inside_phonemes_and_are_silent_far_from_them() -> None:
    talk = Talk.of("none", np.zeros(SAMPLE_RATE * 2, np.float32), [Phoneme("a", 0.5, 1.0), Phoneme("m", 1.0, 1.1)])
    times = (np.arange(48) + 0.5) / FPS
    assert np.array_equal(talk.speaking, (times > 0.5) & (times < 1.1) & (talk.speaking | (abs(times - 1.0) < 0.01)))
    assert np.array_equal(talk.silent, (times < 0.35) | (times > 1.25))
    assert talk.mouth.shape == (48, 5)
    assert talk.mouth[talk.speaking, 0].max() > 0.4
    assert talk.mouth[talk.silent].abs().max() < 0.1


def test_voices_speak_whole_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = SimpleNamespace(
        samples=np.sin(np.arange(12_000) * 0.3).astype(np.float32), phonemes=(Phoneme("a", 0.05, 0.7),)
    )
    monkeypatch.setattr(evaluate, "say", lambda text, voice: spoken)
    talk = speak("flite:awb", 3.2, seed=0)
    assert len(talk.samples) == 3 * SAMPLE_RATE
    assert len(talk.mouth) == 3 * FPS
    assert np.abs(talk.samples).max() == pytest.approx(0.5, abs=1e-3)
    starts = np.flatnonzero(np.diff(talk.speaking.astype(int)) == 1)
    assert len(starts) == 2
    assert starts[1] - starts[0] == pytest.approx((0.75 + evaluate.PAUSE_S) * FPS, abs=1)


def test_each_pattern_gives_a_voice(monkeypatch: pytest.MonkeyPatch) -> None:
    known = ("espeak:en", "espeak:en+f4", "espeak:en-us+f4", "espeak:en-us+m5", "flite:awb")
    monkeypatch.setattr(evaluate, "available_voices", lambda: known)
    # Festival is passed over, because nobody asked for it.
    assert held_out_voices(None) == ["flite:awb", "espeak:en+f4", "espeak:en-us+m5"]
    assert held_out_voices(["*us*"]) == ["espeak:en-us+f4"]
    with pytest.raises(InputError, match=r"--voices: none of this machine's 5 voices fits 'festival:\*'"):
        held_out_voices([*VOICES[:1], "festival:*"])
    monkeypatch.setattr(evaluate, "available_voices", lambda: ("espeak:de",))
    with pytest.raises(InputError, match=r"none of this machine's 1 voices fits .*; install flite"):
        held_out_voices(None)


class Recorder:
    """Stands for a generator: grey clips, each a little brighter, and what it was asked."""

    def __init__(self) -> None:
        self.settings = SimpleNamespace(format=load_settings([], {}).clip_format)
        self.requests: list[Any] = []

    def generate_rgb(self, request: Any) -> tuple[Any, Any]:
        self.requests.append(request)
        number = len(self.requests)
        return np.full((request.frames, 8, 6, 3), number, np.uint8), np.float16(number)


def test_clips_are_rendered_as_live() -> None:
    generator, samples = Recorder(), np.arange(24_000, dtype=np.float32)
    pictures = render(generator, "anna", samples)  # type: ignore[arg-type]  # it does what is needed of one
    assert pictures.shape == (3 * CLIP_FRAMES, 3, 8, 6)
    assert pictures[::CLIP_FRAMES, 0, 0, 0].tolist() == [2, 3, 4]
    before, *clips = generator.requests
    assert before.init_latent is None
    assert not before.audio.any()
    assert before.pose_position == evaluate.LOOP_FRAMES - CLIP_FRAMES
    assert [clip.init_latent for clip in clips] == [1, 2, 3]
    assert [clip.pose_position for clip in clips] == [0, 12, 24]
    assert all(len(clip.audio) == len(before.audio) == 40_000 for clip in clips)
    assert np.array_equal(clips[2].audio[-24_000:], samples)
    generator = Recorder()
    render(generator, "anna", samples, chained=False)  # type: ignore[arg-type]
    assert [clip.init_latent for clip in generator.requests] == [None] * 4


class Perfect:
    """Stands for a model that draws as well as the drawing does."""

    def __init__(self, prepared: dict[str, tuple[Path, Path]]) -> None:
        self.prepared = prepared

    def prepare_avatar(self, name: str, reference: Path, poses: Path) -> None:
        assert Image.open(reference).size[0] >= 128
        self.prepared[name] = (reference, poses)


def test_the_command_reports_what_it_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared: dict[str, tuple[Path, Path]] = {}
    drawn: list[Tensor] = []

    def small_settings(argv: list[str], environ: dict[str, str]) -> Any:
        return replace(load_settings(argv, environ), width=64, height=64)

    def of(pictures: Tensor, stage: Stage, talk: Talk) -> Figures:
        drawn.append(stage.draw(talk.mouth))
        return measured(drawn[-1], stage, talk)

    phonemes = (Phoneme("a", 0.05, 0.3), Phoneme("m", 0.3, 0.4), Phoneme("o", 0.4, 0.6))
    spoken = SimpleNamespace(samples=np.zeros(10_000, np.float32), phonemes=phonemes)
    measured = Figures.of
    monkeypatch.setattr(evaluate, "load_settings", small_settings)
    monkeypatch.setattr(evaluate, "say", lambda text, voice: spoken)
    monkeypatch.setattr(evaluate, "available_voices", lambda: ("flite:awb", "espeak:en+f4"))
    monkeypatch.setattr(evaluate, "load_generator", lambda folder, settings, device: Perfect(prepared))
    monkeypatch.setattr(evaluate, "render", lambda generator, avatar, samples, chained: None)
    monkeypatch.setattr(evaluate, "PERSON_S", 1.0)
    monkeypatch.setattr(Figures, "of", of)
    assert main(["--seconds", "2", "--people", "1", "--device", "cpu", "--steps", "3"]) == 0
    *lines, last = capsys.readouterr().out.strip().splitlines()
    figures = json.loads(last)
    assert figures["correlation"] == 1
    assert figures["identity_db"] == 100
    assert figures["head_offset_px"] == 0
    assert figures["open_in_speech"] > 0.2 > 0.05 > figures["open_in_silence"]
    assert figures["border_ratio"] == figures["drawn_border_ratio"] > 0
    assert figures["voices"] == ["flite:awb", "espeak:en+f4"]
    assert figures["steps"] == 3
    assert figures["other_people"]["identity_db"] == 100
    assert lines[0].startswith("voice or person")
    for row in ("flite:awb", "espeak:en+f4", "mean of voices", "person 1"):
        assert sum(line.startswith(row) for line in lines) == 1
    assert prepared["default avatar"] == (EMBEDDED / "reference.png", EMBEDDED / "poses")
    assert prepared["person 1"][1] == EMBEDDED / "poses"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seconds", "1"], "--seconds is 1.0; give 2 to 600"),
        (["--people", "-1"], "--people is -1; it must not be negative"),
        (["--steps", "0"], "--steps is 0; it must be at least 1"),
    ],
)
def test_flags_that_cannot_be(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(flags)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(evaluate, "held_out_voices", lambda patterns: [])
    with pytest.raises(InputError, match="missing does not exist"):
        main(["--model", str(tmp_path / "missing"), "--device", "cpu"])
    with pytest.raises(SettingsError, match="--device is 'abacus'"):
        main(["--device", "abacus"])
