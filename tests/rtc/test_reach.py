"""Peers that reach the server from elsewhere: through a relay only, within a range of ports, at a public address; and
streams without a speaker, and streams with too many viewers."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from aiortc import RTCConfiguration, RTCIceServer, RTCIceTransportPolicy, RTCPeerConnection
from aiortc.mediastreams import MediaStreamTrack

from echo_rtc.bench.stream import babble
from echo_rtc.bench.support.calls import Caller
from echo_rtc.engine.testcard import AVATAR, TestCardEngine
from echo_rtc.errors import CapacityError, RenegotiationError, TooManyError
from echo_rtc.rtc.manager import MAX_HALF_OPEN, ManagerOptions
from echo_rtc.rtc.network import Network
from echo_rtc.rtc.peer import PeerOptions
from echo_rtc.rtc.session import Caller as Client
from echo_rtc.rtc.tracks import packetizer
from echo_rtc.rtc.voice import microphone
from echo_rtc.stream.stream import Stream, StreamOptions
from tests.rtc.seams.test_ports import taken
from tests.rtc.test_calls import FORMAT, Sight, house, until
from tests.support import virtual
from tests.support.turn import coturn

PUBLIC = "203.0.113.5"
OFFERS = Path(__file__).parents[1] / "data" / "offers"


def reachable(network: Network) -> ManagerOptions:
    return ManagerOptions(peer=PeerOptions(network=network))


def candidates(sdp: str) -> list[tuple[str, int, str]]:
    """(address, port, type) of a description's candidates."""
    found = re.findall(r"candidate:\S+ 1 udp \d+ (\S+) (\d+) typ (\w+)", sdp)
    return [(address, int(port), kind) for address, port, kind in found]


async def offer(direction: str = "sendrecv") -> str:
    """What a browser would offer: a microphone and a picture, or to look only."""
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    try:
        peer.addTransceiver("audio", direction)
        peer.addTransceiver("video", "recvonly")
        await peer.setLocalDescription(await peer.createOffer())
        return peer.localDescription.sdp
    finally:
        await peer.close()


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_a_call_goes_through_a_relay_only(tmp_path: Path, transport: str) -> None:
    sight = Sight()
    async with coturn(tmp_path) as turn:
        network = Network.of([turn.url.replace("=udp", f"={transport}")], turn.secret, None, [])
        async with house(options=reachable(network)) as home:
            [told] = network.ice_servers()
            relay_only = RTCConfiguration(
                iceServers=[RTCIceServer(told["urls"], told["username"], told["credential"])],
                iceTransportPolicy=RTCIceTransportPolicy.RELAY,
            )
            caller = Caller(babble, sight.hear, sight.see, network=relay_only)
            await home.call(caller)
            assert {kind for _, _, kind in candidates(caller.connection.localDescription.sdp)} == {"relay"}
            assert "relay" in {kind for _, _, kind in candidates(caller.connection.remoteDescription.sdp)}
            await until(lambda: len(sight.spoken) > 24 and len(sight.sound) > 50)
        # The caller's, one for each section of its offer, and the server's own. Repeated requests are logged, too.
        assert turn.allocations() >= 3 + 1


async def test_a_relay_that_dies_keeps_no_call(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with coturn(tmp_path) as turn:
        async with house(options=reachable(Network.of([turn.url], turn.secret, None, []))) as home:
            opened = await home.manager.open_call(await offer(), AVATAR)
            assert "relay" in {kind for _, _, kind in candidates(opened.answer_sdp)}
            turn.kill()
            assert await home.manager.close_stream(opened.stream, "the test has seen enough")
        assert "did not close" not in caplog.text


async def test_stun_is_asked_for_further_candidates(tmp_path: Path) -> None:
    async with coturn(tmp_path) as turn:
        stun = turn.url.replace("turn:", "stun:").partition("?")[0]
        async with house(options=reachable(Network.of([stun], None, None, []))) as home:
            opened = await home.manager.open_call(await offer(), AVATAR)
            assert {kind for _, _, kind in candidates(opened.answer_sdp)} == {"host", "srflx"}


async def test_credentials_of_another_secret_open_no_relay(tmp_path: Path) -> None:
    async with coturn(tmp_path) as turn:
        network = Network.of([turn.url], "another-secret", None, [])
        async with house(options=reachable(network)) as home:
            opened = await home.manager.open_call(await offer(), AVATAR)
            assert {kind for _, _, kind in candidates(opened.answer_sdp)} == {"host"}
        assert turn.allocations() == 0


async def test_an_answer_has_the_public_address_and_a_port_in_range() -> None:
    network = Network.of([], None, "25300-25349", [PUBLIC])
    async with house(options=reachable(network)) as home:
        for _ in range(2):
            opened = await home.manager.open_call(await offer(), AVATAR)
            found = [(address, port) for address, port, _ in candidates(opened.answer_sdp) if ":" not in address]
            assert found
            assert {address for address, _ in found} == {PUBLIC}
            assert all(25_300 <= port <= 25_349 for _, port in found)
            assert f"c=IN IP4 {PUBLIC}" in opened.answer_sdp


async def test_a_call_that_finds_no_port_is_refused_and_leaves_nothing() -> None:
    network = Network.of([], None, "25350-25359", [])
    assert network.ports is not None
    async with house(options=reachable(network)) as home:
        addresses = {address for address, _, _ in candidates(await offer())}
        with taken(sorted(addresses), range(25_350, 25_360)):
            for _ in range(2):
                with pytest.raises(CapacityError, match="all UDP ports") as refused:
                    await home.manager.open_call(await offer(), AVATAR)
                assert refused.value.retry_after_s > 0
            assert home.manager.streams == {}
            assert network.ports.exhausted > 0
        await home.manager.open_call(await offer(), AVATAR)


async def test_a_range_holds_as_many_peers_as_it_has_ports() -> None:
    async with house(options=reachable(Network.of([], None, "25350-25352", []))) as home:
        opened = [await home.manager.open_call(await offer(), AVATAR) for _ in range(3)]
        with pytest.raises(CapacityError, match="all UDP ports"):
            await home.manager.open_call(await offer(), AVATAR)
        await home.manager.close_stream(opened[0].stream, "making room")
        await home.manager.open_call(await offer(), AVATAR)


def unbundled(text: str) -> str:
    return re.sub(r"a=group:BUNDLE[^\r\n]*\r\n", "", text)


async def test_viewers_leave_ports_to_publishers() -> None:
    async with house(options=reachable(Network.of([], None, "25350-25357", []))) as home:
        await home.manager.open_call(await offer(), AVATAR, "studio")
        viewers = [await home.manager.view("studio", await offer("recvonly")) for _ in range(5)]
        with pytest.raises(CapacityError, match="all UDP ports"):
            await home.manager.view("studio", await offer("recvonly"))
        await home.manager.open_call(await offer(), AVATAR)
        for viewer in viewers[:2]:
            await home.manager.close_session(viewer, "making room")
        await home.manager.view("studio", await offer("recvonly"))


async def test_an_offer_without_bundle_takes_two_ports_or_none() -> None:
    network = Network.of([], None, "25350-25352", [])
    assert network.ports is not None
    async with house(options=reachable(network)) as home:
        opened = await home.manager.open_call(unbundled(await offer()), AVATAR)
        assert network.ports.leased == 2
        assert "a=group" not in opened.answer_sdp
        assert len({port for _, port, _ in candidates(opened.answer_sdp)}) >= 2
        with pytest.raises(CapacityError, match="all UDP ports"):
            await home.manager.open_call(unbundled(await offer()), AVATAR)
        await home.manager.open_call(await offer(), AVATAR)
        await home.manager.close_stream(opened.stream, "making room")
        assert network.ports.leased == 1
    assert network.ports.leased == 0


@pytest.mark.parametrize(
    ("name", "text"), [(path.stem, path.read_text("utf-8")) for path in sorted(OFFERS.glob("*-*.sdp"))]
)
async def test_answers_fit_the_offers_of_all_programs(name: str, text: str) -> None:
    text = text.replace("\n", "\r\n")
    async with house() as home:
        if name.endswith("-call"):
            answer = (await home.manager.open_call(text, AVATAR)).answer_sdp
        elif name.endswith("-whip"):
            answer = (await home.manager.publish("studio", text, AVATAR)).answer_sdp
        else:
            await home.manager.open_call(await offer(), AVATAR, "studio")
            answer = (await home.manager.view("studio", text)).answer_sdp
    kinds, mids = r"^m=(\w+)", r"^a=mid:(\S+)"
    for pattern in (kinds, mids):
        assert re.findall(pattern, answer, re.MULTILINE) == re.findall(pattern, text, re.MULTILINE)
    offered = re.findall(r"^a=group:BUNDLE (.*?)\r?$", text, re.MULTILINE)
    answered = re.findall(r"^a=group:BUNDLE (.*?)\r?$", answer, re.MULTILINE)
    refused = re.findall(r"^m=\w+ 0 .*?^a=mid:(\S+)", answer, re.MULTILINE | re.DOTALL)
    assert answered == [" ".join(mid for mid in group.split() if mid not in refused) for group in offered]
    formats = [set(line.split()[3:]) for line in re.findall(r"^m=.*", text, re.MULTILINE)]
    for line, known in zip(re.findall(r"^m=.*", answer, re.MULTILINE), formats, strict=True):
        assert set(line.split()[3:]) <= known


async def test_a_call_without_bundle_works() -> None:
    sight = Sight()
    async with house(options=reachable(Network.of([], None, "25360-25399", []))) as home:
        caller = Caller(babble, sight.hear, sight.see)
        home.callers.append(caller)

        async def exchange(text: str) -> str:
            return (await home.manager.open_call(unbundled(text), AVATAR)).answer_sdp

        await caller.connect(exchange)
        await until(lambda: len(sight.spoken) > 12 and len(sight.sound) > 50)


async def test_one_client_has_few_connections_that_are_not_up() -> None:
    async with house(options=ManagerOptions(peer=PeerOptions(connect_timeout_s=0.5))) as home:
        client, other = Client("192.0.2.9"), Client("192.0.2.10")
        await home.manager.open_call(await offer(), AVATAR, "studio")
        for _ in range(MAX_HALF_OPEN):
            await home.manager.view("studio", await offer("recvonly"), client)
        with pytest.raises(TooManyError, match="none is up yet"):
            await home.manager.view("studio", "this is not even read", client)
        await home.manager.view("studio", await offer("recvonly"), other)
        await until(lambda: not home.manager.streams)
        await home.manager.open_call(await offer(), AVATAR, None, client)


async def test_a_connection_that_is_up_is_not_renegotiated() -> None:
    sight = Sight()
    async with house() as home:
        caller = Caller(babble, sight.hear, sight.see)
        await home.call(caller)
        again = (await caller.connection.createOffer()).sdp
        with pytest.raises(RenegotiationError, match="not renegotiated"):
            await home.manager.open_call(again, AVATAR)
        seen = len(sight.cards)
        await until(lambda: len(sight.cards) > seen + 12)


async def test_a_call_stays_within_its_range() -> None:
    sight = Sight()
    async with house(options=reachable(Network.of([], None, "25360-25399", []))) as home:
        caller = Caller(babble, sight.hear, sight.see)
        await home.call(caller)
        assert all(25_360 <= port <= 25_399 for _, port, _ in candidates(caller.connection.remoteDescription.sdp))
        await until(lambda: len(sight.cards) > 12)


async def test_a_stream_has_only_so_many_peers() -> None:
    async with house(options=replace(ManagerOptions(), max_peers=3)) as home:
        await home.manager.open_call(await offer(), AVATAR, "studio")
        first, *results = await asyncio.gather(
            *[home.manager.view("studio", await offer("recvonly")) for _ in range(4)], return_exceptions=True
        )
        refusals = [result for result in results if isinstance(result, CapacityError)]
        assert len(refusals) == 2
        assert "this stream has 3 peers" in str(refusals[0])
        assert home.manager.counters.crowded == 2
        assert not isinstance(first, BaseException)
        assert await home.manager.close_session(first, "making room")
        await home.manager.view("studio", await offer("recvonly"))


async def test_a_caller_that_sends_nothing_is_told_why_it_ends() -> None:
    async with house(options=ManagerOptions(stream=StreamOptions(voice_timeout_s=2.5))) as home:
        caller = Caller(None)
        await home.call(caller)
        await until(lambda: not home.manager.streams)
        await until(lambda: caller.events[-1]["type"] == "end")
        assert caller.events[-1]["reason"] == "the microphone sent nothing for 2.5 s"


class Microphone(MediaStreamTrack):
    """Sends silence for some seconds, and then nothing."""

    kind = "audio"

    def __init__(self, silence_s: float) -> None:
        super().__init__()
        self._left = round(silence_s * 50)
        self._pts = 0

    async def recv(self) -> av.AudioFrame:
        if not self._left:
            await asyncio.Event().wait()
        self._left -= 1
        await asyncio.sleep(0.02)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1920), np.int16), format="s16", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, self._pts, Fraction(1, 48_000)
        self._pts += 960
        return frame


def test_a_voice_timeout_ends_a_stream_but_silence_does_not() -> None:
    async def life(timeout_s: float) -> float:
        engine = TestCardEngine(FORMAT)
        await engine.start(lambda _: None)
        stream = Stream(engine, engine.avatars[AVATAR], StreamOptions(voice_timeout_s=timeout_s), packetizer)
        begun = asyncio.get_running_loop().time()
        stream.listen(microphone(Microphone(silence_s=10.0)))
        stream.begin()
        await asyncio.wait({stream.ended}, timeout=60.0)
        lasted = asyncio.get_running_loop().time() - begun
        await stream.close("the test has seen enough")
        await engine.close()
        return lasted

    assert 13.0 < virtual.run(life(3.0)) < 14.5
    assert virtual.run(life(0.0)) == pytest.approx(60.0)
