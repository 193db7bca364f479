"""The thread on which a recording is muxed and written, and the bounded queue that leads to it.

The event loop never waits for the disk: a batch that finds the queue full is dropped and counted, and the recording
ends, because later pictures could not be decoded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from typing import TypeAlias

from echo_rtc.recording.tape import Tape, TapeEndedError
from echo_rtc.stream.encoder_bank import EncodedFrame

MAX_WAITING_BATCHES = 16
"""Batches of half a second that may wait for a slow disk: eight seconds."""

Batch: TypeAlias = tuple[EncodedFrame, ...]

logger = logging.getLogger(__name__)


class TapeWriter:
    """Hands batches to a tape on a thread. The methods are the event loop's."""

    def __init__(self, tape: Tape, on_end: Callable[[str], None], finish: Callable[[], None]) -> None:
        """``on_end`` is called on the event loop with the reason when nothing more can be written; ``finish`` on the
        thread, once the tape is closed without an error."""
        self._tape = tape
        self._on_end = on_end
        self._finish = finish
        self._loop = asyncio.get_running_loop()
        self._batches: queue.Queue[Batch | None] = queue.Queue(MAX_WAITING_BATCHES)
        self.done: asyncio.Future[None] = self._loop.create_future()
        """Done when the thread has ended."""
        # A daemon: a disk that never answers must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="echo-recording", daemon=True)
        self._thread.start()

    def put(self, batch: Batch) -> bool:
        """Whether there was room for the batch."""
        try:
            self._batches.put_nowait(batch)
        except queue.Full:
            return False
        return True

    def close(self) -> None:
        """What waits is written, then the tape is closed. Must be called once."""
        while True:
            try:
                self._batches.put_nowait(None)
                return
            except queue.Full:
                # The disk is stuck, or too slow by far: the oldest stay, so that there is no gap before the end.
                with contextlib.suppress(IndexError), self._batches.mutex:
                    self._batches.queue.pop()

    def _run(self) -> None:
        try:
            try:
                self._write()
            finally:
                self._tape.close()
            self._finish()
        except Exception:  # the boundary of the thread: the recording is lost, and nothing else
            logger.exception("a recording failed")
            self._tell(self._on_end, "an internal error")
        finally:
            self._tell(self._set_done)

    def _write(self) -> None:
        ended = False
        while (batch := self._batches.get()) is not None:
            if ended:
                continue
            try:
                self._tape.write(batch)
            except TapeEndedError as error:
                ended = True
                self._tell(self._on_end, str(error))

    def _tell(self, callback: Callable[..., None], *arguments: str) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop did not wait for a disk that never answered
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _set_done(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
