"""The input of a stream: blocks of a voice become media time, which goes to the echo and is cut into clips.

Each clip with speech goes to the dispatcher; every clip is announced to the playout, rendered or not. Knows no
connection: a voice is an async iterator of blocks, whatever its source.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from echo_rtc.clips import AudioClip, ClipFormat, S16Array
from echo_rtc.codec.resampling import SpeechResampler
from echo_rtc.media.clipper import Clipper
from echo_rtc.media.gate import SpeechGate
from echo_rtc.media.timeline import Timeline
from echo_rtc.stream.links import Link, Reception
from echo_rtc.stream.log import Complaints, StreamLog
from echo_rtc.stream.tally import Tally
from echo_rtc.stream.voice import UnusableBlock, Voice, VoiceBlock, VoiceCounters


class SoundSink(Protocol):
    """The part of the playout that takes sound and learns of clips."""

    def push_sound(self, start: int, pcm: S16Array, now: float) -> None: ...

    def discipline(self, media_sample: float, now: float) -> None: ...

    def expect(self, clip: AudioClip, rendered: bool) -> None: ...


class ClipSink(Protocol):
    """The part of the dispatcher that takes clips."""

    def submit(self, clip: AudioClip) -> None: ...

    def idle(self) -> None: ...


class ClipFeed:
    """Media time to the echo, and cut into clips that are rendered or shown as idle."""

    def __init__(self, clip_format: ClipFormat, vad_threshold: float, playout: SoundSink, clips: ClipSink) -> None:
        """``vad_threshold``: RMS 0..1 from which on a clip is speech; 0 renders every clip."""
        self._playout = playout
        self._clips = clips
        self._resampler = SpeechResampler(clip_format.sample_rate)
        self._clipper = Clipper(clip_format)
        self._gate = SpeechGate(vad_threshold, clip_format.sample_rate)

    def take(
        self, pieces: list[tuple[int, S16Array]], now: float, wanted: Callable[[AudioClip], bool] = lambda _: True
    ) -> None:
        """Further media time. A clip that is not ``wanted`` is known to be silence."""
        for start, pcm in pieces:
            self._playout.push_sound(start, pcm, now)
            for clip in self._clipper.push(self._resampler.push(pcm)):
                if not wanted(clip):
                    self._gate.rest()
                    admitted = False
                else:
                    admitted = self._gate.admit(clip)
                self._playout.expect(clip, admitted)
                if admitted:
                    self._clips.submit(clip)
                else:
                    self._clips.idle()

    def forget(self) -> None:
        """What was heard so far is silence to the clips to come."""
        self._clipper.forget()
        self._gate.rest()

    def close(self) -> None:
        self._resampler.close()


class Listener:
    """Takes one voice after another, places their blocks in media time and cuts clips of it.

    Media time goes on without a voice, too: :meth:`tick` fills it with silence by the clock.
    """

    def __init__(self, feed: ClipFeed, playout: SoundSink, log: StreamLog) -> None:
        self._clock = asyncio.get_running_loop().time
        self._feed = feed
        self._playout = playout
        self._log = log
        self._complaints = Complaints(log)
        self.timeline = Timeline()
        self._links: list[Link[Reception]] = []
        self.heard_at = self._clock()
        """When the latest block came, or a new voice was announced."""
        self.counters = VoiceCounters()
        self.past = Tally()
        """What was received of voices that have ended."""

    @property
    def receptions(self) -> tuple[Reception, ...]:
        """How the packets of the voices that are there arrive."""
        return tuple(link.latest for link in self._links)

    def begin(self) -> None:
        """Starts media time."""
        self.heard_at = self._clock()
        self.tick()

    def announce(self) -> None:
        """Another voice begins: its time stamps have nothing to do with those of the voice before."""
        self.heard_at = self._clock()
        self.timeline.new_microphone(self.heard_at)

    async def listen(self, voice: Voice, link: Link[Reception]) -> None:
        """Takes the blocks of ``voice`` until it ends. What cannot be used is counted and becomes silence."""
        self._links.append(link)
        try:
            async for block in voice:
                self._hear(block)
            self._log.debug("the voice has ended")
        finally:
            self._links.remove(link)
            self.past.count(link.latest)

    def tick(self) -> None:
        """Media time goes on by our clock."""
        now = self._clock()
        pieces = self.timeline.advance(now)
        # Often enough here: the clock is slewed over seconds, and with every block it would cost three times as much.
        self._playout.discipline(self.timeline.arrived(now), now)
        self._feed.take(pieces, now)

    async def ask_links(self) -> None:
        """Asks how the packets of each voice arrive."""
        for link in tuple(self._links):
            await link.ask()

    def close(self) -> None:
        self._feed.close()

    def _hear(self, block: VoiceBlock | UnusableBlock) -> None:
        if isinstance(block, UnusableBlock):
            self.counters.unusable += 1
            self._complaints.warning("a block of the microphone cannot be used: %s", block.what)
            return
        self.counters.blocks += 1
        self.heard_at = self._clock()
        self._feed.take(self.timeline.block(block.pts, block.pcm, self.heard_at), self.heard_at)
