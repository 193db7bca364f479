"""Recordings over HTTP, of a real stream of test cards: tokens, the file's content and sync, download, deletion."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from echo_rtc.bench.support.movies import movie_offsets
from echo_rtc.bench.sync import Beeps
from echo_rtc.clips import MEDIA_RATE, ClipFormat
from echo_rtc.engine.testcard import TestCardEngine
from echo_rtc.recording.options import RecordingLimits, RecordingOptions
from echo_rtc.recording.recordings import Recordings
from echo_rtc.rtc.manager import ManagerOptions, StreamManager
from echo_rtc.stream.events import Event, EventSink
from echo_rtc.web.app import Access, AppOptions, Outlets, create_app
from echo_rtc.web.auth import Authorisation, Right, mint
from echo_rtc.web.health import Health, Lifecycle, Phase
from tests.rtc.test_calls import until
from tests.web.conftest import Edge, FakeLibrary, gallery_of

STATIC = Path(__file__).parents[2] / "static"
FORMAT = ClipFormat(fps=24, clip_frames=6, width=160, height=160)
SECRET = "a-secret-of-thirty-two-characters-1"
DAY_S = 86_400
"""Tokens are minted when the file is collected, long before it runs."""
ADMIN = {"Authorization": f"Bearer {mint(SECRET, frozenset({Right.ADMIN}), None, DAY_S)}"}

Client = Callable[[TestServer], Awaitable[TestClient[web.Request, web.Application]]]
Server = Callable[[web.Application], Awaitable[TestServer]]


def collecting(events: list[Event]) -> EventSink:
    """Appends each event to the list."""

    def take(event: Event) -> bool:
        events.append(event)
        return True

    return take


def token(right: Right, name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {mint(SECRET, frozenset({right}), name, DAY_S)}"}


@dataclass
class Studio:
    """A client of a real application that records."""

    client: TestClient[web.Request, web.Application]
    manager: StreamManager
    recordings: Recordings

    async def open(self, name: str) -> str:
        """The key of a new stream of pushed speech."""
        return (await self.manager.open_speech("default", name)).key


@pytest.fixture
async def make_studio(
    tmp_path: Path, aiohttp_client: Client, aiohttp_server: Server
) -> AsyncIterator[Callable[..., Awaitable[Studio]]]:
    made: list[Studio] = []
    engine = TestCardEngine(FORMAT, capacity=4)

    async def make(all_streams: bool = False, limits: RecordingLimits | None = None) -> Studio:
        await engine.start(lambda _: None)
        manager = StreamManager(engine, ManagerOptions())
        options = RecordingOptions(tmp_path / "files", all_streams, limits or RecordingLimits())
        recordings = Recordings(options, lambda stream_id: manager.streams.get(stream_id))
        options.folder.mkdir()
        manager.on_open = recordings.opened
        health = Health(engine, Lifecycle(Phase.READY), "testcard", tuple, free_places=lambda: manager.free)
        access, outlets = Access(Authorisation(secret=SECRET)), Outlets(recordings)
        app = create_app(manager, health, STATIC, gallery_of(FakeLibrary()), AppOptions(access, outlets=outlets))
        made.append(Studio(await aiohttp_client(await aiohttp_server(app)), manager, recordings))
        return made[0]

    yield make
    for studio in made:
        await studio.manager.close()
        await studio.recordings.close()
    await engine.close()


async def test_a_recording_from_its_beginning_to_its_download(make_studio: Callable[..., Awaitable[Studio]]) -> None:
    studio = await make_studio()
    key = await studio.open("studio")
    here, mine = f"/streams/{key}/recordings", token(Right.PUBLISH, "studio")
    for headers, status in ({}, 401), (token(Right.PUBLISH, "other"), 403), (token(Right.VIEW, "studio"), 403):
        assert (await studio.client.post(here, headers=headers)).status == status
    assert (await studio.client.post("/streams/unknown/recordings", headers=mine)).status == 404
    assert (await studio.client.delete(here, headers=mine)).status == 404
    events: list[Event] = []
    stream = studio.manager.streams[key]
    stream.subscribe(collecting(events))
    begun = await studio.client.post(here, headers=mine)
    assert (begun.status, begun.headers["Location"]) == (201, here)
    late: list[Event] = []
    stream.subscribe(collecting(late))
    assert {"type": "recording", "active": True} in events
    assert {"type": "recording", "active": True} in late
    [seen] = studio.recordings.overview()
    assert (seen["stream_id"], seen["stream"], seen["state"]) == (key, "studio", "recording")
    assert seen["file"] in os.listdir(studio.recordings.shelf.folder) or not seen["bytes"]
    refused = await studio.client.post(here, headers=mine)
    assert (refused.status, (await refused.json())["type"]) == (409, "urn:echo-rtc:problem:conflict")

    beeps = Beeps.lasting(4.0, gap_s=(0.22, 0.3))
    speaker = stream.speaker
    assert speaker is not None
    speaker.say("beeps", beeps.voice(0, round(4.4 * MEDIA_RATE)))
    speaker.complete("beeps")
    await until(lambda: not speaker.speaking)
    ended = await (await studio.client.delete(here, headers=mine)).json()
    assert (ended["state"], ended["stream"], ended["reason"]) == ("complete", "studio", "stopped by a client")
    [seen] = studio.recordings.overview()
    assert seen == {**ended, "stream_id": key, "file": seen["file"]}
    assert seen["file"] in os.listdir(studio.recordings.shelf.folder)
    assert [event for event in events if event["type"] == "recording"][-1] == {"type": "recording", "active": False}
    assert await (await studio.client.get(here, headers=mine)).json() == [ended]

    assert (await studio.client.get("/recordings", headers=mine)).status == 403
    assert await (await studio.client.get("/recordings", headers=ADMIN)).json() == [ended]
    file = f"/recordings/{ended['id']}"
    assert (await studio.client.get(file, headers=mine)).status == 403
    whole = await (await studio.client.get(file, headers=ADMIN)).read()
    assert len(whole) == ended["bytes"]
    part = await studio.client.get(file, headers={**ADMIN, "Range": "bytes=100-199"})
    assert (part.status, part.content_type, await part.read()) == (206, "video/mp4", whole[100:200])
    path = await studio.recordings.find(ended["id"])
    assert path is not None
    offsets = movie_offsets(path, FORMAT.fps)
    assert len(offsets) >= 4
    assert np.percentile(np.abs(offsets), 95) <= 20
    for wrong in ("0" * 16, "..%2fsecret", "*"):
        assert (await studio.client.get(f"/recordings/{wrong}", headers=ADMIN)).status == 404
    assert (await studio.client.delete(file, headers=ADMIN)).status == 204
    assert (await studio.client.delete(file, headers=ADMIN)).status == 404


async def test_every_stream_is_recorded_until_it_ends(make_studio: Callable[..., Awaitable[Studio]]) -> None:
    studio = await make_studio(all_streams=True)
    key = await studio.open("first")
    assert studio.recordings.active == 1
    await until(lambda: (facts := studio.recordings.of(key)) is not None and facts.seconds > 0)
    await studio.manager.close_stream(key, "enough")
    await studio.recordings.close()
    assert studio.recordings.of(key) is None
    [facts] = await studio.recordings.list()
    assert (facts.state, facts.reason, facts.stream) == ("complete", "the stream ended", "first")
    assert studio.recordings.counters.begun == 1
    assert studio.recordings.counters.bytes == facts.bytes
    assert dict(studio.recordings.ended.items()) == {"the stream ended": 1}


async def test_a_disk_without_room_is_told(make_studio: Callable[..., Awaitable[Studio]]) -> None:
    studio = await make_studio(limits=RecordingLimits(least_free_bytes=1 << 60))
    key = await studio.open("studio")
    refused = await studio.client.post(f"/streams/{key}/recordings", headers=token(Right.PUBLISH, "studio"))
    assert refused.status == 507
    assert "--min-free-disk" in (await refused.json())["detail"]
    assert os.listdir(studio.recordings.shelf.folder) == []


async def test_without_a_folder_nothing_is_recorded(edge: Edge) -> None:
    for method, path in ("POST", "/streams/known-id/recordings"), ("GET", "/recordings"):
        refused = await edge.client.request(method, path)
        assert refused.status == 501
        assert "--recording-dir" in (await refused.json())["detail"]
