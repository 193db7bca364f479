"""Files of every kind that can be read, and broken ones of each: they are read, or refused in one sentence."""

from __future__ import annotations

import json
import random
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream
from av.container import OutputContainer

from echo_rtc.clips import S16Array
from echo_rtc.errors import InputError
from echo_rtc.model.image import load_reference_image
from echo_rtc.model.weights import read_state
from echo_rtc.offline.files import SoundFile

CONTAINERS = {
    "wav": "pcm_s16le", "w64": "pcm_s24le", "aiff": "pcm_s16be", "au": "pcm_s16be", "caf": "pcm_s16be", "flac": "flac",
    "mp3": "libmp3lame", "mp2": "mp2", "m4a": "aac", "mp4": "aac", "mov": "pcm_s16le", "adts": "aac", "ts": "aac",
    "mkv": "libopus", "webm": "libopus", "ogg": "flac", "opus": "libopus", "avi": "pcm_s16le", "nut": "pcm_s16le",
    "flv": "aac", "ac3": "ac3", "wv": "wavpack", "tta": "tta",
}  # fmt: skip
"""FFmpeg's containers of sound by their endings, and a codec that goes into each."""
RATE = 48_000


def write(path: Path, codec: str) -> Path:
    """One second of a tone."""
    container = av.open(str(path), "w", format={"adts": "adts", "m4a": "ipod", "ts": "mpegts"}.get(path.suffix[1:]))
    assert isinstance(container, OutputContainer)
    with container:
        track = container.add_stream(codec, rate=RATE, layout="stereo")
        assert isinstance(track, AudioStream)
        time_s = np.arange(RATE) / RATE
        pcm = np.repeat((9_000 * np.sin(2 * np.pi * 440 * time_s)).astype(np.int16), 2)
        for start in range(0, RATE, 960):
            piece = pcm[2 * start : 2 * start + 1_920].reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(piece, format="s16", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return path


def read(path: Path) -> S16Array:
    with SoundFile(path) as file:
        return np.concatenate(list(file.blocks()))


@pytest.mark.parametrize("ending", CONTAINERS)
def test_sound_of_every_container_is_read(tmp_path: Path, ending: str) -> None:
    sound = read(write(tmp_path / f"a.{ending}", CONTAINERS[ending]))
    assert sound.shape[1] == 2
    assert len(sound) == pytest.approx(RATE, abs=4_000)
    assert 7_000 < int(np.abs(sound[RATE // 4 : RATE // 2].astype(int)).max()) < 12_000


@pytest.mark.parametrize("ending", CONTAINERS)
def test_broken_sound_is_read_or_refused_in_a_sentence(tmp_path: Path, ending: str) -> None:
    whole = write(tmp_path / f"a.{ending}", CONTAINERS[ending]).read_bytes()
    chance = random.Random(ending)
    path = tmp_path / f"broken.{ending}"
    for _ in range(12):
        broken = bytearray(whole)
        match chance.randrange(4):
            case 0:
                del broken[chance.randrange(len(broken)) :]
            case 1:
                for _ in range(20):
                    broken[chance.randrange(len(broken))] = chance.randrange(256)
            case 2:  # its head, where sizes and counts are
                for _ in range(6):
                    broken[chance.randrange(min(200, len(broken)))] = chance.choice((0, 127, 255))
            case _:
                at = chance.randrange(len(broken))
                broken[at : at + chance.randrange(400)] = chance.randbytes(chance.randrange(400))
        path.write_bytes(broken)
        try:
            sound = read(path)
        except InputError as error:
            words = str(error)
        else:
            words = f"audio is {path}, {len(sound)} samples"
        assert words.startswith(f"audio is {path}")
        assert "\n" not in words


def safetensors(header: object, data: bytes = bytes(16), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.mark.parametrize(
    "content",
    [
        safetensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, length=2**63),
        safetensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1 << 60]}}),
        safetensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}}),
        safetensors({"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}),
        safetensors({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 16]}}),
        safetensors({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 16]}}),
        safetensors({"a": {"dtype": "PICKLE", "shape": [4], "data_offsets": [0, 16]}}),
        safetensors({n: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for n in "ab"}),
        safetensors(b'{"a":' * 2_000),
        safetensors(b"\xff\xfe"),
        b"",
        bytes(7),
    ],
)
def test_misshapen_safetensors_are_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "evil.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"evil\.safetensors") as caught:
        read_state(path)
    assert "\n" not in str(caught.value)


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack("!IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunk(*entry) for entry in chunks) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content",
    [
        png(40_000, 40_000, (b"IDAT", zlib.compress(bytes(100)))),
        png(2**31 - 1, 2**31 - 1, (b"IDAT", b"")),
        png(64, 64, (b"zTXt", b"k\x00\x00" + zlib.compress(bytes(200_000_000), 9)), (b"IDAT", zlib.compress(b""))),
        png(64, 64, (b"iCCP", b"k\x00\x00" + zlib.compress(bytes(200_000_000), 9)), (b"IDAT", zlib.compress(b""))),
        png(64, 64, (b"IDAT", zlib.compress(bytes(3)))),
        b"GIF89a\xff\xff\xff\xff\xf0\x00\x00" + bytes(768) + b",\x00\x00\x00\x00\xff\xff\xff\xff\x00\x08\x00;",
        b"II*\x00\xff\xff\xff\xff",
        b"P6 99999999999 99999999999 255\n",
        b"BM" + b"\xff" * 60,
    ],
    ids=["megapixels", "most pixels", "text bomb", "profile bomb", "too little", "gif", "tiff", "ppm", "bmp"],
)
def test_pictures_that_are_bombs_are_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "evil.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"evil\.png") as caught:
        load_reference_image(path, 64, 64)
    assert "\n" not in str(caught.value)
