"""The local engine: one worker process per device of this machine, each with its own replica of the model.

Clips are handed to free workers first come, first served. A worker that dies or takes too long loses the clip that it
was rendering and is replaced while the others go on. Nothing of a stream is kept here, and nothing of torch is loaded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from echo_rtc.clips import ClipFormat
from echo_rtc.engine import speed
from echo_rtc.engine.meter import WorkerMeter, WorkerStatus
from echo_rtc.engine.process import WorkerGoneError, WorkerProcess
from echo_rtc.engine.protocol import Avatar, Progress, RenderRequest, RenderResult
from echo_rtc.engine.turns import Turns
from echo_rtc.engine.worker import WorkerReport, WorkerSpec
from echo_rtc.errors import EchoRtcError, RenderError

logger = logging.getLogger(__name__)

FAILURES_TO_REPLACE = 3
"""After so many lost clips in a row a worker that still lives is taken for broken (a CUDA error stays) and replaced."""


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """Bounds of the local engine, in seconds.

    ``render_timeout_s``: for a clip on a worker, and for its wait for a free one. ``start_timeout_s``: for loading and
    warming up. ``backoff_s``: before the second replacement in a row that comes to nothing, doubled with each further
    one up to ``max_backoff_s``; the first replacement comes at once.
    """

    render_timeout_s: float = 30.0
    start_timeout_s: float = 1800.0
    backoff_s: float = 1.0
    max_backoff_s: float = 60.0

    def wait_s(self, deaths: int) -> float:
        """How long to wait before replacing a worker that has died ``deaths`` times in a row (1 = the first)."""
        return 0.0 if deaths <= 1 else min(self.max_backoff_s, self.backoff_s * 2.0 ** min(deaths - 2, 30))


class _Slot:
    """The place of one worker, which its replacements inherit."""

    def __init__(self, spec: WorkerSpec, worker: WorkerProcess) -> None:
        self.spec = spec
        self.worker = worker
        self.up = False
        self.failures = 0  # clips lost in a row by this worker
        self.deaths = 0  # workers lost in a row without a clip rendered between
        self.meter = WorkerMeter()


class LocalEngine:
    """An Engine over worker processes. ``workers`` says which; it is called in a thread by ``start``, and may block
    (to look for devices) and raise SettingsError."""

    def __init__(
        self, format: ClipFormat, workers: Callable[[], Sequence[WorkerSpec]], options: LocalOptions | None = None
    ) -> None:
        self._format = format
        self._workers = workers
        self._options = options or LocalOptions()
        self._progress: Progress = logger.info
        self._slots: list[_Slot] = []
        self._turns: Turns[_Slot] = Turns()
        self._keepers: list[asyncio.Task[None]] = []
        self._running: set[asyncio.Task[RenderResult]] = set()
        self._avatars: dict[str, Avatar] = {}
        self._speeds: list[speed.Speed] = []
        self._closed = False

    @property
    def format(self) -> ClipFormat:
        return self._format

    @property
    def avatars(self) -> dict[str, Avatar]:
        return self._avatars

    @property
    def capacity(self) -> int:
        return speed.capacity(self._speeds, self._format.fps)

    @property
    def expected_render_s(self) -> float:
        return speed.expected_render_s(self._speeds)

    @property
    def ready(self) -> bool:
        return any(slot.up for slot in self._slots)

    @property
    def workers(self) -> list[WorkerStatus]:
        """The workers as they stand; those that wait wait for whichever is free first, so all have the same queue."""
        waiting = self._turns.waiting
        return [
            slot.meter.status(slot.spec.name, up=slot.up, pid=slot.worker.pid, waiting=waiting) for slot in self._slots
        ]

    @property
    def worker_pids(self) -> list[int]:
        """The process ids of the workers that are up."""
        return [slot.worker.pid for slot in self._slots if slot.up and slot.worker.pid is not None]

    async def start(self, progress: Progress) -> None:
        """Starts every worker in parallel, then renders the idle loops on the first. Raises InputError, SettingsError
        or RenderError with the worker's own sentence; no process is left then."""
        self._progress = progress
        try:
            specs = await asyncio.to_thread(self._workers)
            if self._closed:
                raise RenderError("the engine was closed while it started")
            self._slots = [_Slot(spec, self._process(spec)) for spec in specs]
            reports = await self._start_all()
            self._speeds = [report.speed for report in reports]
            first = self._slots[0].worker
            for name in reports[0].avatars:
                progress(f"worker {first.name}: rendering the idle loop of avatar {name}")
                self._avatars[name] = await first.render_idle(name, self._options.start_timeout_s)
            for slot in self._slots:
                self._come_up(slot)
        except BaseException:
            await self.close()
            raise
        self._keepers = [asyncio.create_task(self._keep(slot), name=f"keep-{slot.spec.name}") for slot in self._slots]

    async def render(self, request: RenderRequest) -> RenderResult:
        """Renders one clip on the next free worker. Raises RenderError if the clip is lost."""
        if request.avatar not in self._avatars:
            raise RenderError(f"there is no avatar {request.avatar!r}; there is {', '.join(self._avatars) or 'none'}")
        slot = await self._take()
        # A task of its own: who gives up on a clip does not stop the worker, which is free again only afterwards.
        task = asyncio.create_task(self._render_on(slot, request))
        self._running.add(task)
        task.add_done_callback(self._rendered)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Ends every worker in bounded time; clips being rendered are lost. Closing twice is harmless."""
        self._closed = True
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for slot in self._slots:
            slot.up = False
        self._turns.dismiss(RenderError("the engine is closed"))
        await asyncio.gather(*(slot.worker.close() for slot in self._slots))
        await asyncio.gather(*self._running, return_exceptions=True)
        self._slots.clear()

    async def _start_all(self) -> list[WorkerReport]:
        """Starts the workers side by side; the first that fails is the answer, the others are not waited for."""
        starts = [asyncio.create_task(slot.worker.start(self._options.start_timeout_s)) for slot in self._slots]
        try:
            await asyncio.wait(starts, return_when=asyncio.FIRST_EXCEPTION)
            for start in starts:
                if start.done():
                    start.result()
            return [start.result() for start in starts]
        finally:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)

    def _rendered(self, task: asyncio.Task[RenderResult]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # looked at, for when its caller has gone

    async def _render_on(self, slot: _Slot, request: RenderRequest) -> RenderResult:
        worker = slot.worker
        clock = asyncio.get_running_loop().time
        begun = clock()
        try:
            result = await worker.render(request, self._options.render_timeout_s)
        except WorkerGoneError:
            slot.meter.failed(clock() - begun)
            self._go_down(slot, worker)
            raise
        except RenderError:
            slot.meter.failed(clock() - begun)
            slot.failures += 1
            if slot.failures >= FAILURES_TO_REPLACE:
                logger.error("worker %s lost %d clips in a row and is replaced", slot.spec.name, slot.failures)
                worker.kill()
                self._go_down(slot, worker)
            else:
                self._release(slot)
            raise
        slot.failures = slot.deaths = 0
        slot.meter.rendered(clock() - begun)
        self._release(slot)
        return result

    async def _take(self) -> _Slot:
        """The next free worker, in the order of asking. Raises RenderError after the render timeout, or when no
        worker is up (a clip that waits for a replacement would be late by the time it came)."""
        if not self.ready:
            raise RenderError("the engine is closed" if self._closed else "no worker is up; one is being started")
        try:
            async with asyncio.timeout(self._options.render_timeout_s):
                return await self._turns.take()
        except TimeoutError:
            raise RenderError(f"no worker was free within {self._options.render_timeout_s:g} s") from None

    def _release(self, slot: _Slot) -> None:
        if slot.up:
            self._turns.give(slot)

    def _process(self, spec: WorkerSpec) -> WorkerProcess:
        return WorkerProcess(spec, self._format, lambda line: self._progress(line))

    def _come_up(self, slot: _Slot) -> None:
        slot.up = True
        slot.failures = 0
        self._release(slot)

    def _go_down(self, slot: _Slot, worker: WorkerProcess) -> None:
        if slot.worker is worker and slot.up:
            slot.up = False
            self._turns.withdraw(slot)
            if not self.ready:
                self._turns.dismiss(RenderError("the last worker is gone; another is being started"))

    async def _keep(self, slot: _Slot) -> None:
        """Replaces the slot's worker whenever it is gone, for as long as the engine runs."""
        while True:
            await slot.worker.gone.wait()
            self._go_down(slot, slot.worker)
            await slot.worker.close()
            slot.deaths += 1
            slot.meter.restarts += 1
            wait_s = self._options.wait_s(slot.deaths)
            logger.warning("worker %s is gone; a replacement starts in %.1f s", slot.spec.name, wait_s)
            await asyncio.sleep(wait_s)
            slot.worker = self._process(slot.spec)
            try:
                await slot.worker.start(self._options.start_timeout_s)
            except EchoRtcError as error:
                logger.error("the replacement of worker %s did not come up: %s", slot.spec.name, error)
                slot.worker.kill()
            else:
                self._come_up(slot)
                logger.warning("worker %s is replaced", slot.spec.name)
