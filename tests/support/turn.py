"""A real TURN server (coturn) of this machine, for tests. Without it they fail, and are not skipped."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

START_S = 20.0
ASK_AGAIN_S = 0.5
BINDING_REQUEST = bytes.fromhex("0001 0000 2112a442") + bytes(12)
"""The least that STUN knows (RFC 8489)."""
RELAY_PORTS = (26_100, 26_199)


@dataclass(frozen=True)
class Turn:
    """A running server: its URL without credentials, and the secret that makes them."""

    url: str
    secret: str
    log: Path
    child: asyncio.subprocess.Process

    def kill(self) -> None:
        """Ends it as a power cut would."""
        self.child.kill()

    def allocations(self) -> int:
        """How many relays it has opened so far."""
        return self.log.read_text().count("ALLOCATE processed, success")


@asynccontextmanager
async def coturn(folder: Path, secret: str = "north-star", address: str = "127.0.0.1") -> AsyncIterator[Turn]:
    """Runs while inside. ``folder`` gets its log and its database; ``address``: where it listens and relays."""
    program = shutil.which("turnserver")
    assert program, "this test needs coturn's turnserver on the PATH"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
        port = probe.getsockname()[1]
    log = folder / "turnserver.log"
    words = [
        *("-n", f"--listening-ip={address}", f"--relay-ip={address}", f"--listening-port={port}", "--realm=echo_rtc"),
        *(f"--min-port={RELAY_PORTS[0]}", f"--max-port={RELAY_PORTS[1]}", "--no-tls", "--no-dtls", "--no-cli"),
        *("--use-auth-secret", f"--static-auth-secret={secret}", "--allow-loopback-peers", "--verbose"),
        *(f"--log-file={log}", "--simple-log", f"--pidfile={folder / 'turn.pid'}", f"--userdb={folder / 'turn.db'}"),
    ]
    child = await asyncio.create_subprocess_exec(
        program, *words, cwd=folder, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await _listens(address, port)
        yield Turn(f"turn:{address}:{port}?transport=udp", secret, log, child)
    finally:
        with suppress(ProcessLookupError):
            child.terminate()
        await child.wait()


async def _listens(address: str, port: int) -> None:
    """Waits until it accepts TCP connections there and answers STUN over UDP, whichever is later."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.setblocking(False)
        asker.connect((address, port))
        async with asyncio.timeout(START_S):
            while True:
                try:
                    _, writer = await asyncio.open_connection(address, port)
                    writer.close()
                    await writer.wait_closed()
                    await loop.sock_sendall(asker, BINDING_REQUEST)
                    async with asyncio.timeout(ASK_AGAIN_S):
                        await loop.sock_recv(asker, 2_000)
                    return
                except OSError:  # nobody there yet, or no answer in time
                    await asyncio.sleep(0.02)
