"""The settings of recordings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

FinishingStep: TypeAlias = Callable[[Path], None]
"""Works on a closed recording before it is listed as complete, on a thread: changes the file in place, or replaces it
by ``os.replace``. It may raise OSError or EchoRtcError. It may be run again on a file on which it ran already."""


@dataclass(frozen=True, slots=True)
class RecordingLimits:
    """Limits at which a recording ends by itself: its size, its length, the free space left on the disk. 0: never."""

    most_bytes: int = 0
    most_s: float = 0.0
    least_free_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RecordingOptions:
    """Where recordings go; whether every stream is recorded; their limits; what is done with a file that is closed."""

    folder: Path
    all_streams: bool = False
    limits: RecordingLimits = field(default_factory=RecordingLimits)
    finishing: tuple[FinishingStep, ...] = ()
