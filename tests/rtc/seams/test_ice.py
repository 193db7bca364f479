"""Vanished peers and dead servers cost seconds."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import aioice.ice
import aioice.stun
import aioice.turn
import pytest
from aiortc import RTCIceGatherer, RTCIceServer, RTCIceTransport

from echo_rtc.rtc.candidates import MAX_CHECKED, Reach
from echo_rtc.rtc.guard import DATAGRAMS_BURST, Guard
from echo_rtc.rtc.ports import PortRange
from echo_rtc.rtc.seams import ice, ports
from echo_rtc.rtc.seams.checks import SeamError
from echo_rtc.rtc.seams.ice import GATHERING_LIMIT_S, shorten_gathering
from echo_rtc.rtc.seams.ports import ports_from
from tests.rtc.seams.test_ports import gathered


def test_vanished_peers_are_noticed_soon() -> None:
    ice.shorten_consent()
    assert (aioice.ice.CONSENT_INTERVAL + 0.5) * aioice.ice.CONSENT_FAILURES <= 6


@pytest.mark.parametrize("name", ["CONSENT_INTERVAL", "CONSENT_FAILURES"])
def test_a_changed_aioice_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delattr(aioice.ice, name)
    with pytest.raises(SeamError, match=name):
        ice.shorten_consent()


async def test_dead_servers_delay_an_answer_no_longer_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < GATHERING_LIMIT_S < 5
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(ice, "GATHERING_LIMIT_S", 0.1)
    shorten_gathering()
    try:
        began = loop.time()
        dead = [RTCIceServer("stun:192.0.2.1:3478"), RTCIceServer("turn:192.0.2.1:3478?transport=tcp", "ann", "pass")]
        candidates, _ = await gathered(None, *dead)
        assert candidates
        # aioice's own limit is 5 s.
        assert loop.time() - began < 4
    finally:
        monkeypatch.undo()
        shorten_gathering()
    assert aioice.ice.Connection.get_component_candidates.__defaults__ == (GATHERING_LIMIT_S,)


async def test_a_new_aioice_is_noticed_where_gathering_is_concerned(monkeypatch: pytest.MonkeyPatch) -> None:
    async def get_component_candidates(self: object, component: int, addresses: list[str]) -> list[object]:
        return []

    async def delete(self: object) -> None:
        pass

    with monkeypatch.context() as changed:
        changed.setattr(aioice.turn.TurnClientMixin, "delete", delete)
        with pytest.raises(SeamError, match="TURN client does not close when its end is cut short"):
            shorten_gathering()
        changed.setattr(aioice.ice.Connection, "get_component_candidates", get_component_candidates)
        with pytest.raises(SeamError, match="get_component_candidates has no timeout"):
            shorten_gathering()
    monkeypatch.setattr(ports, "_ENDPOINT", "create_datagram_something")
    monkeypatch.setattr(asyncio.get_running_loop(), "create_datagram_something", print, raising=False)
    with pytest.raises(SeamError, match=r"aioice\.ice does not call"), ports_from(PortRange(25_250, 25_259)):
        pass


def test_a_changed_stun_protocol_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aioice.ice.StunProtocol, "datagram_received", None)
    with pytest.raises(SeamError, match="StunProtocol has no method datagram_received"):
        ice.watch_datagrams()


@pytest.mark.parametrize("name", ["data_received", "check_incoming"])
async def test_a_changed_connection_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(aioice.ice.Connection, name, None)
    with pytest.raises(SeamError, match=f"aioice's Connection has no method {name}"):
        Watched()


def test_a_machine_without_a_network_has_its_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []
    monkeypatch.setattr(aioice.ice, "get_host_addresses", lambda use_ipv4, use_ipv6: found)
    ice.gather_loopback()
    assert aioice.ice.get_host_addresses(use_ipv4=True, use_ipv6=True) == ["127.0.0.1"]
    found.append("10.0.0.1")
    assert aioice.ice.get_host_addresses(use_ipv4=True, use_ipv6=True) == ["10.0.0.1"]


def test_patches_can_be_applied_twice() -> None:
    ice.apply_ice_patches()
    before = aioice.ice.StunProtocol.datagram_received, aioice.turn.TurnClientMixin.delete
    ice.apply_ice_patches()
    assert before == (aioice.ice.StunProtocol.datagram_received, aioice.turn.TurnClientMixin.delete)


class Watched:
    """An ICE connection under guard, one socket of it, and what it has sent."""

    def __init__(self, reach: Reach | None = None) -> None:
        self.transport = RTCIceTransport(RTCIceGatherer(iceServers=[]))
        self.connection: Any = self.transport._connection
        self.guard = Guard(lambda _: None, lambda: 0.0)
        ice.watch_datagrams()
        ice.guard_ice(self.transport, self.guard, reach or Reach())
        self.protocol = aioice.ice.StunProtocol(self.connection)
        self.protocol.local_candidate = candidate("10.0.0.1", 4000)
        self.sent: list[tuple[str, int]] = []
        self.protocol.transport = SimpleNamespace(sendto=lambda _, addr: self.sent.append(addr))

    def receive(self, data: bytes, host: str = "192.0.2.9", port: int = 9) -> None:
        self.protocol.datagram_received(data, (host, port))

    def check(self, host: str = "192.0.2.9", port: int = 9) -> None:
        """A connectivity check as the peer sends it."""
        message = aioice.stun.Message(aioice.stun.Method.BINDING, aioice.stun.Class.REQUEST)
        message.attributes["USERNAME"] = f"{self.connection.local_username}:peer"
        message.attributes["PRIORITY"] = 1
        message.add_message_integrity(self.connection.local_password.encode())
        self.receive(bytes(message), host, port)

    @property
    def refused(self) -> int:
        return self.guard.counters.datagrams_refused

    @property
    def waiting(self) -> int:
        return int(self.connection._queue.qsize())


def candidate(host: str, port: int) -> aioice.ice.Candidate:
    return aioice.ice.Candidate("1", 1, "udp", 1, host, port, "host")


async def test_datagrams_of_unknown_senders_are_dropped() -> None:
    watched = Watched()
    for data in (b"", b"\x80" + bytes(50), b"\x16" + bytes(50), b"\x00\x01" + bytes(30), bytes(20)):
        watched.receive(data)
    foreign = aioice.stun.Message(aioice.stun.Method.BINDING, aioice.stun.Class.REQUEST)
    foreign.attributes["USERNAME"] = "other:peer"
    watched.receive(bytes(foreign))
    assert watched.sent == []
    assert watched.waiting == 0
    assert watched.refused == 5


async def test_a_peers_check_makes_its_address_known() -> None:
    watched = Watched()
    watched.check()
    assert watched.sent == [("192.0.2.9", 9)]
    watched.receive(b"\x80" + bytes(50))
    watched.receive(b"\x80" + bytes(50), "192.0.2.10")
    assert (watched.waiting, watched.refused) == (1, 1)
    for _ in range(2 * ice.MAX_QUEUED_DATAGRAMS):
        watched.receive(b"\x80" + bytes(50))
    assert watched.waiting == ice.MAX_QUEUED_DATAGRAMS


@pytest.mark.parametrize("host", ["127.0.0.1", "169.254.169.254", "224.0.0.1", "0.0.0.0"])
async def test_no_check_goes_where_no_peer_is(host: str) -> None:
    watched = Watched()
    watched.check(host)
    assert watched.sent == []
    assert watched.refused == 1


async def test_only_so_many_addresses_are_checked() -> None:
    watched = Watched()
    connection = watched.connection
    connection.remote_password = "x" * 22
    connection._early_checks_done = True
    connection._protocols = [watched.protocol]
    for n in range(MAX_CHECKED):
        connection._add_remote_candidate(candidate(f"10.1.0.{n}", 9), f"10.1.0.{n}")
    for n in range(100):
        watched.check(f"192.0.2.{n}")
    assert len(connection._remote_candidates) == MAX_CHECKED
    # One that was learnt and has failed makes room.
    learnt = connection._remote_candidates[-1]
    learnt.type = "prflx"
    for pair in connection._check_list:
        pair.state = aioice.ice.CandidatePair.State.FAILED
    watched.check("192.0.2.200")
    assert [c.host for c in connection._remote_candidates if c.host.startswith("192")] == ["192.0.2.200"]
    connection._protocols.clear()
    await connection.close()


async def test_a_flood_from_the_peer_is_bounded() -> None:
    watched = Watched()
    watched.check()
    for _ in range(round(DATAGRAMS_BURST) + 100):
        watched.receive(b"\x80" + bytes(50))
    assert watched.refused > 100
