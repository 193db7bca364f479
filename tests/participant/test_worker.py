"""Avatars in rooms, spoken to by the audio output of livekit-agents itself, in virtual time. Only rooms are fakes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from livekit import rtc
from livekit.agents.voice.avatar import DataStreamAudioOutput
from livekit.agents.voice.io import PlaybackFinishedEvent

from echo_rtc.clips import ClipFormat, S16Array
from echo_rtc.engine.testcard import AVATAR as FACE
from echo_rtc.engine.testcard import ScriptedFaults, TestCardEngine
from echo_rtc.errors import AddressError, CapacityError, RoomError, TicketError
from echo_rtc.participant.addresses import AllowedHosts
from echo_rtc.participant.rooms import Library, Rooms
from echo_rtc.participant.speech import IDLE_S
from echo_rtc.participant.worker import AGENT_GRACE_S, CLEAR_BUFFER, PLAYBACK_FINISHED, PLAYBACK_STARTED
from echo_rtc.rtc.manager import ManagerOptions, StreamManager
from echo_rtc.stream.queues import QueueClosedError
from echo_rtc.stream.stream import Stream, VoiceSource
from echo_rtc.stream.taps import Tap
from tests.participant.rig import AGENT, AVATAR, OF_AGENT, PERSON, URL, Hub, Reader, Room, ticket
from tests.rtc.test_reservations import HeldFor
from tests.support.virtual import run

FORMAT = ClipFormat(fps=24, clip_frames=12, width=32, height=32)
RATE = 24_000
TOPIC = "lk.audio_stream"


def loud(seconds: float) -> S16Array:
    """A square wave of 200 Hz: no block of it is quiet."""
    return np.resize(np.repeat(np.array([9000, -9000], np.int16), 60), round(seconds * RATE))


class Output:
    """Keeps when loud blocks came, instead of publishing them."""

    def __init__(self, clip_format: ClipFormat) -> None:
        self.loud_s: list[float] = []
        self.closed = False

    async def publish(self, participant: rtc.LocalParticipant) -> None:
        for kind in (rtc.TrackKind.KIND_AUDIO, rtc.TrackKind.KIND_VIDEO):
            track: Any = type("Track", (), {"kind": kind})()
            await participant.publish_track(track)

    async def run(self, tap: Tap) -> None:
        loop = asyncio.get_running_loop()
        with suppress(QueueClosedError):
            while True:
                frame, _ = await tap.sound.get()
                if np.abs(frame.to_ndarray().astype(np.int32)).max() > 4000:
                    self.loud_s.append(loop.time())

    async def close(self) -> None:
        self.closed = True

    @property
    def seconds(self) -> float:
        return 0.02 * len(self.loud_s)


@dataclass(eq=False)
class Stage:
    """A server with one place, a room with an agent and a person in it, and what the avatar publishes."""

    hub: Hub
    manager: StreamManager
    rooms: Rooms
    outputs: list[Output]
    made: list[Room]
    refuses: Exception | float | None = None
    knocks: Exception | None = None

    async def join(self, token: str | None = None, client: str = "") -> Stream:
        opened = await self.rooms.join(URL, token or ticket(), FACE, client=client)
        return self.manager.held(opened.key)

    def audio(self) -> Agent:
        return Agent(self.hub.rooms[AGENT])


class Agent:
    """The agent's side: the library's own audio output, and what it was told."""

    def __init__(self, room: Any) -> None:
        self.output = DataStreamAudioOutput(
            room,
            destination_identity=AVATAR,
            wait_remote_track=rtc.TrackKind.KIND_VIDEO,
            wait_playback_start=True,
        )
        self.finished: list[PlaybackFinishedEvent] = []
        self.started_s: list[float] = []
        loop = asyncio.get_running_loop()
        self.output.on("playback_finished", self.finished.append)
        self.output.on("playback_started", lambda _: self.started_s.append(loop.time()))

    async def say(self, seconds: float) -> None:
        pcm = loud(seconds)
        for start in range(0, len(pcm), RATE // 20):
            piece = pcm[start : start + RATE // 20]
            await self.output.capture_frame(rtc.AudioFrame(piece.tobytes(), RATE, 1, len(piece)))
        self.output.flush()


@asynccontextmanager
async def staged(speech_timeout_s: float = 0.0) -> AsyncIterator[Stage]:
    engine = TestCardEngine(FORMAT, ScriptedFaults(delay_s=0.2))
    await engine.start(lambda _: None)
    manager = StreamManager(engine, ManagerOptions(max_streams=1, speech_timeout_s=speech_timeout_s))
    hub, outputs, made = Hub(), list[Output](), list[Room]()

    def make_room() -> Any:
        made.append(Room(hub, stage.refuses))
        return made[-1]

    def make_output(clip_format: ClipFormat) -> Output:
        outputs.append(Output(clip_format))
        return outputs[-1]

    async def knock(url: str, token: str) -> None:
        assert url == f"{URL}:443"
        if stage.knocks is not None:
            raise stage.knocks

    rooms = Rooms(manager, lambda: FORMAT, AllowedHosts.of(["livekit.example"]), Library(make_room, make_output, knock))
    stage = Stage(hub, manager, rooms, outputs, made)
    Room(hub).enter(AGENT, OF_AGENT)
    Room(hub).enter(PERSON)
    try:
        yield stage
    finally:
        await rooms.close()
        await manager.close()
        await engine.close()
        assert all(room.left for room in made)
        assert all(output.closed for output in outputs)


def test_speeches_in_a_row_are_said_and_their_ends_told() -> None:
    async def live() -> None:
        async with staged() as stage:
            stream = await stage.join()
            assert stream.source is VoiceSource.LIVEKIT
            assert stage.made[0].options is not None
            assert not stage.made[0].options.auto_subscribe
            agent = stage.audio()
            for seconds in (1.2, 0.4, 0.6):
                await agent.say(seconds)
            done = await agent.output.wait_for_playout()
            assert not done.interrupted
            assert [event.playback_position for event in agent.finished] == pytest.approx([1.2, 0.4, 0.6], abs=0.01)
            assert not any(event.interrupted for event in agent.finished)
            assert stage.outputs[0].seconds == pytest.approx(2.2, abs=0.06)
            assert agent.started_s[0] == pytest.approx(stage.outputs[0].loud_s[0], abs=0.06)
            told = [method for _, who, method, _ in stage.hub.calls if who == AVATAR]
            assert told == [PLAYBACK_STARTED, PLAYBACK_FINISHED] * 3

    run(live())


@pytest.mark.parametrize("after_s", [0.1, 2.0])
def test_a_clear_tells_what_was_heard_of_each_speech(after_s: float) -> None:
    async def live() -> None:
        loop = asyncio.get_running_loop()
        async with staged() as stage:
            await stage.join()
            await asyncio.sleep(1.0)
            agent = stage.audio()
            await agent.say(20.0)
            await agent.say(1.0)
            await asyncio.sleep(after_s)
            cut = loop.time()
            agent.output.clear_buffer()
            await agent.output.wait_for_playout()
            assert loop.time() - cut < 0.2
            heard = [event.playback_position for event in agent.finished]
            assert [event.interrupted for event in agent.finished] == [True, True]
            await asyncio.sleep(0.5)
            assert heard == pytest.approx([stage.outputs[0].seconds, 0.0], abs=0.04)
            assert [when - cut for when in stage.outputs[0].loud_s if when > cut + 0.1] == []
            stage.outputs[0].loud_s.clear()
            await agent.say(0.5)
            await agent.output.wait_for_playout()
            assert agent.finished[-1].playback_position == pytest.approx(0.5, abs=0.01)
            assert stage.outputs[0].seconds == pytest.approx(0.5, abs=0.05)

    run(live())


def test_a_speech_whose_end_is_lost_ends_with_the_next_or_idle() -> None:
    async def live() -> None:
        async with staged() as stage:
            await stage.join()
            handler = stage.hub.rooms[AVATAR].handlers[TOPIC]
            sound = {"sample_rate": str(RATE), "num_channels": "2"}
            readers = [Reader(sound), Reader(sound), Reader(sound)]
            ended: list[str] = []

            def finish(data: rtc.RpcInvocationData) -> str:
                ended.append(data.payload)
                return "ok"

            stage.hub.rooms[AGENT].local_participant.register_rpc_method(PLAYBACK_FINISHED, finish)
            for reader in readers[:2]:
                reader.chunks.put_nowait(np.repeat(loud(0.5), 2).tobytes()[:-1])
                handler(reader, AGENT)
            await asyncio.sleep(4.0)
            assert len(ended) == 1
            await asyncio.sleep(IDLE_S)
            assert len(ended) == 2
            readers[2].chunks.put_nowait(ConnectionError("broken off"))
            handler(readers[2], AGENT)
            await asyncio.sleep(2.0)
            assert ended[2] == '{"playback_position": 0.0, "interrupted": false}'
            assert all(reader.closed for reader in readers)
            assert stage.outputs[0].seconds == pytest.approx(1.0, abs=0.06)

    run(live())


def test_only_the_agent_is_heard_and_obeyed() -> None:
    async def live() -> None:
        async with staged() as stage:
            stream = await stage.join()
            handler = stage.hub.rooms[AVATAR].handlers[TOPIC]
            stranger = Reader({"sample_rate": str(RATE), "num_channels": "1"})
            handler(stranger, PERSON)
            assert stranger.closed
            person = stage.hub.rooms[PERSON].local_participant
            answer = await person.perform_rpc(destination_identity=AVATAR, method=CLEAR_BUFFER, payload="")
            assert answer == "reject"
            for attributes in (None, {}, {"sample_rate": "7", "num_channels": "1"}, {"sample_rate": "x"}):
                useless = Reader(attributes)
                handler(useless, AGENT)
                assert useless.closed
            speaker = stream.speaker
            assert speaker is not None
            assert speaker.counters.unusable == 4
            assert speaker.claimed
            await asyncio.sleep(1.0)
            assert stage.outputs[0].seconds == 0.0

    run(live())


def test_the_avatar_leaves_with_the_room_the_stream_or_the_agent() -> None:
    async def live() -> None:
        async with staged(speech_timeout_s=40.0) as stage:
            stream = await stage.join()
            agent = stage.audio()
            await agent.say(5.0)
            await asyncio.sleep(2.0)
            stage.hub.rooms[AVATAR].lose()
            assert await stream.ended == "the LiveKit room has ended"
            await asyncio.sleep(0.1)
            stream = await stage.join()
            await asyncio.sleep(50.0)
            # Somebody is in the room with the agent: it may be quiet for long.
            assert not stream.ended.done()
            assert await stage.manager.close_stream(stream.id, "by hand")
            await asyncio.sleep(0.1)
            assert AVATAR not in stage.hub.rooms
            stream = await stage.join()
            stage.hub.rooms[AGENT].lose()
            await asyncio.sleep(AGENT_GRACE_S + 2.0)
            assert "its agent was not in the LiveKit room" in await stream.ended
            assert stage.manager.free == 1

    run(live())


def test_notices_are_repeated_and_a_deaf_agent_costs_nothing() -> None:
    async def live() -> None:
        async with staged() as stage:
            await stage.join()
            agent = stage.audio()
            error = int(rtc.RpcError.ErrorCode.RESPONSE_TIMEOUT)
            stage.hub.rpc_errors = [None, error, error]
            await agent.say(0.5)
            await agent.output.wait_for_playout()
            assert agent.finished[0].playback_position == pytest.approx(0.5, abs=0.01)
            stage.hub.rpc_errors = [error] * 6
            await agent.say(0.5)
            await asyncio.sleep(4.0)
            assert len(agent.finished) == 1
            await agent.say(0.5)
            await asyncio.sleep(4.0)
            assert len(agent.finished) == 2

    run(live())


@pytest.mark.parametrize("took_s", [15.0, 600.0])
def test_a_room_that_is_reached_too_late_is_left(took_s: float) -> None:
    async def live() -> None:
        async with staged() as stage:
            stage.refuses = took_s
            with pytest.raises(RoomError, match="cannot be joined"):
                await stage.join()
            assert stage.manager.free == 1
            await asyncio.sleep(20.0)
            assert AVATAR not in stage.hub.rooms
            assert stage.made[0].left == (took_s < 20.0)

    run(live())


def test_what_cannot_be_joined_leaves_nothing_behind() -> None:
    async def live() -> None:
        async with staged() as stage:
            with pytest.raises(AddressError, match="--livekit-host"):
                await stage.rooms.join("wss://elsewhere.example", ticket(), FACE)
            with pytest.raises(TicketError, match="has expired"):
                await stage.join(ticket(exp=1000))
            stage.knocks = TicketError("refused")
            with pytest.raises(TicketError, match="refused"):
                await stage.join()
            stage.knocks, stage.refuses = None, rtc.ConnectError("401 and what a server answered")
            with pytest.raises(RoomError, match=r"cannot be joined; the server's log says why$"):
                await stage.join()
            assert stage.made[0].left
            assert stage.outputs[0].closed
            assert stage.manager.free == 1
            stage.refuses = None
            await stage.join()
            with pytest.raises(CapacityError):
                await stage.join()
            assert len(stage.made) == 2

    run(live())


def test_a_place_held_for_a_client_is_taken_by_its_join() -> None:
    async def live() -> None:
        async with staged() as stage:
            held = stage.manager.reservations = HeldFor("192.0.2.1")
            with pytest.raises(CapacityError):
                await stage.join(client="192.0.2.2")
            await stage.join(client="192.0.2.1")
            assert held.taken == ["192.0.2.1"]

    run(live())
