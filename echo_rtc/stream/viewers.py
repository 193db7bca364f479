"""One viewer's share of a stream: a pair of bounded queues of encoded frames.

Frames are encoded once per stream and shared; the queues hold references to them. Nothing here waits for a viewer: what
does not fit is dropped and counted, and the picture goes on with the next keyframe. Knows no clock, no playout and no
connection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from echo_rtc.codec.picture import VideoCodec
from echo_rtc.counting import CounterMetric, counter
from echo_rtc.stream.encoder_bank import EncodedFrame
from echo_rtc.stream.queues import MediaQueue

SOUND_QUEUE_PACKETS = 50
"""Packets of 20 ms that may wait for a peer: one second."""
PICTURE_QUEUE_PACKETS = 30
"""Frames that may wait for a peer: about one second."""

DueFrame: TypeAlias = tuple[EncodedFrame, float]
"""An encoded frame, and when it was due by the clock of the stream (s)."""


PACKETS = CounterMetric("viewer_packets", "Encoded packets handed to viewers.", "kind")
DROPPED_PACKETS = CounterMetric("viewer_dropped_packets", "Encoded packets that viewers did not take in time.", "kind")


@dataclass(slots=True)
class ViewerCounters:
    """Packets handed to a viewer, and packets that it did not take in time."""

    sound_packets: int = counter(PACKETS, "sound")
    picture_packets: int = counter(PACKETS, "picture")
    sound_dropped: int = counter(DROPPED_PACKETS, "sound")
    picture_dropped: int = counter(DROPPED_PACKETS, "picture")


class Viewer:
    """One viewer of a stream: sound, picture, or both, which begin together.

    The viewer goes live once its peer reads every queue it has, which calls ``on_change``; the frames begin with a
    keyframe and the sound of that moment. ``ask_key_frame`` is called whenever the picture needs a keyframe.
    """

    def __init__(
        self,
        number: int,
        codec: VideoCodec | None,
        with_sound: bool,
        on_change: Callable[[], None],
        ask_key_frame: Callable[[VideoCodec, int], None],
    ) -> None:
        self.number = number
        self.codec = codec
        self._on_change = on_change
        self._ask_key_frame = ask_key_frame
        self.sound: MediaQueue[DueFrame] | None = None
        self.picture: MediaQueue[DueFrame] | None = None
        if with_sound:
            self.sound = MediaQueue(SOUND_QUEUE_PACKETS, self._first_read)
        if codec is not None:
            self.picture = MediaQueue(PICTURE_QUEUE_PACKETS, self._first_read)
        self._needs_key = codec is not None
        self._begun = codec is None
        self.counters = ViewerCounters()

    @property
    def live(self) -> bool:
        """Whether the peer reads all of its queues."""
        queues = [queue for queue in (self.sound, self.picture) if queue is not None]
        return bool(queues) and all(queue.live for queue in queues)

    def take_sound(self, frame: EncodedFrame, due_s: float) -> None:
        """Offers a frame of sound that is due now, or was at ``due_s``."""
        if self.sound is None or not self._begun or not self.live:
            return
        if self.sound.full:
            self.counters.sound_dropped += self.sound.drop(1)
        self.sound.put((frame, due_s))
        self.counters.sound_packets += 1

    def take_picture(self, frame: EncodedFrame, due_s: float) -> None:
        """Offers a frame of this viewer's codec that is due now, or was at ``due_s``."""
        if self.picture is None or not self.live:
            return
        if self.picture.full:
            # Later frames refer to those dropped, so nothing may be sent before the next keyframe.
            self.counters.picture_dropped += self.picture.drop(self.picture.waiting())
            self._needs_key = True
            self._request_key_frame()
        if self._needs_key:
            if not frame.is_keyframe:
                self.counters.picture_dropped += self._begun
                return
            self._needs_key, self._begun = False, True
        self.picture.put((frame, due_s))
        self.counters.picture_packets += 1

    def close(self) -> None:
        """Closes the queues, which ends their readers."""
        for queue in (self.sound, self.picture):
            if queue is not None:
                queue.close()

    def _first_read(self) -> None:
        if self.live:
            self._on_change()
            self._request_key_frame()

    def _request_key_frame(self) -> None:
        if self.codec is not None:
            self._ask_key_frame(self.codec, self.number)
