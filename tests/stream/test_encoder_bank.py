"""Packets decode to what went in, keep their pts, follow the viewers' bitrates and give key frames when asked."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import av
import numpy as np
import pytest
from aiortc.codecs import depayload
from aiortc.rtcrtpparameters import RTCRtpCodecParameters

from echo_rtc.clips import ClipFormat, YuvFrames
from echo_rtc.codec.picture import BITRATES, BitrateRange, VideoCodec
from echo_rtc.rtc.tracks import packetizer
from echo_rtc.stream.encoder_bank import (
    KEY_FRAME_PATIENCE_S,
    KEY_FRAME_SPACING_S,
    EncodedFrame,
    EncodedPortion,
    EncoderBank,
    Portion,
)
from echo_rtc.stream.log import StreamLog

FORMAT = ClipFormat(width=66, height=98)
SILENCE = np.zeros(960, np.int16)
LOG = StreamLog(logging.getLogger("test"), "0123456789")


def picture(level: int, clip_format: ClipFormat = FORMAT) -> YuvFrames:
    """A frame of one grey with a slope in it, so that a wrong line length shows."""
    y = np.clip(level + np.arange(clip_format.width) // 4, 16, 235).astype(np.uint8)
    chroma = np.full((1, clip_format.height // 2, clip_format.width // 2), 128, np.uint8)
    return YuvFrames(np.broadcast_to(y, (1, clip_format.height, clip_format.width)).copy(), chroma, chroma.copy())


def noise(number: int, clip_format: ClipFormat) -> YuvFrames:
    chance = np.random.default_rng(number)
    y = chance.integers(100, 130, (1, clip_format.height, clip_format.width), np.uint8)
    chroma = np.full((1, clip_format.height // 2, clip_format.width // 2), 128, np.uint8)
    return YuvFrames(y, chroma, chroma.copy())


@pytest.fixture
async def bank() -> AsyncIterator[EncoderBank]:
    made = EncoderBank(FORMAT, packetizer, LOG, BITRATES)
    yield made
    await made.close()


def whole(frame: EncodedFrame, codec: VideoCodec) -> av.Packet[Any]:
    """The packet that an encoded frame was packetized from."""
    parameters = RTCRtpCodecParameters(mimeType=f"video/{codec}", clockRate=90_000)
    return av.Packet(b"".join(depayload(parameters, payload) for payload in frame.payloads))


async def encode(
    bank: EncoderBank, number: int, now: float | None = None, shown: YuvFrames | None = None
) -> EncodedPortion:
    """Frame ``number`` at 24 fps, by itself."""
    portion = Portion(((SILENCE, number * 960),), ((shown or picture(40 + number), number * 3750),))
    return await bank.encode(portion, number / 24 if now is None else now)


@pytest.mark.parametrize("codec", list(VideoCodec))
async def test_each_frame_gives_one_packet_that_decodes_to_it(bank: EncoderBank, codec: VideoCodec) -> None:
    bank.use([codec])
    decoder = av.CodecContext.create("h264" if codec is VideoCodec.H264 else "vp8", "r")
    for number in range(12):
        encoded = await encode(bank, number)
        (packet,) = encoded.pictures[codec]
        assert packet.pts == number * 3750
        assert packet.is_keyframe == (number == 0)
        for frame in decoder.decode(whole(packet, codec)):
            assert isinstance(frame, av.VideoFrame)
            wanted = 40 + number + np.arange(FORMAT.width) // 4
            # The decoder hands frames out late; what it shows is one of the last levels, and the slope is in place.
            luma = frame.to_ndarray()[: FORMAT.height].astype(int)
            assert np.abs(luma - wanted).mean() < 6
    assert set((await encode(bank, 12)).pictures) == {codec}


async def test_all_codecs_in_use_are_encoded_and_no_others(bank: EncoderBank) -> None:
    assert (await encode(bank, 0)).pictures == {}
    bank.use([VideoCodec.H264, VideoCodec.VP8])
    both = await encode(bank, 1)
    assert {packets[0].pts for packets in both.pictures.values()} == {3750}
    assert [packet.pts for packet in both.sounds] == [960]
    bank.use([VideoCodec.VP8])
    assert set((await encode(bank, 2)).pictures) == {VideoCodec.VP8}
    bank.use([VideoCodec.VP8, VideoCodec.H264])
    assert (await encode(bank, 3)).pictures[VideoCodec.H264][0].is_keyframe


async def test_key_frames_come_when_asked_but_not_too_often(bank: EncoderBank) -> None:
    bank.use([VideoCodec.H264])
    keys = []
    for number in range(48):
        if number in (10, 12, 13, 40):
            bank.want_key_frame(VideoCodec.H264, 0)
        packets = (await encode(bank, number)).pictures[VideoCodec.H264]
        keys += [number for packet in packets if packet.is_keyframe]
    spacing = round(KEY_FRAME_SPACING_S * 24)
    assert keys == [0, spacing, 2 * spacing, 40]


async def test_what_takes_any_bitrate_has_no_say_in_it(bank: EncoderBank) -> None:
    bank.use([VideoCodec.H264], [VideoCodec.H264])
    bank.estimate(VideoCodec.H264, 0, 3_000_000)
    await encode(bank, 0)
    assert bank.bitrates == {VideoCodec.H264: 3_000_000}
    bank.use([VideoCodec.VP8], [VideoCodec.H264])
    assert set((await encode(bank, 1)).pictures) == set(VideoCodec)


async def test_a_viewer_that_keeps_losing_packets_does_not_blur_others(bank: EncoderBank) -> None:
    bank.use([VideoCodec.H264] * 3)
    keys = []
    for number in range(24 * 10):
        bank.want_key_frame(VideoCodec.H264, 1)
        if number == 100:
            bank.want_key_frame(VideoCodec.H264, 2)  # somebody new
        packets = (await encode(bank, number)).pictures[VideoCodec.H264]
        keys += [number for packet in packets if packet.is_keyframe]
    patience = round(KEY_FRAME_PATIENCE_S * 24)
    assert keys == [0, patience, 100, 100 + patience]
    bank.forget(VideoCodec.H264, 1)
    assert not (await encode(bank, 400)).pictures[VideoCodec.H264][0].is_keyframe


async def test_frames_are_cut_for_the_network_once(bank: EncoderBank) -> None:
    clip_format = ClipFormat(width=192, height=192)
    large = EncoderBank(clip_format, packetizer, LOG)
    large.use([VideoCodec.VP8, VideoCodec.H264])
    encoded = await encode(large, 0, shown=noise(0, clip_format))
    await large.close()
    for (parcel,) in encoded.pictures.values():
        assert len(parcel.payloads) > 2
        assert max(map(len, parcel.payloads)) <= 1300
        assert parcel.size > sum(map(len, parcel.payloads)) * 0.95
    (sound,) = encoded.sounds
    assert len(sound.payloads) == 1


async def test_the_bitrate_follows_the_median_viewer_within_bounds(bank: EncoderBank) -> None:
    bank.use([VideoCodec.H264])
    bounds = BITRATES[VideoCodec.H264]
    await encode(bank, 0, now=0.0)
    assert bank.bitrates == {VideoCodec.H264: bounds.start}
    for viewer, rate in enumerate((100_000_000, 2_000_000, 1)):
        bank.estimate(VideoCodec.H264, viewer, rate)
    rebuilt = await encode(bank, 1, now=10.0)
    assert bank.bitrates == {VideoCodec.H264: 2_000_000}
    assert rebuilt.pictures[VideoCodec.H264][0].is_keyframe
    bank.estimate(VideoCodec.H264, 1, 2_100_000)
    unchanged = await encode(bank, 2, now=30.0)
    assert bank.bitrates == {VideoCodec.H264: 2_000_000}
    assert not unchanged.pictures[VideoCodec.H264][0].is_keyframe
    bank.forget(VideoCodec.H264, 0)
    bank.forget(VideoCodec.H264, 1)
    await encode(bank, 3, now=50.0)
    assert bank.bitrates == {VideoCodec.H264: bounds.minimum}
    bank.estimate(VideoCodec.H264, 2, 100_000_000)
    await encode(bank, 4, now=50.5)
    assert bank.bitrates == {VideoCodec.H264: bounds.minimum}
    await encode(bank, 5, now=60.0)
    assert bank.bitrates == {VideoCodec.H264: bounds.maximum}


async def test_one_slow_viewer_of_two_does_not_lower_the_bitrate(bank: EncoderBank) -> None:
    start = BITRATES[VideoCodec.H264].start
    for others, wanted in ((1, start), (0, BITRATES[VideoCodec.H264].minimum)):
        bank.use([VideoCodec.H264] * (1 + others))
        for number in range(72):
            bank.estimate(VideoCodec.H264, 0, 1_000)
            await encode(bank, number)
        assert bank.bitrates == {VideoCodec.H264: wanted}


@pytest.mark.parametrize("codec", list(VideoCodec))
async def test_the_bitrate_is_kept(codec: VideoCodec) -> None:
    clip_format = ClipFormat(width=192, height=192)
    rate = 300_000
    bank = EncoderBank(clip_format, packetizer, LOG, {codec: BitrateRange(rate, rate, rate)})
    bank.use([codec])
    sizes: list[int] = []
    for number in range(72):
        packets = (await encode(bank, number, shown=noise(number % 4, clip_format))).pictures[codec]
        sizes += [packet.size for packet in packets]
    await bank.close()
    # The first second is left out: noise is the worst there is, and the key frame is not to count.
    assert sum(sizes[24:]) * 8 / 2 < 1.3 * rate


async def test_a_frame_of_the_wrong_size_is_counted_and_skipped(
    bank: EncoderBank, caplog: pytest.LogCaptureFixture
) -> None:
    bank.use([VideoCodec.H264])
    await encode(bank, 0)
    for number in range(1, 4):
        wrong = await encode(bank, number, shown=picture(50, ClipFormat(width=64, height=64)))
        assert wrong.pictures[VideoCodec.H264] == ()
        assert len(wrong.sounds) == 1
    assert bank.counters.failures == 3
    assert len([record for record in caplog.records if "could not encode" in record.message]) == 1
    recovered = await encode(bank, 5)
    assert recovered.pictures[VideoCodec.H264][0].is_keyframe


async def test_an_easy_picture_is_not_taken_for_a_narrow_way(bank: EncoderBank) -> None:
    bank.use([VideoCodec.H264])
    start = BITRATES[VideoCodec.H264].start
    for number in range(72):
        bank.estimate(VideoCodec.H264, 0, 400_000)
        await encode(bank, number)
    assert bank.bitrates == {VideoCodec.H264: start}
    for number in range(72, 120):
        bank.estimate(VideoCodec.H264, 0, 1_000)
        await encode(bank, number)
    assert bank.bitrates == {VideoCodec.H264: BITRATES[VideoCodec.H264].minimum}


async def test_sound_carries_the_packet_before_while_viewers_lose_some(bank: EncoderBank) -> None:
    """By the mode of the packets (RFC 6716, 3.1): only speech modes can carry FEC, and ours are not of these else."""
    loud = np.full(960, 9_000, np.int16)
    modes: list[bool] = []
    shares = [0.0] * 4 + [0.03] * 8 + [0.01] * 4 + [0.0] * 8
    for number, share in enumerate(shares):
        bank.expect_loss(share)
        block = SILENCE if number in (8, 20) else loud
        encoded = await bank.encode(Portion(((block, number * 960),), ()), number / 50)
        [data] = encoded.sounds[0].payloads
        modes.append(data[0] >> 3 < 16)
    # Each change waits for a pause.
    assert modes == [False] * 8 + [True] * 12 + [False] * 4
