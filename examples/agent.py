"""A voice agent with a face: the caller's microphone goes to a server of the OpenAI Realtime API (any compatible one),
never to the face; the answers go to the face, and are interrupted when the caller begins to speak. In the checkout:
REALTIME_URL="wss://api.openai.com/v1/realtime?model=gpt-realtime" OPENAI_API_KEY=... python -m examples.agent
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator

import aiohttp
import av
from aiohttp import web
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from echo_rtc.avatar import AvatarService, SpokenFace
from echo_rtc.errors import CapacityError
from examples.avatar_app import page

RATE = 24_000  # of the Realtime API's PCM in both directions, in Hz
AVATARS, CALLS = web.AppKey("avatars", AvatarService), web.AppKey("calls", set[asyncio.Task[None]])


async def send_voice(voice: MediaStreamTrack, agent: aiohttp.ClientWebSocketResponse) -> None:
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
    while isinstance(frame := await voice.recv(), av.AudioFrame):
        for part in resampler.resample(frame):
            pcm = base64.b64encode(part.to_ndarray().tobytes()).decode()
            await agent.send_json({"type": "input_audio_buffer.append", "audio": pcm})


async def say(answers: asyncio.Queue[tuple[str, bytes | None]], face: SpokenFace) -> None:
    while True:  # ``say`` waits where enough is queued, and drops what was interrupted
        item, pcm = await answers.get()
        await (face.end_event(item) if pcm is None else face.say(pcm, RATE, item))


async def follow(agent: aiohttp.ClientWebSocketResponse, face: SpokenFace) -> None:
    answers, item = asyncio.Queue[tuple[str, bytes | None]](10_000), ""
    async with asyncio.TaskGroup() as tasks:
        saying = tasks.create_task(say(answers, face))
        async for message in agent:
            event = message.json()
            kind = event["type"].replace("output_audio", "audio")
            if kind in ("response.audio.delta", "response.audio.done"):
                item, delta = event["item_id"], event.get("delta")
                answers.put_nowait((item, None if delta is None else base64.b64decode(delta)))
            elif kind == "input_audio_buffer.speech_started":
                while not answers.empty():
                    answers.get_nowait()
                if played_s := await face.interrupt():
                    heard = {"item_id": item, "content_index": 0, "audio_end_ms": round(1000 * played_s)}
                    await agent.send_json({"type": "conversation.item.truncate", **heard})
        saying.cancel()


async def call(peer: RTCPeerConnection, voice: MediaStreamTrack, face: SpokenFace, url: str) -> None:
    headers = {"Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', '')}"}
    try:
        async with face, aiohttp.ClientSession(headers=headers) as http, http.ws_connect(url) as agent:
            sides = [asyncio.create_task(side) for side in (send_voice(voice, agent), follow(agent, face))]
            await asyncio.wait(sides, return_when=asyncio.FIRST_COMPLETED)
            [side.cancel() for side in sides]
            await asyncio.gather(*sides, return_exceptions=True)
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
            raise web.HTTPServiceUnavailable(text=str(full)) from full
        _, _ = peer.addTrack(face.audio), peer.addTrack(face.video)
        await peer.setLocalDescription(await peer.createAnswer())
        task = asyncio.create_task(call(peer, voices[0], face, url))
        request.app[CALLS].add(task)
        task.add_done_callback(request.app[CALLS].discard)
        return web.json_response({"sdp": peer.localDescription.sdp, "type": peer.localDescription.type})

    async def life(app: web.Application) -> AsyncIterator[None]:
        app[CALLS] = set()
        async with AvatarService.open(**settings) as app[AVATARS]:
            yield
        await asyncio.gather(*app[CALLS], return_exceptions=True)

    app = web.Application()
    app.cleanup_ctx.append(life)
    app.add_routes([web.get("/", page), web.post("/offer", offer)])
    return app


if __name__ == "__main__":
    web.run_app(application(os.environ["REALTIME_URL"]), host="127.0.0.1", port=8091)
