"""The command audio-encoder, small: targets at the right times, and an encoder that follows what it hears."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from echo_rtc.errors import InputError
from echo_rtc.model.audio import WhisperAudioEncoder
from echo_rtc.train.audio_encoder import correlation, main, targets
from echo_rtc.train.recipe import NETWORKS, WINDOW_SAMPLES
from echo_rtc.train.takes import Takes
from tests.train.small import AUDIO_WIDTH, shrink, step_clock, write_corpus


def test_correlation() -> None:
    a = torch.tensor([1.0, 2.0, 3.0, 5.0])
    assert correlation(a, 2 * a + 7) == pytest.approx(1.0)
    assert correlation(a, -a) == pytest.approx(-1.0)
    assert correlation(a, torch.tensor([1.0, -1.0, -1.0, 1.0])) == pytest.approx(1 / (2 * 8.75**0.5))
    assert correlation(a, torch.ones(4)) == 0.0


def test_targets_are_the_mouths_in_the_middle_of_each_position() -> None:
    times = (torch.arange(500) + 0.5) / 100
    takes = Takes(torch.zeros(1, 80_000, dtype=torch.int16), times[None, :, None].repeat(1, 1, 5), 16_000, 100)
    mouths = targets(takes, torch.tensor([0]), torch.tensor([16_000]), 3)
    assert mouths[0, :, 0].tolist() == pytest.approx([1.01, 1.03, 1.05], abs=1e-5)


def test_a_small_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    shrink(monkeypatch)
    step_clock(monkeypatch, steps=80)
    # Sound as it is, so that so few steps suffice; what augmentation does is tested with it.
    monkeypatch.setattr("echo_rtc.train.audio_encoder.augment", lambda sound, generator: sound)
    monkeypatch.setattr("echo_rtc.train.audio_encoder.HEARD_WINDOWS", 32)
    corpus, other = write_corpus(tmp_path / "corpus"), write_corpus(tmp_path / "other", takes=1)
    flags = ["--corpus", str(corpus), "--held-out", str(other), "--output", str(tmp_path / "out")]
    with caplog.at_level(logging.INFO):
        assert main([*flags, "--minutes", "1", "--batch", "8", "--device", "cpu"]) == 0
    for name in ("training", "held-out"):
        (line,) = (line for line in caplog.messages if line.startswith(f"{name} voices: correlation of open, width"))
        assert float(line.split(": ")[2].split()[0]) > 0.6, line
    encoder = WhisperAudioEncoder.load(tmp_path / "out" / "audio_encoder.safetensors", NETWORKS["whisper"])
    assert encoder.width == AUDIO_WIDTH
    hidden = encoder.hidden_states(torch.zeros(WINDOW_SAMPLES))
    assert hidden.shape == (WINDOW_SAMPLES // 320, 2, AUDIO_WIDTH)


def test_every_file_is_opened_before_anything_is_trained(tmp_path: Path) -> None:
    corpus = str(write_corpus(tmp_path / "corpus", takes=1))
    flags = ["--output", str(tmp_path / "out"), "--device", "cpu"]
    for files in (["--corpus", "missing"], ["--corpus", corpus, "--held-out", "missing"]):
        with pytest.raises(InputError, match="missing is not a speech corpus"):
            main([*flags, *files])
    (tmp_path / "out").rmdir()
    (tmp_path / "out").touch()
    with pytest.raises(InputError, match="cannot be made"):
        main([*flags, "--corpus", corpus])


def test_a_batch_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--output", str(tmp_path), "--corpus", "any", "--batch", "0"])
    assert caught.value.code == 2
    assert "--batch is 0; it must be at least 1" in capsys.readouterr().err
