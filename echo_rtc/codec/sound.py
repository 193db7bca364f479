"""Mono sound at 48 kHz to Opus packets.

Synchronous; PyAV releases the interpreter lock while it encodes. Knows no connection and no event loop.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext

from echo_rtc.clips import MEDIA_RATE, S16Array

SOUND_BLOCK_SAMPLES = 960
"""20 ms at 48 kHz: one Opus packet. More in one frame would give several packets one timestamp."""
SOUND_BITRATE = 64_000
"""Bit/s of the echo: mono, transparent."""
SOUND_EFFORT = 5
"""Opus complexity, 0..10. At this rate 5 sounds like 10 and costs a third."""
SOUND_TIME_BASE = Fraction(1, MEDIA_RATE)


class SoundEncoder:
    """Mono 48 kHz to Opus, 20 ms a packet.

    Opus packets lag the samples they are made from by ``lookahead_samples``. The caller compensates
    by feeding that much ahead: the packet made from samples from ``m + lookahead_samples`` plays those from ``m``.
    """

    def __init__(self, loss_percent: int = 0) -> None:
        """``loss_percent``: how many packets receivers lose; from 1 on each packet carries the one before it once more
        (in-band FEC), within the same bit rate."""
        self.loss_percent = loss_percent
        codec = av.CodecContext.create("libopus", "w")
        assert isinstance(codec, AudioCodecContext)
        codec.bit_rate = SOUND_BITRATE
        codec.format = "s16"
        codec.layout = "mono"
        codec.sample_rate = MEDIA_RATE
        codec.time_base = SOUND_TIME_BASE
        codec.options = {"application": "audio", "frame_duration": "20", "compression_level": str(SOUND_EFFORT)}
        if loss_percent:
            codec.options = {**codec.options, "fec": "1", "packet_loss": str(loss_percent)}
        self._codec = codec
        self._fed = 0
        # FFmpeg states the lag as the first packet's pts, below the first frame's.
        self.lookahead_samples = -int(self._packet(np.zeros(SOUND_BLOCK_SAMPLES, np.int16)).pts or 0)

    def encode(self, pcm: S16Array, pts: int) -> av.Packet[Any]:
        """One packet from ``pcm`` (960,) int16; ``pts`` in samples is written on it."""
        packet = self._packet(pcm)
        packet.pts = pts
        packet.time_base = SOUND_TIME_BASE
        return packet

    def _packet(self, pcm: S16Array) -> av.Packet[Any]:
        frame = av.AudioFrame.from_ndarray(pcm.reshape(1, SOUND_BLOCK_SAMPLES), format="s16", layout="mono")
        frame.sample_rate = MEDIA_RATE
        frame.time_base = SOUND_TIME_BASE
        frame.pts = self._fed
        self._fed += SOUND_BLOCK_SAMPLES
        (packet,) = self._codec.encode(frame)
        return packet
