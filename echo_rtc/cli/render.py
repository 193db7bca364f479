"""``echo-rtc render --audio IN --output OUT.mp4``: files' voices to movies with their talking face.

Exit codes: 0 done, 2 for a flag or setting that cannot be, 1 for a file that cannot be used, each with one sentence on
stderr; 130 and 143 after SIGINT and SIGTERM. Knows flags and the console; rendering is in ``offline``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from echo_rtc.cli.progress import LoadingBar
from echo_rtc.cli.signals import signals_handled
from echo_rtc.codec.burned_mark import BurnedMark
from echo_rtc.codec.marking import Mark
from echo_rtc.engine.factory import create_engine
from echo_rtc.errors import EchoRtcError, InputError, SettingsError
from echo_rtc.offline.batch import Job, Journal, jobs_of, render_all
from echo_rtc.offline.credentials import CredentialsSigner, check_can_be_signed
from echo_rtc.offline.files import MovieMarking, SoundFile, check_movie_path
from echo_rtc.offline.render import OfflineOptions
from echo_rtc.rendering import notices_of
from echo_rtc.settings import Settings, SettingsParser, settings_from, settings_of

PROG = "echo-rtc render"

LIVE_ONLY = (
    *("host", "port", "max_latency", "max_streams", "min_steps", "mark"),
    *settings_of("library", "access", "limits", "network", "recording", "logs"),
)
"""Settings that mean nothing to a rendering offline."""


@dataclass(frozen=True, slots=True)
class RenderWork:
    """What ``render`` is to do. ``folder``: where several movies go. ``again``: also what was finished before.
    ``marking``: how the movies are marked."""

    jobs: Sequence[Job]
    folder: Path | None
    again: bool
    settings: Settings
    marking: MovieMarking


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    logging.basicConfig(level=logging.WARNING, format="echo-rtc: %(message)s")
    try:
        return asyncio.run(_render(_render_work(argv)))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except EchoRtcError as error:
        sys.stderr.write(f"{PROG}: {error}\n")
        return 2 if isinstance(error, SettingsError) else 1


def _render_work(argv: Sequence[str]) -> RenderWork:
    parser = SettingsParser(
        PROG,
        "Renders the voice of any file with sound to a movie: H.264 and AAC.",
        without=LIVE_ONLY,
        required="--audio FILE --output FILE",
    )
    files = parser.add_argument_group("files")
    files.add_argument(
        "--audio",
        metavar="FILE",
        required=True,
        action="append",
        help="The voice: any file with sound, also a video, or a folder of such files. May be given several times.",
    )
    files.add_argument(
        "--output",
        metavar="FILE",
        required=True,
        help="The movie: .mp4, .m4v, .mov or .mkv. Of several voices, the folder for their movies, NAME.mp4 each.",
    )
    files.add_argument(
        "--again", action="store_true", help="Of several voices, render those too that were finished before."
    )
    arguments = parser.arguments(argv)
    settings = settings_from(arguments, os.environ)
    output = Path(arguments.output).expanduser()
    burn = BurnedMark(settings.clip_format) if settings.burn_mark else None
    signer = CredentialsSigner.of(settings.c2pa_cert, settings.c2pa_key)
    jobs = jobs_of([Path(audio).expanduser() for audio in arguments.audio], output)
    if signer is not None:
        check_can_be_signed(jobs[0].output)
    folder = None if jobs[0].output == output else output
    return RenderWork(jobs, folder, arguments.again, settings, MovieMarking(burn=burn, signer=signer))


async def _render(work: RenderWork) -> int:
    """Renders, or is stopped by SIGTERM; Ctrl-C cancels it from outside."""
    task = asyncio.create_task(_render_files(work), name="render")
    with signals_handled({signal.SIGTERM: task.cancel}):
        try:
            return await task
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling():  # type: ignore[union-attr]  # there is a task: this one
                raise
            return 128 + signal.SIGTERM


async def _render_files(work: RenderWork) -> int:
    """Everything that can be wrong with the files is found before the engine starts, which may take minutes."""
    settings, jobs = work.settings, work.jobs
    journal: Journal | None = None
    if work.folder is not None:
        _make_folder(work.folder)
        journal = Journal(work.folder, settings, without=(*LIVE_ONLY, "devices"))
        jobs = [job for job in jobs if work.again or not journal.has(job)]
        if len(jobs) < len(work.jobs):
            sys.stdout.write(f"{len(work.jobs) - len(jobs)} of {len(work.jobs)} movies were finished before\n")
    failed: list[tuple[Job, EchoRtcError]] = []
    durations: list[float | None] = []
    for job in jobs:
        try:
            durations.append(_check(job))
        except InputError as error:
            if len(work.jobs) == 1:
                raise
            failed.append((job, error))  # it costs itself only, as one that fails later does
    jobs = [job for job in jobs if job not in [bad for bad, _ in failed]]
    if not jobs:
        return _tell(failed, work)
    began = time.monotonic()

    def finished(job: Job, frames: int) -> None:
        if journal is not None:
            journal.note(job)
        length_s, took_s = frames / settings.fps, time.monotonic() - began
        bar.write(f"{job.output}: {frames} frames, {length_s:.1f} s of video in {took_s:.1f} s", file=sys.stdout)

    engine = create_engine(settings)
    try:
        with LoadingBar() as loading:
            await engine.start(loading.advance)
        for notice in notices_of(engine.workers):
            sys.stderr.write(f"{PROG}: {notice}\n")
        with _bar(durations, settings.fps) as bar:
            avatar = next(iter(engine.avatars))
            options = OfflineOptions(
                avatar=avatar,
                vad_threshold=settings.vad_threshold,
                chained=settings.use_init_latent,
                fade_frames=min(settings.overlap_frames, settings.clip_frames),
                marking=replace(work.marking, mark=Mark(avatar)),
            )
            failed += await render_all(engine, jobs, options, bar.update, finished)
    finally:
        await engine.close()
    return _tell(failed, work)


def _tell(failed: Sequence[tuple[Job, EchoRtcError]], work: RenderWork) -> int:
    """Says what failed; returns the exit code."""
    for job, error in failed:
        sys.stderr.write(f"{PROG}: {job.audio}: {error}\n" if len(work.jobs) > 1 else f"{PROG}: {error}\n")
    return 1 if failed else 0


def _check(job: Job) -> float | None:
    """The length of a job's sound (s), if it is known. Raises InputError if it cannot be rendered."""
    with SoundFile(job.audio) as source:
        if job.output.exists() and job.output.samefile(job.audio):
            raise InputError(f"output is {job.output}, which is the audio file itself; choose another name")
        check_movie_path(job.output)
        return source.duration_s


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"output is {folder}, a folder that cannot be made: {error.strerror}") from error


def _bar(durations_s: Sequence[float | None], fps: int) -> tqdm[NoReturn]:
    """A progress bar in frames on stderr, if that is a terminal."""
    known = [duration for duration in durations_s if duration is not None]
    total = round(sum(known) * fps) if len(known) == len(durations_s) else None
    return tqdm(
        total=total,
        desc="rendering",
        unit="frame",
        file=sys.stderr,
        disable=None,
        leave=False,
        dynamic_ncols=True,
    )
