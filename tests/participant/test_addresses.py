"""Which LiveKit servers may be joined, and what tries to get to others."""

from __future__ import annotations

import pytest

from echo_rtc.errors import AddressError, SettingsError, TicketError
from echo_rtc.participant.addresses import AllowedHosts
from echo_rtc.participant.tickets import read_ticket
from tests.participant.rig import ticket

HOSTS = AllowedHosts.of(
    ["*.livekit.cloud", "LiveKit.example:7880", "10.0.0.7", "[fd00::7]:7880", "ws://localhost:7880"]
)


@pytest.mark.parametrize(
    ("url", "used"),
    [
        ("wss://project.livekit.cloud", "wss://project.livekit.cloud:443"),
        ("WSS://A.B.LiveKit.Cloud:443/", "wss://a.b.livekit.cloud:443"),
        ("wss://livekit.example:7880/some/path", "wss://livekit.example:7880/some/path"),
        ("wss://10.0.0.7", "wss://10.0.0.7:443"),
        ("wss://[fd00::7]:7880", "wss://[fd00::7]:7880"),
        ("ws://localhost:7880", "ws://localhost:7880"),
    ],
)
def test_what_the_operator_named_is_allowed(url: str, used: str) -> None:
    assert HOSTS.checked(url) == used


@pytest.mark.parametrize(
    "url",
    [
        "ws://project.livekit.cloud",
        "https://project.livekit.cloud",
        "wss://livekit.cloud",
        "wss://evil-livekit.cloud",
        "wss://livekit.example",
        "wss://livekit.example:7881",
        "wss://project.livekit.cloud:80",
        "wss://localhost:7880",
        "ws://127.0.0.1:7880",
        "ws://[::1]:7880",
        "wss://10.0.0.8",
        "wss://10.7",
        "wss://0x0a.0.0.7",
        "wss://167772167",
        "wss://012.0.0.7",
        "wss://[::ffff:10.0.0.7]",
        "wss://[fd00:0::7]:7880",
        "wss://user@project.livekit.cloud",
        "wss://project.livekit.cloud@evil.example",
        "wss://evil.example#.livekit.cloud",
        "wss://evil.example?.livekit.cloud",
        "wss://evil.example\\.livekit.cloud",
        "wss://evil.example/.livekit.cloud",
        "wss://project.livekit.cloud?",
        "wss://project.livekit.cloud#",
        "wss://project.livekit.cloud/../x",
        "wss://project.livekit.cloud/a%2f",
        "wss://project.livekit.cloud.",
        "wss://pro ject.livekit.cloud",
        "wss://project.livekit.cloud\n",
        "wss://\u212aroject.livekit.cloud",
        "wss://%6c.livekit.cloud",
        "wss://.livekit.cloud",
        "wss://-.livekit.cloud",
        "wss://project.livekit.cloud:65536",
        "wss://project.livekit.cloud:x",
        "wss://[::1",
        "wss://",
        "wss:project.livekit.cloud",
        "",
        f"wss://{'a' * 600}.livekit.cloud",
    ],
)
def test_what_is_not_named_or_not_plain_is_refused(url: str) -> None:
    with pytest.raises(AddressError):
        HOSTS.checked(url)


@pytest.mark.parametrize(
    "pattern",
    ["*", "*.cloud", "a.*.b", "*.10.0.0.1", "ws://livekit.example", "https://a.b", "a.b/c", "a.b:0", "a.b:70000", ""],
)
def test_patterns_that_cannot_be_are_told(pattern: str) -> None:
    with pytest.raises(SettingsError, match="livekit_host is"):
        AllowedHosts.of([pattern])


def test_without_patterns_nothing_is_allowed() -> None:
    with pytest.raises(AddressError, match="--livekit-host"):
        AllowedHosts().checked("wss://project.livekit.cloud")


def test_a_ticket_says_whose_room_it_is_for() -> None:
    read = read_ticket(ticket("den", "face"))
    assert (read.room, read.identity) == ("den", "face")


@pytest.mark.parametrize(
    ("token", "why"),
    [
        ("", "cannot be read"),
        ("a.b.c", "cannot be read"),
        ("\ud800.b.c", "cannot be read"),
        ("x" * 9000, "more than 8192"),
        (ticket(exp=1), "has expired"),
        (ticket(video={"roomJoin": True}), "does not allow to join"),
        (ticket(video={"room": "den"}), "does not allow to join"),
        (ticket(video="all"), "does not allow to join"),
        (ticket(video={"roomJoin": True, "room": "den", "canPublish": False}), "forbids canPublish"),
        (ticket(identity=""), "names no identity"),
    ],
)
def test_a_ticket_that_cannot_work_is_refused(token: str, why: str) -> None:
    with pytest.raises(TicketError, match=why):
        read_ticket(token)
