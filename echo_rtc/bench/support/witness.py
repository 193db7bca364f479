"""An honest caller beside an attack, in a process of its own: the longest gap in the sound it hears, and how long
``/healthz`` takes another client.

The parent side is :class:`Witness`, an async context manager. The child reads one line for each measurement and answers
with one line of JSON: {"gap_s", "healthz_s", "blocks"} since the line before.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
from dataclasses import dataclass
from types import TracebackType

import aiohttp

from echo_rtc.bench.stream import babble
from echo_rtc.bench.support.visitors import Part, RefusedError, Visitor
from echo_rtc.errors import InputError

NAME = "honest"
"""The stream that the honest caller speaks to."""
SOURCE = "127.0.0.2"
"""The honest caller's address, where the system has all of 127.0.0.0/8 for itself; attackers use others of them."""
LOOK_S = 0.1
"""Time between two requests to /healthz."""
NO_ANSWER_S = 99.0
"""Stands for a request that was refused or cut off."""
START_S = 60.0
MARK_S = 30.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What the honest side saw in some time: the longest time without a packet of sound (s), the slowest answer of
    /healthz (s), and how many blocks of sound came."""

    gap_s: float
    healthz_s: float
    blocks: int


class Witness:
    """The honest caller of the server at ``url``, in a call while inside. ``token``: what opens the call, or None."""

    def __init__(self, url: str, token: str | None) -> None:
        self._words = [url, *(["--token", token] if token else [])]
        self._child: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Witness:
        """Returns once sound arrives. Raises InputError if there is no call."""
        self._child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            __name__,
            *self._words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._child.stdout is not None
        try:
            async with asyncio.timeout(START_S):
                said = await self._child.stdout.readline()
        except BaseException:
            await self._end()
            raise
        if said.strip() != b"ready":
            await self._end()
            raise InputError("the honest call did not come up; run the benchmark on a quieter machine")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def mark(self) -> Seen:
        """What was seen since the last mark. Raises InputError if the honest caller is gone."""
        assert self._child is not None
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(b"mark\n")
        async with asyncio.timeout(MARK_S):
            said = await self._child.stdout.readline()
        if not said:
            raise InputError("the honest caller has ended")
        return Seen(**json.loads(said))

    async def _end(self) -> None:
        assert self._child is not None
        if self._child.returncode is None:
            self._child.kill()
        await self._child.communicate()


@dataclass
class Watch:
    """Longest gap of arrivals and slowest answer since the last look. ``asked_s``: when the request to /healthz was
    sent that has no answer yet."""

    last_s: float
    gap_s: float = 0.0
    healthz_s: float = 0.0
    blocks: int = 0
    asked_s: float | None = None

    def heard(self, now_s: float) -> None:
        """A block of sound has come."""
        self.gap_s = max(self.gap_s, now_s - self.last_s)
        self.last_s = now_s
        self.blocks += 1

    def answered(self, now_s: float, status: int | None) -> None:
        """/healthz has answered with ``status``; None if it was refused or cut off."""
        assert self.asked_s is not None
        self.healthz_s = max(self.healthz_s, now_s - self.asked_s if status == 200 else NO_ANSWER_S)
        self.asked_s = None

    def take(self, now_s: float) -> Seen:
        """What was seen since the last call; a gap or a request that has begun counts as far as it has come."""
        waited_s = 0.0 if self.asked_s is None else now_s - self.asked_s
        seen = Seen(max(self.gap_s, now_s - self.last_s), max(self.healthz_s, waited_s), self.blocks)
        self.gap_s = self.healthz_s = 0.0
        self.blocks = 0
        return seen


def main(argv: list[str]) -> int:
    """The child: calls, says "ready", and answers each line of its input until that ends."""
    parser = argparse.ArgumentParser(prog="echo_rtc.bench.support.witness")
    parser.add_argument("url")
    parser.add_argument("--token")
    arguments = parser.parse_args(argv)
    return asyncio.run(testify(arguments.url, arguments.token))


async def testify(url: str, token: str | None) -> int:
    """The life of the child; 1 if the call does not come up."""
    loop = asyncio.get_running_loop()
    watch = Watch(loop.time())
    visitor = Visitor(Part.CALL, NAME, babble, on_block=lambda: watch.heard(loop.time()))
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    connector = aiohttp.TCPConnector(local_addr=(SOURCE, 0), ssl=False, force_close=True)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
        try:
            await visitor.come(session, url)
        except (RefusedError, TimeoutError, aiohttp.ClientError) as error:
            sys.stderr.write(f"the honest call is refused: {error}\n")
            return 1
        looking = asyncio.create_task(look(session, url, watch), name="look at /healthz")
        try:
            while watch.blocks < 50:  # noqa: ASYNC110  the first second of sound
                await asyncio.sleep(LOOK_S)
            watch.take(loop.time())
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            while await reader.readline():
                seen = watch.take(loop.time())
                answer = {"gap_s": seen.gap_s, "healthz_s": seen.healthz_s, "blocks": seen.blocks}
                sys.stdout.write(json.dumps(answer) + "\n")
                sys.stdout.flush()
        finally:
            looking.cancel()
            await asyncio.wait({looking})
            await visitor.connection.close()
    return 0


async def look(session: aiohttp.ClientSession, url: str, watch: Watch) -> None:
    """Asks for /healthz without end, each time over a connection of its own."""
    loop = asyncio.get_running_loop()
    while True:
        watch.asked_s, status = loop.time(), None
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with asyncio.timeout(NO_ANSWER_S), session.get(f"{url}/healthz") as response:
                status = response.status
        watch.answered(loop.time(), status)
        await asyncio.sleep(LOOK_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
