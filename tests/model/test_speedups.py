"""What makes the model quicker: which settings fit together, and what each of them asks for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file
from torch import Tensor, nn

from echo_rtc.errors import InputError, SettingsError
from echo_rtc.model import generator as generator_module
from echo_rtc.model.attention import AttentionChoice
from echo_rtc.model.blocks import ResnetBlock
from echo_rtc.model.captured import Captures, StaticBank
from echo_rtc.model.compiled import compile_networks
from echo_rtc.model.description import ModelDescription
from echo_rtc.model.generator import ClipGenerator, GeneratorSettings
from echo_rtc.model.kernels import launch
from echo_rtc.model.motion import MotionModule
from echo_rtc.model.quantised import check_fp8, quantise_linear
from echo_rtc.model.unet3d import ClipConditions, DenoisingTransformer, KeysValues
from tests.model.small import AUDIO_WIDTH, MINI, MINI_FORMAT, TOKENS, denoising_unet, reference_unet


def settings(**changes: Any) -> GeneratorSettings:
    return GeneratorSettings(**{"format": MINI_FORMAT, "steps": 1, **changes})


def load(weights: Path = MINI / "pretrained_weights", **changes: Any) -> ClipGenerator:
    description = ModelDescription.from_mapping(
        {"weights": str(MINI / "pretrained_weights"), "tiny_vae": str(weights)}, Path()
    )
    return ClipGenerator.load(description, settings(**changes), lambda _: None)


# ----------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kernels": "cuda"}, "kernels is 'cuda'; it must be one of auto, triton, torch"),
        ({"attention": "flash"}, "attention is 'flash'; it must be one of auto, sdpa, xformers"),
        ({"compile_unet_mode": "fast"}, "compile_unet_mode is 'fast'"),
        ({"quantize_fp8_mode": "int4"}, "quantize_fp8_mode is 'int4'"),
        ({"vae": "small"}, "vae is 'small'; it must be one of full, tiny"),
        ({"compile_unet": True, "kernels": "triton"}, "compile_unet is set, but kernels is triton"),
    ],
)
def test_impossible_settings_are_refused_at_birth(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(**changes)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kernels": "triton"}, "kernels is triton, which needs a CUDA device; choose auto or torch"),
        ({"quantize_fp8": True}, "quantize_fp8 is set, but the device is cpu; it needs a GPU"),
    ],
)
def test_what_this_device_cannot_do_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(**changes)
    assert words in str(caught.value)


def test_a_gpu_without_eight_bits_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA GeForce RTX 3090")
    with pytest.raises(SettingsError, match=r"RTX 3090 has no eight-bit .* is 8\.6, 8\.9 is needed"):
        check_fp8(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    check_fp8(torch.device("cuda"))


@pytest.mark.parametrize("mode", ["dynamic", "weight-only"])
def test_torchao_is_given_the_linear_layers_that_fit(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[tuple[object, list[str]]] = []

    def quantize(network: nn.Module, config: object, filter_fn: Any) -> None:
        chosen.append((config, [name for name, module in network.named_modules() if filter_fn(module, name)]))

    fake = SimpleNamespace(
        quantize_=quantize,
        PerTensor=lambda: "per tensor",
        Float8WeightOnlyConfig=lambda: "weight-only",
        Float8DynamicActivationFloat8WeightConfig=lambda granularity: "dynamic",
    )
    monkeypatch.setitem(sys.modules, "torchao.quantization", fake)
    quantise_linear(denoising_unet(), mode)
    [(config, names)] = chosen
    assert config == mode
    assert any(name.endswith("attn1.to_q") for name in names)
    assert any("temporal_transformer" in name for name in names)
    assert not any("time_emb" in name for name in names)


def test_without_torchao_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(SettingsError, match="quantize_fp8 needs torchao here, which is not installed"):
        quantise_linear(denoising_unet(), "dynamic")


# ---------------------------------------------------------------------------------------------------------- attention


def heads(length: int) -> Tensor:
    return torch.randn(2, length, 3, 8, generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("kind", ["auto", "sdpa"])
def test_attention_is_pytorchs_on_the_cpu(kind: str) -> None:
    q, k, v = heads(5), heads(7), heads(7) + 1
    ours = AttentionChoice(kind)(q, k, v)
    expected = torch.softmax(torch.einsum("nlhd,nshd->nhls", q, k) / 8**0.5, -1)
    assert torch.allclose(ours, torch.einsum("nhls,nshd->nlhd", expected, v), atol=1e-5)


def test_the_plain_product_is_attention() -> None:
    q, k, v = heads(5), heads(7), heads(7) + 1
    choice = AttentionChoice()
    assert torch.allclose(choice._kernels["product"](q, k, v), choice(q, k, v), atol=1e-5)


def test_the_fastest_that_can_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = AttentionChoice()

    def impossible(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise RuntimeError("no such head")

    slow, fast = (lambda q, k, v: q), (lambda q, k, v: v)
    choice._kernels = {"impossible": impossible, "slow": slow, "fast": fast}
    times = iter([3.0, 2.0])

    def time_ms(compute: Any) -> float:
        compute()
        return next(times)

    monkeypatch.setattr("echo_rtc.model.attention._time_ms", time_ms)
    assert choice._fastest(heads(5), heads(7), heads(7)) == "fast"
    choice._kernels = {"impossible": impossible}
    with pytest.raises(SettingsError, match="no attention kernel here computes"):
        choice._fastest(heads(5), heads(7), heads(7))


def test_xformers_is_used_where_it_is_and_asked_for_where_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xformers.ops", SimpleNamespace(memory_efficient_attention=lambda q, k, v: q + v))
    q = heads(5)
    assert torch.equal(AttentionChoice("xformers")(q, q, q), 2 * q)
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    with pytest.raises(SettingsError, match="attention is xformers, which is not installed"):
        AttentionChoice("xformers")


def test_what_xformers_cannot_compute_another_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the decoder's one head of width 512."""

    def narrow_only(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.shape[3] > 8:
            raise NotImplementedError("No operator found for `memory_efficient_attention_forward` with inputs:")
        return q + v

    monkeypatch.setitem(sys.modules, "xformers.ops", SimpleNamespace(memory_efficient_attention=narrow_only))
    monkeypatch.setattr("echo_rtc.model.attention._time_ms", lambda compute: float(compute() is None))
    choice = AttentionChoice("xformers")
    choice._kernels["other"] = lambda q, k, v: v
    narrow, wide = heads(5), torch.ones(2, 5, 1, 512)
    choice._kernels = {name: choice._kernels[name] for name in ("xformers", "other")}
    assert torch.equal(choice(narrow, narrow, narrow), 2 * narrow)
    assert torch.equal(choice(wide, wide, wide), wide)
    assert [*choice.chosen.values()] == ["xformers", "other"]


def test_xformers_is_refused_where_nothing_would_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xformers.ops", SimpleNamespace(memory_efficient_attention=None))
    with pytest.raises(SettingsError, match="attention is xformers, which our own kernels on a GPU use"):
        load(attention="xformers")


# ----------------------------------------------------------------------------------------------------------- recording


def test_without_recording_everything_is_called() -> None:
    calls: list[int] = []

    def compute(x: Tensor) -> Tensor:
        calls.append(len(x))
        return x + 1

    captures = Captures(active=False)
    for length in (2, 2, 3):
        assert torch.equal(captures.run(("key",), compute, torch.zeros(length)), torch.ones(length))
    assert calls == [2, 2, 3]


def test_the_shelf_has_the_last_bank_at_the_same_place() -> None:
    first, second = (KeysValues({"a": (torch.full((2,), v), torch.full((2,), -v))}) for v in (1.0, 2.0))
    shelf = StaticBank()
    place = shelf.put(first)
    assert place.blocks["a"][0] is not first.blocks["a"][0]
    assert shelf.put(second) is place
    assert torch.equal(place.blocks["a"][1], torch.full((2,), -2.0))
    place.blocks["a"][0].zero_()
    shelf.put(second)  # it is there already, and is not copied again
    assert not place.blocks["a"][0].any()
    assert torch.equal(shelf.put(first).blocks["a"][0], torch.ones(2))


# ----------------------------------------------------------------------------------------------------------- compiling


@torch.no_grad()
def test_each_kind_of_layer_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the backend that compiles nothing: what counts is how many graphs there are, and that they are right."""
    compile_function, modes = torch.compile, set()

    def compile_eagerly(function: Any, mode: str, dynamic: bool) -> Any:
        modes.add(mode)
        return compile_function(function, backend="eager", dynamic=dynamic)

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    one_level: dict[str, Any] = {
        "layers_per_block": 3,
        "block_out_channels": [32],
        "down_block_types": ["CrossAttnDownBlock3D"],
        "up_block_types": ["CrossAttnUpBlock3D"],
    }
    network, reference = denoising_unet(**one_level), reference_unet(**one_level)
    latents, audio = torch.randn(1, 4, 2, 8, 8), network.project_audio(torch.randn(1, 2, TOKENS, AUDIO_WIDTH))
    bank = network.project_bank(reference(torch.randn(1, 4, 8, 8)))
    given = ClipConditions(audio, bank)
    expected = [network.halves(latents, 9, given, shift, True) for shift in (0, 3)]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    decode = compile_networks(network, lambda x: 2 * x, "max-autotune")
    for shift, one in zip((0, 3), expected, strict=True):
        ours = network.halves(latents, 9, given, shift, True)
        assert float((ours - one).norm() / one.norm()) < 1e-5
    assert torch.equal(decode(torch.ones(2)), torch.full((2,), 2.0))
    assert modes == {"max-autotune-no-cudagraphs"}
    kinds = (ResnetBlock, DenoisingTransformer, MotionModule)
    layers = len([module for module in network.modules() if isinstance(module, kinds)])
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs < layers * 2 / 3, (graphs, layers)
    torch._dynamo.reset()


# -------------------------------------------------------------------------------------------------------- tiny decoder


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder with a small distilled decoder of random weights."""
    torch.manual_seed(0)
    network = AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
    )
    save_file(network.state_dict(), tmp_path / "diffusion_pytorch_model.safetensors")
    config = {name: value for name, value in network.config.items() if name != "_use_default_values"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_the_distilled_decoder_takes_the_place_of_the_full_one(tiny: Path) -> None:
    ours = load(tiny, vae="tiny")
    latents = torch.randn(1, 4, 3, 8, 8)
    with torch.inference_mode():
        images = torch.cat(list(ours.images(latents)))
        theirs = AutoencoderTiny.from_pretrained(tiny).decode(latents[0].transpose(0, 1)).sample
    assert images.shape == (3, 3, 64, 64)
    assert torch.allclose(images, theirs, atol=1e-5)
    assert load(tiny).networks.tiny is None


def test_a_distilled_decoder_that_cannot_be_used_is_named(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere.config\.json cannot be read .*hf download madebyollin/taesd"):
        load(tmp_path / "nowhere", vae="tiny")
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps(config | {"latent_channels": 16}))
    with pytest.raises(InputError, match="latents of 16 channels at 1/8 of the sides; this model's have 4 at 1/8"):
        load(tiny, vae="tiny")
    (tiny / "config.json").write_text("[]")
    with pytest.raises(InputError, match="cannot be used"):
        load(tiny, vae="tiny")


def test_networks_without_a_distilled_decoder_are_told() -> None:
    whole = load()
    with pytest.raises(SettingsError, match="this model has no distilled decoder"):
        ClipGenerator(whole.networks, whole.audio_encoder, settings(vae="tiny"))


# ------------------------------------------------------------------------------------------------- what a GPU would get


def test_a_gpu_gets_the_fused_networks_in_the_form_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice alone, without a GPU: which networks are built, and in how many bits."""
    built: list[tuple[str, bool]] = []

    def decoder(vae: object, attend: object, small: bool) -> object:
        built.append(("decoder", small))
        return SimpleNamespace(decode=None)

    monkeypatch.setattr(launch, "AVAILABLE", True)
    monkeypatch.setattr(generator_module, "FusedDenoiser", lambda unet, attend, small: built.append(("unet", small)))
    monkeypatch.setattr(generator_module, "FusedDecoder", decoder)
    monkeypatch.setattr(generator_module, "quantise_linear", lambda unet, mode: built.append((mode, True)))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    networks = load().networks
    cases: list[tuple[tuple[int, int], dict[str, Any], list[tuple[str, bool]]]] = [
        ((9, 0), {}, [("decoder", False), ("unet", False)]),
        ((9, 0), {"quantize_fp8": True}, [("decoder", True), ("unet", True)]),
        ((9, 0), {"quantize_fp8": True, "kernels": "torch"}, [("dynamic", True)]),
        ((9, 0), {"quantize_fp8": True, "quantize_fp8_mode": "weight-only"}, [("weight-only", True)]),
        ((8, 9), {"quantize_fp8": True}, [("dynamic", True)]),
        ((9, 0), {"kernels": "torch"}, []),
    ]
    for capability, changes, expected in cases:
        built.clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        chosen = settings(device="cuda", dtype="float16", **changes)
        generator_module._quickest(networks, chosen, AttentionChoice("sdpa"))
        assert built == expected, changes
