"""Arrays on disk, so that a later start reads what an earlier one has computed.

A file is named by a digest of everything that decides what is in it, and is written whole or not at all. One that is
damaged or of another kind is left aside and written again. Does not know what the arrays are.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from echo_rtc.errors import first_line

logger = logging.getLogger(__name__)

LIMIT_BYTES = 2 << 30
"""All files together; those that were used longest ago go first."""

_LAYOUT = 1
"""Number of the files' layout; another one is another digest."""
_PART, _PART_S = ".part", 3600.0
"""Ending of files that are being written, and after how long (s) one is what a killed process has left."""

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
T = TypeVar("T")


class KeptFiles:
    """A folder of files with arrays, by digest, which is the name of a file. Several processes may use it at once."""

    def __init__(self, folder: Path, what: str, limit_bytes: int = LIMIT_BYTES) -> None:
        """``what`` the files keep, for the log, in the plural."""
        self._folder, self._what, self._limit_bytes = folder, what, limit_bytes
        self._told = False

    def get(self, digest: str, read: Callable[[Arrays], T]) -> T | None:
        """What ``read`` makes of the arrays of a digest; it may raise any error. None if there are none that can be
        used."""
        path = self._path(digest)
        try:
            found = read(self._read(path, digest))
        except FileNotFoundError:
            return None
        except Exception as error:  # the readers of archives and arrays raise of many kinds where a file is damaged
            logger.warning("%s cannot be used (%s); its %s are computed again", path, first_line(error), self._what)
            return None
        with suppress(OSError):  # where the folder can only be read it is of use all the same
            os.utime(path)
        return found

    def put(self, digest: str, content: Arrays) -> None:
        """Keeps arrays. Where that is not possible, the first time is one warning."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._write(digest, content)
            self._tidy()
        except OSError as error:
            if not self._told:
                logger.warning(
                    "%s cannot be kept in %s (%s); each start computes them", self._what, self._folder, error
                )
            self._told = True

    def drop(self, prefix: str) -> None:
        """Removes every file whose digest begins like this."""
        try:
            for path in self._folder.glob(f"{prefix}*"):
                path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s in %s cannot be removed (%s)", self._what, self._folder, error)

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest}.npz"

    def _read(self, path: Path, digest: str) -> dict[str, NDArray[Any]]:
        """Raises an error of any kind for a file that is not what it should be."""
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > self._limit_bytes:
                raise ValueError("it is too large")
        with np.load(path, allow_pickle=False) as content:
            if content["digest"].tobytes().decode("ascii", "replace") != digest:
                raise ValueError("it belongs to another digest")
            return {name: content[name] for name in content.files if name != "digest"}

    def _write(self, digest: str, arrays: Arrays) -> None:
        content = {**arrays, "digest": np.frombuffer(digest.encode("ascii"), np.uint8)}
        if sum(value.nbytes for value in content.values()) > self._limit_bytes:
            return
        handle, part = tempfile.mkstemp(_PART, f"{digest}-", self._folder)
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, allow_pickle=False, **content)
            with suppress(FileNotFoundError):  # dropped meanwhile
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


def digest_of(facts: Mapping[str, object]) -> str:
    """A digest of plain data, the same in every process."""
    said = json.dumps([_LAYOUT, facts], sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()


def content_digest(parts: Mapping[str, Path]) -> str:
    """A digest of files and of what they are called here."""
    told = hashlib.sha256()
    for name in sorted(parts):
        content = parts[name].read_bytes()
        told.update(f"{name} {len(content)}\n".encode())
        told.update(content)
    return told.hexdigest()


def code_digest(folder: Path) -> str:
    """A digest of the sources, Python and CUDA, below a folder: of how the model computes. Raises OSError if there are
    none."""
    sources = {path.relative_to(folder).as_posix(): path for kind in ("*.py", "*.cu") for path in folder.rglob(kind)}
    if not sources:
        raise FileNotFoundError(f"there are no sources in {folder}")
    return content_digest(sources)


def files_as_found(places: Iterable[Path]) -> list[list[object]]:
    """Path, size and time of every file of ``places``, which may be folders; what is not there is left out."""
    found: list[list[object]] = []
    for place in places:
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file():
                facts = path.stat()
                found.append([str(path.absolute()), facts.st_size, facts.st_mtime_ns])
    return found
