"""Opus packets of a voice to mono sound at 48 kHz, with what was lost on the way concealed.

Where libopus can be loaded, the packet after a loss gives back what it carries of the one before (in-band FEC), and
libopus extrapolates the rest. Elsewhere FFmpeg decodes, and the last pitch period goes on and fades. Positions come in
and go out as pts; a gap that no lost packet explains (a muted microphone) stays one. Synchronous; knows no connection.
"""

from __future__ import annotations

from typing import Any, Protocol

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext

from echo_rtc.clips import MEDIA_RATE, F32Array, S16Array
from echo_rtc.codec.resampling import mono
from echo_rtc.codec.sound import SOUND_TIME_BASE

MAX_CONCEALED_SAMPLES = MEDIA_RATE * 120 // 1_000
"""Longer losses are silence after this: what is extrapolated further is no speech any more."""
MAX_PACKET_SAMPLES = MEDIA_RATE * 120 // 1_000
FADE_SAMPLES = MEDIA_RATE * 60 // 1_000
"""In which a repeated pitch period becomes silent."""
SHORTEST_PERIOD, LONGEST_PERIOD = MEDIA_RATE // 400, MEDIA_RATE // 60
"""Of a voice's pitch, samples."""
JOIN_SAMPLES = MEDIA_RATE * 5 // 1_000
"""Over which what is concealed and what follows it are cross-faded."""
_HISTORY_SAMPLES = 3 * LONGEST_PERIOD

Block = tuple[int, S16Array]
"""The pts of the first sample, and mono samples (n,) int16."""


class _Decoder(Protocol):
    """What conceals and decodes, in the order of the packets."""

    def conceal(self, samples: int, following: bytes) -> S16Array:
        """``samples`` of sound for packets that are lost before the packet ``following``."""
        ...

    def decode(self, packet: bytes) -> S16Array:
        """The samples of a packet. Raises ValueError."""
        ...


class VoiceDecoder:
    """Decodes one voice. ``conceal=False`` leaves gaps. Counts what it concealed, in samples."""

    def __init__(self, decoder: _Decoder | None = None, conceal: bool = True) -> None:
        self._decoder = decoder or best_decoder()
        self._conceal = conceal
        self._next: int | None = None
        self.concealed_samples = 0

    def decode(self, packet: bytes, pts: int, lost: int = 0) -> list[Block]:
        """The blocks that a packet completes: of what was lost before it, and its own. ``lost``: how many packets are
        missing before it. Raises ValueError for a packet that cannot be decoded."""
        blocks: list[Block] = []
        duration = packet_samples(packet)
        gap = 0 if self._next is None else pts - self._next
        missing = min(gap, lost * duration, MAX_CONCEALED_SAMPLES)
        # Opus counts in steps of 2.5 ms.
        if self._conceal and missing >= duration and gap % (MEDIA_RATE // 400) == 0:
            first = pts - gap
            pcm = self._decoder.conceal(missing - missing % duration, packet)
            blocks.append((first, pcm))
            self.concealed_samples += len(pcm)
        pcm = self._decoder.decode(packet)
        self._next = pts + len(pcm)
        blocks.append((pts, pcm))
        return blocks


def packet_samples(packet: bytes) -> int:
    """The length of an Opus packet at 48 kHz (RFC 6716, 3.1). Raises ValueError."""
    if not packet:
        raise ValueError("an Opus packet is empty")
    config, code = packet[0] >> 3, packet[0] & 3
    if config < 12:
        frame = (480, 960, 1_920, 2_880)[config & 3]
    elif config < 16:
        frame = (480, 960)[config & 1]
    else:
        frame = (120, 240, 480, 960)[config & 3]
    frames = (1, 2, 2, packet[1] & 63 if len(packet) > 1 else 0)[code]
    if not 0 < frames * frame <= MAX_PACKET_SAMPLES:
        raise ValueError("an Opus packet is longer than 120 ms, or has no frame")
    return frames * frame


def best_decoder() -> _Decoder:
    """libopus where it can be loaded, else FFmpeg with our own concealment."""
    return LibopusDecoder() if libopus_is_there() else PitchDecoder()


def libopus_is_there() -> bool:
    """Whether the binding is installed and finds the library."""
    return _binding() is not None


def _binding() -> Any:
    try:
        import opuslib_next
    except Exception:  # it raises the base class where the library is missing
        return None
    return opuslib_next


class LibopusDecoder:
    """Decoding, in-band FEC and extrapolation by libopus."""

    def __init__(self) -> None:
        binding = _binding()
        if binding is None:
            raise ValueError("libopus cannot be loaded")
        self._errors = binding.OpusError
        self._codec = binding.Decoder(MEDIA_RATE, 1)

    def conceal(self, samples: int, following: bytes) -> S16Array:
        """What ``following`` carries of the packet before it comes last; what is missing before is extrapolated."""
        carried = min(samples, packet_samples(following))
        parts = [self._extrapolated(samples - carried)] if samples > carried else []
        try:
            parts.append(_samples(self._codec.decode(following, carried, decode_fec=True)))
        except self._errors:
            parts.append(self._extrapolated(carried))
        return np.concatenate(parts)

    def decode(self, packet: bytes) -> S16Array:
        try:
            return _samples(self._codec.decode(packet, MAX_PACKET_SAMPLES))
        except self._errors as error:
            raise ValueError(f"an Opus packet cannot be decoded ({error})") from error

    def _extrapolated(self, samples: int) -> S16Array:
        try:
            return _samples(self._codec.decode(b"", samples))
        except self._errors:
            return np.zeros(samples, np.int16)


class PitchDecoder:
    """Decoding by FFmpeg; concealment by the last pitch period, repeated and faded."""

    def __init__(self) -> None:
        codec = av.CodecContext.create("libopus", "r")
        assert isinstance(codec, AudioCodecContext)
        codec.format, codec.layout, codec.sample_rate = "s16", "mono", MEDIA_RATE
        self._codec = codec
        self._history = np.zeros(_HISTORY_SAMPLES, np.int16)
        self._tail: S16Array | None = None
        """What would have followed the latest concealment, to be cross-faded with what does."""

    def conceal(self, samples: int, following: bytes) -> S16Array:
        del following  # FFmpeg does not read what it carries
        longer = continued(self._history, samples + JOIN_SAMPLES)
        self._tail = longer[samples:]
        self._remember(longer[:samples])
        return longer[:samples]

    def decode(self, packet: bytes) -> S16Array:
        try:
            frames = self._codec.decode(av.Packet(packet))
        except av.FFmpegError as error:
            raise ValueError(f"an Opus packet cannot be decoded ({error})") from error
        parts = [pcm for frame in frames if (pcm := mono(frame)) is not None]
        if not parts:
            raise ValueError("an Opus packet has no sound")
        pcm = np.concatenate(parts)
        if self._tail is not None and len(pcm) >= JOIN_SAMPLES:
            weight = np.linspace(0, 1, JOIN_SAMPLES, dtype=np.float32)
            joined = self._tail * (1 - weight) + pcm[:JOIN_SAMPLES] * weight
            pcm = np.concatenate([joined.astype(np.int16), pcm[JOIN_SAMPLES:]])
        self._tail = None
        self._remember(pcm)
        return pcm

    def _remember(self, pcm: S16Array) -> None:
        self._history = np.concatenate([self._history, pcm])[-_HISTORY_SAMPLES:]


def continued(history: S16Array, samples: int) -> S16Array:
    """``samples`` that go on with the last pitch period of ``history`` (n,) int16 and fade to silence."""
    past = history.astype(np.float32)
    period = pitch_period(past)
    repeated = np.resize(past[-period:], samples)
    fade = np.clip(1 - np.arange(samples, dtype=np.float32) / FADE_SAMPLES, 0, 1)
    return np.asarray(np.rint(repeated * fade), np.int16)


def pitch_period(past: F32Array) -> int:
    """The period (samples) at which the end of ``past`` resembles itself most; the shortest of those that are alike."""
    coarse, best = SHORTEST_PERIOD, 0.0
    for period in range(SHORTEST_PERIOD, LONGEST_PERIOD + 1, 4):
        likeness = _likeness(past, period)
        if likeness > best + 0.01:
            coarse, best = period, likeness
    near = range(max(SHORTEST_PERIOD, coarse - 8), min(LONGEST_PERIOD, coarse + 8) + 1)
    return max(near, key=lambda period: _likeness(past, period))


def _likeness(past: F32Array, period: int) -> float:
    """How much the end of ``past`` resembles what came ``period`` samples before, -1 to 1. A quarter of the rate is
    enough for a pitch."""
    recent = past[-LONGEST_PERIOD::4]
    before = past[len(past) - LONGEST_PERIOD - period : len(past) - period : 4]
    norm = float(np.sqrt((before**2).sum() * (recent**2).sum()))
    return float(np.dot(before, recent)) / norm if norm else 0.0


def to_frame(block: Block) -> av.AudioFrame:
    """PyAV's form of a block."""
    pts, pcm = block
    frame = av.AudioFrame.from_ndarray(pcm.reshape(1, -1), format="s16", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = MEDIA_RATE, pts, SOUND_TIME_BASE
    return frame


def _samples(data: bytes) -> S16Array:
    return np.frombuffer(data, np.int16).copy()
