"""The page, the element for other pages and their files, as they lie in ``static/``.

Knows nothing of what they say to the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from echo_rtc.errors import InputError


@dataclass(frozen=True, slots=True)
class Pages:
    """Serves ``index`` at /, ``element`` at /echo-rtc.js and ``files`` (by their path below /static/), all found when
    the server starts.

    A request can name a file in that table or none, so that no path ever leads out of the folder.
    """

    index: Path
    element: Path
    files: dict[str, Path]

    @classmethod
    def in_folder(cls, folder: Path) -> Pages:
        """Raises InputError if the folder lacks the page or the element."""
        index, element = folder / "index.html", folder / "echo-rtc.js"
        for path in (index, element):
            if not path.is_file():
                raise InputError(f"{path} does not exist; run the server from a complete copy of the repository")
        visible = (path for path in folder.rglob("[!.]*") if path.is_file())
        return cls(index, element, {path.relative_to(folder).as_posix(): path for path in visible})

    async def page(self, _: web.Request) -> web.StreamResponse:
        """The page itself: never kept, so that it always fits the files it loads."""
        return web.FileResponse(self.index, headers={"Cache-Control": "no-store"})

    async def module(self, _: web.Request) -> web.StreamResponse:
        """The element's module, at an address that stays: kept as files are."""
        return web.FileResponse(self.element, headers={"Cache-Control": "no-cache"})

    async def file(self, request: web.Request) -> web.StreamResponse:
        """A file of the page: kept, but asked for anew each time, which costs a 304 as long as it has not changed."""
        path = self.files.get(request.match_info["path"])
        if path is None:
            raise web.HTTPNotFound
        return web.FileResponse(path, headers={"Cache-Control": "no-cache"})
