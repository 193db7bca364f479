"""The folder of recordings: names, listing, and what a server that was killed has left.

A recording is ``<start>-<id>.mp4`` with a small JSON file of the same name; while it is being made,
``<start>-<id>.partial.mp4``. No part of a name comes from a client. Everything here reads or writes the disk, and is
called on threads.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from filelock import FileLock, Timeout

from echo_rtc.codec.movie import movie_seconds, whole_length, write_duration
from echo_rtc.errors import EchoRtcError, FolderError, InputError, StorageError
from echo_rtc.recording.facts import RecordingFacts, RecordingState
from echo_rtc.recording.options import FinishingStep

LOCK = ".lock"
MAX_LISTED = 1_000
"""Recordings that are listed; older ones are there and can be downloaded by their ids."""
PARTIAL, COMPLETE, ABOUT = ".partial.mp4", ".mp4", ".json"
KILLED = "the server was killed while it recorded"
_NAME = re.compile(r"(?P<start>[0-9]{8}T[0-9]{6}Z)-(?P<id>[0-9a-f]{16})(?P<partial>\.partial)?\.mp4")
_LEFTOVER = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{16}(\.partial\.mp4\.signed|\.json\.new)")
"""Drafts of a server that was killed."""
_FORM = "%Y%m%dT%H%M%SZ"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Shelf:
    """A folder of recordings."""

    folder: Path
    finishing: tuple[FinishingStep, ...] = ()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The folder is this server's to record into while inside; it is made if need be. Raises InputError where
        another server records into it, FolderError where it cannot be written."""
        lock = FileLock(self.folder / LOCK, mode=0o600)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"recording_dir is {self.folder}, where another server records; stop it, or name another with "
                "--recording-dir"
            ) from None
        except NotImplementedError:
            logger.warning(
                "recording_dir %s is on a file system without locks; no other server must record there", self.folder
            )
        except OSError as error:
            raise FolderError(
                f"recording_dir is {self.folder}, which cannot be written: {error.strerror or error}; name another "
                "with --recording-dir"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def new(self, stream: str | None, avatar: str) -> RecordingFacts:
        """A recording that begins now."""
        started = datetime.now(UTC).strftime(_FORM)
        return RecordingFacts(secrets.token_hex(8), RecordingState.RECORDING, _iso(started), stream, avatar)

    def require_free(self, least_bytes: int) -> None:
        """Raises StorageError unless the disk has ``least_bytes`` free."""
        free = self.free_bytes()
        if free < least_bytes:
            raise StorageError(
                f"nothing is recorded because the disk has {free >> 20} MiB left and --min-free-disk is "
                f"{least_bytes >> 20} MiB; delete recordings"
            )

    def free_bytes(self) -> int:
        """Raises FolderError."""
        try:
            return shutil.disk_usage(self.folder).free
        except OSError as error:
            raise self._unreadable(error) from error

    def partial(self, facts: RecordingFacts) -> Path:
        """The file while it is being made."""
        return self.folder / f"{_stem(facts)}{PARTIAL}"

    def complete(self, facts: RecordingFacts) -> Path:
        """The file once it is complete."""
        return self.folder / f"{_stem(facts)}{COMPLETE}"

    def file_name(self, facts: RecordingFacts) -> str | None:
        """The name that the file has in this state; None where there is no file."""
        if facts.state is RecordingState.EMPTY:
            return None
        return (self.complete if facts.state is RecordingState.COMPLETE else self.partial)(facts).name

    def discard(self, facts: RecordingFacts) -> None:
        """Deletes a file in which there is nothing whole."""
        self.partial(facts).unlink(missing_ok=True)
        self._about(facts).unlink(missing_ok=True)

    def finish(self, facts: RecordingFacts) -> RecordingFacts:
        """Takes a closed file through the finishing steps and lists it as complete; as unfinished where one fails."""
        path = self.partial(facts)
        self.describe(replace(facts, state=RecordingState.UNFINISHED))
        try:
            for step in self.finishing:
                step(path)
            facts = replace(facts, state=RecordingState.COMPLETE, bytes=path.stat().st_size)
            os.replace(path, self.complete(facts))
        except (OSError, EchoRtcError) as error:
            logger.error("the recording %s cannot be finished; the next start tries again: %s", path, error)
            return replace(facts, state=RecordingState.UNFINISHED)
        self.describe(facts)
        return facts

    def recover(self) -> None:
        """Finishes what a server left that was killed: files are cut to what is whole of them, drafts are deleted.
        Raises FolderError."""
        try:
            for path in tuple(self.folder.iterdir()):
                if _LEFTOVER.fullmatch(path.name):
                    path.unlink()
        except OSError as error:
            raise FolderError(f"recording_dir {self.folder} cannot be cleared: {error.strerror or error}") from error
        for path, facts in self._files():
            if facts.state is RecordingState.COMPLETE:
                continue
            try:
                seconds = _repair(path)
                if seconds is None:
                    self.discard(facts)
                    continue
            except (OSError, ValueError) as error:
                logger.error("the recording %s cannot be repaired: %s", path, error)
                continue
            logger.info("a recording that was cut off is finished: %s", path)
            self.finish(replace(facts, seconds=seconds, reason=facts.reason or KILLED))

    def list(self) -> list[RecordingFacts]:
        """The newest MAX_LISTED recordings in the folder, the newest first. Raises FolderError."""
        try:
            return [facts for _, facts in islice(self._files(), MAX_LISTED)]
        except OSError as error:
            raise self._unreadable(error) from error

    def find(self, recording_id: str) -> Path | None:
        """The file of a complete recording."""
        if not re.fullmatch(r"[0-9a-f]{16}", recording_id):
            return None
        found = self.folder.glob(f"*-{recording_id}{COMPLETE}")
        return next((path for path in found if _NAME.fullmatch(path.name)), None)

    def delete(self, recording_id: str) -> bool:
        """Whether there was such a recording. Raises FolderError."""
        path = self.find(recording_id)
        if path is None:
            return False
        try:
            path.unlink()
            path.with_suffix(ABOUT).unlink(missing_ok=True)
        except FileNotFoundError:  # another request was quicker
            return False
        except OSError as error:
            logger.warning("the recording %s cannot be deleted: %s", path, error.strerror or error)
            raise FolderError(f"the recording cannot be deleted: {error.strerror or 'the disk fails'}") from error
        return True

    def _files(self) -> Iterator[tuple[Path, RecordingFacts]]:
        """The files and what is known of them, the newest first. Raises OSError."""
        for path in sorted(self.folder.iterdir(), key=lambda path: path.name, reverse=True):
            match = _NAME.fullmatch(path.name)
            if match is None:
                continue
            state = RecordingState.UNFINISHED if match["partial"] else RecordingState.COMPLETE
            try:
                facts = RecordingFacts(match["id"], state, _iso(match["start"]), bytes=path.stat().st_size)
            except (FileNotFoundError, ValueError):  # deleted or renamed meanwhile; no time
                continue
            with suppress(OSError, ValueError):
                facts = RecordingFacts.read(self._about(facts).read_text(encoding="utf-8"), facts)
            yield path, facts

    def _unreadable(self, error: OSError) -> FolderError:
        """What clients are told; where the folder is stands in the log only."""
        logger.warning("recording_dir %s cannot be read: %s", self.folder, error.strerror or error)
        return FolderError(f"the folder of recordings cannot be read: {error.strerror or 'the disk fails'}")

    def _about(self, facts: RecordingFacts) -> Path:
        return self.folder / f"{_stem(facts)}{ABOUT}"

    def describe(self, facts: RecordingFacts) -> None:
        """Writes what is known of a recording beside it; without that it is listed by its name and size."""
        path = self._about(facts)
        draft = path.with_suffix(".json.new")
        text = json.dumps(facts.as_json()) + "\n"
        try:
            draft.touch(mode=0o600)
            draft.write_text(text, encoding="utf-8")
            os.replace(draft, path)
        except OSError as error:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
                with path.open("r+", encoding="utf-8") as file:  # takes no further block of a disk that is full
                    file.write(text)
                    file.truncate()
                    return
            logger.warning("%s cannot be written: %s", path, error.strerror or error)


def _repair(path: Path) -> float | None:
    """Cuts a file to what is whole of it; how long that lasts (s), None where nothing is. Raises OSError and
    ValueError."""
    with path.open("r+b") as file:
        length = whole_length(file)
        file.truncate(length)
        if length == 0:
            return None
        seconds = movie_seconds(file)
        write_duration(file, seconds)
        return seconds


def _stem(facts: RecordingFacts) -> str:
    return f"{datetime.fromisoformat(facts.started).strftime(_FORM)}-{facts.id}"


def _iso(start: str) -> str:
    return datetime.strptime(start, _FORM).replace(tzinfo=UTC).isoformat()
