"""Which avatars are offered, and which workers have them: the only owner of both.

Avatars are prepared and forgotten on workers between clips, through ``call``, which ``jobs.py`` provides.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from echo_rtc.engine.slots import Slot, Worker, WorkerGoneError
from echo_rtc.errors import InputError, RenderError
from echo_rtc.rendering import Avatar, AvatarFiles, Avatars

logger = logging.getLogger(__name__)

Call = Callable[[Slot, Callable[[Worker], Awaitable[Any]]], Awaitable[Any]]


class Roster:
    """The avatars of an engine over ``slots``. ``timeout_s``: for each piece of work on a worker."""

    def __init__(self, slots: Mapping[str, Slot], call: Call, timeout_s: Callable[[], float]) -> None:
        self._slots = slots
        self._call = call
        self._timeout_s = timeout_s
        self._offered = Avatars()
        self._files: dict[str, AvatarFiles] = {}
        # By worker: avatars that it could not prepare although others have them.
        self._lacking: dict[str, set[str]] = {}
        self._forgetting: set[asyncio.Task[Any]] = set()
        self.lock = asyncio.Lock()
        """Held while avatars are prepared or removed, and while a replacement prepares them."""

    @property
    def offered(self) -> Avatars:
        """The avatars by name, the default one first."""
        return self._offered

    def lacking(self, avatar: str) -> frozenset[str]:
        """The workers that do not have an avatar of the offer."""
        return frozenset(worker for worker, names in self._lacking.items() if avatar in names)

    def available(self, avatar: str) -> bool:
        """Whether a worker that is up has an avatar of the offer."""
        lacking = self.lacking(avatar)
        return any(slot.up and name not in lacking for name, slot in self._slots.items())

    async def render_loaded(self, name: str, worker: Worker, timeout_s: float) -> None:
        """Renders the idle loop of an avatar that all workers have loaded, on one that takes no clips yet."""
        self._offered[name] = Avatar.joined([piece async for piece in _pieces(worker, name, timeout_s)])

    async def prepare(self, files: AvatarFiles) -> Avatar:
        """Prepares an avatar on all workers that are up, and renders its idle loop on one of them. Raises InputError or
        RenderError; then it is not offered, or is as it was."""
        try:
            return await self._prepare(files)
        except BaseException:
            if files.name not in self._offered:
                self._forget(files.name)
            raise

    async def remove(self, name: str) -> None:
        """Has all workers let go of an avatar, each between clips."""
        async with self.lock:
            self._withdraw(name)
            self._forget(name)

    async def restore(self, slot: Slot) -> None:
        """Prepares all uploaded avatars on a replacement, under :attr:`lock`. One whose files have become unreadable is
        left out there, and not offered any more once no worker has it."""
        self._lacking.pop(slot.name, None)
        for files in tuple(self._files.values()):
            if self._files.get(files.name) is files:  # else its idle loop could not be rendered meanwhile
                await self._restore(slot, files)

    async def close(self) -> None:
        await asyncio.gather(*self._forgetting, return_exceptions=True)

    async def _prepare(self, files: AvatarFiles) -> Avatar:
        async with self.lock:
            # An avatar that is to be forgotten must not be forgotten after it was prepared again.
            await asyncio.gather(*self._forgetting, return_exceptions=True)
            up = [slot for slot in self._slots.values() if slot.up]
            if not up:
                raise RenderError("no worker is up to prepare an avatar; one is being started")
            able = await self._prepare_on_all(up, files)
            before = self._files.get(files.name)
            self._files[files.name] = files
            for slot in able:
                self._lacking.get(slot.name, set()).discard(files.name)
        try:
            avatar = await self._idle_loop(files.name, able)
        except BaseException:
            if before is None:
                self._files.pop(files.name, None)
            else:
                self._files[files.name] = before
            raise
        self._offered[files.name] = avatar
        return avatar

    async def _prepare_on_all(self, slots: Sequence[Slot], files: AvatarFiles) -> list[Slot]:
        """The workers that have prepared it."""
        outcomes = await asyncio.gather(*(self._prepare_on(slot, files) for slot in slots), return_exceptions=True)
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        for error in errors:
            # A worker that died is replaced, and its replacement prepares the avatar; all else is the avatar's.
            if not isinstance(error, WorkerGoneError) or len(errors) == len(slots):
                raise error
        return [slot for slot, outcome in zip(slots, outcomes, strict=True) if not isinstance(outcome, BaseException)]

    async def _prepare_on(self, slot: Slot, files: AvatarFiles) -> None:
        timeout_s = self._timeout_s()
        first = lambda worker: worker.prepare_avatar(files, True, timeout_s)  # noqa: E731
        further = lambda worker: worker.prepare_avatar(files, False, timeout_s)  # noqa: E731
        more = await self._call(slot, first)
        while more:
            more = await self._call(slot, further)

    async def _idle_loop(self, name: str, able: Sequence[Slot]) -> Avatar:
        """Renders an avatar's idle loop on one worker, between clips; on the next if that one dies."""
        gone: WorkerGoneError | None = None
        for slot in able:
            try:
                return Avatar.joined([piece async for piece in self._pieces(slot, name)])
            except WorkerGoneError as error:
                gone = error
        assert gone is not None
        raise gone

    async def _pieces(self, slot: Slot, name: str) -> AsyncIterator[Avatar]:
        """The pieces of an idle loop, each rendered between clips."""
        timeout_s = self._timeout_s()
        piece = await self._call(slot, lambda worker: worker.idle_piece(name, True, timeout_s))
        while piece is not None:
            yield piece
            piece = await self._call(slot, lambda worker: worker.idle_piece(name, False, timeout_s))

    async def _restore(self, slot: Slot, files: AvatarFiles) -> None:
        worker, timeout_s = slot.running, self._timeout_s()
        try:
            more = await worker.prepare_avatar(files, True, timeout_s)
            while more:
                more = await worker.prepare_avatar(files, False, timeout_s)
        except InputError as error:
            logger.error("worker %s goes without avatar %s: %s", slot.name, files.name, error)
            await worker.forget_avatar(files.name, timeout_s)
            self._lacking.setdefault(slot.name, set()).add(files.name)
            if self.lacking(files.name) == set(self._slots):
                logger.error("no worker has avatar %s any more; it is not offered", files.name)
                self._withdraw(files.name)

    def _withdraw(self, name: str) -> None:
        self._offered.pop(name, None)
        self._files.pop(name, None)
        for names in self._lacking.values():
            names.discard(name)

    def _forget(self, name: str) -> None:
        """Has all workers that are up let go of an avatar. One that dies meanwhile has let go too."""
        timeout_s = self._timeout_s()
        for slot in self._slots.values():
            if slot.up:
                call = self._call(slot, lambda worker: worker.forget_avatar(name, timeout_s))
                task = asyncio.ensure_future(call)
                self._forgetting.add(task)
                task.add_done_callback(self._forgot)

    def _forgot(self, task: asyncio.Future[Any]) -> None:
        self._forgetting.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.debug("an avatar could not be forgotten: %s", error)


async def _pieces(worker: Worker, name: str, timeout_s: float) -> AsyncIterator[Avatar]:
    """The pieces of an idle loop, one after another."""
    piece = await worker.idle_piece(name, True, timeout_s)
    while piece is not None:
        yield piece
        piece = await worker.idle_piece(name, False, timeout_s)
