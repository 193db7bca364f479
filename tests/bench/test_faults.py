"""A live call across a network that loses packets, for a short while; the long form is the bench ``faults``."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import aiohttp
import pytest

from echo_rtc.bench import faults
from echo_rtc.bench.faults import TOKEN, Fault, LossyRecording, Network
from echo_rtc.bench.support.calls import Heard
from echo_rtc.bench.sync import BEEP_AMPLITUDE, Beeps
from echo_rtc.errors import InputError

WATCHED_S = 3.0

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("iptables"), reason="needs root and iptables to make a network"
)


@needs_root
async def test_a_call_lives_through_loss_and_a_silent_network(tmp_path: Path) -> None:
    async with Network.made() as network, faults._server(network, str(tmp_path)) as server:
        url = f"http://{faults.SERVER}:{server.port}"
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as session:
            lossy = await faults._call(session, url, network, Fault("loss", 0.05, 4.0), WATCHED_S)
            silent = await faults._call(session, url, network, Fault("silence", 1.0, 3.0), WATCHED_S)
            freed_s, again_s = await faults._long_block(session, url, network, 0.0)
    for outcome in (lossy, silent):
        assert outcome.came_back, outcome
        assert outcome.underruns == 0
        assert outcome.beeps >= 2
        assert outcome.sync_ms <= 30
    assert lossy.lost_share < 0.15
    assert silent.gap_ms < 4_000
    assert freed_s < 7.0
    assert again_s < 5.0
    assert server.troubles == []


def test_a_beep_whose_beginning_was_lost_has_no_onset() -> None:
    beeps = Beeps((9_600, 48_000))
    blocks = [Heard(0.0, start, beeps.voice(start, 960)) for start in range(0, 96_000, 960)]
    whole = LossyRecording(fps=24, sound=blocks)
    assert [round(onset / 960) for onset in whole.sound_onsets()] == [10, 50]
    lossy = LossyRecording(fps=24, sound=[block for block in blocks if block.pts != 48_000])
    assert abs(beeps.voice(48_100, 1)[0]) < BEEP_AMPLITUDE
    assert [round(onset / 960) for onset in lossy.sound_onsets()] == [10]


def test_without_root_it_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(InputError, match="needs to be root on Linux"):
        faults.main([])
