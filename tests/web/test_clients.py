"""Whose request it is, behind proxies that are trusted and ones that are not."""

from __future__ import annotations

import ipaddress
from typing import Any
from unittest.mock import Mock

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from echo_rtc.errors import SettingsError
from echo_rtc.web.clients import UNKNOWN_ADDRESS, Clients, rate_limit_key

BEHIND = Clients.of(["10.0.0.0/8", "127.0.0.1", "2001:db8::/32"])


def request(remote: str | None, *forwarded: str, **headers: str) -> web.Request:
    headers = {"Host": "localhost:8080", **headers}
    values: list[tuple[str, Any]] = [("X-Forwarded-For", text) for text in forwarded]
    values += [(name.replace("_", "-"), text) for name, text in headers.items()]
    transport = Mock()
    transport.get_extra_info.side_effect = lambda key, default=None: (
        (remote, 4711) if key == "peername" and remote else default
    )
    return make_mocked_request("GET", "/", headers=CIMultiDict(values), transport=transport)


@pytest.mark.parametrize(
    ("remote", "forwarded", "expected"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.7"], "192.0.2.1"),
        ("10.1.1.1", ["198.51.100.7"], "198.51.100.7"),
        ("10.1.1.1", ["1.2.3.4, 198.51.100.7"], "198.51.100.7"),
        ("10.1.1.1", ["1.2.3.4", "198.51.100.7"], "198.51.100.7"),
        ("10.1.1.1", ["198.51.100.7, 10.2.2.2"], "198.51.100.7"),
        ("10.1.1.1", ["198.51.100.7, 10.2.2.2", " 10.3.3.3 , "], "198.51.100.7"),
        ("10.1.1.1", ["10.9.9.9"], "10.9.9.9"),
        ("10.1.1.1", ["198.51.100.7:4711"], "198.51.100.7"),
        ("10.1.1.1", ["[2001:db9::7]:4711, [2001:db8::1]"], "2001:db9::7"),
        ("10.1.1.1", ["unknown"], "10.1.1.1"),
        ("10.1.1.1", [], "10.1.1.1"),
        ("2001:db8::1", ["2001:db9::7"], "2001:db9::7"),
        ("::ffff:10.1.1.1", ["::ffff:198.51.100.7"], "198.51.100.7"),
        (None, ["198.51.100.7"], str(UNKNOWN_ADDRESS)),
    ],
)
def test_the_client_is_the_nearest_address_of_no_trusted_proxy(
    remote: str | None, forwarded: list[str], expected: str
) -> None:
    assert str(BEHIND.address(request(remote, *forwarded))) == expected


def test_only_this_machine_is_this_machine() -> None:
    alone = Clients()
    assert alone.on_this_machine(request("127.0.0.1"))
    assert alone.on_this_machine(request("::1"))
    assert not alone.on_this_machine(request("192.0.2.1"))
    assert not alone.on_this_machine(request(None))
    # A proxy on this machine speaks for others, and says so.
    assert not alone.on_this_machine(request("127.0.0.1", "127.0.0.1"))
    assert not alone.on_this_machine(request("127.0.0.1", Forwarded="for=192.0.2.1"))
    # A page from elsewhere has made a name of its own lead here.
    for host, here in (("evil.example:8080", False), ("localhost.evil.example", False), ("", False), ("[", False)):
        assert alone.on_this_machine(request("127.0.0.1", Host=host)) is here
    for host in ("192.0.2.1:8080", "0.0.0.0", "[::2]", "127.0.0.1.evil.example"):
        assert not alone.on_this_machine(request("127.0.0.1", Host=host))
    for host in ("127.0.0.1:8080", "[::1]:8080", "LOCALHOST", "my.localhost:1", "127.1.2.3", "localhost."):
        assert alone.on_this_machine(request("::1", Host=host))
    # Or it asks for what is here under its own name: forms may be sent anywhere.
    for origin in ("https://evil.example", "http://localhost:3000", "http://127.0.0.1:8080", "null", ""):
        assert not alone.on_this_machine(request("127.0.0.1", Origin=origin))
    for scheme in ("http", "https"):
        assert alone.on_this_machine(request("127.0.0.1", Origin=f"{scheme}://localhost:8080"))
    assert BEHIND.on_this_machine(request("127.0.0.1", "127.0.0.1"))
    assert not BEHIND.on_this_machine(request("127.0.0.1", "127.0.0.1", Host="avatars.example"))
    # That a proxy of this machine is trusted says nothing of what did not come through it.
    assert not BEHIND.on_this_machine(request("127.0.0.1", Host="evil.example:8080"))
    assert not BEHIND.on_this_machine(request("127.0.0.1", Origin="https://evil.example"))
    assert not BEHIND.on_this_machine(request("127.0.0.1", "192.0.2.1"))


SIGNS = {
    "X-Forwarded-For": "127.0.0.1",
    "X-Forwarded-Proto": "http",
    "X-Forwarded-Anything": "x",
    "Forwarded": "for=127.0.0.1",
    "Via": "1.1 proxy",
    "X-Real-IP": "127.0.0.1",
    "CF-Connecting-IP": "127.0.0.1",
    "CF-Ray": "1",
    "True-Client-IP": "127.0.0.1",
    "X-Client-IP": "127.0.0.1",
    "Fastly-Client-IP": "127.0.0.1",
    "CDN-Loop": "cloudflare",
}


@pytest.mark.parametrize("sign", SIGNS)
def test_any_sign_of_forwarding_is_forwarding(sign: str) -> None:
    for name in (sign, sign.lower(), sign.upper()):
        assert not Clients().on_this_machine(request("127.0.0.1", **{name.replace("-", "_"): SIGNS[sign]}))


@pytest.mark.parametrize(
    ("headers", "here"),
    [
        ({}, False),  # who writes nothing may speak for anybody
        ({"X_Forwarded_For": "127.0.0.1"}, True),
        ({"X_Forwarded_For": "::1", "X_Real_IP": "::1", "Via": "1.1 proxy", "X_Forwarded_Proto": "https"}, True),
        ({"X_Forwarded_For": "unknown"}, False),
        ({"X_Forwarded_For": "127.0.0.1, unknown"}, False),
        ({"X_Forwarded_For": "unknown, 127.0.0.1"}, False),
        ({"X_Forwarded_For": "198.51.100.7, 127.0.0.1"}, False),
        ({"X_Forwarded_For": ""}, False),
        ({"X_Forwarded_For": "127.0.0.1", "X_Real_IP": "198.51.100.7"}, False),
        ({"X_Forwarded_For": "127.0.0.1", "Forwarded": 'for="[2001:db9::7]";proto=http'}, False),
        ({"X_Forwarded_For": "127.0.0.1", "Forwarded": 'For="127.0.0.1:80";proto=http'}, True),
        ({"X_Forwarded_For": "127.0.0.1", "Forwarded": "for=_hidden"}, False),
        ({"X_Forwarded_For": "127.0.0.1", "CF_Connecting_IP": "127.0.0.1"}, False),
        ({"X_Forwarded_For": "127.0.0.1", "True_Client_IP": "127.0.0.1"}, False),
        ({"X_Real_IP": "127.0.0.1"}, False),
        ({"Forwarded": "for=127.0.0.1"}, False),
    ],
)
def test_a_trusted_proxy_must_say_that_it_is_this_machine(headers: dict[str, str], here: bool) -> None:
    assert BEHIND.on_this_machine(request("127.0.0.1", **headers)) is here


def test_an_ipv6_network_is_one_client() -> None:
    one, two = ipaddress.ip_address("2001:db8:1:2::1"), ipaddress.ip_address("2001:db8:1:2:ffff::9")
    assert rate_limit_key(one) == rate_limit_key(two) != rate_limit_key(ipaddress.ip_address("2001:db8:1:3::1"))
    assert rate_limit_key(ipaddress.ip_address("192.0.2.1")) == "192.0.2.1"


def test_a_proxy_that_cannot_be_is_one_sentence() -> None:
    for text in ("10.0.0.1/8", "10.0.0.0/99", "1.2.3"):
        with pytest.raises(SettingsError, match="it must be an address such as"):
            Clients.of([text])
