"""A stream: one avatar driven by one voice, watched by any number of viewers.

Owns everything between the microphone's blocks and the viewers' packets, and every task in between. Who publishes and
who watches are separate peers to it, or one; connections are their business.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from echo_rtc.clips import S16Array
from echo_rtc.codec.picture import VideoCodec
from echo_rtc.codec.resampling import SpeechResampler
from echo_rtc.media.clipper import Clipper
from echo_rtc.media.gate import SpeechGate
from echo_rtc.media.playout import DelayPolicy, FrameKind, Playout
from echo_rtc.media.timeline import Timeline
from echo_rtc.rendering import Avatar, Engine
from echo_rtc.stream.counters import GuardCounters
from echo_rtc.stream.dispatch import Dispatcher, RenderOrder
from echo_rtc.stream.encoder_bank import EncoderBank, PacketizerFactory
from echo_rtc.stream.links import Delivery, Link, Reception
from echo_rtc.stream.log import Complaints, StreamLog
from echo_rtc.stream.pump import Pump
from echo_rtc.stream.sync import CallRecord
from echo_rtc.stream.tally import Tally, TimedRenderer
from echo_rtc.stream.taps import Tap
from echo_rtc.stream.viewers import Viewer
from echo_rtc.stream.voice import UnusableBlock, Voice

logger = logging.getLogger(__name__)

TICK_S = 0.05
"""How often media time is told to go on by our clock."""
REPORT_S = 0.2
"""How often the state is looked at."""
REPORTS_PER_STATISTICS = 5
"""Statistics go to the page with every fifth look: once a second."""

VIEWER_COUNTERS = ("sound_packets", "picture_packets", "sound_dropped", "picture_dropped")

Event = dict[str, object]
EventSink = Callable[[Event], bool]
"""Takes events for a page, {"type": "state" | "stats" | "end", ...}; says whether it could send it."""


class StreamState(StrEnum):
    """What a page shows: no connection yet; the idle loop; a talking face; held frames in the last second."""

    CONNECTING = "connecting"
    IDLE = "idle"
    SPEAKING = "speaking"
    BEHIND = "behind"


@dataclass(frozen=True, slots=True)
class Vitals:
    """A stream at a moment. ``offset_ms``: the picture against the sound as they left in the last second, positive
    where it is late; ``jitter_s``: of the microphone's packets; ``round_trip_s``: the longest of the viewers; each None
    where nothing is known. ``bitrates``:
    bit/s sent in the last second by codec. ``viewers``: those that get packets."""

    state: StreamState
    delay_s: float
    offset_ms: float | None
    waiting_clips: int
    viewers: int
    bitrates: Mapping[str, int]
    jitter_s: float | None
    round_trip_s: float | None


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """The settings of streams.

    ``vad_threshold``: RMS 0..1, 0 renders everything. ``max_latency_s``: upper bound of the delay.
    ``steps``, ``min_steps``: denoising steps of a clip, and how few while clips come late. ``margin_s``: what the delay
    leaves for everything but clip and rendering; the pump takes frames up to 80 ms before they are due, and the rest is
    for jitter. ``voice_timeout_s``: a stream whose microphone sends nothing for so long ends; 0: never. Silence is
    something, too.
    """

    vad_threshold: float = 0.015
    max_latency_s: float = 3.0
    steps: int = 1
    min_steps: int = 1
    margin_s: float = 0.15
    voice_timeout_s: float = 0.0


class Stream:
    """Makes a face from a voice. Runs from the first :meth:`begin` to :meth:`close`."""

    def __init__(self, engine: Engine, avatar: Avatar, options: StreamOptions, packetizer: PacketizerFactory) -> None:
        """``packetizer`` cuts encoded frames into the payloads of whatever carries them to viewers."""
        self.id = secrets.token_urlsafe(16)
        self.avatar = avatar.name
        self.log = StreamLog(logger, self.id)
        format, continuity = engine.format, engine.continuity
        loop = asyncio.get_running_loop()
        self._clock = loop.time
        self._format = format
        self._timeline = Timeline()
        self._resampler = SpeechResampler(format.sample_rate)
        self._clipper = Clipper(format)
        self._gate = SpeechGate(options.vad_threshold, format.sample_rate)
        policy = DelayPolicy(
            render_s=engine.expected_render_s,
            # The last frames of a clip are cross-faded with what the next clip shows of them.
            margin_s=options.margin_s + continuity.overlap_frames / format.fps,
            max_latency_s=options.max_latency_s,
            silence_rms=options.vad_threshold,
        )
        self._playout = Playout(format, avatar.idle, policy)
        self._complaints = Complaints(self.log)
        self._voice_blocks = 0
        self._voice_unusable = 0
        order = RenderOrder(
            avatar=avatar,
            format=format,
            seed=secrets.randbits(31),
            continuity=continuity,
            expected_s=engine.expected_render_s,
            stream=self.id,
            steps=options.steps,
            min_steps=options.min_steps,
        )
        self._renderer = TimedRenderer(engine, self._clock)
        self._dispatcher = Dispatcher(self._renderer, order, self._playout, self.log, self._clock, self._tell_steps)
        self._viewers: dict[int, Viewer] = {}
        self._viewers_so_far = 0
        self._taps: list[Tap] = []
        self._bank = EncoderBank(format, packetizer, self.log)
        self._pump = Pump(
            format, self._playout, avatar.idle, self._bank, self._viewers.values(), self._clock, self._taps
        )
        self._event_sinks: list[EventSink] = []
        self._events_dropped = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._opened_at = self._heard_at = self._clock()
        self._voice_timeout_s = options.voice_timeout_s
        self._record = CallRecord(self._opened_at)
        self._links: list[Link[Reception]] = []
        self._deliveries: dict[int, Link[Delivery]] = {}
        self._past = Tally()
        """What viewers and microphones that are gone have counted."""
        self.guarded = GuardCounters()
        """What was kept from its peers."""
        self._begun = False
        self._state = StreamState.CONNECTING
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
        self._heard_at = self._clock()
        self._tick()
        self._spawn(self._keep_time(), "keep time")
        self._spawn(self._dispatcher.run(), "dispatch clips")
        self._spawn(self._pump.run(), "pump")
        self._spawn(self._report(), "report")

    def listen(self, voice: Voice, probe: Callable[[], Awaitable[Reception]] | None = None) -> asyncio.Task[None]:
        """Takes the blocks of ``voice`` from now on, until it ends; the task is done then. The voice before, if there
        was one, has ended. ``probe`` says how its packets arrive."""
        self._heard_at = self._clock()
        self._timeline.new_microphone(self._heard_at)
        return self._spawn(self._listen(voice, Link(Reception(), probe)), "voice")

    def add_viewer(self, codec: VideoCodec | None, with_sound: bool) -> Viewer:
        """A further viewer, whose queues the caller hands to a connection."""
        number = self._viewers_so_far
        self._viewers_so_far += 1
        viewer = Viewer(number, codec, with_sound, self._choose_codecs, self._bank.want_key_frame)
        self._viewers[number] = viewer
        return viewer

    def watch_delivery(self, viewer: Viewer, probe: Callable[[], Awaitable[Delivery]]) -> None:
        """From now on ``probe`` says, once a second, how the viewer's packets arrive."""
        self._deliveries[viewer.number] = Link(Delivery(), probe)

    def remove_viewer(self, viewer: Viewer) -> None:
        """Closes a viewer's queues and removes encoders that only it needed."""
        viewer.close()
        if self._viewers.pop(viewer.number, None) is not None:
            self._past.count("viewers", self._viewer_counts(viewer))
            self._deliveries.pop(viewer.number, None)
            if viewer.codec is not None:
                self._bank.forget(viewer.codec, viewer.number)
            self._choose_codecs()

    def add_tap(self) -> Tap:
        """A pair of queues that give raw frames."""
        tap = Tap()
        self._taps.append(tap)
        return tap

    def remove_tap(self, tap: Tap) -> None:
        """Closes a tap's queues."""
        tap.close()
        if tap in self._taps:
            self._taps.remove(tap)

    @property
    def delay_s(self) -> float:
        """Media time minus playout time as it stands now, in seconds."""
        return self._playout.delay_s

    def media_sample(self, pts: int) -> int | None:
        """Where the microphone's sample stamped ``pts`` (48 kHz) lies in media time; None before the first block."""
        return self._timeline.media_sample(pts)

    def want_key_frame(self, viewer: Viewer) -> None:
        """A viewer's receiver reports a lost picture."""
        if viewer.codec is not None:
            self._bank.want_key_frame(viewer.codec, viewer.number)

    def estimate(self, viewer: Viewer, bitrate: int) -> None:
        """A viewer's receiver can take ``bitrate`` bit/s."""
        if viewer.codec is not None and viewer.number in self._viewers:
            self._bank.estimate(viewer.codec, viewer.number, bitrate)

    def subscribe(self, sink: EventSink) -> Callable[[], None]:
        """Sends the present state and all further events to ``sink``; returns what ends that."""
        self._event_sinks.append(sink)
        self._events_dropped += not sink({"type": "state", "state": self._state})

        def unsubscribe() -> None:
            if sink in self._event_sinks:
                self._event_sinks.remove(sink)

        return unsubscribe

    def end(self, reason: str) -> None:
        """Says that the stream is to be closed, by whoever looks after it. The first reason counts."""
        if not self.ended.done():
            self.ended.set_result(reason)

    async def close(self, reason: str) -> None:
        """Ends the stream and waits until nothing of it is left. The first reason counts."""
        self.end(reason)
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name=f"close stream {self.id[:8]}")
        await asyncio.shield(self._closing)

    @property
    def vitals(self) -> Vitals:
        """How the stream is at this moment."""
        deliveries = [link.latest.round_trip_s for link in self._deliveries.values()]
        round_trips = [round_trip_s for round_trip_s in deliveries if round_trip_s is not None]
        return Vitals(
            state=self._state,
            delay_s=self._playout.delay_s,
            offset_ms=self._record.offset_ms,
            waiting_clips=self._dispatcher.pending,
            viewers=sum(viewer.live for viewer in self._viewers.values()),
            bitrates=self._record.bitrates,
            jitter_s=max((link.latest.jitter_s for link in self._links), default=None),
            round_trip_s=max(round_trips, default=None),
        )

    def tally(self) -> Tally:
        """All that this stream has counted so far and that only grows."""
        playout, heard, output = self._playout.statistics(), self._timeline.statistics(), self._pump.counters
        tally = Tally(
            histograms={
                "clip_s": self._renderer.clip_s,
                "delay_s": self._record.delay_s,
                "offset_size_ms": self._record.offset_size_ms,
            },
            stages_s=dict(self._renderer.stages_s),
        )
        for name in ("rendered", "idle", "held", "skipped", "dropped"):
            tally.counts[f"frames.{name}"] = getattr(playout, name)
        tally.counts["frames.unencoded"] = output.skipped_frames
        for name in ("stretched", "cut", "underruns", "underrun_samples"):
            tally.counts[f"playout.{name}"] = getattr(playout, name)
        for name in ("blocks", "skipped_blocks", "late_packets"):
            tally.counts[f"output.{name}"] = getattr(output, name)
        for name in ("samples", "lost_samples", "silence_samples", "late_dropped", "early_dropped", "re_anchored"):
            tally.counts[f"heard.{name}"] = getattr(heard, name)
        tally.count("microphone", {"blocks": self._voice_blocks, "unusable": self._voice_unusable})
        tally.count("clips", asdict(self._dispatcher.counters))
        tally.count("encoder", asdict(self._bank.counters))
        tally.count("bytes", self._pump.sent_bytes)
        tally.count("events", {"dropped": self._events_dropped})
        tally.count("guard", asdict(self.guarded))
        for link in self._links:
            tally.count("microphone", _link_counts(link))
        for viewer in self._viewers.values():
            tally.count("viewers", self._viewer_counts(viewer))
        tally.add(self._past)
        return tally

    def statistics(self) -> dict[str, object]:
        """Everything countable of this stream, as JSON takes it. Times in the units of their names."""
        return {
            "stream": self.id,
            "avatar": self.avatar,
            "state": self._state,
            "age_s": round(self._clock() - self._opened_at, 3),
            **self._picture_statistics(),
            "delay_p50_ms": _milliseconds(self._record.delays_s.quantile(0.5)),
            "delay_p95_ms": _milliseconds(self._record.delays_s.quantile(0.95)),
            "av_offset_ms": _rounded(self._record.offset_ms),
            "worst_av_offset_ms": _rounded(self._record.worst_offset_ms),
            "sent_bitrates": self._record.bitrates,
            "reception": [asdict(link.latest) for link in self._links],
            "stages_ms": {
                stage: round(1000 * times.sum / times.count, 1) for stage, times in self._renderer.stages_s.items()
            },
            "microphone": {
                "blocks": self._voice_blocks,
                "unusable": self._voice_unusable,
                **asdict(self._timeline.statistics()),
            },
            "playout": asdict(self._playout.statistics()),
            "clips": {
                **asdict(self._dispatcher.counters),
                "waiting": self._dispatcher.pending,
                "expected_ms": round(self._dispatcher.expected_s * 1000, 1),
            },
            "encoder": {**asdict(self._bank.counters), "bitrates": dict(self._bank.bitrates)},
            "output": asdict(self._pump.counters),
            "events_dropped": self._events_dropped,
            "guard": asdict(self.guarded),
            "viewers": [
                {
                    "codec": viewer.codec,
                    "live": viewer.live,
                    **self._viewer_counts(viewer),
                    "round_trip_ms": _milliseconds(self._delivery(viewer).round_trip_s),
                }
                for viewer in self._viewers.values()
            ],
            "taps": [
                {
                    "sound_frames": tap.sound.frames,
                    "picture_frames": tap.picture.frames,
                    "sound_dropped": tap.sound.dropped,
                    "picture_dropped": tap.picture.dropped,
                }
                for tap in self._taps
            ],
        }

    def _picture_statistics(self) -> dict[str, object]:
        playout = self._playout.statistics()
        return {
            "delay_ms": round(playout.delay_s * 1000),
            "fps": self._pump.recent().frames,
            "rendered": playout.rendered,
            "held": playout.held,
            "dropped": playout.dropped,
            "idle": playout.idle,
            "steps": self._dispatcher.steps,
        }

    async def _listen(self, voice: Voice, link: Link[Reception]) -> None:
        self._links.append(link)
        try:
            async for block in voice:
                if isinstance(block, UnusableBlock):
                    self._voice_unusable += 1
                    self._complaints.warning("a block of the microphone cannot be used: %s", block.what)
                    continue
                self._voice_blocks += 1
                now = self._heard_at = self._clock()
                self._take(self._timeline.block(block.pts, block.pcm, now), now)
            self.log.debug("the voice has ended")
        finally:
            self._links.remove(link)
            self._past.count("microphone", _link_counts(link))

    def _tick(self) -> None:
        now = self._clock()
        pieces = self._timeline.advance(now)
        # Often enough here: the clock is slewed over seconds, and with every block it would cost three times as much.
        self._playout.discipline(self._timeline.arrived(now), now)
        self._take(pieces, now)

    def _take(self, pieces: list[tuple[int, S16Array]], now: float) -> None:
        """Further media time: to the echo, and cut into clips that are rendered or shown as idle."""
        for start, pcm in pieces:
            self._playout.push_sound(start, pcm, now)
            for clip in self._clipper.push(self._resampler.push(pcm)):
                admitted = self._gate.admit(clip)
                self._playout.expect(clip, admitted)
                if admitted:
                    self._dispatcher.submit(clip)
                else:
                    self._dispatcher.idle()

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._tick()

    async def _report(self) -> None:
        looks = 0
        while True:
            self._set_state(self._judge())
            if looks % REPORTS_PER_STATISTICS == 0:
                await self._look()
                self._emit({"type": "stats", **self._picture_statistics()})
            looks += 1
            await asyncio.sleep(REPORT_S)

    def _delivery(self, viewer: Viewer) -> Delivery:
        link = self._deliveries.get(viewer.number)
        return link.latest if link else Delivery()

    def _viewer_counts(self, viewer: Viewer) -> dict[str, int]:
        return {**{name: getattr(viewer, name) for name in VIEWER_COUNTERS}, "lost": self._delivery(viewer).lost}

    async def _look(self) -> None:
        """Once a second: notes how the call goes, and whether anybody speaks at all."""
        if self._voice_timeout_s and self._clock() - self._heard_at > self._voice_timeout_s:
            self.end(f"the microphone sent nothing for {self._voice_timeout_s:g} s")
        for link in tuple(self._links):
            await link.ask()
        for delivery in tuple(self._deliveries.values()):
            await delivery.ask()
        self._record.look(self._clock(), self._playout.delay_s, self._pump.sync.take(), self._pump.sent_bytes)

    def _judge(self) -> StreamState:
        recent = self._pump.recent()
        if recent.held:
            return StreamState.BEHIND
        return StreamState.SPEAKING if recent.latest is FrameKind.RENDERED else StreamState.IDLE

    def _set_state(self, state: StreamState) -> None:
        if state is not self._state:
            self._state = state
            self._emit({"type": "state", "state": state})

    def _tell_steps(self, steps: int) -> None:
        self._emit({"type": "steps", "steps": steps})

    def _emit(self, event: Event) -> None:
        for sink in tuple(self._event_sinks):
            self._events_dropped += not sink(event)

    def _choose_codecs(self) -> None:
        self._bank.use(viewer.codec for viewer in self._viewers.values() if viewer.live and viewer.codec is not None)

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
        self._emit({"type": "end", "reason": reason})
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for viewer in tuple(self._viewers.values()):
            self.remove_viewer(viewer)
        for tap in tuple(self._taps):
            self.remove_tap(tap)
        await self._bank.close()
        self._resampler.close()
        self._say_how_it_went(reason)

    def _say_how_it_went(self, reason: str) -> None:
        """The one line that closes a stream; the same figures are fields where logs are JSON."""
        record, picture, age_s = self._record, self._picture_statistics(), self._clock() - self._opened_at
        rates = {name: round(8 * count / 1000 / max(age_s, 1e-3)) for name, count in self._pump.sent_bytes.items()}
        fields: dict[str, object] = {
            "event": "stream_ended",
            "reason": reason,
            "seconds": round(age_s, 1),
            **{name: picture[name] for name in ("rendered", "idle", "held", "dropped")},
            "clips_lost": self._dispatcher.counters.lost,
            "delay_p50_ms": _milliseconds(record.delays_s.quantile(0.5)),
            "delay_p95_ms": _milliseconds(record.delays_s.quantile(0.95)),
            "worst_av_offset_ms": _rounded(record.worst_offset_ms),
            "kbit_s": rates,
        }
        self.log.info(
            "ended: %s; %s s, %s frames rendered, %s idle, %s held, %s dropped, %s clips lost; delay %s, 95 %% within "
            "%s; worst sync %s; %s",
            *(fields[name] for name in ("reason", "seconds", "rendered", "idle", "held", "dropped", "clips_lost")),
            _with_unit(fields["delay_p50_ms"], "ms"),
            _with_unit(fields["delay_p95_ms"], "ms"),
            _with_unit(fields["worst_av_offset_ms"], "ms"),
            ", ".join(f"{name} {rate} kbit/s" for name, rate in rates.items()) or "nothing sent",
            extra=fields,
        )


def _link_counts(link: Link[Reception]) -> dict[str, int]:
    return {"packets": link.latest.packets, "lost": link.latest.lost}


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _with_unit(value: object, unit: str) -> str:
    return "unknown" if value is None else f"{value} {unit}"
