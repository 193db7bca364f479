"""aiortc's audio tracks as voices of a stream: a caller's microphone, and any track of a Python program.

Both drain their track without pause, so that aiortc's unbounded queue stays empty, and end with it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import av
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from echo_rtc.codec.resampling import VoiceConverter, mono
from echo_rtc.stream.voice import UnusableBlock, VoiceBlock


async def microphone(track: MediaStreamTrack) -> AsyncIterator[VoiceBlock | UnusableBlock]:
    """The blocks of a remote audio track, which aiortc decodes to 16 bit at 48 kHz with time stamps."""
    async for frame in _frames(track):
        yield _block(frame)


async def any_track(track: MediaStreamTrack) -> AsyncIterator[VoiceBlock | UnusableBlock]:
    """The blocks of an audio track of any rate and format: files, synthesisers, other programs. Gaps between its frames
    stay gaps."""
    converter = VoiceConverter()
    async for frame in _frames(track):
        if not isinstance(frame, av.AudioFrame):
            yield UnusableBlock(str(frame))
            continue
        try:
            converted = converter.convert(frame)
        except (av.FFmpegError, ValueError) as error:
            yield UnusableBlock(f"{frame} ({error})")
            continue
        for part in converted:
            yield _block(part)


async def _frames(track: MediaStreamTrack) -> AsyncIterator[object]:
    while True:
        try:
            frame = await track.recv()
        except MediaStreamError:
            return
        yield frame


def _block(frame: object) -> VoiceBlock | UnusableBlock:
    pcm = mono(frame) if isinstance(frame, av.AudioFrame) else None
    if pcm is None or not isinstance(frame, av.AudioFrame) or frame.pts is None:
        return UnusableBlock(str(frame))
    return VoiceBlock(frame.pts, pcm)
