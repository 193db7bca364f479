"""The bench of viewers counts what is missing, and measures a server that is watched."""

from __future__ import annotations

import json
import os

import pytest

from echo_rtc.bench import viewers
from echo_rtc.bench.viewers import Measured, measure, missing_frames

SMALL = {"width": 160, "height": 160, "fps": 24}


@pytest.mark.parametrize(
    ("stamps", "missing"),
    [([0, 3750, 7500], 0), ([0, 7500], 1), ([7500, 0, 3750, 3750], 0), ([500, 500 + 24 * 3750], 23), ([], 1)],
)
def test_missing_frames_are_counted(stamps: list[int], missing: int) -> None:
    assert missing_frames(stamps, 24) == missing


async def test_viewers_of_a_server_are_measured() -> None:
    cores = os.sched_getaffinity(0)
    measured = await measure(2, "VP8", SMALL, seconds=2.0, settle_s=1.0)
    assert measured.viewers == 2
    assert 0.005 < measured.core < 1.5
    assert measured.frames == pytest.approx(48, abs=12)
    assert measured.dropped <= measured.frames
    assert measured.kbit_s > 20
    assert os.sched_getaffinity(0) == cores


def test_the_figures_are_the_last_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    async def scripted(count: int, codec: str, clip_format: dict[str, int], seconds: float) -> Measured:
        return Measured(count, 0.1 + 0.01 * count, 480, 0 if count == 1 else 3, 500.0, 5.0)

    monkeypatch.setattr(viewers, "measure", scripted)
    assert viewers.main(["--viewers", "11"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {
        "core_per_viewer": round(0.21 / 11, 4),
        "dropped": 3,
        "core_per_further_viewer": 0.01,
    }
