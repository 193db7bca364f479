"""Raw frames: each begins with its own reader, loses the oldest frames of a slow one, and ends for whoever waits."""

from __future__ import annotations

import asyncio
from fractions import Fraction

import numpy as np
import pytest

from echo_rtc.clips import YuvFrames
from echo_rtc.stream.queues import QueueClosedError
from echo_rtc.stream.taps import PICTURE_QUEUE_FRAMES, SOUND_QUEUE_FRAMES, Tap

PCM = np.arange(960, dtype=np.int16)
PICTURE = YuvFrames(
    np.full((1, 4, 6), 90, np.uint8), np.full((1, 2, 3), 30, np.uint8), np.full((1, 2, 3), 60, np.uint8)
)


async def test_frames_are_as_they_went_in() -> None:
    tap = Tap()
    sound, picture = asyncio.create_task(tap.sound.get()), asyncio.create_task(tap.picture.get())
    await asyncio.sleep(0)
    tap.take_sound(PCM, 1_920, 5_000)
    tap.take_picture(PICTURE, 3_750, 2_000)
    (heard, heard_at), (seen, seen_at) = await sound, await picture
    assert (heard.pts, heard.time_base, heard.sample_rate, heard.layout.name) == (
        1_920,
        Fraction(1, 48_000),
        48_000,
        "mono",
    )
    assert np.array_equal(heard.to_ndarray()[0], PCM)
    assert (heard_at, seen_at) == (5_000, 2_000)
    assert (seen.pts, seen.time_base, seen.format.name) == (3_750, Fraction(1, 90_000), "yuv420p")
    assert (seen.width, seen.height) == (6, 4)
    assert int(seen.to_ndarray(format="yuv420p")[0, 0]) == 90
    tap.close()


async def test_unread_output_is_dropped() -> None:
    tap = Tap()
    assert not tap.live
    for number in range(200):
        tap.take_sound(PCM, number * 960, number * 960)
        tap.take_picture(PICTURE, number, number)
    reading = asyncio.create_task(tap.sound.get())
    await asyncio.sleep(0)
    assert tap.live
    assert tap.sound.live
    assert not tap.picture.live
    tap.take_sound(PCM, 77, 0)
    assert (await reading)[0].pts == 77
    assert tap.sound.frames == 1
    assert tap.picture.frames == 0
    tap.close()


async def test_a_slow_reader_loses_the_oldest_frames_counted() -> None:
    tap = Tap()
    readings = [asyncio.create_task(queue.get()) for queue in (tap.sound, tap.picture)]
    await asyncio.sleep(0)
    for number in range(SOUND_QUEUE_FRAMES + 7):
        tap.take_sound(PCM, number, 0)
        tap.take_picture(PICTURE, number, 0)
    # Those who waited had not run yet, so they are as slow as the rest.
    assert tap.sound.dropped == 7
    assert tap.picture.dropped == SOUND_QUEUE_FRAMES + 7 - PICTURE_QUEUE_FRAMES
    assert [(await reading)[0].pts for reading in readings] == [7, SOUND_QUEUE_FRAMES + 7 - PICTURE_QUEUE_FRAMES]
    tap.close()


async def test_the_end_reaches_whoever_waits() -> None:
    tap = Tap()
    readings = [asyncio.create_task(queue.get()) for queue in (tap.sound, tap.picture)]
    await asyncio.sleep(0)
    tap.picture.close()
    assert not tap.ended.is_set()
    tap.sound.close()
    assert tap.ended.is_set()
    for reading in readings:
        with pytest.raises(QueueClosedError):
            await reading
    tap.take_sound(PCM, 0, 0)
    assert tap.sound.frames == 0
