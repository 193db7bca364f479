"""The parent's side of one worker process: starts it, hands it clips, never waits for it without a bound, ends it.

The process is the only member of a standard process pool. This file adds what the pool leaves out: a bound on every
call, the worker's progress and log in the parent's, and an end that comes in bounded time. It knows one worker;
``local.py`` knows them all.
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
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from typing import ParamSpec, TypeVar

import numpy as np

from echo_rtc.clips import ClipFormat, YuvFrames
from echo_rtc.engine import worker
from echo_rtc.engine.handover import Area
from echo_rtc.engine.protocol import Avatar, Progress, RenderRequest, RenderResult
from echo_rtc.engine.worker import Born, Line, Seat, WorkerReport, WorkerSpec
from echo_rtc.errors import RenderError

logger = logging.getLogger(__name__)

END_S = 2.0
"""How long an idle worker may take to end by itself before it is killed."""

REAP_S = 5.0
"""How long the operating system may take to bury a killed worker."""

REQUEST_BYTES = 4 * 1024 * 1024
"""Shared with a worker for a request: seconds of audio and a latent."""

RESULT_CLIPS = 2
RESULT_EXTRA_BYTES = 4 * 1024 * 1024
"""Shared with a worker for a result: this many clips' frames, so that clips may overlap, and this much for latents."""

P = ParamSpec("P")
T = TypeVar("T")


class WorkerGoneError(RenderError):
    """The worker died, or was killed for taking too long."""


class WorkerProcess:
    """One process, from birth to burial. Not reusable: a replacement is a new object."""

    def __init__(self, spec: WorkerSpec, format: ClipFormat, progress: Progress) -> None:
        self._spec = spec
        self._progress = progress
        context = multiprocessing.get_context("spawn")
        frame_bytes = format.width * format.height * 3 // 2
        self._piece_frames = format.clip_frames
        self._requests = Area(context, REQUEST_BYTES)
        self._results = Area(context, RESULT_CLIPS * format.clip_frames * frame_bytes + RESULT_EXTRA_BYTES)
        self._messages, self._theirs = context.Pipe(duplex=False)
        level = logging.getLogger().getEffectiveLevel()
        seat = Seat(spec, format, level, self._requests, self._results, self._theirs)
        self._pool = ProcessPoolExecutor(1, context, worker.initialise, (seat,))
        self._reader = threading.Thread(
            target=self._read, args=(asyncio.get_running_loop(),), name=f"echo-worker-{spec.name}", daemon=True
        )
        self._birth: asyncio.Task[Future[WorkerReport]] | None = None
        self._burial: asyncio.Task[None] | None = None
        self._pid: int | None = None
        self._busy = False
        self._condemned = False
        self.gone = asyncio.Event()

    @property
    def name(self) -> str:
        return self._spec.name

    @property
    def pid(self) -> int | None:
        """The process's id, known from its first message on."""
        return self._pid

    async def start(self, timeout_s: float) -> WorkerReport:
        """Starts the process and loads its renderer. Raises what the loader raises, WorkerGoneError if it dies."""
        self._birth = asyncio.create_task(asyncio.to_thread(self._spawn))
        try:
            # Shielded: a thread that is starting a process cannot be called back, so close() waits for it instead.
            future = await asyncio.shield(self._birth)
        except OSError as error:
            self.gone.set()
            raise WorkerGoneError(f"worker {self.name} cannot be started: {error}") from error
        return await self._outcome(future, timeout_s, "loading")

    async def render(self, request: RenderRequest, timeout_s: float) -> RenderResult:
        """Renders one clip; only one at a time. Raises RenderError; WorkerGoneError if the worker is no more.

        ``stages_ms`` of the result gets ``handover``: all that was not spent in the worker itself.
        """
        clock = asyncio.get_running_loop().time
        begun = clock()
        try:
            given = self._requests.put(request)
        except ValueError as error:
            raise RenderError(f"the clip cannot be handed to worker {self.name}: {error}") from error
        parcel, render_s = await self._call(timeout_s, "rendering a clip", worker.render, given)
        result = self._results.take(parcel)
        assert isinstance(result, RenderResult)
        result.stages_ms["handover"] = (clock() - begun - render_s) * 1000
        return result

    async def render_idle(self, avatar: str, timeout_s: float) -> Avatar:
        """Renders the avatar's idle loop and fetches it, piece by piece. Raises as :meth:`render`."""
        length = await self._call(timeout_s, "rendering an idle loop", worker.render_idle, avatar)
        pieces: list[Avatar] = []
        for first in range(0, length, self._piece_frames):
            doing = "handing over an idle loop"
            parcel = await self._call(timeout_s, doing, worker.fetch_idle, first, self._piece_frames)
            piece = self._results.take(parcel)
            assert isinstance(piece, Avatar)
            pieces.append(piece)
        planes = (np.concatenate([getattr(piece.idle, plane) for piece in pieces]) for plane in ("y", "u", "v"))
        latents = [piece.idle_latents for piece in pieces if piece.idle_latents is not None]
        return Avatar(avatar, YuvFrames(*planes), np.concatenate(latents) if latents else None)

    def kill(self) -> None:
        """Kills the process at once; one that has not said its id yet, as soon as it does."""
        self._condemned = True
        if self._pid is not None and not self.gone.is_set():
            try:
                os.kill(self._pid, signal.SIGKILL)
            except ProcessLookupError:
                logger.debug("worker %s was already gone", self.name)

    async def close(self) -> None:
        """Ends the process in bounded time, and everything that serves it here. May be called again after it was
        cancelled."""
        if self._birth is not None:
            await asyncio.wait({self._birth})
        if self._busy:
            self.kill()
        if self._burial is None:
            self._burial = asyncio.create_task(asyncio.to_thread(self._bury))
        done, _ = await asyncio.wait({self._burial}, timeout=REAP_S if self._condemned else END_S)
        if not done:
            self.kill()
            done, _ = await asyncio.wait({self._burial}, timeout=REAP_S)
        if not done:
            logger.error("worker %s (process %s) does not end", self.name, self._pid)

    def _spawn(self) -> Future[WorkerReport]:
        # A child is born with its parent thread's mask: Ctrl-C cannot strike before the child ignores it by itself.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            future = self._pool.submit(worker.load)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        self._theirs.close()  # so that the child's end is the only one, and its death the end of the file
        self._reader.start()
        return future

    def _bury(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._reader.ident is not None:
            self._reader.join(REAP_S)
        self._theirs.close()
        self._messages.close()

    async def _call(self, timeout_s: float, doing: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function of worker.py in the worker. Raises as :meth:`_outcome`."""
        try:
            future = self._pool.submit(call, *args, **kwargs)
        except RuntimeError as error:  # the pool is broken or shut down
            raise WorkerGoneError(f"worker {self.name} is gone") from error
        return await self._outcome(future, timeout_s, doing)

    async def _outcome(self, future: Future[T], timeout_s: float, doing: str) -> T:
        """What the worker answers. Raises WorkerGoneError if it dies, or is killed for exceeding ``timeout_s``."""
        answer = asyncio.wrap_future(future)
        answer.add_done_callback(_look)
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
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to hear
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
                    loop.call_soon_threadsafe(self._hear, message)
            loop.call_soon_threadsafe(self.gone.set)

    def _hear(self, message: Born | Line) -> None:
        if isinstance(message, Line):
            self._progress(f"worker {self.name}: {message.text}")
            return
        self._pid = message.pid
        if self._condemned:
            self.kill()


def _look(answer: asyncio.Future[T]) -> None:
    """Takes note of an outcome that nobody waits for any more, so that asyncio does not warn of it."""
    if not answer.cancelled():
        answer.exception()
