"""The bench of all ways to compute: which there are, and what counts as too much."""

from __future__ import annotations

import json

import pytest
import torch

from echo_rtc.bench import combinations
from echo_rtc.bench.__main__ import main
from echo_rtc.bench.combinations import Combination, Outcome
from echo_rtc.clips import ClipFormat
from echo_rtc.model.generator import GeneratorSettings
from echo_rtc.model.kernels import launch
from tests.model.small import MINI

SLOWEST = GeneratorSettings(ClipFormat(width=64, height=64), steps=1, kernels="torch", attention="sdpa")


def test_the_miniature_passes_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert combinations.main([str(MINI), "--device", "cpu", "--size", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    figures = json.loads(lines[-1])
    assert figures["combinations"] == 1
    assert figures["failed"] == 0
    assert 0 < figures["worst_half"] < 0.2
    assert any(line.startswith("bfloat16") for line in lines)


def test_a_gpu_has_every_combination(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(launch, "AVAILABLE", True)
    monkeypatch.setattr(combinations, "find_spec", lambda name: object())
    slowest = GeneratorSettings(SLOWEST.format, device="cuda", kernels="torch", attention="sdpa")
    found = combinations.combinations(slowest, compiled=True)
    assert len({each.name for each in found}) == len(found) == 2 * (2 * 2 * 3 + 1) + 3
    exact = {(s.dtype, s.kernels, s.cuda_graphs, s.attention) for s in (each.settings for each in found)}
    for dtype in ("float32", "float16"):
        for kernels in ("torch", "triton"):
            assert (dtype, kernels, True, "xformers") in exact
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
