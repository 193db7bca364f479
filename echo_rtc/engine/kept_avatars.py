"""What a worker has computed of its avatars and keeps on disk: their idle loops and the features of their poses.

A later start reads them instead. Knows no torch and no model: what decides how they look comes as plain data.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echo_rtc.clips import ClipFormat, U8Array, YuvFrames
from echo_rtc.engine.kept_files import Arrays, KeptFiles, content_digest, digest_of
from echo_rtc.rendering import Avatar, AvatarFiles

logger = logging.getLogger(__name__)

POSES_LIMIT_BYTES = 1 << 30
"""Features of all avatars together."""
MOST_POSES_BYTES = 256 << 20
"""Features of one avatar: more are not kept, as a full-size model has gigabytes of them."""

_PLANES = ("y", "u", "v")


def loop_arrays(avatar: Avatar) -> Arrays:
    """An idle loop as arrays."""
    leaps = np.full((len(avatar.leaps), max(map(len, avatar.leaps), default=0)), -1, np.int32)
    for row, others in zip(leaps, avatar.leaps, strict=True):
        row[: len(others)] = others
    arrays: dict[str, NDArray[Any]] = {plane: getattr(avatar.idle, plane) for plane in _PLANES}
    latents = {} if avatar.idle_latents is None else {"latents": avatar.idle_latents}
    return {**arrays, "leaps": leaps, **latents}


def loop_of(arrays: Arrays, name: str, clip_format: ClipFormat) -> Avatar:
    """The idle loop in :func:`loop_arrays` as that of avatar ``name``. Raises an error of any kind for others."""
    frames = YuvFrames(*(arrays[plane] for plane in _PLANES))
    latents, leaps = arrays.get("latents"), arrays["leaps"]
    if len(frames) < 1 or (frames.width, frames.height) != (clip_format.width, clip_format.height):
        raise ValueError(f"it has {len(frames)} pictures of {frames.width} x {frames.height}")
    if latents is not None and (latents.dtype != np.float16 or latents.ndim != 4 or len(latents) != len(frames)):
        raise ValueError(f"its latents are {latents.shape} {latents.dtype}")
    if leaps.dtype != np.int32 or leaps.ndim != 2 or len(leaps) not in (0, len(frames)):
        raise ValueError(f"its leaps are {leaps.shape} {leaps.dtype}")
    if leaps.size and not -1 <= leaps.min() <= leaps.max() < len(frames):
        raise ValueError("its leaps go to frames that it does not have")
    return Avatar(name, frames, latents, tuple(tuple(int(n) for n in row if n >= 0) for row in leaps))


class KeptAvatars:
    """What one worker keeps of its avatars: read from disk where it is there, else computed and written.

    ``model``: all that decides how every avatar of this worker looks, as plain data. Avatars are named and forgotten
    on one thread; poses may come from another.
    """

    def __init__(self, folder: Path, model: Mapping[str, object], clip_format: ClipFormat) -> None:
        self._loops = KeptFiles(folder / "idle", "idle loops")
        # They come from a later computation and are less of it than loops, which they must not push out.
        self._poses = KeptFiles(folder / "poses", "poses", POSES_LIMIT_BYTES)
        self._model, self._format = dict(model), clip_format
        self._avatars: dict[str, str] = {}
        self.first = ""
        """The digest of the avatar that was prepared first."""
        self._writing: dict[str, list[threading.Thread]] = {}
        self._turn = threading.Lock()

    def note(self, name: str, digest: str | None) -> None:
        """Notes what an avatar was prepared from, as its digest; None: nothing of it is kept."""
        if self._avatars.get(name) != digest:
            self.forget(name)
        if digest is not None:
            self._avatars[name] = digest
            self.first = self.first or digest

    def forget(self, name: str) -> None:
        """Lets go of an avatar, on disk as well: pictures of a person are not to outlast their deletion."""
        with self._turn:
            digest = self._avatars.pop(name, None)
        if digest is not None:
            self._wait(name)
            for files in (self._loops, self._poses):
                files.drop(f"{digest}-")

    def wait(self) -> None:
        """Waits until all that is being written is written."""
        for name in [*self._writing]:
            self._wait(name)

    def _wait(self, name: str) -> None:
        """The same for one avatar."""
        with self._turn:
            writing = self._writing.pop(name, [])
        for thread in writing:
            thread.join()

    def idle_loop(self, name: str, settings: Mapping[str, object], rendered: Iterator[Avatar]) -> Iterator[Avatar]:
        """The idle loop of an avatar in pieces, from disk or as it is ``rendered`` with ``settings``."""
        digest = self._digest(name, {"settings": settings})
        if digest is None:
            yield from rendered
            return
        kept = self._loops.get(digest, lambda arrays: loop_of(arrays, name, self._format))
        if kept is not None:
            logger.info("the idle loop of avatar %s was read from disk", name)
            yield from _pieces(kept, self._format.clip_frames)
            return
        pieces = []
        for piece in rendered:
            pieces.append(piece)
            yield piece
        self._write(name, digest, lambda: self._loops.put(digest, loop_arrays(Avatar.joined(pieces))))

    def poses(self, name: str, settings: Mapping[str, object]) -> U8Array | None:
        """The features of an avatar's poses as they were given to :meth:`keep_poses` with these settings."""
        digest = self._digest(name, {"poses": settings})
        return None if digest is None else self._poses.get(digest, lambda arrays: np.asarray(arrays["poses"]))

    def keep_poses(self, name: str, settings: Mapping[str, object], poses: U8Array) -> None:
        """Keeps the features of all poses of an avatar, as bytes."""
        digest = self._digest(name, {"poses": settings})
        if digest is not None:
            self._write(name, digest, lambda: self._poses.put(digest, {"poses": poses}))

    def _digest(self, name: str, facts: Mapping[str, object]) -> str | None:
        """The digest of something of an avatar; None for one that is not known."""
        known = self._avatars.get(name)
        return None if known is None else f"{known}-{digest_of({**self._model, **facts})}"

    def _write(self, name: str, digest: str, write: Callable[[], None]) -> None:
        """Writes a file, unless the avatar was forgotten meanwhile. On a thread of its own: it has tens of megabytes,
        and on the worker's own threads a clip would wait for them."""
        with self._turn:
            if not digest.startswith(self._avatars.get(name, "-")):
                return
            thread = threading.Thread(target=write, name="echo-keep")
            thread.start()
            self._writing[name] = [*(other for other in self._writing.get(name, ()) if other.is_alive()), thread]


def _pieces(avatar: Avatar, frames: int) -> Iterator[Avatar]:
    """An avatar in pieces of ``frames`` frames; the last has its leaps."""
    for start in range(0, len(avatar.idle), frames):
        end = start + frames
        latents = None if avatar.idle_latents is None else avatar.idle_latents[start:end]
        yield Avatar(avatar.name, avatar.idle[start:end], latents, avatar.leaps if end >= len(avatar.idle) else ())


def avatar_digest(files: AvatarFiles) -> str | None:
    """A digest of what an avatar is prepared from, by content; half as long as others, as it begins names of files.
    None, with a line in the log, where that cannot be read."""
    parts = {"picture": files.reference_image}
    try:
        for kind, folder in (("poses", files.pose_dir), ("idle", files.idle_pose_dir)):
            if folder is not None:
                parts |= {f"{kind}/{path.name}": path for path in folder.iterdir() if path.suffix in (".npy", ".npz")}
        return content_digest(parts)[:32]
    except OSError as error:
        logger.warning("idle loop and poses of avatar %s are not kept (%s)", files.name, error)
        return None
