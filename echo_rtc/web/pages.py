"""The page, the element for other pages and their files, as they lie in ``static/``.

Knows nothing of what they say to the server.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from echo_rtc.errors import InputError, SettingsError

CONTENT_POLICY = "Content-Security-Policy"
SELF = "'self'"
MODULES = "element"
"""The folder of the element's modules."""
OPERATORS_PAGE = "admin.html"
"""The operator's page, which is served at an address of its own."""
_KEYWORDS = {"self": SELF, "none": "'none'"}
_MEANT = {
    "/index.html": "./",
    "/embed.html": "embed",
    "/admin.html": "admin",
    "/embed/": "../embed",
    "/admin/": "../admin",
}
"""What people type, and the page that they mean, relative to that."""
_MISSING = """<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <title>Not found \N{MIDDLE DOT} echo_rtc</title>
  <link rel="icon" href="{home}static/icon.svg" type="image/svg+xml">
  <link rel="stylesheet" href="{home}static/style.css">
</head>
<body>
  <main>
    <h1>There is no page at this address</h1>
    <p><a href="{home}">Go to the avatar</a></p>
  </main>
</body>
</html>
"""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def content_policy(frame_ancestors: str = SELF) -> str:
    """Content-Security-Policy of a document. ``frame_ancestors``: origins that may frame it, apart by spaces."""
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' data:",
            "font-src 'self'",
            "media-src 'self' blob:",
            "connect-src 'self'",
            "manifest-src 'self'",
            "worker-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            f"frame-ancestors {frame_ancestors}",
        )
    )


def frame_sources(allowed: Iterable[str]) -> str:
    """``--frame-ancestors`` as CSP writes it. Raises SettingsError where none stands beside others."""
    sources = [_KEYWORDS.get(word.strip("'"), word.rstrip("/")) for word in allowed]
    if "'none'" in sources and len(sources) > 1:
        raise SettingsError(f"frame_ancestors is {' '.join(sources)}; none stands alone: leave it or the others out")
    return " ".join(sources)


@dataclass(frozen=True, slots=True)
class Pages:
    """Serves ``index`` at /, ``frame`` at /embed, ``element`` at /echo-rtc.js, ``modules`` (by their names below
    /element/) and ``files`` (by their paths below /static/), all found when the server starts. ``frame_ancestors``:
    origins whose pages may frame ``frame``.

    Each file has one address, because pages and modules name each other by relative ones. A request can name a file in
    these tables or none, so that no path ever leads out of the folder.
    """

    index: Path
    frame: Path
    element: Path
    modules: dict[str, Path]
    files: dict[str, Path]
    frame_ancestors: str

    @classmethod
    def in_folder(cls, folder: Path, frame_ancestors: str) -> Pages:
        """Raises InputError if the folder lacks one of the first three."""
        places = [folder / name for name in ("index.html", "embed.html", "echo-rtc.js")]
        for path in places:
            if not path.is_file():
                raise InputError(f"{path} does not exist; run the server from a complete copy of the repository")
        modules = {path.name: path for path in (folder / MODULES).glob("[!.]*.js")}
        elsewhere = {*places, folder / OPERATORS_PAGE, *modules.values()}
        visible = (path for path in folder.rglob("[!.]*") if path.is_file() and path not in elsewhere)
        files = {path.relative_to(folder).as_posix(): path for path in visible}
        index, frame, element = places
        return cls(index, frame, element, modules, files, frame_ancestors)

    async def page(self, _: web.Request) -> web.StreamResponse:
        """The page itself: never kept, so that it always fits the files it loads."""
        return web.FileResponse(self.index, headers={"Cache-Control": "no-store"})

    async def embed(self, _: web.Request) -> web.StreamResponse:
        """The element by itself, for iframes: the one document with a policy of its own."""
        headers = {"Cache-Control": "no-store", CONTENT_POLICY: content_policy(self.frame_ancestors)}
        return web.FileResponse(self.frame, headers=headers)

    async def entry(self, _: web.Request) -> web.StreamResponse:
        """The module that pages load to have the element, at an address that stays."""
        return _cached(self.element)

    async def module(self, request: web.Request) -> web.StreamResponse:
        """One of the modules that the element is made of."""
        return _cached(self.modules.get(request.match_info["module"]))

    async def file(self, request: web.Request) -> web.StreamResponse:
        """A file of the pages."""
        return _cached(self.files.get(request.match_info["path"]))


def guiding_visitors() -> Middleware:
    """Answers a person's browser at an address that there is not: with a redirect to the page that was meant, else with
    a small page that leads to the start. Programs get the problem as it is. The outermost middleware."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        is_visit = request.method in (hdrs.METH_GET, hdrs.METH_HEAD) and "text/html" in request.headers.get(
            "Accept", ""
        )
        if response.status != HTTPStatus.NOT_FOUND or not is_visit:
            return response
        # Relative addresses, which hold below a path of a reverse proxy too.
        meant = _MEANT.get(request.path)
        if meant is not None:
            return web.Response(status=HTTPStatus.FOUND, headers={hdrs.LOCATION: meant})
        home = "../" * (request.path.count("/") - 1) or "./"
        text = _MISSING.format(home=home)
        headers = {"Cache-Control": "no-store"}
        return web.Response(status=HTTPStatus.NOT_FOUND, text=text, content_type="text/html", headers=headers)

    return middleware


def _cached(path: Path | None) -> web.FileResponse:
    """The file, which browsers keep and revalidate: an unchanged one costs a 304. Raises HTTPNotFound for None."""
    if path is None:
        raise web.HTTPNotFound
    return web.FileResponse(path, headers={"Cache-Control": "no-cache"})
