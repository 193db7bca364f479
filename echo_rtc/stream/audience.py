"""The receivers of a stream: viewers and sinks, which share its encoders, and taps, which take raw frames.

Owns them and what is known of their connections. Knows no clock and no playout: the pump hands frames out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from echo_rtc.codec.picture import VideoCodec
from echo_rtc.stream.encoder_bank import EncoderBank
from echo_rtc.stream.links import Delivery, Link
from echo_rtc.stream.sinks import PacketSink
from echo_rtc.stream.snapshot import TapFigures, ViewerFigures
from echo_rtc.stream.tally import Tally
from echo_rtc.stream.taps import Tap
from echo_rtc.stream.viewers import Viewer


class Audience:
    """The viewers, sinks and taps of one stream. Sets which codecs ``bank`` encodes."""

    def __init__(self, bank: EncoderBank) -> None:
        self._bank = bank
        self._viewers: dict[int, Viewer] = {}
        self._viewers_so_far = 0
        self._deliveries: dict[int, Link[Delivery]] = {}
        self._sinks: dict[int, PacketSink] = {}
        self._taps: list[Tap] = []
        self.past = Tally()
        """What viewers that have left had counted."""

    @property
    def viewers(self) -> tuple[Viewer, ...]:
        return tuple(self._viewers.values())

    @property
    def sinks(self) -> tuple[PacketSink, ...]:
        return tuple(self._sinks.values())

    @property
    def taps(self) -> tuple[Tap, ...]:
        return tuple(self._taps)

    @property
    def live_viewers(self) -> int:
        """How many viewers read their queues."""
        return sum(viewer.live for viewer in self._viewers.values())

    @property
    def round_trip_s(self) -> float | None:
        """The longest round trip to a viewer; None where none is known."""
        known = [link.latest.round_trip_s for link in self._deliveries.values()]
        return max((seconds for seconds in known if seconds is not None), default=None)

    @property
    def deliveries(self) -> tuple[Delivery, ...]:
        """How packets reach each viewer that reports it."""
        return tuple(link.latest for link in self._deliveries.values())

    def add_viewer(self, codec: VideoCodec | None, with_sound: bool) -> Viewer:
        """A further viewer, whose queues the caller hands to a connection."""
        number = self._viewers_so_far
        self._viewers_so_far += 1
        viewer = Viewer(number, codec, with_sound, self._choose_codecs, self._bank.want_key_frame)
        self._viewers[number] = viewer
        return viewer

    def watch_delivery(self, viewer: Viewer, probe: Callable[[], Awaitable[Delivery]]) -> None:
        """Registers ``probe``, which reads how the viewer's packets arrive."""
        self._deliveries[viewer.number] = Link(Delivery(), probe)

    def remove_viewer(self, viewer: Viewer) -> None:
        """Closes a viewer's queues and removes encoders that only it needed."""
        viewer.close()
        if self._viewers.pop(viewer.number, None) is None:
            return
        self.past.count(viewer.counters)
        link = self._deliveries.pop(viewer.number, None)
        if link is not None:
            self.past.count(link.latest)
        if viewer.codec is not None:
            self._bank.forget(viewer.codec, viewer.number)
        self._choose_codecs()

    def add_sink(self, sink: PacketSink) -> Callable[[], None]:
        """Gives a sink all frames from now on, a keyframe soon; returns what ends that."""
        number = self._viewers_so_far
        self._viewers_so_far += 1
        self._sinks[number] = sink
        self._choose_codecs()
        self._bank.want_key_frame(sink.codec, number)

        def remove() -> None:
            if self._sinks.pop(number, None) is not None:
                self._bank.forget(sink.codec, number)
                self._choose_codecs()

        return remove

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

    def want_key_frame(self, viewer: Viewer) -> None:
        """A viewer's receiver reports a lost picture."""
        if viewer.codec is not None:
            self._bank.want_key_frame(viewer.codec, viewer.number)

    def estimate(self, viewer: Viewer, bitrate: int) -> None:
        """A viewer's receiver can take ``bitrate`` bit/s."""
        if viewer.codec is not None and viewer.number in self._viewers:
            self._bank.estimate(viewer.codec, viewer.number, bitrate)

    async def ask_links(self) -> None:
        """Asks how packets reach each viewer."""
        for link in tuple(self._deliveries.values()):
            await link.ask()
        self._bank.expect_loss(max((delivery.sound_loss for delivery in self.deliveries), default=0.0))

    def viewer_figures(self) -> tuple[ViewerFigures, ...]:
        figures = []
        for viewer in self._viewers.values():
            link = self._deliveries.get(viewer.number)
            delivery = link.latest if link else Delivery()
            figures.append(ViewerFigures(viewer.codec, viewer.live, viewer.counters, delivery))
        return tuple(figures)

    def tap_figures(self) -> tuple[TapFigures, ...]:
        return tuple(
            TapFigures(tap.sound.frames, tap.picture.frames, tap.sound.dropped, tap.picture.dropped)
            for tap in self._taps
        )

    def close(self) -> None:
        """Closes all queues."""
        for viewer in self.viewers:
            self.remove_viewer(viewer)
        for sink in self.sinks:
            sink.close()
        for tap in self.taps:
            self.remove_tap(tap)

    def _choose_codecs(self) -> None:
        self._bank.use(
            (viewer.codec for viewer in self._viewers.values() if viewer.live and viewer.codec is not None),
            (sink.codec for sink in self._sinks.values()),
        )
