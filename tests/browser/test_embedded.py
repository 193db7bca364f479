"""The whole product as a newcomer meets it: the default configuration (of its avatars the first, each being half a
minute's work on a small machine), a spoken voice as the microphone, Chromium.

``python -m pytest tests/browser/test_embedded.py --picture FILE.png`` keeps a picture of the call: the README's.
"""

from __future__ import annotations

import base64
import wave
from pathlib import Path

import numpy as np
import pytest
import yaml

from echo_rtc.clips import F32Array
from tests.browser.conftest import ROOT, SAMPLE, PageFactory, ServerFactory
from tests.browser.visit import VIDEO

pytestmark = pytest.mark.asyncio(loop_scope="session")

LOUD = 0.02
"""RMS above which the returned sound is speech."""
QUIET = 0.0005
PAUSE_S = 4
WATCHED_MS = 26_000
"""Longer than the poses are drawn during the call, as they are where it follows the start at once."""

# The mouth of the default avatar, as shares of the picture: left, top, width, height.
MOUTH = (0.40, 0.42, 0.20, 0.12)

_WATCH = """
async ([left, top, width, height, ms]) => {
  const video = VIDEO;
  const box = [left * video.videoWidth, top * video.videoHeight, width * video.videoWidth, height * video.videoHeight]
    .map(Math.round);
  const canvas = new OffscreenCanvas(box[2], box[3]);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const rows = [];
  const end = performance.now() + ms;
  while (performance.now() < end) {
    await new Promise((go) => video.requestVideoFrameCallback(go));
    pen.drawImage(video, ...box, 0, 0, box[2], box[3]);
    const { data } = pen.getImageData(0, 0, box[2], box[3]);
    rows.push([loudnessForTests(), btoa(String.fromCharCode(...data.filter((_, i) => i % 4 === 1)))]);
  }
  return rows;
}
""".replace("VIDEO", VIDEO)


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody who speaks for some seconds, is silent for some, and begins again."""
    path = tmp_path_factory.mktemp("voice") / "voice.wav"
    with wave.open(str(SAMPLE)) as sample, wave.open(str(path), "wb") as file:
        file.setparams(sample.getparams())
        file.writeframes(bytes(2 * PAUSE_S * sample.getframerate()))
        file.writeframes(sample.readframes(6 * sample.getframerate()))
    return path


def _unlike(mouths: F32Array, others: F32Array) -> float:
    """By how many levels a mouth differs from the most similar of the others; the median over mouths (N, pixels)."""
    return float(np.median([np.abs(others - mouth).mean(axis=1).min() for mouth in mouths]))


async def test_the_mouth_moves_with_the_voice_and_rests_without(
    server: ServerFactory, page: PageFactory, voice: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    config = tmp_path / "embedded.yaml"
    default = yaml.safe_load((ROOT / "configs" / "embedded.yaml").read_text())
    config.write_text(yaml.safe_dump({**default, "avatars": {}}))
    running = await server(config)
    visit = await page(running.url, voice=voice, viewport={"width": 1280, "height": 800})
    await visit.start()
    await visit.listen()
    await visit.hears(above=LOUD)
    rows = await visit.page.evaluate(_WATCH, [*MOUTH, WATCHED_MS])
    picture: str | None = pytestconfig.getoption("--picture")
    if picture:
        await visit.hears(above=LOUD)
        await visit.state("Speaking")
        await visit.page.screenshot(path=picture)

    loudness = np.array([loud for loud, _ in rows])
    crops = [np.frombuffer(base64.b64decode(crop), np.uint8) for _, crop in rows]
    mouths: F32Array = np.stack(crops).astype(np.float32)
    speaking, resting = mouths[loudness > LOUD], mouths[loudness < QUIET]
    assert len(speaking) > 20, "the voice did not come back"
    assert len(resting) > 20, "the pauses did not come back"
    # The head sways, in speech as in silence: each mouth is compared with the one at rest that is most like it. A mouth
    # that moved in silence would be like those that speak.
    moved, rested = _unlike(speaking, resting[::2]), _unlike(resting[1::2], resting[::2])
    assert moved > 2 * rested, f"the mouth differed by {moved:.2f} levels in speech and by {rested:.2f} in silence"
    assert moved > 0.8, f"{moved:.2f} levels"
    await visit.end()
    [stream] = visit.streams
    await running.freed(stream)
