"""An aiortc application with a talking face in it: ``python examples/avatar_app.py``, then http://localhost:8090.

The avatar's part are the lines in ``answer``: the microphone's track goes in, two tracks come out. Everything else is
what any aiortc application has: a page, an offer, an answer.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from echo_rtc.avatar import AvatarService
from echo_rtc.errors import CapacityError

PORT = 8090
PAGE = Path(__file__).with_name("page.html")

AVATARS = web.AppKey("avatars", AvatarService)
CONNECTIONS = web.AppKey("connections", set[RTCPeerConnection])


async def page(_: web.Request) -> web.FileResponse:
    return web.FileResponse(PAGE)


async def offer(request: web.Request) -> web.Response:
    description = await request.json()
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    request.app[CONNECTIONS].add(connection)

    async def state() -> None:
        if connection.connectionState in {"failed", "closed"}:
            request.app[CONNECTIONS].discard(connection)
            await connection.close()

    connection.on("connectionstatechange", state)
    try:
        return await answer(connection, description, request.app[AVATARS])
    except CapacityError as full:
        await connection.close()
        raise web.HTTPServiceUnavailable(text=str(full), headers={"Retry-After": str(full.retry_after_s)}) from full


async def answer(connection: RTCPeerConnection, description: dict[str, str], avatars: AvatarService) -> web.Response:
    voices: list[MediaStreamTrack] = []
    connection.on("track", lambda track: voices.append(track) if track.kind == "audio" else None)
    await connection.setRemoteDescription(RTCSessionDescription(description["sdp"], description["type"]))
    face = avatars.animate(voices[0])
    connection.addTrack(face.audio)
    connection.addTrack(face.video)
    await connection.setLocalDescription(await connection.createAnswer())
    # The face ends by itself: its voice is the connection's, and ends with it.
    return web.json_response({"sdp": connection.localDescription.sdp, "type": connection.localDescription.type})


def application(**settings: object) -> web.Application:
    """The application; ``settings`` as :meth:`AvatarService.open` takes them."""

    async def life(app: web.Application) -> AsyncIterator[None]:
        connections = app[CONNECTIONS] = set[RTCPeerConnection]()
        async with AvatarService.open(**settings) as app[AVATARS]:
            yield
            for connection in tuple(connections):
                await connection.close()

    app = web.Application()
    app.cleanup_ctx.append(life)
    app.add_routes([web.get("/", page), web.post("/offer", offer)])
    return app


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    web.run_app(application(), host="127.0.0.1", port=PORT)
