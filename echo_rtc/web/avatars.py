"""The avatars over HTTP: a list with previews for callers, and adding and deleting for administrators.

Reads what is sent within its limits; what a picture or a pose is, the library judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from echo_rtc.errors import InputError, RenderError
from echo_rtc.web.bodies import read_body
from echo_rtc.web.connections import HungUpError, while_connected
from echo_rtc.web.form import bad_form, read_form
from echo_rtc.web.health import STARTING_RETRY_S, Health
from echo_rtc.web.prefix import prefix_of
from echo_rtc.web.problems import Problem, ProblemType, sentence

UPLOAD_TIMEOUT_S = 60.0
"""Time a client has to send an upload."""
MAX_WORD_BYTES = 200
"""A field of text in an upload."""
MAX_AROUND_BYTES = 64 * 1024
"""Allowance for multipart boundaries and part headers."""


class EntryView(Protocol):
    """An avatar that can be chosen."""

    @property
    def name(self) -> str: ...

    @property
    def uploaded(self) -> bool: ...


class PreviewView(Protocol):
    """An avatar's picture, and a tag that changes with it."""

    @property
    def jpeg(self) -> bytes: ...

    @property
    def tag(self) -> str: ...


class Library(Protocol):
    """What the HTTP edge asks of the avatars; errors as ``echo_rtc.avatars.library`` raises them."""

    def entries(self) -> Sequence[EntryView]: ...

    async def preview(self, name: str) -> PreviewView: ...

    async def add(self, name: str, picture: bytes, poses: bytes | None, poses_of: str | None) -> EntryView: ...

    async def delete(self, name: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Gallery:
    """The avatars as the HTTP edge shows them: whether they can be uploaded and deleted, and the largest files that are
    taken (bytes)."""

    library: Library
    picture_bytes: int
    poses_bytes: int
    changeable: bool = False


@dataclass(frozen=True, slots=True)
class Avatars:
    """The handlers of avatars."""

    gallery: Gallery
    health: Health

    async def list(self, request: web.Request) -> web.StreamResponse:
        """200 with the avatars, the default one first; none until the engine has started."""
        entries = [_entry(entry, prefix_of(request)) for entry in self.gallery.library.entries()]
        return web.json_response(entries, headers={"Cache-Control": "no-store"})

    async def preview(self, request: web.Request) -> web.StreamResponse:
        """200 with a JPEG, 304 where the client has it; 404 as a problem."""
        preview = await self.gallery.library.preview(request.match_info["avatar"])
        headers = {"ETag": f'"{preview.tag}"', "Cache-Control": "no-cache"}
        if preview.tag in {tag.value for tag in request.if_none_match or ()}:
            return web.Response(status=304, headers=headers)
        return web.Response(body=preview.jpeg, content_type="image/jpeg", headers=headers)

    async def add(self, request: web.Request) -> web.StreamResponse:
        """201 once the avatar can be chosen; 400, 403, 404, 408, 409, 413, 415, 422, 500, 503 or 507 as a problem."""
        self._require_allowed()
        if request.content_type != "multipart/form-data":
            sent = request.headers.get("Content-Type", "missing")[:80]
            raise Problem(
                415,
                f"The content type is {sent!r}; send multipart/form-data.",
                headers={"Accept-Post": "multipart/form-data"},
            )
        self.health.require_ready()
        found = await self._read(request)
        words = {name: _text(name, found[name]) for name in ("name", "poses_of") if name in found}
        try:
            adding = self.gallery.library.add(words["name"], found["image"], found.get("poses"), words.get("poses_of"))
            entry = await while_connected(request, adding, lambda: self.gallery.library.delete(words["name"]))
        except HungUpError:
            raise bad_form("the client hung up before the avatar was ready, so it was not kept") from None
        except InputError as error:
            raise Problem(422, sentence(str(error)), ProblemType.BAD_AVATAR) from error
        except RenderError as error:
            retry = {"Retry-After": str(STARTING_RETRY_S)}
            raise Problem(503, sentence(str(error)), ProblemType.STARTING, retry) from error
        return web.json_response(
            _entry(entry, prefix_of(request)),
            status=201,
            headers={"Location": f"{prefix_of(request)}/avatars/{entry.name}", "Cache-Control": "no-store"},
        )

    async def delete(self, request: web.Request) -> web.StreamResponse:
        """204 once the avatar is gone; 403, 404, 409, 500 or 503 as a problem."""
        self._require_allowed()
        await self.gallery.library.delete(request.match_info["avatar"])
        return web.Response(status=204)

    def _require_allowed(self) -> None:
        if not self.gallery.changeable:
            raise Problem(403, "Avatars cannot be uploaded here; the server's flag --allow-avatar-upload allows it.")

    async def _read(self, request: web.Request) -> dict[str, bytes]:
        """The parts of an upload, those that it must have among them. Raises Problem 400, 408 or 413."""
        most = {
            "name": MAX_WORD_BYTES,
            "image": self.gallery.picture_bytes,
            "poses": self.gallery.poses_bytes,
            "poses_of": MAX_WORD_BYTES,
        }
        limit = sum(most.values()) + MAX_AROUND_BYTES
        cut_off = bad_form("the upload is cut off or badly encoded; send it again")
        body = await read_body(request, limit, UPLOAD_TIMEOUT_S, cut_off)
        found = read_form(request.headers["Content-Type"], body, most)
        for wanted in ("name", "image"):
            if not found.get(wanted):
                raise bad_form(f"{wanted} is missing; send name and image, and poses or poses_of if you like")
        return found


def _entry(entry: EntryView, prefix: str) -> dict[str, object]:
    return {"name": entry.name, "preview": f"{prefix}/avatars/{entry.name}/preview", "uploaded": entry.uploaded}


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise bad_form(f"{name} is not UTF-8 text") from None
