"""The local engine: one worker process per device of this machine, each with its own replica of the model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from echo_rtc.clips import ClipFormat
from echo_rtc.engine.fleet import FleetEngine, FleetOptions
from echo_rtc.engine.process import WorkerProcess
from echo_rtc.engine.worker import WorkerSpec
from echo_rtc.errors import StorageError
from echo_rtc.rendering import Progress


class LocalEngine(FleetEngine):
    """A fleet of worker processes. ``specs`` is called in a thread when the engine starts: it may block (to look for
    devices) and raise SettingsError. Nothing of torch is loaded here."""

    def __init__(
        self, clip_format: ClipFormat, specs: Callable[[], Sequence[WorkerSpec]], options: FleetOptions | None = None
    ) -> None:
        super().__init__(
            clip_format,
            lambda: asyncio.to_thread(specs),
            lambda spec, progress, on_gone: _opened(spec, clip_format, progress, on_gone),
            options,
        )


def _opened(
    spec: WorkerSpec, clip_format: ClipFormat, progress: Progress, on_gone: Callable[[], None]
) -> WorkerProcess:
    """A worker process that has not started yet. Raises StorageError where the memory to share with it is lacking."""
    try:
        return WorkerProcess(spec, clip_format, progress, on_gone)
    except OSError as error:
        raise StorageError(
            f"the memory that processes share (/dev/shm) cannot be had: {error.strerror or error}; make it larger, for "
            "containers with --shm-size 1g"
        ) from error
