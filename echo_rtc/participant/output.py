"""What an avatar publishes in a LiveKit room: the sound and pictures of a tap, as they are due.

LiveKit's library encodes them. Sound goes to it unbuffered, so that it keeps its place beside the pictures.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import av
from livekit import rtc

from echo_rtc.clips import MEDIA_RATE, ClipFormat
from echo_rtc.stream.queues import QueueClosedError
from echo_rtc.stream.taps import Tap

PIECE_SAMPLES = MEDIA_RATE // 100
"""A source without a buffer takes 10 ms at a time."""
BITS_PER_PIXEL = 0.15
LEAST_BITRATE = 400_000


class RoomOutput:
    """The two tracks of an avatar. To be made and closed in the event loop."""

    def __init__(self, clip_format: ClipFormat) -> None:
        self._format = clip_format
        self._sound = rtc.AudioSource(MEDIA_RATE, 1, queue_size_ms=0)
        self._picture = rtc.VideoSource(clip_format.width, clip_format.height)

    async def publish(self, participant: rtc.LocalParticipant) -> None:
        """Publishes both tracks. Raises what the library raises."""
        sound = rtc.LocalAudioTrack.create_audio_track("avatar_audio", self._sound)
        await participant.publish_track(sound, rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE))
        picture = rtc.LocalVideoTrack.create_video_track("avatar_video", self._picture)
        pixels_a_second = self._format.width * self._format.height * self._format.fps
        encoding = rtc.VideoEncoding(
            max_bitrate=max(LEAST_BITRATE, round(BITS_PER_PIXEL * pixels_a_second)), max_framerate=self._format.fps
        )
        options = rtc.TrackPublishOptions(
            source=rtc.TrackSource.SOURCE_CAMERA, video_encoding=encoding, simulcast=False
        )
        await participant.publish_track(picture, options)

    async def run(self, tap: Tap) -> None:
        """Passes on what the tap gives until it is closed."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self._pass_sound(tap), name="sound for a LiveKit room")
            both.create_task(self._pass_pictures(tap), name="pictures for a LiveKit room")

    async def close(self) -> None:
        await self._sound.aclose()
        await self._picture.aclose()

    async def _pass_sound(self, tap: Tap) -> None:
        with suppress(QueueClosedError):
            while True:
                frame, _ = await tap.sound.get()
                pcm = frame.to_ndarray()[0]
                for start in range(0, len(pcm), PIECE_SAMPLES):
                    piece = pcm[start : start + PIECE_SAMPLES]
                    await self._sound.capture_frame(rtc.AudioFrame(piece.tobytes(), MEDIA_RATE, 1, len(piece)))

    async def _pass_pictures(self, tap: Tap) -> None:
        with suppress(QueueClosedError):
            while True:
                frame, _ = await tap.picture.get()
                self._picture.capture_frame(_picture(frame))


def _picture(frame: av.VideoFrame) -> rtc.VideoFrame:
    planes = frame.to_ndarray(format="yuv420p").tobytes()
    return rtc.VideoFrame(frame.width, frame.height, rtc.VideoBufferType.I420, planes)
