"""Whole calls through real peer connections on this machine, at a server of test cards.

Real time cannot be avoided here: each test waits for what it needs to see, and takes a few seconds.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import re
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from fractions import Fraction
from typing import Any

import aiortc.clock
import av
import numpy as np
import pytest
from aiortc import RTCPeerConnection

from echo_rtc.bench.stream import babble
from echo_rtc.bench.support.calls import Caller, Heard, ScriptedMicrophone, Seen, Voice
from echo_rtc.bench.sync import Beeps, Recording, offsets
from echo_rtc.clips import MEDIA_RATE, ClipFormat, S16Array
from echo_rtc.codec.marking import Mark
from echo_rtc.codec.picture import PICTURE_RATE
from echo_rtc.engine.card import CardFacts, level_of, read_card
from echo_rtc.engine.testcard import AVATAR, ScriptedFaults, TestCardEngine
from echo_rtc.errors import CapacityError, EchoRtcError, NotLiveError, OfferError, TooManyError, UnsupportedMediaError
from echo_rtc.rendering import Engine, RenderRequest, RenderResult, TakeFrames
from echo_rtc.rtc.manager import ManagerOptions, StreamManager
from echo_rtc.rtc.peer import FRAGMENTS_BURST, MAX_EVENT_CHANNELS, Peer, PeerOptions

FORMAT = ClipFormat(fps=24, clip_frames=6, width=160, height=160)
"""Clips of a quarter of a second: everything begins sooner."""
PATIENCE_S = 15.0
STARVED_S = 0.1
"""If a packet left later than this, or the microphone's came too late, other programs took the processor, and the call
says nothing of this one."""


def silence(_: int, count: int) -> S16Array:
    return np.zeros(count, np.int16)


class Sight:
    """What a caller has seen and heard."""

    def __init__(self) -> None:
        self.cards: list[CardFacts] = []
        self.sound: list[Heard] = []
        self.marks: list[dict[str, Any]] = []

    def see(self, seen: Seen) -> None:
        self.cards.append(read_card(seen.luma))
        self.marks += seen.marks

    def hear(self, heard: Heard) -> None:
        self.sound.append(heard)

    @property
    def spoken(self) -> list[CardFacts]:
        """The cards that were rendered for a sound."""
        return [card for card in self.cards if not card.idle]


class House:
    """A manager with an engine, and callers who call it."""

    def __init__(self, engine: Engine, options: ManagerOptions) -> None:
        self.engine = engine
        self.manager = StreamManager(engine, options)
        self.callers: list[Caller] = []

    async def call(self, caller: Caller) -> str:
        """Connects a caller; its stream's id."""
        self.callers.append(caller)
        opened: list[str] = []

        async def exchange(offer: str) -> str:
            peer = await self.manager.open_call(offer, AVATAR)
            opened.append(peer.stream)
            return peer.answer_sdp

        await caller.connect(exchange)
        return opened[0]

    def statistics(self, stream_id: str) -> dict[str, Any]:
        found = self.manager.statistics(stream_id)
        assert found is not None
        return found


@asynccontextmanager
async def house(engine: Engine | None = None, options: ManagerOptions | None = None) -> AsyncIterator[House]:
    """Everything is closed in the end; the leak checks of the test suite see to it that this leaves nothing."""
    engine = engine or TestCardEngine(FORMAT, capacity=4)
    await engine.start(lambda _: None)
    made = House(engine, options or ManagerOptions())
    try:
        yield made
    finally:
        await asyncio.gather(*(caller.close() for caller in made.callers))
        await made.manager.close()
        await engine.close()


async def until(what: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Waits for something that other tasks bring about, for ``patience_s`` seconds at most."""
    async with asyncio.timeout(patience_s):
        while not what():  # noqa: ASYNC110  what is waited for are counters, which have no event
            await asyncio.sleep(0.02)


def tone(amplitude: int) -> Voice:
    def voice(start: int, count: int) -> S16Array:
        return (np.sin(np.arange(start, start + count) * 2 * np.pi * 300 / 48_000) * amplitude).astype(np.int16)

    return voice


async def test_what_an_ended_call_leaves_is_cleared_away() -> None:
    """Python would look for it by itself after some fifty calls."""
    sight = Sight()
    gc.disable()
    try:
        async with house() as home:
            stream_id = await home.call(Caller(tone(10_000), sight.hear, sight.see))
            await until(lambda: bool(sight.spoken))
            stream = weakref.ref(home.manager.streams[stream_id])
            await home.manager.close_stream(stream_id, "the test has seen enough")
            await until(lambda: stream() is None)
    finally:
        gc.enable()


@pytest.mark.parametrize("codec", ["H264", "VP8", None])
async def test_a_call_brings_back_picture_sound_and_events(codec: str | None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "echo_rtc")
    sight = Sight()
    async with house() as home:
        caller = Caller(tone(10_000), sight.hear, sight.see, codec)
        stream_id = await home.call(caller)
        await until(lambda: len(sight.spoken) > 24 and len(sight.sound) > 100)
        statistics = home.statistics(stream_id)
        assert statistics["viewers"][0]["codec"] == (codec or "H264")
        assert 0 < statistics["fps"] <= 25
        assert statistics["rendered"] > 0
        assert {event["type"] for event in caller.events} == {"state", "stats"}
        states = [event["state"] for event in caller.events if event["type"] == "state"]
        assert states[0] == "idle"
        assert "speaking" in states
        assert len(stream_id) >= 20
        assert await home.manager.close_stream(stream_id, "the test has seen enough")
        assert not await home.manager.close_stream(stream_id, "again")
        await until(lambda: caller.events[-1]["type"] == "end")
        assert caller.events[-1] == {"type": "end", "reason": "the test has seen enough"}
        assert home.manager.streams == {}
    # What the keyframes say; VP8 has no place for it.
    mark = Mark(AVATAR).as_json()
    assert sight.marks[:1] == ([] if codec == "VP8" else [mark])
    assert all(each == mark for each in sight.marks)
    # The idle loop is seen at once, the sound comes back as loud as it went in, and the cards say so.
    assert sight.cards[0].idle
    assert max(int(np.abs(heard.pcm).max()) for heard in sight.sound) == pytest.approx(10_000, rel=0.25)
    # In order, and nearly all of them: a machine that is busy with other things may cost some.
    steps = np.diff([card.frame for card in sight.spoken])
    assert steps.min() >= 0
    assert np.median(steps) == 1
    [record] = [record for record in caplog.records if "ended: the test has seen enough" in record.message]
    # Where logs are JSON the figures are fields.
    fields = vars(record)
    assert (fields["event"], fields["stream"]) == ("stream_ended", stream_id[:8])
    assert fields["reason"] == "the test has seen enough"
    assert fields["rendered"] > 0
    assert 0 < fields["delay_p50_ms"] <= fields["delay_p95_ms"]
    assert set(fields["kbit_s"]) == {"Opus", codec or "H264"}
    number = r"\d+(?:\.\d+)?"
    assert re.search(
        rf"\[stream {re.escape(stream_id[:8])}\] ended: the test has seen enough; voice microphone, {number} s, "
        rf"\d+ frames rendered, \d+ idle, \d+ held, \d+ dropped, \d+ clips lost; delay \d+ ms, 95 % within \d+ ms; "
        rf"worst sync (unknown|-?{number} ms); Opus \d+ kbit/s, {codec or 'H264'} \d+ kbit/s$",
        record.message,
    ), record.message
    assert stream_id not in caplog.text


async def stalled_call(beeps: Beeps) -> tuple[dict[str, Any], Recording, Caller]:
    """A call of eight seconds in which the renderer stalls for two."""
    recording = Recording(FORMAT.fps)
    engine = TestCardEngine(FORMAT, ScriptedFaults(stalls_s={10: 2.0}), capacity=1)
    async with house(engine) as home:
        caller = Caller(beeps.voice, recording.hear, recording.see, "H264")
        stream_id = await home.call(caller)
        await asyncio.sleep(8.3)
        return home.statistics(stream_id), recording, caller


async def test_a_stalled_renderer_costs_frames_not_sync_or_sound() -> None:
    beeps = Beeps.lasting(7.5, gap_s=(0.35, 0.6))
    for _ in range(3):
        statistics, recording, caller = await stalled_call(beeps)
        if statistics["output"]["worst_late_s"] < STARVED_S and not statistics["microphone"]["late_dropped"]:
            break
    measured = offsets(caller, recording, settle_s=0.0)
    assert statistics["held"] + statistics["idle"] > 24
    assert statistics["clips"]["late"] >= 1
    assert {"type": "state", "state": "behind"} in caller.events
    assert len(measured) >= 4
    assert np.abs(measured).max() <= 30
    # Unbroken: every packet came in its place, nothing was missing when it was due, and every beep is whole. Between
    # beeps the delay changes, by whole frames: it grows for the stall, and shrinks if the machine was busy at first.
    assert statistics["playout"]["underruns"] == 0
    assert statistics["output"]["skipped_blocks"] == 0
    assert statistics["viewers"][0]["sound_dropped"] == 0
    assert set(np.diff([heard.pts for heard in recording.sound])) == {960}
    onsets = recording.sound_onsets()
    assert len(onsets) >= 7
    longer = np.diff(onsets) - np.diff(beeps.starts)[: len(onsets) - 1]
    assert np.abs((longer + 1_000) % 2_000 - 1_000).max() <= 480
    assert longer.min() >= -480 - statistics["playout"]["cut"] * 2_000
    changed = statistics["playout"]["stretched"] - statistics["playout"]["cut"]
    assert longer.sum() == pytest.approx(changed * 2_000, abs=2_000 * 12)
    line = np.concatenate([np.abs(heard.pcm.astype(int)) for heard in recording.sound])
    start = recording.sound[0].pts
    for onset in onsets[:-1]:
        at = round(onset) - start
        loudness = [int(line[at + n : at + n + 240].max()) for n in range(0, int(0.29 * 48_000), 240)]
        assert min(loudness) > 8_000


@pytest.mark.parametrize("step_s", [3_600, -3_600])
async def test_setting_the_system_clock_moves_no_sound_and_no_picture(
    step_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is set for the caller, too, whose reports of the microphone do move."""
    beeps = Beeps.lasting(30.0, gap_s=(0.35, 0.6))
    recording = Recording(FORMAT.fps)
    async with house() as home:
        caller = Caller(beeps.voice, recording.hear, recording.see, "H264")
        for transceiver in caller.connection.getTransceivers():
            # A receiver of pictures, which the server is none, goes through a step millisecond by millisecond.
            setattr(transceiver.receiver, "_RTCRtpReceiver__remote_bitrate_estimator", None)  # noqa: B010
        stream_id = await home.call(caller)
        sound, picture = caller.sound_clock, caller.picture_clock
        await until(lambda: min(sound.reports, picture.reports) >= 2)
        real_time, real_datetime = time.time, aiortc.clock.current_datetime
        monkeypatch.setattr(time, "time", lambda: real_time() + step_s)
        monkeypatch.setattr(aiortc.clock, "current_datetime", lambda: real_datetime() + timedelta(seconds=step_s))
        known = max(sound.reports, picture.reports)
        await until(lambda: min(sound.reports, picture.reports) >= known + 2)
        statistics = home.statistics(stream_id)
    begun = {sound.wall_time(heard.pts) - heard.pts / MEDIA_RATE for heard in recording.sound}
    begun |= {picture.wall_time(pts) - pts / PICTURE_RATE for pts, _, _ in recording.lamp}
    assert max(begun) - min(begun) < 0.03
    if statistics["output"]["worst_late_s"] < STARVED_S and not statistics["microphone"]["late_dropped"]:
        assert statistics["playout"]["underruns"] == 0
        assert statistics["output"]["skipped_blocks"] == 0
        assert set(np.diff([heard.pts for heard in recording.sound])) == {960}
        assert np.abs(offsets(caller, recording, settle_s=0.0)).max() <= 30


async def test_a_lost_picture_is_answered_with_a_key_frame() -> None:
    sight = Sight()
    async with house() as home:
        caller = Caller(silence, sight.hear, sight.see, "H264")
        stream_id = await home.call(caller)
        await until(lambda: len(sight.cards) > 24)
        before = home.statistics(stream_id)["encoder"]["key_frames"]
        source = caller.picture_receiver.getSynchronizationSources()[0].source
        await caller.picture_receiver._send_rtcp_pli(source)
        await until(lambda: home.statistics(stream_id)["encoder"]["key_frames"] > before)
        assert home.statistics(stream_id)["encoder"]["key_frames"] == before + 1


async def test_two_calls_never_see_or_hear_each_other() -> None:
    sights = (Sight(), Sight())
    loudness = (3_000, 15_000)
    async with house() as home:
        callers = [
            Caller(tone(level), sight.hear, sight.see, "H264") for level, sight in zip(loudness, sights, strict=True)
        ]
        ids = await asyncio.gather(*(home.call(caller) for caller in callers))
        assert len(set(ids)) == 2
        await until(lambda: all(len(sight.spoken) > 30 for sight in sights))
    marks = [{card.mark for card in sight.spoken} for sight in sights]
    assert [len(mark) for mark in marks] == [1, 1]
    assert marks[0] != marks[1]
    for sight, level in zip(sights, loudness, strict=True):
        peaks = [int(np.abs(heard.pcm).max()) for heard in sight.sound]
        assert max(peaks) == pytest.approx(level, rel=0.25)
        shown = float(np.median([card.level for card in sight.spoken]))
        assert shown == pytest.approx(level_of(level / 32_768 / np.sqrt(2)), abs=0.03)


async def test_a_microphone_that_is_off_shows_the_idle_loop() -> None:
    sight = Sight()
    async with house() as home:
        caller = Caller(None, sight.hear, sight.see, "H264")
        stream_id = await home.call(caller)
        await until(lambda: len(sight.cards) > 48 and len(sight.sound) > 80)
        statistics = home.statistics(stream_id)
        assert statistics["state"] == "idle"
        assert statistics["clips"]["rendered"] == 0
        assert statistics["microphone"]["silence_samples"] > 0
    assert not sight.spoken
    assert all(not heard.pcm.any() for heard in sight.sound)


class Garbling(ScriptedMicrophone):
    """A microphone whose fifth packets are nonsense, and each other one of these is empty."""

    async def recv(self) -> Any:
        frame = await super().recv()
        number = (frame.pts or 0) // 960
        if number % 5:
            return frame
        packet = av.Packet(b"" if number % 2 else b"\xff" * 40)
        packet.pts = frame.pts
        packet.time_base = Fraction(1, 48_000)
        return packet


async def test_packets_that_do_not_decode_do_not_end_the_voice() -> None:
    sight = Sight()
    async with house() as home:
        caller = Caller(None, sight.hear, sight.see, "H264")
        caller.use_microphone(Garbling(tone(10_000)))
        stream_id = await home.call(caller)
        await until(lambda: len(sight.spoken) > 72)
        microphone = home.statistics(stream_id)["microphone"]
        assert microphone["blocks"] > 100
        assert microphone["lost_samples"] > 0
    assert max(int(np.abs(heard.pcm).max()) for heard in sight.sound[-50:]) > 5_000


async def test_a_full_server_refuses_before_anything_is_built() -> None:
    async with house(TestCardEngine(FORMAT, capacity=1)) as home:
        offers = [await _offer() for _ in range(3)]
        results = await asyncio.gather(
            *(home.manager.open_call(offer, AVATAR) for offer in offers), return_exceptions=True
        )
        refusals = [result for result in results if isinstance(result, CapacityError)]
        assert len(refusals) == 2
        assert refusals[0].retry_after_s > 0
        assert home.manager.counters.full == 2
        (stream_id,) = home.manager.streams
        await home.manager.close_stream(stream_id, "making room")
        await home.manager.open_call(offers[0], AVATAR)
        await home.manager.close()
        with pytest.raises(CapacityError, match="stopping"):
            await home.manager.open_call(offers[1], AVATAR)
    assert home.manager.streams == {}


async def test_the_operator_may_set_the_number_of_streams() -> None:
    async with house(options=ManagerOptions(max_streams=2)) as home:
        assert home.manager.capacity == 2
    async with house() as home:
        assert home.manager.capacity == 4


async def _offer(change: Callable[[str], str] = lambda text: text, speaks: bool = True) -> str:
    """The offer of a caller, or of a viewer, who then hangs up."""
    caller = Caller(silence if speaks else None, speaks=speaks)
    await caller.connection.setLocalDescription(await caller.connection.createOffer())
    text = caller.connection.localDescription.sdp
    await caller.close()
    return change(text)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda text: "nonsense", OfferError),
        (lambda text: text.replace("a=sendrecv", "a=recvonly"), UnsupportedMediaError),
        (lambda text: text.replace("packetization-mode=1", "packetization-mode=0").replace("VP8", "VP9"), EchoRtcError),
    ],
)
async def test_a_bad_offer_leaves_nothing(change: Callable[[str], str], error: type[Exception]) -> None:
    async with house() as home:
        with pytest.raises(error):
            await home.manager.open_call(await _offer(change), AVATAR)
        with pytest.raises(OfferError, match="nobody"):
            await home.manager.open_call(await _offer(), "nobody")
        assert home.manager.streams == {}


async def test_requests_with_candidates_are_limited() -> None:
    async with house() as home:
        opened = await home.manager.open_call(await _offer(), AVATAR)
        for _ in range(int(FRAGMENTS_BURST)):
            await home.manager.add_candidates(opened, "a=mid:0\r\n")
        with pytest.raises(TooManyError, match="too many requests with candidates") as refused:
            await home.manager.add_candidates(opened, "a=mid:0\r\n")
        assert refused.value.retry_after_s == 1
        await home.manager.close_session(opened, "enough")


async def test_mutated_offers_are_answered_or_refused_in_words() -> None:
    chance = random.Random(3)
    async with house() as home:
        whole = await _offer()
        for _ in range(60):
            lines = whole.splitlines()
            for _ in range(chance.randint(1, 3)):
                at, other = chance.randrange(len(lines)), chance.randrange(len(lines))
                match chance.randrange(4):
                    case 0:
                        del lines[at]
                    case 1:
                        lines.insert(at, lines[other])
                    case 2:
                        lines[at], lines[other] = lines[other], lines[at]
                    case _:
                        lines[at] = lines[at].replace(
                            chance.choice("0123"), chance.choice(["", "9", "-1", "99999999999"])
                        )
            try:
                opened = await home.manager.open_call("\r\n".join(lines) + "\r\n", AVATAR)
            except OfferError as error:
                assert len(str(error)) > 20  # noqa: PT017
            else:
                await home.manager.close_stream(opened.stream, "the next one")
        assert home.manager.streams == {}


async def test_a_flood_of_data_channels_gets_no_more_than_a_few() -> None:
    async with house() as home:
        caller = Caller(silence)
        closed: list[str] = []
        for number in range(10):
            channel = caller.connection.createDataChannel(f"further {number}")
            channel.on("close", lambda name=channel.label: closed.append(name))
        stream_id = await home.call(caller)
        await until(lambda: len(closed) == 11 - MAX_EVENT_CHANNELS)
        assert home.statistics(stream_id)["state"] == "idle"


async def test_a_browser_that_hides_its_addresses_connects_at_once() -> None:
    sight = Sight()
    async with house() as home:
        caller = Caller(silence, sight.hear, sight.see)
        home.callers.append(caller)

        async def exchange(offer: str) -> str:
            hidden = re.sub(r"(a=candidate:\S+ \d+ udp \d+) \S+ (\d+ typ host)", r"\1 0a1b2c3d-4e5f.local \2", offer)
            assert hidden.count(".local ") == offer.count("a=candidate:")
            return (await home.manager.open_call(hidden, AVATAR)).answer_sdp

        begun = asyncio.get_running_loop().time()
        await caller.connect(exchange)
        assert asyncio.get_running_loop().time() - begun < 1.0
        await until(lambda: len(sight.cards) > 5)


async def test_closing_waits_for_calls_that_are_being_built() -> None:
    async with house() as home:
        opening = asyncio.create_task(home.manager.open_call(await _offer(), AVATAR))
        await asyncio.sleep(0)
        await home.manager.close()
        assert opening.done()
        assert home.manager.streams == {}


async def test_a_peer_that_never_comes_is_given_up() -> None:
    async with house(options=ManagerOptions(peer=PeerOptions(connect_timeout_s=0.2))) as home:
        await home.manager.open_call(await _offer(), AVATAR)
        assert len(home.manager.streams) == 1
        await until(lambda: not home.manager.streams)


async def test_a_caller_that_hangs_up_ends_the_stream() -> None:
    async with house() as home:
        caller = Caller(babble)
        await home.call(caller)
        await caller.connection.close()
        await until(lambda: not home.manager.streams)


async def test_a_vanished_caller_is_noticed_within_seven_seconds() -> None:
    async with house() as home:
        caller = Caller(babble)
        await home.call(caller)
        loop = asyncio.get_running_loop()
        vanished = loop.time()
        assert caller.connection.sctp is not None
        ice = caller.connection.sctp.transport.transport._connection
        for protocol in ice._protocols:
            protocol.transport.abort()
        await until(lambda: not home.manager.streams)
        assert loop.time() - vanished < 7.0


async def test_an_offer_withdrawn_during_its_answer_leaves_nothing() -> None:
    async with house() as home:
        offer = await _offer()
        for turns in range(0, 30, 3):
            opening = asyncio.create_task(home.manager.open_call(offer, AVATAR))
            for _ in range(turns):
                await asyncio.sleep(0)
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
        await home.manager.close()
        assert home.manager.streams == {}


async def test_a_viewer_of_an_ended_stream_does_not_join_its_successor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer, begun, go = Peer.answer, asyncio.Event(), asyncio.Event()

    async def late(*arguments: Any) -> Peer:
        peer = await answer(*arguments)
        begun.set()
        await go.wait()
        return peer

    async with house() as home:
        first = await home.manager.open_call(await _offer(), AVATAR, "studio")
        with monkeypatch.context() as patched:
            patched.setattr(Peer, "answer", late)
            viewing = asyncio.create_task(home.manager.view("studio", await _offer(speaks=False)))
            await begun.wait()
        await home.manager.close_stream(first.stream, "it is over")
        second = await home.manager.open_call(await _offer(), AVATAR, "studio")
        go.set()
        with pytest.raises(NotLiveError):
            await viewing
        assert list(home.manager.streams) == [second.stream]


async def test_an_avatar_deleted_during_an_answer_is_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = Peer.answer

    async with house() as home:

        async def late(*arguments: Any) -> Peer:
            peer = await answer(*arguments)
            await home.engine.remove_avatar(AVATAR)
            return peer

        offer = await _offer()
        monkeypatch.setattr(Peer, "answer", late)
        with pytest.raises(OfferError, match="there is no avatar"):
            await home.manager.open_call(offer, AVATAR, "studio")
        assert home.manager.streams == {}
        assert home.manager.free == home.manager.capacity


async def test_a_connection_that_breaks_while_it_closes_keeps_no_place(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    close = RTCPeerConnection.close

    async def breaking(connection: RTCPeerConnection) -> None:
        await close(connection)
        raise ZeroDivisionError("a fault of aiortc's")

    async with house(options=ManagerOptions(peer=PeerOptions(connect_timeout_s=0.2))) as home:
        offer = await _offer()
        monkeypatch.setattr(RTCPeerConnection, "close", breaking)
        await home.manager.open_call(offer, AVATAR)
        await until(lambda: not home.manager.streams)
        monkeypatch.undo()
    assert "a fault of aiortc's" in caplog.text


async def test_a_fault_of_our_own_ends_its_stream_only(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(TestCardEngine):
        broken = True

        async def render(self, request: RenderRequest, on_frames: TakeFrames | None = None) -> RenderResult:
            if self.broken:
                raise ZeroDivisionError("a fault of our own")
            return await super().render(request, on_frames)

    engine = Broken(FORMAT, capacity=2)
    async with house(engine) as home:
        quiet, loud = Caller(silence), Caller(tone(10_000))
        quiet_id = await home.call(quiet)
        await home.call(loud)
        await until(lambda: len(home.manager.streams) == 1)
        assert list(home.manager.streams) == [quiet_id]
        await until(lambda: bool(loud.events) and loud.events[-1]["type"] == "end")
        assert loud.events[-1]["reason"] == "an internal error"
    assert "a fault of our own" in caplog.text


async def test_closing_the_server_ends_every_call_once() -> None:
    async with house() as home:
        callers = [Caller(babble) for _ in range(2)]
        await asyncio.gather(*(home.call(caller) for caller in callers))
        await until(lambda: all(caller.events for caller in callers))
        closing: list[Awaitable[None]] = [home.manager.close(), home.manager.close()]
        await asyncio.gather(*closing)
        assert home.manager.streams == {}
        await until(lambda: all(caller.events[-1:] and caller.events[-1]["type"] == "end" for caller in callers))
        for caller in callers:
            ends = [event for event in caller.events if event["type"] == "end"]
            assert ends == [{"type": "end", "reason": "the server is stopping"}]
