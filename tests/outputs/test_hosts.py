"""What --output-host lets through: hosts that are named, at addresses of their kind, whatever tricks a URL has."""

from __future__ import annotations

import pytest
from yarl import URL

from echo_rtc.errors import OutputRefusedError, SettingsError
from echo_rtc.outputs.hosts import CheckedResolver, HostRules

RULES = HostRules.of(
    ["live.example", "*.cdn.example", "http://mediamtx:8889", "10.0.0.5:8443", "[fd00::5]", "http://127.0.0.1:9000"]
)
PUBLIC = HostRules.of(["*"])


@pytest.mark.parametrize(
    "url",
    [
        "https://live.example/whip/room?key=secret",
        "https://LIVE.example.:443/whip",
        "https://a.cdn.example/x",
        "https://a.b.cdn.example/x",
        "http://mediamtx:8889/room/whip",
        "https://10.0.0.5:8443/whip",
        "https://[fd00::5]/whip",
        "https://[fd00:0:0::5]/whip",
        "http://127.0.0.1:9000/whip",
    ],
)
def test_named_hosts_are_allowed(url: str) -> None:
    assert RULES.checked(url).host


@pytest.mark.parametrize(
    "url",
    [
        "https://other.example/whip",
        "https://cdn.example/whip",
        "https://evilcdn.example/whip",
        "https://live.example.evil.example/whip",
        "http://live.example/whip",
        "https://live.example:8443/whip",
        "https://mediamtx:8889/whip",
        "http://mediamtx/whip",
        "https://user@live.example/whip",
        "https://live.example:secret@other.example/whip",
        "https://live.example#@other.example/whip",
        "https://live.example/whip#part",
        "https://other.example\\@live.example/whip",
        "https://live.example\t/whip",
        "https://live.example /whip",
        "https://live%2eexample/whip",
        "ftp://live.example/whip",
        "file:///etc/passwd",
        "//live.example/whip",
        "live.example/whip",
        "http://127.0.0.1/whip",
        "http://127.1:9000/whip",
        "http://2130706433:9000/whip",
        "http://0x7f000001:9000/whip",
        "http://[::ffff:127.0.0.1]:9000/whip",
        "http://[::1]:9000/whip",
        "https://[fd00::5%25eth0]/whip",
        "https://[fe80::1/whip",
        "https:///whip",
        "https://live.example:99999/whip",
        "",
        "https://live.example/" + "a" * 3000,
        "https://\uff4cive.example/whip",
    ],
)
def test_everything_else_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(OutputRefusedError) as refused:
        RULES.checked(url)
    assert "whip" not in str(refused.value).replace("/whip/room", "")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.5", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1", "[::1]"),
        *("127.1", "2130706433", "0177.0.0.1", "0", "0x7f.1", "live.example.1", "127.0.0.0x1", "8.8", "127.0.0.1."),
        *("[fd00::1]", "[fe80::1]", "[::ffff:10.0.0.5]", "[64:ff9b::a00:5]", "[2002:a00:5::1]", "[::]"),
    ],
)
def test_patterns_reach_public_addresses_only(address: str) -> None:
    with pytest.raises(OutputRefusedError):
        PUBLIC.checked(f"https://{address}/whip")


async def test_names_are_what_they_stand_for() -> None:
    own = HostRules.of(["http://localhost:9000"])
    [*found] = await CheckedResolver(own).resolve("localhost", 9000)
    assert {each["host"] for each in found} <= {"127.0.0.1", "::1"}
    for rules, name in (PUBLIC, "localhost"), (PUBLIC, "127.1"), (PUBLIC, "2130706433"), (PUBLIC, "0x7f.1"):
        with pytest.raises(OSError, match="no address that may be pushed to"):
            await CheckedResolver(rules).resolve(name, 443)
    with pytest.raises(OSError, match="no address"):
        await CheckedResolver(HostRules.of(["169.254.169.254"])).resolve("169.254.169.254", 443)


@pytest.mark.parametrize(
    "rule", ["", "https://", "live.example/whip", "user@live.example", "*.*", "a.*.example", "x:0", "127.1", "*.0x7f"]
)
def test_rules_that_cannot_be_are_told(rule: str) -> None:
    with pytest.raises(SettingsError, match="output_host is"):
        HostRules.of([rule])


def test_a_url_is_read_by_the_client_that_uses_it() -> None:
    assert isinstance(RULES.checked("https://live.example/whip"), URL)
