"""Which files a model consists of: both layouts, what may be left out, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from echo_rtc.errors import InputError, SettingsError
from echo_rtc.model.config import PUBLISHED
from echo_rtc.model.description import ModelDescription


def describe(mapping: dict[str, str | None], base: Path) -> ModelDescription:
    return ModelDescription.from_mapping(mapping, base)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "pretrained_weights"
    folder.mkdir()
    return folder


def test_published_layout_by_default(weights: Path) -> None:
    found = describe({"weights": "pretrained_weights"}, weights.parent)
    assert found.config == PUBLISHED
    assert not found.own_layout
    assert found.reference_unet == weights / "reference_unet.pth"
    assert found.denoising_unet == weights / "denoising_unet_acc.pth"
    assert found.motion_module == weights / "motion_module_acc.pth"
    assert found.base_unet == weights / "sd-image-variations-diffusers" / "unet"
    assert found.vae == weights / "sd-vae-ft-mse"
    assert found.audio_encoder == weights / "audio_processor" / "tiny.pt"
    assert found.wav2vec2_adapter is None


def test_own_layout_is_told_by_its_autoencoder(weights: Path) -> None:
    (weights / "config.json").write_text(json.dumps({**PUBLISHED, "autoencoder": {}}))
    found = describe({"weights": str(weights)}, Path("/elsewhere"))
    assert found.own_layout
    assert found.motion_module is None
    assert found.base_unet is None
    assert found.vae == weights / "autoencoder.safetensors"
    assert found.audio_encoder == weights / "audio_encoder.safetensors"


def test_given_paths_are_relative_to_the_weights(weights: Path) -> None:
    mapping: dict[str, str | None] = {
        "weights": "pretrained_weights",
        "denoising_unet": "denoising_unet.pth",
        "vae": "/absolute/vae",
        "motion_module": None,
    }
    found = describe(mapping, weights.parent)
    assert found.denoising_unet == weights / "denoising_unet.pth"
    assert found.vae == Path("/absolute/vae")
    assert found.motion_module is None


def test_a_default_file_may_have_another_format(weights: Path) -> None:
    (weights / "reference_unet.safetensors").touch()
    assert describe({"weights": str(weights)}, Path()).reference_unet == weights / "reference_unet.safetensors"


def test_config_beside_the_weights_counts_if_it_is_ours(weights: Path) -> None:
    beside = weights.parent / "config.json"
    beside.write_text('{"model_type": "something else"}')
    assert describe({"weights": str(weights)}, Path()).config == PUBLISHED
    beside.write_text('{"denoising_unet": {"block_out_channels": [32]}}')
    assert describe({"weights": str(weights)}, Path()).config["denoising_unet"] == {"block_out_channels": [32]}


def test_unknown_and_impossible_keys_are_refused(weights: Path) -> None:
    for mapping, words in (
        ({"weights": "w", "denoiser": "x"}, "model.denoiser is unknown; known are weights, config, reference_unet"),
        ({"weights": "w", "vae": None}, "model.vae is null"),
        ({"weights": None}, "model.weights is null"),
        ({"weights": ""}, "model.weights is ''"),
        ({}, "model.weights is missing"),
        ({"weights": "w", "vae": 3}, "model.vae is 3"),
    ):
        with pytest.raises(SettingsError) as caught:
            describe(mapping, weights.parent)  # type: ignore[arg-type]
        assert words in str(caught.value)


def test_a_missing_folder_names_the_command_that_fetches_it(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        describe({"weights": "pretrained_weights"}, tmp_path)
    folder = tmp_path / "pretrained_weights"
    assert f"{folder} does not exist" in str(caught.value)
    assert f"hf download BadToBest/EchoMimicV2 --local-dir {folder}" in str(caught.value)
    with pytest.raises(InputError) as caught:
        describe({"weights": "embedded", "motion_module": None}, tmp_path)
    assert "hf download" not in str(caught.value)


def test_unreadable_configurations_are_refused(weights: Path) -> None:
    bad = weights / "other.json"
    for content, words in (("{", "is not valid JSON"), ("[]", "holds no JSON object"), ("{}", "lacks denoising_unet")):
        bad.write_text(content)
        with pytest.raises(InputError) as caught:
            describe({"weights": str(weights), "config": str(bad)}, Path())
        assert str(bad) in str(caught.value)
        assert words in str(caught.value)
    bad.unlink()
    with pytest.raises(InputError, match="cannot be read: No such file"):
        describe({"weights": str(weights), "config": str(bad)}, Path())


def test_half_precision_files_are_found(weights: Path) -> None:
    (weights / "reference_unet.fp16.safetensors").touch()
    (weights / "named.fp16.pth").touch()
    found = describe({"weights": str(weights), "pose_encoder": "named.pth"}, Path())
    assert found.reference_unet == weights / "reference_unet.fp16.safetensors"
    assert found.pose_encoder == weights / "named.fp16.pth"


def test_a_file_is_no_weights_folder(weights: Path) -> None:
    (weights / "denoising_unet.pth").touch()
    with pytest.raises(InputError, match=r"unet\.pth, which is a file; name the folder that holds the weights"):
        describe({"weights": "denoising_unet.pth"}, weights)


def test_paths_in_messages_have_no_detours(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        describe({"weights": "../my weights"}, tmp_path / "configs")
    assert "/../" not in str(caught.value)
    assert f"--local-dir '{tmp_path / 'my weights'}'" in str(caught.value)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf" / "hub"


def fetched(cache: Path, repository: str, folder: str = "") -> Path:
    """A repository in the hub's cache, as ``hf download`` lays it out; its folder."""
    place = cache / f"models--{repository.replace('/', '--')}"
    snapshot = place / "snapshots" / "0a1b2c"
    (snapshot / folder).mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0a1b2c")
    return snapshot


def test_weights_in_the_hubs_cache_are_found(cache: Path, tmp_path: Path) -> None:
    whole = fetched(cache, "BadToBest/EchoMimicV2")
    vae = fetched(cache, "stabilityai/sd-vae-ft-mse")
    base = fetched(cache, "lambdalabs/sd-image-variations-diffusers", "unet")
    found = describe({"weights": "pretrained_weights", "vae": "sd-vae-ft-mse"}, tmp_path)
    assert (found.weights, found.vae, found.base_unet) == (whole, vae, base / "unet")
    assert found.reference_unet == whole / "reference_unet.pth"


def test_files_beside_the_weights_win_over_the_cache(cache: Path, weights: Path) -> None:
    fetched(cache, "BadToBest/EchoMimicV2")
    fetched(cache, "stabilityai/sd-vae-ft-mse")
    (weights / "sd-vae-ft-mse").mkdir()
    found = describe({"weights": str(weights)}, Path())
    assert (found.weights, found.vae) == (weights, weights / "sd-vae-ft-mse")


def test_whispers_folder_stands_for_its_file(weights: Path) -> None:
    (weights / "audio_processor").mkdir()
    (weights / "audio_processor" / "tiny.pt").touch()
    found = describe({"weights": str(weights), "audio_encoder": "audio_processor"}, Path())
    assert found.audio_encoder == weights / "audio_processor" / "tiny.pt"
