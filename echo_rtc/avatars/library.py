"""The avatars of a server: those of its configuration, and those that were uploaded, which a folder keeps.

An upload is checked and rewritten before a worker reads it: the picture as an upright PNG of the stream's shape
without anything else that was in the file, the poses as they were understood. A folder of the directory is an avatar:
``reference.png`` and ``poses/0.npy``, ``1.npy`` and so on. Knows files and an engine; no HTTP, no streams.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import re
import secrets
import shutil
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import ParamSpec, Protocol

from PIL import Image

from echo_rtc.clips import DEFAULT_AVATAR, ClipFormat
from echo_rtc.codec.picture import video_frame
from echo_rtc.errors import (
    AvatarConflictError,
    BusyError,
    EchoRtcError,
    FolderError,
    InputError,
    StorageError,
    UnknownAvatarError,
    storage_error,
)
from echo_rtc.model.image import UNTRUSTED_FORMATS, crop_to_shape, read_picture, resize_lanczos
from echo_rtc.model.pose_files import (
    PACKED_POSES,
    POSE_FILE_NAME,
    load_pose_sequence,
    save_pose,
    save_pose_sequence,
)
from echo_rtc.rendering import Avatar, AvatarFiles, Progress
from echo_rtc.settings import AVATAR_NAME, AVATAR_NAME_WORDS, Settings

logger = logging.getLogger(__name__)

P = ParamSpec("P")

MAX_PICTURE_BYTES = 24 * 1024 * 1024
"""Phones write 48 megapixels in 8 to 20 MiB."""
MAX_PICTURE_PIXELS = 32_000_000
"""A JPEG may have twice as many."""
MAX_SCANS = 64
"""Scans of a progressive JPEG (typically 10). Each costs a full decode, and 50 bytes can be one: bound their number."""
MIN_PICTURE_SIDE = 64
MAX_KEPT_SIDE = 1536
"""An uploaded picture is kept at this size (pixels) at most; models read 256 to 768."""
MAX_POSES_BYTES = 16 * 1024 * 1024
"""Of the ZIP file."""
MAX_POSES = 2_000
MAX_MEMBERS = 3 * MAX_POSES
"""Of the ZIP file, with folders and what some systems add to each file."""
MAX_UNPACKED_BYTES = 64 * 1024 * 1024
PREVIEW_QUALITY = 88
BUSY_RETRY_S = 10
"""When to try again while another avatar is being prepared."""

_PICTURE, _POSES, _IDLE_POSES = "reference.png", "poses", "idle_poses"
_ZIP_ENTRY, _JPEG, _JPEG_SCAN = b"PK\x01\x02", b"\xff\xd8", b"\xff\xda"


class Preparing(Protocol):
    """The part of an engine that the library uses."""

    @property
    def format(self) -> ClipFormat: ...

    @property
    def avatars(self) -> Mapping[str, Avatar]: ...

    async def prepare_avatar(self, files: AvatarFiles) -> Avatar: ...

    async def remove_avatar(self, name: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """An avatar that can be chosen; ``uploaded`` ones can be deleted."""

    name: str
    uploaded: bool


@dataclass(frozen=True, slots=True)
class Preview:
    """The first frame of an avatar's idle loop as JPEG, and a tag that changes with it."""

    jpeg: bytes
    tag: str


@dataclass(frozen=True, slots=True)
class Shelf:
    """What the library keeps and how much: the configured avatars in their order (the first is the default one), the
    ``folder`` of the others, and how many there may be together."""

    configured: tuple[AvatarFiles, ...]
    folder: Path
    most: int

    @classmethod
    def of(cls, settings: Settings) -> Shelf:
        default = AvatarFiles(settings.avatar_name, settings.reference_image, settings.pose_dir, settings.idle_pose_dir)
        further = (
            AvatarFiles(each.name, each.reference_image, each.pose_dir, each.idle_pose_dir) for each in settings.avatars
        )
        return cls((default, *further), settings.avatar_dir, settings.max_avatars)


class AvatarLibrary:
    """Prepares avatars on an engine, adds and deletes them while streams go on."""

    def __init__(self, engine: Preparing, shelf: Shelf, in_use: Callable[[], Collection[str]] = tuple) -> None:
        """``in_use`` gives the names of the avatars that streams show at the moment."""
        self._engine = engine
        self._shelf = shelf
        self._in_use = in_use
        self._files = {files.name: files for files in shelf.configured}
        self._turn = asyncio.Lock()
        self._previews: dict[str, tuple[Avatar, Preview]] = {}
        self.added = 0
        self.deleted = 0

    async def prepare(self, progress: Progress) -> None:
        """Prepares all avatars but the default one, which a started engine has already. Raises InputError for one of
        the configuration; a kept one that cannot be prepared is logged and left out."""
        async with self._turn:
            for files in self._shelf.configured[1:]:
                progress(f"preparing avatar {files.name}")
                try:
                    await self._engine.prepare_avatar(files)
                except EchoRtcError as error:
                    raise InputError(f"avatars.{files.name} cannot be prepared: {error}") from error
            for files in await asyncio.to_thread(self._kept):
                if self._known(files.name) or len(self._files) >= self._shelf.most:
                    why = "its name is taken" if self._known(files.name) else "there are max_avatars already"
                    logger.warning("avatar %s in %s is left out: %s", files.name, self._shelf.folder, why)
                    continue
                progress(f"preparing avatar {files.name}")
                try:
                    await self._engine.prepare_avatar(files)
                    self._files[files.name] = files
                except EchoRtcError as error:
                    logger.error("avatar %s in %s is left out: %s", files.name, self._shelf.folder, error)

    def entries(self) -> list[Entry]:
        """The avatars that can be chosen now, the default one first."""
        configured = {files.name for files in self._shelf.configured}
        return [Entry(name, name not in configured) for name in self._engine.avatars]

    async def preview(self, name: str) -> Preview:
        """Raises UnknownAvatarError."""
        avatar = self._engine.avatars.get(name)
        if avatar is None:
            raise UnknownAvatarError(f"there is no avatar {name[:80]!r}")
        name = avatar.name
        known = self._previews.get(name)
        if known is None or known[0] is not avatar:
            known = (avatar, await asyncio.to_thread(_preview, avatar))
            self._previews[name] = known
        return known[1]

    async def add(self, name: str, picture: bytes, poses: bytes | None = None, poses_of: str | None = None) -> Entry:
        """Checks, keeps and prepares an avatar; when this returns, streams can choose it.

        ``picture`` is an image file. ``poses`` is a ZIP file of them; without it they are those of the avatar
        ``poses_of``, which is the default one if it is None. Raises InputError for what cannot be used,
        AvatarConflictError where the name or the last place is taken, CapacityError while another one is being
        prepared, StorageError where the folder cannot be written, RenderError if the workers fail; nothing is kept
        then.
        """
        if not re.fullmatch(AVATAR_NAME, name):
            raise InputError(f"name is {name[:80]!r}; it must have {AVATAR_NAME_WORDS}")
        self._require_turn()
        async with self._turn:
            if self._known(name):
                raise AvatarConflictError(f"there is an avatar {name} already; choose another name")
            if len(self._files) >= self._shelf.most:
                raise AvatarConflictError(f"there are {self._shelf.most} avatars, which is the limit; delete one first")
            source = self._poses(poses, poses_of)
            place = self._shelf.folder / name
            # The folder is written under another name, so that one that was cut off is never taken for an avatar.
            draft = self._shelf.folder / f".{name}-{secrets.token_hex(4)}"
            try:
                await _in_thread(_write, draft, picture, source, self._engine.format)
            except BaseException:
                # Not in a thread: it is quick, and has to be done even where this is being cancelled. What lies at the
                # place is not touched: it may be an avatar that was left out at the start.
                shutil.rmtree(draft, ignore_errors=True)
                raise
            try:
                await _in_thread(_move, draft, place)
                files = _files_at(place)
                await self._engine.prepare_avatar(files)
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)
                shutil.rmtree(place, ignore_errors=True)
                raise
            self._files[name] = files
            self.added += 1
            logger.info("avatar %s was added", name)
            return Entry(name, uploaded=True)

    async def delete(self, name: str) -> None:
        """Deletes an uploaded avatar. Raises UnknownAvatarError, AvatarConflictError where it is one of the
        configuration or streams show it, CapacityError while one is being prepared, or FolderError where its folder
        stays, with which it would be there again after the next start."""
        self._require_turn()
        async with self._turn:
            name = self._own_name(name)
            if name not in self._files or name not in self._engine.avatars:
                raise UnknownAvatarError(f"there is no avatar {name[:80]!r}")
            if any(files.name == name for files in self._shelf.configured):
                raise AvatarConflictError(f"the avatar {name} is one of the configuration; take it out there")
            if name in self._in_use():
                raise AvatarConflictError(f"a stream shows the avatar {name}; end it first")
            await self._engine.remove_avatar(name)
            del self._files[name]
            self._previews.pop(name, None)
            await _in_thread(_delete, self._shelf.folder / name)
            self.deleted += 1
            logger.info("avatar %s was deleted", name)

    def _own_name(self, name: str) -> str:
        """The name of an avatar for one of its names."""
        return self._shelf.configured[0].name if name == DEFAULT_AVATAR else name

    def _known(self, name: str) -> bool:
        """Whether a name is taken."""
        return self._own_name(name) in self._files

    def _require_turn(self) -> None:
        if self._turn.locked():
            raise BusyError("another avatar is being prepared; try again when it is there", BUSY_RETRY_S)

    def _kept(self) -> list[AvatarFiles]:
        """The avatars in the folder, by name; and none where there is no folder."""
        if not self._shelf.folder.is_dir():
            return []
        places = sorted(path for path in self._shelf.folder.iterdir() if path.is_dir())
        named = (place for place in places if re.fullmatch(AVATAR_NAME, place.name))
        return [_files_at(place) for place in named]

    def _poses(self, poses: bytes | None, poses_of: str | None) -> bytes | AvatarFiles:
        """Where the poses of an upload come from: its ZIP file, or another avatar."""
        if poses is not None:
            if poses_of is not None:
                raise InputError("poses and poses_of are both given; send one of them")
            return poses
        name = self._own_name(DEFAULT_AVATAR if poses_of is None else poses_of)
        if name not in self._files:
            raise InputError(
                f"poses_of is {name[:80]!r}, and there is no such avatar; there are {', '.join(self._files)}"
            )
        return self._files[name]


def _files_at(place: Path) -> AvatarFiles:
    """The avatar in a folder that was written here."""
    idle = place / _IDLE_POSES
    return AvatarFiles(place.name, place / _PICTURE, place / _POSES, idle if idle.is_dir() else None)


async def _in_thread(function: Callable[P, None], *arguments: P.args, **keywords: P.kwargs) -> None:
    """Calls a function in a thread. Where this is cancelled it waits until the function has ended: what it writes can
    then be removed, and nothing comes after."""
    # No task: the end of the event loop would cancel it, and the thread would go on all the same.
    running = asyncio.get_running_loop().run_in_executor(None, partial(function, *arguments, **keywords))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({running})
        if not running.cancelled():
            running.exception()
        raise


def _write(place: Path, picture: bytes, poses: bytes | AvatarFiles, clip_format: ClipFormat) -> None:
    """Writes an avatar's folder from a picture file, and a ZIP file of poses or those of another avatar. Raises
    InputError for what cannot be used, StorageError."""
    if len(picture) > MAX_PICTURE_BYTES:
        raise InputError(f"image is larger than {MAX_PICTURE_BYTES // 2**20} MiB; make it smaller")
    if picture.startswith(_JPEG) and picture.count(_JPEG_SCAN) > MAX_SCANS:
        raise InputError(f"image is a JPEG of more than {MAX_SCANS} scans; save it again as a baseline JPEG")
    image = read_picture(
        io.BytesIO(picture), "image", MAX_PICTURE_PIXELS, MIN_PICTURE_SIDE, still=True, formats=UNTRUSTED_FORMATS
    )
    try:
        (place / _POSES).mkdir(parents=True)
        _fitting(image, clip_format).save(place / _PICTURE)
        if isinstance(poses, bytes):
            _unpack(poses, place / _POSES)
        else:
            _copy_all_poses(poses, place)
    except OSError as error:
        raise _storage_error(place, error) from error


def _copy_all_poses(avatar: AvatarFiles, place: Path) -> None:
    """Gives the avatar in a folder the poses of another one. Raises FolderError where these cannot be read any more,
    which is not the fault of an upload that names them."""
    try:
        _copy_poses(avatar.pose_dir, place / _POSES)
        if avatar.idle_pose_dir is not None:
            _copy_poses(avatar.idle_pose_dir, place / _IDLE_POSES)
    except InputError as error:
        raise FolderError(f"the poses of the avatar {avatar.name} cannot be read any more: {error}") from error


def _copy_poses(source: Path, folder: Path) -> None:
    """Rewrites the poses of another folder: nothing but poses is copied. Raises InputError."""
    folder.mkdir(exist_ok=True)
    poses = load_pose_sequence(source)
    if (source / PACKED_POSES).is_file():
        save_pose_sequence(folder, poses)
        return
    for number, pose in enumerate(poses):
        save_pose(folder / f"{number}.npy", pose)


def _fitting(picture: Image.Image, clip_format: ClipFormat) -> Image.Image:
    """The picture cut to the stream's shape, and no larger than is of use."""
    cropped = crop_to_shape(picture, clip_format.width, clip_format.height)
    longest = max(cropped.size)
    if longest <= MAX_KEPT_SIDE:
        return cropped
    return resize_lanczos(cropped, *(max(1, round(side * MAX_KEPT_SIDE / longest)) for side in cropped.size))


def _unpack(content: bytes, folder: Path) -> None:
    """Writes the poses of a ZIP file: 0.npy, 1.npy and so on, in one of its folders or in none. Raises InputError."""
    if len(content) > MAX_POSES_BYTES:
        raise InputError(f"poses is larger than {MAX_POSES_BYTES // 2**20} MiB; send fewer")
    # Before it is opened: each entry of a list of hundreds of thousands becomes an object.
    if content.count(_ZIP_ENTRY) > MAX_MEMBERS:
        raise InputError(f"poses has more than {MAX_MEMBERS} files and folders; at most {MAX_POSES} poses are taken")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [member for member in archive.infolist() if _is_pose(member)]
            if len(members) > MAX_POSES:
                raise InputError(f"poses has {len(members)} files; at most {MAX_POSES} are taken")
            if sum(member.file_size for member in members) > MAX_UNPACKED_BYTES:
                raise InputError(f"poses unpacks to more than {MAX_UNPACKED_BYTES // 2**20} MiB; no poses are so large")
            for member in members:
                path = folder / _pose_name(member)
                if path.exists():
                    raise InputError(f"poses has {path.name} twice")
                # A size that is not the one that was claimed is an error of the archive, and told as one.
                path.write_bytes(_content(archive, member))
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise InputError(f"poses is no ZIP file that can be read: {error}") from error
    try:
        poses = load_pose_sequence(folder)
    except InputError as error:
        raise InputError(str(error).replace(f"{folder}/", "").replace(str(folder), "poses")) from error
    for number, pose in enumerate(poses):
        (folder / f"{number}.npy").unlink(missing_ok=True)
        save_pose(folder / f"{number}.npy", pose)


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """A file of an archive, of which no more is unpacked than it claims to be. Raises InputError, and BadZipFile also
    for what the decompressor says in words of its own."""
    name = PurePosixPath(member.filename).name
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # Python unpacks the others whole, whatever they become: 350 bytes can be 300 MB.
        raise InputError(f"{name} in poses is compressed in an unusual way; make an ordinary ZIP file")
    try:
        with archive.open(member) as file:
            return file.read(member.file_size + 1)
    except (OSError, zlib.error) as error:
        raise zipfile.BadZipFile(f"{name} is damaged: {error}") from error


def _pose_name(member: zipfile.ZipInfo) -> str:
    """Raises InputError for a name that no pose has, which the file system may not even be able to write."""
    name = _path_of(member).name
    if not re.fullmatch(POSE_FILE_NAME, name):
        raise InputError(f"{name[:80]!r} in poses is not named by its frame number; poses are 0.npy, 1.npy, ...")
    return name


def _path_of(member: zipfile.ZipInfo) -> PurePosixPath:
    """The path of a file in an archive; some programs of Windows write it with backslashes."""
    return PurePosixPath(member.filename.replace("\\", "/"))


def _is_pose(member: zipfile.ZipInfo) -> bool:
    path = _path_of(member)
    hidden = path.name.startswith(".") or "__MACOSX" in path.parts
    return not member.is_dir() and path.suffix == ".npy" and not hidden


def _delete(place: Path) -> None:
    """Deletes an avatar's folder, which may be gone already. Raises FolderError."""
    try:
        shutil.rmtree(place)
    except FileNotFoundError:
        return
    except OSError as error:
        raise FolderError(
            f"the avatar {place.name} is offered no more, but {place} cannot be deleted and would bring it back at the "
            f"next start: {error.strerror or error}"
        ) from error


def _move(draft: Path, place: Path) -> None:
    """Gives a folder its name; what a run that was cut off has left there goes."""
    try:
        if place.exists():
            shutil.rmtree(place)
        draft.rename(place)
    except OSError as error:
        raise _storage_error(place, error) from error


def _storage_error(place: Path, error: OSError) -> StorageError:
    return storage_error(f"avatar_dir is {place.parent}, which cannot be written", error)


def _preview(avatar: Avatar) -> Preview:
    image: Image.Image = video_frame(avatar.idle[0]).to_image()  # type: ignore[no-untyped-call]
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=PREVIEW_QUALITY)
    jpeg = buffer.getvalue()
    return Preview(jpeg, hashlib.sha256(jpeg).hexdigest()[:16])
