"""The operator's page: /admin, what it shows as JSON, and the end of a stream by the operator's hand.

The page itself holds nothing that is secret; what it asks for needs a token of the scope admin.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from pathlib import Path

from aiohttp import web

from echo_rtc.web.health import Health
from echo_rtc.web.metrics import Watched
from echo_rtc.web.signalling import Streams, unknown_stream

ENDED_BY_OPERATOR = "ended by the operator"
SHOWN = (
    "stream",
    "name",
    "published",
    "source",
    "avatar",
    "state",
    "age_s",
    "delay_ms",
    "fps",
    "rendered",
    "held",
    "dropped",
    "av_offset_ms",
    "worst_av_offset_ms",
    "sent_bitrates",
    "reception",
    "clips",
    "viewers",
)
"""What of a stream's statistics the page shows."""


@dataclass(frozen=True, slots=True)
class Admin:
    """The handlers. ``page_file`` lies in the folder of the page's files."""

    streams: Streams
    health: Health
    watched: Watched
    page_file: Path

    async def page(self, _: web.Request) -> web.StreamResponse:
        """The operator's page, the same for every client; browsers must not cache it."""
        if not self.page_file.is_file():
            raise web.HTTPNotFound
        return web.FileResponse(self.page_file, headers={"Cache-Control": "no-store"})

    async def state(self, _: web.Request) -> web.StreamResponse:
        """200 with streams, recordings, outputs, workers and the server as they are."""
        watched, watch = self.watched, self.watched.watch
        workers = watch.workers()
        await asyncio.to_thread(watch.usage.look, [(worker.name, worker.pid) for worker in workers])
        trouble = self.health.trouble()
        counts = watched.streams.tally().counts
        body = {
            "version": watch.version,
            "engine": watched.engine_name,
            "trouble": self.health.engine.trouble if trouble is None else trouble.detail,
            "clock_s": asyncio.get_running_loop().time(),
            "capacity": watched.streams.capacity,
            "opened": watched.streams.ledger.opened,
            "refusals": dict(watch.refusals.items()),
            "frames": {name: counts.get(("frames", name), 0) for name in ("rendered", "idle", "held", "dropped")},
            "log": {"writable": watch.log.writable, "lost": watch.log.lost},
            "server": asdict(watch.usage.server),
            "workers": [{**asdict(worker), "use": asdict(watch.usage.of(worker.name))} for worker in workers],
            "streams": [self._stream(stream_id) for stream_id in tuple(watched.streams.streams)],
            "recordings": list(watch.recordings.overview()),
            "outputs": list(watch.outputs.overview()),
        }
        return web.json_response(body, headers={"Cache-Control": "no-store"})

    async def end(self, request: web.Request) -> web.StreamResponse:
        """204 once the stream is closed; 404 as a problem."""
        if not await self.streams.close_stream(request.match_info["id"], ENDED_BY_OPERATOR):
            raise unknown_stream()
        return web.Response(status=204)

    def _stream(self, stream_id: str) -> dict[str, object]:
        statistics = self.streams.statistics(stream_id) or {}
        return {key: statistics.get(key) for key in SHOWN}
