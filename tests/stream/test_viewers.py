"""A viewer's two queues begin together with a key frame, and a viewer that does not keep up harms only itself."""

from __future__ import annotations

import asyncio
from fractions import Fraction

import pytest

from echo_rtc.codec.picture import VideoCodec
from echo_rtc.stream.encoder_bank import EncodedFrame
from echo_rtc.stream.queues import QueueClosedError
from echo_rtc.stream.viewers import PICTURE_QUEUE_PACKETS, SOUND_QUEUE_PACKETS, DueFrame, Viewer


def packet(pts: int, key: bool = False) -> EncodedFrame:
    return EncodedFrame((b"x",), pts, Fraction(1, 90_000), data=b"x", is_keyframe=key)


class Calls:
    """Remembers what a viewer asked for."""

    def __init__(self) -> None:
        self.changes = 0
        self.keys: list[tuple[VideoCodec, int]] = []

    def key(self, codec: VideoCodec, viewer: int) -> None:
        self.keys.append((codec, viewer))

    def changed(self) -> None:
        self.changes += 1


async def reading(viewer: Viewer) -> list[asyncio.Task[DueFrame]]:
    """Both queues being read, with nothing there yet."""
    tasks = [asyncio.create_task(track.get()) for track in (viewer.sound, viewer.picture) if track is not None]
    await asyncio.sleep(0)
    return tasks


def viewer(calls: Calls, codec: VideoCodec | None = VideoCodec.H264, with_sound: bool = True) -> Viewer:
    return Viewer(0, codec, with_sound, calls.changed, calls.key)


async def test_both_tracks_begin_with_the_same_key_frame() -> None:
    calls = Calls()
    one = viewer(calls)
    one.take_sound(packet(0), 0.0)
    one.take_picture(packet(0, key=True), 0.0)
    assert not one.live
    assert one.sound is not None
    sound = asyncio.create_task(one.sound.get())
    await asyncio.sleep(0)
    assert not one.live
    assert calls.changes == 0
    sound.cancel()
    tasks = await reading(one)
    assert one.live
    assert calls.changes == 1
    assert calls.keys == [(VideoCodec.H264, 0)]
    for number in range(1, 5):
        one.take_sound(packet(number), 0.0)
        one.take_picture(packet(number, key=number == 3), float(number))
    (heard, _), (seen, due_s) = [await task for task in tasks]
    assert [heard.pts, seen.pts] == [4, 3]
    assert one.picture is not None
    assert due_s == 3.0
    seen, due_s = await one.picture.get()
    assert seen.pts == 4
    assert due_s == 4.0
    assert one.counters.picture_dropped == 0


async def test_sound_alone_begins_at_once() -> None:
    one = viewer(Calls(), codec=None)
    (task,) = await reading(one)
    one.take_sound(packet(5), 0.0)
    assert (await task)[0].pts == 5


async def test_a_picture_alone_needs_no_sound() -> None:
    one = viewer(Calls(), with_sound=False)
    (task,) = await reading(one)
    one.take_picture(packet(5, key=True), 0.0)
    assert (await task)[0].pts == 5


async def test_a_peer_that_stops_reading_loses_its_own_packets_only() -> None:
    calls = Calls()
    slow, quick = viewer(calls), viewer(Calls())
    for one in (slow, quick):
        tasks = await reading(one)
        one.take_picture(packet(0, key=True), 0.0)
        one.take_sound(packet(0), 0.0)
        await asyncio.gather(*tasks)
    calls.keys.clear()
    got = 0
    for number in range(1, 200):
        shared = packet(number)
        for one in (slow, quick):
            one.take_picture(shared, 0.0)
            one.take_sound(shared, 0.0)
        assert quick.picture is not None
        assert quick.sound is not None
        got += ((await quick.picture.get())[0].pts, (await quick.sound.get())[0].pts) == (number, number)
    assert got == 199
    assert quick.counters.picture_dropped == quick.counters.sound_dropped == 0
    assert slow.counters.sound_dropped == 199 - SOUND_QUEUE_PACKETS
    assert slow.counters.picture_dropped == 199
    assert slow.picture is not None
    assert slow.picture.waiting() == 0
    assert calls.keys == [(VideoCodec.H264, 0)]
    slow.take_picture(packet(200, key=True), 0.0)
    slow.take_picture(packet(201), 0.0)
    assert [(await slow.picture.get())[0].pts for _ in range(2)] == [200, 201]


async def test_waiting_packets_are_bounded() -> None:
    one = viewer(Calls())
    for task in await reading(one):
        task.cancel()
    one.take_picture(packet(0, key=True), 0.0)
    for number in range(1, 1000):
        one.take_picture(packet(number, key=number % 7 == 0), 0.0)
        one.take_sound(packet(number), 0.0)
        assert one.picture is not None
        assert one.sound is not None
        assert one.picture.waiting() <= PICTURE_QUEUE_PACKETS
        assert one.sound.waiting() <= SOUND_QUEUE_PACKETS
    one.close()


async def test_closing_ends_waiting_callers() -> None:
    one = viewer(Calls())
    tasks = await reading(one)
    one.close()
    for task in tasks:
        with pytest.raises(QueueClosedError):
            await task
    one.take_sound(packet(1), 0.0)
    assert one.sound is not None
    with pytest.raises(QueueClosedError):
        await one.sound.get()
