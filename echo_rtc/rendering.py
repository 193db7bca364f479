"""The rendering contract: the Engine protocol, and the plain data that it takes and gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from echo_rtc.clips import DEFAULT_AVATAR, ClipFormat, F16Array, F32Array, YuvFrames
from echo_rtc.errors import RenderError

Progress = Callable[[str], None]
"""Called with one line for the log whenever a worker reaches a further step of its start-up."""

TakeFrames = Callable[[YuvFrames], None]
"""Called with the next frames of a clip, as soon as they are there."""


@dataclass(frozen=True, slots=True)
class RenderRequest:
    """One clip to render. Any worker can take it: a worker holds nothing of a stream.

    ``audio`` is mono float32 at the format's ``sample_rate``: history, then the audio of ``frames`` frames.
    ``pose_position`` is the number of the clip's first frame; the pose sequence wraps around. ``idle_position`` is
    the frame of the idle loop that would be shown in its place (None: ``pose_position``).
    ``seed`` chooses the initial noise. ``init_latent`` (C, h, w) float16 is the previous clip's final latent, or None
    to start fresh. ``steps`` overrides the configured number of denoising steps.

    The rest is for scheduling: ``stream`` is the id of the clip's stream ("" where it has none); ``deadline_s``: when
    its last frame is due, by the event loop's clock, after which the result is of no use; ``chained``: if the stream's
    previous clip is still being rendered, this one begins with that clip's final latent instead of ``init_latent``.
    """

    avatar: str
    audio: F32Array
    frames: int
    pose_position: int
    seed: int
    init_latent: F16Array | None = None
    steps: int | None = None
    stream: str = ""
    deadline_s: float = math.inf
    chained: bool = False
    idle_position: int | None = None


@dataclass(frozen=True, slots=True)
class RenderResult:
    """A rendered clip: its frames, or those that are left where the first were handed over before; the final latent
    (C, h, w) float16 of its last frame (None where a renderer has no latents); how many milliseconds each stage took.
    """

    frames: YuvFrames
    final_latent: F16Array | None = None
    stages_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Avatar:
    """What streams need to know of a prepared avatar.

    ``idle`` is the loop shown in silence; :class:`echo_rtc.media.idle_walk.IdleWalk` says which frame when.
    ``idle_latents`` (len(idle), C, h, w) float16 are the final latents of those frames, so that speech can chain from
    the idle loop (None where a renderer has no latents). ``leaps`` (as long as ``idle``, or empty): the frames that
    look like each frame, so that the loop may go on there.
    """

    name: str
    idle: YuvFrames
    idle_latents: F16Array | None = None
    leaps: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def joined(cls, pieces: Sequence[Avatar]) -> Avatar:
        """The avatar whose idle loop comes in ``pieces``, at least one."""
        planes = (np.concatenate([getattr(piece.idle, plane) for piece in pieces]) for plane in ("y", "u", "v"))
        latents = [piece.idle_latents for piece in pieces if piece.idle_latents is not None]
        leaps = next((piece.leaps for piece in reversed(pieces) if piece.leaps), ())
        return cls(pieces[0].name, YuvFrames(*planes), np.concatenate(latents) if latents else None, leaps)


class Avatars(dict[str, Avatar]):
    """The avatars of an engine by name, the first one also under :data:`DEFAULT_AVATAR`, which iteration leaves out."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (name == DEFAULT_AVATAR and len(self) > 0)

    def __missing__(self, name: str) -> Avatar:
        if name == DEFAULT_AVATAR and len(self) > 0:
            return next(iter(self.values()))
        raise KeyError(name)

    def get(self, name: str, default: Any = None, /) -> Any:
        try:
            return self[name]
        except KeyError:
            return default


@dataclass(frozen=True, slots=True)
class AvatarFiles:
    """What an avatar is prepared from: a picture of the person, a folder of poses, and one of the poses in silence
    (None: the calmest of the others)."""

    name: str
    reference_image: Path
    pose_dir: Path
    idle_pose_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class Continuity:
    """How the clips of a stream join. ``chained``: each begins with the last latent of the one before.
    ``overlap_frames``: each renders this many of the last frames of the one before again, to be cross-faded."""

    chained: bool
    overlap_frames: int = 0


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker as it stands.

    ``up``: can take a clip. ``pid``: of its process; None if it has none of its own. ``clips``, ``lost``: clips it has
    rendered and lost. ``busy_s``: seconds it was given to render them; ``rendering_s``: of these, seconds for which it
    rendered, without hand-over and preparation. ``restarts``: how often it was replaced.
    ``waiting``: clips that wait for it. ``p50_s``, ``p95_s``: quantiles of the seconds that its latest clips took, from
    hand-over to hand-back; None before the first. ``frames_per_second``: with all denoising steps, as measured at the
    start or lately; None before. ``notice``: what users should know of how it computes, a sentence; empty if nothing.
    """

    name: str
    up: bool
    pid: int | None
    clips: int
    lost: int
    busy_s: float
    restarts: int
    waiting: int
    p50_s: float | None
    p95_s: float | None
    rendering_s: float = 0.0
    frames_per_second: float | None = None
    notice: str = ""


def notices_of(workers: Iterable[WorkerStatus]) -> list[str]:
    """What users should know of how workers compute, each sentence once."""
    return list(dict.fromkeys(worker.notice for worker in workers if worker.notice))


@dataclass(frozen=True, slots=True)
class ClipPlan:
    """How the next clip of a stream is to be asked for: how it joins the one before, and its denoising steps."""

    continuity: Continuity
    steps: int


class Engine(Protocol):
    """Renders clips. ``start`` returns when every avatar is prepared and warmed up."""

    @property
    def format(self) -> ClipFormat: ...

    @property
    def avatars(self) -> Mapping[str, Avatar]: ...

    @property
    def capacity(self) -> int:
        """How many streams the measured speed holds in real time (at least 1 once started)."""
        ...

    @property
    def expected_render_s(self) -> float:
        """Seconds from a call of ``render`` to its result that nearly every clip of a further stream would keep, as
        measured: what a new stream's delay begins with."""
        ...

    @property
    def ready(self) -> bool:
        """Whether at least one worker can take a clip now."""
        ...

    @property
    def workers(self) -> Sequence[WorkerStatus]:
        """The workers as they stand, always in the same order."""
        ...

    @property
    def trouble(self) -> str:
        """What is wrong with the workers, in a sentence or more for people; empty if nothing is."""
        ...

    @property
    def continuity(self) -> Continuity:
        """How the clips of a stream would join that is alone; known once started."""
        ...

    @property
    def capacity_steps(self) -> int:
        """The fewest denoising steps that any stream gets when there are as many as ``capacity``."""
        ...

    def plan(self, stream: str) -> ClipPlan:
        """How the next clip of a stream is to be asked for. May change from clip to clip."""
        ...

    async def start(self, progress: Progress) -> None:
        """Starts the workers. Raises InputError or SettingsError with the worker's own sentence."""
        ...

    async def render(self, request: RenderRequest, on_frames: TakeFrames | None = None) -> RenderResult:
        """Renders one clip. With ``on_frames``, its frames are handed to that in runs, as they are decoded, and the
        result has the last of them; without, the result has all. Raises LateError if it was not begun because it could
        not be on time, RenderError if it is lost in another way, whatever was handed over of it; the engine itself
        keeps running."""
        ...

    async def prepare_avatar(self, files: AvatarFiles) -> Avatar:
        """Prepares an avatar, or replaces the one of that name, on every worker and on those that will replace them;
        clips are rendered meanwhile. Raises InputError if its files cannot be used, RenderError if no worker could do
        it; then it is not available."""
        ...

    async def remove_avatar(self, name: str) -> None:
        """Removes an avatar from every worker; clips of it that are requested later are lost. Does nothing if there is
        no avatar of that name."""
        ...

    async def failed(self) -> RenderError:
        """Return when the engine cannot go on and mends itself no more, with the reason for its user. An engine that
        replaces its workers by itself never does."""
        ...

    async def close(self) -> None:
        """Ends every worker; no process is left."""
        ...
