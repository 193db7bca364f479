"""One recording's file: packets in, whole fragments on the disk. Used on the recording's own thread only."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import av

from echo_rtc.clips import MEDIA_RATE
from echo_rtc.codec.movie import FragmentedMovie, write_duration
from echo_rtc.codec.picture import PICTURE_RATE
from echo_rtc.errors import StorageError
from echo_rtc.recording.options import RecordingLimits
from echo_rtc.stream.encoder_bank import EncodedFrame

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class TapeEndedError(Exception):
    """Nothing more can be recorded; the message is the reason. What was written is whole."""


class Tape:
    """A movie file that grows by whole fragments. It appears with the first picture."""

    def __init__(
        self,
        path: Path,
        fps: int,
        limits: RecordingLimits,
        free_bytes: Callable[[], int],
        begun: Callable[[], None],
    ) -> None:
        """``free_bytes``: free space of the disk; may raise StorageError. ``begun`` is called once the file exists."""
        self._path = path
        self._fps = fps
        self._limits = limits
        self._free_bytes = free_bytes
        self._begun = begun
        self._movie: FragmentedMovie | None = None
        self._file: int | None = None
        self._origin_s = 0.0
        self._taken_s = 0.0
        """Until where packets were taken."""
        self.bytes = 0
        self.seconds = 0.0
        """How long the movie on the disk is."""

    def write(self, frames: Sequence[EncodedFrame]) -> None:
        """Further packets: the first of all is sound, the second a keyframe. Raises TapeEndedError."""
        try:
            if self._movie is None:
                self._begin(frames)
            for frame in frames:
                self._add(frame)
            assert self._movie is not None
            self._put(self._movie.take())
        except (av.FFmpegError, ValueError) as error:
            raise TapeEndedError(f"a packet could not be put into the file ({error})") from error
        if self._limits.most_s and self._taken_s >= self._limits.most_s:
            raise TapeEndedError(f"it lasts --max-recording-time ({self._limits.most_s:g} s)")

    def close(self) -> None:
        """Writes what is left and closes the file; what does not fit any more is left out. Raises OSError where the
        file is closed and may not be whole."""
        if self._movie is None or self._file is None:
            return
        try:
            self._put(self._movie.finish())
        except (TapeEndedError, av.FFmpegError):
            pass  # the file is whole without the last second and the index
        finally:
            file, self._file, self._movie = self._file, None, None
            with os.fdopen(file, "r+b") as open_file:
                if self.bytes:
                    open_file.truncate(self.bytes)
                    write_duration(open_file, self.seconds)
                    open_file.flush()
                    os.fsync(file)

    def _begin(self, frames: Sequence[EncodedFrame]) -> None:
        self._origin_s = float(frames[0].pts * frames[0].time_base)
        key_frame = next(frame for frame in frames if not _is_sound(frame))
        self._movie = FragmentedMovie(key_frame.data, self._fps)
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise TapeEndedError(_why(error)) from error
        self._begun()

    def _add(self, frame: EncodedFrame) -> None:
        assert self._movie is not None
        rate = MEDIA_RATE if _is_sound(frame) else PICTURE_RATE
        pts = frame.pts - round(self._origin_s * rate)
        if _is_sound(frame):
            self._movie.add_sound(frame.data, pts)
        else:
            self._movie.add_picture(frame.data, pts, frame.is_keyframe)
            self._taken_s = pts / rate + 1 / self._fps

    def _put(self, data: bytes) -> None:
        """Appends whole fragments, or nothing. Raises TapeEndedError."""
        if not data:
            return
        assert self._file is not None
        if self._limits.most_bytes and self.bytes + len(data) > self._limits.most_bytes:
            raise TapeEndedError(f"it would be larger than --max-recording-size ({self._limits.most_bytes >> 20} MiB)")
        try:
            if self._limits.least_free_bytes and self._free_bytes() < self._limits.least_free_bytes:
                raise TapeEndedError(
                    f"the disk has less than --min-free-disk left ({self._limits.least_free_bytes >> 20} MiB)"
                )
            _write_all(self._file, data)
        except StorageError as error:
            raise TapeEndedError(str(error)) from error
        except OSError as error:
            with suppress(OSError):  # tried again when the file is closed
                os.ftruncate(self._file, self.bytes)
            raise TapeEndedError(_why(error)) from error
        self.bytes += len(data)
        self.seconds = self._taken_s


def _write_all(file: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]


def _is_sound(frame: EncodedFrame) -> bool:
    return frame.time_base.denominator == MEDIA_RATE


def _why(error: OSError) -> str:
    if error.errno in FULL:
        return "the disk is full"
    return f"the file cannot be written: {error.strerror or error}"
