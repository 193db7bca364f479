"""Encoded H.264 and Opus as a fragmented MP4: packets in, bytes out, of which whole boxes are a movie.

Nothing is encoded here and no file is opened. Each fragment (moof and mdat) holds about a second and stands by itself,
so that what was written before a crash plays. Synchronous; positions come in as pts from 0.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, BinaryIO

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.video.stream import VideoStream

from echo_rtc.clips import MEDIA_RATE
from echo_rtc.codec.picture import PICTURE_RATE, PICTURE_TIME_BASE
from echo_rtc.codec.sound import SOUND_BLOCK_SAMPLES, SOUND_TIME_BASE

FRAGMENT_S = 1.0
"""Length of a fragment: at most so much is lost with the process."""
_OPTIONS = {
    # Without discont the first packet of each track would count as its time 0, up to 20 ms apart.
    "movflags": "empty_moov+default_base_moof+frag_discont",
    "frag_duration": str(round(FRAGMENT_S * 1e6)),
    "use_editlist": "0",
}
_HEADER = 8
_FULL_HEADER = 16
_IN_MOOV = (b"trak", b"mdia")
"""Boxes of a moov that hold those with durations."""


class FragmentedMovie:
    """A movie that is being made. :meth:`take` gives what is complete of it, :meth:`finish` the rest."""

    def __init__(self, key_frame: bytes, fps: int) -> None:
        """``key_frame``: the first picture (Annex B), of whose parameter sets the movie's head is made. Raises
        ValueError where it has none."""
        self._sink = _Sink()
        self._given = 0
        self._frame_ticks = PICTURE_RATE // fps
        self._container = av.open(self._sink, "w", format="mp4", options=_OPTIONS)
        assert isinstance(self._container, OutputContainer)
        try:
            self._picture = _picture_stream(self._container, key_frame)
            self._sound = _sound_stream(self._container)
            self._container.start_encoding()
        except BaseException:
            self._container.close()
            raise

    def add_picture(self, data: bytes, pts: int, is_keyframe: bool) -> None:
        """A frame (Annex B); ``pts`` at 90 kHz, later than the one before."""
        packet = self._packet(data, pts, PICTURE_TIME_BASE, self._frame_ticks)
        packet.stream = self._picture
        packet.is_keyframe = is_keyframe
        self._container.mux(packet)

    def add_sound(self, data: bytes, pts: int) -> None:
        """An Opus packet of 20 ms; ``pts`` in samples at 48 kHz, later than the one before."""
        packet = self._packet(data, pts, SOUND_TIME_BASE, SOUND_BLOCK_SAMPLES)
        packet.stream = self._sound
        packet.is_keyframe = True
        self._container.mux(packet)

    def take(self) -> bytes:
        """What was completed since the last call: whole fragments, and at first the head."""
        return self._sink.take(whole_bytes(self._sink.content))

    def finish(self) -> bytes:
        """The rest: the last fragment and the index of keyframes. Nothing can be added any more."""
        self._container.close()
        return self._sink.take(len(self._sink.content))

    @staticmethod
    def _packet(data: bytes, pts: int, time_base: Fraction, duration: int) -> av.Packet[Any]:
        packet: av.Packet[Any] = av.Packet(data)
        packet.pts = packet.dts = pts
        packet.time_base = time_base
        packet.duration = duration
        return packet


class _Sink:
    """Where FFmpeg writes to."""

    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, data: bytes) -> int:
        self.content += data
        return len(data)

    def take(self, count: int) -> bytes:
        taken = bytes(self.content[:count])
        del self.content[:count]
        return taken


def _picture_stream(container: OutputContainer, key_frame: bytes) -> VideoStream:
    """A stream without an encoder: its description comes from the parameter sets of a picture."""
    try:
        probe = av.open(io.BytesIO(key_frame), format="h264")
    except av.FFmpegError as error:
        raise ValueError(f"the first picture is no keyframe of H.264 ({error})") from error
    assert isinstance(probe, InputContainer)
    with probe:
        template = probe.streams.video[0]
        if not template.codec_context.extradata or not template.codec_context.width:
            raise ValueError("the first picture has no parameter sets of H.264")
        stream = container.add_stream_from_template(template)
    assert isinstance(stream, VideoStream)
    stream.time_base = PICTURE_TIME_BASE
    return stream


def _sound_stream(container: OutputContainer) -> AudioStream:
    stream = container.add_stream("libopus", rate=MEDIA_RATE, layout="mono")
    assert isinstance(stream, AudioStream)
    stream.codec_context.open()
    # Packets carry the time of the samples that they play (see SoundEncoder), so that nothing is to be skipped.
    stream.codec_context.extradata = b"OpusHead" + struct.pack("<BBHIhB", 1, 1, 0, MEDIA_RATE, 0, 0)
    return stream


def whole_bytes(content: bytes | bytearray) -> int:
    """The length of what is complete at the beginning of a movie, or of a piece of one that begins with a box."""
    return _whole(io.BytesIO(content))


def whole_length(file: BinaryIO) -> int:
    """The length of the part of a file that is whole; 0 where not even one fragment is."""
    end = _whole(file)
    kinds = {kind for kind, _, box_end in _boxes(file) if box_end <= end}
    return end if {b"moov", b"mdat"} <= kinds else 0


def _whole(file: BinaryIO) -> int:
    """The end of the last complete box that a movie may end with; of one that is complete, its length."""
    length = file.seek(0, io.SEEK_END)
    boxes = [(kind, end) for kind, _, end in _boxes(file)]
    if boxes and boxes[-1][1] == length and boxes[-1][0] != b"moof":
        return length
    return max((end for kind, end in boxes if kind in (b"moov", b"mdat", b"mfra") and end <= length), default=0)


def _boxes(file: BinaryIO, at: int = 0, until: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """The kinds of the boxes that follow each other, where the content of each begins, and where it ends."""
    length = file.seek(0, io.SEEK_END) if until is None else until
    while at + _HEADER <= length:
        file.seek(at)
        size, kind = struct.unpack(">I4s", file.read(_HEADER))
        begin = at + _HEADER
        if size == 1 and at + _FULL_HEADER <= length:
            (size,) = struct.unpack(">Q", file.read(8))
            begin = at + _FULL_HEADER
        if size < begin - at:
            return
        yield kind, begin, at + size
        at += size


def movie_seconds(file: BinaryIO) -> float:
    """The length of a movie, by its fragments. Raises ValueError where it cannot be read."""
    file.seek(0)
    try:
        with av.open(file, "r", format="mp4") as container:
            return float(container.duration or 0) / 1e6
    except av.FFmpegError as error:
        raise ValueError(f"no movie ({error})") from error


def write_duration(file: BinaryIO, seconds: float) -> None:
    """Writes the length of a finished movie into its head, which was written before it was known; what is written
    already stays."""
    scale = _timescale(file)
    for kind, begin, end in _boxes(file):
        if kind == b"moov":
            _write_durations(file, begin, end, seconds, scale)


def write_index(before: BinaryIO, after: BinaryIO) -> None:
    """Writes a movie's index of keyframes (mfra) into ``after``, the same movie with more before its first fragment.
    Nothing is done where one of them has no index. Raises ValueError where it is another movie's."""
    fragments, indices = [], []
    for file in (before, after):
        boxes = list(_boxes(file))
        fragments.append(next((at for kind, at, _ in boxes if kind == b"moof"), 0))
        indices.append(next(((at, end) for kind, at, end in boxes if kind == b"mfra"), None))
    if indices[0] is None or indices[1] is None:
        return
    (begin, end), (place, place_end) = indices[0], indices[1]
    if end - begin != place_end - place:
        raise ValueError("the index is another movie's")
    before.seek(begin)
    content = io.BytesIO(before.read(end - begin))
    for kind, at, _ in list(_boxes(content)):
        if kind == b"tfra":
            _shift(content, at, fragments[1] - fragments[0])
    after.seek(place)
    after.write(content.getvalue())


def _shift(content: BinaryIO, at: int, by: int) -> None:
    """Moves where the fragments of a track's index (tfra, ISO 14496-12, 8.8.10) are, by ``by`` bytes."""
    content.seek(at)
    version, _, lengths, count = struct.unpack(">B3xIII", content.read(16))
    width = 8 if version == 1 else 4
    numbers = sum((lengths >> shift & 3) + 1 for shift in (4, 2, 0))
    for entry in range(count):
        place = at + 16 + entry * (2 * width + numbers) + width
        content.seek(place)
        moved = int.from_bytes(content.read(width), "big") + by
        content.seek(place)
        content.write(moved.to_bytes(width, "big"))


def _timescale(file: BinaryIO) -> int:
    """Units of a second in the movie's own head."""
    for kind, begin, end in _boxes(file):
        if kind == b"moov":
            for inner, at, _ in _boxes(file, begin, end):
                if inner == b"mvhd":
                    file.seek(at + _durations(file, at)[0])
                    return int.from_bytes(file.read(4), "big")
    raise ValueError("the movie has no head")


def _durations(file: BinaryIO, at: int) -> tuple[int, int]:
    """Of a full box with creation and change times: where what follows these begins, and the bytes of a time."""
    file.seek(at)
    return (20, 8) if file.read(1) == b"\1" else (12, 4)


def _write_durations(file: BinaryIO, begin: int, end: int, seconds: float, scale: int) -> None:
    for kind, at, box_end in _boxes(file, begin, end):
        if kind in _IN_MOOV:
            _write_durations(file, at, box_end, seconds, scale)
        elif kind in (b"mvhd", b"tkhd", b"mdhd"):
            times_end, width = _durations(file, at)
            units = scale
            if kind == b"mdhd":
                file.seek(at + times_end)
                units = int.from_bytes(file.read(4), "big")
            # The timescale, or the track's number and four reserved bytes, stand before the duration.
            place = at + times_end + (8 if kind == b"tkhd" else 4)
            file.seek(place)
            if any(file.read(width)):
                continue
            file.seek(place)
            file.write(min(round(seconds * units), 2 ** (8 * width) - 1).to_bytes(width, "big"))
