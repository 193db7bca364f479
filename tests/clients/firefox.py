"""Firefox, driven over WebDriver BiDi without a driver in between: one browser, one page.

Its microphone is the browser's own fake one, a tone that never ends.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

START_S = 60.0
STOP_S = 15.0
_LISTENING = "WebDriver BiDi listening on "
_PREFERENCES: dict[str, bool | int] = {
    "app.update.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "media.autoplay.default": 0,
    "media.navigator.permission.disabled": True,
    "media.navigator.streams.fake": True,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "remote.active-protocols": 1,
    "toolkit.telemetry.enabled": False,
}


class BidiError(RuntimeError):
    """Firefox refused a command, or a script failed in the page; its words."""


class Firefox:
    """A running browser. Commands go one after the other; events are not listened to."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._commands = 0
        self._context = ""
        self.version = ""

    async def begin(self) -> None:
        """Opens the session; the browser's first tab is the page."""
        capabilities = (await self._command("session.new", capabilities={}))["capabilities"]
        self.version = f"{capabilities['browserName']} {capabilities['browserVersion']}"
        tree = await self._command("browsingContext.getTree")
        self._context = tree["contexts"][0]["context"]

    async def before_each_page(self, function: str) -> None:
        """Runs a JavaScript function in every page before the page's own scripts."""
        await self._command("script.addPreloadScript", functionDeclaration=function)

    async def open(self, url: str) -> None:
        await self._command("browsingContext.navigate", context=self._context, url=url, wait="complete")

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited, through JSON; as if the user had just clicked."""
        found = await self._command(
            "script.evaluate",
            expression=f"(async () => JSON.stringify(await ({expression})))()",
            target={"context": self._context},
            awaitPromise=True,
            userActivation=True,
        )
        if found["type"] != "success":
            raise BidiError(found["exceptionDetails"]["text"])
        text = found["result"].get("value")
        return None if text is None else json.loads(text)

    async def close(self) -> None:
        await self._command("browser.close")

    async def _command(self, method: str, **parameters: object) -> dict[str, Any]:
        self._commands += 1
        await self._socket.send_json({"id": self._commands, "method": method, "params": parameters})
        while True:
            message: dict[str, Any] = await self._socket.receive_json()
            if message.get("id") != self._commands:
                continue
            if message["type"] != "success":
                raise BidiError(f"{method}: {message['error']}: {message['message']}")
            result: dict[str, Any] = message["result"]
            return result


@asynccontextmanager
async def firefox(executable: str, profile: Path) -> AsyncIterator[Firefox]:
    """A headless Firefox with an empty profile while inside. Raises TimeoutError if it does not start."""
    _write_profile(profile)
    child = await asyncio.create_subprocess_exec(
        executable,
        *("--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port", "0"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "HOME": str(profile), "PULSE_SERVER": "unix:/nonexistent"},
    )
    try:
        url = await asyncio.wait_for(_address(child), START_S)
        reading = asyncio.create_task(_drain(child))
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{url}/session", max_msg_size=0) as socket:
            browser = Firefox(socket)
            await browser.begin()
            try:
                yield browser
            finally:
                await browser.close()
        await asyncio.wait_for(child.wait(), STOP_S)
        await reading
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


def _write_profile(folder: Path) -> None:
    folder.mkdir()
    lines = (f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in _PREFERENCES.items())
    (folder / "user.js").write_text("".join(lines))


async def _address(child: asyncio.subprocess.Process) -> str:
    assert child.stderr is not None
    lines = []
    while line := (await child.stderr.readline()).decode():
        if _LISTENING in line:
            return line.partition(_LISTENING)[2].strip()
        lines.append(line)
    raise BidiError(f"firefox ended before it listened: {''.join(lines)}")


async def _drain(child: asyncio.subprocess.Process) -> None:
    """Reads on, so that the pipe never fills."""
    assert child.stderr is not None
    while await child.stderr.readline():
        pass
