"""WHIP and WHEP as HTTP says them, over scripted streams; then whole, with real peers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from aiortc.rtp import RTCP_PSFB_APP, RtcpPsfbPacket, pack_remb_fci

from echo_rtc.bench.stream import babble
from echo_rtc.bench.support.calls import Caller, Exchange, Publisher
from echo_rtc.clips import ClipFormat
from echo_rtc.engine.card import read_card
from echo_rtc.engine.testcard import TestCardEngine
from echo_rtc.errors import (
    CapacityError,
    EchoRtcError,
    IceRestartError,
    NameTakenError,
    NotLiveError,
    OfferError,
    UnsupportedMediaError,
)
from echo_rtc.rtc.manager import ManagerOptions, StreamManager
from echo_rtc.web.app import create_app
from echo_rtc.web.health import Health, IceServer, Lifecycle, Phase
from echo_rtc.web.whip import FRAGMENT, SDP, ice_links
from tests.web.conftest import Edge, FakeLibrary, gallery_of

STATIC = Path(__file__).parents[2] / "static"
OFFER = {"Content-Type": SDP}
TRICKLE = {"Content-Type": FRAGMENT}
PROTOCOLS = ("whip", "whep")
BOTH = pytest.mark.parametrize("protocol", PROTOCOLS)
PROBLEM = "application/problem+json"


@BOTH
async def test_an_offer_is_answered_with_a_session_of_its_own(edge: Edge, protocol: str) -> None:
    places = set()
    for number in range(2):
        async with edge.client.post(f"/{protocol}/ann's", data="v=0", headers=OFFER) as response:
            assert response.status == 201
            assert response.content_type == SDP
            assert await response.text() == "v=0 answer"
            assert response.headers["ETag"] == f'"tag-{number}"'
            assert response.headers["Cache-Control"] == "no-store"
            assert "Link" not in response.headers
            places.add(response.headers["Location"])
        async with edge.client.get(response.headers["Location"]) as found:
            assert found.status == 204
    assert places == {f"/{protocol}/ann's/session-0", f"/{protocol}/ann's/session-1"}


async def test_who_speaks_is_chosen_in_the_query(edge: Edge) -> None:
    for query in ("", "?avatar=bob"):
        async with edge.client.post(f"/whip/x{query}", data="v=0", headers=OFFER) as response:
            assert response.headers["Location"].startswith("/whip/x/")
    assert [avatar for _, avatar in edge.streams.offers] == ["ann", "bob"]
    async with edge.client.post("/whip/x?avatar=eve", data="v=0", headers=OFFER) as response:
        assert response.status == 422
        assert (await response.json(content_type=PROBLEM))["type"].endswith(":unknown-avatar")


@BOTH
async def test_other_bodies_are_refused(edge: Edge, protocol: str) -> None:
    for content_type in ("application/json", "text/plain", ""):
        async with edge.client.post(f"/{protocol}/x", data=b"v=0", headers={"Content-Type": content_type}) as response:
            assert response.status == 415
            assert response.headers["Accept-Post"] == SDP
    async with edge.client.post(f"/{protocol}/x", data=b"\xff", headers=OFFER) as response:
        assert response.status == 400
    async with edge.client.post(f"/{protocol}/x", data=b"v" * 70_000, headers=OFFER) as response:
        assert response.status == 413
    assert edge.streams.offers == []


@BOTH
@pytest.mark.parametrize(
    ("failure", "status", "kind", "retry"),
    [
        (OfferError("it cannot be read"), 400, "bad-offer", None),
        (UnsupportedMediaError("it sends no audio"), 422, "unsupported-media", None),
        (NameTakenError("the name has a publisher", 2), 409, "name-taken", "2"),
        (NotLiveError("nothing is live", 3), 409, "not-live", "3"),
        (CapacityError("all are taken", 17), 503, "full", "17"),
    ],
)
async def test_refusals_become_statuses(
    edge: Edge, protocol: str, failure: EchoRtcError, status: int, kind: str, retry: str | None
) -> None:
    edge.streams.failure = failure
    async with edge.client.post(f"/{protocol}/x", data="v=0", headers=OFFER) as response:
        problem = await response.json(content_type=PROBLEM)
        assert response.status == problem["status"] == status
        assert problem["type"] == f"urn:echo-rtc:problem:{kind}"
        assert response.headers.get("Retry-After") == retry


async def test_publishing_is_refused_before_the_server_is_ready(edge: Edge) -> None:
    edge.lifecycle.phase = Phase.STARTING
    async with edge.client.post("/whip/x", data="v=0", headers=OFFER) as response:
        assert response.status == 503
        assert int(response.headers["Retry-After"]) > 0
    assert edge.streams.offers == []


@BOTH
async def test_options_and_head_say_what_is_taken(edge: Edge, protocol: str) -> None:
    async with edge.client.options(f"/{protocol}/x") as response:
        assert response.status == 204
        assert response.headers["Accept-Post"] == SDP
        assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS", "POST"}
    async with edge.client.options(f"/{protocol}/x/1") as response:
        assert response.status == 204
        assert response.headers["Accept-Patch"] == FRAGMENT
        assert set(response.headers["Allow"].split(", ")) == {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH"}
    for ask in (edge.client.head, edge.client.get):
        async with ask(f"/{protocol}/x") as response:
            assert response.status == 200
            assert response.content_type == SDP
            assert await response.read() == b""


@BOTH
async def test_candidates_need_the_right_tag(edge: Edge, protocol: str) -> None:
    async with edge.client.post(f"/{protocol}/x", data="v=0", headers=OFFER) as response:
        place, tag = response.headers["Location"], response.headers["ETag"]
    for headers, status in (
        ({}, 428),
        ({"If-Match": '"other"'}, 412),
        ({"If-Match": f"W/{tag}"}, 412),
        ({"If-Match": tag}, 204),
        ({"If-Match": f'"other", {tag}'}, 204),
        ({"If-Match": "*"}, 204),
        ({"If-Match": '"*"'}, 204),
        ({"If-Match": tag, "Content-Type": SDP}, 415),
    ):
        async with edge.client.patch(place, data="a=mid:0", headers={**TRICKLE, **headers}) as response:
            assert response.status == status, headers
            assert "ETag" not in response.headers
            if status == 415:
                assert response.headers["Accept-Patch"] == FRAGMENT
    assert edge.streams.fragments == ["a=mid:0"] * 4
    edge.streams.failure = IceRestartError("another session")
    async with edge.client.patch(place, data="a=mid:0", headers={**TRICKLE, "If-Match": "*"}) as response:
        assert response.status == 422
        assert (await response.json(content_type=PROBLEM))["type"].endswith(":no-restart")
    async with edge.client.get(place) as response:
        assert response.status == 204


@BOTH
async def test_a_session_ends_once_and_has_one_address(edge: Edge, protocol: str) -> None:
    other = PROTOCOLS[1 - PROTOCOLS.index(protocol)]
    async with edge.client.post(f"/{protocol}/x", data="v=0", headers=OFFER) as response:
        place = response.headers["Location"]
    for wrong in (place.replace(protocol, other), place.replace("/x/", "/y/"), place + "0"):
        async with edge.client.delete(wrong) as response:
            assert response.status == 404
            assert (await response.json(content_type=PROBLEM))["type"].endswith(":unknown-session")
    async with edge.client.delete(place) as response:
        assert response.status == 200
    for method, headers in (("DELETE", {}), ("GET", {}), ("PATCH", {**TRICKLE, "If-Match": "*"})):
        async with edge.client.request(method, place, headers=headers) as response:
            assert response.status == 404


def test_ice_servers_become_links() -> None:
    assert ice_links([]) == []
    servers: list[IceServer] = [
        {"urls": ["stun:a.example", "stun:b.example:99"]},
        {"urls": "turn:a.example?transport=udp", "username": 'me "x"', "credential": "se\\cret"},
    ]
    assert ice_links(servers) == [
        '<stun:a.example>; rel="ice-server"',
        '<stun:b.example:99>; rel="ice-server"',
        '<turn:a.example?transport=udp>; rel="ice-server"; username="me \\"x\\""; credential="se\\\\cret"; '
        'credential-type="password"',
    ]


# -------------------------------------------------------------------------------------------------- with real peers

FORMAT = ClipFormat(fps=24, clip_frames=6, width=160, height=160)
PATIENCE_S = 15.0


class Service:
    """The application with a real manager and test cards, and its clients."""

    def __init__(self, client: TestClient[web.Request, web.Application], manager: StreamManager) -> None:
        self.client = client
        self.manager = manager
        self.peers: list[Caller | Publisher] = []
        self.places: list[str] = []

    def exchange(self, path: str, offer: Callable[[str], str] = lambda text: text) -> Exchange:
        """Posts offers to ``path``, changed by ``offer``; the sessions' places are kept."""

        async def post(sdp: str) -> str:
            async with self.client.post(path, data=offer(sdp), headers=OFFER) as response:
                text = await response.text()
                assert response.status == 201, text
                assert text.count("a=rtcp-mux-only\r\n") == len(re.findall("^m=(?:audio|video)", text, re.MULTILINE))
                self.places.append(response.headers["Location"])
                return text

        return post

    async def publish(self, name: str) -> Publisher:
        publisher = Publisher(babble)
        self.peers.append(publisher)
        await publisher.connect(self.exchange(f"/whip/{name}"))
        return publisher

    async def view(self, name: str, offer: Callable[[str], str] = lambda text: text) -> Watcher:
        watcher = Watcher()
        self.peers.append(watcher.caller)
        await watcher.caller.connect(self.exchange(f"/whep/{name}", offer))
        return watcher

    async def refused(self, path: str, peer: Caller | Publisher) -> aiohttp.ClientResponse:
        self.peers.append(peer)
        await peer.connection.setLocalDescription(await peer.connection.createOffer())
        async with self.client.post(path, data=peer.connection.localDescription.sdp, headers=OFFER) as response:
            return response


class Watcher:
    """A viewer, and what it has seen and heard."""

    def __init__(self) -> None:
        self.frames: list[int] = []
        self.idle: list[bool] = []
        self.blocks = 0
        self.caller = Caller(None, lambda _: self.hear(), lambda seen: self.see(seen.luma), speaks=False)

    def hear(self) -> None:
        self.blocks += 1

    def see(self, luma: object) -> None:
        card = read_card(luma)  # type: ignore[arg-type]
        self.idle.append(card.idle)
        self.frames.append(card.frame)

    async def until(self, what: Callable[[Watcher], bool]) -> None:
        await until(lambda: what(self))


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not what():  # noqa: ASYNC110  what is waited for are counters, which have no event
            await asyncio.sleep(0.02)


Serve = Callable[..., Awaitable[Service]]


@pytest.fixture
async def serve(
    aiohttp_client: Callable[[web.Application], Awaitable[TestClient[web.Request, web.Application]]],
) -> AsyncIterator[Serve]:
    """Makes a service of the given options; everything of it is closed in the end."""
    engine = TestCardEngine(FORMAT, capacity=2)
    await engine.start(lambda _: None)
    made: list[Service] = []

    async def begin(options: ManagerOptions | None = None) -> Service:
        manager = StreamManager(engine, options or ManagerOptions())
        health = Health(engine, Lifecycle(Phase.READY), "testcard")
        app = create_app(manager, health, STATIC, gallery_of(FakeLibrary()))
        made.append(Service(await aiohttp_client(app), manager))
        return made[0]

    yield begin
    for service in made:
        await asyncio.gather(*(peer.close() for peer in service.peers))
        await service.manager.close()
    await engine.close()


async def test_a_voice_is_published_and_viewed(serve: Serve) -> None:
    service = await serve()
    publisher = await service.publish("studio")
    answer = publisher.connection.remoteDescription.sdp
    assert "a=recvonly" in answer
    assert "m=video" not in answer
    first, second = await service.view("studio"), await service.view("studio")
    for watcher in (first, second):
        assert "a=sendonly" in watcher.caller.connection.remoteDescription.sdp
        await watcher.until(lambda w: w.idle.count(False) > 24 and w.blocks > 50)
        assert {event["type"] for event in watcher.caller.events} == {"state", "stats"}
    (stream_id,) = service.manager.streams
    statistics = service.manager.statistics(stream_id)
    assert statistics is not None
    assert statistics["name"] == "studio"
    assert len(statistics["viewers"]) == 2  # type: ignore[arg-type]
    # By the stream's id, too; and one viewer's end is nobody else's.
    third = await service.view(stream_id)
    await third.until(lambda w: len(w.frames) > 5)
    async with service.client.delete(service.places[1]) as response:
        assert response.status == 200
    await until(lambda: first.caller.connection.connectionState == "closed")
    seen = len(second.frames)
    await second.until(lambda w: len(w.frames) > seen + 24)
    # The publisher leaves: the stream ends for all, and the name is free.
    async with service.client.delete(service.places[0]) as response:
        assert response.status == 200
    assert service.manager.streams == {}
    await until(lambda: second.caller.connection.connectionState == "closed")
    assert second.caller.events[-1] == {"type": "end", "reason": "closed by the client"}
    await service.publish("studio")


async def test_a_name_belongs_to_one_and_nothing_is_live_under_others(serve: Serve) -> None:
    service = await serve()
    await service.publish("studio")
    taken = await service.refused("/whip/studio", Publisher(babble))
    assert taken.status == 409
    assert int(taken.headers["Retry-After"]) > 0
    (stream_id,) = service.manager.streams
    assert (await service.refused(f"/whip/{stream_id}", Publisher(babble))).status == 409
    idle = await service.refused("/whep/kitchen", Caller(None, speaks=False))
    assert idle.status == 409
    assert int(idle.headers["Retry-After"]) > 0
    assert (await service.refused("/whip/with%20blank", Publisher(babble))).status == 400
    assert (await service.refused("/whep/studio", Publisher(babble))).status == 422
    assert (await service.refused("/whip/kitchen", Caller(None, speaks=False))).status == 422
    await service.publish("kitchen")
    assert (await service.refused("/whip/bath", Publisher(babble))).status == 503
    counters = service.manager.counters
    assert (counters.name_taken, counters.not_live, counters.full) == (2, 1, 1)


async def test_two_publishers_at_once_do_not_share_a_name(serve: Serve) -> None:
    service = await serve()
    answers = await asyncio.gather(*(service.refused("/whip/studio", Publisher(babble)) for _ in range(2)))
    assert sorted(answer.status for answer in answers) == [201, 409]


async def test_a_viewer_of_an_ended_stream_joins_no_other(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    service = await serve()
    await service.publish("studio")
    answered, go = asyncio.Event(), asyncio.Event()
    answer = service.manager._answer

    async def slowly(*arguments: Any) -> Any:
        peer = await answer(*arguments)
        answered.set()
        await go.wait()
        return peer

    with monkeypatch.context() as patch:
        patch.setattr(service.manager, "_answer", slowly)
        viewing = asyncio.create_task(service.refused("/whep/studio", Caller(None, speaks=False)))
        await answered.wait()
    async with service.client.delete(service.places[0]) as response:
        assert response.status == 200
    await service.publish("studio")
    go.set()
    assert (await viewing).status == 409
    (stream_id,) = service.manager.streams
    statistics = service.manager.statistics(stream_id)
    assert statistics is not None
    assert statistics["viewers"] == []


async def test_a_call_with_a_name_is_viewed(serve: Serve) -> None:
    service = await serve()
    caller = Caller(babble)
    service.peers.append(caller)

    async def exchange(offer: str) -> str:
        body = {"sdp": offer, "type": "offer", "name": "desk"}
        async with service.client.post("/offer", json=body) as response:
            assert response.status == 200
            return str((await response.json())["sdp"])

    await caller.connect(exchange)
    watcher = await service.view("desk")
    await watcher.until(lambda w: w.idle.count(False) > 5)


async def test_viewers_wait_for_a_lost_publisher(serve: Serve) -> None:
    service = await serve()
    publisher = await service.publish("studio")
    watcher = await service.view("studio")
    await watcher.until(lambda w: w.idle.count(False) > 12)
    (stream_id,) = service.manager.streams
    await publisher.close()
    await until(lambda: not (service.manager.statistics(stream_id) or {"published": False})["published"])
    await watcher.until(lambda w: w.idle[-1])
    await service.publish("studio")
    seen = len(watcher.frames)
    await watcher.until(lambda w: w.idle[seen:].count(False) > 12)
    assert list(service.manager.streams) == [stream_id]
    assert service.manager.counters.resumed == 1
    # What the former publisher holds opens nothing any more.
    for ask in (service.client.get, service.client.delete):
        async with ask(f"/streams/{stream_id}") as response:
            assert response.status == 404
    statistics = service.manager.statistics(stream_id)
    assert statistics is not None
    assert statistics["viewers"][0]["picture_dropped"] == 0  # type: ignore[index]
    # Frames go on counting: for the viewer nothing was interrupted.
    numbers = [frame for frame, idle in zip(watcher.frames, watcher.idle, strict=True) if not idle]
    assert numbers == sorted(numbers)


async def test_the_grace_period_is_short_and_needs_viewers(serve: Serve) -> None:
    service = await serve(ManagerOptions(linger_s=0.3))
    alone = await service.publish("alone")
    await alone.close()
    await until(lambda: not service.manager.streams)
    publisher = await service.publish("studio")
    watcher = await service.view("studio")
    await watcher.until(lambda w: len(w.frames) > 3)
    await publisher.close()
    await until(lambda: watcher.caller.connection.connectionState == "closed" and not service.manager.streams)
    assert watcher.caller.events[-1] == {"type": "end", "reason": "the publisher was lost"}


async def test_a_publisher_may_hang_up_first_and_then_say_so(serve: Serve) -> None:
    service = await serve()
    publisher = await service.publish("studio")
    watcher = await service.view("studio")
    (stream_id,) = service.manager.streams
    await publisher.close()
    await until(lambda: not (service.manager.statistics(stream_id) or {"published": False})["published"])
    async with service.client.delete(service.places[0]) as response:
        assert response.status == 200
    assert service.manager.streams == {}
    await until(lambda: watcher.caller.connection.connectionState == "closed")


async def test_the_last_viewer_of_a_lost_publisher_ends_the_stream(serve: Serve) -> None:
    service = await serve()
    publisher = await service.publish("studio")
    watcher = await service.view("studio")
    await publisher.close()
    (stream_id,) = service.manager.streams
    await until(lambda: not (service.manager.statistics(stream_id) or {"published": False})["published"])
    await watcher.caller.close()
    await until(lambda: not service.manager.streams)


async def test_a_viewer_in_trouble_slows_no_other(serve: Serve) -> None:
    """One of three reports a lost picture and a way that is far too narrow, twenty times a second."""
    service = await serve()
    await service.publish("studio")
    well, also_well, ill = [await service.view("studio") for _ in range(3)]
    for watcher in (well, also_well, ill):
        await watcher.until(lambda w: len(w.frames) > 12)
    (stream_id,) = service.manager.streams

    def key_frames() -> int:
        found: Any = (service.manager.statistics(stream_id) or {})["encoder"]
        return int(found["key_frames"])

    receiver = ill.caller.picture_receiver
    source = receiver.getSynchronizationSources()[0].source
    narrow = RtcpPsfbPacket(fmt=RTCP_PSFB_APP, ssrc=1, media_ssrc=0, fci=pack_remb_fci(20_000, [source]))
    before, seen = key_frames(), [len(watcher.frames) for watcher in (well, also_well)]
    for _ in range(60):
        await receiver._send_rtcp_pli(source)
        await receiver._send_rtcp(narrow)
        await asyncio.sleep(0.05)
    # One at once, and one more for each KEY_FRAME_PATIENCE_S; a change of the bitrate costs one, too.
    assert key_frames() - before <= 4
    for watcher, earlier in zip((well, also_well), seen, strict=True):
        assert len(watcher.frames) - earlier > 48
        frames = [n for n, idle in zip(watcher.frames, watcher.idle, strict=True) if not idle]
        assert frames == sorted(frames)


def without_candidates(offer: str) -> str:
    return re.sub(r"^a=(candidate:.*|end-of-candidates)\r\n", "", offer, flags=re.MULTILINE)


async def test_an_offer_without_candidates_connects(serve: Serve) -> None:
    service = await serve()
    await service.publish("studio")
    watcher = await service.view("studio", without_candidates)
    await watcher.until(lambda w: len(w.frames) > 3)


async def test_candidates_that_come_later_are_what_connects(serve: Serve) -> None:
    """The answer's own candidates are kept from the client, so that only the server can find the client."""
    service = await serve()
    await service.publish("studio")
    watcher = Watcher()
    service.peers.append(watcher.caller)
    offer = ""

    async def exchange(sdp: str) -> str:
        nonlocal offer
        offer = sdp
        return without_candidates(await service.exchange("/whep/studio", without_candidates)(sdp))

    connecting = asyncio.create_task(watcher.caller.connect(exchange))
    await until(lambda: len(service.places) == 2)
    place = service.places[1]
    [ufrag, *_] = re.findall(r"a=ice-ufrag:(\S+)", offer)
    candidates = "".join(f"{line}\r\n" for line in offer.splitlines() if line.startswith("a=candidate:"))
    fragment = f"a=ice-ufrag:{ufrag}\r\nm=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\n{candidates}a=end-of-candidates\r\n"
    async with service.client.head(place) as response:
        assert response.status == 204
    for text, status in (
        (fragment.replace(ufrag, "other"), 422),
        ("nonsense", 400),
        (fragment, 204),
    ):
        headers = {**TRICKLE, "If-Match": "*"}
        async with service.client.patch(place, data=text, headers=headers) as response:
            assert response.status == status, await response.text()
    await connecting
    await watcher.until(lambda w: len(w.frames) > 3)


OBS = f"""v=0
o=rtc 3767197920 0 IN IP4 127.0.0.1
s=-
t=0 0
a=group:BUNDLE 0 1
a=group:LS 0 1
a=msid-semantic:WMS *
a=ice-options:ice2,trickle
a=fingerprint:sha-256 {":".join(["AB"] * 32)}
m=audio 9 UDP/TLS/RTP/SAVPF 111
c=IN IP4 0.0.0.0
a=mid:0
a=sendonly
a=ssrc:2158117081 cname:lWfXfJvTyKLJHOsW
a=ssrc:2158117081 msid:stream lWfXfJvTyKLJHOsW-audio
a=msid:stream lWfXfJvTyKLJHOsW-audio
a=rtcp-mux
a=rtpmap:111 opus/48000/2
a=fmtp:111 minptime=10;maxaveragebitrate=96000;stereo=1;sprop-stereo=1;useinbandfec=1
a=setup:actpass
a=ice-ufrag:vl3s
a=ice-pwd:jjyMr8nUSJQ8kCnOTeKQBM
m=video 9 UDP/TLS/RTP/SAVPF 96
c=IN IP4 0.0.0.0
a=mid:1
a=sendonly
a=ssrc:2158117082 cname:lWfXfJvTyKLJHOsW
a=msid:stream lWfXfJvTyKLJHOsW-video
a=rtcp-mux
a=rtpmap:96 H264/90000
a=rtcp-fb:96 nack
a=rtcp-fb:96 nack pli
a=rtcp-fb:96 goog-remb
a=fmtp:96 profile-level-id=42e01f;packetization-mode=1;level-asymmetry-allowed=1
a=setup:actpass
a=ice-ufrag:vl3s
a=ice-pwd:jjyMr8nUSJQ8kCnOTeKQBM
""".replace("\n", "\r\n")
"""An offer of the form that OBS Studio makes: sound and picture, and no candidate."""


@pytest.mark.parametrize("codec", ["H264", "H265"])
async def test_an_offer_of_the_form_of_obs_is_answered(serve: Serve, codec: str) -> None:
    service = await serve()
    body = OBS.replace("H264", codec)
    async with service.client.post("/whip/obs", data=body, headers=OFFER) as response:
        answer = await response.text()
        assert response.status == 201
    head, sound, picture = re.split("^(?=m=)", answer, flags=re.MULTILINE)
    assert "a=recvonly\r\n" in sound
    assert "a=setup:passive\r\n" in sound
    assert "a=candidate:" in sound
    assert "a=inactive\r\n" in picture
    assert picture.startswith("m=video 0 ") == (codec == "H265")
    assert f"a=group:BUNDLE {'0' if codec == 'H265' else '0 1'}\r\n" in head
    async with service.client.delete(response.headers["Location"]) as deleted:
        assert deleted.status == 200
