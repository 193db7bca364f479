"""A worker as a Ray actor: the other side of ``ray_engine.py``, on whatever node Ray has put it.

It holds the same worker as a process of the local engine does, and tells of errors as values: Ray would wrap what is
raised into classes of its own. Imports Ray, but neither torch nor anything of the server.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import queue
import secrets
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray

from echo_rtc.clips import ClipFormat, F16Array
from echo_rtc.engine.speed import Speed
from echo_rtc.engine.worker import ClipWorker, WorkerReport, WorkerSpec
from echo_rtc.errors import EchoRtcError
from echo_rtc.rendering import Avatar, AvatarFiles, RenderRequest, RenderResult

CONCURRENCY_GROUPS = {"render": 1, "prepare": 1, "messages": 1}
"""Threads of the actor: one renders, one prepares the next clip meanwhile, one passes on what is logged."""

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

Message = str | logging.LogRecord
"""A line of progress, or a record for the server's log."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An error, as a value."""

    error: EchoRtcError


@dataclass(frozen=True, slots=True)
class OtherIncarnation:
    """The answer to a call that was meant for an earlier incarnation of the actor, which was restarted since."""


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where an actor runs. ``incarnation`` changes each time that Ray restarts it."""

    node: str
    pid: int
    incarnation: str


@dataclass(frozen=True, slots=True)
class AvatarBundle:
    """What an avatar is prepared from, by content: its files lie on the server's machine. ``poses``: by file name."""

    name: str
    image_name: str
    image: bytes
    poses: dict[str, bytes]
    idle_poses: dict[str, bytes]

    @classmethod
    def read(cls, files: AvatarFiles) -> AvatarBundle:
        """Raises OSError if a file cannot be read."""
        image, idle = files.reference_image, files.idle_pose_dir
        poses, idle_poses = _pose_files(files.pose_dir), {} if idle is None else _pose_files(idle)
        return cls(files.name, image.name, image.read_bytes(), poses, idle_poses)

    def unpack(self, folder: Path) -> AvatarFiles:
        """Writes everything into an empty folder of this machine."""
        image, poses, idle = folder / self.image_name, folder / "poses", folder / "idle_poses"
        image.write_bytes(self.image)
        for place, files in ((poses, self.poses), (idle, self.idle_poses)):
            place.mkdir()
            for name, content in files.items():
                (place / name).write_bytes(content)
        return AvatarFiles(self.name, image, poses, idle if self.idle_poses else None)


def _pose_files(folder: Path) -> dict[str, bytes]:
    """The pose files of a folder by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in (".npy", ".npz")}


def _in(group: str, **options: str) -> Callable[[F], F]:
    """Runs a method on the thread of a concurrency group."""
    decorate: Callable[[F], F] = ray.method(concurrency_group=group, **options)
    return decorate


class RayClipWorker:
    """The actor. Its methods are those of ClipWorker; what they raise comes back as a Failure.

    Ray restarts it when it dies, and passes on to the new incarnation what was sent to the old one before its death was
    known. So each call says which incarnation it is meant for, as a fencing token:

    1. A call is sent to incarnation A, which dies before it arrives.
    2. Ray starts incarnation B and delivers the call there; B has no model loaded, or another clip prepared.
    3. B sees that the call names A, and answers OtherIncarnation; the server takes that for the death of A.
    """

    def __init__(self, spec: WorkerSpec, clip_format: ClipFormat, log_level: int) -> None:
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        # Ray logs to files of its own; what the worker has to say goes to the server's log instead.
        handler = logging.handlers.QueueHandler(self._messages)
        handler.setFormatter(logging.Formatter("%(message)s"))  # level and name travel with the record
        logging.basicConfig(handlers=[handler], level=log_level, force=True)
        self._worker = ClipWorker(spec, clip_format)
        self._avatar: tuple[AvatarFiles, tempfile.TemporaryDirectory[str]] | None = None
        self._incarnation = secrets.token_hex(8)
        if spec.niceness and hasattr(os, "nice"):
            os.nice(spec.niceness)

    @_in("render")
    def whereabouts(self) -> Whereabouts:
        return Whereabouts(ray.util.get_node_ip_address(), os.getpid(), self._incarnation)

    @_in("messages", num_returns="streaming")
    def messages(self, incarnation: str) -> Iterator[Message]:
        """Everything that is said, for as long as this incarnation lasts."""
        while incarnation == self._incarnation:
            yield self._messages.get()

    @_in("render")
    def load(self, incarnation: str) -> WorkerReport | Failure | OtherIncarnation:
        return self._told(incarnation, lambda: self._worker.load(self._messages.put))

    @_in("render")
    def measure(self, incarnation: str, frames: int) -> Speed | Failure | OtherIncarnation:
        return self._told(incarnation, lambda: self._worker.measure(frames))

    @_in("render")
    def ping(self, incarnation: str) -> OtherIncarnation | None:
        """Answers: the thread that renders is there and free."""
        return None if incarnation == self._incarnation else OtherIncarnation()

    @_in("prepare")
    def prepare(self, incarnation: str, number: int, request: RenderRequest) -> None:
        if incarnation == self._incarnation:
            self._worker.prepare(number, request)

    @_in("prepare")
    def discard(self, incarnation: str, number: int) -> None:
        if incarnation == self._incarnation:
            self._worker.discard(number)

    @_in("render")
    def render(
        self, incarnation: str, number: int, init_latent: F16Array | None
    ) -> tuple[RenderResult, float] | Failure | OtherIncarnation:
        return self._told(incarnation, lambda: self._worker.render(number, init_latent))

    @_in("render")
    def idle_piece(self, incarnation: str, avatar: str, first: bool) -> Avatar | Failure | OtherIncarnation | None:
        return self._told(incarnation, lambda: self._worker.idle_piece(avatar, first))

    @_in("render")
    def prepare_avatar(
        self, incarnation: str, name: str, bundle: AvatarBundle | None
    ) -> bool | Failure | OtherIncarnation:
        """The first piece of an avatar if its ``bundle`` comes along, else one more."""
        if incarnation != self._incarnation:
            return OtherIncarnation()
        if bundle is not None:
            self._drop_files()
            folder = tempfile.TemporaryDirectory(prefix="echo-avatar-")
            self._avatar = bundle.unpack(Path(folder.name)), folder
        if self._avatar is None or self._avatar[0].name != name:
            return False  # it was forgotten meanwhile
        files, _ = self._avatar
        more = self._told(incarnation, lambda: self._worker.prepare_avatar(files, bundle is not None))
        if more is not True:
            self._drop_files()
        return more

    @_in("render")
    def forget_avatar(self, incarnation: str, name: str) -> Failure | OtherIncarnation | None:
        if incarnation == self._incarnation and self._avatar is not None and self._avatar[0].name == name:
            self._drop_files()
        return self._told(incarnation, lambda: self._worker.forget_avatar(name))

    def _drop_files(self) -> None:
        if self._avatar is not None:
            self._avatar[1].cleanup()
            self._avatar = None

    def _told(self, incarnation: str, call: Callable[[], T]) -> T | Failure | OtherIncarnation:
        if incarnation != self._incarnation:
            return OtherIncarnation()
        try:
            return call()
        except EchoRtcError as error:
            return Failure(error)
