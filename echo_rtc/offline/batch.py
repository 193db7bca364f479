"""Many voices to many movies: which files there are, which of them are finished already, and all workers kept busy.

Knows files and their names; how one voice becomes a movie is ``offline.py``.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from echo_rtc.errors import EchoRtcError, InputError
from echo_rtc.offline.files import CONTAINERS, MovieFile, SoundFile
from echo_rtc.offline.render import PART_CLIPS, OfflineOptions, Tick, even_parts, render_voice
from echo_rtc.rendering import Engine
from echo_rtc.settings import Settings

logger = logging.getLogger(__name__)

MOVIE = ".mp4"
"""The ending of movies that are named after their voice."""

VOICES = frozenset(
    (
        *(".aac", ".ac3", ".aif", ".aiff", ".amr", ".flac", ".m4a", ".mka", ".mp3", ".oga", ".ogg", ".opus", ".wav"),
        *(".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wma", ".wmv"),
    )
)
"""Endings of files that are taken for voices where a folder is given; others in it are passed over."""

JOURNAL = ".echo_rtc-finished.json"


@dataclass(frozen=True, slots=True)
class Job:
    """The sound of ``audio`` with its face goes into ``output``."""

    audio: Path
    output: Path


def jobs_of(audio: Sequence[Path], output: Path) -> list[Job]:
    """What is to be rendered: a file into the movie ``output``, or several files and folders of files into the folder
    ``output``, each under its own name. Raises InputError if that cannot be."""
    if len(audio) == 1 and not audio[0].is_dir() and not output.is_dir():
        return [Job(audio[0], output)]
    if output.suffix.lower() in CONTAINERS and not output.is_dir():
        raise InputError(f"output is {output}, but several voices need a folder; name one without an ending")
    voices: list[Path] = []
    for path in audio:
        if not path.is_dir():
            voices.append(path)
            continue
        try:
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in VOICES and file.is_file())
        except OSError as error:
            raise InputError(f"audio is {path}, a folder that cannot be read: {error.strerror}") from error
        if not found:
            raise InputError(f"audio is {path}, a folder without any file of sound or video")
        voices += found
    jobs: dict[str, Job] = {}
    for voice in dict.fromkeys(voices):
        job = Job(voice, output / f"{voice.stem}{MOVIE}")
        other = jobs.setdefault(job.output.name, job)
        if other is not job:
            raise InputError(f"{other.audio} and {voice} would both become {job.output}; rename one of them")
    return list(jobs.values())


class Journal:
    """Which movies of a folder are finished: of which file and with which settings, so that a change of either, or a
    movie that was deleted, is rendered again."""

    def __init__(self, folder: Path, settings: Settings, without: Collection[str]) -> None:
        """``without``: settings that do not show in a movie."""
        self._path = folder / JOURNAL
        shown = {
            field.name: str(getattr(settings, field.name))
            for field in fields(settings)
            if field.compare and field.name not in without
        }
        self._settings = hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()[:16]
        self._entries: dict[str, object] = {}
        try:
            found = json.loads(self._path.read_text())
            self._entries = found if isinstance(found, dict) else {}
        except FileNotFoundError:
            logger.debug("nothing is finished in %s", folder)
        except (OSError, ValueError) as error:
            logger.warning("%s cannot be read (%s); all files are rendered again", self._path, error)

    def has(self, job: Job) -> bool:
        entry = self._entry(job)
        return entry is not None and job.output.is_file() and self._entries.get(job.output.name) == entry

    def note(self, job: Job) -> None:
        """The movie is finished. Raises InputError if that cannot be written down."""
        self._entries[job.output.name] = self._entry(job)
        new = self._path.with_suffix(".part")
        try:
            new.write_text(json.dumps(self._entries, indent=1))
            new.replace(self._path)
        except OSError as error:
            raise InputError(f"output is {self._path.parent}, which cannot be written: {error.strerror}") from error

    def _entry(self, job: Job) -> dict[str, object] | None:
        """None where the voice cannot be opened; opening it for rendering then reports why."""
        try:
            status = job.audio.stat()
        except OSError:
            return None
        return {
            "audio": str(job.audio.resolve()),
            "bytes": status.st_size,
            "modified_ns": status.st_mtime_ns,
            "settings": self._settings,
        }


async def render_all(
    engine: Engine,
    jobs: Sequence[Job],
    options: OfflineOptions,
    tick: Tick,
    finished: Callable[[Job, int], None],
) -> list[tuple[Job, EchoRtcError]]:
    """Renders all jobs with a started engine, as many side by side as there are workers; what failed, and why.

    ``finished`` is called with each job that is done and the number of its frames.
    """
    workers = max(1, len(engine.workers))
    turns = asyncio.Semaphore(workers)
    under_way = 0
    failed: list[tuple[Job, EchoRtcError]] = []

    def parts() -> int:
        """One more than there are workers, so that each has its next clip prepared; shared by the files."""
        return 1 if workers == 1 else max(1, -(-(workers + 1) // max(1, under_way)))

    async def one(job: Job) -> None:
        nonlocal under_way
        async with turns:
            under_way += 1
            try:
                with (
                    SoundFile(job.audio) as source,
                    MovieFile(job.output, engine.format, source.channels, options.marking) as movie,
                ):
                    size = PART_CLIPS
                    if source.duration_s is not None:
                        clips = math.ceil(source.duration_s / float(engine.format.clip_duration))
                        size = even_parts(clips, workers)
                    frames = await render_voice(engine, source, movie, options, tick, parts, size)
                finished(job, frames)
            except EchoRtcError as error:
                failed.append((job, error))
            finally:
                under_way -= 1

    async with asyncio.TaskGroup() as tasks:
        for job in jobs:
            tasks.create_task(one(job), name=f"render {job.output.name}")
    return failed
