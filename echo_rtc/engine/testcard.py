"""The test-card engine: frames that show their own sound, made without a network and without a worker process.

Operators check a connection with it; tests and benches script its latency and faults. It draws in the event loop (a
millisecond or two a clip) and takes all time from it, so that it also works under a loop whose time is virtual. It
knows nothing of torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

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
from echo_rtc.engine.fleet import FleetEngine, FleetOptions
from echo_rtc.engine.pace import DENOISING_SHARE
from echo_rtc.engine.slots import WorkerGoneError
from echo_rtc.engine.speed import Speed
from echo_rtc.engine.worker import AVATAR, Renderer, WorkerReport, WorkerSpec
from echo_rtc.errors import RenderError
from echo_rtc.rendering import Avatar, AvatarFiles, Progress, RenderRequest, RenderResult, TakeFrames

__all__ = [
    "AVATAR",
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

IDLE_S = 2.0
"""Length of the idle loop."""

RUN_FRAMES = 4
"""Frames that are handed over at a time while a clip's time of decoding goes by."""

STREAM_CORES = 0.15
"""What a 512 x 512 stream of this engine costs the server in cores, encoding and echo included (bench ``stream``)."""

USABLE_CORES = 0.7
"""The share of the machine's cores that streams may fill."""


@dataclass(frozen=True, slots=True)
class Act:
    """What happens to one clip: it takes ``delay_s`` seconds on the worker, of which it decodes for ``decode_s`` at the
    end and hands over frames meanwhile; with ``failure`` it is then lost with that sentence; if ``dies``, with its
    worker."""

    delay_s: float = 0.0
    failure: str | None = None
    dies: bool = False
    decode_s: float = 0.0

    def need_s(self, clip_format: ClipFormat) -> float:
        """After how long the clip's first frame can be shown, so that no other is late."""
        if not self.decode_s:
            return self.delay_s
        after_first = clip_format.clip_frames - min(RUN_FRAMES, clip_format.clip_frames)
        # Frames come at a constant pace: the first run is the one to wait for, or the last.
        sooner_s = min(self.decode_s / clip_format.clip_frames, 1 / clip_format.fps) * after_first
        return max(0.0, self.delay_s - sooner_s)


Script = Callable[[int], Act]
"""Says what happens to clip number n of a stream (``pose_position // clip_frames``)."""


@dataclass(frozen=True, slots=True)
class ScriptedFaults:
    """The usual script: every clip takes ``delay_s``, of which ``decode_s`` for decoding; clip n takes ``stalls_s[n]``
    more; ``failures`` are lost, and ``deaths`` with their workers."""

    delay_s: float = 0.0
    stalls_s: Mapping[int, float] = field(default_factory=dict)
    failures: frozenset[int] = frozenset()
    deaths: frozenset[int] = frozenset()
    decode_s: float = 0.0

    def __call__(self, clip: int) -> Act:
        failure = f"clip {clip} was scripted to fail" if clip in self.failures else None
        return Act(self.delay_s + self.stalls_s.get(clip, 0.0), failure, clip in self.deaths, self.decode_s)


class CardRenderer:
    """Draws test cards, as a worker's renderer: an avatar is a name, and there is nothing to prepare.

    With ``clip_s`` it takes at least so long for a clip of ``steps`` denoising steps, and less for one of fewer, and
    hands over frames while it seems to decode, as a model would: for tests and benches of whole workers.
    """

    def __init__(self, clip_format: ClipFormat, clip_s: float = 0.0, steps: int = 1, avatar_name: str = AVATAR) -> None:
        self._format = clip_format
        self._steps = steps
        self._artist = CardArtist(clip_format)
        self._clip_s = clip_s
        self._avatars = [avatar_name]

    @property
    def avatars(self) -> tuple[str, ...]:
        return tuple(self._avatars)

    def prepare(self, request: RenderRequest) -> list[float]:
        """The levels of the clip's frames. Raises RenderError if the audio is too short for the frames."""
        return frame_levels(request, self._format)

    def render(
        self, request: RenderRequest, prepared: list[float], on_frames: TakeFrames | None = None
    ) -> RenderResult:
        begun = time.perf_counter()
        frames = self._artist.draw(request.pose_position, prepared, mark_of_seed(request.seed))
        first_s, rest_s = self._times_s(request)
        left = frames
        while self._clip_s and on_frames is not None and len(left) > RUN_FRAMES:
            done = (len(frames) - len(left) + RUN_FRAMES) / len(frames)
            _sleep_until(begun + first_s + rest_s * done)
            on_frames(left[:RUN_FRAMES])
            left = left[RUN_FRAMES:]
        _sleep_until(begun + first_s + rest_s)
        return RenderResult(left, stages_ms={"draw": (time.perf_counter() - begun) * 1000})

    def _times_s(self, request: RenderRequest) -> tuple[float, float]:
        """How long a clip takes before and while it is decoded."""
        whole_s = self._clip_s * request.frames / self._format.clip_frames
        steps = (request.steps or self._steps) / self._steps
        return DENOISING_SHARE * whole_s * steps, (1.0 - DENOISING_SHARE) * whole_s

    def idle(self, avatar: str) -> Iterator[Avatar]:
        length, step = max(1, round(IDLE_S * self._format.fps)), self._format.clip_frames
        for first in range(0, length, step):
            count = min(step, length - first)
            yield Avatar(avatar, self._artist.draw(first, [0.0] * count, mark=0, idle=True))

    def prepare_avatar(self, files: AvatarFiles) -> Iterator[None]:
        if files.name not in self._avatars:
            self._avatars.append(files.name)
        yield from ()

    def forget_avatar(self, name: str) -> None:
        if name in self._avatars:
            self._avatars.remove(name)

    def work_ahead(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class CardLoader:
    """The Loader of workers that draw test cards."""

    format: ClipFormat
    clip_s: float = 0.0
    steps: int = 1
    avatar_name: str = AVATAR

    def __call__(self, progress: Progress) -> Renderer:
        return CardRenderer(self.format, self.clip_s, self.steps, self.avatar_name)


class CardWorker:
    """A worker without a process: it draws in the event loop, and does what its script says meanwhile."""

    def __init__(
        self, spec: WorkerSpec, clip_format: ClipFormat, script: Script, steps: int, on_gone: Callable[[], None]
    ) -> None:
        """``steps``: of an ordinary clip; one with fewer steps or frames takes less of the script's time."""
        self._spec = spec
        self._steps = steps
        self._format = clip_format
        self._script = script
        self._on_gone = on_gone
        self._renderer: Renderer | None = None
        self._pieces: dict[str, Iterator[Avatar]] = {}
        self._killed = asyncio.Event()

    @property
    def name(self) -> str:
        return self._spec.name

    @property
    def pid(self) -> None:
        return None

    async def start(self, timeout_s: float) -> WorkerReport:
        self._renderer = self._spec.loader(lambda line: None)
        return WorkerReport(self._renderer.avatars, await self.measure(self._format.clip_frames, timeout_s))

    async def measure(self, frames: int, timeout_s: float) -> Speed:
        """What the script says of the first clip, in proportion to the frames."""
        return Speed(frames, (self._script(0).delay_s * frames / self._format.clip_frames,))

    def prepare(self, number: int, request: RenderRequest) -> None:
        """There is nothing to prepare."""

    def discard(self, number: int) -> None:
        """Nor to forget."""

    async def render(
        self, number: int, request: RenderRequest, timeout_s: float, on_frames: TakeFrames
    ) -> tuple[RenderResult, float]:
        """Raises RenderError for audio that is too short for the frames and for clips that the script loses,
        WorkerGoneError where the script kills the worker, and after ``timeout_s``."""
        renderer = self._loaded()
        prepared = renderer.prepare(request)
        act = self._script((request.pose_position + request.frames - 1) // self._format.clip_frames)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        parts = request.frames / self._format.clip_frames * (request.steps or self._steps) / self._steps
        delay_s = act.delay_s * parts
        decode_s = act.decode_s * request.frames / self._format.clip_frames
        await self._idle_for(min(delay_s - decode_s, timeout_s))
        result = renderer.render(request, prepared)
        left = result.frames
        while decode_s and len(left) > RUN_FRAMES and not self._killed.is_set():
            await self._idle_for(decode_s * RUN_FRAMES / request.frames)
            on_frames(left[:RUN_FRAMES])
            left = left[RUN_FRAMES:]
        await self._idle_for(decode_s * len(left) / request.frames)
        if act.dies or delay_s > timeout_s:
            self.kill()
        if self._killed.is_set():
            raise WorkerGoneError(f"worker {self.name} died while rendering a clip")
        if act.failure is not None:
            raise RenderError(act.failure)
        result.stages_ms["draw"] = (loop.time() - begun) * 1000
        return replace(result, frames=left), loop.time() - begun

    async def idle_piece(self, avatar: str, first: bool, timeout_s: float) -> Avatar | None:
        if first:
            self._pieces[avatar] = self._loaded().idle(avatar)
        return next(self._pieces[avatar], None)

    async def prepare_avatar(self, files: AvatarFiles, first: bool, timeout_s: float) -> bool:
        return any(True for _ in self._loaded().prepare_avatar(files))

    async def forget_avatar(self, name: str, timeout_s: float) -> None:
        self._loaded().forget_avatar(name)

    async def ping(self, timeout_s: float) -> None:
        """It draws in this process, which answers for it."""

    def kill(self) -> None:
        if not self._killed.is_set():
            self._killed.set()
            asyncio.get_running_loop().call_soon(self._on_gone)

    async def close(self) -> None:
        self._killed.set()

    async def _idle_for(self, seconds: float) -> None:
        """Lets time go by, unless the worker is killed meanwhile."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._killed.wait()

    def _loaded(self) -> Renderer:
        assert self._renderer is not None, "the worker was not started"
        return self._renderer


class TestCardEngine(FleetEngine):
    """An Engine whose frames are test cards; see ``card.py`` for what is on them and how to read it.

    ``workers`` clips are drawn at a time, the others wait their turn as they would for a GPU.
    """

    __test__ = False  # a name that pytest would otherwise collect

    def __init__(
        self,
        clip_format: ClipFormat,
        script: Script | None = None,
        workers: int = 1,
        capacity: int | None = None,
        options: FleetOptions | None = None,
    ) -> None:
        chosen = script or ScriptedFaults()
        names = ["testcard"] if workers == 1 else [f"testcard {number + 1}" for number in range(workers)]

        async def specs() -> list[WorkerSpec]:
            return [WorkerSpec(name, CardLoader(clip_format, avatar_name=chosen_options.avatar_name)) for name in names]

        chosen_options = options or FleetOptions()
        steps = chosen_options.steps

        def open_worker(spec: WorkerSpec, progress: Progress, on_gone: Callable[[], None]) -> CardWorker:
            return CardWorker(spec, clip_format, chosen, steps, on_gone)

        super().__init__(clip_format, specs, open_worker, options)
        self._admitted = capacity or max(1, math.floor(usable_cores() * USABLE_CORES / STREAM_CORES))
        self._need_s = chosen(0).need_s(clip_format)

    @property
    def capacity(self) -> int:
        """As many as the server can encode; drawing costs next to nothing."""
        return self._admitted

    @property
    def expected_render_s(self) -> float:
        return self._need_s


def _sleep_until(when_s: float) -> None:
    time.sleep(max(0.0, when_s - time.perf_counter()))


def frame_levels(request: RenderRequest, clip_format: ClipFormat) -> list[float]:
    """The level of each frame's own samples: those from ``floor(n / fps * rate)`` of frame n to that of the next.

    Raises RenderError if the request's audio is shorter than its frames.
    """
    edges = [
        clip_format.sample_of_frame(request.pose_position + i, clip_format.sample_rate)
        for i in range(request.frames + 1)
    ]
    own = edges[-1] - edges[0]
    if len(request.audio) < own:
        raise RenderError(
            f"the clip at frame {request.pose_position} has {len(request.audio)} samples; "
            f"its {request.frames} frames need {own}"
        )
    audio: F32Array = request.audio[len(request.audio) - own :]
    power = np.add.reduceat(np.square(audio, dtype=np.float64), np.array(edges[:-1]) - edges[0])
    return [level_of(math.sqrt(p / n)) for p, n in zip(power, np.diff(edges), strict=True)]
