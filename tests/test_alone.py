"""A whole server with its worker process, and whom they ask for anything over a network: the caller, and nobody else.

Two witnesses look on: a hook in every Python process, which writes down and refuses what does not go to this machine or
to the caller, names included; and, as root, a network namespace that leads to the caller only, whose kernel counts what
any code, Python's or not, has tried to send elsewhere.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import aioice.ice
import psutil
import pytest
import yaml

from echo_rtc.bench.faults import CLIENT, SERVER, TOKEN, Network
from echo_rtc.bench.stream import babble
from echo_rtc.bench.support.calls import Caller
from echo_rtc.bench.support.real_server import ROOT, RealServer

RENDERED = 8
FRAMES_OF_A_SHORT_START = ("--fps", "8", "--clip-frames", "8", "--untrained")
"""An idle loop of a third of its frames: what the pictures are like is not looked at."""
CALL_S = 60.0
HOOK = """
import ipaddress, os, sys

NOTES = os.open(os.environ["WITNESS_NOTES"], os.O_WRONLY | os.O_APPEND)
KNOWN = os.environ["WITNESS_KNOWN"].split()
EVENTS = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname",
          "socket.gethostbyaddr", "socket.getnameinfo")


def near(host):
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host in ("", "localhost")
    return address.is_loopback or address.is_unspecified or str(address) in KNOWN


def witness(event, arguments):
    if event not in EVENTS:
        return
    target = arguments[0] if event.startswith("socket.get") else arguments[1]
    host = target[0] if isinstance(target, tuple) else target
    if host is None or event[7:] in ("connect", "sendto", "sendmsg") and not isinstance(target, tuple):
        return
    host = host.decode() if isinstance(host, bytes) else str(host)
    if not near(host):
        os.write(NOTES, f"{os.getpid()} {event} {host}\\n".encode())
        raise PermissionError(f"{event} {host} is refused")


os.write(NOTES, f"{os.getpid()} begun\\n".encode())
sys.addaudithook(witness)
"""


@dataclass(frozen=True)
class Witnesses:
    """What has been seen so far. ``network``: the namespace that the server is in; None without root."""

    notes: Path
    network: Network | None

    @property
    def watched(self) -> set[int]:
        """The processes that have the hook."""
        return {int(line.split()[0]) for line in self.notes.read_text().splitlines() if line.endswith(" begun")}

    @property
    def asked(self) -> list[str]:
        """Who was asked for anything and should not have been."""
        return [line for line in self.notes.read_text().splitlines() if not line.endswith(" begun")]

    def sent_nowhere(self) -> int:
        """How often a process in the namespace has tried to reach what it does not lead to."""
        if self.network is None:
            return 0
        table = subprocess.run([*self.network.command, "cat", "/proc/net/snmp", "/proc/net/snmp6"],
                               capture_output=True, text=True, check=True).stdout.splitlines()  # fmt: skip
        names, values = (line.split() for line in table if line.startswith("Ip:"))
        [newer] = [line.split()[1] for line in table if line.startswith("Ip6OutNoRoutes")]
        return int(values[names.index("OutNoRoutes")]) + int(newer)


@pytest.fixture
async def witnesses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Witnesses]:
    """Every Python that is begun while this is there has the hook."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    notes = tmp_path / "notes.txt"
    notes.touch()
    own = {address.address.partition("%")[0] for found in psutil.net_if_addrs().values() for address in found}
    async with AsyncExitStack() as life:
        network = None
        if os.geteuid() == 0 and shutil.which("ip"):
            network = await life.enter_async_context(Network.made())
            own = {CLIENT, SERVER}
            # The caller has no other addresses, to which the server would answer.
            monkeypatch.setattr(aioice.ice, "get_host_addresses", lambda **_: [CLIENT])
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'hook'}{os.pathsep}{ROOT}")
        monkeypatch.setenv("WITNESS_NOTES", str(notes))
        monkeypatch.setenv("WITNESS_KNOWN", " ".join(own))
        yield Witnesses(notes, network)


ELSEWHERE = """
import socket, sys
for reach in (lambda: socket.getaddrinfo("example.org", 80), lambda: socket.gethostbyname("example.org"),
              lambda: socket.socket().connect(("192.0.2.1", 80)),
              lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"", ("192.0.2.1", 53))):
    try:
        reach()
    except OSError:
        continue
    sys.exit("it was let through")
"""
PAST_THE_HOOK = """
import ctypes, socket
text = bytes([2, 0, 0, 53, 192, 0, 2, 1]) + bytes(8)
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
ctypes.CDLL(None).sendto(sender.fileno(), b"x", 1, 0, text, len(text))
"""


def test_the_witnesses_see_what_goes_elsewhere(witnesses: Witnesses) -> None:
    subprocess.run([sys.executable, "-c", ELSEWHERE], check=True)
    events = [line.split()[1] for line in witnesses.asked]
    assert events == ["socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"]
    if witnesses.network is not None:
        before = witnesses.sent_nowhere()
        subprocess.run([*witnesses.network.command, sys.executable, "-c", PAST_THE_HOOK], check=True)
        assert witnesses.sent_nowhere() == before + 1


async def test_a_server_with_its_worker_contacts_only_its_caller(witnesses: Witnesses, tmp_path: Path) -> None:
    command = () if witnesses.network is None else witnesses.network.command
    # One avatar at a low rate of frames: its idle loop has few, and the start is short.
    mapping = yaml.safe_load((ROOT / "configs" / "embedded.yaml").read_text())
    (tmp_path / "one.yaml").write_text(yaml.safe_dump({**mapping, "avatars": {}}))
    flags = ("--host", "0.0.0.0", "--auth-token", TOKEN, "--log-dir", str(tmp_path / "logs"), "--devices", "cpu",
             "--config", str(tmp_path / "one.yaml"), *FRAMES_OF_A_SHORT_START)  # fmt: skip
    before = witnesses.sent_nowhere()
    async with RealServer(*flags, command=(*command, sys.executable)) as server:
        host = "127.0.0.1" if witnesses.network is None else SERVER
        headers = {"Authorization": f"Bearer {TOKEN}"}
        caller, streams = Caller(babble), []
        async with aiohttp.ClientSession(f"http://{host}:{server.port}", headers=headers) as session:

            async def exchange(offer: str) -> str:
                async with session.post("/offer", json={"sdp": offer, "type": "offer"}) as response:
                    opened = await response.json()
                streams.append(opened["stream"])
                return str(opened["sdp"])

            try:
                await caller.connect(exchange)
                async with asyncio.timeout(CALL_S):
                    rendered = 0
                    while rendered < RENDERED:
                        async with session.get(f"/streams/{streams[0]}") as response:
                            rendered = (await response.json())["rendered"]
                        await asyncio.sleep(0.1)  # between two questions
            finally:
                await caller.close()
        working = {
            child.pid for child in server.process.children(recursive=True) if "spawn_main" in str(child.cmdline())
        }
        assert working
        assert {server.process.pid, *working} <= witnesses.watched
        assert await server.stop() == 0
    assert witnesses.asked == []
    assert witnesses.sent_nowhere() == before
    assert server.troubles == []
