"""The command pose-encoder, small: after it the features say where the hands are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from echo_rtc.errors import InputError
from echo_rtc.model.autoencoder import PixelShuffleAutoencoder
from echo_rtc.model.pose_encoder import PoseEncoder
from echo_rtc.train import pose_bank
from echo_rtc.train.pose_encoder import main, mean_change
from echo_rtc.train.recipe import NETWORKS
from echo_rtc.train.scenes import PoseBank
from tests.train.small import shrink, step_clock

SIDE = 32


@pytest.fixture(scope="module")
def bank_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bank") / "bank.npz"
    flags = ["--sequences", "1", "--frames", "24", "--size", str(SIDE), "--processes", "1"]
    assert pose_bank.main(["--output", str(path), *flags]) == 0
    return path


def command(folder: Path, bank_file: Path) -> list[str]:
    return ["--folder", str(folder), "--pose-bank", str(bank_file), "--size", str(SIDE), "--device", "cpu"]


def test_the_change_of_the_latents_is_about_its_mean(bank_file: Path) -> None:
    torch.manual_seed(0)
    bank = PoseBank.load(bank_file, torch.device("cpu"))
    change = mean_change(PixelShuffleAutoencoder().eval(), bank, SIDE)
    assert change.shape == (24, 32, 2, 2)
    assert change.mean(0).abs().max() < 1e-4
    assert change.std() > 0


def test_a_small_training_tells_poses_apart(tmp_path: Path, bank_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)
    step_clock(monkeypatch, steps=10)
    torch.manual_seed(0)
    save_file(PixelShuffleAutoencoder().state_dict(), tmp_path / "autoencoder.safetensors")
    assert main([*command(tmp_path, bank_file), "--minutes", "1"]) == 0
    encoder = PoseEncoder(NETWORKS["pose_encoder"])
    encoder.load_state_dict(load_file(tmp_path / "pose_encoder.safetensors"))
    images = PoseBank.load(bank_file, torch.device("cpu")).images[0].permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        features = encoder(images)
    assert features.std(0).mean() > 0.01 * features.square().mean().sqrt()


def test_a_folder_without_an_autoencoder(tmp_path: Path, bank_file: Path) -> None:
    with pytest.raises(InputError, match=r"autoencoder\.safetensors"):
        main(command(tmp_path, bank_file))
