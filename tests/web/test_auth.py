"""Tokens: which opens what, which is refused in which words, and that none is ever repeated."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from dataclasses import replace

import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from echo_rtc.web.app import Access
from echo_rtc.web.auth import (
    ADMINISTRATION,
    EVERYTHING,
    GRANT,
    LEEWAY_S,
    NOTHING,
    Authorisation,
    Grant,
    Right,
    Scope,
    authorise,
    mint,
    require_name,
)
from echo_rtc.web.problems import Problem, ProblemType
from tests.web.conftest import Edge, MakeEdge

TOKEN = "a-token-for-everything"
SECRET = "a-secret-that-is-long-enough-for-HS256"
LOCKED = Authorisation.of(TOKEN, SECRET)
OFFER = {"sdp": "v=0", "type": "offer"}
CALL = frozenset({Right.PUBLISH, Right.VIEW})


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def signed(rights: frozenset[Right] = CALL, name: str | None = "studio", secret: str = SECRET) -> str:
    return mint(secret, rights, name, 60)


@pytest.fixture
async def locked(make_edge: MakeEdge) -> Edge:
    return await make_edge(Access(authorisation=LOCKED))


async def test_without_a_token_the_page_opens_and_a_call_does_not(locked: Edge) -> None:
    for path in ("/", "/static/app.js", "/config", "/healthz", "/readyz"):
        async with locked.client.get(path) as response:
            assert response.status == 200, path
    async with locked.client.post("/offer", json=OFFER) as response:
        problem = await response.json(content_type="application/problem+json")
        assert response.status == problem["status"] == 401
        assert problem["type"] == ProblemType.UNAUTHORISED
        assert response.headers["WWW-Authenticate"] == 'Bearer realm="echo_rtc"'
    assert locked.streams.offers == []


@pytest.mark.parametrize("kind", ["Bearer", "bearer", "BEARER"])
async def test_the_token_for_everything_opens_a_call(locked: Edge, kind: str) -> None:
    async with locked.client.post("/offer", json=OFFER, headers={"Authorization": f"{kind} {TOKEN}"}) as response:
        assert response.status == 200


async def test_a_signed_token_opens_what_its_scope_says(locked: Edge) -> None:
    async with locked.client.post("/offer", json=OFFER, headers=bearer(signed())) as response:
        assert response.status == 200
    assert locked.streams.names == ["studio"]
    async with locked.client.post("/offer", json={**OFFER, "name": "other"}, headers=bearer(signed())) as response:
        assert response.status == 403
    for rights, missing in ((frozenset({Right.VIEW}), "publish"), (frozenset({Right.PUBLISH}), "view")):
        async with locked.client.post("/offer", json=OFFER, headers=bearer(signed(rights))) as response:
            problem = await response.json(content_type="application/problem+json")
            assert response.status == 403
            assert problem["type"] == ProblemType.FORBIDDEN
            assert f"must have the scope {missing}" in problem["detail"]
            challenge = response.headers["WWW-Authenticate"]
            assert 'error="insufficient_scope"' in challenge
            assert 'scope="publish view"' in challenge


def forged(**claims: object) -> str:
    return jwt.encode({"exp": 2**33, "scope": "publish view", "name": "studio", **claims}, SECRET, "HS256")


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (TOKEN + "x", "not one of this server's"),
        (TOKEN[:-1], "not one of this server's"),
        ("\xe9\xe8", "not one of this server's"),
        ("a.b.c", "not one of this server's"),
        ("x" * 5000, "not one of this server's"),
        (signed(secret="another secret that is long enough too"), "not one of this server's"),
        (jwt.encode({"exp": 2**33, "scope": "publish view", "name": "x"}, "", "none"), "not one of this server's"),
        (jwt.encode({"exp": 2**33, "scope": "publish view", "name": "x"}, SECRET * 2, "HS512"), "not one of this"),
        (jwt.encode({"scope": "publish view", "name": "studio"}, SECRET, "HS256"), "not one of this server's"),
        (jwt.encode({"exp": float("inf"), "scope": "view", "name": "x"}, SECRET, "HS256"), "not one of this server's"),
        (f"{base64.urlsafe_b64encode(b'[' * 2500).decode()}.e30.e30", "not one of this server's"),
        (forged(exp="soon"), "not one of this server's"),
        (mint(SECRET, CALL, "studio", 60, now_s=1_000_000), "has expired"),
        (forged(scope=""), "scope must be of the words"),
        (forged(scope=None), "scope must be of the words"),
        (forged(scope=["publish"]), "scope must be of the words"),
        (forged(scope="publish everything"), "scope must be of the words"),
        (forged(name=7), "name must be the name of a stream"),
        (forged(name=""), "name must be the name of a stream"),
        (forged(name="a stream"), "name must be the name of a stream"),
        (forged(name="x" * 200), "name must be the name of a stream"),
        (forged(name=None), "no name of a stream"),
        (forged(scope="admin publish view"), "admin cannot be for one stream"),
    ],
)
async def test_a_token_that_is_no_good_is_a_401_with_the_reason(locked: Edge, token: str, words: str) -> None:
    async with locked.client.post("/offer", json=OFFER, headers=bearer(token)) as response:
        problem = await response.json(content_type="application/problem+json")
        assert response.status == 401
        assert words in problem["detail"]
        assert 'error="invalid_token"' in response.headers["WWW-Authenticate"]
        assert problem["detail"] in response.headers["WWW-Authenticate"]
        assert token not in await response.text()


async def test_an_unreadable_header_counts_as_none(locked: Edge) -> None:
    for value in ("", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", TOKEN):
        async with locked.client.post("/offer", json=OFFER, headers={"Authorization": value}) as response:
            assert response.status == 401
            assert "error=" not in response.headers["WWW-Authenticate"]


async def test_bytes_that_are_no_text_are_no_token(locked: Edge) -> None:
    reader, writer = await asyncio.open_connection(locked.client.host, locked.client.port)
    head = b"POST /offer HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n"
    writer.write(head + b"Authorization: Bearer \xff\xfe.\xff.\xff\r\n\r\n")
    assert b" 401 " in await reader.readline()
    writer.close()
    await writer.wait_closed()


async def test_a_token_elsewhere_than_in_the_header_counts_for_nothing(locked: Edge) -> None:
    async with locked.client.post(f"/offer?token={TOKEN}&access_token={TOKEN}", json=OFFER) as response:
        assert response.status == 401


async def test_what_was_opened_is_watched_and_ended_by_its_address(locked: Edge) -> None:
    async with locked.client.get("/streams/known-id") as response:
        assert response.status == 200
    async with locked.client.delete("/streams/known-id", headers=bearer("expired")) as response:
        assert response.status == 204


async def test_who_was_let_in_needs_no_token_to_go_on_and_to_leave(locked: Edge) -> None:
    sdp = {"Content-Type": "application/sdp"}
    for path, right in (("/whip/studio", Right.PUBLISH), ("/whep/studio", Right.VIEW)):
        async with locked.client.post(path, data="v=0", headers=sdp) as response:
            assert response.status == 401
        async with locked.client.post(
            path, data="v=0", headers={**sdp, **bearer(signed(frozenset({right})))}
        ) as response:
            assert response.status == 201
            place, tag = response.headers["Location"], response.headers["ETag"]
        fragment = {"Content-Type": "application/trickle-ice-sdpfrag", "If-Match": tag}
        async with locked.client.patch(place, data="a=end-of-candidates", headers=fragment) as response:
            assert response.status == 204
        async with locked.client.delete(place) as response:
            assert response.status == 200


async def test_routes_that_are_not_there_ask_for_nothing(locked: Edge) -> None:
    async with locked.client.get("/nothing") as response:
        assert response.status == 404
    async with locked.client.get("/offer") as response:
        assert response.status == 405
    async with locked.client.options("/offer") as response:
        assert response.status == 405


async def test_turn_credentials_need_a_token_with_rights(make_edge: MakeEdge) -> None:
    servers = [{"urls": "turn:turn.example", "username": "ann", "credential": "pass"}]
    for authorisation, token, told in (
        (LOCKED, None, []),
        (LOCKED, "wrong", []),
        (LOCKED, signed(), servers),
        (LOCKED, TOKEN, servers),
        (Authorisation(), None, servers),
    ):
        edge = await make_edge(Access(authorisation=authorisation), ice_servers=servers)
        headers = {} if token is None else bearer(token)
        async with edge.client.get("/config", headers=headers) as response:
            assert response.status == 200
            assert (await response.json())["ice_servers"] == told
    headers = {**bearer(TOKEN), "Content-Type": "application/sdp"}
    async with edge.client.post("/whip/studio", data="v=0", headers=headers) as response:
        assert response.status == 201
        assert response.headers["Link"] == (
            '<turn:turn.example>; rel="ice-server"; username="ann"; credential="pass"; credential-type="password"'
        )


async def test_no_token_is_ever_logged(locked: Edge, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    locked.streams.failure = RuntimeError("an internal error is logged with its request")
    for token in (TOKEN, signed(), signed(frozenset({Right.VIEW})), TOKEN + "x"):
        async with locked.client.post("/offer", json=OFFER, headers=bearer(token)) as response:
            assert response.status in {401, 403, 500}
        assert token not in caplog.text
    assert "POST /offer failed" in caplog.text


def request(name: str | None = None, token: str | None = None) -> web.Request:
    match = {} if name is None else {"name": name}
    return make_mocked_request("POST", "/x", headers={} if token is None else bearer(token), match_info=match)


def allowed(made: web.Request, scope: Scope, authorisation: Authorisation = LOCKED) -> Grant | int:
    """The grant, or the status of the refusal."""
    try:
        return authorise(made, scope, authorisation)
    except Problem as problem:
        return problem.status


def test_the_name_in_the_address_must_be_the_tokens() -> None:
    publish = signed(frozenset({Right.PUBLISH}))
    assert allowed(request("studio", publish), Scope.PUBLISH) == Grant(frozenset({Right.PUBLISH}), "studio")
    assert allowed(request("Studio", publish), Scope.PUBLISH) == 403
    assert allowed(request("studio", publish), Scope.VIEW) == 403
    assert allowed(request("anything", TOKEN), Scope.PUBLISH) == EVERYTHING
    assert allowed(request("studio", signed()), Scope.VIEW) == Grant(CALL, "studio")


def test_the_name_in_a_body_must_be_the_tokens() -> None:
    made = request()
    made[GRANT] = Grant(CALL, "studio")
    require_name(made, "studio")
    for other in ("other", None):
        with pytest.raises(Problem) as refused:
            require_name(made, other)
        assert refused.value.status == 403
    made[GRANT] = EVERYTHING
    require_name(made, None)
    require_name(made, "other")


def test_administration_needs_its_own_scope() -> None:
    admin = mint(SECRET, frozenset({Right.ADMIN}), None, 60)
    assert allowed(request(token=admin), Scope.ADMIN) == Grant(frozenset({Right.ADMIN}))
    assert allowed(request(token=signed()), Scope.ADMIN) == 403
    assert allowed(request(token=admin), Scope.CALL) == 403
    assert allowed(request(), Scope.ADMIN) == 401
    assert allowed(request(token=TOKEN), Scope.ADMIN) == EVERYTHING


def test_administration_needs_a_token_where_calls_need_none() -> None:
    unlocked = Authorisation().with_admin()
    assert unlocked.administered
    assert not unlocked.required
    assert unlocked.admin is not None
    assert unlocked.admin != Authorisation().with_admin().admin
    assert allowed(request(token=unlocked.admin), Scope.ADMIN, unlocked) == ADMINISTRATION
    for wrong in (None, "wrong", unlocked.admin[:-1]):
        assert allowed(request(token=wrong), Scope.ADMIN, unlocked) == 401
        assert allowed(request(token=wrong), Scope.ADMIN, Authorisation()) == 401
        for scope in (Scope.CALL, Scope.PUBLISH, Scope.TOKEN, Scope.OPEN):
            assert allowed(request("x", wrong), scope, unlocked) == Grant(CALL)


def test_the_administrators_token_opens_no_call() -> None:
    both = Authorisation.of(TOKEN, SECRET, "the-administrators-token")
    made = request(token="the-administrators-token")
    assert allowed(made, Scope.ADMIN, both) == ADMINISTRATION
    assert allowed(made, Scope.TOKEN, both) == ADMINISTRATION
    assert allowed(made, Scope.CALL, both) == allowed(made, Scope.VIEW, both) == 403


def test_any_token_of_this_server_shows_the_avatars() -> None:
    for token in (TOKEN, signed(), signed(frozenset({Right.VIEW})), mint(SECRET, frozenset({Right.ADMIN}), None, 60)):
        assert isinstance(allowed(request(token=token), Scope.TOKEN), Grant)
    for wrong in (None, "wrong", mint(SECRET, CALL, "studio", 60, now_s=1_000_000)):
        assert allowed(request(token=wrong), Scope.TOKEN) == 401


async def test_avatars_are_hidden_without_the_token(locked: Edge) -> None:
    for path in ("/avatars", "/avatars/ann/preview"):
        async with locked.client.get(path) as response:
            assert response.status == 401, path
        async with locked.client.get(path, headers=bearer(signed())) as response:
            assert response.status == 200, path
    async with locked.client.get("/config") as response:
        assert (await response.json())["avatars"] == []
    async with locked.client.get("/config", headers=bearer(signed())) as response:
        assert (await response.json())["avatars"] == ["ann", "bob"]


def test_critical_headers_are_refused_by_every_version(monkeypatch: pytest.MonkeyPatch) -> None:
    made = jwt.encode({"exp": 2**33, "scope": "admin"}, SECRET, "HS256", headers={"crit": ["exp"], "exp": 1})
    assert allowed(request(token=made), Scope.ADMIN) == 401
    # A version that passes them over.
    older = {"header": {"alg": "HS256", "crit": ["b64"]}, "payload": {"exp": 2**33, "scope": "admin"}}
    monkeypatch.setattr(jwt, "decode_complete", lambda *_, **__: older)
    assert allowed(request(token=made), Scope.ADMIN) == 401


def test_where_nothing_is_asked_a_wrong_token_does_no_harm() -> None:
    for token in (None, "wrong", mint(SECRET, CALL, "studio", 60, now_s=1_000_000)):
        assert allowed(request(token=token), Scope.OPEN) == NOTHING
    assert allowed(request(token=TOKEN), Scope.OPEN) == EVERYTHING


def test_clocks_may_differ_a_little() -> None:
    now = 1_000_000_000.0
    late = jwt.decode(mint(SECRET, CALL, "studio", 60, now), SECRET, ["HS256"], options={"verify_exp": False})
    assert late == {"iat": 1_000_000_000, "exp": 1_000_000_060, "scope": "publish view", "name": "studio"}
    assert LOCKED.grant(mint(SECRET, CALL, "studio", -LEEWAY_S / 2)).name == "studio"
    assert LOCKED.grant(mint(SECRET, CALL, "studio", 60, time.time() + LEEWAY_S / 2)).name == "studio"
    with pytest.raises(Problem):
        LOCKED.grant(mint(SECRET, CALL, "studio", -2 * LEEWAY_S))


def test_a_long_auth_token_signs_where_there_is_no_secret() -> None:
    long = "x" * 32
    assert Authorisation.of(long, None).grant(signed(secret=long)) == Grant(CALL, "studio")
    assert Authorisation.of("x" * 31, None).secret is None
    assert LOCKED.grant(forged(aud="another-service", sub="ann")) == Grant(CALL, "studio")
    assert replace(Authorisation.of(long, SECRET)).secret == SECRET
    assert not Authorisation.of(None, None).required
    assert Authorisation.of(None, SECRET).required
