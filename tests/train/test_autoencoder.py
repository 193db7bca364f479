"""The command autoencoder, small: its loss, its drawings, and what it leaves in its folder."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from echo_rtc.errors import InputError, SettingsError
from echo_rtc.model.autoencoder import AutoencoderConfig, PixelShuffleAutoencoder
from echo_rtc.train.autoencoder import edges_loss, main, random_scenes
from tests.train.small import step_clock

SMALL = ["--minutes", "1", "--size", "32", "--batch", "8", "--pool", "24", "--device", "cpu"]


def test_the_edges_loss_sees_edges_and_not_levels() -> None:
    image = torch.rand(2, 3, 16, 16)
    assert edges_loss(image, image) == 0
    assert edges_loss(image + 0.3, image).item() == pytest.approx(0, abs=1e-6)
    step = torch.zeros(1, 1, 8, 8)
    step[..., 4:] = 1.0
    # One of seven columns of differences at full size, one of three at half, the only one at a quarter.
    assert edges_loss(step, torch.zeros_like(step)).item() == pytest.approx(1 / 7 + 1 / 3 + 1)


def test_random_scenes_are_many_people() -> None:
    scenes = random_scenes(9, 32, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert scenes.shape == (9, 3, 32, 32)
    assert scenes.dtype == torch.uint8
    assert (scenes[0].float() - scenes[1:].float()).abs().mean((1, 2, 3)).min() > 5
    again = random_scenes(9, 32, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert torch.equal(scenes, again)


def test_a_small_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    step_clock(monkeypatch, steps=60)
    folder = tmp_path / "a" / "b"
    with caplog.at_level(logging.INFO):
        assert main(["--output", str(folder), *SMALL]) == 0
    errors = [float(line.split("l1 ")[1]) for line in caplog.messages if "l1" in line]
    assert errors[-1] < 0.7 * errors[0], errors
    assert any("PSNR on fresh drawings" in line for line in caplog.messages)

    model = PixelShuffleAutoencoder(
        AutoencoderConfig.from_mapping(json.loads((folder / "autoencoder.json").read_text()))
    )
    model.load_state_dict(load_file(folder / "autoencoder.safetensors"))
    scenes = random_scenes(16, 32, torch.device("cpu"), torch.Generator().manual_seed(7)).float() / 127.5 - 1
    with torch.inference_mode():
        latents = model.encode(scenes)
        restored = model.decode(latents)
    # Normalised on the pool, so nearly so on other drawings.
    assert latents.mean().abs() < 0.3
    assert 0.6 < latents.std() < 1.5
    assert (restored - scenes).abs().mean() < (scenes - scenes.mean()).abs().mean()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size", "40"], "--size is 40; it must be a multiple of 16"),
        (["--size", "0"], "--size is 0; it must be a multiple of 16"),
        (["--batch", "0"], "--batch is 0 and --pool 24; both must be at least 1"),
    ],
)
def test_impossible_sizes(flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--output", str(tmp_path), *SMALL, *flags])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_nothing_is_trained_that_could_not_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be made"):
        main(["--output", str(tmp_path / "file"), *SMALL])
    with pytest.raises(SettingsError, match="--minutes is 0"):
        main(["--output", str(tmp_path), *SMALL, "--minutes", "0"])
