"""Real servers and real browsers: ``server`` starts ``python server.py``, ``page`` opens its page in Chromium.

Browsers are kept for all tests of this folder, one for each set of flags that tests ask for; every page has a
context of its own, so that nothing is remembered from one to the next. A missing browser fails the tests; they are
never skipped.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
import wave
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import aiohttp
import psutil
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Playwright, async_playwright, expect

from tests.browser.visit import OPEN_SHADOWS, WORDS_MS, Visit

ROOT = Path(__file__).parents[2]
TEST_CARD = ROOT / "configs" / "testcard.yaml"
SAMPLE = ROOT / "static" / "sample.wav"
"""Somebody who speaks, with pauses; also what Chromium's microphone hears unless a test has a voice of its own."""

VIEWPORT = {"width": 800, "height": 640}
"""Small, because drawing is most of what a browser without a graphics card does."""

START_S = 180.0
STOP_S = 10.0
FREED_S = 15.0

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--autoplay-policy=no-user-gesture-required",
    "--disable-background-networking",
    "--disable-gpu",
    "--no-sandbox",
)
# No sound system is reachable, so that a machine with a microphone behaves like one without.
NO_SOUND_DEVICES = {"ALSA_CONFIG_PATH": os.devnull, "PULSE_SERVER": "unix:/nonexistent", "XDG_RUNTIME_DIR": ""}

MicrophoneKind = Literal["speaking", "refused", "missing"]


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Takes the place of the check for processes and sockets left behind: browsers live on for the next test and keep
    helpers as they see fit. The servers are ended and waited for by their fixture."""


@dataclass
class RunningServer:
    """A ``python server.py`` that is ready. ``lines`` is what it has logged."""

    url: str
    child: asyncio.subprocess.Process
    lines: list[str]
    _reader: asyncio.Task[None]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON body of a GET."""
        async with aiohttp.ClientSession() as session, session.get(self.url + path) as response:
            return response.status, await response.json(content_type=None)

    async def freed(self, stream: str) -> None:
        """Waits until the stream is gone. Raises TimeoutError if it stays."""
        async with asyncio.timeout(FREED_S):
            while (await self.get(f"/streams/{stream}"))[0] != 404:
                pass

    async def stop(self) -> int:
        """Tells it to stop, and waits for that; the exit code."""
        self.child.send_signal(signal.SIGTERM)
        return await self.ended()

    async def kill(self) -> None:
        """Ends it and its workers as a power cut would."""
        for process in [*psutil.Process(self.child.pid).children(recursive=True), psutil.Process(self.child.pid)]:
            process.kill()
        await self.ended()

    async def ended(self) -> int:
        code = await asyncio.wait_for(self.child.wait(), STOP_S)
        await self._reader
        return code


class ServerFactory(Protocol):
    async def __call__(self, config: Path = TEST_CARD, *flags: str) -> RunningServer:
        """Starts a server with this configuration and these further flags, on a free port unless they name one; it is
        ready on return and gone after the test."""
        ...


class PageFactory(Protocol):
    async def __call__(
        self,
        url: str,
        *,
        microphone: MicrophoneKind = "speaking",
        voice: Path = SAMPLE,
        hosts: Mapping[str, str] | None = None,
        script: str = "",
        **context: Any,
    ) -> Visit:
        """Opens a page in a browser whose microphone speaks, is refused or is missing.

        ``voice``: what a speaking one hears, a WAV, over and over. ``hosts``: names that the browser finds at these
        addresses. ``script``: JavaScript that runs before the page's own. ``context``: what Playwright's
        ``new_context`` takes (viewport, color_scheme, permissions, ...).
        """
        ...


@dataclass
class Servers:
    """Starts servers and ends them."""

    logs: Path
    running: list[RunningServer] = field(default_factory=list)

    async def start(self, config: Path = TEST_CARD, *flags: str) -> RunningServer:
        argv = ["--config", str(config), "--port", "0", "--log-dir", str(self.logs), *flags]
        environ = {key: value for key, value in os.environ.items() if not key.startswith("ECHO_RTC_")}
        child = await asyncio.create_subprocess_exec(
            sys.executable, str(ROOT / "server.py"), *argv, env=environ, stderr=asyncio.subprocess.PIPE
        )
        lines: list[str] = []
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        server = RunningServer("", child, lines, asyncio.create_task(_read(child, lines, ready)))
        self.running.append(server)
        server.url = await asyncio.wait_for(ready, START_S)
        return server

    async def close(self) -> None:
        for server in self.running:
            if server.child.returncode is None:
                server.child.send_signal(signal.SIGTERM)
        for server in self.running:
            try:
                await server.ended()
            except TimeoutError:
                await server.kill()
                raise


async def _read(child: asyncio.subprocess.Process, lines: list[str], ready: asyncio.Future[str]) -> None:
    """Reads what a server logs until it ends, so that its pipe never fills; ``ready`` gets its URL."""
    assert child.stderr is not None
    while raw := await child.stderr.readline():
        lines.append(raw.decode())
        found = re.search(r"echo_rtc is ready: (\S+)", lines[-1])
        if found is not None and not ready.done():
            ready.set_result(found[1])
    if not ready.done():
        ready.set_exception(AssertionError(f"the server did not start: {''.join(lines)}"))


@dataclass(frozen=True)
class BrowserKind:
    """What needs a browser process of its own, because it is said on the command line."""

    microphone: MicrophoneKind
    voice: Path
    hosts: tuple[tuple[str, str], ...]

    @property
    def flags(self) -> list[str]:
        flags = [*_FLAGS]
        if self.microphone != "missing":
            flags += ["--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={self.voice}"]
        answer = "=deny" if self.microphone == "refused" else ""
        flags.append(f"--use-fake-ui-for-media-stream{answer}")
        if self.hosts:
            rules = ",".join(f"MAP {name} {address}" for name, address in self.hosts)
            flags.append(f"--host-resolver-rules={rules}")
        return flags


@dataclass
class Browsers:
    """Starts browsers when they are first asked for, and keeps them."""

    playwright: Playwright
    executable: str
    open: dict[BrowserKind, Browser] = field(default_factory=dict)

    async def get(self, kind: BrowserKind) -> Browser:
        if kind not in self.open:
            if kind.microphone == "speaking" and not kind.voice.is_file():
                pytest.fail(f"{kind.voice} is missing: the browser's microphone has nothing to hear")
            self.open[kind] = await self.playwright.chromium.launch(
                executable_path=self.executable, args=kind.flags, env={**os.environ, **NO_SOUND_DEVICES}
            )
        return self.open[kind]

    async def close(self) -> None:
        for browser in self.open.values():
            await browser.close()


@pytest.fixture(scope="session")
def silence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WAV in which nobody speaks."""
    path = tmp_path_factory.mktemp("voices") / "silence.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(48_000)
        file.writeframes(bytes(2 * 48_000))
    return path


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def browsers() -> AsyncIterator[Browsers]:
    executable = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if executable is None:
        pytest.fail(f"the browser tests need one of {', '.join(_BROWSERS)} on the PATH, such as Debian's chromium")
    expect.set_options(timeout=WORDS_MS)
    async with async_playwright() as playwright:
        found = Browsers(playwright, executable)
        yield found
        await found.close()


@pytest_asyncio.fixture(loop_scope="session")
async def server(tmp_path: Path) -> AsyncIterator[ServerFactory]:
    """Starts servers for one test."""
    servers = Servers(tmp_path / "logs")
    try:
        yield servers.start
    finally:
        await servers.close()


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def card(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningServer]:
    """A server with the test card for all tests that leave it as it is. It tells speech from silence."""
    folder = tmp_path_factory.mktemp("card")
    servers = Servers(folder / "logs")
    flags = ("--vad-threshold", "0.01", "--width", "256", "--height", "256", "--max-streams", "8")
    recording = ("--recording-dir", str(folder / "recordings"), "--min-free-disk", "1")
    try:
        yield await servers.start(TEST_CARD, *flags, *recording)
    finally:
        await servers.close()


@asynccontextmanager
async def visiting(browsers: Browsers) -> AsyncIterator[PageFactory]:
    """Opens pages while inside. Raises AssertionError at the end if one of them had troubles that were not expected."""
    visits: list[Visit] = []

    async def visit(
        url: str,
        *,
        microphone: MicrophoneKind = "speaking",
        voice: Path = SAMPLE,
        hosts: Mapping[str, str] | None = None,
        script: str = "",
        **context: Any,
    ) -> Visit:
        browser = await browsers.get(BrowserKind(microphone, voice, tuple((hosts or {}).items())))
        session = await browser.new_context(**{"viewport": VIEWPORT, **context})
        opened = Visit(await session.new_page(), (url.partition("#")[0],))
        visits.append(opened)
        opened.watch()
        await opened.page.add_init_script(OPEN_SHADOWS)
        if script:
            await opened.page.add_init_script(script)
        await opened.page.goto(url)
        return opened

    try:
        yield visit
    finally:
        for opened in visits:
            await opened.page.context.close()
    troubles = [text for opened in visits for text in opened.unexpected]
    assert not troubles, "\n".join(troubles)


@pytest_asyncio.fixture(loop_scope="session")
async def page(browsers: Browsers) -> AsyncIterator[PageFactory]:
    """Opens pages for one test, and fails it if one of them had troubles that were not expected."""
    async with visiting(browsers) as visit:
        yield visit
