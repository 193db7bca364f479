"""The voice of a stream: an async iterator of blocks, whatever its source.

The iterator ends with the voice, which is not the end of the stream. It must drain its source
without waiting for the stream, so that nothing queues up before it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TypeAlias

from echo_rtc.clips import S16Array
from echo_rtc.counting import CounterMetric, counter


@dataclass(frozen=True, slots=True, eq=False)
class VoiceBlock:
    """``pcm``: mono int16 (n,) at 48 kHz. ``pts``: of its first sample at 48 kHz, from wherever the sender's clock
    began. Lost packets are gaps between blocks."""

    pts: int
    pcm: S16Array


@dataclass(frozen=True, slots=True)
class UnusableBlock:
    """A block arrived that cannot be used; ``what`` describes it for the log. It becomes silence."""

    what: str


BLOCKS = CounterMetric("microphone_blocks", "Decoded blocks of microphones.", "outcome")


@dataclass(slots=True)
class VoiceCounters:
    """Blocks of a stream's voices."""

    blocks: int = counter(BLOCKS, "used")
    unusable: int = counter(BLOCKS, "unusable")


Voice: TypeAlias = AsyncIterator[VoiceBlock | UnusableBlock]
