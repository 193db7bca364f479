"""Visitors of a real server: callers, publishers and viewers who come by HTTP and WebRTC as clients do, and leave in
every way there is. What they get they count and do not decode, so that many fit beside the server on one machine.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

import aiohttp
from aiortc import RTCConfiguration, RTCPeerConnection

from echo_rtc.bench.support.calls import ScriptedMicrophone, Voice, connect
from echo_rtc.bench.support.real_server import ADMIN_HEADERS
from echo_rtc.bench.support.receivers import without_decoding


class Part(StrEnum):
    """What a visitor does: call (speak and watch in one connection), publish (WHIP), view (WHEP)."""

    CALL = "call"
    PUBLISH = "publish"
    VIEW = "view"


class Leaving(StrEnum):
    """How a visitor goes: tells the server, hangs up only, or vanishes without a notice."""

    DELETE = "delete"
    HANG_UP = "hang up"
    VANISH = "vanish"


class RefusedError(Exception):
    """The server did not let a visitor in; ``status`` says why."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(f"{status}: {words[:200]}")
        self.status = status


@dataclass(eq=False)
class Visitor:
    """One connection to the stream of a name. ``frames`` and ``blocks`` count what came; ``on_block`` is called for
    each block of sound."""

    part: Part
    name: str
    voice: Voice | None = None
    connection: RTCPeerConnection = field(default_factory=lambda: RTCPeerConnection(RTCConfiguration(iceServers=[])))
    frames: int = 0
    blocks: int = 0
    on_block: Callable[[], None] | None = None
    _path: str = ""

    async def come(self, session: aiohttp.ClientSession, url: str) -> None:
        """Connects. Raises RefusedError, or TimeoutError if the connection does not come up."""
        microphone = ScriptedMicrophone(self.voice) if self.voice is not None else None
        directions = {Part.CALL: "sendrecv", Part.PUBLISH: "sendonly", Part.VIEW: "recvonly"}
        sound = self.connection.addTransceiver(microphone or "audio", directions[self.part])
        if self.part is not Part.PUBLISH:
            picture = self.connection.addTransceiver("video", "recvonly")
            without_decoding(sound.receiver, self._hear)
            without_decoding(picture.receiver, self._see)
        if self.part is Part.CALL:
            self.connection.createDataChannel("events")

        async def exchange(offer: str) -> str:
            if self.part is Part.CALL:
                body = {"sdp": offer, "type": "offer", "name": self.name}
                async with session.post(f"{url}/offer", json=body) as response:
                    if response.status != 200:
                        raise RefusedError(response.status, await response.text())
                    answer = await response.json()
                    self._path = f"/streams/{answer['stream']}"
                    return str(answer["sdp"])
            route = "whip" if self.part is Part.PUBLISH else "whep"
            headers = {"Content-Type": "application/sdp"}
            async with session.post(f"{url}/{route}/{self.name}", data=offer, headers=headers) as response:
                if response.status != 201:
                    raise RefusedError(response.status, await response.text())
                self._path = response.headers["Location"]
                return await response.text()

        try:
            await connect(self.connection, exchange)
        except BaseException:
            await self.connection.close()
            raise

    async def leave(self, session: aiohttp.ClientSession, url: str, how: Leaving) -> None:
        """Leaves; idempotent."""
        if how is Leaving.DELETE:
            async with session.delete(f"{url}{self._path}"):
                pass
        elif how is Leaving.VANISH:
            self.vanish()
        await self.connection.close()

    async def statistic(self, url: str, group: str, name: str) -> float:
        """A counter of a caller's stream; infinite if the stream has ended."""
        async with aiohttp.ClientSession() as session, session.get(f"{url}{self._path}") as response:
            if response.status == 404:
                return math.inf
            return float((await response.json())[group][name])

    def vanish(self) -> None:
        """Nothing leaves any more from the sockets under the connection, as if the browser had been killed."""
        for transceiver in self.connection.getTransceivers():
            for protocol in transceiver.receiver.transport.transport._connection._protocols:
                protocol.transport = _Mute(protocol.transport)

    def _hear(self, _: int) -> None:
        self.blocks += 1
        if self.on_block is not None:
            self.on_block()

    def _see(self, _: int) -> None:
        self.frames += 1


class _Mute:
    """A socket that sends nothing."""

    def __init__(self, socket: asyncio.DatagramTransport) -> None:
        self._socket = socket

    def sendto(self, data: bytes, addr: object) -> None:
        """Throws ``data`` away."""

    def close(self) -> None:
        self._socket.close()


async def gone(session: aiohttp.ClientSession, url: str, within_s: float) -> float:
    """Waits until the server has no stream and no viewer any more; how long that took (s). Raises TimeoutError."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    async with asyncio.timeout(within_s):
        while True:
            found = await metrics(session, url)
            if not found["streams"] and not found["viewers"]:
                return loop.time() - begun
            await asyncio.sleep(0.1)


async def metrics(session: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """The server's metrics without their prefix; those with labels are added up over them."""
    async with session.get(f"{url}/metrics", headers=ADMIN_HEADERS) as response:
        text = await response.text()
    found: dict[str, float] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            name = name.partition("{")[0].removeprefix("echo_rtc_")
            found[name] = found.get(name, 0.0) + float(value)
    return found
