"""A stream: one avatar driven by one voice, watched by any number of viewers.

Owns every task between the blocks of the voice and the viewers' packets. Publishers and viewers are separate peers to
it, or one; their connections are not its concern.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from echo_rtc.codec.burned_mark import BurnedMark
from echo_rtc.codec.marking import Mark
from echo_rtc.codec.picture import VideoCodec
from echo_rtc.media.delay_line import DelayPolicy
from echo_rtc.media.idle_walk import IdleWalk
from echo_rtc.media.playout import FrameKind, Playout
from echo_rtc.media.speech import AHEAD_S
from echo_rtc.rendering import Avatar, Engine
from echo_rtc.stream.audience import Audience
from echo_rtc.stream.counters import GuardCounters, StreamCounters
from echo_rtc.stream.dispatch import Dispatcher, RenderOrder
from echo_rtc.stream.encoder_bank import EncoderBank, PacketizerFactory
from echo_rtc.stream.events import Event, EventFeed, EventSink, EventType
from echo_rtc.stream.links import Delivery, Link, Reception
from echo_rtc.stream.listening import ClipFeed, Listener
from echo_rtc.stream.log import StreamLog
from echo_rtc.stream.pump import PORTION_BLOCKS, Pump, PumpOptions
from echo_rtc.stream.sinks import PacketSink
from echo_rtc.stream.snapshot import Snapshot, closing_line
from echo_rtc.stream.speech import Speaker
from echo_rtc.stream.sync import CallRecord
from echo_rtc.stream.tally import Tally
from echo_rtc.stream.taps import Tap
from echo_rtc.stream.viewers import Viewer
from echo_rtc.stream.voice import Voice

logger = logging.getLogger(__name__)

TICK_S = 0.05
"""How often media time is advanced by our clock."""
REPORT_S = 0.2
"""How often the state is checked."""
REPORTS_PER_STATISTICS = 5
"""Statistics go to the page with every fifth check: once a second."""


class StreamState(StrEnum):
    """What a page shows: no connection yet; the idle loop; a talking face; the idle loop of an avatar that listens;
    held frames in the last second."""

    CONNECTING = "connecting"
    IDLE = "idle"
    SPEAKING = "speaking"
    LISTENING = "listening"
    BEHIND = "behind"


class VoiceSource(StrEnum):
    """Where a stream's voice comes from."""

    MICROPHONE = "microphone"
    PUSHED = "pushed"
    LIVEKIT = "livekit"


@dataclass(frozen=True, slots=True)
class Vitals:
    """A stream at a moment. ``offset_ms``: the picture against the sound as they left in the last second, positive
    where it is late; ``jitter_s``: of the microphone's packets; ``round_trip_s``: the longest of the viewers; each None
    where nothing is known. ``bitrates``: bit/s sent in the last second by codec. ``viewers``: those that get packets.
    """

    state: StreamState
    delay_s: float
    offset_ms: float | None
    waiting_clips: int
    viewers: int
    bitrates: Mapping[str, int]
    jitter_s: float | None
    round_trip_s: float | None
    source: VoiceSource = VoiceSource.MICROPHONE


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """The settings of streams.

    ``vad_threshold``: RMS 0..1, 0 renders everything. ``max_latency_s``: upper bound of the delay.
    ``margin_s``: what the delay leaves for everything but clip and rendering; the pump takes frames up to 50 ms before
    they are due, and the rest is for jitter. ``voice_timeout_s``: a stream whose microphone sends nothing for this long
    ends; 0: never. A microphone that sends silence does send. ``source``: all but a microphone is pushed speech, faster
    than it is spoken. ``burn``: what is drawn into each picture.
    """

    vad_threshold: float = 0.015
    max_latency_s: float = 3.0
    margin_s: float = 0.09
    voice_timeout_s: float = 0.0
    source: VoiceSource = VoiceSource.MICROPHONE
    burn: BurnedMark | None = None

    @property
    def pushed(self) -> bool:
        """Whether the voice is pushed speech."""
        return self.source is not VoiceSource.MICROPHONE

    def delay_policy(self, engine: Engine) -> DelayPolicy:
        """What the delay of a stream on ``engine`` is made of."""
        # As the dispatcher tells it of each clip: with the wait of frames that are cross-faded.
        overlap_s = engine.continuity.overlap_frames / engine.format.fps
        return DelayPolicy(
            render_s=engine.expected_render_s + overlap_s,
            # Clips of pushed speech are completed with a tick.
            margin_s=self.margin_s + (TICK_S if self.pushed else 0.0),
            max_latency_s=self.max_latency_s,
            silence_rms=self.vad_threshold,
            ahead_s=AHEAD_S if self.pushed else 0.0,
        )

    def render_order(self, engine: Engine, avatar: Avatar, stream_id: str) -> RenderOrder:
        """What all clips of a stream on ``engine`` have in common."""
        seed = secrets.randbits(31)
        return RenderOrder(
            avatar=avatar,
            format=engine.format,
            seed=seed,
            stream=stream_id,
            walk=IdleWalk(len(avatar.idle), engine.format.clip_frames, avatar.leaps, seed),
        )


class Stream:
    """Makes a face from a voice. Runs from the first :meth:`begin` to :meth:`close`."""

    def __init__(self, engine: Engine, avatar: Avatar, options: StreamOptions, packetizer: PacketizerFactory) -> None:
        """``packetizer`` cuts encoded frames into the payloads of whatever carries them to viewers."""
        self.id = secrets.token_urlsafe(16)
        self.avatar = avatar.name
        self.log = StreamLog(logger, self.id)
        loop = asyncio.get_running_loop()
        self._clock = loop.time
        self._opened_at = self._clock()
        self._farewell: Event = {}
        """What the last event says beside the reason."""
        self._voice_timeout_s = options.voice_timeout_s
        self.source = options.source
        order = options.render_order(engine, avatar, self.id)
        self._playout = Playout(engine.format, avatar.idle, options.delay_policy(engine), order.walk)
        self._dispatcher = Dispatcher(engine, order, self._playout, self.log, self._clock, self._tell_steps)
        self._events = EventFeed()
        feed = ClipFeed(engine.format, options.vad_threshold, self._playout, self._dispatcher)
        self._listener: Listener | Speaker
        if options.pushed:
            self._listener = Speaker(engine.format, feed, self._playout, self._dispatcher, self._events)
        else:
            self._listener = Listener(feed, self._playout, self.log)
        self._bank = EncoderBank(engine.format, packetizer, self.log, mark=Mark(avatar.name))
        self._audience = Audience(self._bank)
        # What is taken to be encoded cannot be interrupted.
        draw = None if options.burn is None else options.burn.on
        output = PumpOptions(portion_blocks=1 if options.pushed else PORTION_BLOCKS, draw=draw)
        self._pump = Pump(engine.format, self._playout, self._bank, self._audience, output)
        self._record = CallRecord(self._opened_at)
        self.guard_counters = GuardCounters()
        """What the guards of the stream's peers refused; the guards count here."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._begun = False
        self._state = StreamState.CONNECTING
        self._recording = False
        self.format = engine.format
        self._closing: asyncio.Task[None] | None = None
        self.ended: asyncio.Future[str] = loop.create_future()
        """Done, with the reason, as soon as the stream is to be closed."""

    @property
    def state(self) -> StreamState:
        return self._state

    def begin(self) -> None:
        """Starts media time, if it has not started: a peer is connected."""
        if self._begun or self.ended.done():
            return
        self._begun = True
        self._listener.begin()
        self._spawn(self._keep_time(), "keep time")
        self._spawn(self._dispatcher.run(), "dispatch clips")
        self._spawn(self._pump.run(), "pump")
        self._spawn(self._report(), "report")

    def listen(self, voice: Voice, probe: Callable[[], Awaitable[Reception]] | None = None) -> asyncio.Task[None]:
        """Takes the blocks of ``voice`` from now on, until it ends; the task is done then. The voice before, if there
        was one, has ended. ``probe`` says how its packets arrive."""
        assert isinstance(self._listener, Listener), "a stream of pushed speech hears no voice"
        self._listener.announce()
        return self._spawn(self._listener.listen(voice, Link(Reception(), probe)), "voice")

    @property
    def speaker(self) -> Speaker | None:
        """Says pushed speech; None for a stream that hears a voice."""
        return self._listener if isinstance(self._listener, Speaker) else None

    def add_viewer(self, codec: VideoCodec | None, with_sound: bool) -> Viewer:
        """A further viewer, whose queues the caller hands to a connection."""
        return self._audience.add_viewer(codec, with_sound)

    def watch_delivery(self, viewer: Viewer, probe: Callable[[], Awaitable[Delivery]]) -> None:
        """Registers ``probe``, which is asked once a second how the viewer's packets arrive."""
        self._audience.watch_delivery(viewer, probe)

    def remove_viewer(self, viewer: Viewer) -> None:
        """Closes a viewer's queues and removes encoders that only it needed."""
        self._audience.remove_viewer(viewer)

    def add_sink(self, sink: PacketSink) -> Callable[[], None]:
        """Gives a sink all encoded frames from now on; returns what ends that."""
        return self._audience.add_sink(sink)

    def tell_recording(self, active: bool) -> None:
        """The stream is recorded from now on, or not any more, which people in the call are told."""
        self._recording = active
        self._events.emit(self._recording_event())

    def _recording_event(self) -> Event:
        return {"type": EventType.RECORDING, "active": self._recording}

    def add_tap(self) -> Tap:
        """A pair of queues that give raw frames."""
        return self._audience.add_tap()

    @property
    def watched(self) -> bool:
        """Whether packets have a receiver: a viewer, or a server that the stream is pushed to."""
        return self._audience.live_viewers > 0

    @property
    def delay_s(self) -> float:
        """Media time minus playout time as it stands now, in seconds."""
        return self._playout.delay_s

    def media_sample(self, pts: int) -> int | None:
        """Where the microphone's sample stamped ``pts`` (48 kHz) lies in media time; None before the first block."""
        return self._listener.timeline.media_sample(pts)

    def want_key_frame(self, viewer: Viewer) -> None:
        """A viewer's receiver reports a lost picture."""
        self._audience.want_key_frame(viewer)

    def estimate(self, viewer: Viewer, bitrate: int) -> None:
        """A viewer's receiver can take ``bitrate`` bit/s."""
        self._audience.estimate(viewer, bitrate)

    def subscribe(self, sink: EventSink) -> Callable[[], None]:
        """Sends the present state and all further events to ``sink``; returns what ends that."""
        first: list[Event] = [{"type": EventType.STATE, "state": self._state}]
        if self._recording:
            first.append(self._recording_event())
        return self._events.subscribe(sink, *first)

    def end(self, reason: str) -> None:
        """Requests that the owner closes the stream. The first reason counts."""
        if not self.ended.done():
            self.ended.set_result(reason)

    def say_when_to_reconnect(self, after_s: float) -> None:
        """Has clients told at the end to come back after this time, because the server is restarted."""
        self._farewell = {"reconnect": True, "after_s": after_s}

    async def close(self, reason: str) -> None:
        """Ends the stream and waits until nothing of it is left. The first reason counts."""
        self.end(reason)
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name=f"close stream {self.id[:8]}")
        await asyncio.shield(self._closing)

    @property
    def vitals(self) -> Vitals:
        """How the stream is at this moment."""
        return Vitals(
            state=self._state,
            delay_s=self._playout.delay_s,
            offset_ms=self._record.offset_ms,
            waiting_clips=self._dispatcher.pending,
            viewers=self._audience.live_viewers,
            bitrates=self._record.bitrates,
            jitter_s=max((reception.jitter_s for reception in self._listener.receptions), default=None),
            round_trip_s=self._audience.round_trip_s,
            source=self.source,
        )

    def tally(self) -> Tally:
        """All that this stream has counted so far and that only grows."""
        tally = Tally(self._counters())
        tally.add(self._audience.past)
        tally.add(self._listener.past)
        return tally

    def statistics(self) -> dict[str, object]:
        """Everything countable of this stream, as JSON takes it. Times in the units of their names."""
        return self._snapshot().as_json()

    def _counters(self) -> StreamCounters:
        return StreamCounters(
            playout=self._playout.statistics(),
            clips=self._dispatcher.counters,
            timeline=self._listener.timeline.statistics(),
            receptions=self._listener.receptions,
            voice=self._listener.counters,
            output=self._pump.counters,
            encoder=self._bank.counters,
            viewers=tuple(viewer.counters for viewer in self._audience.viewers),
            deliveries=self._audience.deliveries,
            guard=self.guard_counters,
            events=self._events.counters,
            times=self._dispatcher.times,
            sync=self._record.histograms,
        )

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            stream=self.id,
            avatar=self.avatar,
            source=self.source,
            state=self._state,
            age_s=self._clock() - self._opened_at,
            fps=self._pump.recent().frames,
            steps=self._dispatcher.steps,
            waiting_clips=self._dispatcher.pending,
            bitrates={codec.value: bitrate for codec, bitrate in self._bank.bitrates.items()},
            record=self._record,
            viewers=self._audience.viewer_figures(),
            taps=self._audience.tap_figures(),
            counters=self._counters(),
        )

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._listener.tick()

    async def _report(self) -> None:
        reports = 0
        while True:
            self._set_state(self._current_state())
            if reports % REPORTS_PER_STATISTICS == 0:
                await self._sample_statistics()
                self._events.emit({"type": EventType.STATISTICS, **self._snapshot().picture()})
            reports += 1
            await asyncio.sleep(REPORT_S)

    async def _sample_statistics(self) -> None:
        """Once a second: samples the statistics, and ends a stream without a voice."""
        speaker = self.speaker
        if speaker is not None and (speaker.speaking or self._audience.live_viewers):
            speaker.keep_alive()
        if self._voice_timeout_s and self._clock() - self._listener.heard_at > self._voice_timeout_s:
            what = "the microphone sent nothing" if speaker is None else "no client spoke or viewed"
            self.end(f"{what} for {self._voice_timeout_s:g} s")
        await self._listener.ask_links()
        await self._audience.ask_links()
        sent_bytes = self._pump.counters.sent_bytes
        self._record.sample(self._clock(), self._playout.delay_s, self._pump.sync.take(), sent_bytes)

    def _current_state(self) -> StreamState:
        recent = self._pump.recent()
        if recent.held:
            return StreamState.BEHIND
        if recent.latest is FrameKind.RENDERED:
            return StreamState.SPEAKING
        listening = self.speaker is not None and self.speaker.listening
        return StreamState.LISTENING if listening else StreamState.IDLE

    def _set_state(self, state: StreamState) -> None:
        if state is not self._state:
            self._state = state
            self._events.emit({"type": EventType.STATE, "state": state})

    def _tell_steps(self, steps: int) -> None:
        self._events.emit({"type": EventType.STEPS, "steps": steps})

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=f"{name} of stream {self.id[:8]}")
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        self.log.error("%s failed", task.get_name(), exc_info=task.exception())
        self.end("an internal error")

    async def _close(self) -> None:
        reason = self.ended.result()
        self._events.emit({"type": EventType.END, "reason": reason, **self._farewell})
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._audience.close()
        await self._bank.close()
        self._listener.close()
        fields = self._snapshot().closing_fields(reason)
        self.log.info("%s", closing_line(fields), extra=fields)
