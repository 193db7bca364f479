"""Weights: strict, safe, in every format, in the right order, and back out in our own layout."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from echo_rtc.errors import InputError
from echo_rtc.model import convert as command
from echo_rtc.model.audio import WhisperAudioEncoder, WhisperDims
from echo_rtc.model.autoencoder import AutoencoderConfig, PixelShuffleAutoencoder
from echo_rtc.model.description import ModelDescription
from echo_rtc.model.kl_autoencoder import LATENT_SCALE, KLAutoencoder, new_names
from echo_rtc.model.loading import Networks, load_networks, save_safetensors_layout
from echo_rtc.model.pose_encoder import PoseEncoder
from echo_rtc.model.weights import fill, read_state
from tests.model.small import AUDIO_WIDTH, MINI, denoising_unet, motion_config, randomise, reference_unet, unet_config

CPU = torch.device("cpu")


def load(folder: Path, **keys: str | None) -> Networks:
    description = ModelDescription.from_mapping({"weights": str(folder), **keys}, Path())
    return load_networks(description, CPU, torch.float32, lambda _: None)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """The miniature in the published layout, to be changed."""
    shutil.copytree(MINI, tmp_path / "mini")
    return tmp_path / "mini" / "pretrained_weights"


def change(path: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """Edits a state dict in place in its file."""
    state = torch.load(path, weights_only=True)
    edit(state)
    torch.save(state, path)


def refusal(folder: Path, **keys: str | None) -> str:
    with pytest.raises(InputError) as caught:
        load(folder, **keys)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


# ------------------------------------------------------------------------------------------------ reading one file


@pytest.mark.parametrize("name", ["state.pth", "state.bin", "state.pt", "state.safetensors"])
def test_every_format_is_read(tmp_path: Path, name: str) -> None:
    state = {"a.weight": torch.randn(3, 4), "b": torch.randn(2).half()}
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    found = read_state(path)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], value) for key, value in state.items())


def test_old_and_compressed_pytorch_files_are_read(tmp_path: Path) -> None:
    state = {"a.weight": torch.randn(3, 4)}
    path = tmp_path / "old.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert torch.equal(read_state(path)["a.weight"], state["a.weight"])
    torch.save(state, path)
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry.filename))
    assert torch.equal(read_state(packed)["a.weight"], state["a.weight"])


class _Trap:
    """Runs code when unpickled without care."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (Path.touch, (self.mark,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", ["archive", "old", "plain pickle"])
def test_a_file_that_runs_code_is_refused(tmp_path: Path, protocol: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / "evil.pth"
    content = {"weight": _Trap(mark)}
    if protocol == "plain pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=protocol == "archive")
    with pytest.raises(InputError, match=r"evil\.pth is damaged or holds more than plain tensors"):
        read_state(path)
    assert not mark.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "noise", "flipped"])
def test_damaged_files_are_refused_by_name(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"weights{suffix}"
    state = {"a": torch.randn(64, 64), "b": torch.randn(64)}
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    whole = path.read_bytes()
    damaged = {
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "noise": bytes(range(256)) * 8,
        "flipped": whole[:9] + bytes(byte ^ 0x5A for byte in whole[9:60]) + whole[60:],
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(InputError) as caught:
        read_state(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    cases: list[tuple[object, str]] = [
        ([torch.zeros(1)], "holds a list; named tensors are expected"),
        ({}, "holds a dict; named tensors are expected"),
        ({"state_dict": {"a": torch.zeros(1)}}, "holds 'state_dict', a dict; only tensors are expected"),
        ({3: torch.zeros(1)}, "holds 3, a Tensor"),
    ]
    for content, words in cases:
        torch.save(content, path)
        with pytest.raises(InputError) as caught:
            read_state(path)
        assert words in str(caught.value)
    (tmp_path / "weights.txt").touch()
    with pytest.raises(InputError, match=r"must end in one of \.safetensors"):
        read_state(tmp_path / "weights.txt")


# ------------------------------------------------------------------------------------------------- one whole network


def test_the_report_names_and_counts_what_does_not_fit() -> None:
    network = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    state = network.state_dict()
    for name in ("0.weight", "0.bias", "1.weight", "1.bias", "2.weight"):
        del state[name]
    state["3.weight"] = torch.zeros(3, 2)
    state["extra"] = torch.zeros(1)
    with pytest.raises(InputError) as caught:
        fill(network, state, Path("some.pth"), torch.float32)
    assert str(caught.value) == (
        "some.pth does not fit the Sequential of the model: 5 parameters are missing "
        "(0.weight, 0.bias, 1.weight, 1.bias, ...), 1 are unexpected (extra), "
        "1 have another shape (3.weight is (3, 2) instead of (2, 2))"
    )


def test_weights_are_copied_and_converted() -> None:
    network, source = nn.Conv2d(2, 2, 3), {"weight": torch.randn(2, 2, 3, 3), "bias": torch.zeros(2)}
    fill(network, source, Path("x"), torch.float32)
    source["weight"].zero_()
    assert network.weight.any()
    assert network.weight.is_contiguous(memory_format=torch.channels_last)
    fill(network, {name: value.half() for name, value in network.state_dict().items()}, Path("x"), torch.float32)
    assert network.weight.dtype == torch.float32


# --------------------------------------------------------------------------------------------- the published layout


def test_published_layout_loads_ready_for_use() -> None:
    networks = load(MINI / "pretrained_weights")
    for network in (networks.reference, networks.denoiser, networks.pose):
        parameters = list(network.parameters())
        assert not network.training
        assert {parameter.dtype for parameter in parameters} == {torch.float32}
        assert not any(parameter.requires_grad or parameter.is_meta for parameter in parameters)


def test_later_files_overlay_earlier_ones(published: Path) -> None:
    """base -> motion module -> denoising UNet; what the base lacks or has in another shape is no matter there."""
    base = published / "sd-image-variations-diffusers" / "unet" / "diffusion_pytorch_model.bin"
    bias, moved, norm = "conv_out.bias", "conv_in.bias", "conv_norm_out.weight"
    motion = "mid_block.motion_modules.0.temporal_transformer.proj_in.bias"
    change(
        base,
        lambda s: s.update({bias: torch.full((4,), 1.0), norm: torch.full((32,), 2.0), moved: torch.zeros(7)}),
    )
    change(published / "motion_module_acc.pth", lambda s: s.update({bias: torch.full((4,), 3.0)}))
    change(
        published / "denoising_unet_acc.pth", lambda s: (s.pop(norm), s.pop(bias), s.update({motion: torch.ones(64)}))
    )
    state = load(published).denoiser.state_dict()
    assert state[norm].unique().item() == 2.0  # only the base has it
    assert state[bias].unique().item() == 3.0  # base and motion module have it
    assert state[motion].unique().item() == 1.0  # motion module and denoising UNet have it
    assert state[moved].shape == (32,)  # the base's has another shape


def test_one_file_may_hold_the_whole_denoising_unet(published: Path) -> None:
    expected = load(published).denoiser.state_dict()
    torch.save(expected, published / "whole.pth")
    state = load(published, denoising_unet="whole.pth", motion_module=None, base_unet=None).denoiser.state_dict()
    assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_every_parameter_must_come_from_a_file(published: Path) -> None:
    change(published / "denoising_unet_acc.pth", lambda s: s.pop("conv_out.bias"))
    sentence = refusal(published)
    assert "denoising_unet_acc.pth does not fit the DenoisingUNet" in sentence
    assert "1 parameters are missing (conv_out.bias)" in sentence
    change(published / "reference_unet.pth", lambda s: s.update({"conv_out.bias": torch.zeros(4)}))
    assert "reference_unet.pth does not fit the ReferenceUNet of the model: 1 are unexpected" in refusal(published)
    change(
        published / "reference_unet.pth", lambda s: (s.pop("conv_out.bias"), s.update({"conv_in.bias": torch.zeros(5)}))
    )
    assert "conv_in.bias is (5,) instead of (32,)" in refusal(published)


@pytest.mark.parametrize(
    ("file", "repository"),
    [
        ("reference_unet.pth", "hf download BadToBest/EchoMimicV2 --local-dir {weights}"),
        ("denoising_unet_acc.pth", "hf download BadToBest/EchoMimicV2 --local-dir {weights}"),
        ("motion_module_acc.pth", "hf download BadToBest/EchoMimicV2 --local-dir {weights}"),
        ("pose_encoder.pth", "hf download BadToBest/EchoMimicV2 --local-dir {weights}"),
        ("sd-vae-ft-mse/config.json", "hf download stabilityai/sd-vae-ft-mse --local-dir {weights}/sd-vae-ft-mse"),
        ("sd-vae-ft-mse/diffusion_pytorch_model.bin", "hf download stabilityai/sd-vae-ft-mse --local-dir {weights}/"),
        (
            "sd-image-variations-diffusers/unet/diffusion_pytorch_model.bin",
            "hf download lambdalabs/sd-image-variations-diffusers --include 'unet/*' "
            "--local-dir {weights}/sd-image-variations-diffusers",
        ),
    ],
)
def test_a_missing_file_names_the_command_that_fetches_it(published: Path, file: str, repository: str) -> None:
    """And is found out before anything is read."""
    (published / file).unlink()
    if file != "reference_unet.pth":
        (published / "reference_unet.pth").write_bytes(b"damaged")
    sentence = refusal(published)
    assert str((published / file).with_suffix("")) in sentence
    assert f"fetch it with: {repository.format(weights=published)}" in sentence


def test_networks_that_do_not_fit_each_other_are_refused(published: Path) -> None:
    path = published.parent / "config.json"
    original = json.loads(path.read_text())
    vae = published / "sd-vae-ft-mse" / "config.json"

    def with_config(edit: Callable[[dict[str, Any]], object]) -> str:
        config = json.loads(json.dumps(original))
        edit(config)
        path.write_text(json.dumps(config))
        return refusal(published)

    assert "lacks the section pose_encoder" in with_config(lambda c: c.pop("pose_encoder"))
    pose = published / "pose_encoder.pth"
    change(
        pose, lambda s: [s.pop(key) for key in ("blocks.4.weight", "blocks.4.bias", "blocks.5.weight", "blocks.5.bias")]
    )
    sentence = with_config(lambda c: c["pose_encoder"].update(block_out_channels=[8, 8, 16]))
    assert "features of 1/4 of the sides, but the autoencoder's latents are 1/8" in sentence
    vae.write_text("{")
    assert "cannot be read as JSON" in with_config(lambda c: c["pose_encoder"].update(block_out_channels=[8, 8, 16]))


def test_old_names_of_the_autoencoders_attention_load(published: Path) -> None:
    expected = load(published).autoencoder
    assert isinstance(expected, KLAutoencoder)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(state: dict[str, Tensor]) -> None:
        for name in list(state):
            for new, before in old.items():
                if f".attentions.0.{new}." in name:
                    state[name.replace(f".{new}.", f".{before}.")] = state.pop(name)

    path = published / "sd-vae-ft-mse" / "diffusion_pytorch_model.bin"
    change(path, rename)
    assert "encoder.mid_block.attentions.0.query.weight" in torch.load(path, weights_only=True)
    found = load(published).autoencoder
    assert isinstance(found, KLAutoencoder)
    latents = torch.randn(1, 4, 4, 4)
    assert torch.equal(found.decode(latents), expected.decode(latents))


def test_new_names_leaves_other_names_alone() -> None:
    names = ["decoder.mid_block.attentions.0.to_q.weight", "quant_conv.weight", "key.weight"]
    assert list(new_names({name: torch.zeros(1) for name in names})) == names


@pytest.mark.parametrize(
    ("widths", "layers", "size", "convolved"), [((8, 16, 32, 32), 2, (16, 24), True), ((16, 8), 1, (10, 14), False)]
)
@torch.no_grad()
def test_the_autoencoder_is_diffusers(
    widths: tuple[int, ...], layers: int, size: tuple[int, int], convolved: bool
) -> None:
    theirs = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=layers,
        norm_num_groups=4,
        use_quant_conv=convolved,
        use_post_quant_conv=convolved,
    ).eval()
    randomise(theirs)
    ours = KLAutoencoder(dict(theirs.config))
    ours.load_state_dict(theirs.state_dict())
    assert (ours.scale, ours.latent_channels) == (2 ** (len(widths) - 1), 4)
    images = torch.rand(2, 3, *size) * 2 - 1
    expected = theirs.encode(images).latent_dist.mode() * LATENT_SCALE
    for layout in (torch.contiguous_format, torch.channels_last):
        latents = ours.encode(images.contiguous(memory_format=layout))
        torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-4)
        decoded = ours.decode(expected.contiguous(memory_format=layout))
        torch.testing.assert_close(decoded, theirs.decode(expected / LATENT_SCALE).sample, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("block_out_channels", [], "autoencoder.block_out_channels is []; a list of at least 1"),
        ("block_out_channels", [6], "which 4 norm groups must divide"),
        ("down_block_types", ["AttnDownEncoderBlock2D"], "autoencoder.down_block_types is ['AttnDownEncoderBlock2D']"),
        ("up_block_types", None, "autoencoder.up_block_types is None"),
        ("layers_per_block", "2", "autoencoder.layers_per_block is '2'; a whole number"),
        ("act_fn", "gelu", "autoencoder.act_fn is 'gelu'; only 'silu' is supported"),
    ],
)
def test_an_autoencoder_that_cannot_be_is_one_sentence(key: str, value: object, told: str) -> None:
    config = {"block_out_channels": [8], "norm_num_groups": 4, key: value}
    with pytest.raises(InputError, match=re.escape(told)):
        KLAutoencoder(config)


# -------------------------------------------------------------------------------------------------- our own layout


def embedded() -> tuple[Networks, WhisperAudioEncoder, dict[str, Any]]:
    """Networks like the embedded model's: a pixel shuffle autoencoder with 1/8 of the sides."""
    pose: dict[str, Any] = {"block_out_channels": [4, 8, 8, 8], "conditioning_embedding_channels": 32}
    networks = Networks(
        reference_unet(),
        denoising_unet(),
        PoseEncoder(pose),
        PixelShuffleAutoencoder(
            AutoencoderConfig(
                latent_channels=4, encoder_channels=(8, 8), decoder_channels=(8, 8), decoder_blocks=(1, 1)
            )
        ),
    )
    config = {
        "reference_unet": unet_config(),
        "denoising_unet": unet_config(),
        "denoising_unet_additional": motion_config(),
        "pose_encoder": pose,
    }
    return networks, WhisperAudioEncoder(WhisperDims(80, 150, AUDIO_WIDTH, 2, 1)), config


def test_own_layout_comes_back_as_it_was(tmp_path: Path) -> None:
    networks, audio, config = embedded()
    folder = tmp_path / "new" / "folder"
    save_safetensors_layout(folder, networks, audio, config, torch.float32)
    assert sorted(path.name for path in folder.iterdir()) == [
        "audio_encoder.safetensors",
        "autoencoder.safetensors",
        "config.json",
        "denoising_unet.safetensors",
        "pose_encoder.safetensors",
        "reference_unet.safetensors",
    ]
    found = load(folder)
    for name in ("reference", "denoiser", "pose", "autoencoder"):
        expected = getattr(networks, name).state_dict()
        state = getattr(found, name).state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], value) for key, value in expected.items()), name
    description = ModelDescription.from_mapping({"weights": str(folder)}, Path())
    read = WhisperAudioEncoder.load(description.audio_encoder, description.config["whisper"])
    sound = torch.randn(8000)
    assert torch.equal(read.hidden_states(sound), audio.eval().hidden_states(sound))


def test_saving_in_half_precision_leaves_the_networks_alone(tmp_path: Path) -> None:
    networks, audio, config = embedded()
    save_safetensors_layout(tmp_path, networks, audio, config, torch.float16)
    assert load_file(tmp_path / "denoising_unet.safetensors")["conv_in.weight"].dtype == torch.float16
    assert networks.denoiser.conv_in.weight.dtype == torch.float32
    assert next(audio.parameters()).dtype == torch.float32
    assert load(tmp_path).denoiser.conv_in.weight.dtype == torch.float32


@pytest.mark.parametrize("suffix", [".fp16.safetensors", ".fp16.bin"])
def test_half_precision_variants_are_loaded(published: Path, suffix: str) -> None:
    whole = load(published)
    plain = published / "sd-vae-ft-mse" / "diffusion_pytorch_model.bin"
    state = {name: value.half() for name, value in read_state(plain).items()}
    plain.unlink()
    variant = plain.with_name(f"diffusion_pytorch_model{suffix}")
    save_file(state, variant) if suffix.endswith("safetensors") else torch.save(state, variant)
    assert isinstance(whole.autoencoder, KLAutoencoder)
    loaded = load(published).autoencoder
    assert isinstance(loaded, KLAutoencoder)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, whole.autoencoder.state_dict()[name].half().float()), name


def test_the_autoencoder_may_be_named_by_its_file(published: Path) -> None:
    file = "sd-vae-ft-mse/diffusion_pytorch_model.bin"
    assert isinstance(load(published, vae=file).autoencoder, KLAutoencoder)


def test_a_folder_where_a_file_is_expected_is_told(published: Path) -> None:
    assert "unet is a folder; name the file in it" in refusal(
        published, reference_unet="sd-image-variations-diffusers/unet"
    )


def test_only_the_unaccelerated_weights_are_there(published: Path) -> None:
    for name in ("denoising_unet", "motion_module"):
        (published / f"{name}_acc.pth").rename(published / f"{name}.pth")
    sentence = refusal(published)
    assert "denoising_unet_acc.pth does not exist; the unaccelerated denoising_unet.pth is there" in sentence
    assert "--steps 30" in sentence
    assert f"hf download BadToBest/EchoMimicV2 --local-dir {published}" in sentence
    load(published, denoising_unet="denoising_unet.pth", motion_module="motion_module.pth")


def test_a_name_that_is_not_published_is_not_fetched(published: Path) -> None:
    sentence = refusal(published, reference_unet="mine.pth")
    assert sentence.endswith("mine.pth does not exist; check model.reference_unet in the configuration")


def test_the_base_unet_is_fetched_to_where_it_is_read(published: Path) -> None:
    sentence = refusal(published, base_unet="elsewhere/unet")
    assert f"--include 'unet/*' --local-dir {published / 'elsewhere'}" in sentence
    assert f"--include 'unet/*' --local-dir {published / 'variations'}" in refusal(published, base_unet="variations")


@pytest.mark.parametrize("name", ["reference_unet.pth", "sd-vae-ft-mse/diffusion_pytorch_model.bin"])
def test_a_pointer_of_git_lfs_is_told_as_one(published: Path, name: str) -> None:
    path = published / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1234\n")
    assert f"{path} is a pointer of Git LFS and not the file itself" in refusal(published)


def test_a_missing_file_of_our_own_layout_is_not_fetched(tmp_path: Path) -> None:
    networks, audio, config = embedded()
    save_safetensors_layout(tmp_path, networks, audio, config, torch.float16)
    (tmp_path / "autoencoder.safetensors").unlink()
    sentence = refusal(tmp_path)
    assert f"{tmp_path / 'autoencoder.safetensors'} does not exist" in sentence
    assert "hf download" not in sentence
    content = json.loads((tmp_path / "config.json").read_text())
    content["autoencoder"] = {"widths": 3}
    (tmp_path / "config.json").write_text(json.dumps(content))
    save_file({"a": torch.zeros(1)}, tmp_path / "autoencoder.safetensors")
    assert "the autoencoder in config.json cannot be built" in refusal(tmp_path)


def test_weights_are_not_stored_as_integers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--weights", str(MINI), "--output", str(tmp_path / "own"), "--dtype", "int8"])
    assert "argument --dtype: invalid choice: 'int8'" in capsys.readouterr().err


def test_published_weights_convert_to_our_own_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--weights", str(MINI / "pretrained_weights"), "--output", str(tmp_path / "own")]
    assert command.main(arguments) == 0
    before, after = load(MINI / "pretrained_weights"), load(tmp_path / "own")
    assert isinstance(after.autoencoder, KLAutoencoder)
    for name in ("reference", "denoiser", "pose"):
        state = getattr(after, name).state_dict()
        assert all(
            torch.equal(state[key], value.half().float()) for key, value in getattr(before, name).state_dict().items()
        )
    capsys.readouterr()
    assert command.main(arguments) == 2
    assert (
        capsys.readouterr().err == f"echo-rtc convert: the output {tmp_path / 'own'} is not empty; name a new folder\n"
    )
