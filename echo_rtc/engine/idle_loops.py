"""Idle loops on disk, so that a later start reads what an earlier one has rendered.

A file is named by a digest of everything that decides how its pictures look, and is written whole or not at all. One
that is damaged or of another kind is left aside and written again. Knows no torch and no model: what decides comes as
plain data.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from echo_rtc.clips import ClipFormat, YuvFrames
from echo_rtc.errors import first_line
from echo_rtc.rendering import Avatar, AvatarFiles

logger = logging.getLogger(__name__)

LIMIT_BYTES = 2 << 30
"""All files together; those that were used longest ago go first."""

_LAYOUT = 1
"""Number of the files' layout; another one is another digest."""
_PART, _PART_S = ".part", 3600.0
"""Ending of files that are being written, and after how long (s) one is what a killed process has left."""
_PLANES = ("y", "u", "v")


class IdleLoopFiles:
    """A folder of idle loops of one format, by digest, which is the name of a file. Several processes may use it at
    once."""

    def __init__(self, folder: Path, clip_format: ClipFormat, limit_bytes: int = LIMIT_BYTES) -> None:
        self._folder, self._format, self._limit_bytes = folder, clip_format, limit_bytes
        self._told = False

    def get(self, digest: str, name: str) -> Avatar | None:
        """The idle loop of a digest as that of avatar ``name``; None if there is none that can be used."""
        path = self._path(digest)
        try:
            avatar = self._read(path, digest, name)
        except FileNotFoundError:
            return None
        except Exception as error:  # the readers of archives and arrays raise of many kinds where a file is damaged
            logger.warning("the idle loop in %s cannot be used (%s); it is rendered again", path, first_line(error))
            return None
        with suppress(OSError):  # where the folder can only be read it is of use all the same
            os.utime(path)
        return avatar

    def put(self, digest: str, avatar: Avatar) -> None:
        """Keeps an idle loop. Where that is not possible, the first time is one warning."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._write(digest, avatar)
            self._tidy()
        except OSError as error:
            if not self._told:
                logger.warning("idle loops cannot be kept in %s (%s); they are rendered again", self._folder, error)
            self._told = True

    def drop(self, prefix: str) -> None:
        """Removes every idle loop whose digest begins like this."""
        try:
            for path in self._folder.glob(f"{prefix}*.npz"):
                path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("idle loops in %s cannot be removed (%s)", self._folder, error)

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest}.npz"

    def _read(self, path: Path, digest: str, name: str) -> Avatar:
        """Raises an error of any kind for a file that is not what it should be."""
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > self._limit_bytes:
                raise ValueError("it is too large")
        with np.load(path, allow_pickle=False) as content:
            if content["digest"].tobytes().decode("ascii", "replace") != digest:
                raise ValueError("it belongs to another digest")
            frames = YuvFrames(*(content[plane] for plane in _PLANES))
            latents = content.get("latents")
            leaps = content["leaps"]
        if len(frames) < 1 or (frames.width, frames.height) != (self._format.width, self._format.height):
            raise ValueError(f"it has {len(frames)} pictures of {frames.width} x {frames.height}")
        if latents is not None and (latents.dtype != np.float16 or latents.ndim != 4 or len(latents) != len(frames)):
            raise ValueError(f"its latents are {latents.shape} {latents.dtype}")
        if leaps.dtype != np.int32 or leaps.ndim != 2 or len(leaps) not in (0, len(frames)):
            raise ValueError(f"its leaps are {leaps.shape} {leaps.dtype}")
        if leaps.size and not -1 <= leaps.min() <= leaps.max() < len(frames):
            raise ValueError("its leaps go to frames that it does not have")
        return Avatar(name, frames, latents, tuple(tuple(int(n) for n in row if n >= 0) for row in leaps))

    def _write(self, digest: str, avatar: Avatar) -> None:
        leaps = np.full((len(avatar.leaps), max(map(len, avatar.leaps), default=0)), -1, np.int32)
        for row, others in zip(leaps, avatar.leaps, strict=True):
            row[: len(others)] = others
        content = {plane: getattr(avatar.idle, plane) for plane in _PLANES}
        content |= {"leaps": leaps, "digest": np.frombuffer(digest.encode("ascii"), np.uint8)}
        if avatar.idle_latents is not None:
            content["latents"] = avatar.idle_latents
        if sum(value.nbytes for value in content.values()) > self._limit_bytes:
            return
        handle, part = tempfile.mkstemp(_PART, f"{digest}-", self._folder)
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, allow_pickle=False, **content)
            os.replace(part, self._path(digest))
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise

    def _tidy(self) -> None:
        """Removes what was used longest ago beyond the limit, and what killed processes have left."""
        now, found = time.time(), list[tuple[float, int, Path]]()
        for path in self._folder.iterdir():
            try:
                facts = path.stat()
            except FileNotFoundError:  # another process tidies, too
                continue
            if path.suffix == _PART and now - facts.st_mtime > _PART_S:
                path.unlink(missing_ok=True)
            elif path.suffix == ".npz":
                found.append((facts.st_mtime, facts.st_size, path))
        total = 0
        for _, size, path in sorted(found, reverse=True):
            total += size
            if total > self._limit_bytes:
                path.unlink(missing_ok=True)


class KeptLoops:
    """The idle loops of one worker, read from disk where they are there, else rendered and written.

    ``model``: all that decides how every idle loop of this worker looks, as plain data.
    """

    def __init__(self, files: IdleLoopFiles, model: Mapping[str, object], piece_frames: int) -> None:
        self._files, self._model, self._piece_frames = files, dict(model), piece_frames
        self._avatars: dict[str, str] = {}
        self.first = ""
        """The digest of the avatar that was prepared first."""
        self.writing: threading.Thread | None = None
        """Writes the latest loop that was rendered, beside the worker's clips."""

    def note(self, files: AvatarFiles) -> None:
        """Notes what an avatar is prepared from, which decides how its idle loop looks."""
        try:
            digest = avatar_digest(files)
            if self._avatars.get(files.name) != digest:
                self.forget(files.name)
            self._avatars[files.name] = digest
            self.first = self.first or digest
        except OSError as error:
            self.forget(files.name)
            logger.warning("the idle loop of avatar %s is not kept (%s)", files.name, error)

    def forget(self, name: str) -> None:
        """Lets go of an avatar, on disk as well: pictures of a person are not to outlast their deletion."""
        digest = self._avatars.pop(name, None)
        if digest is not None:
            if self.writing is not None:
                self.writing.join()
            self._files.drop(f"{digest}-")

    def through(self, name: str, settings: Mapping[str, object], rendered: Iterator[Avatar]) -> Iterator[Avatar]:
        """The idle loop of an avatar in pieces, from disk or as it is ``rendered`` with ``settings``."""
        if name not in self._avatars:
            yield from rendered
            return
        digest = f"{self._avatars[name]}-{digest_of({**self._model, 'settings': settings})}"
        kept = self._files.get(digest, name)
        if kept is not None:
            logger.info("the idle loop of avatar %s was read from disk", name)
            yield from _pieces(kept, self._piece_frames)
            return
        pieces = []
        for piece in rendered:
            pieces.append(piece)
            yield piece
        # Tens of megabytes: on the worker's own thread a clip would wait for them.
        self.writing = threading.Thread(
            target=lambda: self._files.put(digest, Avatar.joined(pieces)), name="echo-idle-loop"
        )
        self.writing.start()


def _pieces(avatar: Avatar, frames: int) -> Iterator[Avatar]:
    """An avatar in pieces of ``frames`` frames; the last has its leaps."""
    for start in range(0, len(avatar.idle), frames):
        end = start + frames
        latents = None if avatar.idle_latents is None else avatar.idle_latents[start:end]
        yield Avatar(avatar.name, avatar.idle[start:end], latents, avatar.leaps if end >= len(avatar.idle) else ())


def digest_of(facts: Mapping[str, object]) -> str:
    """A digest of plain data, the same in every process."""
    said = json.dumps([_LAYOUT, facts], sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()


def avatar_digest(files: AvatarFiles) -> str:
    """A digest of what an avatar is prepared from, by content; half as long as others, as it begins names of files.
    Raises OSError."""
    parts = {"picture": files.reference_image}
    for kind, folder in (("poses", files.pose_dir), ("idle", files.idle_pose_dir)):
        if folder is not None:
            parts |= {f"{kind}/{path.name}": path for path in folder.iterdir() if path.suffix in (".npy", ".npz")}
    return _content_digest(parts)[:32]


def code_digest(folder: Path) -> str:
    """A digest of the sources, Python and CUDA, below a folder: of how the model computes. Raises OSError if there are
    none."""
    sources = {path.relative_to(folder).as_posix(): path for kind in ("*.py", "*.cu") for path in folder.rglob(kind)}
    if not sources:
        raise FileNotFoundError(f"there are no sources in {folder}")
    return _content_digest(sources)


def _content_digest(parts: Mapping[str, Path]) -> str:
    """A digest of files and of what they are called here."""
    told = hashlib.sha256()
    for name in sorted(parts):
        content = parts[name].read_bytes()
        told.update(f"{name} {len(content)}\n".encode())
        told.update(content)
    return told.hexdigest()


def files_as_found(places: Iterable[Path]) -> list[list[object]]:
    """Path, size and time of every file of ``places``, which may be folders; what is not there is left out."""
    found: list[list[object]] = []
    for place in places:
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file():
                facts = path.stat()
                found.append([str(path.absolute()), facts.st_size, facts.st_mtime_ns])
    return found
