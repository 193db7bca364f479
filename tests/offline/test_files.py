"""Sound files in, movies out: what is read is what was written, in its place; what cannot be says why and leaves
nothing."""

from __future__ import annotations

import os
import struct
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream
from av.container import OutputContainer

from echo_rtc.clips import ClipFormat, S16Array, YuvFrames
from echo_rtc.errors import InputError
from echo_rtc.offline.files import MovieFile, SoundFile

FAULTS = Path(__file__).parents[1] / "data" / "faults"
FORMAT = ClipFormat(width=66, height=50)  # no multiple of 4: chroma of odd width


def write_wav(path: Path, pcm: S16Array, rate: int) -> Path:
    """``pcm`` (samples, channels) int16."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(pcm.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm.astype("<i2").tobytes())
    return path


def tone(seconds: float, rate: int, channels: int = 1) -> S16Array:
    time_s = np.arange(round(seconds * rate)) / rate
    return np.repeat((8000 * np.sin(2 * np.pi * 440 * time_s)).astype(np.int16)[:, None], channels, axis=1)


def blocks(pcm: S16Array, rate: int, start: int = 0) -> list[av.AudioFrame]:
    """``pcm`` in frames of 20 ms at 48 kHz, numbered from sample ``start`` on."""
    made = []
    for offset in range(0, len(pcm), 960):
        piece = np.ascontiguousarray(pcm[offset : offset + 960].reshape(1, -1))
        block = av.AudioFrame.from_ndarray(piece, format="s16", layout="mono" if pcm.shape[1] == 1 else "stereo")
        block.sample_rate, block.pts, block.time_base = rate, start + offset, Fraction(1, rate)
        made.append(block)
    return made


def sound_track(container: OutputContainer, codec: str, layout: str) -> AudioStream:
    track = container.add_stream(codec, rate=48_000, layout=layout)
    assert isinstance(track, AudioStream)
    return track


def picture_track(container: OutputContainer, frames: int) -> None:
    track = container.add_stream("mpeg4", rate=24)
    track.width, track.height, track.pix_fmt = 64, 64, "yuv420p"
    for number in range(frames):
        frame = av.VideoFrame.from_ndarray(np.full((96, 64), number, np.uint8), format="yuv420p")
        frame.pts, frame.time_base = number, Fraction(1, 24)
        container.mux(track.encode(frame))
    container.mux(track.encode(None))


@contextmanager
def writing(path: Path) -> Iterator[OutputContainer]:
    container = av.open(str(path), "w")
    assert isinstance(container, OutputContainer)
    with container:
        yield container


def read(path: Path) -> S16Array:
    with SoundFile(path) as file:
        return np.concatenate(list(file.blocks()))


def test_48_khz_arrives_sample_by_sample(tmp_path: Path) -> None:
    pcm = np.random.default_rng(1).integers(-30_000, 30_000, (50_001, 2)).astype(np.int16)
    path = write_wav(tmp_path / "a.wav", pcm, 48_000)
    assert np.array_equal(read(path), pcm)
    with SoundFile(path) as file:
        assert file.channels == 2
        assert file.duration_s == pytest.approx(50_001 / 48_000)


def test_names_in_another_encoding_do_no_harm(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", tone(0.1, 48_000), 48_000)
    title = (
        b"LIST" + struct.pack("<I", 18) + b"INFOINAM" + struct.pack("<I", 6) + "Ä\xf6\xfc".encode("latin-1") + bytes(3)
    )
    content = path.read_bytes() + title
    path.write_bytes(content[:4] + struct.pack("<I", len(content) - 8) + content[8:])
    assert len(read(path)) == 4_800


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 96_000])
def test_other_rates_keep_their_time(rate: int, tmp_path: Path) -> None:
    pcm = np.zeros((rate * 2, 1), np.int16)
    pcm[rate : rate + rate // 10] = tone(0.1, rate)
    sound = read(write_wav(tmp_path / "a.wav", pcm, rate))
    assert sound.shape[1] == 1
    assert len(sound) == pytest.approx(96_000, abs=8)
    loud = np.flatnonzero(np.abs(sound[:, 0]) > 1000)
    assert loud[0] == pytest.approx(48_000, abs=48)  # 1 ms
    assert loud[-1] == pytest.approx(48_000 + 4_800, abs=48)


def test_more_than_two_channels_become_stereo(tmp_path: Path) -> None:
    sound = read(write_wav(tmp_path / "a.wav", tone(0.5, 48_000, channels=6), 48_000))
    assert sound.shape == (24_000, 2)
    assert np.abs(sound).max() > 4000


def test_a_video_gives_its_audio_track(tmp_path: Path) -> None:
    with writing(tmp_path / "a.mkv") as container:
        sound = sound_track(container, "pcm_s16le", "stereo")
        picture_track(container, 24)
        for block in blocks(tone(1.0, 48_000, channels=2), 48_000):
            container.mux(sound.encode(block))
    assert read(tmp_path / "a.mkv").shape == (48_000, 2)


def test_the_default_track_is_taken() -> None:
    assert np.abs(read(FAULTS / "twotracks.mka")).max() > 1000  # silence in track 0, a tone in track 1


def test_a_gap_in_the_file_is_silence_of_its_length(tmp_path: Path) -> None:
    pcm = tone(0.5, 48_000)
    with writing(tmp_path / "a.mkv") as container:
        track = sound_track(container, "pcm_s16le", "mono")
        for start in (0, 48_000, 10_000_000):  # half a second of nothing; then a clock set anew
            for block in blocks(pcm, 48_000, start):
                container.mux(track.encode(block))
    sound = read(tmp_path / "a.mkv")[:, 0]
    assert len(sound) == pytest.approx(24_000 * 4, abs=48)
    assert np.abs(sound[24_100:47_900]).max() == 0
    for begin in (0, 48_000, 72_000):
        assert np.abs(sound[begin : begin + 24_000]).mean() > 3000


def test_damaged_packets_are_left_out_as_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with writing(tmp_path / "a.mkv") as container:
        track = sound_track(container, "flac", "mono")
        packets = [packet for block in [*blocks(tone(3.0, 48_000), 48_000), None] for packet in track.encode(block)]
        assert len(packets) > 20
        for number, packet in enumerate(packets):
            if 10 <= number < 13:
                damaged = av.Packet(bytes(len(bytes(packet))))
                damaged.pts, damaged.dts, damaged.time_base = packet.pts, packet.dts, packet.time_base
                damaged.stream = track
                container.mux(damaged)
            else:
                container.mux(packet)
    sound = read(tmp_path / "a.mkv")[:, 0]
    assert len(sound) == pytest.approx(3 * 48_000, abs=100)
    assert 9_000 < (sound == 0).sum() < 16_000  # three packets of 4096 or 4608 samples
    assert f"{tmp_path / 'a.mkv'}: 3 damaged packets were left out" in caplog.text


def test_floats_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    samples = np.zeros(9000, np.float32)
    samples[5000] = np.nan
    path = tmp_path / "a.wav"
    with writing(path) as container:
        track = sound_track(container, "pcm_f32le", "mono")
        block = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        block.sample_rate = 48_000
        container.mux(track.encode(block))
        container.mux(track.encode(None))
    with pytest.raises(InputError, match="whose samples are not all numbers"):
        read(path)


def bad_sounds(folder: Path) -> dict[str, Path]:
    text = folder / "text.wav"
    text.write_text("this is no sound\n" * 100)
    nothing, nameless = folder / "nothing.mp3", folder / "nothing"
    nothing.touch()
    nameless.touch()
    pipe = folder / "pipe.wav"
    os.mkfifo(pipe)
    empty = write_wav(folder / "empty.wav", np.zeros((0, 1), np.int16), 48_000)
    silent_film = folder / "silent.mp4"
    with writing(silent_film) as container:
        picture_track(container, 3)
    return {
        "missing": folder / "missing.wav",
        "folder": folder,
        "text": text,
        "nothing": nothing,
        "nameless": nameless,
        "pipe": pipe,
        "device": Path("/dev/zero"),
        "empty": empty,
        "silent film": silent_film,
    }


@pytest.mark.parametrize(
    ("which", "complaint"),
    [
        ("missing", "cannot be read: No such file or directory"),
        ("folder", "is a folder; name a file with sound"),
        ("text", "is no file of sound or video that can be read"),
        ("nothing", "is empty (0 bytes)"),
        ("nameless", "is empty (0 bytes)"),
        ("pipe", "is a pipe or a device; save the sound in a file and name that"),
        ("device", "is a pipe or a device; save the sound in a file and name that"),
        ("empty", "holds no sound"),
        ("silent film", "has no audio track"),
    ],
)
def test_what_is_no_sound_is_refused_when_it_is_opened(which: str, complaint: str, tmp_path: Path) -> None:
    path = bad_sounds(tmp_path)[which]
    with pytest.raises(InputError) as caught:
        SoundFile(path)
    assert str(caught.value) == f"audio is {path}, which {complaint}"


def frames(count: int) -> YuvFrames:
    planes = [np.full((count, *shape), 128, np.uint8) for shape in ((50, 66), (25, 33), (25, 33))]
    planes[0][:] = np.arange(16, 16 + 8 * count, 8, dtype=np.uint8)[:, None, None]
    return YuvFrames(*planes)


@pytest.mark.parametrize("ending", [".mp4", ".MOV", ".mkv"])
def test_a_movie_holds_its_frames_and_sound_in_step(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"out{ending}"
    sound = np.zeros((44_000, 2), np.int16)
    sound[24_000:] = tone(1.0, 48_000, 2)[:20_000]
    with MovieFile(path, FORMAT, channels=2) as movie:
        movie.add(frames(12), sound[:24_000])
        movie.add(frames(10), sound[24_000:])
        assert not path.exists()
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (video.codec_context.pix_fmt, audio.rate, audio.channels) == ("yuv420p", 48_000, 2)
        assert (video.codec_context.color_range, video.codec_context.colorspace) == (1, 6)
        pictures = list(container.decode(video))
        times = [picture.time for picture in pictures]
        assert times == pytest.approx([n / 24 for n in range(22)], abs=0.001)
        shown = [float(picture.to_ndarray()[:50].mean()) for picture in pictures]
        assert shown == pytest.approx([16 + 8 * (n % 12) for n in range(22)], abs=2)
    heard = np.abs(read(path)[:, 0].astype(np.int32))
    assert np.flatnonzero(heard > 1500)[0] == pytest.approx(24_000, abs=480)  # 10 ms


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_error_or_a_cancellation_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    path.write_text("the old one")

    def write(error: BaseException) -> None:
        with MovieFile(path, FORMAT, 1) as movie:
            movie.add(frames(3), np.zeros((6000, 1), np.int16))
            raise error

    for error in (RuntimeError("on the way"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            write(error)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("out.mp4", "the old one")]


def test_a_disk_that_is_full_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full takes nothing: a link to it in the place of the temporary file."""
    path = tmp_path / "out.mkv"
    original = Path.open

    def link_instead(self: Path, mode: str = "r") -> object:
        if mode == "xb":
            self.symlink_to("/dev/full")
            return original(self, "wb")
        return original(self, mode)

    monkeypatch.setattr(Path, "open", link_instead)
    rng = np.random.default_rng(1)
    noise = YuvFrames(*(rng.integers(0, 255, (12, *shape), np.uint8) for shape in ((50, 66), (25, 33), (25, 33))))

    def write() -> None:
        with MovieFile(path, FORMAT, 1) as movie:
            for _ in range(20):
                movie.add(noise, np.zeros((24_000, 1), np.int16))

    with pytest.raises(InputError, match="which cannot be written: No space left on device"):
        write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("out.webm", r"whose ending is unknown; choose one of \.mp4, \.m4v, \.mov, \.mkv"),
        ("out", "whose ending is unknown"),
        ("folder.mp4", "which is a folder"),
        ("fifo.mp4", "which is no ordinary file"),
        ("nowhere/out.mp4", r"but the folder .*nowhere does not exist; make it first"),
        ("file/out.mp4", "does not exist"),
    ],
)
def test_where_no_movie_can_be_written(name: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo.mp4")
    before = set(tmp_path.iterdir())
    with pytest.raises(InputError, match=complaint):
        MovieFile(tmp_path / name, FORMAT, 1)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="nothing may be written into the folder"):
        MovieFile(tmp_path / "out.mp4", FORMAT, 1)
