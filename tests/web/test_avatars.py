"""Avatars over HTTP: what is listed, what an upload must be, and how each refusal is said."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from echo_rtc.errors import (
    AvatarConflictError,
    CapacityError,
    EchoRtcError,
    FolderError,
    InputError,
    RenderError,
    StorageError,
    UnknownAvatarError,
)
from echo_rtc.web import avatars
from echo_rtc.web.app import Access
from echo_rtc.web.auth import Authorisation
from tests.web.conftest import Edge, MakeEdge

TOKEN = "a token of many letters, and some more of them"


def form(**parts: bytes | str) -> aiohttp.FormData:
    """A form as a browser sends it: bytes are files."""
    made = aiohttp.FormData(default_to_multipart=True)
    for name, content in parts.items():
        made.add_field(name, content, filename="f" if isinstance(content, bytes) else None)
    return made


async def refused(edge: Edge, data: Any, status: int, **keywords: Any) -> dict[str, Any]:
    """Sends an upload that is to be refused; the problem."""
    async with edge.client.post("/avatars", data=data, **keywords) as response:
        problem: dict[str, Any] = await response.json(content_type="application/problem+json")
        assert response.status == problem["status"] == status, problem
        assert problem["detail"].endswith(".")
        problem["retry"] = response.headers.get("Retry-After")
        return problem


async def test_the_list_has_a_preview_of_each(edge: Edge) -> None:
    async with edge.client.get("/avatars") as response:
        assert response.status == 200
        listed = await response.json()
    assert listed == [
        {"name": "ann", "preview": "/avatars/ann/preview", "uploaded": False},
        {"name": "bob", "preview": "/avatars/bob/preview", "uploaded": True},
    ]
    async with edge.client.get(listed[1]["preview"]) as response:
        assert response.status == 200
        assert response.content_type == "image/jpeg"
        assert await response.read() == b"picture of bob"
        tag = response.headers["ETag"]
    async with edge.client.get(listed[1]["preview"], headers={"If-None-Match": tag}) as response:
        assert response.status == 304
    async with edge.client.get(listed[0]["preview"], headers={"If-None-Match": tag}) as response:
        assert response.status == 200
    async with edge.client.get("/avatars/carl/preview") as response:
        assert response.status == 404
        assert (await response.json(content_type=None))["type"].endswith("unknown-avatar")


async def test_an_upload_is_read_and_its_avatar_listed(edge: Edge) -> None:
    uploads: list[tuple[dict[str, bytes | str], tuple[bytes | None, str | None]]] = [
        ({"name": "carl", "image": b"png"}, (None, None)),
        ({"poses": b"zip", "image": b"png", "name": " dora "}, (b"zip", None)),
        ({"name": "emil", "image": b"p" * 2_000, "poses_of": "ann"}, (None, "ann")),
    ]
    for parts, poses in uploads:
        async with edge.client.post("/avatars", data=form(**parts)) as response:
            entry = await response.json()
            assert response.status == 201
            assert response.headers["Location"] == f"/avatars/{entry['name']}"
        assert edge.library.uploads[-1] == (entry["name"], parts["image"], *poses)
    assert [upload[0] for upload in edge.library.uploads] == ["carl", "dora", "emil"]
    async with edge.client.delete("/avatars/carl") as response:
        assert response.status == 204
    assert "carl" not in edge.library.names


@pytest.mark.parametrize(
    ("parts", "status", "words"),
    [
        ({"image": b"png"}, 400, "Name is missing"),
        ({"name": "carl"}, 400, "Image is missing"),
        ({"name": "carl", "image": b""}, 400, "Image is missing"),
        ({"name": b"\xff\xfe", "image": b"png"}, 400, "Name is not UTF-8"),
        ({"name": "carl", "image": b"png", "size": "3"}, 400, "'size'"),
        ({"name": "x" * 300, "image": b"png"}, 413, "name is larger"),
        ({"name": "carl", "image": b"p" * 2_001}, 413, "image is larger"),
        ({"name": "carl", "image": b"png", "poses": b"p" * 1_001}, 413, "poses is larger"),
    ],
)
async def test_an_upload_that_is_no_avatar_is_refused(
    edge: Edge, parts: dict[str, bytes | str], status: int, words: str
) -> None:
    problem = await refused(edge, form(**parts), status)
    assert words in problem["detail"]
    assert not edge.library.uploads


async def test_a_part_that_comes_twice_is_refused(edge: Edge) -> None:
    data = form(name="carl", image=b"png")
    data.add_field("image", b"another", filename="f")
    assert "twice" in (await refused(edge, data, 400))["detail"]


async def test_other_bodies_are_refused(edge: Edge) -> None:
    problem = await refused(edge, b"{}", 415, headers={"Content-Type": "application/json"})
    assert "multipart/form-data" in problem["detail"]
    for content_type in ("multipart/form-data", "multipart/form-data; boundary=x"):
        await refused(edge, b"nonsense", 400, headers={"Content-Type": content_type})
    cut = b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\ncarl'
    await refused(edge, cut, 400, headers={"Content-Type": "multipart/form-data; boundary=x"})
    await refused(edge, form(name="carl", image=b"p" * 100_000), 413)


async def test_an_upload_that_does_not_come_is_given_up(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(avatars, "UPLOAD_TIMEOUT_S", 0.05)
    go_on = asyncio.Event()

    async def slow() -> Any:
        yield b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\n'
        await go_on.wait()

    try:
        problem = await refused(edge, slow(), 408, headers={"Content-Type": "multipart/form-data; boundary=x"})
        assert "0.05 s" in problem["detail"]
    finally:
        go_on.set()


@pytest.mark.parametrize(
    ("failure", "status", "kind", "retry"),
    [
        (InputError("image is damaged"), 422, "bad-avatar", None),
        (AvatarConflictError("there is an avatar carl already"), 409, "avatar-conflict", None),
        (UnknownAvatarError("there is no avatar 'carl'"), 404, "unknown-avatar", None),
        (CapacityError("another avatar is being prepared", 7), 503, "full", "7"),
        (RenderError("no worker is up"), 503, "starting", "5"),
        (StorageError("avatar_dir is /x, which cannot be written: no space"), 507, "problem:storage", None),
        (FolderError("avatar_dir is /x, which cannot be written: read-only"), 500, "problem:storage", None),
    ],
)
async def test_what_the_library_refuses_has_a_status(
    edge: Edge, failure: EchoRtcError, status: int, kind: str, retry: str | None
) -> None:
    edge.library.failure = failure
    problem = await refused(edge, form(name="carl", image=b"png"), status)
    assert problem["type"].endswith(kind)
    assert problem["retry"] == retry
    assert problem["detail"].lower() == f"{failure}.".lower()


async def test_nothing_changes_unless_it_is_allowed(make_edge: MakeEdge) -> None:
    edge = await make_edge(Access(), changeable=False)
    assert "--allow-avatar-upload" in (await refused(edge, form(name="carl", image=b"png"), 403))["detail"]
    async with edge.client.delete("/avatars/bob") as response:
        assert response.status == 403
    async with edge.client.get("/avatars") as response:
        assert len(await response.json()) == 2


async def test_only_administrators_change_avatars(make_edge: MakeEdge) -> None:
    edge = await make_edge(Access(Authorisation.of(TOKEN, None)))
    await refused(edge, form(name="carl", image=b"png"), 401)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with edge.client.post("/avatars", data=form(name="carl", image=b"png"), headers=headers) as response:
        assert response.status == 201
    async with edge.client.delete("/avatars/carl") as response:
        assert response.status == 401
    async with edge.client.get("/avatars/carl/preview", headers=headers) as response:
        assert response.status == 200
