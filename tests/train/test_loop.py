"""The mathematics of schedule and average, and that a run is as long as it is told to be."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from echo_rtc.errors import InputError, SettingsError
from echo_rtc.train.loop import Average, Run, Schedule, best_device, make_folder
from tests.train.small import step_clock


def test_the_rate_rises_in_a_line_and_falls_along_a_cosine() -> None:
    schedule = Schedule(minutes=1, learning_rate=0.2, warmup=0.1)
    assert schedule.rate(0) == 0
    assert schedule.rate(0.05) == pytest.approx(0.1)
    assert schedule.rate(0.1) == pytest.approx(0.2)
    assert schedule.rate(0.1 + 0.9 / 3) == pytest.approx(0.2 * (0.01 + 0.99 * 0.75))
    assert schedule.rate(0.55) == pytest.approx(0.2 * 0.505)
    assert schedule.rate(1.0) == pytest.approx(0.002)
    falling = [schedule.rate(0.1 + 0.9 * i / 100) for i in range(101)]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_schedule_that_cannot_be_is_refused(value: float) -> None:
    with pytest.raises(SettingsError, match=r"--minutes is .*; it must be above 0"):
        Schedule(minutes=value, learning_rate=1e-3)
    with pytest.raises(SettingsError, match=r"--learning-rate is .*; it must be above 0"):
        Schedule(minutes=1.0, learning_rate=value)


class One(nn.Module):
    """A single number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([value]))


def test_the_average_forgets_early_values_faster_than_late() -> None:
    module = One(1.0)
    average = Average(module, decay=0.5)
    with torch.no_grad():
        module.value.fill_(12.0)
    average.update(module)
    # The first decay is (1 + 1) / (10 + 1).
    assert average.values["value"].item() == pytest.approx(2 / 11 * 1.0 + 9 / 11 * 12.0)
    expected = average.values["value"].item()
    for step in range(2, 40):
        with torch.no_grad():
            module.value.fill_(float(step))
        average.update(module)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.values["value"].item() == pytest.approx(expected, rel=1e-5)
    module.value.requires_grad_(False)
    average.copy_to(module)
    assert module.value.item() == pytest.approx(expected, rel=1e-5)


def test_the_average_keeps_types_and_buffers() -> None:
    module = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2).half())
    average = Average(module)
    module[0](torch.randn(4, 2))  # counts a batch and moves the running mean
    average.update(module)
    average.copy_to(module)
    assert module.state_dict()["0.num_batches_tracked"].dtype == torch.int64
    assert module.state_dict()["1.weight"].dtype == torch.float16
    assert module.state_dict()["0.running_mean"].any()


def square(module: One) -> Tensor:
    return (module.value - 3).square().sum()


def test_a_run_keeps_its_time_and_rate_and_saves_the_average(monkeypatch: pytest.MonkeyPatch) -> None:
    step_clock(monkeypatch, steps=20)
    module, schedule = One(0.0), Schedule(1.0, 0.1)
    run = Run([module], schedule, "test")
    rates: list[float] = []
    values: list[float] = []
    for step in run:
        assert step == len(values)
        rates.append(run.optimizer.param_groups[0]["lr"])
        run.descend(square(module))
        values.append(module.value.item())
    assert rates == pytest.approx([schedule.rate(step / 20) for step in range(20)])
    assert 0.5 < values[-1] < 3.2
    assert module.value.item() == run.averages[0].values["value"].item()
    assert min(values) < module.value.item() < values[-1]


def test_a_run_reports_the_first_step_and_then_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    step_clock(monkeypatch, steps=12)  # five seconds each
    module = One(0.0)
    run = Run([module], Schedule(1.0, 0.1, report_s=20.0), "test")
    with caplog.at_level(logging.INFO, "echo_rtc.train.loop"):
        for _ in run:
            run.descend(square(module), extra=torch.tensor(7.0))
    assert "step 1  loss 9.0000  extra 7.0000" in caplog.messages[0]
    assert len(caplog.messages) == 1 + 2 + 1
    assert caplog.messages[-1] == "test: done after 12 steps"


def test_gradients_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    step_clock(monkeypatch, steps=1)
    module = One(0.0)
    run = Run([module], Schedule(1.0, 0.1), "test")
    for _ in run:
        run.descend(1e6 * square(module))
    assert module.value.grad is not None
    assert module.value.grad.norm().item() == pytest.approx(1.0, rel=1e-4)


def test_frozen_parameters_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    step_clock(monkeypatch, steps=5)
    taught, frozen = One(0.0), One(0.5)
    frozen.requires_grad_(False)
    run = Run([taught, frozen], Schedule(1.0, 0.1), "test")
    for _ in run:
        run.descend(square(taught) + square(frozen))
    assert taught.value.item() != 0.0
    assert frozen.value.item() == 0.5


def test_devices() -> None:
    assert best_device("cpu") == torch.device("cpu")
    assert best_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for missing in ("cuda:99", "nonsense"):
        with pytest.raises(SettingsError, match=f"--device is '{missing}', which is not there"):
            best_device(missing)


def test_folders(tmp_path: Path) -> None:
    assert make_folder(tmp_path / "a" / "b").is_dir()
    assert make_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"the folder .*file cannot be made .*; name another"):
        make_folder(tmp_path / "file")
