"""ICE servers, credentials and public addresses: what is read, what clients are told, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest

from echo_rtc.errors import SettingsError
from echo_rtc.rtc.network import TURN_LIFETIME_S, IceServer, Network, turn_credentials
from echo_rtc.rtc.ports import PortRange

ANSWER = "\r\n".join(
    (
        "v=0",
        "o=- 1 1 IN IP4 0.0.0.0",
        "m=audio 41000 UDP/TLS/RTP/SAVPF 96",
        "c=IN IP4 10.0.0.7",
        "a=candidate:1 1 udp 2130706431 10.0.0.7 41000 typ host",
        "a=candidate:2 1 udp 2130706431 172.17.0.1 41001 typ host",
        "a=candidate:3 1 udp 2130706431 fd00::7 41002 typ host",
        "a=candidate:4 1 udp 1694498815 198.51.100.9 5000 typ srflx raddr 10.0.0.7 rport 41000",
        "a=candidate:5 1 udp 16777215 198.51.100.10 6000 typ relay raddr 198.51.100.9 rport 5000",
        "a=end-of-candidates",
        "m=video 9 UDP/TLS/RTP/SAVPF 97",
        "c=IN IP4 0.0.0.0",
        "",
    )
)


def network(
    *servers: str, secret: str | None = None, ports: str | None = None, public: tuple[str, ...] = ()
) -> Network:
    return Network.of(servers, secret, ports, public)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stun:stun.example:3478", IceServer("stun:stun.example:3478")),
        ("stun:192.0.2.1", IceServer("stun:192.0.2.1")),
        ("stuns:[2001:db8::1]:5349", IceServer("stuns:[2001:db8::1]:5349")),
        ("turn:turn.example", IceServer("turn:turn.example")),
        ("turn:ann:pass@turn.example:3478", IceServer("turn:turn.example:3478", "ann", "pass")),
        (
            "turns:a%3Ab:p%40ss%3F@turn.example:443?transport=tcp",
            IceServer("turns:turn.example:443?transport=tcp", "a:b", "p@ss?"),
        ),
        ("turn:ann:pass@turn.example?transport=udp", IceServer("turn:turn.example?transport=udp", "ann", "pass")),
    ],
)
def test_a_server_is_read_with_its_password_apart(text: str, expected: IceServer) -> None:
    assert IceServer.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stun:", "must be of the form"),
        ("http://stun.example", "must be of the form"),
        ("stun:host:0", "must be of the form"),
        ("stun:host:99999", "must be of the form"),
        ("turn:user@host", "must be of the form"),
        ("turn:user:pass@", "must be of the form"),
        ("turn:user:secret1@host?transport=sctp", "must be of the form"),
        ("stun:user:secret1@host", "neither a password nor a transport"),
        ("stun:host?transport=udp", "neither a password nor a transport"),
        ("turns:user:secret1@host?transport=udp", "turns goes over TCP"),
    ],
)
def test_a_bad_ice_server_is_one_sentence_without_its_password(text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as refused:
        IceServer.parse(text)
    assert "secret1" not in str(refused.value)


def test_clients_are_told_the_servers_with_credentials() -> None:
    known = network("stun:stun.example", "turn:ann:pass@turn.example")
    assert known.ice_servers() == [
        {"urls": "stun:stun.example"},
        {"urls": "turn:turn.example", "username": "ann", "credential": "pass"},
    ]
    assert network().ice_servers() == []


def test_a_turn_server_without_a_password_gets_one_for_some_time() -> None:
    now = 1_000_000.5
    made = Network((IceServer("turn:turn.example"),), turn_secret="north-star", now_s=lambda: now)
    [server] = made.ice_servers()
    expires = 1_000_000 + TURN_LIFETIME_S
    assert server["username"] == f"{expires}:echo_rtc"
    signature = hmac.new(b"north-star", server["username"].encode(), hashlib.sha1).digest()
    assert base64.b64decode(server["credential"]) == signature
    now += 60
    assert made.ice_servers()[0]["username"] == f"{expires + 60}:echo_rtc"
    # As made by: printf '1:echo_rtc' | openssl dgst -sha1 -hmac north-star -binary | base64
    assert turn_credentials("north-star", 1) == ("1:echo_rtc", "rKzHQ0bYnmXfnKw2pLX055RtlLU=")


def test_the_server_itself_uses_what_aiortc_can_speak_with() -> None:
    made = network("stuns:a.example", "stun:[2001:db8::1]", "stun:b.example", "turn:ann:pass@c.example?transport=tcp")
    servers = made.configuration().iceServers
    assert servers is not None
    assert [server.urls for server in servers] == ["stun:b.example", "turn:c.example?transport=tcp"]
    assert (servers[1].username, servers[1].credential) == ("ann", "pass")
    # Never None, for which aiortc asks a stranger's server.
    assert network().configuration().iceServers == []
    assert network("stun:b.example", public=("203.0.113.5",)).configuration().iceServers == []


def test_a_public_address_takes_the_place_of_the_machines_own() -> None:
    assert network().seen_from_outside(ANSWER) == ANSWER
    expected = ANSWER.replace("10.0.0.7 41000 typ", "203.0.113.5 41000 typ").replace("172.17.0.1", "203.0.113.5")
    expected = expected.replace("c=IN IP4 10.0.0.7", "c=IN IP4 203.0.113.5")
    assert network(public=("203.0.113.5",)).seen_from_outside(ANSWER) == expected
    both = network(public=("2001:db8::5", "203.0.113.5")).seen_from_outside(ANSWER)
    assert both == expected.replace("fd00::7", "2001:db8::5")


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: network("turn:turn.example"), "without a password"),
        (lambda: network("turn:a:b@turn.example", secret="north-star"), "turn_secret is set, but no ice_server"),
        (lambda: network(public=("1.2.3",)), "public_ip is '1.2.3'"),
        (lambda: network(public=("1.2.3.4", "1.2.3.5")), "public_ip is given twice for IPv4"),
        (lambda: network(ports="80-90"), "udp_ports is '80-90'"),
    ],
)
def test_what_cannot_be_is_one_sentence(made: object, words: str) -> None:
    assert callable(made)
    with pytest.raises(SettingsError, match=words):
        made()


@pytest.mark.parametrize("text", ["", "40000", "40100-40000", "1000-2000", "40000-70000", "a-b", "-1-5"])
def test_a_range_that_cannot_be_is_one_sentence(text: str) -> None:
    with pytest.raises(SettingsError, match="it must be a range such as 40000-40100"):
        PortRange.parse(text)


def test_a_range_has_both_its_ends() -> None:
    assert len(PortRange.parse("40000-40000")) == 1
    assert len(PortRange.parse("40000-40100")) == 101
