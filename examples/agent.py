"""A voice agent with a face: the caller's microphone goes to a server of the OpenAI Realtime API (any compatible one),
never to the face; the answers go to the face, and are interrupted when the caller begins to speak:
REALTIME_URL="wss://api.openai.com/v1/realtime?model=gpt-realtime" OPENAI_API_KEY=... python examples/agent.py"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import av
from aiohttp import web
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from echo_rtc.avatar import AvatarService, SpokenFace
from echo_rtc.errors import CapacityError, EchoRtcError

RATE = 24_000  # of the Realtime API's PCM in both directions, in Hz
AVATARS, CALLS = web.AppKey("avatars", AvatarService), web.AppKey("calls", set[asyncio.Task[None]])


async def send_voice(voice: MediaStreamTrack, agent: aiohttp.ClientWebSocketResponse) -> None:
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
    while isinstance(frame := await voice.recv(), av.AudioFrame):
        for part in resampler.resample(frame):
            audio = base64.b64encode(part.to_ndarray().tobytes()).decode()
            await agent.send_json({"type": "input_audio_buffer.append", "audio": audio})


async def follow(agent: aiohttp.ClientWebSocketResponse, face: SpokenFace) -> None:
    item = ""
    async with asyncio.TaskGroup() as tasks:  # ``say`` waits, in turn, where enough is queued
        async for message in agent:
            event = message.json()
            kind = event["type"].replace("output_audio", "audio")
            if kind == "response.audio.delta":
                item = event["item_id"]
                tasks.create_task(face.say(base64.b64decode(event["delta"]), RATE, item))
            elif kind == "response.audio.done":
                tasks.create_task(face.end_event(event["item_id"]))
            elif kind == "input_audio_buffer.speech_started" and (played_s := await face.interrupt()):
                heard = {"item_id": item, "content_index": 0, "audio_end_ms": round(1000 * played_s)}
                await agent.send_json({"type": "conversation.item.truncate", **heard})
            await asyncio.sleep(0)  # what was given to the face is known to it before the next message


async def call(peer: RTCPeerConnection, voice: MediaStreamTrack, face: SpokenFace, url: str) -> None:
    headers = {"Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', '')}"}
    try:
        async with face, aiohttp.ClientSession(headers=headers) as http, http.ws_connect(url) as agent:
            await asyncio.gather(send_voice(voice, agent), follow(agent, face))
    except Exception as error:
        logging.warning("A call has ended: %r", error)
    finally:
        await peer.close()


def application(url: str, **settings: object) -> web.Application:
    async def offer(request: web.Request) -> web.Response:
        peer, voices = RTCPeerConnection(RTCConfiguration(iceServers=[])), list[MediaStreamTrack]()
        peer.on("track", lambda track: voices.append(track) if track.kind == "audio" else None)
        await peer.setRemoteDescription(RTCSessionDescription(**await request.json()))
        try:
            face = request.app[AVATARS].speak()
        except CapacityError as full:
            await peer.close()
            raise web.HTTPServiceUnavailable(text=str(full)) from full
        _, _ = peer.addTrack(face.audio), peer.addTrack(face.video)
        await peer.setLocalDescription(await peer.createAnswer())
        request.app[CALLS].add(task := asyncio.create_task(call(peer, voices[0], face, url)))
        task.add_done_callback(request.app[CALLS].discard)
        return web.json_response({"sdp": peer.localDescription.sdp, "type": peer.localDescription.type})

    async def life(app: web.Application) -> AsyncIterator[None]:
        app[CALLS] = set()
        async with AvatarService.open(**settings) as app[AVATARS]:
            yield
            [task.cancel() for task in app[CALLS]]
            await asyncio.gather(*app[CALLS], return_exceptions=True)

    async def page(_: web.Request) -> web.FileResponse:
        return web.FileResponse(Path(__file__).with_name("page.html"))

    app = web.Application()
    app.cleanup_ctx.append(life)
    app.add_routes([web.get("/", page), web.post("/offer", offer)])
    return app


if __name__ == "__main__":
    server = os.environ.get("REALTIME_URL") or sys.exit("REALTIME_URL is not set; see the head of examples/agent.py")
    try:
        web.run_app(application(server), host="127.0.0.1", port=8091)
    except (EchoRtcError, OSError) as error:
        sys.exit(f"The agent cannot start: {error}")
