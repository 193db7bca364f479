"""One recording: takes a stream's packets on the event loop and passes them on in batches. Never waits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from echo_rtc.codec.picture import VideoCodec
from echo_rtc.recording.facts import RecordingFacts, RecordingState
from echo_rtc.recording.options import RecordingLimits
from echo_rtc.recording.shelf import Shelf
from echo_rtc.recording.tape import Tape
from echo_rtc.recording.writer import TapeWriter
from echo_rtc.stream.encoder_bank import EncodedFrame

BATCH_BLOCKS = 25
"""Blocks of sound that are handed over at once: half a second, so that the thread wakes up twice a second."""
STREAM_ENDED = "the stream ended"
TOO_SLOW = "the disk did not take the data in time"


class Recorder:
    """A packet sink that makes a file. The file begins with a keyframe and the sound of that moment."""

    codec = VideoCodec.H264

    def __init__(
        self,
        facts: RecordingFacts,
        shelf: Shelf,
        limits: RecordingLimits,
        fps: int,
        on_end: Callable[[str], None],
    ) -> None:
        """``on_end`` is called once, with the reason, as soon as no more is recorded."""
        self._facts = facts
        self._shelf = shelf
        self._on_end = on_end
        self._tape = Tape(shelf.partial(facts), fps, limits, shelf.free_bytes, lambda: shelf.describe(facts))
        self._writer = TapeWriter(self._tape, self.end, self._finish)
        self._begun = False
        self._batch: list[EncodedFrame] = []
        self._blocks = 0
        self._reason: str | None = None
        self._state = RecordingState.RECORDING
        self.dropped_packets = 0

    @property
    def facts(self) -> RecordingFacts:
        """As they are at this moment."""
        facts = replace(self._facts, state=self._state, reason=self._reason)
        return replace(facts, seconds=self._tape.seconds, bytes=self._tape.bytes)

    @property
    def reason(self) -> str | None:
        """Why it has ended; None while it has not."""
        return self._reason

    @property
    def is_finished(self) -> bool:
        """Whether it has ended and its file is closed and worked on."""
        return self._writer.done.done()

    def take_sound(self, frame: EncodedFrame) -> None:
        if self._reason is not None:
            return
        if not self._begun:
            self._batch = [frame]  # the sound in which the first picture falls
            return
        self._batch.append(frame)
        self._blocks += 1
        if self._blocks >= BATCH_BLOCKS:
            self._hand_over()

    def take_picture(self, frame: EncodedFrame) -> None:
        if self._reason is not None:
            return
        if not self._begun:
            if not frame.is_keyframe or not self._batch:
                return
            self._begun = True
        self._batch.append(frame)

    def close(self) -> None:
        """The stream has ended."""
        self.end(STREAM_ENDED)

    def end(self, reason: str) -> None:
        """Nothing more is recorded. The first reason counts."""
        if self._reason is not None:
            return
        if self._begun and self._batch:
            self._hand_over()
        if self._reason is None:
            self._settle(reason)

    async def finished(self) -> None:
        """Waits until the file is closed and worked on."""
        await self._writer.done
        if self._state is RecordingState.FINISHING:  # the disk failed before the last step; the next start repairs it
            self._state = RecordingState.UNFINISHED

    def _settle(self, reason: str) -> None:
        self._reason = reason
        self._state = RecordingState.FINISHING
        self._batch = []
        self._writer.close()
        self._on_end(reason)

    def _hand_over(self) -> None:
        batch, self._batch, self._blocks = tuple(self._batch), [], 0
        if not self._writer.put(batch):
            self.dropped_packets += len(batch)
            self._settle(TOO_SLOW)

    def _finish(self) -> None:
        """On the recording's thread."""
        if self._tape.bytes == 0:
            self._shelf.discard(self._facts)
            self._state = RecordingState.EMPTY
            return
        self._state = self._shelf.finish(self.facts).state
