"""What ``bench speech`` makes of sound and pictures that came back at known times, and its last line."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from echo_rtc.bench import speech
from echo_rtc.bench.speech import Round, figures_of, main, tone
from echo_rtc.bench.support.calls import Heard
from echo_rtc.bench.sync import Recording
from echo_rtc.clips import MEDIA_RATE

BEGAN_S = 100.0
"""The wall clock at pts 0, of sound and picture."""


def caller() -> Any:
    def clock(rate: int) -> SimpleNamespace:
        return SimpleNamespace(wall_time=lambda pts: BEGAN_S + pts / rate)

    return SimpleNamespace(sound_clock=clock(MEDIA_RATE), picture_clock=clock(90_000))


def came(heard_s: tuple[float, float], moved_s: tuple[float, float]) -> Recording:
    """Sound and moving frames from and until these times (s)."""
    recording = Recording(24)
    said = tone(heard_s[1] - heard_s[0])
    recording.hear(Heard(0.0, round(heard_s[0] * MEDIA_RATE), said))
    recording.hear(Heard(0.0, round(heard_s[1] * MEDIA_RATE), np.zeros(960, np.int16)))
    for frame in range(100):
        moves = moved_s[0] <= frame / 24 < moved_s[1]
        recording.lamp.append((frame * 3750, 0.5, frame if moves else None))
    return recording


def test_a_rounds_figures_are_those_of_its_times() -> None:
    one = Round(BEGAN_S + 1.0, came((1.2, 2.26), (1.25, 2.375)), cut_s=BEGAN_S + 2.2, played_ms=1050.0)
    figures = figures_of(one, caller())
    assert figures is not None
    assert figures["first_sound_ms"] == pytest.approx(200, abs=1)
    assert figures["first_motion_ms"] == pytest.approx(250, abs=1)
    assert figures["interrupt_silence_ms"] == pytest.approx(60, abs=1)
    assert figures["interrupt_idle_ms"] == pytest.approx(175, abs=1)
    assert figures["position_error_ms"] == pytest.approx(10, abs=1)


@pytest.mark.parametrize("missing", ["sound", "lamp"])
def test_what_never_came_has_no_figures(missing: str) -> None:
    recording = came((1.2, 2.2), (1.25, 2.375))
    getattr(recording, missing).clear()
    assert figures_of(Round(BEGAN_S + 1.0, recording, BEGAN_S + 2.2, 1000.0), caller()) is None


@pytest.mark.parametrize("complete", [True, False])
def test_the_last_line_has_the_longest_of_each(
    complete: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("first_sound_ms", "first_motion_ms", "interrupt_silence_ms", "interrupt_idle_ms", "position_error_ms")
    rounds = [dict.fromkeys(names, value) for value in ((1.0, 3.0) if complete else ())]

    async def measured(*_: int) -> tuple[list[dict[str, float]], list[float], float]:
        return rounds, [1.0, -2.0] * 5 if complete else [], 4.0

    monkeypatch.setattr(speech, "measure", measured)
    assert main(["--rounds", "2"]) == (0 if complete else 1)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures == {**dict.fromkeys(names, 3.0 if complete else None), "sync_p95_ms": 2.0 if complete else None}
