"""A parent with two worker processes, to be killed: prints their ids when they are up, then waits for ever.

Run as a module by test_local.py; spawned workers need a file to come from.
"""

from __future__ import annotations

import asyncio
import sys

from echo_rtc.clips import ClipFormat
from echo_rtc.engine.local import LocalEngine
from echo_rtc.engine.worker import WorkerSpec
from tests.engine.fakes import FakeLoader


async def main() -> None:
    clip_format = ClipFormat(width=64, height=64)
    engine = LocalEngine(clip_format, lambda: [WorkerSpec(name, FakeLoader(clip_format)) for name in ("one", "two")])
    await engine.start(lambda line: None)
    sys.stdout.write(" ".join(map(str, engine.worker_pids)) + "\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
