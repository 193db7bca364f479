"""What measurements follow of an aiortc receiver: whole frames, without decoding them."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any

from aiortc import RTCRtpReceiver
from aiortc.jitterbuffer import JitterFrame
from aiortc.rtcrtpparameters import RTCRtpCodecParameters

from echo_rtc.rtc.seams.checks import require

_DECODER_QUEUE = "_RTCRtpReceiver__decoder_queue"


def without_decoding(receiver: RTCRtpReceiver, on_frame: Callable[[int], None]) -> None:
    """Makes a receiver that has not received yet call ``on_frame`` with the timestamp of each whole encoded frame,
    instead of decoding it. Its reports, its requests and its jitter buffer stay as they are.

    Raises SeamError.
    """
    require(receiver, _DECODER_QUEUE, queue.Queue)
    inner: queue.Queue[Any] = getattr(receiver, _DECODER_QUEUE)

    class Counting:
        """Takes the place of the queue to the decoder's thread, which gets to know only of its end."""

        def put(self, task: tuple[RTCRtpCodecParameters, JitterFrame] | None) -> None:
            if task is None:
                inner.put(None)
            else:
                on_frame(task[1].timestamp)

        def get(self) -> Any:
            return inner.get()

    setattr(receiver, _DECODER_QUEUE, Counting())
