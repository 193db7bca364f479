"""Recordings over HTTP: the owner of a stream begins and ends its recording; administrators list, download and delete.

Knows neither codecs nor where the files are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from aiohttp import web

from echo_rtc.web.prefix import prefix_of
from echo_rtc.web.problems import Problem
from echo_rtc.web.stream_access import StreamAccess

OFF = "Nothing is recorded here; --recording-dir names a folder for recordings."
_NO_STORE = {"Cache-Control": "no-store"}


class Facts(Protocol):
    """What is known of a recording."""

    def as_json(self) -> dict[str, object]: ...


class RecordingControl(Protocol):
    """What this file asks of the recordings."""

    async def start(self, stream_id: str, name: str | None) -> Facts:
        """Raises ConflictError, StorageError, UnknownStreamError."""
        ...

    async def stop(self, stream_id: str) -> Facts | None: ...

    def of(self, stream_id: str) -> Facts | None: ...

    async def list(self) -> Sequence[Facts]:
        """Raises StorageError."""
        ...

    async def find(self, recording_id: str) -> Path | None: ...

    async def delete(self, recording_id: str) -> bool:
        """Raises StorageError."""
        ...


@dataclass(frozen=True, slots=True)
class RecordingHandlers:
    """The handlers. ``control`` is None where nothing is recorded."""

    access: StreamAccess
    control: RecordingControl | None

    async def start(self, request: web.Request) -> web.StreamResponse:
        """201 with the recording's facts; 401, 403, 404, 409, 500, 501 or 507 as a problem."""
        control = self._on()
        stream = self.access.published(request)
        facts = await control.start(stream.id, stream.name)
        here = f"{prefix_of(request)}{request.rel_url.raw_path}"
        return web.json_response(facts.as_json(), status=201, headers={"Location": here, **_NO_STORE})

    async def show(self, request: web.Request) -> web.StreamResponse:
        """200 with the running recording, or the last one; 404 or 501 as a problem."""
        control = self._on()
        facts = control.of(self.access.known(request).id)
        return web.json_response([] if facts is None else [facts.as_json()], headers=_NO_STORE)

    async def stop(self, request: web.Request) -> web.StreamResponse:
        """200 with the facts once the file is complete; 401, 403, 404 or 501 as a problem."""
        control = self._on()
        facts = await control.stop(self.access.published(request).id)
        if facts is None:
            raise Problem(404, "The stream is not being recorded.")
        return web.json_response(facts.as_json(), headers=_NO_STORE)

    async def list(self, _: web.Request) -> web.StreamResponse:
        """200 with all recordings, the newest first; 500 or 501 as a problem."""
        return web.json_response([facts.as_json() for facts in await self._on().list()], headers=_NO_STORE)

    async def download(self, request: web.Request) -> web.StreamResponse:
        """200 or 206 with the file; 404, 416 or 501 as a problem."""
        path = await self._on().find(request.match_info["recording"])
        if path is None:
            raise _unknown_recording()
        headers = {"Content-Disposition": f'attachment; filename="{path.name}"', **_NO_STORE}
        return web.FileResponse(path, headers=headers)

    async def delete(self, request: web.Request) -> web.StreamResponse:
        """204 once the file is deleted; 404, 500 or 501 as a problem."""
        if not await self._on().delete(request.match_info["recording"]):
            raise _unknown_recording()
        return web.Response(status=204)

    def _on(self) -> RecordingControl:
        if self.control is None:
            raise Problem(501, OFF)
        return self.control


def _unknown_recording() -> Problem:
    return Problem(404, "There is no such recording, or it is not complete yet.")
