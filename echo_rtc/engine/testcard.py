"""The test-card engine: frames that show their own sound, made without a network and without a worker process.

Operators check a connection with it; tests and benches script its latency and faults. It draws in the event loop (a
millisecond or two a clip) and takes all time from it, so that it also works under a loop whose time is virtual. It
knows nothing of torch.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from echo_rtc.clips import ClipFormat, F32Array
from echo_rtc.engine.card import (
    CardArtist,
    CardError,
    CardFacts,
    level_of,
    mark_of_seed,
    read_card,
    read_counter,
    read_level,
)
from echo_rtc.engine.devices import usable_cores
from echo_rtc.engine.meter import WorkerMeter, WorkerStatus
from echo_rtc.engine.protocol import Avatar, Progress, RenderRequest, RenderResult
from echo_rtc.errors import RenderError

__all__ = [
    "Act",
    "CardError",
    "CardFacts",
    "Script",
    "ScriptedFaults",
    "TestCardEngine",
    "level_of",
    "mark_of_seed",
    "read_card",
    "read_counter",
    "read_level",
]

AVATAR = "default"
IDLE_S = 2.0
"""Length of the idle loop."""

STREAM_CORES = 0.15
"""What a 512 x 512 stream of this engine costs the server in cores, encoding and echo included (bench ``stream``)."""

USABLE_CORES = 0.7
"""The share of the machine's cores that streams may fill."""


@dataclass(frozen=True, slots=True)
class Act:
    """What happens to one clip: it takes ``delay_s`` seconds on the worker; with ``failure`` it is then lost with
    that sentence."""

    delay_s: float = 0.0
    failure: str | None = None


Script = Callable[[int], Act]
"""Says what happens to clip number n of a stream (``pose_position // clip_frames``)."""


@dataclass(frozen=True, slots=True)
class ScriptedFaults:
    """The usual script: every clip takes ``delay_s``; clip n takes ``stalls_s[n]`` more; ``failures`` are lost."""

    delay_s: float = 0.0
    stalls_s: Mapping[int, float] = field(default_factory=dict)
    failures: frozenset[int] = frozenset()

    def __call__(self, clip: int) -> Act:
        failure = f"clip {clip} was scripted to fail" if clip in self.failures else None
        return Act(self.delay_s + self.stalls_s.get(clip, 0.0), failure)


class TestCardEngine:
    """An Engine whose frames are test cards; see ``card.py`` for what is on them and how to read it.

    ``workers`` clips are drawn at a time, the others wait their turn as they would for a GPU.
    """

    __test__ = False  # a name that pytest would otherwise collect

    def __init__(
        self, format: ClipFormat, script: Script | None = None, workers: int = 1, capacity: int | None = None
    ) -> None:
        self._format = format
        self._script = script or ScriptedFaults()
        self._workers = asyncio.Semaphore(workers)
        self._capacity = capacity or max(1, math.floor(usable_cores() * USABLE_CORES / STREAM_CORES))
        self._meter = WorkerMeter()
        self._waiting = 0
        self._artist: CardArtist | None = None
        self._avatars: dict[str, Avatar] = {}

    @property
    def format(self) -> ClipFormat:
        return self._format

    @property
    def avatars(self) -> dict[str, Avatar]:
        return self._avatars

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def expected_render_s(self) -> float:
        return self._script(0).delay_s

    @property
    def ready(self) -> bool:
        return self._artist is not None

    @property
    def workers(self) -> list[WorkerStatus]:
        """The one artist, who draws in this process."""
        return [self._meter.status("testcard", up=self.ready, waiting=self._waiting)]

    async def start(self, progress: Progress) -> None:
        self._artist = CardArtist(self._format)
        length = max(1, round(IDLE_S * self._format.fps))
        self._avatars = {AVATAR: Avatar(AVATAR, self._artist.draw(0, [0.0] * length, mark=0, idle=True))}
        progress("test card: ready")

    async def render(self, request: RenderRequest) -> RenderResult:
        """The cards of the clip's frames. Raises RenderError for an unknown avatar, audio that is too short for the
        frames, and clips that the script loses."""
        if self._artist is None:
            raise RenderError("the test-card engine is not running; start it first")
        if request.avatar not in self._avatars:
            raise RenderError(f"there is no avatar {request.avatar!r}; the test card has only {AVATAR!r}")
        levels = frame_levels(request, self._format)
        act = self._script(request.pose_position // self._format.clip_frames)
        loop = asyncio.get_running_loop()
        await self._turn()
        begun = loop.time()
        try:
            if act.delay_s > 0:
                await asyncio.sleep(act.delay_s)
            if act.failure is not None:
                self._meter.failed(loop.time() - begun)
                raise RenderError(act.failure)
            frames = self._artist.draw(request.pose_position, levels, mark_of_seed(request.seed))
        finally:
            self._workers.release()
        took_s = loop.time() - begun
        self._meter.rendered(took_s)
        return RenderResult(frames, stages_ms={"draw": took_s * 1000})

    async def close(self) -> None:
        self._artist = None

    async def _turn(self) -> None:
        self._waiting += 1
        try:
            await self._workers.acquire()
        finally:
            self._waiting -= 1


def frame_levels(request: RenderRequest, format: ClipFormat) -> list[float]:
    """The level of each frame's own samples: those from ``floor(n / fps * rate)`` of frame n to that of the next.

    Raises RenderError if the request's audio is shorter than its frames.
    """
    edges = [format.sample_of_frame(request.pose_position + i, format.sample_rate) for i in range(request.frames + 1)]
    own = edges[-1] - edges[0]
    if len(request.audio) < own:
        raise RenderError(
            f"the clip at frame {request.pose_position} has {len(request.audio)} samples; "
            f"its {request.frames} frames need {own}"
        )
    audio: F32Array = request.audio[len(request.audio) - own :]
    power = np.add.reduceat(np.square(audio, dtype=np.float64), np.array(edges[:-1]) - edges[0])
    return [level_of(math.sqrt(p / n)) for p, n in zip(power, np.diff(edges), strict=True)]
