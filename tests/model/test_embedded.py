"""The model that ships, with its weights, on real speech of a voice that it was not trained on.

What is asked of it are bounds that a better trained one passes too: the mouth moves with the voice and is shut in
silence, the person stays the person, clips join, and its folder is whole. ``echo-rtc train evaluate`` measures more.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from echo_rtc.clips import F32Array, U8Array
from echo_rtc.errors import InputError
from echo_rtc.media.clipper import Clipper
from echo_rtc.model.description import ModelDescription
from echo_rtc.model.generator import ClipGenerator
from echo_rtc.model.image import load_reference_image
from echo_rtc.model.loading import load_networks
from echo_rtc.model.pose_drawing import draw_pose
from echo_rtc.model.pose_files import load_pose_sequence
from echo_rtc.model.weights import check, read_state
from echo_rtc.rendering import RenderRequest
from echo_rtc.train.evaluate import EMBEDDED, load_generator
from echo_rtc.train.speech import available_voices, say

VOICE = "flite:awb"
"""A recorded man from Scotland, held out of all training."""

PARTS = ("reference_unet", "denoising_unet", "pose_encoder", "autoencoder", "audio_encoder")

MOUTH = (slice(165, 210), slice(160, 225))
"""Rows and columns of the default avatar's mouth."""


@dataclass(frozen=True)
class Seen:
    """Frames (N, 384, 384, 3) of half a second of silence, speech, and silence again; how much of it is speech."""

    frames: U8Array
    reference: U8Array
    speech: slice


def rendered(generator: ClipGenerator, samples: F32Array) -> U8Array:
    """What the default avatar shows while these samples are heard."""
    latent, parts = None, []
    for clip in Clipper(generator.settings.format).push(samples):
        request = RenderRequest("default", clip.window, clip.frames, clip.first_frame, seed=0, init_latent=latent)
        frames, latent = generator.generate_rgb(request)
        parts.append(frames)
    return np.concatenate(parts)


@pytest.fixture(scope="module")
def generator() -> ClipGenerator:
    torch.set_num_threads(1)
    generator = load_generator(EMBEDDED, "cpu")
    for _ in generator.avatar_pieces("default", EMBEDDED / "reference.png", EMBEDDED / "poses"):
        pass
    return generator


@pytest.fixture(scope="module")
def seen(generator: ClipGenerator) -> Seen:
    if VOICE not in available_voices():
        pytest.skip("flite, a Debian package, is not installed")
    spoken = say("My name is Bob, and I am a baker. How are you today?", VOICE).samples[: 2 * 16_000]
    samples = np.zeros(4 * 16_000, np.float32)
    samples[8_000 : 8_000 + len(spoken)] = 0.5 * spoken / np.abs(spoken).max()
    reference = load_reference_image(EMBEDDED / "reference.png", 384, 384)
    return Seen(rendered(generator, samples), reference, slice(14, 58))


def test_the_mouth_moves_with_the_voice_and_rests_in_silence(seen: Seen) -> None:
    mouths = seen.frames[:, *MOUTH].astype(float)
    moved = np.abs(mouths - mouths[6]).mean(axis=(1, 2, 3))
    assert moved[seen.speech].max() > 8
    assert moved[seen.speech].mean() > 2 * moved[-12:].mean()


def test_the_person_is_the_one_of_the_reference_image(seen: Seen) -> None:
    error = (seen.frames[:12, :200].astype(float) - seen.reference[:200]) ** 2
    assert -10 * np.log10(error.mean() / 255**2) > 24


def test_nothing_jumps_where_clips_meet(seen: Seen) -> None:
    changes = np.abs(np.diff(seen.frames.astype(float), axis=0)).mean(axis=(1, 2, 3))
    border = np.arange(1, len(seen.frames)) % 12 == 0
    assert changes[border].mean() < 2.5 * changes[~border].mean()


def test_lids_shut(generator: ClipGenerator, seen: Seen) -> None:
    """Of the idle poses a frame with shut lids: the eyes differ from those of a frame before."""
    idle = generator._avatar("default").poses.choreography.idle
    lids = np.array([moment.life[3] for moment in idle if moment.life is not None])
    shut = int(np.argmax(lids == 1))
    first = max(0, shut - 8)
    silence = np.zeros(48 * 16_000 // 24 + 8_000, np.float32)
    frames, _ = generator.generate_rgb(RenderRequest("default", silence, 12, first, seed=0))
    eyes = frames[:, 110:140, 140:245].astype(float)
    open_frame = int(np.argmin(lids[first : first + 12]))
    assert np.abs(eyes[shut - first] - eyes[open_frame]).mean() > 4


# ----------------------------------------------------------------------------------------------------------- the folder


def test_the_folder_is_whole_and_small() -> None:
    files = [EMBEDDED / f"{part}.safetensors" for part in PARTS]
    assert sum(path.stat().st_size for path in files) <= 40_000_000
    assert (EMBEDDED / "config.json").is_file()
    card = (EMBEDDED / "MODEL_CARD.md").read_text(encoding="utf-8")
    for word in ("Apache-2.0", "synthetic", "cannot"):
        assert word in card
    for avatar in (EMBEDDED, EMBEDDED / "omar", EMBEDDED / "nia"):
        assert len(load_pose_sequence(avatar / "poses")) == 1728
        assert load_reference_image(avatar / "reference.png", 384, 384).shape == (384, 384, 3)


@pytest.mark.parametrize("part", PARTS)
def test_weights_are_finite_halves(part: str) -> None:
    state = read_state(EMBEDDED / f"{part}.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float16}
    assert all(value.isfinite().all() for value in state.values())


def test_the_weights_fit_strictly() -> None:
    """No parameter is missing, left over or of another shape; loading refuses a file that lacks one."""
    description = ModelDescription.from_mapping(
        {"weights": str(EMBEDDED), "motion_module": None, "base_unet": None}, Path()
    )
    assert description.own_layout
    networks = load_networks(description, torch.device("cpu"), torch.float32, lambda _: None)
    for network, part in ((networks.reference, "reference_unet"), (networks.denoiser, "denoising_unet")):
        state = read_state(EMBEDDED / f"{part}.safetensors")
        check(network, state, EMBEDDED)
        del state[next(iter(state))]
        with pytest.raises(InputError, match="1 parameters are missing"):
            check(network, state, EMBEDDED)


def test_the_pose_encoder_tells_poses_apart(generator: ClipGenerator) -> None:
    size = generator.trained.pose_size
    assert size is not None
    drawn = [draw_pose(pose, *size) for pose in load_pose_sequence(EMBEDDED / "poses")[::36]]
    images = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        features = generator.encode_poses(images).float()
    assert features.std(0).mean() > 0.02 * features.square().mean().sqrt()
