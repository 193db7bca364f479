"""One server for clients that are nobody's of this repository, and what these clients are made of.

What npm has to bring is installed beside this file once. A program that is missing fails the tests; they are never
skipped.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web

from tests.browser.conftest import TEST_CARD, RunningServer, Servers
from tests.support.npm import installed

HERE = Path(__file__).parent
CLIENT_S = 60.0


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Takes the place of the check for processes left behind: a browser's helpers take their time to go."""


@pytest.fixture(scope="session")
def npm_modules() -> Path:
    """The folder of npm's packages."""
    return installed(HERE)


async def run_client(*command: str | Path) -> str:
    """Runs a client to its end; the last line that it prints. Fails if it does not end well, or in time."""
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, cwd=HERE)
    try:
        out, err = await asyncio.wait_for(child.communicate(), CLIENT_S)
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    assert child.returncode == 0, err.decode()
    return out.decode().strip().rpartition("\n")[2]


@dataclass(frozen=True, slots=True)
class House:
    """A server of test cards, and the origin of somebody else's pages, which it knows of."""

    server: RunningServer
    pages: str
    folder: Path
    """Where those pages lie."""


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    folder = tmp_path_factory.mktemp("pages")
    application = web.Application()
    application.router.add_static("/", folder)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    pages = f"http://127.0.0.1:{runner.addresses[0][1]}"
    servers = Servers(tmp_path_factory.mktemp("clients") / "logs")
    flags = ("--vad-threshold", "0.01", "--width", "256", "--height", "256", "--max-streams", "8")
    try:
        yield House(await servers.start(TEST_CARD, *flags, "--allow-origin", pages), pages, folder)
    finally:
        await servers.close()
        await runner.cleanup()
