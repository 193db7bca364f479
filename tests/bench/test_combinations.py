"""The bench of all ways to compute: which there are, and what counts as too much."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from echo_rtc.bench import combinations
from echo_rtc.bench.__main__ import main
from echo_rtc.bench.combinations import Combination, Outcome
from echo_rtc.bench.generation import weights_gb
from echo_rtc.bench.support.pictures import luma, psnr, ssim
from echo_rtc.clips import ClipFormat
from echo_rtc.model.generator import GeneratorSettings
from echo_rtc.model.kernels import launch
from tests.model.small import MINI

SLOWEST = GeneratorSettings(ClipFormat(width=64, height=64), steps=1, kernels="torch", attention="sdpa")


def test_the_miniature_passes_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert combinations.main([str(MINI), "--device", "cpu", "--size", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    figures = json.loads(lines[-1])
    assert figures["least_psnr_db"] > 25
    assert 0.8 < figures["least_ssim"] <= 1
    assert figures["combinations"] == 2
    assert figures["failed"] == 0
    assert figures["lossy"]["int8"][1] > 25
    assert 0 < figures["worst_half"] < 0.25
    assert any(line.startswith("bfloat16") for line in lines)


def test_random_weights_are_the_same_in_every_number_format(capsys: pytest.CaptureFixture[str]) -> None:
    """Networks of a tenth of the published widths; were their weights others, nothing would be alike."""
    assert combinations.main(["--device", "cpu", "--size", "64", "--frames", "2", "--only", "bfloat16"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["worst_half"] < 0.1
    assert figures["least_ssim"] > 0.9
    assert weights_gb(torch.float32) == pytest.approx(8.85, abs=0.01)


def test_a_combination_that_fails_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = replace(SLOWEST, untrained=True, low_ram=True)
    ways = [Combination("bad", replace(plain, vae="tiny")), Combination("bfloat16", replace(plain, dtype="bfloat16"))]
    monkeypatch.setattr(combinations, "combinations", lambda slowest, compiled: ways)
    assert combinations.main([str(MINI), "--device", "cpu", "--size", "64"]) == 1
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["not_computed"]["bad"].startswith("the distilled decoder")
    assert figures["failed"] == 1
    assert 0 < figures["worst_half"] < 0.25


def test_only_what_is_named_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["combinations", str(MINI), "--device", "cpu", "--size", "64", "--only", "float32"]) == 2
    assert "--only is float32, which no combination here has" in capsys.readouterr().err


def test_likeness_of_pictures_is_what_the_field_computes() -> None:
    """Of even pictures SSIM follows by hand; noise of 10 levels is 28.1 dB."""
    a, b = torch.full((2, 1, 32, 32), 100.0), torch.full((2, 1, 32, 32), 110.0)
    assert ssim(a, b) == pytest.approx((2 * 100 * 110 + 6.5025) / (100**2 + 110**2 + 6.5025))
    assert psnr(a, b) == pytest.approx(28.13, abs=0.01)
    noise = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    picture = 128 + 40 * noise
    assert ssim(picture, picture) == pytest.approx(1.0)
    assert psnr(picture, picture) == math.inf
    assert ssim(picture, 256 - picture) < -0.9
    assert luma(torch.tensor([[[[2.0]], [[0.0]], [[-1.0]]]])).item() == pytest.approx(0.299 * 255 + 0.587 * 128)


def test_full_size_and_a_folder_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["combinations", str(MINI), "--full-size", "--device", "cpu"]) == 2
    assert "leave one of them out" in capsys.readouterr().err


def test_a_gpu_has_every_combination(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(launch, "AVAILABLE", True)
    monkeypatch.setattr(combinations, "find_spec", lambda name: object())
    slowest = GeneratorSettings(SLOWEST.format, device="cuda", kernels="torch", attention="sdpa")
    found = combinations.combinations(slowest, compiled=True)
    assert len({each.name for each in found}) == len(found) == 2 * (2 * (1 + 3) + 1) + 3
    exact = {(s.dtype, s.kernels, s.cuda_graphs, s.attention) for s in (each.settings for each in found)}
    for dtype in ("float32", "float16"):
        for kernels, attention in (("torch", "sdpa"), ("triton", "auto"), ("triton", "xformers")):
            assert (dtype, kernels, True, attention) in exact
    assert [each.settings.quantize_fp8_mode for each in found if each.lossy] == ["auto", "dynamic", "weight-only"]
    assert {each.settings.dtype for each in found if each.settings.compile_unet} == {"float32", "float16"}


@pytest.mark.parametrize(
    ("latents", "images", "allowed", "passed"),
    [(1e-4, 2e-4, 1e-3, True), (1e-4, 2e-3, 1e-3, False), (0.3, 0.1, None, True), (float("nan"), 0.0, None, False)],
)
def test_what_is_too_much(latents: float, images: float, allowed: float | None, passed: bool) -> None:
    assert Outcome(Combination("any", SLOWEST), latents, images, allowed).passed == passed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["combinations", str(MINI), "--device", "cuda"]) == 2
    assert "PyTorch sees no CUDA device" in capsys.readouterr().err
