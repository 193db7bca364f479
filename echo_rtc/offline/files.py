"""Sound files in, movies out: what PyAV can read as 48 kHz sound, and H.264 with AAC that appears whole or not at all.

Knows files and codecs. Every fault of a file is an InputError with one sentence.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from echo_rtc.clips import MEDIA_RATE, ClipFormat, S16Array, YuvFrames
from echo_rtc.codec.burned_mark import BurnedMark
from echo_rtc.codec.marking import GENERATOR, Mark
from echo_rtc.codec.picture import marked_packet, video_frame
from echo_rtc.errors import InputError
from echo_rtc.offline.credentials import CredentialsSigner

logger = logging.getLogger(__name__)

GAP_S, MAX_GAP_S = 0.1, 60.0
"""A step of this size (s) between a file's timestamps is a gap, and filled with silence; a greater one than the second
is a clock that was set again, and is ignored."""

MAX_PRIMING_S = 0.2
"""Sound of at most this length (s) before time zero is an encoder's priming, which no player plays. Where a container
(Matroska) marks it by negative timestamps, FFmpeg before 8.1 leaves it to the reader to drop."""

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""The endings of movies that can be written, and FFmpeg's names of their containers."""

VIDEO_OPTIONS = {"preset": "medium", "crf": "18"}
AUDIO_BITS_PER_CHANNEL = 96_000
_BT601, _LIMITED_RANGE = 6, 1  # FFmpeg's AVCOL_*_SMPTE170M and AVCOL_RANGE_MPEG


class SoundFile:
    """The audio track of a file, decoded to 48 kHz int16, mono or stereo. Gaps in it are silence.

    Opening reads as far as the first sound, so that what is no sound is known at once. Raises InputError, also while
    the blocks are read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if path.is_dir():
            raise InputError(f"audio is {path}, which is a folder; name a file with sound")
        # Opening a pipe waits for its writer, and what was read from it to check it cannot be read again to render it.
        if path.exists() and not path.is_file():
            raise InputError(f"audio is {path}, which is a pipe or a device; save the sound in a file and name that")
        with contextlib.ExitStack() as opening:
            try:
                file = opening.enter_context(path.open("rb"))
                if not file.peek(1):
                    raise InputError(f"audio is {path}, which is empty (0 bytes)")
                container = opening.enter_context(open_container(file))
            except av.FFmpegError as error:
                raise InputError(f"audio is {path}, which is no file of sound or video that can be read") from error
            except OSError as error:
                raise InputError(f"audio is {path}, which cannot be read: {error.strerror}") from error
            if not container.streams.audio:
                raise InputError(f"audio is {path}, which has no audio track")
            self._container = container
            track = _default_track(container)
            if track is None:
                raise InputError(f"audio is {path}, whose sound is in a form that is not known")
            self._track = track
            self.channels = 1 if track.codec_context.layout.nb_channels == 1 else 2
            self._resampler: tuple[object, av.AudioResampler] | None = None
            self._blocks = self._decode()
            first = next(self._blocks, None)
            if first is None:
                raise InputError(f"audio is {path}, which holds no sound")
            self._blocks = itertools.chain([first], self._blocks)
            self._open = opening.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def duration_s(self) -> float | None:
        """Length by the file's own word, which may be missing and may be wrong."""
        if self._track.duration is not None and self._track.time_base is not None:
            return float(self._track.duration * self._track.time_base)
        return None if self._container.duration is None else self._container.duration / av.time_base

    def blocks(self) -> Iterator[S16Array]:
        """The sound from beginning to end in blocks (samples, channels); to be read once."""
        return self._blocks

    def _decode(self) -> Iterator[S16Array]:
        damaged = surplus = 0
        clock = _FileClock()
        for frame in self._frames():
            if frame is None:
                damaged += 1
                continue
            samples = frame.to_ndarray()
            if samples.dtype.kind == "f" and not np.isfinite(samples).all():
                raise InputError(f"audio is {self._path}, whose samples are not all numbers (NaN or infinite)")
            surplus += clock.priming(frame)
            gap = clock.gap(frame)
            if gap:
                yield np.zeros((gap, self.channels), np.int16)
            for block in self._resampled(frame):
                kept = block[surplus:]
                surplus -= len(block) - len(kept)
                if len(kept):
                    yield kept
        yield from self._resampled(None)
        if damaged:
            logger.warning("%s: %d damaged packets were left out", self._path, damaged)

    def _frames(self) -> Iterator[av.AudioFrame | None]:
        """All frames of the track; None for a packet that cannot be decoded."""
        packets = self._container.demux(self._track)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError as error:
                raise InputError(f"audio is {self._path}, which cannot be read to its end: {error.strerror}") from error
            if packet is None:
                return
            try:
                yield from packet.decode()
            except av.FFmpegError:
                yield None

    def _resampled(self, frame: av.AudioFrame | None) -> Iterator[S16Array]:
        """Blocks at 48 kHz; None ends the track, as does a change of its kind in mid-file."""
        kind = None if frame is None else (frame.format.name, frame.layout.name, frame.sample_rate)
        made: list[av.AudioFrame] = []
        if self._resampler is not None and self._resampler[0] != kind:
            made += self._resampler[1].resample(None)
            self._resampler = None
        if frame is not None:
            if self._resampler is None:
                layout = "mono" if self.channels == 1 else "stereo"
                self._resampler = kind, av.AudioResampler(format="s16", layout=layout, rate=MEDIA_RATE)
            frame.pts = None
            try:
                made += self._resampler[1].resample(frame)
            except (av.FFmpegError, ValueError) as error:
                raise InputError(f"audio is {self._path}, whose {kind} sound cannot be converted: {error}") from error
        for block in made:
            yield block.to_ndarray().reshape(-1, self.channels).astype(np.int16, copy=False)


class _FileClock:
    """Compares a file's timestamps with the samples that came."""

    def __init__(self) -> None:
        self._expected: Fraction | None = None

    def priming(self, frame: av.AudioFrame) -> int:
        """Samples at 48 kHz of the file's first ``frame`` and of what follows that lie before time zero."""
        at = self._time(frame)
        first = self._expected is None
        return round(-at * MEDIA_RATE) if first and at is not None and -MAX_PRIMING_S <= at < 0 else 0

    def gap(self, frame: av.AudioFrame) -> int:
        """Samples at 48 kHz that are missing before ``frame``."""
        at = self._time(frame)
        missing = Fraction(0)
        if at is not None and self._expected is not None and GAP_S <= at - self._expected <= MAX_GAP_S:
            missing = at - self._expected
        begin = at if at is not None else self._expected or Fraction(0)
        self._expected = begin + Fraction(frame.samples, frame.sample_rate)
        return round(missing * MEDIA_RATE)

    @staticmethod
    def _time(frame: av.AudioFrame) -> Fraction | None:
        """Seconds by the frame's timestamp, None where it has none."""
        return None if frame.pts is None or frame.time_base is None else frame.pts * Fraction(frame.time_base)


def open_container(file: BinaryIO) -> InputContainer:
    """A container to be read, whose metadata may be in any encoding. Raises av.FFmpegError."""
    # PyAV refuses undecodable metadata before version 19 unless it is told otherwise, and replaces it from 19 on.
    lenient: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    container = av.open(file, **lenient)
    assert isinstance(container, InputContainer)
    return container


def _default_track(container: InputContainer) -> AudioStream | None:
    """The audio track that players choose: the one marked as default, else the first; None where none of them can be
    decoded."""
    # PyAV promises a codec, and has none where FFmpeg does not know what the file names.
    known = [track for track in container.streams.audio if getattr(track, "codec_context", None) is not None]
    marked = [track for track in known if Disposition.default in track.disposition]
    return next(iter([*marked, *known]), None)


@dataclass(frozen=True, slots=True)
class MovieMarking:
    """How a movie says that it is synthetic. ``mark``: what its keyframes say; ``burn``: what is drawn into each
    picture; ``signer``: signs the finished file."""

    mark: Mark = field(default_factory=Mark)
    burn: BurnedMark | None = None
    signer: CredentialsSigner | None = None


class MovieFile:
    """A movie being written under a temporary name beside ``path``: it takes its name when the ``with`` block ends
    well, and is removed otherwise. Its keyframes and its metadata say that it is synthetic. Raises InputError wherever
    it cannot be written."""

    def __init__(self, path: Path, clip_format: ClipFormat, channels: int, marking: MovieMarking | None = None) -> None:
        check_movie_path(path)
        self._path = path
        self._marking = marking or MovieMarking()
        self._nal_unit = self._marking.mark.nal_unit()
        self._format = clip_format
        self._layout = "mono" if channels == 1 else "stereo"
        self._frames = 0
        self._samples = 0
        self._temporary = path.parent / f".echo_rtc-{secrets.token_hex(6)}.part"
        try:
            self._temporary.open("xb").close()
        except OSError as error:
            raise self._failure(error) from error
        with contextlib.ExitStack() as undo:
            undo.callback(self._temporary.unlink)
            try:
                kind = CONTAINERS[path.suffix.lower()]
                index_first = {} if kind == "matroska" else {"movflags": "+faststart"}
                container = av.open(str(self._temporary), "w", format=kind, container_options=index_first)
                assert isinstance(container, OutputContainer)
                container.metadata["comment"] = f"AI-generated by {GENERATOR} {self._marking.mark.version}"
                self._container = container
                self._video = self._video_stream(container)
                self._audio: AudioStream = container.add_stream("aac", rate=MEDIA_RATE, layout=self._layout)
                self._audio.bit_rate = AUDIO_BITS_PER_CHANNEL * channels
            except OSError as error:
                raise self._failure(error) from error
            undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            try:
                self._mux_video(None)
                self._container.mux(self._audio.encode(None))
                self._container.close()
                if self._marking.signer is not None:
                    self._marking.signer.sign(self._temporary, self._path, self._marking.mark)
                self._temporary.replace(self._path)
            except OSError as failure:
                self._remove()
                raise self._failure(failure) from failure
            except BaseException:
                self._remove()
                raise
        else:
            self._remove()

    def add(self, frames: YuvFrames, sound: S16Array) -> None:
        """The next frames, and the next sound (samples, channels) at 48 kHz."""
        burn = self._marking.burn
        try:
            for picture in frames if burn is None else burn.on(frames):
                frame = video_frame(picture)
                frame.pts, frame.time_base = self._frames, Fraction(1, self._format.fps)
                self._frames += 1
                self._mux_video(frame)
            if len(sound):
                block = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(sound.reshape(1, -1)), format="s16", layout=self._layout
                )
                block.sample_rate, block.pts, block.time_base = MEDIA_RATE, self._samples, Fraction(1, MEDIA_RATE)
                self._samples += len(sound)
                self._container.mux(self._audio.encode(block))
        except OSError as error:
            raise self._failure(error) from error

    def _mux_video(self, frame: av.VideoFrame | None) -> None:
        """Encodes a frame, None for the end, and writes what that completes."""
        self._container.mux([marked_packet(packet, self._nal_unit) for packet in self._video.encode(frame)])

    def _video_stream(self, container: OutputContainer) -> VideoStream:
        stream: VideoStream = container.add_stream("libx264", rate=self._format.fps, options=dict(VIDEO_OPTIONS))
        stream.width, stream.height, stream.pix_fmt = self._format.width, self._format.height, "yuv420p"
        stream.time_base = Fraction(1, self._format.fps)
        codec = stream.codec_context
        codec.color_range = _LIMITED_RANGE
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT601
        return stream

    def _remove(self) -> None:
        # Closing a half-written container may fail once more; the file goes either way.
        with contextlib.suppress(OSError, ValueError):
            self._container.close()
        self._temporary.unlink(missing_ok=True)

    def _failure(self, error: OSError) -> InputError:
        return InputError(f"output is {self._path}, which cannot be written: {error.strerror or error}")


def check_movie_path(path: Path) -> None:
    """Raises InputError if a movie cannot be written there for a reason that its name, its folder or what is there
    already shows."""
    if path.suffix.lower() not in CONTAINERS:
        raise InputError(f"output is {path}, whose ending is unknown; choose one of {', '.join(CONTAINERS)}")
    if path.is_dir():
        raise InputError(f"output is {path}, which is a folder; name a file in it")
    if path.exists() and not path.is_file():
        raise InputError(f"output is {path}, which is no ordinary file")
    if not path.parent.is_dir():
        raise InputError(f"output is {path}, but the folder {path.parent} does not exist; make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"output is {path}, but nothing may be written into the folder {path.parent}")
