"""Whether the server lives, is ready, and what it shows: /healthz, /readyz, /config.

Holds the server's phase, which the composition root moves on and the other handlers ask for. Knows of an engine only
what it shows to the outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from aiohttp import web

from echo_rtc.clips import ClipFormat
from echo_rtc.web.auth import grant_of
from echo_rtc.web.problems import Problem, ProblemType

STARTING_RETRY_S = 5
"""When to ask again while the server starts, or while its workers are being replaced."""
FULL_RETRY_S = 10
"""When to ask again where all places are taken."""
STOPPING_RETRY_S = 30
"""When to ask again after the server was told to stop: long enough for a restart."""


class EngineView(Protocol):
    """What the HTTP edge sees of an engine."""

    @property
    def format(self) -> ClipFormat: ...

    @property
    def avatars(self) -> Mapping[str, object]: ...

    @property
    def ready(self) -> bool: ...

    @property
    def trouble(self) -> str: ...


class Phase(StrEnum):
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"


@dataclass(slots=True)
class Lifecycle:
    """Where the server stands; only the composition root changes it. ``progress`` is the last line of the start-up.
    ``quality``: the rung of the ladder of qualities, and what was measured of it; None without one. ``notices``: what
    users should know of the speed, each a sentence."""

    phase: Phase = Phase.STARTING
    progress: str = "the workers are being started"
    quality: Mapping[str, object] | None = None
    notices: Sequence[str] = ()


IceServer = Mapping[str, str | Sequence[str]]
"""A STUN or TURN server as browsers take it: ``urls``, and with TURN ``username`` and ``credential``."""


def no_ice_servers() -> Sequence[IceServer]:
    """What clients are told of where there are none."""
    return ()


@dataclass(frozen=True, slots=True)
class Health:
    """Answers for the engine, the phase and the settings that a page needs. ``engine_name`` is ``--engine``.

    ``ice_servers`` is called for each answer, because credentials expire.
    ``free_places`` says how many more streams there may be. ``says_text``: whether texts can be said. ``mark``: whether
    pages say over the picture that it is AI-generated.
    """

    engine: EngineView
    lifecycle: Lifecycle
    engine_name: str
    ice_servers: Callable[[], Sequence[IceServer]] = no_ice_servers
    free_places: Callable[[], int] = lambda: 1
    says_text: bool = False
    mark: bool = True

    def require_ready(self) -> None:
        """Raises the 503 that fits, unless the server is up and can render."""
        trouble = self._trouble()
        if trouble is not None:
            raise trouble

    def trouble(self) -> Problem | None:
        """Why no stream could be opened now, as the 503 that says it; None if one could."""
        trouble = self._trouble()
        if trouble is None and self.free_places() < 1:
            return _unavailable("All streams that this server holds are taken.", ProblemType.FULL, FULL_RETRY_S)
        return trouble

    def _trouble(self) -> Problem | None:
        match self.lifecycle.phase:
            case Phase.STARTING:
                detail = f"The server is still starting ({self.lifecycle.progress})."
                return _unavailable(detail, ProblemType.STARTING, STARTING_RETRY_S)
            case Phase.STOPPING:
                detail = "The server is stopping and takes no new streams."
                return _unavailable(detail, ProblemType.STOPPING, STOPPING_RETRY_S)
        if not self.engine.ready:
            detail = f"No worker can render at the moment. {self.engine.trouble}".rstrip()
            return _unavailable(detail, ProblemType.STARTING, STARTING_RETRY_S)
        return None

    async def healthz(self, _: web.Request) -> web.StreamResponse:
        return _json({"status": "alive"})

    async def readyz(self, _: web.Request) -> web.StreamResponse:
        """200, or 503 with the reason. That is an answer and no refusal, and is not counted as one."""
        trouble = self.trouble()
        if trouble is not None:
            return trouble.response()
        return _json({"status": "ready", "trouble": self.engine.trouble})

    async def config(self, request: web.Request) -> web.StreamResponse:
        """What the page shows and needs before a call. ``avatars`` is empty until the engine has started. Without
        a token where one is needed ``avatars`` is left out, which may name people, and ``ice_servers``, which would
        give away the relay."""
        clip_format, known = self.engine.format, bool(grant_of(request).rights)
        ice_servers = [dict(server) for server in self.ice_servers()] if known else []
        return _json(
            {
                "engine": self.engine_name,
                "status": str(self.lifecycle.phase),
                "width": clip_format.width,
                "height": clip_format.height,
                "fps": clip_format.fps,
                "avatars": list(self.engine.avatars) if known else [],
                "ice_servers": ice_servers,
                "quality": self.lifecycle.quality,
                "notices": list(self.lifecycle.notices),
                "speak_text": self.says_text,
                "mark": self.mark,
            }
        )


def _json(body: dict[str, object]) -> web.Response:
    return web.json_response(body, headers={"Cache-Control": "no-store"})


def _unavailable(detail: str, kind: ProblemType, retry_s: int) -> Problem:
    return Problem(503, detail, kind, {"Retry-After": str(retry_s)})
