"""A stream's queues as aiortc tracks: what is read, and that track and queue end together."""

from __future__ import annotations

import asyncio
from fractions import Fraction

import numpy as np
import pytest
from aiortc.mediastreams import MediaStreamError

from echo_rtc.codec.picture import VideoCodec
from echo_rtc.rtc.tracks import FrameTrack, PacketTrack
from echo_rtc.stream.encoder_bank import EncodedFrame
from echo_rtc.stream.taps import Tap
from echo_rtc.stream.viewers import Viewer


async def test_a_packet_track_gives_frames_and_when_they_were_due() -> None:
    live: list[bool] = []
    viewer = Viewer(0, VideoCodec.H264, False, lambda: live.append(True), lambda *_: None)
    assert viewer.picture is not None
    track = PacketTrack("video", viewer.picture)
    assert track.due_s is None
    reading = asyncio.create_task(track.recv())
    await asyncio.sleep(0)
    assert live == [True]
    frame = EncodedFrame((b"x",), 7, Fraction(1, 90_000), data=b"x", is_keyframe=True)
    viewer.take_picture(frame, 2.5)
    assert await reading is frame
    assert track.due_s == 2.5


@pytest.mark.parametrize("by_track", [True, False])
async def test_track_and_queue_end_together(by_track: bool) -> None:
    viewer = Viewer(0, None, True, lambda: None, lambda *_: None)
    assert viewer.sound is not None
    track = PacketTrack("audio", viewer.sound)
    ended: list[bool] = []
    track.on("ended", lambda: ended.append(True))
    reading = asyncio.create_task(track.recv())
    await asyncio.sleep(0)
    if by_track:
        track.stop()
    else:
        viewer.close()
    with pytest.raises(MediaStreamError):
        await reading
    with pytest.raises(MediaStreamError):
        await track.recv()
    assert track.readyState == "ended"
    assert viewer.sound.closed
    assert not viewer.live
    assert ended == [True]


async def test_a_frame_track_says_where_its_frame_lies() -> None:
    tap = Tap()
    audio, video = FrameTrack("audio", tap.sound), FrameTrack("video", tap.picture)
    reading = asyncio.create_task(audio.recv())
    await asyncio.sleep(0)
    tap.take_sound(np.zeros(960, np.int16), 1_920, -40)
    assert (await reading).pts == 1_920
    assert (audio.media_sample, audio.frames, audio.dropped) == (-40, 1, 0)
    video.stop()
    assert not tap.ended.is_set()
    audio.stop()
    assert tap.ended.is_set()
