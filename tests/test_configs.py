"""The shipped YAML files: every key is a setting, every key is explained, and the files mean what they say."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from echo_rtc.model.description import ModelDescription
from echo_rtc.resources import PACKAGE, PREFIX
from echo_rtc.settings import Settings, flag_table, load_settings

FOLDER = Path(__file__).parents[1] / "configs"
FILES = sorted(FOLDER.glob("*.yaml"))
UNITS = {row.flag.removeprefix("--").replace("-", "_"): row.unit for row in flag_table()}
MODEL_KEYS = {item.name for item in fields(ModelDescription)}


def keys_with_comments(path: Path) -> list[tuple[str, str]]:
    """Each key with the comment right above it (or "")."""
    result: list[tuple[str, str]] = []
    comment: list[str] = []
    for line in path.read_text().splitlines():
        text = line.strip()
        if text.startswith("#"):
            comment.append(text.lstrip("# "))
        elif match := re.match(r"([\w-]+):", text):
            result.append((match[1], " ".join(comment)))
            comment = []
        else:
            comment = []
    return result


def test_the_three_set_ups_are_there() -> None:
    assert [path.stem for path in FILES] == ["echomimic_v2", "embedded", "testcard"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_is_valid_and_says_what_it_says(path: Path) -> None:
    settings = load_settings(["--config", str(path)], {})
    content = dict(re.findall(r"^(\w+): (\S+)$", path.read_text(), re.MULTILINE))
    for key, text in content.items():
        value = getattr(settings, key)
        base = PACKAGE if text.startswith(PREFIX) else path.parent
        expected = str((base / text.removeprefix(PREFIX)).resolve()) if isinstance(value, Path) else text
        assert str(value).lower() == expected.lower(), key
    assert set(settings.model) <= MODEL_KEYS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_key_has_a_sentence_and_a_unit(path: Path) -> None:
    explained = keys_with_comments(path)
    names = [avatar.name for avatar in load_settings(["--config", str(path)], {}).avatars]
    assert explained
    for key, comment in explained:
        assert re.match(r"[A-Z].{20,}\.$", comment), f"{key} in {path.name} has no sentence: {comment!r}"
        if key in UNITS:
            unit = UNITS[key]
            assert re.search(rf"\b{re.escape(unit)}\b" if unit else r"No unit|no unit|A path|true or false", comment), (
                f"the comment of {key} in {path.name} lacks its unit {unit!r}"
            )
        elif key not in ("model", "avatars", *names):
            assert "A path" in comment, key


def test_the_published_set_up_is_the_published_one() -> None:
    path = FOLDER / "echomimic_v2.yaml"
    settings = load_settings(["--config", str(path)], {})
    assert (settings.width, settings.height, settings.steps, settings.cfg) == (512, 512, 6, 2.5)
    assert {name: getattr(settings, name) for name in ("use_init_latent", "low_ram", "audio_model_type")} == {
        item.name: item.default
        for item in fields(Settings)
        if item.name in {"use_init_latent", "low_ram", "audio_model_type"}
    }
    text = path.read_text()
    for repository in (
        "BadToBest/EchoMimicV2",
        "stabilityai/sd-vae-ft-mse",
        "lambdalabs/sd-image-variations-diffusers",
        "facebook/wav2vec2-base-960h",
    ):
        assert f"hf download {repository}" in text
    assert "pretrained_weights" in (FOLDER.parent / ".gitignore").read_text()


def test_the_default_set_up_needs_no_download() -> None:
    settings = load_settings([], {})
    assert settings.reference_image.is_file()
    assert (settings.pose_dir / "poses.npz").is_file()
    description = ModelDescription.from_mapping(settings.model, settings.model_base)
    assert description.own_layout
    networks = ("reference_unet", "denoising_unet", "pose_encoder", "vae", "audio_encoder")
    assert all(getattr(description, name).is_file() for name in networks)


def test_the_test_card_shows_silence_too() -> None:
    settings = load_settings(["--config", str(FOLDER / "testcard.yaml")], {})
    assert (settings.engine, settings.vad_threshold, settings.width, settings.height) == ("testcard", 0.0, 512, 512)
