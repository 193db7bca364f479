"""The example of an aiortc application with an avatar in it, called by a peer of another connection."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from aiohttp import web

from echo_rtc.bench.support.calls import Caller
from echo_rtc.bench.sync import Beeps, Recording, offsets
from examples.avatar_app import PAGE, application

ROOT = Path(__file__).parents[2]
CARD: dict[str, object] = {
    "engine": "testcard",
    "config": str(ROOT / "configs" / "testcard.yaml"),
    "width": 160,
    "height": 160,
    "clip_frames": 6,
    "max_streams": 1,
}


def test_the_readme_shows_what_the_example_does() -> None:
    readme, example = ((ROOT / name).read_text() for name in ("README.md", "examples/avatar_app.py"))
    blocks = re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    [block] = [block for block in blocks if "avatars.animate" in block]
    for line in block.splitlines():
        words = line.strip().replace("microphone_track", "voices[0]")
        assert words.partition("(config")[0] in example, line


async def test_a_peer_of_the_application_gets_the_avatar_in_sync() -> None:
    beeps, recording = Beeps.lasting(6.0, gap_s=(0.35, 0.6)), Recording(24)
    runner = web.AppRunner(application(**CARD))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    caller, late = Caller(beeps.voice, recording.hear, recording.see), Caller(beeps.voice)
    try:
        async with aiohttp.ClientSession() as http:

            async def exchange(offer: str) -> str:
                async with http.post(f"{url}/offer", data=json.dumps({"sdp": offer, "type": "offer"})) as response:
                    response.raise_for_status()
                    return str((await response.json())["sdp"])

            async with http.get(url) as response:
                assert await response.text() == PAGE.read_text()
            await caller.connect(exchange)
            with pytest.raises(aiohttp.ClientResponseError) as full:
                await late.connect(exchange)
            assert full.value.status == 503
            await asyncio.sleep(7.5)
            # Whoever leaves gives the place free.
            await caller.close()
            again = Caller(beeps.voice)
            async with asyncio.timeout(20):
                while True:
                    try:
                        await again.connect(exchange)
                        break
                    except aiohttp.ClientResponseError:
                        await again.close()
                        again = Caller(beeps.voice)
                        await asyncio.sleep(0.5)
            await again.close()
    finally:
        await asyncio.gather(caller.close(), late.close())
        await runner.cleanup()
    assert len([number for _, _, number in recording.lamp if number is not None]) > 60
    # Whole blocks, nearly all of them: a machine that is busy with other things may cost some.
    steps = np.diff([heard.pts for heard in recording.sound])
    assert not (steps % 960).any()
    assert np.mean(steps == 960) > 0.9
    # Frames are encoded by aiortc's senders, one after the other; a busy machine makes them late by some of that.
    measured = offsets(caller, recording, settle_s=2.0)
    assert len(measured) >= 3
    assert np.abs(np.median(measured)) < 80
