"""A call across a NAT: server, router and client are network namespaces of their own, and the client has no way to the
server but the router's address and the ports that it passes on."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.test_server import START_S, Process, card

ROOT = Path(__file__).parents[1]
PUBLIC, CLIENT = "10.77.2.1", "10.77.2.2"
ROUTER, SERVER = "10.77.1.1", "10.77.1.2"
PORT = 8443
UDP_PORTS = (40_000, 40_020)
TOKEN = "a-token-for-everything"


@dataclass(frozen=True)
class Net:
    """The names of the namespaces."""

    server: str
    router: str
    client: str


def run(*words: str) -> None:
    finished = subprocess.run(words, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, f"{' '.join(words)}: {finished.stderr}"


@pytest.fixture
def net() -> Iterator[Net]:
    """The three namespaces, wired; gone afterwards."""
    if os.geteuid() != 0:
        pytest.skip("only root may make network namespaces")
    for program in ("ip", "iptables"):
        assert shutil.which(program), f"this test needs {program} on the PATH"
    made = Net(*(f"echo{os.getpid()}{role}" for role in "src"))
    try:
        for name in (made.server, made.router, made.client):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        _wire(made.server, SERVER, made.router, "inside", ROUTER)
        _wire(made.client, CLIENT, made.router, "outside", PUBLIC)
        run("ip", "-n", made.server, "route", "add", "default", "via", ROUTER)
        run("ip", "netns", "exec", made.router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        nat = ("ip", "netns", "exec", made.router, "iptables", "-t", "nat")
        into = ("-A", "PREROUTING", "-i", "outside", "-d", PUBLIC)
        udp = ("-p", "udp", "--dport", f"{UDP_PORTS[0]}:{UDP_PORTS[1]}")
        run(*nat, *into, *udp, "-j", "DNAT", "--to-destination", SERVER)
        run(*nat, *into, "-p", "tcp", "--dport", str(PORT), "-j", "DNAT", "--to-destination", SERVER)
        run(*nat, "-A", "POSTROUTING", "-o", "outside", "-j", "MASQUERADE")
        # The client takes only what it has asked for, as behind a router of its own; else the server would find it by
        # itself, whatever its answer says.
        firewall = ("ip", "netns", "exec", made.client, "iptables", "-A", "INPUT", "-i", "eth0")
        run(*firewall, "-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT")
        run(*firewall, "-j", "DROP")
        yield made
    finally:
        for name in (made.server, made.router, made.client):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _wire(name: str, address: str, router: str, end: str, routers_address: str) -> None:
    """A cable between a namespace (its eth0) and the router's ``end``."""
    run("ip", "-n", router, "link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", name)
    for where, device, own in ((router, end, routers_address), (name, "eth0", address)):
        run("ip", "-n", where, "address", "add", f"{own}/24", "dev", device)
        run("ip", "-n", where, "link", "set", device, "up")


async def test_a_call_passes_a_nat_by_public_address_and_port_range(net: Net, tmp_path: Path) -> None:
    flags = ("--host", "0.0.0.0", "--udp-ports", "-".join(map(str, UDP_PORTS)), "--public-ip", PUBLIC)
    environ = {**os.environ, "ECHO_RTC_AUTH_TOKEN": TOKEN}
    child = await asyncio.create_subprocess_exec(
        *("ip", "netns", "exec", net.server, sys.executable, str(ROOT / "server.py"), *card(tmp_path), *flags),
        *("--port", str(PORT)),
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    running = Process(child, [])
    try:
        await running.line("echo_rtc is ready")
        caller = await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", net.client, sys.executable, "-m", "tests.remote_caller"),
            *(f"http://{PUBLIC}:{PORT}", TOKEN),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(caller.communicate(), START_S)
        assert caller.returncode == 0, err.decode()
        seen = json.loads(out)
        child.send_signal(signal.SIGTERM)
        assert await running.end() == 0
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    assert seen["frames"] >= 48
    assert seen["blocks"] >= 100
    assert {address for address, _, _ in seen["candidates"]} == {PUBLIC}
    assert all(UDP_PORTS[0] <= port <= UDP_PORTS[1] for _, port, _ in seen["candidates"])
