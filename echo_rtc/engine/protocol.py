"""What the rest of the server knows of an engine: one awaitable, plain data in and out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from echo_rtc.clips import ClipFormat, F16Array, F32Array, YuvFrames
from echo_rtc.engine.meter import WorkerStatus

Progress = Callable[[str], None]
"""Called with one line for the log whenever a worker reaches a further step of its start-up."""


@dataclass(frozen=True, slots=True)
class RenderRequest:
    """One clip to render. Any worker can take it: a worker holds nothing of a stream.

    ``audio`` is mono float32 at the format's ``sample_rate``: history, then the audio of ``frames`` frames.
    ``pose_position`` is the number of the clip's first frame; the pose sequence wraps around.
    ``seed`` chooses the initial noise. ``init_latent`` (C, h, w) float16 is the previous clip's final latent, or None
    to start fresh. ``steps`` overrides the configured number of denoising steps.
    """

    avatar: str
    audio: F32Array
    frames: int
    pose_position: int
    seed: int
    init_latent: F16Array | None = None
    steps: int | None = None


@dataclass(frozen=True, slots=True)
class RenderResult:
    """A rendered clip: its frames, the final latent (C, h, w) float16 of its last frame (None where a renderer has
    no latents), and how many milliseconds each stage took."""

    frames: YuvFrames
    final_latent: F16Array | None = None
    stages_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Avatar:
    """What streams need to know of a prepared avatar.

    ``idle`` is the loop shown in silence: frame ``n`` of media time shows ``idle[n % len(idle)]``. ``idle_latents``
    (len(idle), C, h, w) float16 are the final latents of those frames, so that speech can chain from the idle loop
    (None where a renderer has no latents).
    """

    name: str
    idle: YuvFrames
    idle_latents: F16Array | None = None


class Engine(Protocol):
    """Renders clips. ``start`` returns when every avatar is prepared and warmed up."""

    @property
    def format(self) -> ClipFormat: ...

    @property
    def avatars(self) -> dict[str, Avatar]: ...

    @property
    def capacity(self) -> int:
        """How many streams the measured speed holds in real time (at least 1 once started)."""
        ...

    @property
    def expected_render_s(self) -> float:
        """Seconds from a call of ``render`` to its result that nearly every clip keeps on a free worker, as measured
        at start: what a new stream's delay begins with."""
        ...

    @property
    def ready(self) -> bool:
        """Whether at least one worker can take a clip now."""
        ...

    @property
    def workers(self) -> Sequence[WorkerStatus]:
        """The workers as they stand, always in the same order."""
        ...

    async def start(self, progress: Progress) -> None:
        """Starts the workers. Raises InputError or SettingsError with the worker's own sentence."""
        ...

    async def render(self, request: RenderRequest) -> RenderResult:
        """Renders one clip. Raises RenderError if the clip is lost; the engine itself goes on."""
        ...

    async def close(self) -> None:
        """Ends every worker; no process is left."""
        ...
