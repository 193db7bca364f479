"""``python -m echo_rtc.bench avatars``: what preparing a further avatar costs a stream that goes on meanwhile.

A voice drives a stream of the embedded model; after a while its picture is uploaded as another avatar, as POST /avatars
does it. Counted are the frames of the stream that were held because their clip was late, before and during that. No
peer connection takes part: the frames are read from a raw track.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import cast

from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from echo_rtc.avatar import AvatarService, TalkingFace, stream_options
from echo_rtc.avatars.library import AvatarLibrary, Shelf
from echo_rtc.bench.stream import babble
from echo_rtc.bench.support.calls import ScriptedMicrophone
from echo_rtc.bench.support.report import report
from echo_rtc.engine.factory import create_engine
from echo_rtc.settings import Settings, named_settings

SETTLE_S = 3.0
"""The first seconds do not count: the delay still moves."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of the stream: its length (s), frames shown, those of them held, and the delay at its end (ms)."""

    name: str
    seconds: float
    shown: int
    held: int
    delay_ms: int

    @property
    def held_share(self) -> float:
        return self.held / max(1, self.shown)


def main(argv: list[str]) -> int:
    """Measures and prints; 1 if the avatar could not be called in the end."""
    parser = argparse.ArgumentParser(prog="echo-rtc bench avatars", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the stream before and after (s)")
    parser.add_argument("--streams", type=int, default=1, help="streams that go on meanwhile")
    arguments = parser.parse_args(argv)
    phases, prepared = asyncio.run(measure(arguments.seconds, arguments.streams))
    rows = [[phase.name, phase.seconds, phase.shown, phase.held, phase.held_share, phase.delay_ms] for phase in phases]
    before, during, _ = phases
    figures = {
        "prepare_s": round(during.seconds, 2),
        "held_before": round(before.held_share, 4),
        "held_during": round(during.held_share, 4),
    }
    report(["while", "s", "frames", "held", "share", "delay ms"], rows, figures)
    return 0 if prepared else 1


async def measure(seconds: float, streams: int) -> tuple[list[Phase], bool]:
    """The phases before, during and after the upload, all streams together; whether the avatar is there."""
    with tempfile.TemporaryDirectory() as folder:
        settings = named_settings({"avatar_dir": folder, "keep_idle_loops": False})
        async with _voices(settings, streams) as (faces, library):
            await asyncio.sleep(SETTLE_S)
            watch = _Watch(faces)
            await asyncio.sleep(seconds)
            watch.end("nothing else")
            await library.add("further", settings.reference_image.read_bytes())
            watch.end("preparing an avatar")
            await asyncio.sleep(seconds)
            watch.end("nothing else again")
            return watch.phases, "further" in [entry.name for entry in library.entries()]


class _Watch:
    """Cuts the counters of streams into phases."""

    def __init__(self, faces: list[TalkingFace]) -> None:
        self._faces = faces
        self.phases: list[Phase] = []
        self._mark = (time.perf_counter(), *self._counts())

    def end(self, name: str) -> None:
        """Ends a phase, and begins the next."""
        now = (time.perf_counter(), *self._counts())
        seconds, shown, held = (after - before for after, before in zip(now, self._mark, strict=True))
        delay_ms = round(1000 * max(face.delay_s for face in self._faces))
        self.phases.append(Phase(name, seconds, round(shown), round(held), delay_ms))
        self._mark = now

    def _counts(self) -> tuple[int, int]:
        """Frames shown and held so far."""
        shown = held = 0
        for face in self._faces:
            counts = cast(dict[str, int], face.statistics()["playout"])
            shown += counts["rendered"] + counts["idle"] + counts["held"]
            held += counts["held"]
        return shown, held


@contextlib.asynccontextmanager
async def _voices(settings: Settings, streams: int) -> AsyncIterator[tuple[list[TalkingFace], AvatarLibrary]]:
    """``streams`` streams of a voice that never pauses, on an engine of their own, and that engine's library."""
    engine = create_engine(settings)
    try:
        await engine.start(lambda _: None)
        service = AvatarService(engine, stream_options(settings), max_streams=streams)
        library = AvatarLibrary(engine, Shelf(Shelf.of(settings).configured[:1], settings.avatar_dir, most=2))
        faces = [service.animate(ScriptedMicrophone(babble)) for _ in range(streams)]
        reading = [asyncio.create_task(_drain(track)) for face in faces for track in (face.audio, face.video)]
        try:
            yield faces, library
        finally:
            await service.close()
            await asyncio.gather(*reading)
    finally:
        await engine.close()


async def _drain(track: MediaStreamTrack) -> None:
    with contextlib.suppress(MediaStreamError):
        while True:
            await track.recv()
