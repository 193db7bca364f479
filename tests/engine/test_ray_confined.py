"""A Ray cluster that the server starts: who reaches it, who may use it, and what its head's death does. In a network
namespace with an address besides loopback, so that whatever listens there belongs to the cluster."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import psutil
import pytest

from echo_rtc.engine import ray_environment
from echo_rtc.engine.ray_environment import AUTH_TOKEN, check_token, check_version, prepare_environment
from echo_rtc.errors import SettingsError

INTRUDE = "import ray, sys; ray.init(address=sys.argv[1]); print(ray.get(ray.remote(lambda: 'inside').remote()))"
LISTENING = "0A"


def ip(*words: str) -> None:
    finished = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


@pytest.fixture
def namespace() -> Iterator[str]:
    """Has loopback and 10.77.9.1."""
    if os.geteuid() != 0:
        pytest.skip("only root may make network namespaces")
    assert shutil.which("ip"), "this test needs ip on the PATH"
    name = f"echo{os.getpid()}ray"
    ip("netns", "add", name)
    try:
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "link", "add", "one", "type", "veth", "peer", "name", "two")
        ip("-n", name, "addr", "add", "10.77.9.1/24", "dev", "one")
        for link in ("one", "two"):
            ip("-n", name, "link", "set", link, "up")
        ip("-n", name, "route", "add", "default", "dev", "one")
        yield name
    finally:
        ip("netns", "del", name)


def listening(pid: int) -> set[IPv4Address | IPv6Address]:
    """The addresses on which anything listens in the network namespace of a process."""
    found: set[IPv4Address | IPv6Address] = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if state == LISTENING:
                words = bytes.fromhex(local.partition(":")[0])  # in 32-bit words, least significant byte first
                found.add(ip_address(b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))))
    return found


def is_loopback(address: IPv4Address | IPv6Address) -> bool:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def test_a_cluster_of_its_own_is_confined_and_its_end_told(namespace: str) -> None:
    inside = ("ip", "netns", "exec", namespace, sys.executable)
    server = subprocess.Popen([*inside, "-m", "tests.engine.own_ray_cluster"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        ready, _, head = server.stdout.readline().strip().partition(" ")
        assert ready == "ready"
        assert server.stdout.readline() == "rendered\n"
        addresses = listening(server.pid)
        assert addresses
        assert all(is_loopback(address) for address in addresses), addresses

        stranger = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        tokens = ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64})

        def intrude(token: dict[str, str]) -> subprocess.CompletedProcess[str]:
            environment = stranger | token | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
            command = [*inside, "-c", INTRUDE, head]
            return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

        # Each is given up after the same wait.
        with ThreadPoolExecutor() as pool:
            attempts = [*pool.map(intrude, tokens)]
        for tried in attempts:
            assert "inside" not in tried.stdout
            assert tried.returncode != 0
            assert re.search("[Aa]uthentication|token", tried.stderr), tried.stderr

        (gcs,) = (one for one in psutil.Process(server.pid).children(recursive=True) if one.name() == "gcs_server")
        gcs.kill()
        reason = "the head of a Ray cluster on this machine is gone; start the cluster again, then the server"
        assert server.stdout.readline() == f"failed False {reason}\n"
        assert server.stdout.readline() == "closed\n"
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.communicate()


def test_an_existing_cluster_is_joined_with_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in (AUTH_TOKEN, ray_environment.AUTH_MODE, ray_environment.AUTH_TOKEN_PATH):
        monkeypatch.delenv(variable, raising=False)
    prepare_environment("10.0.0.5:6379")
    with pytest.raises(SettingsError, match=r"^ray_address is 10\.0\.0\.5:6379, but there is no token"):
        check_token("10.0.0.5:6379")
    monkeypatch.setenv(ray_environment.AUTH_MODE, "disabled")
    prepare_environment("10.0.0.5:6379")
    check_token("10.0.0.5:6379")
    monkeypatch.setenv(ray_environment.AUTH_MODE, "token")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 64)
    check_token("10.0.0.5:6379")


def test_a_cluster_of_its_own_always_has_a_token() -> None:
    environment = {"RAY_AUTH_MODE": "disabled"}
    prepare_environment("", environment)
    assert environment["RAY_AUTH_MODE"] == "token"
    assert len(environment[AUTH_TOKEN]) == 64
    assert environment[ray_environment.LOOPBACK_ONLY] == "0"


def test_a_vulnerable_version_is_refused() -> None:
    check_version("2.56.0")
    check_version("3.0.0.dev1")
    for version in ("2.40.0", "2.55.1"):
        with pytest.raises(SettingsError, match=f"^engine is ray, but Ray {re.escape(version)} lets others"):
            check_version(version)
