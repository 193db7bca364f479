"""The commands of the training one after another, on tiny pictures and networks; each goes on exactly where it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from echo_rtc.model.autoencoder import AutoencoderConfig, PixelShuffleAutoencoder
from echo_rtc.model.life import COLUMNS
from echo_rtc.train import autoencoder, budget, footage, package, talking_face
from echo_rtc.train.autoencoder import normalise
from echo_rtc.train.evaluate import tip_distances
from echo_rtc.train.ranks import Ranks
from echo_rtc.train.recipe import NETWORKS, SAMPLE_RATE
from tests.train.small import shrink, write_frozen

SIDE, FRAMES = 32, 26
TINY = AutoencoderConfig(
    latent_channels=8, encoder_channels=(8, 8, 8), decoder_channels=(8, 8, 8), decoder_blocks=(1, 1, 1)
)


class StepClock:
    """A minute lasts for so many looks of a training at its clock, however long they take."""

    def __init__(self, looks: int) -> None:
        self.looks, self.now = looks, -1

    def monotonic(self) -> float:
        self.now += 1
        return max(0, self.now - 1) * 60 / self.looks


def write_take(path: Path, seed: int) -> None:
    """A take of noise that is bright when its mouth is open."""
    rng = np.random.default_rng(seed)
    opening = 0.5 - 0.5 * np.cos(np.arange(FRAMES))
    frames = (rng.uniform(0, 120, (FRAMES, SIDE, SIDE, 3)) + 100 * opening[:, None, None, None]).astype(np.uint8)
    boxes = np.full((FRAMES, 5, 4), np.nan, np.float32)
    boxes[:, 0] = (0.25, 0.5, 0.75, 0.75)
    take = {
        "frames": frames,
        "reference": frames[0],
        "waveform": rng.uniform(-0.3, 0.3, SAMPLE_RATE * 4).astype(np.float32),
        "hands": np.full((FRAMES, 2, 21, 3), 0.5, np.float32),
        "mouth": np.zeros((FRAMES, 5), np.float32),
        "lids": np.zeros(FRAMES, np.float32),
        "life": np.zeros((FRAMES, len(COLUMNS)), np.float32),
        "boxes": boxes,
    }
    footage.save(path, footage.pack(take))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``takes`` and ``model``, and a recipe for them that is tiny."""
    shrink(monkeypatch)
    for section in ("reference_unet", "denoising_unet"):
        channels = {"in_channels": TINY.latent_channels, "out_channels": TINY.latent_channels}
        monkeypatch.setitem(NETWORKS, section, {**NETWORKS[section], **channels})
    pose = {"conditioning_embedding_channels": 32, "block_out_channels": [4, 8, 8, 16]}
    monkeypatch.setitem(NETWORKS, "pose_encoder", {**NETWORKS["pose_encoder"], **pose})
    for module, name, value in (
        (autoencoder, "AUTOENCODER", TINY),
        (talking_face, "AUTOENCODER", TINY),
        (autoencoder, "SIDE", SIDE),
        (footage, "POSE_SIDE", SIDE // 2),
        (budget, "LOOK_EVERY", 1),
    ):
        monkeypatch.setattr(module, name, value)
    (tmp_path / "takes").mkdir()
    (tmp_path / "model").mkdir()
    for number in range(2):
        write_take(tmp_path / "takes" / f"{number}.npz", number)
    write_frozen(tmp_path / "model")  # the audio encoder; its autoencoder is written over
    return tmp_path


def run(command: list[str], looks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=StepClock(looks).monotonic))
    name, *flags = command
    torch.manual_seed(3)
    assert {"autoencoder": autoencoder, "talking-face": talking_face, "package": package}[name].main(flags) == 0


def weights(folder: Path) -> dict[str, Tensor]:
    return {
        f"{path.stem}.{name}": value
        for path in sorted(folder.glob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def same(first: Path, second: Path) -> bool:
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def commands(place: Path, folder: Path) -> dict[str, list[str]]:
    takes, device = str(place / "takes"), ["--device", "cpu"]
    stage = ["talking-face", "--folder", str(folder), "--takes", takes, "--save-s", "1", *device]
    return {
        "autoencoder": [
            *("autoencoder", "--output", str(folder), "--pictures", takes, "--batch", "2", "--crop", "16"),
            *("--minutes", "1", *device),
        ],
        "latents": [*stage, "--stages", "latents", "--minutes", "1", "--batch", "2"],
        "pixels": [*stage, "--stages", "pixels", "--go-on", "--pixel-minutes", "1", "--pixel-batch", "2", "--no-graph"],
    }


def test_the_commands_train_and_go_on_exactly(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is run to its end, then again from its first checkpoint; both end with the same weights."""
    folder = place / "model"
    for stage, command in commands(place, folder).items():
        start, kept = place / f"{stage}-start", place / f"{stage}-kept"
        shutil.copytree(folder, start)

        def save(where: Path, *rest: object, kept: Path = kept, module: object = command[0]) -> None:
            budget.save_checkpoint(where, *rest)  # type: ignore[arg-type]
            if not kept.exists() and rest[1].step > 0:  # type: ignore[attr-defined]
                shutil.copytree(where, kept)

        module = autoencoder if stage == "autoencoder" else talking_face
        with monkeypatch.context() as patch:
            patch.setattr(module, "save_checkpoint", save)
            if stage == "autoencoder":
                patch.setattr(autoencoder, "SAVE_S", 1.0)
            run(command, 2, patch)
        for path in start.glob("*.safetensors"):  # what a checkpoint does not hold is as it was at the start
            shutil.copy(path, kept / path.name)
        with monkeypatch.context() as patch:
            run([*commands(place, kept)[stage], "--resume"], 2, patch)
        assert same(folder, kept), stage
        assert not same(folder, start), stage
    after = weights(folder)
    assert all(value.isfinite().all() for value in after.values())
    assert (folder / "pixels-known-0.jpg").is_file()
    run(["package", "--folder", str(folder), "--output", str(place / "packed")], 1, monkeypatch)
    assert json.loads((place / "packed" / "config.json").read_text())["denoising_unet"]["in_channels"] == 8


def test_latents_are_normalised_and_decode_as_before() -> None:
    torch.manual_seed(0)
    model = PixelShuffleAutoencoder(TINY)
    images = torch.randint(0, 255, (6, 3, SIDE, SIDE), dtype=torch.uint8)
    wanted = images.float() / 127.5 - 1
    before = model.decode(model.encode(wanted))
    normalise(model, images, Ranks(0, 1, torch.device("cpu")))
    latents = model.encode(wanted)
    assert torch.allclose(latents.mean(dim=(0, 2, 3)), torch.zeros(8), atol=1e-4)
    assert torch.allclose(latents.square().mean(dim=(0, 2, 3)), torch.ones(8), atol=1e-3)
    assert torch.allclose(model.decode(latents), before, atol=1e-5)


def test_fingertips_are_found_where_they_moved_to() -> None:
    rng = np.random.default_rng(0)
    picture = torch.from_numpy(rng.integers(0, 255, (1, 3, 96, 96), dtype=np.uint8))
    hands = torch.full((1, 2, 21, 3), 0.5)
    assert max(tip_distances(picture, picture, hands)) == 0
    assert max(tip_distances(picture, picture.roll(3, dims=-1), hands)) == pytest.approx(3 * 256 / 96)
    assert not tip_distances(picture, picture, torch.full((1, 2, 21, 3), 0.99)), "outside of the picture"
