"""The clip generator on the miniature: requests in, frames and final latents out, the same whatever the path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from echo_rtc.clips import ClipFormat, F32Array, YuvFrames
from echo_rtc.errors import InputError, RenderError, SettingsError
from echo_rtc.model.choreography import Moment
from echo_rtc.model.description import ModelDescription
from echo_rtc.model.generator import DTYPES, ClipGenerator, GeneratorSettings, fitting_dtype, resample
from echo_rtc.rendering import Avatar, RenderRequest
from tests.model.small import MINI, MINI_FORMAT, POSES

STEPS = 2
PLENTY = 1 << 30
"""More bytes than any features here."""

IMAGE = POSES / "drawn_512" / "0.png"
"""Any picture does as a reference."""


def settings(**changes: Any) -> GeneratorSettings:
    return GeneratorSettings(**{"format": MINI_FORMAT, "steps": STEPS, "cfg": 1.0, "untrained": True, **changes})


def load(**changes: Any) -> ClipGenerator:
    description = ModelDescription.from_mapping({"weights": str(MINI / "pretrained_weights")}, Path())
    return ClipGenerator.load(description, settings(**changes), lambda _: None)


def prepared(**changes: Any) -> ClipGenerator:
    generator = load(**changes)
    generator.prepare_avatar("anna", IMAGE, POSES)
    return generator


@pytest.fixture(scope="module")
def generator() -> ClipGenerator:
    return prepared()


def voice(samples: int = 40_000, seed: int = 0) -> F32Array:
    sound: F32Array = np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)
    return sound


def request(**changes: Any) -> RenderRequest:
    return RenderRequest(**{"avatar": "anna", "audio": voice(), "frames": 12, "pose_position": 0, "seed": 5, **changes})


def luma_difference(a: Any, b: Any) -> float:
    return float(np.abs(a.frames.y.astype(float) - b.frames.y.astype(float)).mean())


# -------------------------------------------------------------------------------------------------------- one clip


def test_a_clip_is_frames_and_a_final_latent(generator: ClipGenerator) -> None:
    result = generator.generate(request())
    assert result.frames.y.shape == (12, 64, 64)
    assert result.frames.u.shape == (12, 32, 32)
    assert result.frames.y.std() > 1
    assert result.final_latent is not None
    assert result.final_latent.shape == (4, 8, 8)
    assert result.final_latent.dtype == np.float16
    assert set(result.stages_ms) == {"audio", "denoise", "decode", "colour"}
    assert all(value > 0 for value in result.stages_ms.values())


def test_rgb_and_yuv_show_the_same(generator: ClipGenerator) -> None:
    rgb, latent = generator.generate_rgb(request())
    result = generator.generate(request())
    assert rgb.shape == (12, 64, 64, 3)
    assert rgb.dtype == np.uint8
    luma = 16 + rgb.astype(float) @ [65.481, 128.553, 24.966] / 255
    assert np.abs(luma - result.frames.y).max() < 1.5
    assert result.final_latent is not None
    assert np.array_equal(latent, result.final_latent)


@pytest.mark.parametrize("run", [0, 4, 5])
def test_frames_decoded_in_runs_are_those_of_the_whole_clip(generator: ClipGenerator, run: int) -> None:
    """Bit for bit on the CPU; the runs come before the result, which has the last of them."""
    whole = generator.generate(request())
    generator.settings = replace(generator.settings, decode_frames=run)
    came: list[YuvFrames] = []
    result = generator.generate(request(), on_frames=came.append)
    assert [len(frames) for frames in [*came, result.frames]] == {0: [12], 4: [4, 4, 4], 5: [5, 5, 2]}[run]
    joined = YuvFrames.joined([*came, result.frames])
    assert all(np.array_equal(getattr(joined, plane), getattr(whole.frames, plane)) for plane in ("y", "u", "v"))
    assert np.array_equal(result.final_latent, whole.final_latent)  # type: ignore[arg-type]


def test_the_same_request_gives_the_same_frames(generator: ClipGenerator) -> None:
    first, second = generator.generate(request()), generator.generate(request())
    assert luma_difference(first, second) == 0
    assert luma_difference(first, prepared().generate(request())) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 6},
        {"audio": voice(seed=1)},
        {"init_latent": np.ones((4, 8, 8), np.float16)},
        {"steps": 3},
        {"pose_position": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_everything_in_a_request_counts(generator: ClipGenerator, changes: dict[str, Any]) -> None:
    assert luma_difference(generator.generate(request()), generator.generate(request(**changes))) > 0


def test_the_reference_image_counts(generator: ClipGenerator, tmp_path: Path) -> None:
    path = tmp_path / "other.png"
    Image.effect_noise((50, 80), 90).convert("RGB").save(path)
    generator.prepare_avatar("other", path, POSES)
    assert luma_difference(generator.generate(request()), generator.generate(request(avatar="other"))) > 0


@pytest.mark.parametrize("low_ram", [False, True])
def test_poses_wrap_around_and_may_be_drawn_on_the_fly(generator: ClipGenerator, low_ram: bool) -> None:
    other = prepared(low_ram=low_ram)
    for position in (0, 2, 3_000_001):
        ours = generator.generate(request(pose_position=position % 3))
        assert luma_difference(ours, other.generate(request(pose_position=position))) < 0.01


def test_pose_features_are_encoded_once_each(generator: ClipGenerator) -> None:
    generator.prepare_avatar("fresh", IMAGE, POSES)
    track, asked = generator._avatar("fresh").poses, list[int]()
    encode = track._encode

    def counted(moments: Sequence[Moment]) -> torch.Tensor:
        asked.append(len(moments))
        return encode(moments)

    track._encode = counted
    speech = np.ones(4, np.float32)
    first = track.features(0, 0, 1, speech)
    assert torch.equal(track.features(0, 0, 1, speech), first)
    assert asked == [3], "of a sequence of three poses each once"
    track.features(0, 0, 1, 0 * speech)
    assert asked == [3, 4], "at rest they are not kept"
    track.features(0, 0, 1, np.array([1, 1, 0.5, 0], np.float32))
    assert asked == [3, 4, 2], "only those that are not wholly speech"


def test_a_frame_of_speech_is_the_same_in_any_clip(generator: ClipGenerator) -> None:
    track = generator._avatar("anna").poses
    whole, rest = (track.features(0, 0, 1, share * np.ones(4, np.float32)) for share in (1.0, 0.0))
    mixed = track.features(0, 0, 1, np.array([0, 1, 1, 0], np.float32))
    assert torch.equal(mixed[:, :, 1:3], whole[:, :, 1:3])
    assert torch.allclose(mixed[:, :, [0, 3]], rest[:, :, [0, 3]], atol=1e-6)


def test_pose_features_are_encoded_ahead(generator: ClipGenerator) -> None:
    generator.prepare_avatar("ahead", IMAGE, POSES)
    while generator.work_ahead():
        pass
    track = generator._avatar("ahead").poses

    def encode(moments: Sequence[Moment]) -> torch.Tensor:
        raise AssertionError("all of them are there")

    track._encode = encode
    kept = generator._avatar("anna").poses
    speech = np.ones(4, np.float32)
    assert torch.equal(track.features(0, 0, 1, speech), kept.features(0, 0, 1, speech))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pose_features_can_be_taken_from_before(dtype: str) -> None:
    one, other = prepared(dtype=dtype), prepared(dtype=dtype)
    assert one.poses("anna", PLENTY) is None, "not all of them are there"
    while one.work_ahead():
        pass
    kept = one.poses("anna", PLENTY)
    assert kept is not None
    assert one.poses("anna", kept.nbytes - 1) is None, "gigabytes are not copied to be thrown away"
    assert not other.take_poses("anna", kept[:2])
    assert not other.take_poses("anna", kept[..., :-1])
    other.prepare(request(pose_position=1))
    for _ in range(2):  # into memory that is there already, and again
        assert other.take_poses("anna", kept)
    assert not other.work_ahead()
    fresh = prepared(dtype=dtype)
    assert fresh.take_poses("anna", kept)
    speech = np.ones(5, np.float32)
    ours, *theirs = (each._avatar("anna").poses.features(1, 1, 1, speech) for each in (one, other, fresh))
    assert all(torch.equal(ours, features) for features in theirs)
    assert one.poses("unknown", PLENTY) is None


def test_poses_that_are_not_kept_in_memory_cannot_be_taken() -> None:
    frugal, whole = prepared(low_ram=True), prepared()
    while whole.work_ahead():
        pass
    kept = whole.poses("anna", PLENTY)
    assert kept is not None
    assert not frugal.take_poses("anna", kept)
    assert frugal.poses("anna", PLENTY) is None


def test_pose_features_are_those_of_each_number(generator: ClipGenerator) -> None:
    track = generator._avatar("anna").poses
    each = [track.features(number, number, 0, np.ones(1, np.float32)) for number in range(3)]
    run = track.features(1, 1, 1, np.ones(5, np.float32))
    assert run.shape == (1, 32, 5, 8, 8)
    for frame, number in enumerate((2, 0, 1, 2, 0)):
        assert torch.allclose(run[:, :, frame], each[number][:, :, 0], atol=1e-6)


def test_a_clip_of_another_length_uses_its_own_history(generator: ClipGenerator) -> None:
    """Overlapping clips are longer while the whole window stays as long: history is what comes before the frames."""
    tokens = generator.audio_tokens(voice(), 12)
    assert tokens.shape == (1, 12, 30, 32)
    assert torch.equal(generator.audio_tokens(voice(), 18)[:, 6:], tokens)
    assert torch.equal(generator.audio_tokens(voice(), 60)[:, 48:], tokens)
    assert generator.generate(request(frames=18)).frames.y.shape == (18, 64, 64)


def test_more_than_the_stored_32_frames_can_be_rendered(generator: ClipGenerator) -> None:
    assert len(generator.generate(request(frames=40, audio=voice(60_000), steps=1)).frames) == 40


def test_guidance_changes_the_picture() -> None:
    guided, plain = prepared(cfg=2.5), prepared(cfg=1.0)
    assert luma_difference(guided.generate(request()), plain.generate(request())) > 0.1


def test_guided_steps_reach_from_no_guidance_to_all_of_it() -> None:
    every, none = prepared(cfg=2.5).generate(request()), prepared(cfg=1.0).generate(request())
    steps = prepared(cfg=2.5).settings.steps
    as_all, as_none = (prepared(cfg=2.5, guided_steps=n).generate(request()) for n in (steps, 0))
    assert np.array_equal(as_all.frames.y, every.frames.y)
    assert np.array_equal(as_none.frames.y, none.frames.y)
    some = prepared(cfg=2.5, guided_steps=1).generate(request())
    assert luma_difference(some, every) > 0.01
    assert luma_difference(some, none) > 0.01


def test_a_picture_need_not_be_square() -> None:
    generator = prepared(format=ClipFormat(width=48, height=72, fps=25, clip_frames=5))
    result = generator.generate(request(frames=5, audio=voice(32_000 + 3200)))
    assert result.frames.y.shape == (5, 72, 48)
    assert result.final_latent is not None
    assert result.final_latent.shape == (4, 9, 6)


def test_bfloat16_is_nearly_the_same_first_step(generator: ClipGenerator) -> None:
    """One step: random weights are chaotic, more would tell nothing."""
    half = prepared(dtype="bfloat16")
    ours, theirs = generator.generate(request(steps=1)), half.generate(request(steps=1))
    assert luma_difference(ours, theirs) < 3


# ------------------------------------------------------------------------------------------------------- idle loop


@pytest.fixture
def poses(tmp_path: Path) -> Path:
    """Seven poses: not a multiple of a clip."""
    for number in range(7):
        (tmp_path / f"{number}.npy").write_bytes((POSES / f"{number % 3}.npy").read_bytes())
    return tmp_path


def loop_generator(poses: Path) -> ClipGenerator:
    generator = load(format=ClipFormat(width=64, height=64, clip_frames=3, history_s=0.5))
    generator.prepare_avatar("anna", IMAGE, poses)
    return generator


def test_idle_loop_has_a_frame_and_a_latent_for_each_pose(poses: Path) -> None:
    generator = loop_generator(poses)
    avatar = Avatar.joined([*generator.idle_loop("anna")])
    assert avatar.name == "anna"
    assert len(avatar.idle) == 7
    assert avatar.idle_latents is not None
    assert avatar.idle_latents.shape == (7, 4, 8, 8)
    assert avatar.idle_latents.dtype == np.float16


def test_idle_loop_is_chained_clips_that_close(poses: Path) -> None:
    """Made again by hand: clips at 0, 3 and 6 in silence, the first after one that ends where the loop does."""
    generator = loop_generator(poses)
    avatar = Avatar.joined([*generator.idle_loop("anna", seed=3)])
    assert avatar.idle_latents is not None
    silence = np.zeros(8000 + 2000, np.float32)
    quiet = RenderRequest("anna", silence, 3, pose_position=4, seed=3)
    before = generator.generate(quiet).final_latent
    for position in (0, 3, 6):
        clip = generator.generate(replace(quiet, pose_position=position, init_latent=before))
        before = clip.final_latent
        kept = min(3, 7 - position)
        assert np.array_equal(avatar.idle.y[position : position + kept], clip.frames.y[:kept])
        if kept == 3:
            assert before is not None
            assert np.array_equal(avatar.idle_latents[position + 2], before)


def test_idle_loop_without_chaining_starts_each_clip_fresh(poses: Path) -> None:
    generator = loop_generator(poses)
    loose = Avatar.joined([*generator.idle_loop("anna", chained=False)])
    clip = generator.generate(RenderRequest("anna", np.zeros(10_000, np.float32), 3, pose_position=3, seed=0))
    assert np.array_equal(loose.idle.y[3:6], clip.frames.y)


def test_a_sequence_shorter_than_a_clip_loops_too() -> None:
    generator = prepared(format=ClipFormat(width=64, height=64, clip_frames=8, history_s=0.5))
    assert sum(len(piece.idle) for piece in generator.idle_loop("anna")) == 3


# ---------------------------------------------------------------------------------------------------------- refusals


def test_impossible_requests_are_refused(generator: ClipGenerator) -> None:
    for changes, words in (
        ({"avatar": "bert"}, "the avatar 'bert' is not prepared"),
        ({"frames": 0}, "a clip of 0 frames"),
        ({"steps": 0}, "in 0 steps"),
        ({"init_latent": np.zeros((4, 8, 9), np.float16)}, r"has shape (4, 8, 9); this model needs (4, 8, 8)"),
    ):
        with pytest.raises(RenderError) as caught:
            generator.generate(request(**changes))
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"audio_margin": -1}, "audio_margin is -1"),
        ({"audio_model_type": "hubert"}, "audio_model_type is 'hubert'"),
        ({"dtype": "int4"}, "dtype is 'int4'"),
        ({"dtype": "float16"}, "dtype float16 needs a CUDA device"),
        ({"device": "quantum"}, "the device 'quantum' is unknown"),
        ({"device": "cuda:93"}, "the device cuda:93 does not exist"),
        ({"format": ClipFormat(width=60, height=64)}, "width is 60; this model needs a multiple of 8"),
        ({"format": ClipFormat(width=64, height=68)}, "height is 68; this model needs a multiple of 8"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(**changes)
    assert words in str(caught.value)


def test_the_fitting_number_format_can_be_computed_here() -> None:
    assert fitting_dtype("cuda:0") == "float16"
    layer = torch.nn.Conv2d(2, 2, 1).to(DTYPES[fitting_dtype("cpu")])
    assert torch.isfinite(layer(torch.ones(1, 2, 1, 1, dtype=layer.weight.dtype))).all()


def test_an_audio_encoder_of_another_width_is_refused(generator: ClipGenerator) -> None:
    class Wide:
        width = 768

        def hidden_states(self, audio: object) -> torch.Tensor:
            raise AssertionError

    with pytest.raises(InputError, match=r"768 values, but denoising_unet\.cross_attention_dim is 32"):
        ClipGenerator(generator.networks, Wide(), settings())


def test_wav2vec2_without_an_adapter_is_refused() -> None:
    with pytest.raises(InputError, match="adapter"):
        load(audio_model_type="wav2vec2")


# -------------------------------------------------------------------------------------------------------- resampling


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 48_000])
def test_resampling_keeps_time_and_pitch(rate: int) -> None:
    seconds = 2.5
    time_s = np.arange(round(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * 440 * time_s).astype(np.float32)
    out = resample(tone, rate, 16_000)
    assert out.dtype == np.float32
    assert len(out) == 40_000
    expected = np.sin(2 * np.pi * 440 * np.arange(40_000) / 16_000)
    assert np.abs(out - expected)[400:-400].max() < 0.02


def test_audio_at_another_rate_gives_the_same_tokens(generator: ClipGenerator) -> None:
    """A chirp, sampled at 48 kHz and at 16 kHz."""

    def chirp(rate: int) -> F32Array:
        time_s = np.arange(round(2.5 * rate)) / rate
        sound: F32Array = (0.3 * np.sin(2 * np.pi * (200 + 400 * time_s) * time_s)).astype(np.float32)
        return sound

    fast = ClipGenerator(
        generator.networks,
        generator.audio_encoder,
        settings(format=ClipFormat(width=64, height=64, sample_rate=48_000)),
    )
    ours, theirs = fast.audio_tokens(chirp(48_000), 12), generator.audio_tokens(chirp(16_000), 12)
    assert ours.shape == theirs.shape
    assert float((ours - theirs).norm() / theirs.norm()) < 0.1
