"""The WHIP client against scripted servers: redirects, sessions, tokens, errors and limits of answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import ResolveResult
from aiohttp.test_utils import TestServer

from echo_rtc.errors import OutputRefusedError
from echo_rtc.outputs import whip
from echo_rtc.outputs.hosts import CheckedResolver, HostRules
from echo_rtc.outputs.whip import MAX_ANSWER_BYTES, MAX_ICE_SERVERS, Endpoint, WhipClient, WhipError, linked_servers

ANSWER = "v=0\r\n"
TOKEN = "user:a-token.of~this+server/="


@dataclass
class Scripted:
    """Answers each path with (status, headers, body); records method, path and token of each request."""

    url: str = ""
    answers: dict[str, tuple[int, Mapping[str, str], bytes]] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    def will(self, path: str, status: int, body: bytes = b"", **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers[path] = (status, named, body)

    def creates(self, path: str, location: str) -> None:
        self.will(path, 201, ANSWER.encode(), Content_Type="application/sdp", Location=location)

    async def handle(self, request: web.Request) -> web.Response:
        self.requests.append((request.method, request.path_qs, request.headers.get("Authorization")))
        status, headers, body = self.answers.get(request.path, (404, {}, b""))
        return web.Response(status=status, headers=headers, body=body)


@asynccontextmanager
async def scripted() -> AsyncIterator[Scripted]:
    made = Scripted()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.handle)
    server = TestServer(app)
    await server.start_server()
    made.url = str(server.make_url("")).rstrip("/")
    try:
        yield made
    finally:
        await server.close()


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    async with scripted() as made:
        yield made


@pytest.fixture
async def other() -> AsyncIterator[Scripted]:
    async with scripted() as made:
        yield made


def endpoint_of(server: Scripted, path: str, rules: HostRules) -> Endpoint:
    return Endpoint.of(f"{server.url}{path}", TOKEN, rules)


@pytest.mark.parametrize("location", ["session", "/a/session", "?id=7", "{url}/a/session?id=7"])
async def test_a_session_is_found_and_ended(server: Scripted, location: str) -> None:
    rules = HostRules.of([server.url])
    server.creates("/a/whip", location.format(url=server.url))
    client, endpoint = WhipClient(rules), endpoint_of(server, "/a/whip", rules)
    session = await client.open(endpoint, "offer")
    assert session.answer == ANSWER
    await client.close(endpoint, session)
    assert [method for method, _, _ in server.requests] == ["POST", "DELETE"]
    assert server.requests[1][1] in ("/a/session", "/a/whip?id=7", "/a/session?id=7")
    assert {token for _, _, token in server.requests} == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("status", [307, 308])
async def test_redirects_are_followed_without_the_token(server: Scripted, other: Scripted, status: int) -> None:
    rules = HostRules.of([server.url, other.url])
    server.will("/whip", status, Location="/second")
    server.will("/second", status, Location=f"{other.url}/third")
    other.creates("/third", "session")
    client, endpoint = WhipClient(rules), endpoint_of(server, "/whip", rules)
    session = await client.open(endpoint, "offer")
    await client.close(endpoint, session)
    assert [path for _, path, _ in server.requests] == ["/whip", "/second"]
    assert other.requests == [("POST", "/third", None), ("DELETE", "/session", None)]


async def test_what_leads_elsewhere_is_not_followed(server: Scripted, other: Scripted) -> None:
    rules = HostRules.of([server.url])
    for path, location in ("/far", other.url), ("/user", "http://user@127.0.0.1/"), ("/net", "//169.254.169.254/"):
        server.will(path, 307, Location=location)
        with pytest.raises(WhipError, match="cannot be followed") as refused:
            await WhipClient(rules).open(endpoint_of(server, path, rules), "offer")
        assert refused.value.lasting
    server.creates("/session", f"{other.url}/session")
    with pytest.raises(WhipError, match=r"the session of .* cannot be followed"):
        await WhipClient(rules).open(endpoint_of(server, "/session", rules), "offer")
    server.will("/round", 307, Location="/round")
    with pytest.raises(WhipError, match="more than 3 times"):
        await WhipClient(rules).open(endpoint_of(server, "/round", rules), "offer")
    assert other.requests == []


@pytest.mark.parametrize(
    ("status", "headers", "lasting", "after_s"),
    [
        (200, {}, True, 0),
        (302, {"Location": "/elsewhere"}, True, 0),
        (401, {}, True, 0),
        (404, {}, False, 0),
        (409, {}, False, 0),
        (429, {"Retry_After": "7"}, False, 7),
        (503, {"Retry_After": "99999"}, False, 300),
        (503, {"Retry_After": "Fri, 31 Dec 1999 23:59:59 GMT"}, False, 0),
    ],
)
async def test_refusals_say_whether_they_last(
    server: Scripted, status: int, headers: dict[str, str], lasting: bool, after_s: float
) -> None:
    rules = HostRules.of([server.url])
    server.will("/secret-path", status, b"secret body", **headers)
    with pytest.raises(WhipError) as refused:
        await WhipClient(rules).open(endpoint_of(server, "/secret-path", rules), "offer")
    assert (refused.value.lasting, refused.value.retry_after_s) == (lasting, after_s)
    assert str(refused.value) == f"{server.url} answers {status}"
    assert len(server.requests) == 1


async def test_answers_are_bounded_and_read_as_what_they_are(server: Scripted) -> None:
    rules = HostRules.of([server.url])
    server.will("/large", 201, b"v" * (MAX_ANSWER_BYTES + 1), Content_Type="application/sdp")
    server.will("/html", 201, b"<html>", Content_Type="text/html")
    server.will("/binary", 201, b"\xff\xfe", Content_Type="application/sdp")
    server.will("/packed", 201, b"v=0", Content_Type="application/sdp", Content_Encoding="gzip")
    for path in ("/large", "/html", "/binary", "/packed"):
        with pytest.raises(WhipError, match="answers with") as refused:
            await WhipClient(rules).open(endpoint_of(server, path, rules), "offer")
        assert refused.value.lasting


async def test_ice_servers_are_taken_where_they_may_be_reached(server: Scripted) -> None:
    rules = HostRules.of([server.url, "*"])
    link = ", ".join(
        [
            '<stun:192.0.2.1>; rel="ice-server"',
            '<turn:9.9.9.9:3479?transport=udp>; rel="ice-server"; username="a\\"b"; credential="c,d"; '
            'credential-type="password"',
            '<turn:10.0.0.5>; rel="ice-server"; username="a"; credential="b"',
            '<turns:9.9.9.9>; rel="ice-server"',
            '<http://9.9.9.9/>; rel="next"',
            '<turn:localhost>; rel="ice-server"',
        ]
    )
    server.will("/whip", 204, Link=link)
    found = await WhipClient(rules).ice_servers(endpoint_of(server, "/whip", rules))
    assert [(each.url, each.username, each.credential) for each in found] == [
        ("turn:9.9.9.9:3479?transport=udp", 'a"b', "c,d")
    ]
    assert "c,d" not in repr(found)
    assert await WhipClient(rules).ice_servers(endpoint_of(server, "/none", rules)) == ()


async def test_lookups_of_named_servers_are_bounded(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    looked_up = CheckedResolver.resolve

    async def unknown(resolver: CheckedResolver, host: str, *place: Any, **family: Any) -> list[ResolveResult]:
        if not host.endswith(".invalid"):
            return await looked_up(resolver, host, *place, **family)
        asked.append(host)
        if host.startswith("slow"):
            await asyncio.Event().wait()
        raise OSError(None, "unknown")

    monkeypatch.setattr(CheckedResolver, "resolve", unknown)
    rules = HostRules.of([server.url])
    server.will("/many", 204, Link=", ".join(f'<stun:{n}.invalid>; rel="ice-server"' for n in range(100)))
    assert await WhipClient(rules).ice_servers(endpoint_of(server, "/many", rules)) == ()
    assert asked == [f"{n}.invalid" for n in range(MAX_ICE_SERVERS)]
    monkeypatch.setattr(whip, "HTTP_TIMEOUT_S", 0.1)
    server.will("/slow", 204, Link='<stun:slow.invalid>; rel="ice-server"')
    async with asyncio.timeout(5):
        assert await WhipClient(rules).ice_servers(endpoint_of(server, "/slow", rules)) == ()


def test_links_are_read_whatever_is_in_them() -> None:
    assert linked_servers(["", "<", "<stun:a>", '<stun:a>; rel="ice-server', '<a>; rel=ice-server; rel="x"']) == []
    assert linked_servers(["<stun:a>;rel=ice-server,<stun:b>; REL=ice-server"]) == [
        ("stun:a", None, None),
        ("stun:b", None, None),
    ]
    assert len(linked_servers(["<" * 100_000, '<a>; x="\\' * 2_000])) == 0


def test_a_token_is_one_and_is_never_shown() -> None:
    rules = HostRules.of(["live.example"])
    for bearer in ("", "two words", "line\nbreak", "x" * 5_000, "\u00e9"):
        with pytest.raises(OutputRefusedError) as refused:
            Endpoint.of("https://live.example/whip", bearer, rules)
        assert not bearer or bearer not in str(refused.value)
    assert TOKEN not in repr(Endpoint.of("https://live.example/whip", TOKEN, rules))
