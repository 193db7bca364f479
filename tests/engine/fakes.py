"""A renderer without a model, which runs in a real worker process and does what the seed of a request tells it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np

from echo_rtc.clips import ClipFormat, YuvFrames
from echo_rtc.engine.worker import Renderer
from echo_rtc.errors import InputError, SettingsError
from echo_rtc.rendering import Avatar, AvatarFiles, Progress, RenderRequest, RenderResult, TakeFrames


class Deed(IntEnum):
    """Seeds: what the renderer does with a request of that seed."""

    PLAIN = 0
    HANG = 1
    FAIL = 2
    DIE = 3
    TELL_NICENESS = 4
    TELL_AVATARS = 5


IDLE_FRAMES = 30
LATENT_SHAPE = (4, 8, 8)
FIRST_FRAMES = 3


@dataclass(frozen=True, slots=True)
class FakeLoader:
    """Loads a FakeRenderer. ``trouble`` is what goes wrong: "", "input", "settings", "crash", "hang" or "death".
    Each load beyond the first takes one of the ``misfires``, as long as there are any, and dies of it: files in that
    folder, so that the replacements of a worker know of each other."""

    format: ClipFormat
    trouble: str = ""
    misfires: Path | None = None

    def __call__(self, progress: Progress) -> Renderer:
        progress("reading nothing")
        match self.trouble:
            case "input":
                raise InputError("the weights folder nowhere does not exist")
            case "settings":
                raise SettingsError("width is 7; choose another")
            case "crash":
                raise ValueError("a detail\nand more of it")
            case "hang":
                threading.Event().wait()
            case "death":
                os._exit(7)
        for misfire in sorted(self.misfires.iterdir()) if self.misfires else []:
            misfire.unlink()
            if misfire.name != "0":
                os._exit(8)
            break
        return FakeRenderer(self.format)


class FakeRenderer:
    """All samples of a clip's frames are its pose position, its latent's too, plus the initial one. The first frames
    are handed over one by one, FIRST_FRAMES of them."""

    def __init__(self, clip_format: ClipFormat) -> None:
        self._format = clip_format
        self.avatars: tuple[str, ...] = ("default",)

    def prepare(self, request: RenderRequest) -> int:
        """What is rendered is what was prepared."""
        return request.pose_position

    def render(self, request: RenderRequest, prepared: int, on_frames: TakeFrames | None = None) -> RenderResult:
        match request.seed:
            case Deed.HANG:
                threading.Event().wait()
            case Deed.FAIL:
                raise FloatingPointError("nothing but NaN")
            case Deed.DIE:
                os._exit(9)
            case Deed.TELL_NICENESS:
                return RenderResult(self._frames(request.frames, os.nice(0)))
            case Deed.TELL_AVATARS:
                return RenderResult(self._frames(request.frames, len(self.avatars)))
        latent = np.full(LATENT_SHAPE, prepared, np.float16)
        if request.init_latent is not None:
            latent = latent + request.init_latent
        frames = self._frames(request.frames, prepared)
        early = FIRST_FRAMES if on_frames is not None else 0
        for number in range(early):
            assert on_frames is not None
            on_frames(frames[number])
        return RenderResult(frames[early:], latent, {"draw": 1.0})

    def idle(self, avatar: str) -> Iterator[Avatar]:
        for first in range(0, IDLE_FRAMES, self._format.clip_frames):
            numbers = np.arange(first, min(IDLE_FRAMES, first + self._format.clip_frames))
            frames = self._frames(len(numbers), 0)
            frames.y[:] = numbers.astype(np.uint8)[:, None, None]
            latents = np.zeros((len(numbers), *LATENT_SHAPE), np.float16)
            latents[:] = numbers[:, None, None, None]
            yield Avatar(avatar, frames, latents)

    def prepare_avatar(self, files: AvatarFiles) -> Iterator[None]:
        """The picture's name says what happens: "bad.png" is no picture, "deadly.png" kills the worker."""
        yield
        if files.reference_image.name == "bad.png":
            raise InputError(f"reference image {files.reference_image} is no picture")
        if files.reference_image.name == "deadly.png":
            os._exit(10)
        yield
        self.avatars = tuple(dict.fromkeys([*self.avatars, files.name]))

    def forget_avatar(self, name: str) -> None:
        self.avatars = tuple(avatar for avatar in self.avatars if avatar != name)

    def work_ahead(self) -> bool:
        return False

    def _frames(self, count: int, value: int) -> YuvFrames:
        height, width = self._format.height, self._format.width
        chroma = np.full((count, height // 2, width // 2), value % 256, np.uint8)
        return YuvFrames(np.full((count, height, width), value % 256, np.uint8), chroma, chroma.copy())
