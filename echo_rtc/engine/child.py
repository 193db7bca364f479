"""What runs inside a worker process of the local engine: the functions that its pool calls, and how the process ends.

The pool's calls come one after another in the main thread, which renders. Clips to prepare come through a pipe of
their own to a second thread, so that the next clip is ready when the one being rendered is done. ``process.py`` is the
other side of all this.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import logging.handlers
import multiprocessing
import os
import queue
import signal
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection

from echo_rtc.clips import ClipFormat, F16Array, YuvFrames
from echo_rtc.engine.handover import Area, Payload
from echo_rtc.engine.speed import Speed
from echo_rtc.engine.worker import ClipWorker, WorkerReport, WorkerSpec
from echo_rtc.rendering import AvatarFiles, RenderRequest

TERMINAL_SIGNALS = frozenset(
    getattr(signal, name) for name in ("SIGINT", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
)
"""Signals that a terminal sends to the whole process group (Ctrl-C, or its end); the parent closes its workers. Which
of them there are depends on the system."""


AHEAD_S, REST_S = 0.05, 2.0
"""How long commands are waited for before the next piece of work ahead: while there is some, and after."""


def hold_terminal_signals(held: bool) -> None:
    """Blocks the terminal's signals in this thread, or lets them through, where the system has signal masks."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK if held else signal.SIG_UNBLOCK, TERMINAL_SIGNALS)


@dataclass(frozen=True, slots=True)
class ProgressLine:
    """One line of progress on its way to the parent."""

    text: str


@dataclass(frozen=True, slots=True)
class Spawned:
    """The first message of a worker: its process id."""

    pid: int


@dataclass(frozen=True, slots=True)
class AreaFree:
    """The request area of that index is free again."""

    area: int


@dataclass(frozen=True, slots=True)
class FramesReady:
    """The next frames of clip ``number`` lie in the result area: run ``index`` of them."""

    number: int
    index: int
    payload: Payload


@dataclass(frozen=True, slots=True)
class Rendered:
    """A clip is rendered. ``runs``: its frames that lay ready before; ``result``: the rest; ``render_s``: how long
    rendering took."""

    runs: tuple[Payload, ...]
    result: Payload
    render_s: float


@dataclass(frozen=True, slots=True)
class ToPrepare:
    """A clip to prepare: its number, and where its request lies."""

    number: int
    area: int
    payload: Payload


@dataclass(frozen=True, slots=True)
class ToDiscard:
    """A prepared clip that is not needed any more."""

    number: int


@dataclass(frozen=True, slots=True)
class WorkerChannels:
    """Specification, pipes and shared memory handed to the worker at spawn. ``messages`` go to the parent, ``commands``
    come from it."""

    spec: WorkerSpec
    format: ClipFormat
    log_level: int
    requests: tuple[Area, ...]
    results: Area
    messages: Connection
    commands: Connection


class _Messages(logging.handlers.QueueHandler):
    """Sends log records, progress and acknowledgements to the parent through one pipe."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__(queue.SimpleQueue())
        self.setFormatter(logging.Formatter("%(message)s"))  # level and name travel with the record
        self._pipe = pipe
        self._turn = threading.Lock()

    def send(self, message: object) -> None:
        # When the parent is gone this process ends by itself; until then messages are dropped.
        with self._turn, contextlib.suppress(OSError):
            self._pipe.send(message)

    def enqueue(self, record: logging.LogRecord) -> None:
        self.send(record)


@dataclass(frozen=True, slots=True)
class _Process:
    """The state of this process."""

    channels: WorkerChannels
    messages: _Messages
    worker: ClipWorker
    preparing: threading.Lock
    """Held while the other thread computes; taken for good when the interpreter ends, which must not find it there."""


_process: _Process | None = None


def initialise(channels: WorkerChannels) -> None:
    """The pool's initializer: says that the process is there, and arranges how it logs and how it ends."""
    global _process
    for number in TERMINAL_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    hold_terminal_signals(False)
    messages = _Messages(channels.messages)
    messages.send(Spawned(os.getpid()))
    logging.basicConfig(handlers=[messages], level=channels.log_level, force=True)
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    if channels.spec.niceness and hasattr(os, "nice"):
        os.nice(channels.spec.niceness)
    _process = _Process(channels, messages, ClipWorker(channels.spec, channels.format), threading.Lock())
    atexit.register(_process.preparing.acquire)
    threading.Thread(target=_run_commands, args=(_process,), name="prepare", daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when the parent dies, however it dies; nothing here needs saving."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_commands(process: _Process) -> None:
    """Prepares what the parent names, until its end of the pipe is closed, and works ahead in between."""
    while True:
        try:
            while not process.channels.commands.poll(AHEAD_S if _work_ahead(process) else REST_S):
                pass
            command = process.channels.commands.recv()
        except (EOFError, OSError):
            return
        if isinstance(command, ToDiscard):
            process.worker.discard(command.number)
            continue
        assert isinstance(command, ToPrepare)
        request = process.channels.requests[command.area].take(command.payload)
        process.messages.send(AreaFree(command.area))
        assert isinstance(request, RenderRequest)
        with process.preparing:
            process.worker.prepare(command.number, request)


def _work_ahead(process: _Process) -> bool:
    with process.preparing:
        return process.worker.work_ahead()


def load() -> WorkerReport:
    """See :meth:`ClipWorker.load`, as all below."""
    process = _running()
    return process.worker.load(lambda text: process.messages.send(ProgressLine(text)))


def measure(frames: int) -> Speed:
    return _running().worker.measure(frames)


def ping() -> None:
    """Answers: the thread that renders is there and free."""


def render(number: int, init_latent: F16Array | None) -> Rendered:
    """Frames lie in the result area, one run behind the other, and the result behind them."""
    process, runs = _running(), list[Payload]()

    def free() -> int:
        return runs[-1].end if runs else 0

    def send(frames: YuvFrames) -> None:
        runs.append(process.channels.results.put(frames, free()))
        process.messages.send(FramesReady(number, len(runs) - 1, runs[-1]))

    result, render_s = process.worker.render(number, init_latent, send)
    return Rendered(tuple(runs), process.channels.results.put(result, free()), render_s)


def prepare_avatar(files: AvatarFiles, first: bool) -> bool:
    return _running().worker.prepare_avatar(files, first)


def forget_avatar(name: str) -> None:
    _running().worker.forget_avatar(name)


def idle_piece(avatar: str, first: bool) -> Payload | None:
    """The piece lies in the result area."""
    process = _running()
    piece = process.worker.idle_piece(avatar, first)
    return None if piece is None else process.channels.results.put(piece)


def _running() -> _Process:
    assert _process is not None, "the process was not initialised"
    return _process
