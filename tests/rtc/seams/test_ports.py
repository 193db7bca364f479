"""UDP sockets stay within a range."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection

from echo_rtc.rtc.ports import PortRange
from echo_rtc.rtc.seams import ice
from echo_rtc.rtc.seams.ice import shorten_gathering
from echo_rtc.rtc.seams.ports import Binding, ports_from


async def gathered(ports: PortRange | None, *servers: RTCIceServer) -> tuple[list[tuple[str, int]], Binding]:
    """The host candidates of a connection that uses these servers, and what became of its sockets."""
    peer = RTCPeerConnection(RTCConfiguration(iceServers=list(servers)))
    try:
        peer.addTransceiver("audio")
        with ports_from(ports) as binding:
            await peer.setLocalDescription(await peer.createOffer())
        found = re.findall(r"candidate:\S+ 1 udp \d+ (\S+) (\d+) typ host", peer.localDescription.sdp)
        return [(address, int(port)) for address, port in found], binding
    finally:
        await peer.close()


@contextmanager
def taken(addresses: list[str], ports: range) -> Iterator[None]:
    """While inside, these ports are in use on these addresses."""
    with ExitStack() as held:
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            for port in ports:
                holder = held.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                holder.bind((address, port))
        yield


async def test_media_stays_within_its_range_of_ports() -> None:
    ports = PortRange(25_200, 25_229)
    for _ in range(3):
        candidates, binding = await gathered(ports)
        assert candidates
        assert all(25_200 <= port <= 25_229 for _, port in candidates)
        assert not binding.exhausted
    addresses = [address for address, _ in candidates]
    with taken(addresses, range(25_200, 25_228)):
        for _ in range(2):
            candidates, binding = await gathered(ports)
            assert {port for _, port in candidates} <= {25_228, 25_229}
            assert len(candidates) == len(addresses)
    with taken(addresses, range(25_200, 25_230)):
        candidates, binding = await gathered(ports)
        assert candidates == []
        assert binding.exhausted
        assert ports.exhausted == len(addresses)
    # Outside of it, and without a range, the system picks.
    candidates, binding = await gathered(None)
    assert len(candidates) == len(addresses)
    assert not all(25_200 <= port <= 25_229 for _, port in candidates)


async def test_the_way_to_a_turn_server_stays_within_the_range_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ice, "GATHERING_LIMIT_S", 0.2)
    shorten_gathering()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            silent.setblocking(False)
            server = RTCIceServer(f"turn:127.0.0.1:{silent.getsockname()[1]}", "ann", "pass")
            candidates, _ = await gathered(PortRange(25_230, 25_249), server)
            _, (_, port) = silent.recvfrom(2_000)
        assert 25_230 <= port <= 25_249
        assert candidates
    finally:
        monkeypatch.undo()
        shorten_gathering()
