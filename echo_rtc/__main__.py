"""The command line: ``python -m echo_rtc render --audio IN --output OUT.mp4``, ``python -m echo_rtc token``.

Exit codes: 0 done, 2 for a flag or setting that cannot be, 1 for a file that cannot be used, each with one sentence on
stderr; 130 and 143 after SIGINT and SIGTERM. Knows the commands' flags; what they do is in the modules they call.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from echo_rtc.engine.factory import create_engine
from echo_rtc.errors import EchoRtcError, InputError, SettingsError
from echo_rtc.files import MovieFile, SoundFile
from echo_rtc.offline import OfflineOptions, render_voice
from echo_rtc.settings import Settings, SettingsParser, settings_from, settings_of
from echo_rtc.web.token import token_of

USAGE = """usage: python -m echo_rtc render --audio IN --output OUT.mp4 [settings]
       python -m echo_rtc token --scope SCOPE --name NAME [--expires TIME]

commands:
  render    render a file's voice to a movie; render --help lists its flags
  token     print a signed token that allows one thing for some time; token --help lists its flags

The server is started by python server.py, the measurements by python -m echo_rtc.bench.
"""
LIVE_ONLY = (
    "host",
    "port",
    "max_latency",
    "max_streams",
    *settings_of("library", "access", "limits", "network", "logs"),
)
"""Settings that mean nothing to a rendering offline."""


@dataclass(frozen=True, slots=True)
class RenderJob:
    """What ``render`` is to do: the sound of ``audio`` with its face into ``output``."""

    audio: Path
    output: Path
    settings: Settings


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        (sys.stdout if words else sys.stderr).write(USAGE)
        return 0 if words else 2
    if words[0] == "token":
        return _token(words[1:])
    if words[0] != "render":
        sys.stderr.write(f"echo_rtc: {words[0]!r} is no command; there are render and token\n")
        return 2
    logging.basicConfig(level=logging.WARNING, format="echo_rtc: %(message)s")
    try:
        job = _render_job(words[1:])
        return asyncio.run(_render(job))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except EchoRtcError as error:
        sys.stderr.write(f"echo_rtc render: {error}\n")
        return 2 if isinstance(error, SettingsError) else 1


def _token(argv: Sequence[str]) -> int:
    try:
        sys.stdout.write(f"{token_of(argv)}\n")
    except EchoRtcError as error:
        sys.stderr.write(f"echo_rtc token: {error}\n")
        return 2
    return 0


def _render_job(argv: Sequence[str]) -> RenderJob:
    parser = SettingsParser(
        "echo_rtc render", "Renders the voice of any file with sound to a movie: H.264 and AAC.", without=LIVE_ONLY
    )
    files = parser.add_argument_group("files")
    files.add_argument("--audio", metavar="FILE", required=True, help="The voice: any file with sound, also a video.")
    files.add_argument("--output", metavar="FILE", required=True, help="The movie: .mp4, .m4v, .mov or .mkv.")
    arguments = parser.arguments(argv)
    return RenderJob(
        Path(arguments.audio).expanduser(), Path(arguments.output).expanduser(), settings_from(arguments, os.environ)
    )


async def _render(job: RenderJob) -> int:
    """Renders, or is stopped by SIGTERM; Ctrl-C cancels it from outside."""
    loop = asyncio.get_running_loop()
    work = asyncio.create_task(_render_file(job), name="render")
    loop.add_signal_handler(signal.SIGTERM, work.cancel)
    try:
        await work
    except asyncio.CancelledError:
        if asyncio.current_task().cancelling():  # type: ignore[union-attr]  # there is a task: this one
            raise
        return 128 + signal.SIGTERM
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
    return 0


async def _render_file(job: RenderJob) -> None:
    """Everything that can be wrong with the files is found before the engine starts, which may take minutes."""
    settings = job.settings
    format = settings.clip_format
    began = time.monotonic()
    with SoundFile(job.audio) as source:
        if job.output.exists() and job.output.samefile(job.audio):
            raise InputError(f"output is {job.output}, which is the audio file itself; choose another name")
        with MovieFile(job.output, format, source.channels) as movie, _bar(source, format.fps) as bar:
            engine = create_engine(settings)
            try:
                bar.set_description_str("starting")
                await engine.start(bar.set_postfix_str)
                bar.set_description_str("rendering")
                bar.set_postfix_str("")
                options = OfflineOptions(
                    avatar=next(iter(engine.avatars)),
                    vad_threshold=settings.vad_threshold,
                    chained=settings.use_init_latent,
                )
                frames = await render_voice(engine, source, movie, options, bar.update)
            finally:
                await engine.close()
    length_s, took_s = frames / format.fps, time.monotonic() - began
    sys.stdout.write(f"{job.output}: {frames} frames, {length_s:.1f} s of video in {took_s:.1f} s\n")


def _bar(source: SoundFile, fps: int) -> tqdm[NoReturn]:
    """A progress bar in frames on stderr, if that is a terminal."""
    total = None if source.duration_s is None else round(source.duration_s * fps)
    return tqdm(total=total, unit="frame", file=sys.stderr, disable=None, leave=False, dynamic_ncols=True)


if __name__ == "__main__":
    sys.exit(main())
