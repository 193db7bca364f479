"""The render benchmark, on the miniature as if it were the server's model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from echo_rtc.bench import render
from echo_rtc.bench.__main__ import main
from tests.model.small import MINI, POSES


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "miniature.yaml"
    path.write_text(
        f"devices: cpu\nreference_image: {POSES / 'drawn_512' / '0.png'}\npose_dir: {POSES}\n"
        f"width: 64\nheight: 48\nsteps: 1\ncfg: 1.0\nmodel:\n  weights: {MINI / 'pretrained_weights'}\n"
    )
    return path


@pytest.fixture(autouse=True)
def threads() -> object:
    """The loader takes all cores; leave the other tests theirs."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_figures_of_a_model(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert render.main(["--config", str(config), "--clips", "2", "--clip-frames", "6"]) == 0
    lines = capsys.readouterr().out.splitlines()
    figures = json.loads(lines[-1])
    assert figures["fps"] > 0
    assert 0 < figures["shown_ms"] < 6000 / figures["fps"]
    assert 0 < figures["cpu_share"] < 100
    assert set(figures["stages_ms"]) == {"audio", "denoise", "decode", "colour"}
    assert (figures["size"], figures["steps"], figures["device"], figures["dtype"]) == ("64x48", 1, "cpu", "auto")
    whole = next(line for line in lines if line.startswith("whole clip"))
    assert 6 / figures["fps"] * 1000 == pytest.approx(float(whole.split()[2]), rel=0.01)


def test_impossible_requests_are_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "--config", str(config), "--clips", "0"]) == 2
    assert "--clips is 0" in capsys.readouterr().err
    assert main(["render", "--config", str(config), "--engine", "testcard"]) == 2
    assert "engine is testcard" in capsys.readouterr().err
    assert main(["render", "--config", str(config), "--clips", "x"]) == 2
    assert "--clips" in capsys.readouterr().err
