"""``echo-rtc serve`` in a process of its own, as an operator starts it: what benchmarks attack, load and break.

An async context manager.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from pathlib import Path
from types import TracebackType

import psutil

from echo_rtc.errors import InputError
from echo_rtc.resources import CONFIGS

ROOT = CONFIGS.parent
"""The checkout, or the package where it is installed: where configs/ is."""
START_S, STOP_S = 120.0, 15.0
ADMIN_TOKEN = "the-administrators-of-this-measurement"
"""The server's --admin-token, for /metrics and uploads."""
ADMIN_HEADERS = {"Authorization": f"Bearer {ADMIN_TOKEN}"}


class RealServer:
    """A server with these flags, on a free port of this machine. ``lines``: all that it has written on its console, and
    ``lines_s``: when each came, in seconds since the start."""

    def __init__(
        self,
        *flags: str,
        command: tuple[str, ...] = (sys.executable,),
        program: tuple[str, ...] = ("-m", "echo_rtc", "serve"),
        folder: Path | None = None,
        start_s: float = START_S,
    ) -> None:
        """``command`` starts Python, ``program`` is what it runs; ``folder``: the working directory, None for this
        process's own; ``start_s``: how long the start may take."""
        self._flags = flags
        self._command = (*command, *program)
        self._start_s = start_s
        self._folder = folder
        self._child: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[str] | None = None
        self.lines: list[str] = []
        self.lines_s: list[float] = []
        self._begun_s = 0.0
        self.url = ""

    async def __aenter__(self) -> RealServer:
        """Returns once it is ready. Raises InputError if it does not start."""
        environ = {key: value for key, value in os.environ.items() if not key.startswith("ECHO_RTC_")}
        environ["ECHO_RTC_ADMIN_TOKEN"] = ADMIN_TOKEN
        self._begun_s = time.monotonic()
        self._child = await asyncio.create_subprocess_exec(
            *self._command,
            *("--port", "0", *self._flags),
            cwd=self._folder,
            env=environ,
            stderr=asyncio.subprocess.PIPE,
        )
        self._ready = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read(), name="read a server's log")
        try:
            self.url = await asyncio.wait_for(self._ready, self._start_s)
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def process(self) -> psutil.Process:
        assert self._child is not None, "the server has not been started"
        return psutil.Process(self._child.pid)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def troubles(self) -> list[str]:
        """What it has logged as an error, and beginnings of tracebacks."""
        return [line for line in self.lines if re.search(r"Traceback|\b(ERROR|CRITICAL)\b", line)]

    async def stop(self) -> int:
        """Stops the server and waits for it; returns its exit code."""
        assert self._child is not None
        assert self._reader is not None
        if self._child.returncode is None:
            self._child.send_signal(signal.SIGTERM)
        try:
            code = await asyncio.wait_for(self._child.wait(), STOP_S)
        except TimeoutError:
            self._child.kill()
            code = await self._child.wait()
        await self._reader
        return code

    async def _read(self) -> None:
        assert self._child is not None
        assert self._child.stderr is not None
        assert self._ready is not None
        while raw := await self._child.stderr.readline():
            self.lines_s.append(time.monotonic() - self._begun_s)
            self.lines.append(raw.decode("utf-8", "replace").rstrip("\n"))
            found = re.search(r"echo_rtc is ready: (\S+)", self.lines[-1])
            if found is not None and not self._ready.done():
                self._ready.set_result(found[1])
        if not self._ready.done():
            self._ready.set_exception(InputError(f"the server did not start: {' '.join(self.lines[-3:])}"))
