"""Workers that draw test cards until a fault strikes them, for calls with real worker processes.

Files in a folder say which fault; the first worker to see one has it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from echo_rtc.clips import ClipFormat
from echo_rtc.engine.testcard import CardRenderer
from echo_rtc.engine.worker import Renderer
from echo_rtc.rendering import Avatar, AvatarFiles, Progress, RenderRequest, RenderResult, TakeFrames


class Fault(StrEnum):
    """What can strike a worker: an error that stays until the process is replaced, as those of CUDA do; a lack of
    memory for one clip; a clip that never ends."""

    CUDA = "cuda"
    MEMORY = "memory"
    HANG = "hang"

    def strike(self, folder: Path) -> None:
        """Strikes whichever worker renders the next clip."""
        (folder / self).touch()


@dataclass(frozen=True, slots=True)
class FaultyLoader:
    """Loads a FaultyRenderer, which takes ``clip_s`` for a clip of ``steps`` steps."""

    format: ClipFormat
    folder: Path
    clip_s: float = 0.0
    steps: int = 1

    def __call__(self, progress: Progress) -> Renderer:
        return FaultyRenderer(CardRenderer(self.format, self.clip_s, self.steps), self.folder)


class FaultyRenderer:
    """A renderer of test cards with faults."""

    def __init__(self, cards: CardRenderer, folder: Path) -> None:
        self._cards = cards
        self._folder = folder
        self._broken = False

    @property
    def avatars(self) -> tuple[str, ...]:
        return self._cards.avatars

    def prepare(self, request: RenderRequest) -> list[float]:
        return self._cards.prepare(request)

    def render(
        self, request: RenderRequest, prepared: list[float], on_frames: TakeFrames | None = None
    ) -> RenderResult:
        if self._struck(Fault.HANG):
            threading.Event().wait()
        if self._struck(Fault.MEMORY):
            raise MemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self._broken = self._broken or self._struck(Fault.CUDA)
        if self._broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return self._cards.render(request, prepared, on_frames)

    def idle(self, avatar: str) -> Iterator[Avatar]:
        return self._cards.idle(avatar)

    def prepare_avatar(self, files: AvatarFiles) -> Iterator[None]:
        return self._cards.prepare_avatar(files)

    def forget_avatar(self, name: str) -> None:
        self._cards.forget_avatar(name)

    def work_ahead(self) -> bool:
        return self._cards.work_ahead()

    def _struck(self, fault: Fault) -> bool:
        try:
            (self._folder / fault).unlink()
        except FileNotFoundError:
            return False
        return True
