"""The generation benchmark, on the miniature; the full size needs a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from echo_rtc.bench import generation
from echo_rtc.bench.__main__ import main
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


def test_operations_are_those_of_the_published_sizes() -> None:
    """What a step and the decoding of a frame take at 512 x 512 is known: 27.65 and 2.51 times 10^12."""
    one_step = generation.count_tflop(settings(512, 1, 1, 1.0))
    both = generation.count_tflop(settings(512, 1, 1, 2.5))
    whole = generation.count_tflop(settings(512, 1, 6, 2.5))
    assert both - one_step == pytest.approx(12.9 / 12, rel=0.02)
    assert whole - both == pytest.approx(5 * 27.65 / 12, rel=0.02)
    assert whole - 6 * (whole - both) / 5 == pytest.approx(30.2 / 12, rel=0.02)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generation"]) == 2
    assert "PyTorch sees no CUDA device" in capsys.readouterr().err
    assert main(["generation", "--clips", "0"]) == 2
    assert "--clips is 0" in capsys.readouterr().err
    assert generation.ceiling_tflops(torch.device("cpu"), torch.float32) == 0
