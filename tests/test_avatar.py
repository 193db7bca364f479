"""The interface for Python programs: a voice goes in, sound and picture come out as two tracks that belong together."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import numpy as np
import pytest
from aiortc.mediastreams import MediaStreamError, VideoStreamTrack

from echo_rtc.avatar import AvatarService, TalkingFace, stream_options
from echo_rtc.bench.support.calls import ScriptedMicrophone
from echo_rtc.clips import ClipFormat, S16Array
from echo_rtc.engine.card import CardFacts, level_of, read_card
from echo_rtc.errors import CapacityError, InputError, SettingsError
from echo_rtc.rtc.tracks import FrameTrack
from echo_rtc.settings import Settings

PATIENCE_S = 15.0
CARD: dict[str, object] = {
    "engine": "testcard",
    "config": "configs/testcard.yaml",
    "width": 160,
    "height": 160,
    "clip_frames": 6,
}


def swelling(start: int, count: int) -> S16Array:
    """A tone whose loudness changes all the time, so that every frame has a level of its own."""
    when = np.arange(start, start + count) / 48_000
    return (np.sin(2 * np.pi * 400 * when) * (3_000 + 12_000 * (when * 0.7 % 1.0))).astype(np.int16)


class Voice(ScriptedMicrophone):
    """Speaks until it is told to stop."""

    def finish(self) -> None:
        self.stop()


async def read(track: FrameTrack[Any], count: int) -> list[tuple[int, Any]]:
    """``count`` frames, each with its place in media time."""
    async with asyncio.timeout(PATIENCE_S):
        return [await read_one(track) for _ in range(count)]


async def read_one(track: FrameTrack[Any]) -> tuple[int, Any]:
    frame = await track.recv()
    return track.media_sample, frame


async def test_sound_and_picture_are_those_of_the_same_time() -> None:
    async with AvatarService.open(**CARD) as avatars:
        assert avatars.avatars == ("default",)
        assert (avatars.format.width, avatars.format.fps) == (160, 24)
        face = avatars.animate(Voice(swelling))
        assert face.avatar == "default"
        heard, seen = await asyncio.gather(read(face.audio, 200), read(face.video, 96))
        statistics: Any = face.statistics()
        await face.close()
    assert 0.2 < statistics["delay_ms"] / 1000 < 3.0
    assert statistics["taps"][0]["picture_frames"] >= 96
    # One count of pts for both.
    origins = {pts / 48_000 - at / 48_000 for at, pts in ((at, frame.pts) for at, frame in heard)}
    origins |= {frame.pts / 90_000 - at / 48_000 for at, frame in seen}
    assert max(origins) - min(origins) < 1e-3
    # Each card says which frame of media time it is, and how loud its own sound was.
    line = np.zeros(heard[-1][0] + 960, np.float64)
    for at, frame in heard:
        if at >= 0:
            line[at : at + 960] = frame.to_ndarray()[0] / 32_768
    spoken = 0
    for at, frame in seen:
        card = card_of(frame)
        if card.idle or at < heard[0][0] or at + 2_000 > len(line):
            continue
        spoken += 1
        assert card.frame * 2_000 == at
        own = line[at : at + 2_000]
        assert card.level == pytest.approx(level_of(float(np.sqrt(np.mean(own**2)))), abs=0.03)
    assert spoken > 40


def card_of(frame: Any) -> CardFacts:
    luma = frame.to_ndarray(format="yuv420p")[: frame.height]
    return read_card(np.ascontiguousarray(luma))


async def test_a_face_ends_after_the_last_sound_of_its_voice() -> None:
    async with AvatarService.open(**CARD) as avatars:
        voice = Voice(swelling)
        face = avatars.animate(voice)
        heard: list[tuple[int, Any]] = []

        async def listen() -> None:
            while True:
                heard.append(await read_one(face.audio))

        listening = asyncio.create_task(listen())
        async with asyncio.timeout(PATIENCE_S):
            while (face.media_sample(0) is None) or len(heard) < 75:  # noqa: ASYNC110  (frames have no event)
                await asyncio.sleep(0.02)
            said = voice._next
            voice.finish()
            with pytest.raises(MediaStreamError):
                await listening
        assert face.ended
        offset = face.media_sample(0)
        assert offset is not None
        assert heard[-1][0] + 960 >= said + offset - 960


async def test_a_face_ends_when_both_its_tracks_are_stopped() -> None:
    async with AvatarService.open(**CARD, max_streams=1) as avatars:
        assert avatars.capacity == 1
        face = avatars.animate(Voice(swelling))
        await read(face.video, 3)
        with pytest.raises(CapacityError, match="all 1 faces"):
            avatars.animate(Voice(swelling))
        face.audio.stop()
        face.video.stop()
        async with asyncio.timeout(PATIENCE_S):
            while not face.ended:  # noqa: ASYNC110  (its end has no event of its own)
                await asyncio.sleep(0.01)
        await face.close()
        async with avatars.animate(Voice(swelling)) as second:
            assert await read(second.video, 2)
        assert second.ended


async def test_faces_left_open_end_with_the_service(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "echo_rtc")
    faces: list[TalkingFace] = []
    async with AvatarService.open(**CARD) as avatars:
        faces.append(avatars.animate(Voice(swelling)))
        await read(faces[0].audio, 3)
    assert faces[0].ended
    with pytest.raises(MediaStreamError):
        await faces[0].video.recv()
    assert "ended: closed by the application" in caplog.text


async def test_what_cannot_be_is_told_in_one_sentence() -> None:
    with pytest.raises(SettingsError, match="widht is not a setting; did you mean width"):
        async with AvatarService.open(widht=3):
            raise AssertionError("unreachable")
    with pytest.raises(SettingsError, match=r"fps is 'fast'; it must be a whole number"):
        async with AvatarService.open(fps="fast"):
            raise AssertionError("unreachable")
    with pytest.raises(InputError, match="weights folder"):
        async with AvatarService.open(config="configs/echomimic_v2.yaml"):
            raise AssertionError("unreachable")
    async with AvatarService.open(**CARD) as avatars:
        with pytest.raises(InputError, match="there is no avatar 'nobody'; choose one of default"):
            avatars.animate(Voice(swelling), avatar="nobody")
        with pytest.raises(InputError, match="kind 'video'; give an audio track"):
            avatars.animate(VideoStreamTrack())


def test_the_options_are_the_settings() -> None:
    options = stream_options(Settings(vad_threshold=0.5, max_latency=7.0))
    assert (options.vad_threshold, options.max_latency_s) == (0.5, 7.0)
    assert ClipFormat().fps == Settings().clip_format.fps
