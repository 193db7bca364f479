"""What a worker is, wherever it runs: it loads a renderer, warms it up, prepares clips and renders them.

One object, for a process beside the server (``child.py``) as well as for an actor on another machine. torch and the
model are imported inside functions only, so that the server process can import this file for its names. Knows nothing
of processes, of streams or of scheduling.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from echo_rtc.clips import DEFAULT_AVATAR, ClipFormat, F16Array, YuvFrames
from echo_rtc.engine.arithmetic import settle
from echo_rtc.engine.devices import usable_cores
from echo_rtc.engine.kept_avatars import MOST_POSES_BYTES, KeptAvatars, avatar_digest
from echo_rtc.engine.kept_files import code_digest, files_as_found
from echo_rtc.engine.speed import Speed
from echo_rtc.errors import EchoRtcError, RenderError, first_line
from echo_rtc.model.options import INTEGERS, GeneratorSettings, ModelOptions
from echo_rtc.rendering import Avatar, AvatarFiles, Progress, RenderRequest, RenderResult, TakeFrames

if TYPE_CHECKING:
    from echo_rtc.model.generator import ClipGenerator, PreparedClip

logger = logging.getLogger(__name__)

AVATAR = DEFAULT_AVATAR
"""The name of the avatar that the settings describe."""

MEASURED_CLIPS = 5
MEASURE_S = 10.0
"""The speed is measured over this many clips, or as many as fit into this time (s); at least one."""

_SPEECH_RMS = 0.1
"""Loudness of the noise that stands for speech where the speed is measured: loud speech."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BLOCK, _KEPT_MEMORY = 32 << 20, 1 << 30
"""Parameters of glibc's mallopt(3), and their values in bytes: the first is the most that it takes."""

CPU_NICENESS = 5
"""A worker on the CPU yields to the server's media threads: a late clip is held frames, a late packet is a gap. Where
both want a core, this leaves the worker about a quarter of it; much more would starve it beside a busy browser."""


class Renderer(Protocol):
    """What a worker needs of a model: its avatars are prepared, and it prepares and renders clips.

    ``prepare`` may run in another thread than all else, while a clip is being rendered.
    """

    @property
    def avatars(self) -> tuple[str, ...]:
        """The names of the prepared avatars, at least one."""
        ...

    def prepare(self, request: RenderRequest) -> Any:
        """All that can be computed without the initial latent."""
        ...

    def render(self, request: RenderRequest, prepared: Any, on_frames: TakeFrames | None = None) -> RenderResult:
        """Renders a clip from what :meth:`prepare` made of the same request; only the latent may have changed. Frames
        may be handed to ``on_frames`` as they are decoded; the result has those that are left, at least one."""
        ...

    def idle(self, avatar: str) -> Iterator[Avatar]:
        """Renders the avatar's idle loop, a piece of at most a clip's frames with each step."""
        ...

    def prepare_avatar(self, files: AvatarFiles) -> Iterator[None]:
        """Prepares a further avatar, with each step a piece that takes no longer than a clip. Raises InputError if its
        files cannot be used."""
        ...

    def forget_avatar(self, name: str) -> None:
        """Lets go of an avatar, prepared or not."""
        ...

    def work_ahead(self) -> bool:
        """Does a little of what later clips would compute, a small part of a clip's time; False if all is done. Called
        on the thread that prepares clips."""
        ...


@runtime_checkable
class Choosing(Protocol):
    """A renderer that has chosen by itself how it computes."""

    notice: str
    """What users should know of it, a sentence; empty if nothing."""


Loader = Callable[[Progress], Renderer]
"""Makes the renderer, in the worker. Must be picklable. Raises InputError or SettingsError for what a user can mend."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One worker to be: its name in the log, what it loads, how much it yields to others (0..19), and which numbers of
    denoising steps it is to be warm for besides the ordinary one."""

    name: str
    loader: Loader
    niceness: int = 0
    other_steps: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What a worker says when it is loaded and warm. ``notice``: what users should know of how it computes, a
    sentence; empty if nothing."""

    avatars: tuple[str, ...]
    speed: Speed
    notice: str = ""


class ClipWorker:
    """A renderer at work. Rendering is called from one thread, :meth:`prepare` and :meth:`discard` from another."""

    def __init__(self, spec: WorkerSpec, clip_format: ClipFormat) -> None:
        self._spec = spec
        self._format = clip_format
        self._renderer: Renderer | None = None
        self._prepared: dict[int, Future[tuple[RenderRequest, Any]]] = {}
        self._turn = threading.Lock()
        self._idle: dict[str, Iterator[Avatar]] = {}
        self._preparing: dict[str, Iterator[None]] = {}
        self._occupied = 0
        """How many calls of the rendering thread want the device for themselves."""

    def load(self, progress: Progress) -> WorkerReport:
        """Loads the renderer, warms it up and measures it. Raises InputError, SettingsError or RenderError."""
        try:
            with self._occupying():
                self._renderer = self._spec.loader(progress)
                progress("warming up")
                speed = self._measured(self._format.clip_frames)
        except EchoRtcError:
            raise
        except Exception as error:  # whatever the model raises reaches the server as a sentence
            logger.exception("worker %s could not start", self._spec.name)
            raise RenderError(f"worker {self._spec.name} could not start: {_sentence(error)}") from None
        progress(f"ready, {speed.frames_per_second:.1f} frames/s")
        notice = self._renderer.notice if isinstance(self._renderer, Choosing) else ""
        return WorkerReport(tuple(self._renderer.avatars), speed, notice)

    def measure(self, frames: int) -> Speed:
        """The speed of clips of ``frames`` frames, which the renderer is warm for afterwards. Raises RenderError."""
        try:
            with self._occupying():
                return self._measured(frames)
        except EchoRtcError:
            raise
        except Exception as error:  # of the model's own kinds, which the server does not know
            logger.exception("worker %s could not warm up", self._spec.name)
            raise RenderError(f"worker {self._spec.name} could not warm up: {_sentence(error)}") from None

    def _measured(self, frames: int) -> Speed:
        return measure(self._loaded, self._format, frames, self._spec.other_steps)

    def prepare(self, number: int, request: RenderRequest) -> None:
        """Prepares clip ``number``. What goes wrong is told when the clip is rendered."""
        place = self._place(number)
        try:
            place.set_result((request, self._loaded.prepare(request)))
        except Exception as error:  # kept for render()
            place.set_exception(error)

    def work_ahead(self) -> bool:
        """Does a little of what later clips would compute, unless the worker is loading or has anything else to do;
        False if all is done. On the thread of :meth:`prepare`."""
        if self._renderer is None or self._occupied or self._prepared:
            return True
        try:
            return self._renderer.work_ahead()
        except Exception:  # a clip that needs it reports what is wrong
            logger.exception("worker %s could not work ahead", self._spec.name)
            return False

    @contextmanager
    def _occupying(self) -> Iterator[None]:
        """While inside, nothing is done ahead."""
        self._occupied += 1
        try:
            yield
        finally:
            self._occupied -= 1

    def discard(self, number: int) -> None:
        """Forgets a clip that was prepared."""
        with self._turn:
            self._prepared.pop(number, None)

    def render(
        self, number: int, init_latent: F16Array | None, on_frames: TakeFrames | None = None
    ) -> tuple[RenderResult, float]:
        """Renders clip ``number``, which is or is being prepared, from ``init_latent``; with it go the seconds that
        the rendering itself took. ``on_frames`` as in :meth:`Renderer.render`. Raises RenderError."""
        try:
            request, prepared = self._place(number).result()
            begun = time.perf_counter()
            result = self._loaded.render(replace(request, init_latent=init_latent), prepared, on_frames)
            return result, time.perf_counter() - begun
        except RenderError:
            raise
        except Exception as error:  # one clip is lost, the server judges the worker
            logger.exception("worker %s lost a clip", self._spec.name)
            raise RenderError(f"worker {self._spec.name} lost a clip: {_sentence(error)}") from None
        finally:
            self.discard(number)

    def prepare_avatar(self, files: AvatarFiles, first: bool) -> bool:
        """Prepares the next piece of a further avatar, or the ``first``; says whether there is more to do. Raises
        InputError or RenderError."""
        name = files.name
        try:
            if first or name not in self._preparing:
                self._preparing[name] = self._loaded.prepare_avatar(files)
            with self._occupying():
                next(self._preparing[name])
            return True
        except StopIteration:
            del self._preparing[name]
            return False
        except EchoRtcError:
            raise
        except Exception as error:
            logger.exception("worker %s could not prepare avatar %s", self._spec.name, name)
            raise RenderError(f"the avatar {name} could not be prepared: {_sentence(error)}") from None

    def forget_avatar(self, name: str) -> None:
        """Lets go of an avatar, prepared or half prepared."""
        self._preparing.pop(name, None)
        self._idle.pop(name, None)
        self._loaded.forget_avatar(name)

    def idle_piece(self, avatar: str, first: bool) -> Avatar | None:
        """The next piece of an avatar's idle loop, the ``first`` or one more; None after the last. Raises
        RenderError."""
        try:
            if first or avatar not in self._idle:
                self._idle[avatar] = self._loaded.idle(avatar)
            with self._occupying():
                piece = next(self._idle[avatar], None)
        except EchoRtcError:
            raise
        except Exception as error:
            logger.exception("worker %s could not render the idle loop", self._spec.name)
            raise RenderError(f"the idle loop of avatar {avatar} could not be rendered: {_sentence(error)}") from None
        if piece is None:
            del self._idle[avatar]
        return piece

    @property
    def _loaded(self) -> Renderer:
        assert self._renderer is not None, "the renderer is not loaded"
        return self._renderer

    def _place(self, number: int) -> Future[tuple[RenderRequest, Any]]:
        """The future of clip ``number``, created by the first caller."""
        with self._turn:
            return self._prepared.setdefault(number, Future())


def measure(
    renderer: Renderer,
    clip_format: ClipFormat,
    frames: int,
    other_steps: Sequence[int] = (),
    clock: Callable[[], float] = time.perf_counter,
) -> Speed:
    """The speed of a renderer with clips of ``frames`` frames by ``clock`` (s).

    No live clip must wait for what a renderer records, compiles or chooses once: before the measured clips, one that
    begins from noise and one that continues it are rendered with all steps, and with each of the ``other_steps``.

    Speech and silence take turns: the poses of speech are known beforehand, those on the way from rest to speech are
    drawn for the clip. Most clips that are measured are of speech, so the median is theirs.
    """
    came, begun, need_s = 0, clock(), 0.0

    def note(run: YuvFrames) -> None:
        nonlocal came, need_s
        need_s = max(need_s, clock() - begun - came / clip_format.fps)
        came += len(run)

    silence = _sample_clip(renderer, clip_format, frames, loudness=0.0)
    speech = _sample_clip(renderer, clip_format, frames, _SPEECH_RMS)
    for steps in (*other_steps, None):
        result = renderer.render(replace(silence, steps=steps), renderer.prepare(silence), note)
        chained = replace(speech, steps=steps, init_latent=result.final_latent)
        result = renderer.render(chained, renderer.prepare(chained), note)
    clip_s: list[float] = []
    needs_s: list[float] = []
    while len(clip_s) < MEASURED_CLIPS and sum(clip_s) < MEASURE_S:
        request = replace(silence if len(clip_s) % 2 else speech, init_latent=result.final_latent)
        came, begun, need_s = 0, clock(), 0.0
        result = renderer.render(request, renderer.prepare(request), note)
        note(result.frames)
        clip_s.append(clock() - begun)
        needs_s.append(need_s)
    return Speed(frames, tuple(clip_s), tuple(needs_s))


def _sample_clip(renderer: Renderer, clip_format: ClipFormat, frames: int, loudness: float) -> RenderRequest:
    """A clip of ``frames`` frames of a renderer's first avatar, whose sound is noise of ``loudness`` (root mean square,
    of 1)."""
    spans = (clip_format.history_frames, clip_format.clip_frames)
    samples = sum(clip_format.sample_of_frame(span, clip_format.sample_rate) for span in spans)
    noise = np.random.default_rng(0).standard_normal(samples, np.float32) * np.float32(loudness)
    return RenderRequest(renderer.avatars[0], noise, frames, pose_position=0, seed=0)


def _sentence(error: Exception) -> str:
    name = type(error).__name__
    return f"{name}: {first_line(error)}" if str(error) else name


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from: what loads it, the files (or folders of files) that hold its weights or decide them,
    and what its networks are built from."""

    load: Callable[[GeneratorSettings, Progress], ClipGenerator]
    files: Sequence[Path]
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ModelLoader:
    """Loads the EchoMimic-V2 clip generator on one device: the Loader of a server's workers.

    ``model`` is the mapping of that name in the YAML file, whose relative paths start from ``model_base``. ``cores``:
    how many cores a model on the CPU may use; None for all.
    """

    model: Mapping[str, Any]
    model_base: Path
    reference_image: Path
    pose_dir: Path
    format: ClipFormat
    device: str
    options: ModelOptions
    use_init_latent: bool
    compile_cache: Path | None = None
    cores: float | None = None
    idle_pose_dir: Path | None = None
    avatar_name: str = AVATAR
    keep_idle_loops: bool = True

    def __call__(self, progress: Progress) -> Renderer:
        # OpenMP's threads spin while they wait for each other, unless they are told before torch is loaded. Where cores
        # are shared (with the media threads, with a browser), one that is off its core makes the others burn theirs.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        kept = self.compile_cache is not None and keep_compiled(self.compile_cache)

        # What a user can have got wrong comes first: a missing file need not wait for torch and the weights.
        from echo_rtc.model.image import load_reference_image
        from echo_rtc.model.pose_files import load_pose_sequence

        source = self._source()
        load_reference_image(self.reference_image, self.format.width, self.format.height)
        load_pose_sequence(self.pose_dir)
        if self.idle_pose_dir is not None:
            load_pose_sequence(self.idle_pose_dir)

        progress("importing torch")
        import torch

        from echo_rtc.model.generator import fitting_dtype
        from echo_rtc.model.kernels.narrow_attention import compile_ahead

        on_cpu = self.device == "cpu"
        if on_cpu:
            keep_memory()
            torch.set_num_threads(math.ceil(self.cores or usable_cores()))
        else:
            torch.cuda.set_device(self.device)
        dtype = fitting_dtype(self.device) if self.options.dtype == "auto" else self.options.dtype
        settings = GeneratorSettings.for_device(self.options, self.format, self.device, dtype)
        if not on_cpu and dtype == "float16" and self.options.attention == "auto" and self.options.kernels != "torch":
            compile_ahead(self.device)
        generator = source.load(settings, progress)
        progress(f"preparing avatar {self.avatar_name}")
        avatars = self._kept_avatars(generator, source) if kept and self.keep_idle_loops else None
        renderer = _ModelRenderer(generator, self.use_init_latent, avatars)
        files = AvatarFiles(self.avatar_name, self.reference_image, self.pose_dir, self.idle_pose_dir)
        for _ in renderer.prepare_avatar(files):
            pass
        if on_cpu and self.options.dtype == "auto" and dtype == "float32":
            progress("measuring float32 against 8-bit integers")
            clip = _sample_clip(renderer, self.format, self.format.clip_frames, loudness=0.0)
            renderer.notice = settle(renderer, generator, clip, self.format.fps)
        return renderer

    def _source(self) -> ModelSource:
        """Where the model comes from, once its description was found to be sound. Raises InputError or
        SettingsError."""
        from echo_rtc.model.description import ModelDescription

        description = ModelDescription.from_mapping(self.model, self.model_base)

        def load(settings: GeneratorSettings, progress: Progress) -> ClipGenerator:
            from echo_rtc.model.generator import ClipGenerator

            return ClipGenerator.load(description, settings, progress)

        return ModelSource(load, description.files, description.config)

    def _kept_avatars(self, generator: ClipGenerator, source: ModelSource) -> KeptAvatars | None:
        """Where idle loops and poses are kept; None where it cannot be told what decides how they look."""
        import cv2
        import PIL
        import torch

        import echo_rtc.model

        assert self.compile_cache is not None
        on_gpu = generator.device.type == "cuda"
        kind = torch.cuda.get_device_name(generator.device) if on_gpu else torch.backends.cpu.get_cpu_capability()
        try:
            model = {
                "code": code_digest(Path(echo_rtc.model.__path__[0])),
                "releases": [torch.__version__, np.__version__, PIL.__version__, cv2.__version__],
                "device": [generator.device.type, platform.machine(), kind],
                "weights": files_as_found(source.files),
                "config": source.config,
                "trained": generator.trained,
                "chained": self.use_init_latent,
            }
        except OSError as error:
            logger.warning("idle loops and poses are not kept: %s", error)
            return None
        return KeptAvatars(self.compile_cache.expanduser(), model, self.format)


def keep_compiled(folder: Path) -> bool:
    """Has torch.compile and Triton keep what they compile in ``folder``, unless the environment names other places;
    whether it can be used. To be called before torch is loaded."""
    places = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
    try:
        for variable, name in places.items():
            place = folder.expanduser() / name
            place.mkdir(parents=True, exist_ok=True)
            os.environ.setdefault(variable, str(place))
    except (OSError, RuntimeError) as error:
        logger.warning(
            "compile_cache is %s, which cannot be used (%s); kernels, idle loops and poses are made again",
            folder,
            error,
        )
        return False
    return True


def keep_memory() -> None:
    """Has the C library keep what a clip frees for the next one. Otherwise tens of megabytes go back to the system and
    come again page by page with each clip, which takes a tenth of its time on a CPU. Only glibc has this to tell."""
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _KEPT_BLOCK)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_MEMORY)


class _ModelRenderer:
    """A clip generator as a Renderer."""

    notice = ""

    def __init__(self, generator: ClipGenerator, chained: bool, kept: KeptAvatars | None) -> None:
        self._generator = generator
        self._chained = chained
        self._kept = kept
        self._poses_on_disk: set[str] = set()
        """Avatars whose poses were read from disk, or written."""

    @property
    def avatars(self) -> tuple[str, ...]:
        return self._generator.avatars

    def prepare(self, request: RenderRequest) -> PreparedClip:
        return self._generator.prepare(request)

    def render(
        self, request: RenderRequest, prepared: PreparedClip, on_frames: TakeFrames | None = None
    ) -> RenderResult:
        return self._generator.generate(request, prepared, on_frames)

    def idle(self, avatar: str) -> Iterator[Avatar]:
        rendered = self._generator.idle_loop(avatar, chained=self._chained)
        if self._kept is None:
            return rendered
        settings = {**asdict(self._generator.settings), "device": ""}
        if settings["dtype"] == INTEGERS:
            settings["fitted to"] = self._kept.first
        return self._kept.idle_loop(avatar, settings, rendered)

    def prepare_avatar(self, files: AvatarFiles) -> Iterator[None]:
        # Before they are read: files that are replaced meanwhile must not be taken for what was prepared.
        digest = None if self._kept is None else avatar_digest(files)
        yield from self._generator.avatar_pieces(files.name, files.reference_image, files.pose_dir, files.idle_pose_dir)
        self._poses_on_disk.discard(files.name)
        if self._kept is None:
            return
        self._kept.note(files.name, digest)
        if not self._generator.settings.low_ram:
            poses = self._kept.poses(files.name, self._pose_settings)
            if poses is not None and self._generator.take_poses(files.name, poses):
                self._poses_on_disk.add(files.name)

    def forget_avatar(self, name: str) -> None:
        self._generator.forget_avatar(name)
        self._poses_on_disk.discard(name)
        if self._kept is not None:
            self._kept.forget(name)

    def work_ahead(self) -> bool:
        more = self._generator.work_ahead()
        if self._kept is not None:
            for name in [name for name in self.avatars if name not in self._poses_on_disk]:
                poses = self._generator.poses(name, MOST_POSES_BYTES)
                if poses is not None:
                    self._poses_on_disk.add(name)
                    self._kept.keep_poses(name, self._pose_settings, poses)
        return more

    @property
    def _pose_settings(self) -> dict[str, object]:
        """What decides how poses are encoded, besides the avatar and the model."""
        settings = self._generator.settings
        number_format = "float32" if settings.dtype == INTEGERS else settings.dtype
        return {"format": asdict(settings.format), "dtype": number_format}
