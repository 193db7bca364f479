"""A talking face for LiveKit agents: a ``VideoGenerator`` for ``livekit.agents.voice.avatar.AvatarRunner``.

The agent's speech comes in as fast as it is synthesised; it is played in real time to a face, whose pictures and sound
go to the runner when they are due. Between speeches the idle loop is shown and no sound leaves. To join a room as an
avatar worker that gets its audio over data streams (``pip install livekit-agents``):

    LIVEKIT_URL=wss://... LIVEKIT_TOKEN=... python examples/livekit_avatar.py
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from livekit import rtc
from livekit.agents.voice.avatar import (
    AudioReceiver,
    AudioSegmentEnd,
    AvatarOptions,
    AvatarRunner,
    DataStreamAudioReceiver,
    VideoGenerator,
)

from echo_rtc.avatar import AvatarService
from echo_rtc.clips import S16Array

RATE = 48_000
BLOCK = 960
"""Samples of 20 ms."""
AHEAD_S = 5.0
"""So much speech may wait; whoever pushes more waits with it."""
OUT_FRAMES = 8
"""Frames that may wait for the runner."""

Output = rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd


@dataclass
class Span:
    """Speech at samples ``start`` .. ``end`` of the voice's time; ``last``: a segment ends with it."""

    start: int
    end: int
    last: bool


class Speech(MediaStreamTrack):
    """The voice of a face: what was pushed, in real time, and silence where there is nothing."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self._waiting: deque[S16Array | None] = deque()  # None: a segment ends here
        self._samples = 0
        self._taken = asyncio.Event()
        self._next = 0
        self._began_s: float | None = None
        self.spans: deque[Span] = deque()
        """What has been said and has not come back yet."""

    @property
    def ahead_s(self) -> float:
        return self._samples / RATE

    async def room(self) -> None:
        """Waits until less than AHEAD_S of speech waits."""
        while self.ahead_s >= AHEAD_S:
            self._taken.clear()
            await self._taken.wait()

    def say(self, pcm: S16Array) -> None:
        self._waiting.append(pcm)
        self._samples += len(pcm)

    def end_segment(self) -> None:
        self._waiting.append(None)

    def clear(self) -> None:
        """Forgets what waits, and what has been said already but has not come back."""
        self._waiting.clear()
        self._samples = 0
        self.spans.clear()
        self._taken.set()

    async def recv(self) -> av.AudioFrame:
        if self.readyState != "live":
            raise MediaStreamError
        loop = asyncio.get_running_loop()
        if self._began_s is None:
            self._began_s = loop.time()
        await asyncio.sleep(self._began_s + (self._next + BLOCK) / RATE - loop.time())
        frame = av.AudioFrame.from_ndarray(self._block().reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, self._next, Fraction(1, RATE)
        self._next += BLOCK
        return frame

    def _block(self) -> S16Array:
        block, filled = np.zeros(BLOCK, np.int16), 0
        while self._waiting and filled < BLOCK:
            pcm = self._waiting.popleft()
            at = self._next + filled
            if pcm is None:
                self.spans.append(Span(at, at, last=True))
                continue
            taken = pcm[: BLOCK - filled]
            if len(taken) < len(pcm):
                self._waiting.appendleft(pcm[len(taken) :])
            block[filled : filled + len(taken)] = taken
            self.spans.append(Span(at, at + len(taken), last=False))
            filled += len(taken)
        self._samples -= filled
        self._taken.set()
        return block


class FaceGenerator(VideoGenerator):
    """One face for one runner. To be made in the event loop, and closed by :meth:`aclose`."""

    def __init__(self, avatars: AvatarService, avatar: str | None = None) -> None:
        self._speech = Speech()
        self._face = avatars.animate(self._speech, avatar)
        self._resampler: av.AudioResampler | None = None
        self._out: asyncio.Queue[Output | None] = asyncio.Queue(OUT_FRAMES)
        self._pushes = 0
        self.options = AvatarOptions(
            video_width=avatars.format.width,
            video_height=avatars.format.height,
            video_fps=avatars.format.fps,
            audio_sample_rate=RATE,
            audio_channels=1,
        )

    async def push_audio(self, frame: rtc.AudioFrame | AudioSegmentEnd) -> None:
        cleared = self._pushes
        await self._speech.room()
        if cleared != self._pushes:
            return  # it was interrupted while it waited
        if isinstance(frame, AudioSegmentEnd):
            self._resample(None)
            self._speech.end_segment()
        else:
            self._resample(frame)

    def clear_buffer(self) -> None:
        """The rest of the speech is not heard, from this moment on. The face stops speaking within its delay."""
        self._pushes += 1
        self._resampler = None
        self._speech.clear()
        pictures = [output for output in _drain(self._out) if not isinstance(output, rtc.AudioFrame | AudioSegmentEnd)]
        for picture in pictures:
            self._out.put_nowait(picture)

    async def __aiter__(self) -> AsyncIterator[Output]:
        reading = asyncio.create_task(self._read(), name="read a face")
        try:
            while (output := await self._out.get()) is not None:
                yield output
        finally:
            reading.cancel()
            await asyncio.wait({reading})

    async def aclose(self) -> None:
        self._speech.stop()
        await self._face.close()

    def _resample(self, frame: rtc.AudioFrame | None) -> None:
        """Passes a frame on as mono at 48 kHz; None ends a segment."""
        made: list[av.AudioFrame] = []
        if frame is not None:
            if self._resampler is None:
                self._resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
            pcm = np.frombuffer(frame.data, np.int16).reshape(1, -1)
            layout = "mono" if frame.num_channels == 1 else "stereo"
            given = av.AudioFrame.from_ndarray(pcm, format="s16", layout=layout)
            given.sample_rate = frame.sample_rate
            made = self._resampler.resample(given)
        elif self._resampler is not None:
            made = self._resampler.resample(None)
            self._resampler = None
        for part in made:
            self._speech.say(part.to_ndarray()[0].astype(np.int16))

    async def _read(self) -> None:
        """Reads both tracks until the face has ended."""
        await asyncio.gather(self._read_sound(), self._read_pictures(), return_exceptions=True)
        await self._out.put(None)

    async def _read_sound(self) -> None:
        """Sound leaves as it was said: the speech itself, and after the last of it the end of the segment."""
        track = self._face.audio
        while True:
            pcm = (await track.recv()).to_ndarray()[0].astype(np.int16)
            origin = self._face.media_sample(0)
            if origin is None:
                continue
            begin = track.media_sample - origin
            spans = self._speech.spans
            while spans and spans[0].start < begin + len(pcm):
                span = spans[0]
                part = pcm[max(0, span.start - begin) : max(0, span.end - begin)]
                if len(part):
                    await self._out.put(rtc.AudioFrame(part.tobytes(), RATE, 1, len(part)))
                if not spans or spans[0] is not span:
                    break  # it was interrupted meanwhile
                if span.end > begin + len(pcm):
                    span.start = begin + len(pcm)
                    break
                spans.popleft()
                if span.last:
                    await self._out.put(AudioSegmentEnd())

    async def _read_pictures(self) -> None:
        while True:
            frame = await self._face.video.recv()
            planes = frame.to_ndarray(format="yuv420p").tobytes()
            await self._out.put(rtc.VideoFrame(frame.width, frame.height, rtc.VideoBufferType.I420, planes))


def _drain(queue: asyncio.Queue[Output | None]) -> list[Output | None]:
    return [queue.get_nowait() for _ in range(queue.qsize())]


def runner_for(room: rtc.Room, audio: AudioReceiver, generator: FaceGenerator) -> AvatarRunner:
    """The library's own runner, which publishes the face in a room."""
    return AvatarRunner(room, audio_recv=audio, video_gen=generator, options=generator.options)


async def main() -> None:
    room = rtc.Room()
    async with AvatarService.open() as avatars:
        await room.connect(os.environ["LIVEKIT_URL"], os.environ["LIVEKIT_TOKEN"])
        generator = FaceGenerator(avatars)
        runner = runner_for(room, DataStreamAudioReceiver(room), generator)
        try:
            await runner.start()
            await runner.wait_for_complete()
        finally:
            await runner.aclose()
            await generator.aclose()
            await room.disconnect()


if __name__ == "__main__":
    asyncio.run(main())
