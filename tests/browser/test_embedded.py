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
WATCHED_MS, MOST_WATCHES = 13_000, 5
"""Each watch sees a pause and a phrase. A machine that is too slow for real time shows few rendered frames at first:
it is watched again."""
LEAST_FRAMES = 60
MOVED, SHARE = 5.0, 0.1
"""A mouth that differs by more than so many levels from all at rest has moved; at least this share of those seen in
speech has, and less of those in silence."""

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


def _moved(mouths: F32Array, rest: F32Array) -> float:
    """Share of the mouths (N, pixels) that are like none at rest (R, pixels)."""
    return float(np.mean([np.abs(rest - mouth).mean(axis=1).min() > MOVED for mouth in mouths]))


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
    rows: list[tuple[float, str]] = []
    for _ in range(MOST_WATCHES):
        rows += await visit.page.evaluate(_WATCH, [*MOUTH, WATCHED_MS])
        loudness = np.array([loud for loud, _ in rows])
        crops = [np.frombuffer(base64.b64decode(crop), np.uint8) for _, crop in rows]
        mouths: F32Array = np.stack(crops).astype(np.float32)
        speaking, resting = mouths[loudness > LOUD], mouths[loudness < QUIET]
        if min(len(speaking), len(resting)) < LEAST_FRAMES:
            continue
        # The head sways, in speech as in silence: each mouth is compared with the one at rest that is most like it.
        moved, rested = _moved(speaking, resting[::2]), _moved(resting[1::2], resting[::2])
        if moved >= SHARE:
            break
    picture: str | None = pytestconfig.getoption("--picture")
    if picture:
        await visit.hears(above=LOUD)
        await visit.state("Speaking")
        await visit.page.screenshot(path=picture)
    assert len(speaking) >= LEAST_FRAMES, "the voice did not come back"
    assert len(resting) >= LEAST_FRAMES, "the pauses did not come back"
    seen = f"{moved:.2f} of the mouths seen in speech were open, {rested:.2f} of those in silence"
    assert moved >= SHARE, seen
    assert rested < min(SHARE, moved / 2), seen
    await visit.end()
    [stream] = visit.streams
    await running.freed(stream)
