"""The page, its files, health, and what every answer carries."""

from __future__ import annotations

import re
from http import HTTPStatus
from pathlib import Path

import pytest

from echo_rtc.errors import InputError, SettingsError
from echo_rtc.web.app import SECURITY_HEADERS, Access, create_app, routes
from echo_rtc.web.health import Health, Lifecycle, Phase
from echo_rtc.web.pages import frame_sources
from tests.web.conftest import Edge, FakeEngine, FakeLibrary, FakeStreams, MakeEdge, gallery_of

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


async def test_the_page_is_never_kept(edge: Edge) -> None:
    async with edge.client.get("/") as response:
        assert response.status == 200
        assert response.content_type == "text/html"
        assert response.headers["Cache-Control"] == "no-store"
        assert "<title>page" in await response.text()


async def test_files_are_revalidated_and_mostly_not_sent(edge: Edge) -> None:
    async with edge.client.get("/static/app.js") as response:
        assert response.status == 200
        assert response.content_type in {"text/javascript", "application/javascript"}
        assert response.headers["Cache-Control"] == "no-cache"
        tag = response.headers["ETag"]
    async with edge.client.get("/static/app.js", headers={"If-None-Match": tag}) as response:
        assert response.status == 304
    (edge.static / "app.js").write_text("export {}; // newer")
    async with edge.client.get("/static/app.js", headers={"If-None-Match": tag}) as response:
        assert response.status == 200
    async with edge.client.get("/static/sub/style.css") as response:
        assert response.content_type == "text/css"
    async with edge.client.head("/static/app.js") as response:
        assert response.status == 200


async def test_listed_origins_may_frame_the_element_not_the_page(edge: Edge, make_edge: MakeEdge) -> None:
    sources = frame_sources(["self", "https://app.example/", "https://*.example:8443"])
    open_edge = await make_edge(Access(frame_ancestors=sources))
    for client, expected in ((edge.client, "'self'"), (open_edge.client, sources)):
        for path, ancestors in (("/", "'self'"), ("/static/app.js", "'self'"), ("/embed?mode=view#x", expected)):
            async with client.get(path) as response:
                assert response.status == 200
                policies = response.headers.getall("Content-Security-Policy")
                assert [policy.partition("frame-ancestors ")[2] for policy in policies] == [ancestors], path
                assert "default-src 'none'" in policies[0]
    async with open_edge.client.get("/embed") as response:
        assert "<title>frame" in await response.text()
        assert response.headers["Cache-Control"] == "no-store"
    assert sources == "'self' https://app.example https://*.example:8443"


def test_who_may_frame_is_said_as_browsers_read_it() -> None:
    assert frame_sources(["none"]) == frame_sources(["'none'"]) == "'none'"
    assert frame_sources(["*"]) == "*"
    with pytest.raises(SettingsError, match="none stands alone"):
        frame_sources(["none", "https://app.example"])


async def test_the_element_has_an_address_that_stays(edge: Edge) -> None:
    for path, text in {
        "/echo-rtc.js": 'export { EchoRtc } from "./element/element.js";',
        "/element/element.js": "export class EchoRtc {}",
    }.items():
        async with edge.client.get(path) as response:
            assert response.status == 200
            assert response.content_type in {"text/javascript", "application/javascript"}
            assert response.headers["Cache-Control"] == "no-cache"
            assert await response.text() == text


@pytest.mark.parametrize(
    "path",
    [
        "/static/none.js",
        "/static/.hidden",
        "/static/sub",
        "/static/",
        "/static/../outside.txt",
        "/static/%2e%2e/outside.txt",
        "/static/..%2foutside.txt",
        "/static/sub/../../outside.txt",
        "/static//etc/passwd",
        "/static/%00",
        "/static/index.html",
        "/static/echo-rtc.js",
        "/static/element/element.js",
        "/element/none.js",
        "/element/..%2findex.html",
        "/nothing",
    ],
)
async def test_no_path_leads_elsewhere(edge: Edge, path: str) -> None:
    from yarl import URL

    async with edge.client.get(URL(path, encoded=True)) as response:
        problem = await response.json(content_type="application/problem+json")
        assert response.status == problem["status"] == 404
        assert problem["type"] == "about:blank"
        assert problem["title"] == "Not Found"


async def test_a_browser_at_a_wrong_address_is_led_to_a_page(edge: Edge) -> None:
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    for path, meant in {"/index.html": "./", "/admin/": "../admin", "/embed/": "../embed"}.items():
        async with edge.client.get(path, headers=browser, allow_redirects=False) as response:
            assert (response.status, response.headers["Location"]) == (302, meant)
        async with edge.client.get(path) as response:
            assert (response.status, response.content_type) == (404, "application/problem+json")
    for path, home in {"/nope": "./", "/a/b/c": "../../"}.items():
        async with edge.client.get(path, headers=browser) as response:
            assert (response.status, response.content_type) == (404, "text/html")
            assert f'<a href="{home}">' in await response.text()
            assert response.headers["Content-Security-Policy"] == SECURITY_HEADERS["Content-Security-Policy"]
        async with edge.client.post(path, headers=browser) as response:
            assert response.content_type == "application/problem+json"


async def test_every_answer_carries_the_security_headers(edge: Edge) -> None:
    for path in ("/", "/static/app.js", "/config", "/nothing", "/healthz"):
        async with edge.client.get(path) as response:
            for name, value in SECURITY_HEADERS.items():
                assert response.headers[name] == value
    policy = SECURITY_HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "microphone=(self)" in SECURITY_HEADERS["Permissions-Policy"]


async def test_other_methods_are_405_and_name_what_is_allowed(edge: Edge) -> None:
    known = {(row.method, row.path) for row in routes()}
    for path in {path for _, path in known}:
        concrete = path.replace("{path:.+}", "app.js").replace("{module}", "element.js")
        concrete = re.sub(r"\{\w+\}", "ann", concrete)
        allowed = {method for method, route in known if route == path}
        for method in set(METHODS) - allowed:
            async with edge.client.request(method, concrete) as response:
                problem = await response.json(content_type="application/problem+json")
                assert response.status == problem["status"] == 405, (method, path)
                assert set(response.headers["Allow"].split(",")) - {"HEAD"} == allowed
                assert method in problem["detail"]


async def test_the_table_of_routes_is_what_is_served(edge: Edge) -> None:
    app = edge.client.app
    served = {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    assert served == {(row.method, row.path.replace("{path:.+}", "{path}")) for row in routes()}
    assert all(row.meaning.endswith(".") for row in routes())


async def test_health_says_alive_in_every_phase(edge: Edge) -> None:
    for phase in Phase:
        edge.lifecycle.phase = phase
        async with edge.client.get("/healthz") as response:
            assert response.status == 200


async def test_readiness_follows_the_phase_and_the_workers(edge: Edge) -> None:
    async with edge.client.get("/readyz") as response:
        assert response.status == 200
        assert await response.json() == {"status": "ready", "trouble": ""}
    edge.lifecycle.phase, edge.lifecycle.progress = Phase.STARTING, "loading weights"
    async with edge.client.get("/readyz") as response:
        problem = await response.json(content_type="application/problem+json")
        assert response.status == problem["status"] == HTTPStatus.SERVICE_UNAVAILABLE
        assert problem["type"].endswith(":starting")
        assert "loading weights" in problem["detail"]
        assert int(response.headers["Retry-After"]) > 0
    edge.lifecycle.phase, edge.streams.free = Phase.READY, 0
    async with edge.client.get("/readyz") as response:
        problem = await response.json(content_type="application/problem+json")
        assert response.status == 503
        assert problem["type"].endswith(":full")
        assert problem["detail"] == "All streams that this server holds are taken."
        assert int(response.headers["Retry-After"]) > 0
    edge.streams.free = 1
    edge.engine.ready = False
    edge.engine.trouble = "Worker cuda:0 was lost 3 times in a row and starts again in 4 s."
    async with edge.client.get("/readyz") as response:
        assert response.status == 503
        detail = (await response.json(content_type=None))["detail"]
        assert detail.startswith("No worker")
        assert "cuda:0 was lost 3 times" in detail
    edge.lifecycle.phase = Phase.STOPPING
    async with edge.client.get("/readyz") as response:
        assert response.status == 503
        assert (await response.json(content_type=None))["type"].endswith(":stopping")


async def test_config_tells_the_page_what_it_shows(edge: Edge) -> None:
    async with edge.client.get("/config") as response:
        assert response.headers["Cache-Control"] == "no-store"
        assert await response.json() == {
            "engine": "local",
            "status": "ready",
            "width": 320,
            "height": 256,
            "fps": 25,
            "avatars": ["ann", "bob"],
            "ice_servers": [],
            "quality": None,
            "notices": [],
            "speak_text": False,
            "mark": True,
        }


def test_a_folder_without_a_page_is_told_at_once(tmp_path: Path) -> None:
    health = Health(FakeEngine(), Lifecycle(), "local")
    with pytest.raises(InputError, match=r"index\.html does not exist"):
        create_app(FakeStreams(), health, tmp_path, gallery_of(FakeLibrary()))
    (tmp_path / "index.html").touch()
    with pytest.raises(InputError, match=r"embed\.html does not exist"):
        create_app(FakeStreams(), health, tmp_path, gallery_of(FakeLibrary()))
    (tmp_path / "embed.html").touch()
    with pytest.raises(InputError, match=r"echo-rtc\.js does not exist"):
        create_app(FakeStreams(), health, tmp_path, gallery_of(FakeLibrary()))
