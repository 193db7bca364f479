"""The card's picture: what is drawn can be read, also after a codec; a beep shows where it belongs and nowhere else."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.codeccontext import VideoCodecContext

from echo_rtc.clips import ClipFormat, U8Array, YuvFrames
from echo_rtc.engine.card import (
    CardArtist,
    CardError,
    CardFacts,
    level_of,
    mark_of_seed,
    read_card,
    read_counter,
    read_level,
    rms_of,
    yuv_from_rgb,
)

SIZES = [(512, 512), (256, 256), (192, 192), (64, 64), (768, 384), (360, 640), (642, 482)]


def test_level_and_rms_are_inverse_within_the_range() -> None:
    assert level_of(0.0) == level_of(0.0005) == 0.0
    assert level_of(1.0) == level_of(2.0) == 1.0
    assert level_of(0.1) == pytest.approx(40 / 60)
    for rms in (0.002, 0.05, 0.3, 1.0):
        assert rms_of(level_of(rms)) == pytest.approx(rms)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_everything_drawn_can_be_read_at_any_size(width: int, height: int) -> None:
    artist = CardArtist(ClipFormat(width=width, height=height))
    levels = [0.0, 0.25, 0.5, 0.75, 1.0]
    first = 2**24 - 3  # the counter wraps within these frames
    cards = [read_card(luma) for luma in artist.draw(first, levels, mark=40_503).y]
    assert [card.frame for card in cards] == [2**24 - 3, 2**24 - 2, 2**24 - 1, 0, 1]
    assert [card.level for card in cards] == pytest.approx(levels, abs=1 / 219)
    assert {(card.mark, card.idle) for card in cards} == {(40_503, False)}
    idle = artist.draw(7, [0.0], mark=0, idle=True)
    assert read_card(idle.y[0]) == CardFacts(frame=7, level=0.0, mark=0, idle=True)


def test_the_meter_and_the_words_follow_too() -> None:
    """What people see: loud and quiet, idle and speaking differ beyond what programs read."""
    artist = CardArtist(ClipFormat(width=256, height=256))
    quiet, loud = artist.draw(5, [0.1, 0.9], mark=3)
    idle = artist.draw(5, [0.1], mark=3, idle=True)
    right_half = (0, slice(60, 180), slice(140, 256))
    assert (quiet.y[right_half] != loud.y[right_half]).sum() > 500
    assert (quiet.y[0, 28:] != idle.y[0, 28:]).sum() > 50
    other_stream = artist.draw(5, [0.1], mark=4)
    assert (quiet.u != other_stream.u).any()


@pytest.mark.parametrize(
    "luma",
    [
        np.full((256, 256), 16, np.uint8),
        np.full((256, 256), 235, np.uint8),
        np.tile(np.arange(256, dtype=np.uint8), (256, 1)),
    ],
    ids=["black", "white", "ramp"],
)
def test_what_is_no_card_is_not_read_as_one(luma: U8Array) -> None:
    with pytest.raises(CardError, match="does not read as a test card"):
        read_counter(luma)


def test_any_single_wrong_cell_is_noticed() -> None:
    luma = CardArtist(ClipFormat(width=256, height=256)).draw(123_456, [0.5], mark=777).y[0]
    for row in range(3):
        for column in range(16):
            damaged = luma.copy()
            cell = damaged[row * 10 : row * 10 + 10, column * 16 : column * 16 + 16]
            cell[:] = 250 - cell
            with pytest.raises(CardError):
                read_card(damaged)


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"preset": "ultrafast", "tune": "zerolatency", "profile": "baseline"}),
        ("libvpx", {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0"}),
    ],
)
@pytest.mark.parametrize("side", [512, 256])
def test_cards_survive_a_codec_at_a_low_bit_rate(codec: str, options: dict[str, str], side: int) -> None:
    """Levels jump from one frame to the next, at a rate far below what a connection starts with."""
    rng = np.random.default_rng(5)
    levels = [float(level) for level in rng.choice([0.0, 0.3, 0.85, 1.0], size=48)]
    frames = CardArtist(ClipFormat(width=side, height=side)).draw(90_000, levels, mark=51_966)
    read = [read_card(luma) for luma in through_codec(codec, options, frames, bit_rate=250_000)]
    assert [card.frame for card in read] == list(range(90_000, 90_048))
    assert {card.mark for card in read} == {51_966}
    assert [card.level for card in read] == pytest.approx(levels, abs=0.08)


def through_codec(codec: str, options: dict[str, str], frames: YuvFrames, bit_rate: int) -> list[U8Array]:
    """The luma of frames after encoding and decoding."""
    encoder = av.CodecContext.create(codec, "w")
    decoder = av.CodecContext.create("h264" if codec == "libx264" else "vp8", "r")
    assert isinstance(encoder, VideoCodecContext)
    assert isinstance(decoder, VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = frames.width, frames.height, "yuv420p"
    encoder.bit_rate, encoder.options, encoder.framerate = bit_rate, options, Fraction(24)
    encoder.time_base = Fraction(1, 24)
    packets = []
    for i, picture in enumerate(frames):
        planes = [picture.y[0], picture.u[0].reshape(-1, frames.width), picture.v[0].reshape(-1, frames.width)]
        frame = av.VideoFrame.from_ndarray(np.concatenate(planes), format="yuv420p")
        frame.pts = i
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    assert sum(packet.size for packet in packets) * 8 / 2 < 4 * bit_rate  # 2 s: the rate was low indeed
    decoded = [frame for packet in packets for frame in decoder.decode(packet)] + decoder.decode(None)
    return [frame.to_ndarray().astype(np.uint8, copy=False)[: frames.height] for frame in decoded]


def test_read_level_of_the_brightest_and_the_darkest() -> None:
    artist = CardArtist(ClipFormat(width=128, height=128))
    assert [read_level(luma) for luma in artist.draw(0, [0.0, 1.0], mark=1).y] == [0.0, 1.0]


def test_seeds_keep_their_marks_apart() -> None:
    assert mark_of_seed(5) == 5
    assert mark_of_seed(2**31 - 1) == 65_535
    assert len({mark_of_seed(seed) for seed in range(1000)}) == 1000


def test_colours_are_those_of_bt601() -> None:
    rgb = np.zeros((2, 8, 3), np.uint8)
    for i, colour in enumerate([(255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 0, 255)]):
        rgb[:, 2 * i : 2 * i + 2] = colour
    y, u, v = yuv_from_rgb(rgb)
    assert y[0, ::2].tolist() == [235, 16, 81, 41]
    assert u[0].tolist() == [128, 128, 90, 240]
    assert v[0].tolist() == [128, 128, 240, 110]
