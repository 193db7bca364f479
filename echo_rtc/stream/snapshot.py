"""A stream at a moment, and its two forms for people: the JSON of ``GET /streams/{id}`` and the line that closes it.

Pure: everything is read from the counters and figures that are given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from echo_rtc.stream.counters import StreamCounters
from echo_rtc.stream.links import Delivery
from echo_rtc.stream.sync import CallRecord
from echo_rtc.stream.viewers import ViewerCounters

SHOWN_FRAMES = ("rendered", "held", "dropped", "idle")
"""What became of frames, as pages show it."""
CLOSING_LINE = (
    "ended: {reason}; voice {source}, {seconds} s, {rendered} frames rendered, {idle} idle, {held} held, "
    "{dropped} dropped, {clips_lost} clips lost; delay {delay_p50}, 95 % within {delay_p95}; "
    "worst sync {worst_av_offset}; {sent}"
)


@dataclass(frozen=True, slots=True)
class ViewerFigures:
    """One viewer: its codec (None: sound only), whether it reads, its counters, and how packets reach it."""

    codec: str | None
    live: bool
    counters: ViewerCounters
    delivery: Delivery

    def as_json(self) -> dict[str, object]:
        return {
            "codec": self.codec,
            "live": self.live,
            **asdict(self.counters),
            "lost": self.delivery.lost,
            "round_trip_ms": _milliseconds(self.delivery.round_trip_s),
        }


@dataclass(frozen=True, slots=True)
class TapFigures:
    """One tap: frames offered since its first read, and those of them that it was too slow for."""

    sound_frames: int
    picture_frames: int
    sound_dropped: int
    picture_dropped: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The figures of a stream. ``source``: where its voice comes from. ``fps``: frames that left in the last second.
    ``steps``: denoising steps of the next clip. ``bitrates``: bit/s that each picture encoder is set to."""

    stream: str
    avatar: str
    source: str
    state: str
    age_s: float
    fps: int
    steps: int
    waiting_clips: int
    bitrates: Mapping[str, int]
    record: CallRecord
    viewers: tuple[ViewerFigures, ...]
    taps: tuple[TapFigures, ...]
    counters: StreamCounters

    def picture(self) -> dict[str, object]:
        """What pages get once a second."""
        playout = self.counters.playout
        return {
            "delay_ms": round(playout.delay_s * 1000),
            "fps": self.fps,
            **{name: getattr(playout, name) for name in SHOWN_FRAMES},
            "steps": self.steps,
        }

    def as_json(self) -> dict[str, object]:
        """Everything countable, as JSON takes it. Times in the units of their names."""
        counters, record = self.counters, self.record
        output = asdict(counters.output)
        del output["sent_bytes"]
        return {
            "stream": self.stream,
            "avatar": self.avatar,
            "source": self.source,
            "state": self.state,
            "age_s": round(self.age_s, 3),
            **self.picture(),
            "delay_p50_ms": _milliseconds(record.delays_s.quantile(0.5)),
            "delay_p95_ms": _milliseconds(record.delays_s.quantile(0.95)),
            "av_offset_ms": _rounded(record.offset_ms),
            "worst_av_offset_ms": _rounded(record.worst_offset_ms),
            "sent_bitrates": record.bitrates,
            "reception": [asdict(reception) for reception in counters.receptions],
            "stages_ms": counters.times.means_ms(),
            "microphone": {**asdict(counters.voice), **asdict(counters.timeline)},
            "playout": asdict(counters.playout),
            "clips": {**asdict(counters.clips), "waiting": self.waiting_clips},
            "encoder": {**asdict(counters.encoder), "bitrates": dict(self.bitrates)},
            "output": output,
            "events_dropped": counters.events.dropped,
            "guard": asdict(counters.guard),
            "viewers": [viewer.as_json() for viewer in self.viewers],
            "taps": [asdict(tap) for tap in self.taps],
        }

    def closing_fields(self, reason: str) -> dict[str, object]:
        """The figures of the line that closes a stream, as fields for logs that are JSON."""
        shown = self.as_json()
        sent = self.counters.output.sent_bytes
        return {
            "event": "stream_ended",
            "reason": reason,
            "source": self.source,
            "seconds": round(self.age_s, 1),
            **{name: shown[name] for name in SHOWN_FRAMES},
            "clips_lost": self.counters.clips.lost,
            **{name: shown[name] for name in ("delay_p50_ms", "delay_p95_ms", "worst_av_offset_ms")},
            "kbit_s": {name: round(8 * count / 1000 / max(self.age_s, 1e-3)) for name, count in sent.items()},
        }


def closing_line(fields: Mapping[str, object]) -> str:
    """The line that closes a stream, of :meth:`Snapshot.closing_fields`."""
    rates = fields["kbit_s"]
    assert isinstance(rates, Mapping)
    with_units = {
        name.removesuffix("_ms"): "unknown" if value is None else f"{value} ms"
        for name, value in fields.items()
        if name.endswith("_ms")
    }
    sent = ", ".join(f"{name} {rate} kbit/s" for name, rate in rates.items()) or "nothing sent"
    return CLOSING_LINE.format_map({**fields, **with_units, "sent": sent})


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
