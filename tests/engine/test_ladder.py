"""``--quality auto`` over cards of several speeds, which arithmetic stands for, and with a real worker process."""

from __future__ import annotations

from dataclasses import replace

import pytest

from echo_rtc.engine import ladder
from echo_rtc.engine.ladder import rungs, settled, walk
from echo_rtc.engine.testcard import CardLoader
from echo_rtc.engine.worker import WorkerSpec
from echo_rtc.errors import SettingsError
from echo_rtc.model.quality import RUNGS, Able, Choice, preset
from echo_rtc.model.trained import Trained
from echo_rtc.settings import Settings, load_settings
from tests.support.virtual import run

FULL = Settings(model={"weights": "w"}, steps=6, cfg=2.5)
ALL = Able(fp8=True, tiny=True)
H100_MS = Choice.of(FULL).cost


def card(speed: float, seen: list[str]) -> ladder.Measure:
    """A card of so many frames/s with everything; ``seen`` gets what it was measured at."""

    async def measure(settings: Settings) -> float:
        seen.append(str(settings.quality))
        return speed * H100_MS / Choice.of(settings).cost

    return measure


@pytest.mark.parametrize(
    ("speed", "able", "rung", "tried"),
    [
        (40.0, ALL, "best", ["best"]),
        (24.6, ALL, "high", ["best", "high"]),
        (18.0, ALL, "good", ["best", "good"]),
        (11.0, ALL, "low", ["best", "fair", "low"]),
        (5.0, ALL, "lowest", ["best", "lowest"]),
        (8.5, Able(tiny=True), "lowest", ["best", "lower", "lowest"]),
        (2.0, ALL, "lowest", ["best", "lowest"]),
    ],
)
def test_the_highest_rung_that_holds_is_taken(speed: float, able: Able, rung: str, tried: list[str]) -> None:
    seen: list[str] = []
    chosen = run(walk(rungs(FULL, able), card(speed, seen)))
    assert (chosen.rung.name, seen) == (rung, tried)
    assert chosen.holds == (speed > 2.0)
    assert chosen.rung.settings.quantize_fp8 == (able.fp8 and rung in ("low", "lowest"))
    assert f"quality {rung}" in str(chosen)
    assert ("does not hold" in str(chosen)) == (not chosen.holds)
    assert chosen.facts["rung"] == rung


def test_each_rung_gives_up_one_thing_more() -> None:
    base = Choice.of(FULL)
    assert [preset(rung, base) for rung in RUNGS] == [
        {},
        {"guided_steps": 3},
        {"guided_steps": 0},
        {"guided_steps": 0, "steps": 4},
        {"guided_steps": 0, "steps": 4, "quantize_fp8": True},
        {"guided_steps": 0, "steps": 4, "quantize_fp8": True, "vae": "tiny"},
        {"guided_steps": 0, "steps": 4, "quantize_fp8": True, "vae": "tiny", "width": 384, "height": 384},
    ]
    costs = [rung.choice.cost for rung in rungs(FULL, ALL)]
    assert costs == sorted(costs, reverse=True)
    assert len(costs) == len(RUNGS)
    assert preset("high", replace(base, guided_steps=1)) == {}
    assert "guided_steps" not in preset("lowest", replace(base, cfg=1.0))


def test_rungs_without_a_difference_are_left_out() -> None:
    embedded = replace(FULL, steps=1, cfg=1.0, width=384, height=384)
    trained = Trained(size=(384, 384), steps=(1,))
    assert [rung.name for rung in rungs(embedded, Able(trained=trained))] == ["best"]
    assert [rung.name for rung in rungs(FULL, Able())] == ["best", "high", "good", "fair", "lowest"]
    (rung,) = rungs(replace(FULL, explicit=frozenset({"steps", "guided_steps", "width", "height"})), Able())
    assert rung.name == "best"


def test_a_named_rung_is_a_preset_and_flags_win() -> None:
    config = ["--config", "configs/echomimic_v2.yaml"]
    named = load_settings([*config, "--quality", "lower"], {})
    assert (named.steps, named.guided_steps, named.quantize_fp8, named.vae, named.width) == (4, 0, True, "tiny", 512)
    flags = load_settings(
        [*config, "--quality", "lower", "--steps", "5", "--no-quantize-fp8"], {"ECHO_RTC_VAE": "full"}
    )
    assert (flags.steps, flags.quantize_fp8, flags.vae, flags.guided_steps) == (5, False, "full", 0)
    plain = load_settings(config, {})
    assert (plain.quality, plain.steps, plain.guided_steps) == (None, 6, None)
    with pytest.raises(SettingsError, match="quality is auto, which measures the devices of this machine"):
        load_settings(["--config", "configs/testcard.yaml", "--quality", "auto"], {})


@pytest.mark.parametrize(("clip_s", "holds"), [(0.01, True), (0.6, False)])
async def test_a_real_worker_is_measured_and_ended(clip_s: float, holds: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    settings = replace(FULL, quality="auto", devices="cpu", width=64, height=64, steps=1, cfg=1.0)

    def specs(tried: Settings) -> list[WorkerSpec]:
        return [WorkerSpec("card", CardLoader(tried.clip_format, clip_s, tried.steps))]

    found, chosen = await settled(settings, lines.append, Able, specs)
    assert chosen is not None
    assert (found.quality, chosen.holds) == ("best", holds)
    assert lines[-1] == str(chosen)
    assert 12 / chosen.frames_per_second == pytest.approx(clip_s, rel=3.0)
    assert await settled(found, lines.append, Able, specs) == (found, None)
