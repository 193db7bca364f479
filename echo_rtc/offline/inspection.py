"""Reads the marks in the H.264 of a file, which say that it is synthetic.

Only keyframes are decoded. A file without marks may still be synthetic: encoding again removes them. Every fault of a
file is an InputError with one sentence.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from echo_rtc.codec.picture import marks_of
from echo_rtc.errors import InputError
from echo_rtc.offline.files import open_container


@dataclass(frozen=True, slots=True)
class Found:
    """What was found in a file. ``codec``: of its picture; ``keyframes``: how many it has; ``marked``: how many of them
    have a mark; ``marks``: their different contents, the most frequent first."""

    codec: str
    keyframes: int
    marked: int
    marks: tuple[dict[str, Any], ...]


def inspected(path: Path) -> Found:
    """Reads all keyframes of a file's first picture track. Raises InputError for what cannot be read."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no ordinary file; name a file with video")
    try:
        # Opened here, because FFmpeg takes some names for addresses.
        with path.open("rb") as file, open_container(file) as container:
            return _found(container, path)
    except av.FFmpegError as error:
        raise InputError(f"{path} cannot be read as video: {error.strerror or error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _found(container: InputContainer, path: Path) -> Found:
    # PyAV promises a codec, and has none where FFmpeg does not know what the file names.
    tracks = [track for track in container.streams.video if getattr(track, "codec_context", None) is not None]
    if not tracks:
        raise InputError(f"{path} has no picture that can be decoded")
    keyframes = marked = 0
    texts: Counter[str] = Counter()
    for frame in _keyframes(container, tracks[0]):
        keyframes += 1
        found = marks_of(frame)
        marked += bool(found)
        texts.update(json.dumps(mark, sort_keys=True) for mark in found)
    marks = tuple(json.loads(text) for text, _ in texts.most_common())
    return Found(tracks[0].codec_context.name, keyframes, marked, marks)


def _keyframes(container: InputContainer, track: VideoStream) -> Iterator[av.VideoFrame]:
    track.codec_context.skip_frame = "NONKEY"
    for packet in container.demux(track):
        try:
            yield from packet.decode()
        except av.FFmpegError:  # a damaged picture; the others may be whole
            continue
