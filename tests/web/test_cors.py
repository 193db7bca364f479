"""Pages of other origins: none by default, the listed ones with all they need; preflights need no token."""

from __future__ import annotations

import pytest

from echo_rtc.errors import SettingsError
from echo_rtc.web.app import Access
from echo_rtc.web.auth import Authorisation
from echo_rtc.web.cors import CrossOrigin
from tests.web.conftest import Edge, MakeEdge

APP = "https://app.example"
OFFER = {"sdp": "v=0", "type": "offer"}


def preflight(origin: str, method: str) -> dict[str, str]:
    return {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type",
    }


@pytest.fixture
async def shared(make_edge: MakeEdge) -> Edge:
    """Locked, and open to the pages of one other origin."""
    return await make_edge(
        Access(authorisation=Authorisation.of("a-token-for-everything", None), cross_origin=CrossOrigin.of([APP]))
    )


async def test_by_default_no_other_origin_is_told_anything(edge: Edge) -> None:
    for headers in ({}, {"Origin": APP}):
        async with edge.client.get("/config", headers=headers) as response:
            assert response.status == 200
            assert not [name for name in response.headers if name.startswith("Access-Control-")]
            assert "Vary" not in response.headers
    async with edge.client.options("/offer", headers=preflight(APP, "POST")) as response:
        assert response.status == 405
        assert not [name for name in response.headers if name.startswith("Access-Control-")]


@pytest.mark.parametrize(("path", "methods"), [("/offer", "POST"), ("/streams/x", "DELETE, GET, HEAD")])
async def test_a_preflight_is_answered_without_a_token(shared: Edge, path: str, methods: str) -> None:
    async with shared.client.options(path, headers=preflight(APP, "POST")) as response:
        assert response.status == 204
        assert response.headers["Access-Control-Allow-Origin"] == APP
        assert response.headers["Access-Control-Allow-Methods"] == methods
        assert set(response.headers["Access-Control-Allow-Headers"].split(", ")) == {
            "Authorization",
            "Content-Type",
            "If-Match",
        }
        assert "Origin" in response.headers["Vary"]
        assert await response.read() == b""


async def test_an_answer_can_be_read_with_its_headers_whatever_it_says(shared: Edge) -> None:
    for headers, status in (({}, 401), ({"Authorization": "Bearer a-token-for-everything"}, 200)):
        async with shared.client.post("/offer", json=OFFER, headers={"Origin": APP, **headers}) as response:
            assert response.status == status
            assert response.headers["Access-Control-Allow-Origin"] == APP
            assert {"Location", "ETag", "Link"} <= set(response.headers["Access-Control-Expose-Headers"].split(", "))
            assert "Access-Control-Allow-Credentials" not in response.headers
    async with shared.client.get("/static/app.js", headers={"Origin": APP}) as response:
        assert response.headers["Access-Control-Allow-Origin"] == APP
        assert response.headers["Cross-Origin-Resource-Policy"] == "cross-origin"


@pytest.mark.parametrize("other", ["https://evil.example", "http://app.example", f"{APP}.evil.example", "null", ""])
async def test_an_origin_that_is_not_listed_reads_nothing(shared: Edge, other: str) -> None:
    async with shared.client.options("/offer", headers=preflight(other, "POST")) as response:
        assert response.status == 405
        assert "Access-Control-Allow-Origin" not in response.headers
        assert "Access-Control-Allow-Methods" not in response.headers
    async with shared.client.get("/config", headers={"Origin": other}) as response:
        assert "Access-Control-Allow-Origin" not in response.headers
        # Caches must not give this answer to a page that may read it, nor the other way round.
        assert response.headers["Vary"] == "Origin"


async def test_all_origins_may_be_listed(make_edge: MakeEdge) -> None:
    open_to_all = await make_edge(Access(cross_origin=CrossOrigin.of(["*"])))
    async with open_to_all.client.get("/config", headers={"Origin": APP}) as response:
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        assert "Vary" not in response.headers
    async with open_to_all.client.options("/offer", headers=preflight("null", "POST")) as response:
        assert response.status == 204


async def test_a_path_that_is_not_there_stays_so(shared: Edge) -> None:
    async with shared.client.options("/nothing", headers=preflight(APP, "GET")) as response:
        assert response.status == 404
        assert "Access-Control-Allow-Methods" not in response.headers


def test_origins_are_compared_as_browsers_write_them() -> None:
    given = ["HTTPS://App.Example/", "http://localhost:80", "https://[2001:DB8::1]:8443", "capacitor://localhost"]
    assert CrossOrigin.of(given).origins == {
        APP,
        "http://localhost",
        "https://[2001:db8::1]:8443",
        "capacitor://localhost",
    }


@pytest.mark.parametrize(
    "text", ["app.example", "https://", "https://a/b", "https://a?x", "https://u:p@a", "https://a:port", "https://[::1"]
)
def test_what_is_no_origin_is_one_sentence(text: str) -> None:
    with pytest.raises(SettingsError, match="it must be an origin such as"):
        CrossOrigin.of([text])
