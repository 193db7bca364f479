"""Windows of a corpus and the mouths at the same time; files that are no corpus."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from echo_rtc.errors import InputError
from echo_rtc.train.takes import Takes
from tests.train.small import write_corpus

CPU = torch.device("cpu")


def ramp(rate: int = 100) -> Takes:
    """Two takes of a second whose sound is the sample's number and whose mouth opens evenly: 0.6 and 0.3 a second."""
    audio = torch.arange(16_000, dtype=torch.int16).repeat(2, 1)
    times = (torch.arange(rate) + 0.5) / rate
    mouth = torch.stack([0.6 * times, 0.3 * times])[..., None].repeat(1, 1, 5)
    return Takes(audio, mouth, 16_000, rate)


def test_windows_are_the_samples_from_their_place_on() -> None:
    windows = ramp().windows(torch.tensor([0, 1]), torch.tensor([100, 15_990]), 10)
    assert windows.dtype == torch.float32
    assert torch.equal(windows[0] * 32768, torch.arange(100.0, 110.0))
    assert torch.equal(windows[1] * 32768, torch.arange(15_990.0, 16_000.0))


@pytest.mark.parametrize("rate", [25, 100])
def test_mouths_are_interpolated_in_time(rate: int) -> None:
    times = torch.tensor([0.0, 0.0131, 0.1, 0.377])
    mouths = ramp(rate).mouths(torch.tensor([0, 1]), torch.tensor([4000, 8000]), times)
    assert mouths.shape == (2, 4, 5)
    assert mouths[0, :, 0].tolist() == pytest.approx((0.6 * (0.25 + times)).tolist(), abs=1e-5)
    assert mouths[1, :, 4].tolist() == pytest.approx((0.3 * (0.5 + times)).tolist(), abs=1e-5)


def test_mouths_beyond_the_ends_stay_as_they_are_there() -> None:
    mouths = ramp().mouths(torch.tensor([0]), torch.tensor([0]), torch.tensor([0.0, 0.003, 0.998, 1.5]))
    assert mouths[0, :, 0].tolist() == pytest.approx([0.003, 0.003, 0.597, 0.597], abs=1e-5)


def test_random_places_use_all_room_and_leave_both_margins() -> None:
    take, place = ramp().random_places(4000, 15_000, 990, torch.Generator().manual_seed(0))
    assert set(take.tolist()) == {0, 1}
    assert place.min() == 15_000
    assert place.max() == 15_010


def test_takes_that_are_too_short_are_refused() -> None:
    with pytest.raises(InputError, match="takes of 16000 samples; 16001 are needed"):
        ramp().random_places(1, 16_000, 1, torch.Generator())


def test_a_corpus_is_read_back(tmp_path: Path) -> None:
    takes = Takes.load(write_corpus(tmp_path / "speech.safetensors", takes=2, seconds=1.0), CPU)
    assert takes.audio.shape == (2, 16_000)
    assert takes.audio.dtype == torch.int16
    assert takes.mouth.shape == (2, 100, 5)
    assert takes.mouth.dtype == torch.float32
    assert (takes.sample_rate, takes.track_rate) == (16_000, 100)
    # Loud where the mouth is open.
    loudness = takes.audio.float().abs().reshape(2, 100, 160).mean(2)
    assert torch.corrcoef(torch.stack([loudness[0], takes.mouth[0, :, 0]]))[0, 1] > 0.9


def test_what_is_no_corpus_is_told_in_one_sentence(tmp_path: Path) -> None:
    bare = {"audio": np.zeros((1, 10), np.int16), "mouth": np.zeros((1, 1, 5), np.float16)}
    save_file(bare, tmp_path / "no-rates")
    save_file({"audio": bare["audio"]}, tmp_path / "no-mouth", {"sample_rate": "16000", "track_rate": "100"})
    save_file(bare, tmp_path / "bad-rate", {"sample_rate": "fast", "track_rate": "100"})
    (tmp_path / "text").write_text("no tensors here, but enough letters to be read as a header")
    for name in ("no-rates", "no-mouth", "bad-rate", "text", "missing"):
        with pytest.raises(InputError, match=r"is not a speech corpus .* make one with the command speech") as caught:
            Takes.load(tmp_path / name, CPU)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
