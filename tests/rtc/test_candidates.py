"""Which addresses a peer may have checked: what is read, what is left out, and how many are kept."""

from __future__ import annotations

import ipaddress

import pytest

from echo_rtc.errors import OfferError
from echo_rtc.rtc.candidates import MAX_NAMED, Candidate, Reach, chosen, read_candidate

USUAL = "1 1 udp 2130706431 192.0.2.1 3478 typ host"


def allowed(text: str, reach: Reach | None = None, port: int = 9) -> bool:
    return (reach or Reach()).allows(ipaddress.ip_address(text), port)


@pytest.mark.parametrize(
    "value",
    [USUAL, USUAL.replace(" ", "\t"), f"  {USUAL}  generation 0", USUAL.replace("udp", "UDP").replace("host", "HOST")],
)
def test_a_candidate_is_read_whatever_stands_between(value: str) -> None:
    read = read_candidate(value)
    assert read is not None
    assert read.line() == USUAL


@pytest.mark.parametrize(
    "name",
    ["0a1b-2c3d.local", "0A1B.LOCAL", "a.local.", "a.Local", "evil.example", "localhost", "a", "fe80::1%eth0", "1.2.3"],
)
@pytest.mark.parametrize("space", [" ", "\t", "  ", "\t \t"])
def test_a_name_is_never_looked_up(name: str, space: str) -> None:
    assert read_candidate(USUAL.replace("192.0.2.1", name).replace(" ", space)) is None


@pytest.mark.parametrize(("old", "new"), [("udp", "tcp"), ("1 1 udp", "1 2 udp"), ("host", "other")])
def test_other_kinds_are_left_out(old: str, new: str) -> None:
    assert read_candidate(USUAL.replace(old, new)) is None


@pytest.mark.parametrize("value", ["", "1 1 udp", USUAL.replace("3478", "x"), USUAL.replace("typ", "kind"), "1 " * 8])
def test_what_cannot_be_read_is_said(value: str) -> None:
    with pytest.raises(OfferError, match="cannot be read"):
        read_candidate(value)


@pytest.mark.parametrize("port", [-1, 0, 65_536, 70_000, 2**40])
def test_a_port_that_cannot_be_is_left_out(port: int) -> None:
    assert not allowed("192.0.2.1", port=port)


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "0.1.2.3", "127.0.0.1", "127.8.8.8", "169.254.169.254", "224.0.0.251", "239.1.1.1"),
        *("255.255.255.255", "240.0.0.1", "10.1.255.255", "10.1.0.0"),
        *("::", "::1", "fe80::1", "ff02::fb", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1"),
        *("2002:7f00:1::1", "::ffff:224.0.0.1", "::ffff:10.1.255.255"),
    ],
)
def test_what_is_no_peers_address_is_left_out(address: str) -> None:
    own = ipaddress.ip_network("10.1.0.0/16")
    assert not allowed(address, Reach(broadcast=frozenset((own.broadcast_address, own.network_address))))


@pytest.mark.parametrize("address", ["192.0.2.1", "10.0.0.1", "192.168.1.9", "2001:db8::1", "fd00::1", "100.64.0.9"])
def test_private_addresses_are_allowed_unless_forbidden(address: str) -> None:
    assert allowed(address)
    assert not allowed(address, Reach(private=False))


def test_public_addresses_are_always_allowed() -> None:
    for address in ("1.1.1.1", "2606:4700::1111", "64:ff9b::101:101"):
        assert allowed(address)
        assert allowed(address, Reach(private=False))


def test_loopback_is_for_callers_on_it() -> None:
    for address in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
        assert allowed(address, Reach(loopback=True))
        assert allowed(address, Reach(loopback=True, private=False))


def candidates(kind: str, count: int, priority: int) -> list[Candidate]:
    first = ipaddress.ip_address("10.0.0.0")
    return [Candidate("1", priority - n, first + priority + n, 9, kind) for n in range(count)]


def test_every_kind_is_among_the_chosen() -> None:
    found = candidates("host", 100, 5_000) + candidates("srflx", 100, 3_000) + candidates("relay", 1, 9)
    picked = chosen(found, MAX_NAMED)
    assert len(picked) == MAX_NAMED
    assert picked[0] == found[0]
    assert [each.kind for each in picked] == ["host"] * 6 + ["srflx"] * 5 + ["relay"]


def test_an_address_is_chosen_once() -> None:
    assert len(chosen(candidates("host", 3, 500) * 4, MAX_NAMED)) == 3
