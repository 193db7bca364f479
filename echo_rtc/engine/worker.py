"""What runs inside a worker process: loads a renderer, warms it up, renders one clip at a time.

The functions here are called by the process pool in the worker; ``process.py`` is their other side. torch and the
model are imported inside functions only, so that the server process can import this file for its names.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import math
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from echo_rtc.clips import ClipFormat
from echo_rtc.engine.devices import usable_cores
from echo_rtc.engine.handover import Area, Parcel
from echo_rtc.engine.protocol import Avatar, Progress, RenderRequest, RenderResult
from echo_rtc.engine.speed import Speed
from echo_rtc.errors import EchoRtcError, RenderError

if TYPE_CHECKING:
    from echo_rtc.model.generator import ClipGenerator

logger = logging.getLogger(__name__)

AVATAR = "default"
"""The name of the avatar that the settings describe."""

MEASURED_CLIPS = 5
MEASURE_S = 10.0
"""The speed is measured over this many clips, or as many as fit into this time (s); at least one."""

CPU_NICENESS = 5
"""A worker on the CPU yields to the server's media threads: a late clip is held frames, a late packet is a gap. Where
both want a core, this leaves the worker about a quarter of it; much more would starve it beside a busy browser."""


class Renderer(Protocol):
    """What a worker needs of a model: its avatars are prepared, and it renders clips."""

    @property
    def avatars(self) -> tuple[str, ...]:
        """The names of the prepared avatars, at least one."""
        ...

    def render(self, request: RenderRequest) -> RenderResult: ...

    def idle(self, avatar: str) -> Avatar:
        """Renders the avatar's idle loop."""
        ...


Loader = Callable[[Progress], Renderer]
"""Makes the renderer, in the worker. Must be picklable. Raises InputError or SettingsError for what a user can mend."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One worker to be: its name in the log, what it loads, and how much it yields to others (0..19)."""

    name: str
    loader: Loader
    niceness: int = 0


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What a worker says when it is loaded and warm."""

    avatars: tuple[str, ...]
    speed: Speed


@dataclass(frozen=True, slots=True)
class Line:
    """One line of progress on its way to the parent."""

    text: str


@dataclass(frozen=True, slots=True)
class Born:
    """The first message of a worker: its process id."""

    pid: int


@dataclass(frozen=True, slots=True)
class Seat:
    """What a process is given at its birth."""

    spec: WorkerSpec
    format: ClipFormat
    log_level: int
    requests: Area
    results: Area
    messages: Connection


class _Messages(logging.handlers.QueueHandler):
    """Sends log records and progress to the parent through one pipe."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__(queue.SimpleQueue())
        self._pipe = pipe
        self._turn = threading.Lock()

    def send(self, message: object) -> None:
        # A parent that is gone ends this process by itself; until then nobody is left to tell.
        with self._turn, contextlib.suppress(OSError):
            self._pipe.send(message)

    def enqueue(self, record: logging.LogRecord) -> None:
        self.send(record)


class _Worker:
    """The state of this process."""

    def __init__(self, seat: Seat, messages: _Messages) -> None:
        self.seat = seat
        self.messages = messages
        self.renderer: Renderer | None = None
        self.idle: Avatar | None = None


_worker: _Worker | None = None


def initialise(seat: Seat) -> None:
    """The pool's initializer: says that the process is there, and arranges how it logs and how it ends."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent closes its workers
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    messages = _Messages(seat.messages)
    messages.send(Born(os.getpid()))
    logging.basicConfig(handlers=[messages], level=seat.log_level, force=True)
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    if seat.spec.niceness:
        os.nice(seat.spec.niceness)
    _worker = _Worker(seat, messages)


def _end_with_parent() -> None:
    """Ends this process when the parent dies, however it dies; nothing here needs saving."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def load() -> WorkerReport:
    """Loads the renderer, warms it up and measures it. Raises InputError, SettingsError or RenderError."""
    worker = _running()
    seat = worker.seat

    def progress(text: str) -> None:
        worker.messages.send(Line(text))

    try:
        worker.renderer = seat.spec.loader(progress)
        progress("warming up")
        speed = measure(worker.renderer, seat.format)
    except EchoRtcError:
        raise
    except Exception as error:  # the boundary of a process: whatever the model raises reaches the parent as a sentence
        logger.exception("worker %s could not start", seat.spec.name)
        raise RenderError(f"worker {seat.spec.name} could not start: {_sentence(error)}") from None
    progress(f"ready, {speed.frames_per_second:.1f} frames/s")
    return WorkerReport(tuple(worker.renderer.avatars), speed)


def measure(renderer: Renderer, format: ClipFormat, clock: Callable[[], float] = time.perf_counter) -> Speed:
    """The speed of a renderer by ``clock`` (s), after one clip that is not counted."""
    rate, frames = format.sample_rate, format.clip_frames
    samples = format.sample_of_frame(format.history_frames, rate) + format.sample_of_frame(frames, rate)
    request = RenderRequest(renderer.avatars[0], np.zeros(samples, np.float32), frames, pose_position=0, seed=0)
    result = renderer.render(request)
    clip_s: list[float] = []
    while len(clip_s) < MEASURED_CLIPS and sum(clip_s) < MEASURE_S:
        begun = clock()
        result = renderer.render(replace(request, init_latent=result.final_latent))
        clip_s.append(clock() - begun)
    return Speed(frames, tuple(clip_s))


def render(parcel: Parcel) -> tuple[Parcel, float]:
    """Renders the request that lies in the request area. The result lies in the result area; with it go the seconds
    that the rendering itself took. Raises RenderError."""
    worker = _running()
    request = worker.seat.requests.take(parcel)
    assert isinstance(request, RenderRequest)
    assert worker.renderer is not None
    try:
        begun = time.perf_counter()
        result = worker.renderer.render(request)
        render_s = time.perf_counter() - begun
        return worker.seat.results.put(result), render_s
    except RenderError:
        raise
    except Exception as error:  # the boundary of a process: one clip is lost, the parent judges the worker
        logger.exception("worker %s lost a clip", worker.seat.spec.name)
        raise RenderError(f"worker {worker.seat.spec.name} lost a clip: {_sentence(error)}") from None


def render_idle(avatar: str) -> int:
    """Renders an idle loop and keeps it to be fetched; returns how many frames it has. Raises RenderError."""
    worker = _running()
    assert worker.renderer is not None
    try:
        worker.idle = worker.renderer.idle(avatar)
    except EchoRtcError:
        raise
    except Exception as error:  # the boundary of a process, as in load()
        logger.exception("worker %s could not render the idle loop", worker.seat.spec.name)
        raise RenderError(f"the idle loop of avatar {avatar} could not be rendered: {_sentence(error)}") from None
    return len(worker.idle.idle)


def fetch_idle(first: int, frames: int) -> Parcel:
    """Frames ``first`` to ``first + frames`` of the idle loop, as an Avatar, lie in the result area; with the last
    of them the loop is forgotten here."""
    worker = _running()
    assert worker.idle is not None
    whole, part = worker.idle, slice(first, first + frames)
    latents = None if whole.idle_latents is None else whole.idle_latents[part]
    if first + frames >= len(whole.idle):
        worker.idle = None
    return worker.seat.results.put(Avatar(whole.name, whole.idle[part], latents))


def _running() -> _Worker:
    assert _worker is not None, "the process was not initialised"
    return _worker


def _sentence(error: Exception) -> str:
    first_line, _, _ = str(error).partition("\n")
    return f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__


@dataclass(frozen=True, slots=True)
class ModelLoader:
    """Loads the EchoMimic-V2 clip generator on one device: the Loader of a server's workers.

    ``model`` is the mapping of that name in the YAML file, whose relative paths start from ``model_base``.
    """

    model: Mapping[str, Any]
    model_base: Path
    reference_image: Path
    pose_dir: Path
    format: ClipFormat
    device: str
    steps: int
    cfg: float
    audio_margin: int
    audio_model_type: str
    dtype: str
    low_ram: bool
    use_init_latent: bool

    def __call__(self, progress: Progress) -> Renderer:
        # OpenMP's threads spin while they wait for each other, unless they are told before torch is loaded. Where cores
        # are shared (with the media threads, with a browser), one that is off its core makes the others burn theirs.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")

        # What a user can have got wrong comes first: a missing file need not wait for torch and the weights.
        from echo_rtc.model.description import ModelDescription
        from echo_rtc.model.image import load_reference_image
        from echo_rtc.model.pose import load_pose_sequence

        description = ModelDescription.from_mapping(self.model, self.model_base)
        load_reference_image(self.reference_image, self.format.width, self.format.height)
        load_pose_sequence(self.pose_dir)

        progress("importing torch")
        import torch

        from echo_rtc.model.generator import ClipGenerator, GeneratorSettings, fitting_dtype

        on_cpu = self.device == "cpu"
        if on_cpu:
            torch.set_num_threads(math.ceil(usable_cores()))
        else:
            torch.cuda.set_device(self.device)
        settings = GeneratorSettings(
            format=self.format,
            steps=self.steps,
            cfg=self.cfg,
            audio_margin=self.audio_margin,
            audio_model_type=self.audio_model_type,
            low_ram=self.low_ram,
            device=self.device,
            dtype=fitting_dtype(self.device) if self.dtype == "auto" else self.dtype,
        )
        generator = ClipGenerator.load(description, settings, progress)
        progress(f"preparing avatar {AVATAR}")
        generator.prepare_avatar(AVATAR, self.reference_image, self.pose_dir)
        return _ModelRenderer(generator, self.use_init_latent)


class _ModelRenderer:
    """A clip generator with its one avatar, as a Renderer."""

    avatars = (AVATAR,)

    def __init__(self, generator: ClipGenerator, chained: bool) -> None:
        self._generator = generator
        self._chained = chained

    def render(self, request: RenderRequest) -> RenderResult:
        return self._generator.generate(request)

    def idle(self, avatar: str) -> Avatar:
        return self._generator.idle_loop(avatar, chained=self._chained)
