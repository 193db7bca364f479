"""The parent's side of one worker process: starts it, hands it clips, never waits for it without a bound, ends it.

The process is the only member of a standard process pool. This file adds what the pool leaves out: a bound on every
call, clips that are prepared while another is rendered, the worker's progress and log in the parent's, and an end that
comes in bounded time. It knows one worker; ``fleet.py`` knows them all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from dataclasses import replace
from typing import ParamSpec, TypeVar

from echo_rtc.clips import ClipFormat, YuvFrames
from echo_rtc.engine import child
from echo_rtc.engine.child import AreaFree, FramesReady, ProgressLine, Spawned, ToDiscard, ToPrepare, WorkerChannels
from echo_rtc.engine.handover import Area, Payload
from echo_rtc.engine.slots import WorkerGoneError
from echo_rtc.engine.speed import Speed
from echo_rtc.engine.worker import WorkerReport, WorkerSpec
from echo_rtc.errors import RenderError
from echo_rtc.rendering import Avatar, AvatarFiles, Progress, RenderRequest, RenderResult, TakeFrames

logger = logging.getLogger(__name__)

END_S = 2.0
"""How long an idle worker may take to end by itself before it is killed."""

REAP_S = 5.0
"""How long the operating system may take to reap a killed worker."""

REQUEST_BYTES = 4 * 1024 * 1024
REQUEST_AREAS = 2
"""Shared with a worker for a request: seconds of audio and a latent; one may be filled while another is read."""

RESULT_CLIPS = 2
RESULT_EXTRA_BYTES = 4 * 1024 * 1024
"""Shared with a worker for a result: this many clips' frames, so that clips may overlap, and this much for latents."""

P = ParamSpec("P")
T = TypeVar("T")


KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
"""The signal that ends a process at once; on Windows each does."""


class Arriving:
    """The frames of the clip that is being rendered, as they come: told by a message each, and all of them once more
    by the answer, which may overtake messages."""

    def __init__(self, number: int, area: Area, on_frames: TakeFrames) -> None:
        self.number = number
        self._area = area
        self._on_frames = on_frames
        self._taken = 0

    def take(self, index: int, payload: Payload) -> None:
        """Run ``index`` of the frames lies ready."""
        if index == self._taken:
            self._taken += 1
            frames = self._area.take(payload)
            assert isinstance(frames, YuvFrames)
            self._on_frames(frames)

    def take_all(self, runs: Sequence[Payload]) -> None:
        """These runs have lain ready."""
        for index, payload in enumerate(runs):
            self.take(index, payload)


class WorkerProcess:
    """One worker process, from start to exit. Not reusable: a replacement is a new object."""

    def __init__(
        self, spec: WorkerSpec, clip_format: ClipFormat, progress: Progress, on_gone: Callable[[], None]
    ) -> None:
        """``on_gone`` is called once, when the process is dead."""
        self._spec = spec
        self._progress = progress
        self._on_gone = on_gone
        context = multiprocessing.get_context("spawn")
        frame_bytes = clip_format.width * clip_format.height * 3 // 2
        self._requests = tuple(Area(context, REQUEST_BYTES) for _ in range(REQUEST_AREAS))
        self._free_areas: asyncio.Queue[int] = asyncio.Queue()
        for area in range(REQUEST_AREAS):
            self._free_areas.put_nowait(area)
        self._handed: set[int] = set()
        self._arriving: Arriving | None = None
        self._results = Area(context, RESULT_CLIPS * clip_format.clip_frames * frame_bytes + RESULT_EXTRA_BYTES)
        self._messages, self._theirs = context.Pipe(duplex=False)
        self._their_commands, self._commands = context.Pipe(duplex=False)
        level = logging.getLogger().getEffectiveLevel()
        channels = WorkerChannels(
            spec, clip_format, level, self._requests, self._results, self._theirs, self._their_commands
        )
        self._pool = ProcessPoolExecutor(1, context, child.initialise, (channels,))
        self._reader = threading.Thread(
            target=self._read, args=(asyncio.get_running_loop(),), name=f"echo-worker-{spec.name}", daemon=True
        )
        self._spawning: asyncio.Task[Future[WorkerReport]] | None = None
        self._reaping: asyncio.Task[None] | None = None
        self._pid: int | None = None
        self._busy = False
        self._kill_requested = False
        self._gone = False

    @property
    def name(self) -> str:
        return self._spec.name

    @property
    def pid(self) -> int | None:
        """The process's id, known from its first message on."""
        return self._pid

    async def start(self, timeout_s: float) -> WorkerReport:
        """Starts the process and loads its renderer. Raises what the loader raises, WorkerGoneError if it dies."""
        self._spawning = asyncio.create_task(asyncio.to_thread(self._spawn))
        try:
            # Shielded: a thread that is starting a process cannot be called back, so close() waits for it instead.
            future = await asyncio.shield(self._spawning)
        except OSError as error:
            self._end()
            raise WorkerGoneError(f"worker {self.name} cannot be started: {error}") from error
        return await self._outcome(future, timeout_s, "loading")

    async def measure(self, frames: int, timeout_s: float) -> Speed:
        """The speed of clips of ``frames`` frames. Raises as :meth:`render`."""
        return await self._call(timeout_s, "warming up", child.measure, frames)

    def prepare(self, number: int, request: RenderRequest) -> None:
        """Has clip ``number`` prepared beside whatever is being rendered, if there is room for its request."""
        if not self._free_areas.empty():
            # A failed hand-over is reported when the clip is rendered.
            with contextlib.suppress(RenderError):
                self._hand_over(number, request, self._free_areas.get_nowait())

    def discard(self, number: int) -> None:
        """Discards clip ``number``, which was prepared."""
        if number in self._handed:
            self._handed.discard(number)
            with contextlib.suppress(OSError):  # the worker is dead, and the clip with it
                self._commands.send(ToDiscard(number))

    async def render(
        self, number: int, request: RenderRequest, timeout_s: float, on_frames: TakeFrames
    ) -> tuple[RenderResult, float]:
        """Renders clip ``number``, prepared or not; only one at a time. Frames go to ``on_frames`` as they come, the
        last of them with the result; with it go the seconds that rendering itself took. Raises RenderError;
        WorkerGoneError if the worker is no more.

        ``stages_ms`` of the result gets ``handover``: all that was not spent in the worker itself.
        """
        clock = asyncio.get_running_loop().time
        begun = clock()
        if number not in self._handed:
            try:
                area = await asyncio.wait_for(self._free_areas.get(), timeout_s)
            except TimeoutError:
                self.kill()
                raise WorkerGoneError(f"worker {self.name} took no clip for {timeout_s:g} s and was ended") from None
            self._hand_over(number, request, area)
        self._handed.discard(number)
        arriving = self._arriving = Arriving(number, self._results, on_frames)
        try:
            rendered = await self._call(timeout_s, "rendering a clip", child.render, number, request.init_latent)
            arriving.take_all(rendered.runs)
        finally:
            self._arriving = None
        result = self._results.take(rendered.result)
        assert isinstance(result, RenderResult)
        result.stages_ms["handover"] = (clock() - begun - rendered.render_s) * 1000
        return result, rendered.render_s

    async def idle_piece(self, avatar: str, first: bool, timeout_s: float) -> Avatar | None:
        """Renders the next piece of an idle loop, or the ``first``; None after the last. Raises as :meth:`render`."""
        payload = await self._call(timeout_s, "rendering an idle loop", child.idle_piece, avatar, first)
        if payload is None:
            return None
        piece = self._results.take(payload)
        assert isinstance(piece, Avatar)
        return piece

    async def prepare_avatar(self, files: AvatarFiles, first: bool, timeout_s: float) -> bool:
        """Prepares the next piece of a further avatar, or the ``first``; whether there is more. Raises InputError, or
        as :meth:`render`."""
        return await self._call(timeout_s, "preparing an avatar", child.prepare_avatar, files, first)

    async def forget_avatar(self, name: str, timeout_s: float) -> None:
        """Lets go of an avatar. Raises as :meth:`render`."""
        await self._call(timeout_s, "forgetting an avatar", child.forget_avatar, name)

    async def ping(self, timeout_s: float) -> None:
        """Has the process answer. Raises as :meth:`render`."""
        await self._call(timeout_s, "idle and silent", child.ping)

    def kill(self) -> None:
        """Kills the process at once; one that has not said its id yet, as soon as it does."""
        self._kill_requested = True
        if self._pid is not None and not self._gone:
            try:
                os.kill(self._pid, KILL)
            except ProcessLookupError:
                logger.debug("worker %s was already gone", self.name)

    async def close(self) -> None:
        """Ends the process in bounded time, and everything that serves it here. May be called again after it was
        cancelled."""
        if self._spawning is not None:
            await asyncio.wait({self._spawning})
        if self._busy:
            self.kill()
        if self._reaping is None:
            self._reaping = asyncio.create_task(asyncio.to_thread(self._reap))
        done, _ = await asyncio.wait({self._reaping}, timeout=REAP_S if self._kill_requested else END_S)
        if not done:
            self.kill()
            done, _ = await asyncio.wait({self._reaping}, timeout=REAP_S)
        if not done:
            logger.error("worker %s (process %s) does not end", self.name, self._pid)

    def _spawn(self) -> Future[WorkerReport]:
        # A child starts with its parent thread's mask: no such signal can end it before it ignores them by itself.
        child.hold_terminal_signals(True)
        try:
            future = self._pool.submit(child.load)
        finally:
            child.hold_terminal_signals(False)
        # So that the child's ends are the only ones, and its death the end of the file.
        self._theirs.close()
        self._their_commands.close()
        self._reader.start()
        return future

    def _reap(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._reader.ident is not None:
            self._reader.join(REAP_S)
        for pipe in (self._theirs, self._messages, self._their_commands, self._commands):
            pipe.close()

    def _hand_over(self, number: int, request: RenderRequest, area: int) -> None:
        """Sends a request to be prepared. Raises RenderError if it is too large or the worker is gone."""
        try:
            # The latent may still change, and goes with the order to render.
            payload = self._requests[area].put(replace(request, init_latent=None))
        except ValueError as error:
            self._free_areas.put_nowait(area)
            raise RenderError(f"the clip cannot be handed to worker {self.name}: {error}") from error
        try:
            self._commands.send(ToPrepare(number, area, payload))
        except OSError as error:
            raise WorkerGoneError(f"worker {self.name} is gone") from error
        self._handed.add(number)

    async def _call(self, timeout_s: float, doing: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function of child.py in the worker. Raises as :meth:`_outcome`."""
        try:
            future = self._pool.submit(call, *args, **kwargs)
        except RuntimeError as error:  # the pool is broken or shut down
            raise WorkerGoneError(f"worker {self.name} is gone") from error
        return await self._outcome(future, timeout_s, doing)

    async def _outcome(self, future: Future[T], timeout_s: float, doing: str) -> T:
        """What the worker answers. Raises WorkerGoneError if it dies, or is killed for exceeding ``timeout_s``."""
        answer = asyncio.wrap_future(future)
        answer.add_done_callback(_retrieve)
        self._busy = True
        done, _ = await asyncio.wait({answer}, timeout=timeout_s)
        if not done:
            self.kill()
            raise WorkerGoneError(f"worker {self.name} was {doing} for more than {timeout_s:g} s and was ended")
        self._busy = False
        if answer.cancelled():  # by close(), before the worker had begun
            raise WorkerGoneError(f"worker {self.name} was closed before {doing}")
        try:
            return answer.result()
        except BrokenExecutor as error:
            raise WorkerGoneError(f"worker {self.name} died while {doing}") from error

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        """Runs in a thread until the process is dead: passes on what it says."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            while True:
                try:
                    message = self._messages.recv()
                except (EOFError, OSError):
                    break
                except (pickle.UnpicklingError, AttributeError, ImportError):
                    logger.warning("worker %s sent a log record that cannot be read here", self.name)
                    continue
                if isinstance(message, logging.LogRecord):
                    target = logging.getLogger(message.name)
                    if target.isEnabledFor(message.levelno):
                        target.handle(message)
                else:
                    loop.call_soon_threadsafe(self._on_message, message)
            loop.call_soon_threadsafe(self._end)

    def _on_message(self, message: Spawned | ProgressLine | AreaFree | FramesReady) -> None:
        match message:
            case FramesReady(number, index, payload):
                if self._arriving is not None and self._arriving.number == number:
                    self._arriving.take(index, payload)
            case ProgressLine(text):
                self._progress(f"worker {self.name}: {text}")
            case AreaFree(area):
                self._free_areas.put_nowait(area)
            case Spawned(pid):
                self._pid = pid
                if self._kill_requested:
                    self.kill()

    def _end(self) -> None:
        if not self._gone:
            self._gone = True
            self._on_gone()


def _retrieve(answer: asyncio.Future[T]) -> None:
    """Retrieves an outcome that is not awaited any more, so that asyncio does not warn of it."""
    if not answer.cancelled():
        answer.exception()
