"""Parity with the published code's numbers, and a check that tells a wrong number from a right one."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from echo_rtc.bench import parity
from echo_rtc.bench.parity import TOLERANCE, Comparison, Expected, compare
from echo_rtc.errors import InputError
from tests.bench.made import CFG, FPS, MARGINS, STEPS, make_folder
from tests.model.small import MINI

CASES = ("cfg1.0_fresh", "cfg1.0_init", "cfg2.5_fresh", "cfg2.5_init")


# ------------------------------------------------------------------------------------------------- the miniature


@pytest.fixture(scope="module")
def miniature() -> dict[str, Comparison]:
    return {comparison.stage: comparison for comparison in compare(MINI)}


def test_every_stage_of_the_miniature_agrees_with_published_code(miniature: dict[str, Comparison]) -> None:
    """The parity test. What is not counted are steps at which the miniature amplifies float32 rounding to percents."""
    for comparison in miniature.values():
        sys.stdout.write(f"{comparison.stage:<64} {comparison.relative_error:.1e}  {comparison.rounding:.1e}\n")
    worst = max(comparison.relative_error for comparison in miniature.values() if comparison.counts)
    assert worst <= TOLERANCE
    chaotic = {stage for stage, comparison in miniature.items() if not comparison.counts}
    assert all(".whole." in stage or stage.endswith(".guided_prediction") for stage in chaotic)
    assert len([stage for stage in chaotic if ".whole." not in stage]) <= 8  # of 24 steps


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_stage_is_compared(miniature: dict[str, Comparison], case: str) -> None:
    stages = {"unet0.sample", "unet0.output", "final_latents", "video", "whole.final_latents", "whole.video"}
    stages |= {f"step{step}.{what}" for step in range(6) for what in ("guided_prediction", "latents")}
    assert {f"{case}.{stage}" for stage in stages} <= miniature.keys()
    # Counted in every case, whatever rounding does to the steps.
    for stage in ("unet0.sample", "unet0.output", "step0.guided_prediction", "final_latents", "video"):
        assert miniature[f"{case}.{stage}"].counts


def test_conditioning_is_compared(miniature: dict[str, Comparison]) -> None:
    stages = {"whisper_hidden", "audio_tokens_margin2", "audio_tokens_margin6", "pose_features", "reference_latents"}
    assert stages <= miniature.keys()
    assert len([stage for stage in miniature if stage.startswith("reference_bank.")]) == 10
    assert {"cfg2.5_init.unet0.audio", "cfg2.5_init.unet0.pose"} <= miniature.keys()


# -------------------------------------------------------------------------------------------- another kind of folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("made"))


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of the made folder, to be changed."""
    return Path(shutil.copytree(made, tmp_path / "made"))


def edit(folder: Path, **changes: Tensor | None) -> None:
    path = folder / "expected.safetensors"
    tensors = load_file(path)
    for name, value in changes.items():
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    save_file(tensors, path)


def test_sizes_frames_steps_and_rates_are_found_out(made: Path) -> None:
    expected = Expected(made / "expected.safetensors")
    assert (expected.fps, expected.frames, sorted(expected.margins)) == (FPS, 5, list(MARGINS))
    assert expected.cases == ["cfg1.0_fresh", "cfg1.0_init", f"cfg{CFG}_fresh", f"cfg{CFG}_init"]
    for case in expected.cases:
        assert (expected.steps(case), expected.margin(case)) == (STEPS, MARGINS[1])


def test_fast_paths_agree_with_the_slow_ones_end_to_end(made: Path) -> None:
    comparisons = {comparison.stage: comparison for comparison in compare(made)}
    worst = max(comparisons.values(), key=lambda comparison: comparison.relative_error)
    assert worst.relative_error <= TOLERANCE, worst
    for start in ("fresh", "init"):
        assert comparisons[f"cfg{CFG}_{start}.whole.video"].counts
    assert len(comparisons) == 1 + len(MARGINS) + 2 + 7 + 4 * (4 + 2 * STEPS + 2 + 2)


def test_command_prints_a_table_and_one_line_of_json(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert parity.main([str(made)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["stage", "shape"]
    assert any("cfg3.0_init.step2.latents" in line and "1x4x5x6x10" in line for line in lines)
    figures = json.loads(lines[-1])
    assert 0 < figures["worst_relative_error"] <= TOLERANCE
    assert figures["not_counted"] == 0


def test_a_wrong_number_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the middle of one step: its own stage is wrong, and what must follow from it."""
    name = f"cfg{CFG}_init.step1.guided_prediction"
    tensor = load_file(folder / "expected.safetensors")[name]
    edit(folder, **{name: tensor * 1.01})
    assert parity.main([str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1])["worst_relative_error"] == pytest.approx(0.01, rel=0.2)
    wrong = [line.split()[0] for line in lines if float(_third(line)) > TOLERANCE]
    assert wrong == [name, f"cfg{CFG}_init.step1.latents"]


def _third(line: str) -> str:
    words = line.split()
    return words[2] if len(words) > 3 and words[2][0].isdigit() else "0"


def test_a_wrong_weight_is_told(folder: Path) -> None:
    """A tenth more of one bias of a late block. Only stages that it takes part in are wrong."""
    path = folder / "pretrained_weights" / "denoising_unet_acc.pth"
    state = torch.load(path, weights_only=True)
    state["up_blocks.2.attentions.0.transformer_blocks.0.attn2.to_out.0.bias"] *= 1.1
    torch.save(state, path)
    wrong = {comparison.stage for comparison in compare(folder) if comparison.relative_error > TOLERANCE}
    assert f"cfg{CFG}_fresh.unet0.output" in wrong
    assert "cfg1.0_init.whole.final_latents" in wrong
    assert not any(stage.startswith(("reference", "pose", "audio", "whisper")) for stage in wrong)
    assert not any(stage.endswith((".latents", "step0.video")) and ".whole." not in stage for stage in wrong)


def test_another_shape_or_nan_is_infinitely_wrong() -> None:
    ones = torch.ones(2, 3)
    assert Comparison.of("x", torch.ones(3, 2), ones).relative_error == float("inf")
    assert Comparison.of("x", ones * float("nan"), ones).relative_error == float("inf")
    assert not Comparison.of("x", ones, ones).relative_error


def test_rounding_excuses_chaos_and_nothing_else() -> None:
    """A function that amplifies its input's rounding a million times, and one that is plainly off by a percent."""
    x, tiny = torch.linspace(1, 2, 100), torch.tensor(1e-6)
    chaotic = Comparison.of(
        "x", torch.sin(1e6 * x), torch.sin(1e6 * (x + tiny)), lambda change: torch.sin(1e6 * change(x))
    )
    assert chaotic.relative_error > 0.1
    assert not chaotic.counts
    off = Comparison.of("x", 1.01 * x, x, lambda change: 1.01 * change(x))
    assert off.counts
    assert off.rounding < 1e-5


def test_folders_of_another_form_are_refused(folder: Path) -> None:
    for key in ("audio", "whisper_hidden", "noise"):
        copy = Path(shutil.copytree(folder, folder.parent / key))
        edit(copy, **{key: None})
        with pytest.raises(InputError, match=f"lacks the tensor {key}"):
            list(compare(copy))
    tokens = load_file(folder / "expected.safetensors")["audio_tokens_margin1"]
    edit(folder, audio_tokens_margin1=tokens.flip(0))
    with pytest.raises(InputError, match="no frame rate makes the audio tokens"):
        list(compare(folder))
    (folder / "expected.safetensors").write_bytes(b"{}")
    with pytest.raises(InputError, match="is damaged or no safetensors file"):
        list(compare(folder))
    (folder / "expected.safetensors").unlink()
    with pytest.raises(InputError, match="does not exist"):
        list(compare(folder))
