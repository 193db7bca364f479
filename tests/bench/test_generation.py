"""The generation benchmark, on the miniature; the full size needs a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from echo_rtc.bench import generation
from echo_rtc.bench.__main__ import main
from echo_rtc.bench.support.kernels import Kernel
from echo_rtc.clips import ClipFormat
from echo_rtc.model.description import ModelDescription
from echo_rtc.model.generator import ClipGenerator, GeneratorSettings
from tests.model.small import MINI


def settings(size: int, frames: int, steps: int, cfg: float) -> GeneratorSettings:
    return GeneratorSettings(ClipFormat(width=size, height=size, clip_frames=frames), steps=steps, cfg=cfg)


def test_clips_are_measured_after_the_warm_up() -> None:
    chosen = settings(64, 6, 1, 2.5)
    description = ModelDescription.from_mapping({"weights": str(MINI / "pretrained_weights")}, Path())
    generator = ClipGenerator.load(description, chosen, lambda _: None)
    audio = generator.audio_encoder
    figures = generation.measure(generator.networks, audio, chosen, clips=2)
    assert len(figures.clip_s) == len(figures.stages_ms) == 2
    assert figures.fps == pytest.approx(6000 / figures.clip_ms)
    assert set(figures.stages) == {"audio", "denoise", "decode", "colour"}
    assert sum(figures.stages.values()) < 1.1 * figures.clip_ms + 1
    assert figures.start_s > sum(figures.clip_s) / 2


def test_a_profile_tells_the_parts_of_steps_and_decoder() -> None:
    chosen = settings(64, 6, 1, 2.5)
    networks, audio = generation.random_networks(torch.device("cpu"), torch.float32, part=10)
    seen = generation.profiled(networks, audio, chosen, clips=1)
    assert {"products", "convolutions", "attention over pixels and sound"} <= set(seen.parts["steps"])
    assert "convolutions" in seen.parts["decoder"]
    assert sum(seen.parts["steps"].values()) == pytest.approx(sum(kernel.ms for kernel in seen.steps), abs=0.05)
    assert seen.steps[0].ms == max(kernel.ms for kernel in seen.steps)
    assert min(seen.steps_ms, seen.decoder_ms, seen.in_turn_ms, seen.at_once_ms) > 0
    assert len(seen.facts["kernels"]) <= 32  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3", "attention over pixels and sound"),
        ("narrow_attention", "attention over pixels and sound"),
        ("_frame_attention_kernel", "attention over frames"),
        ("nvjet_sm90_hsh_128x256_64x4_2x1_v_bz_coopA_NTN", "products"),
        ("sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", "convolutions"),
        ("_geglu_kernel", "feed-forward's first product with its gate"),
        ("_convolution_kernel", "convolutions"),
        ("_add_moments_kernel", "group norms, residuals, moments"),
        ("_add_layer_norm_kernel", "layer norms"),
        ("Memcpy DtoD (Device -> Device)", "copies and the rest"),
    ],
)
def test_kernels_belong_to_parts_by_their_names(name: str, part: str) -> None:
    assert Kernel(name, 1, 1.0).part == part


def test_operations_are_those_of_the_published_sizes() -> None:
    """What a step and the decoding of a frame take at 512 x 512 is known: 27.65 and 2.51 times 10^12."""
    one_step = generation.count_tflop(settings(512, 1, 1, 1.0))
    both = generation.count_tflop(settings(512, 1, 1, 2.5))
    whole = generation.count_tflop(settings(512, 1, 6, 2.5))
    assert both - one_step == pytest.approx(12.9 / 12, rel=0.02)
    assert whole - both == pytest.approx(5 * 27.65 / 12, rel=0.02)
    assert whole - 6 * (whole - both) / 5 == pytest.approx(30.2 / 12, rel=0.02)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("flags", "distilled"),
    [([], False), (["--vae", "tiny"], True), (["--sweep"], True), (["--sweep", "guided"], False)],
)
def test_the_distilled_decoder_is_made_where_it_is_needed(
    flags: list[str], distilled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bool] = []

    def networks(device: torch.device, dtype: torch.dtype, tiny: bool = False) -> tuple[object, object]:
        made.append(tiny)
        raise KeyboardInterrupt  # all that is measured would follow

    monkeypatch.setattr("echo_rtc.bench.generation.random_networks", networks)
    with pytest.raises(KeyboardInterrupt):
        generation.main(["--device", "cpu", "--dtype", "float32", *flags])
    assert made == [distilled]


def test_a_machine_without_a_gpu_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generation"]) == 2
    assert "PyTorch sees no CUDA device" in capsys.readouterr().err
    assert main(["generation", "--clips", "0"]) == 2
    assert "--clips is 0" in capsys.readouterr().err
    assert generation.ceiling_tflops(torch.device("cpu"), torch.float32) == 0
