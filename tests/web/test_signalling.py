"""Calls over HTTP: what is refused before the streams hear of it, and what becomes of their own refusals."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo_rtc.errors import (
    BusyError,
    CapacityError,
    EchoRtcError,
    OfferError,
    RenderError,
    StoppingError,
    UnsupportedMediaError,
)
from echo_rtc.web import signalling
from echo_rtc.web.app import Access
from echo_rtc.web.auth import Authorisation
from echo_rtc.web.health import Phase
from echo_rtc.web.problems import Problem
from echo_rtc.web.signalling import MAX_OFFER_BYTES, OfferBody, parse_offer
from tests.web.conftest import Edge, MakeEdge

GOOD = {"sdp": "v=0 offer", "type": "offer"}
JSON = {"Content-Type": "application/json"}


async def refused(edge: Edge, body: Any, status: int, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """Posts ``body`` (bytes, or something for JSON), expects a problem with ``status`` and returns it."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with edge.client.post("/offer", data=data, headers={**JSON, **(headers or {})}) as response:
        problem: dict[str, Any] = await response.json(content_type="application/problem+json")
        assert response.status == problem["status"] == status
        assert set(problem) == {"type", "title", "status", "detail"}
        assert problem["detail"].endswith(".")
        if status == 503:
            assert int(response.headers["Retry-After"]) > 0
        return problem


async def test_an_offer_is_answered(edge: Edge) -> None:
    async with edge.client.post("/offer", json={**GOOD, "avatar": "bob"}) as response:
        assert response.status == 200
        assert response.content_type == "application/json"
        assert response.headers["Cache-Control"] == "no-store"
        assert await response.json() == {"sdp": "v=0 answer", "type": "answer", "stream": "new-id"}
    assert edge.streams.offers == [("v=0 offer", "bob")]
    assert edge.streams.names == [None]


async def test_a_call_may_have_a_name(edge: Edge) -> None:
    async with edge.client.post("/offer", json={**GOOD, "name": "studio"}) as response:
        assert response.status == 200
    assert edge.streams.names == ["studio"]


async def test_a_call_may_be_of_pushed_speech(edge: Edge) -> None:
    for source in ({"source": "pushed"}, {"source": "microphone"}, {}):
        async with edge.client.post("/offer", json={**GOOD, **source}) as response:
            assert response.status == 200
    assert edge.streams.pushed == [True, False, False]


async def test_without_a_choice_the_first_avatar_speaks(edge: Edge) -> None:
    for body in (GOOD, {**GOOD, "avatar": None}):
        async with edge.client.post(
            "/offer", data=json.dumps(body), headers={"Content-Type": "application/json; charset=utf-8"}
        ) as response:
            assert response.status == 200
    assert edge.streams.offers == [("v=0 offer", "ann")] * 2


@pytest.mark.parametrize("content_type", ["text/plain", "application/sdp", "application/jsonp", "nonsense", ""])
async def test_another_content_type_is_415(edge: Edge, content_type: str) -> None:
    problem = await refused(edge, GOOD, 415, {"Content-Type": content_type})
    assert "send application/json" in problem["detail"]
    assert edge.streams.offers == []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 60_000, "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"type": "offer", "sdp": ' + b"9" * 5000 + b"}", "not JSON"),
        ([GOOD], "not a JSON object"),
        ("offer", "not a JSON object"),
        ({}, "type is missing; it must be 'offer'"),
        ({"sdp": "v=0", "type": "answer"}, "type is 'answer'"),
        ({"sdp": "v=0", "type": ["offer"]}, "type is ['offer']"),
        ({"type": "offer"}, "sdp is missing; it must be the session description"),
        ({"type": "offer", "sdp": 5}, "sdp is 5"),
        ({"type": "offer", "sdp": "  "}, "sdp is '  '"),
        ({"type": "offer", "sdp": "v=0 \ud800"}, "The body is not JSON"),
        ({**GOOD, "avatar": {"a": "b" * 500}}, "..."),
        ({**GOOD, "name": 7}, "name is 7; it must be the stream's name"),
        ({**GOOD, "source": "radio"}, "source is 'radio'; it must be 'microphone' or 'pushed'"),
        ({**GOOD, "source": []}, "source is []"),
        ({**GOOD, "source": "livekit"}, "source is 'livekit'"),
    ],
)
async def test_a_body_that_is_no_offer_is_400(edge: Edge, body: Any, words: str) -> None:
    problem = await refused(edge, body, 400)
    assert words in problem["detail"]
    assert problem["type"].endswith(":bad-offer")
    assert edge.streams.offers == []


@given(
    st.binary(max_size=300)
    | st.recursive(
        st.none() | st.booleans() | st.text(),
        lambda s: st.dictionaries(st.sampled_from(["sdp", "type", "avatar", "x"]), s),
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_body_is_an_offer_or_a_400(body: bytes) -> None:
    try:
        offer = parse_offer(body)
    except Problem as problem:
        status = problem.status
    else:
        status = 200
        assert isinstance(offer, OfferBody)
        assert offer.sdp.strip()
    assert status in {200, 400}


async def test_a_body_over_the_limit_is_413(edge: Edge) -> None:
    big = json.dumps({**GOOD, "sdp": "x" * MAX_OFFER_BYTES}).encode()
    assert "64 KiB" in (await refused(edge, big, 413))["detail"]


async def test_a_body_over_the_limit_is_413_without_a_length(edge: Edge) -> None:
    async def chunks() -> Any:
        for _ in range(MAX_OFFER_BYTES // 1024 + 2):
            yield b"x" * 1024

    async with edge.client.post("/offer", data=chunks(), headers=JSON) as response:
        assert response.status == 413
    assert edge.streams.offers == []


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "GZIP", "identity, gzip", "x-unheard-of"])
@pytest.mark.parametrize("path", ["/offer", "/nothing", "/healthz", "/whip/x"])
async def test_a_packed_body_is_415_and_never_unpacked(edge: Edge, encoding: str, path: str) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(bomb)}\r\n\r\n"
    answer = await raw(edge, head.encode() + bomb[:100])
    assert answer.startswith(b"HTTP/1.1 415 ")
    assert b"Connection: close" in answer
    assert b"Accept-Encoding: identity" in answer


async def test_identity_is_no_encoding(edge: Edge) -> None:
    async with edge.client.post("/offer", json=GOOD, headers={"Content-Encoding": "identity"}) as response:
        assert response.status == 200


async def test_a_body_is_asked_for_once_its_sender_is_known(make_edge: MakeEdge) -> None:
    edge = await make_edge(Access(authorisation=Authorisation("a-token-for-everything")))
    body = json.dumps(GOOD).encode()
    head = (
        f"POST /offer HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\nExpect: 100-continue"
    )
    head += "\r\nContent-Type: application/json\r\n"
    answer = await raw(edge, f"{head}\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 401 ")
    answer = await raw(edge, f"{head}Authorization: Bearer a-token-for-everything\r\n\r\n".encode() + body)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")


async def test_a_body_at_the_limit_is_read(edge: Edge) -> None:
    body = json.dumps(GOOD).encode()
    async with edge.client.post("/offer", data=body.ljust(MAX_OFFER_BYTES), headers=JSON) as response:
        assert response.status == 200


async def raw(edge: Edge, request: bytes, then: bytes = b"") -> bytes:
    """Sends bytes as they are and reads until the server closes."""
    reader, writer = await asyncio.open_connection(edge.client.host, edge.client.port)
    writer.write(request)
    if then:
        await writer.drain()
        writer.write(then)
        writer.write_eof()
    try:
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


async def test_a_slow_body_is_408_and_the_connection_ends(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signalling, "BODY_TIMEOUT_S", 0.05)
    head = b"POST /offer HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{"
    answer = await raw(edge, head)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in answer


async def test_a_client_that_disconnects_in_its_body_costs_nothing(
    edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    head = b"POST /offer HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n"
    await raw(edge, head, b"{")
    async with edge.client.post("/offer", json=GOOD) as response:
        assert response.status == 200
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("failure", "status", "kind"),
    [
        (OfferError("the session description cannot be read"), 400, "urn:echo-rtc:problem:bad-offer"),
        (UnsupportedMediaError("the offer sends no audio"), 422, "urn:echo-rtc:problem:unsupported-media"),
        (CapacityError("all 2 streams are taken", 17), 503, "urn:echo-rtc:problem:full"),
        (StoppingError("the server is stopping", 17), 503, "urn:echo-rtc:problem:stopping"),
        (BusyError("another one is being prepared", 17), 503, "about:blank"),
        (RenderError("worker is gone"), 500, "about:blank"),
    ],
)
async def test_refusals_of_the_streams_become_statuses(
    edge: Edge, failure: EchoRtcError, status: int, kind: str
) -> None:
    edge.streams.failure = failure
    problem = await refused(edge, GOOD, status)
    assert problem["detail"].lower() == f"{failure}.".lower()
    assert problem["detail"][0].isupper()
    assert problem["type"] == kind


async def test_a_full_server_says_when_to_come_back(edge: Edge) -> None:
    edge.streams.failure = CapacityError("all 2 streams are taken", 17)
    async with edge.client.post("/offer", json=GOOD) as response:
        assert response.headers["Retry-After"] == "17"
        assert response.headers["Cache-Control"] == "no-store"


async def test_a_defect_is_500_and_only_the_log_knows_more(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    edge.streams.failure = ZeroDivisionError("secret inside")
    with caplog.at_level(logging.ERROR):
        problem = await refused(edge, GOOD, 500)
    assert "secret" not in json.dumps(problem)
    assert "secret inside" in caplog.text
    assert "POST /offer failed" in caplog.text


async def test_an_unknown_avatar_is_422(edge: Edge) -> None:
    problem = await refused(edge, {**GOOD, "avatar": "eve"}, 422)
    assert problem["detail"] == "There is no avatar 'eve'; choose one of ann, bob."
    assert problem["type"].endswith(":unknown-avatar")
    assert edge.streams.offers == []


async def test_before_and_after_its_life_the_server_is_503(edge: Edge) -> None:
    for phase in (Phase.STARTING, Phase.STOPPING):
        edge.lifecycle.phase = phase
        problem = await refused(edge, GOOD, 503)
        assert problem["type"] == f"urn:echo-rtc:problem:{phase}"
    assert edge.streams.offers == []


async def test_a_stream_is_watched_and_closed_once(edge: Edge) -> None:
    async with edge.client.get("/streams/known-id") as response:
        assert response.status == 200
        assert await response.json() == {"rendered": 24}
    async with edge.client.delete("/streams/known-id") as response:
        assert response.status == 204
        assert await response.read() == b""
    for method in ("GET", "DELETE"):
        async with edge.client.request(method, "/streams/known-id") as response:
            problem = await response.json(content_type="application/problem+json")
            assert response.status == problem["status"] == 404
            assert problem["type"].endswith(":unknown-stream")
    assert edge.streams.closed[0] == ("known-id", "closed by the client")
