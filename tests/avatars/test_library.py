"""A server's avatars: what an upload may be, what is kept of it, and what is there after a restart."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import shutil
import struct
import threading
import tracemalloc
import zipfile
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from echo_rtc.avatars import library as library_module
from echo_rtc.avatars.library import (
    MAX_KEPT_SIDE,
    MAX_MEMBERS,
    MAX_PICTURE_BYTES,
    MAX_POSES,
    MAX_SCANS,
    AvatarLibrary,
    Entry,
    Shelf,
)
from echo_rtc.clips import ClipFormat
from echo_rtc.engine.fleet import FleetOptions
from echo_rtc.engine.testcard import TestCardEngine
from echo_rtc.errors import (
    AvatarConflictError,
    CapacityError,
    FolderError,
    InputError,
    RenderError,
    StorageError,
    UnknownAvatarError,
)
from echo_rtc.model.pose_files import load_pose, load_pose_sequence
from echo_rtc.rendering import Avatar, AvatarFiles, RenderRequest
from echo_rtc.settings import load_settings

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "echo_rtc" / "assets" / "embedded"
POSES = ROOT / "tests" / "data" / "poses"
FORMAT = ClipFormat(width=160, height=160, clip_frames=6)
ORIENTATION = 0x0112


def image(width: int = 200, height: int = 200, kind: str = "PNG", **options: object) -> bytes:
    """A picture whose left half is red and whose right half is blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 250
    pixels[:, width // 2 :, 2] = 250
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def archive(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as made:
        for name, content in files.items():
            made.writestr(name, content)
    return buffer.getvalue()


def spoilt() -> bytes:
    """An archive that is whole but for what its one file was compressed to."""
    content = bytearray(archive({"0.npy": (POSES / "0.npy").read_bytes()}))
    start = 30 + len("0.npy")
    content[start + 10 : start + 60] = b"\xff" * 50
    return bytes(content)


def pose_files(count: int = 3, folder: str = "") -> dict[str, bytes]:
    return {f"{folder}{n}.npy": (POSES / f"{n}.npy").read_bytes() for n in range(count)}


@asynccontextmanager
async def library(
    folder: Path, engine: TestCardEngine | None = None, most: int = 8, in_use: Callable[[], list[str]] = list
) -> AsyncIterator[AvatarLibrary]:
    """A library of one configured avatar, prepared, on an engine of test cards."""
    engine = engine or TestCardEngine(FORMAT)
    await engine.start(lambda _: None)
    try:
        configured = AvatarFiles("default", EMBEDDED / "reference.png", EMBEDDED / "poses")
        made = AvatarLibrary(engine, Shelf((configured,), folder, most), in_use)
        await made.prepare(lambda _: None)
        yield made
    finally:
        await engine.close()


async def test_an_archive_with_backslashes_is_taken(tmp_path: Path) -> None:
    """As some programs of Windows write it, folders among the entries."""
    files = {"my poses\\": b"", **{f"my poses\\{name}": content for name, content in pose_files().items()}}
    async with library(tmp_path / "made") as shelf:
        await shelf.add("anna", image(), poses=archive(files))
    assert len(load_pose_sequence(tmp_path / "made" / "anna" / "poses")) == 3


async def test_a_phones_photo_is_taken(tmp_path: Path) -> None:
    photo = io.BytesIO()
    Image.new("RGB", (6048, 8064), (200, 150, 120)).save(photo, "JPEG")
    async with library(tmp_path / "made") as shelf:
        await shelf.add("anna", photo.getvalue())
    assert Image.open(tmp_path / "made" / "anna" / "reference.png").size == (MAX_KEPT_SIDE, MAX_KEPT_SIDE)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


async def test_an_upload_stays_over_a_restart_until_it_is_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "when needed"
    async with library(folder) as shelf:
        assert shelf.entries() == [Entry("default", uploaded=False)]
        assert await shelf.add("anna", image()) == Entry("anna", uploaded=True)
        assert await shelf.add("bert-2", image(), poses=archive(pose_files(3, "my poses/"))) == Entry("bert-2", True)
        assert [entry.name for entry in shelf.entries()] == ["default", "anna", "bert-2"]
        assert shelf.added == 2
        preview = await shelf.preview("anna")
        assert Image.open(io.BytesIO(preview.jpeg)).size == (160, 160)
        assert await shelf.preview("anna") is preview
    # Without poses of its own it has those of the default avatar.
    assert len(load_pose_sequence(folder / "anna" / "poses")) == len(load_pose_sequence(EMBEDDED / "poses"))
    assert len(load_pose_sequence(folder / "bert-2" / "poses")) == 3
    async with library(folder) as shelf:
        assert [entry.name for entry in shelf.entries()] == ["default", "anna", "bert-2"]
        await shelf.delete("anna")
        assert [entry.name for entry in shelf.entries()] == ["default", "bert-2"]
        assert left(folder) == ["bert-2"]
        with pytest.raises(UnknownAvatarError):
            await shelf.preview("anna")
        await shelf.add("anna", image(), poses_of="bert-2")
        assert len(load_pose_sequence(folder / "anna" / "poses")) == 3


async def test_only_the_upright_fitted_pixels_are_kept(tmp_path: Path) -> None:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("where", "at home")
    turned = Image.Exif()
    turned[ORIENTATION] = 6  # to be turned by 90 degrees clockwise: red comes to the top
    async with library(tmp_path) as shelf:
        await shelf.add("noted", image(pnginfo=notes))
        await shelf.add("turned", image(300, 200, "JPEG", exif=turned))
        await shelf.add("large", image(4_000, 3_000))
        await shelf.add("wide", image(900, 200))
    kept = {name: Image.open(tmp_path / name / "reference.png") for name in left(tmp_path)}
    assert b"at home" not in (tmp_path / "noted" / "reference.png").read_bytes()
    assert not kept["turned"].getexif()
    assert kept["turned"].size == (200, 200)
    red, blue = kept["turned"].getpixel((100, 5)), kept["turned"].getpixel((100, 195))
    assert isinstance(red, tuple)
    assert isinstance(blue, tuple)
    assert red[0] > 200 > blue[0]
    assert kept["large"].size == (MAX_KEPT_SIDE, MAX_KEPT_SIDE)
    assert kept["wide"].size == (200, 200)


GIF = image(kind="GIF", save_all=True, append_images=[Image.new("RGB", (200, 200), c) for c in ("white", "green")])


class Evil:
    """Runs a command where it is unpickled without care."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/never",)


def evil_pose() -> bytes:
    holder, buffer = np.empty((), dtype=object), io.BytesIO()
    holder[()] = Evil()
    np.save(buffer, holder, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (b"", "not an image"),
        (b"GIF89a nonsense", "not an image|damaged"),
        (image()[:300], "damaged"),
        (image(40, 400), "at least 64"),
        (GIF, "moves: it has more than one frame"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (b"\0" * (MAX_PICTURE_BYTES + 1), "larger than 24 MiB"),
    ],
)
async def test_an_unusable_picture_is_refused_and_leaves_nothing(tmp_path: Path, picture: bytes, words: str) -> None:
    async with library(tmp_path) as shelf:
        with pytest.raises(InputError, match=f"^image .*({words})"):
            await shelf.add("anna", picture)
        assert left(tmp_path) == []
        assert len(shelf.entries()) == 1
        await shelf.add("anna", image())


async def test_a_hundred_megapixels_are_refused_by_the_header(tmp_path: Path) -> None:
    bomb = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(bomb, "PNG")
    # Cut off after the header, so that nothing could be decoded.
    async with library(tmp_path) as shelf:
        with pytest.raises(InputError, match="image has more than 32 megapixels; make it smaller"):
            await shelf.add("anna", bomb.getvalue()[:100])


def many_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated; each time the whole picture is gone through."""
    whole = image(kind="JPEG", progressive=True)
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + scan * count + whole[-2:]


def large_tile() -> bytes:
    """A TIFF of 100 x 100 pixels with one tile of 45008 x 45008, which libtiff makes room for: 2 GB."""
    tags = {256: 100, 257: 100, 258: 8, 259: 5, 262: 1, 322: 45_008, 323: 45_008, 324: 140, 325: 50}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(100)


def endless_tiff(pages: int) -> bytes:
    entries = struct.pack("<HHII", 256, 4, 1, 100) + struct.pack("<HHII", 257, 4, 1, 100)
    size = 2 + len(entries) + 4
    page = (struct.pack("<H", 2) + entries + struct.pack("<I", 8 + size * number) for number in range(1, pages + 1))
    return b"II*\0" + struct.pack("<I", 8) + b"".join(page)


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (many_scans(MAX_SCANS), "a JPEG of more than 64 scans"),
        (large_tile(), "not an image that can be read"),
        (endless_tiff(100_000), "not an image that can be read"),
    ],
    ids=["scans", "tile", "pages"],
)
async def test_a_huge_picture_in_a_small_file_is_refused_undecoded(tmp_path: Path, picture: bytes, words: str) -> None:
    async with library(tmp_path) as shelf:
        await shelf.add("progressive", many_scans(1))
        with pytest.raises(InputError, match=f"^image is {words}"):
            await shelf.add("anna", picture)
        assert left(tmp_path) == ["progressive"]


def lying_archive(unpacked: int) -> bytes:
    """A pose that claims to have 1000 bytes and unpacks to many more."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = b"".join([packer.compress(bytes(2**20)) for _ in range(unpacked // 2**20)]) + packer.flush()
    name, check = b"0.npy", zlib.crc32(bytes(1000))
    common = struct.pack("<HHHHIIIHH", 0, 8, 0, 33, check, len(packed), 1000, len(name), 0)
    begin = b"PK\x03\x04" + struct.pack("<H", 20) + common + name + packed
    entry = b"PK\x01\x02" + struct.pack("<HH", 20, 20) + common + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    return begin + entry + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), len(begin), 0)


async def test_no_more_is_unpacked_than_an_archive_claims(tmp_path: Path) -> None:
    poses = lying_archive(200 * 2**20)
    assert len(poses) < 2**18
    async with library(tmp_path) as shelf:
        tracemalloc.start()
        try:
            with pytest.raises(InputError, match=r"0\.npy is damaged"):
                await shelf.add("anna", image(), poses=poses)
            assert tracemalloc.get_traced_memory()[1] < 10_000_000
        finally:
            tracemalloc.stop()
        assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("poses", "words"),
    [
        (b"PK nonsense", "no ZIP file"),
        (archive({}), "holds no poses"),
        (archive(pose_files())[:-30], "no ZIP file"),
        (spoilt(), "no ZIP file that can be read: 0.npy is damaged"),
        (archive(pose_files(), zipfile.ZIP_BZIP2), "0.npy in poses is compressed in an unusual way"),
        (archive(pose_files(), zipfile.ZIP_LZMA), "0.npy in poses is compressed in an unusual way"),
        (archive({"1.npy": (POSES / "1.npy").read_bytes()}), "lacks 0.npy"),
        (archive({"a/0.npy": b"", "b/0.npy": b""}), "0.npy twice"),
        (archive({"first.npy": b""}), "'first.npy' in poses is not named by its frame number"),
        (archive({"0" * 400 + ".npy": b""}), "in poses is not named by its frame number"),
        (archive({"0\n.npy": b""}), r"'0\\n.npy' in poses is not named by its frame number"),
        (b"PK\x01\x02" + bytes(42) + b"PK\x01\x02" * MAX_MEMBERS, "poses has more than 6000 files and folders"),
        (archive({"0.npy": b"nonsense"}), "0.npy is damaged"),
        (archive({"0.npy": evil_pose()}), "system, which is refused"),
        (archive({f"{n}.npy": b"" for n in range(MAX_POSES + 1)}), "at most 2000"),
        (archive({f"{n}.npy": b"\0" * 3_000_000 for n in range(30)}), "more than 64 MiB"),
    ],
)
async def test_poses_that_cannot_be_used_are_refused_and_leave_nothing(
    tmp_path: Path, poses: bytes, words: str
) -> None:
    async with library(tmp_path / "kept") as shelf:
        with pytest.raises(InputError, match=words) as refusal:
            await shelf.add("anna", image(), poses=poses)
        # Where the server keeps things is nobody's business.
        assert str(tmp_path) not in str(refusal.value)
        assert left(tmp_path / "kept") == []


async def test_only_poses_leave_an_archive_and_only_into_their_folder(tmp_path: Path) -> None:
    files = pose_files(2, "../../")
    extra = {"readme.txt": b"x", "__MACOSX/0.npy": b"x", "._0.npy": b"x", "../../evil.sh": b"x"}
    async with library(tmp_path / "kept") as shelf:
        await shelf.add("anna", image(), poses=archive({**files, **extra}))
    assert left(tmp_path) == ["kept"]
    assert left(tmp_path / "kept" / "anna" / "poses") == ["0.npy", "1.npy"]
    again = load_pose(tmp_path / "kept" / "anna" / "poses" / "1.npy")
    assert np.array_equal(again.hands, load_pose(POSES / "1.npy").hands)


@pytest.mark.parametrize("name", ["", "Anna", "../x", "a b", "-a", "a" * 41, "default\n", "\u00e4"])
async def test_names_are_small_words(tmp_path: Path, name: str) -> None:
    async with library(tmp_path) as shelf:
        with pytest.raises(InputError, match=r"name is .*; it must have 1 to 40 small letters"):
            await shelf.add(name, image())


async def test_default_is_another_name_of_the_first_avatar(tmp_path: Path) -> None:
    engine = TestCardEngine(FORMAT, options=FleetOptions(avatar_name="mia"))
    await engine.start(lambda _: None)
    try:
        mia = AvatarFiles("mia", EMBEDDED / "reference.png", EMBEDDED / "poses")
        shelf = AvatarLibrary(engine, Shelf((mia,), tmp_path, 3), list)
        assert list(engine.avatars) == [entry.name for entry in shelf.entries()] == ["mia"]
        assert await shelf.preview("default") is await shelf.preview("mia")
        with pytest.raises(AvatarConflictError, match="there is an avatar default already"):
            await shelf.add("default", image())
        with pytest.raises(AvatarConflictError, match="the avatar mia is one of the configuration"):
            await shelf.delete("default")
        await shelf.add("anna", image(), poses_of="default")
        assert [entry.name for entry in shelf.entries()] == ["mia", "anna"]
        assert engine.avatars["default"] is engine.avatars["mia"] is engine.avatars.get("default")
        assert engine.avatars.get("carl") is None
        heard = np.zeros(FORMAT.sample_rate * 3, np.float32)
        assert (await engine.render(RenderRequest("default", heard, FORMAT.clip_frames, 0, 0))).frames
    finally:
        await engine.close()


async def test_names_and_places_are_limited(tmp_path: Path) -> None:
    shown = ["anna"]
    async with library(tmp_path, most=3, in_use=lambda: shown) as shelf:
        await shelf.add("anna", image())
        for name in ("default", "anna"):
            with pytest.raises(AvatarConflictError, match=f"there is an avatar {name} already"):
                await shelf.add(name, image())
        with pytest.raises(InputError, match=r"poses_of is 'nobody'.*there are default, anna"):
            await shelf.add("bert", image(), poses_of="nobody")
        with pytest.raises(InputError, match="poses and poses_of are both given"):
            await shelf.add("bert", image(), poses=archive(pose_files()), poses_of="anna")
        await shelf.add("bert", image())
        with pytest.raises(AvatarConflictError, match="there are 3 avatars, which is the limit"):
            await shelf.add("carl", image())
        with pytest.raises(AvatarConflictError, match="one of the configuration"):
            await shelf.delete("default")
        with pytest.raises(AvatarConflictError, match="a stream shows the avatar anna"):
            await shelf.delete("anna")
        with pytest.raises(UnknownAvatarError):
            await shelf.delete("carl")
        shown.clear()
        await shelf.delete("anna")
        await shelf.add("carl", image())
    async with library(tmp_path, most=2) as shelf:
        assert [entry.name for entry in shelf.entries()] == ["default", "bert"]


async def test_a_bad_upload_takes_no_kept_avatar_of_its_name_away(tmp_path: Path) -> None:
    async with library(tmp_path) as shelf:
        await shelf.add("anna", image())

    class Picky(TestCardEngine):
        async def prepare_avatar(self, files: AvatarFiles) -> Avatar:
            raise RenderError("no worker is up")

    async with library(tmp_path, Picky(FORMAT)) as shelf:
        assert [entry.name for entry in shelf.entries()] == ["default"]
        with pytest.raises(InputError):
            await shelf.add("anna", b"no picture")
    async with library(tmp_path) as shelf:
        assert [entry.name for entry in shelf.entries()] == ["default", "anna"]


class SlowEngine(TestCardEngine):
    """Takes its time for an avatar, or fails at it."""

    def __init__(self, go: asyncio.Event, failure: Exception | None = None) -> None:
        super().__init__(FORMAT)
        self._go = go
        self._failure = failure

    async def prepare_avatar(self, files: AvatarFiles) -> Avatar:
        await self._go.wait()
        if self._failure is not None:
            raise self._failure
        return await super().prepare_avatar(files)


async def test_one_avatar_is_prepared_at_a_time(tmp_path: Path) -> None:
    go = asyncio.Event()
    async with library(tmp_path, SlowEngine(go)) as shelf:
        adding = asyncio.create_task(shelf.add("anna", image()))
        await asyncio.sleep(0)
        with pytest.raises(CapacityError, match="another avatar is being prepared") as busy:
            await shelf.add("bert", image())
        with pytest.raises(CapacityError, match="another avatar is being prepared"):
            await shelf.delete("default")
        assert busy.value.retry_after_s > 0
        assert [entry.name for entry in shelf.entries()] == ["default"]
        go.set()
        await adding
        await shelf.add("bert", image())


async def test_an_avatar_that_the_workers_cannot_make_leaves_nothing(tmp_path: Path) -> None:
    go = asyncio.Event()
    go.set()
    async with library(tmp_path, SlowEngine(go, RenderError("no worker is up"))) as shelf:
        with pytest.raises(RenderError):
            await shelf.add("anna", image())
        assert left(tmp_path) == []
    go.clear()
    async with library(tmp_path, SlowEngine(go)) as shelf:
        adding = asyncio.create_task(shelf.add("anna", image()))
        while not left(tmp_path):  # noqa: ASYNC110  (a folder has no event)
            await asyncio.sleep(0.01)
        adding.cancel()
        await asyncio.wait({adding})
        assert left(tmp_path) == []


@pytest.mark.parametrize("step", ["_write", "_move"])
async def test_nothing_is_written_after_it_was_given_up(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended, go_on = asyncio.Event(), asyncio.Event(), threading.Event()
    loop, real = asyncio.get_running_loop(), getattr(library_module, step)

    def slow(*arguments: object) -> None:
        loop.call_soon_threadsafe(begun.set)
        assert go_on.wait(10)
        real(*arguments)
        loop.call_soon_threadsafe(ended.set)

    monkeypatch.setattr(library_module, step, slow)
    async with library(tmp_path) as shelf:
        adding = asyncio.create_task(shelf.add("anna", image()))
        await begun.wait()
        for _ in range(2):  # also while it waits for the thread
            adding.cancel()
            await asyncio.sleep(0)
        loop.call_soon(go_on.set)
        await asyncio.wait({adding})
        await ended.wait()
        assert adding.cancelled()
        assert left(tmp_path) == []


async def test_a_folder_that_cannot_be_written_is_the_operators(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with library(tmp_path / "file") as shelf:
        with pytest.raises(FolderError, match=r"avatar_dir is .*file, which cannot be written: "):
            await shelf.add("anna", image())


async def test_a_full_disk_is_no_fault_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    picture = image()
    monkeypatch.setattr(Image.Image, "save", full)
    async with library(tmp_path) as shelf:
        with pytest.raises(StorageError, match="No space left on device") as refused:
            await shelf.add("anna", picture)
    assert not isinstance(refused.value, FolderError)
    assert left(tmp_path) == []


async def test_poses_that_the_server_has_lost_are_the_operators(tmp_path: Path) -> None:
    async with library(tmp_path) as shelf:
        await shelf.add("anna", image())
        shutil.rmtree(tmp_path / "anna" / "poses")
        with pytest.raises(FolderError, match="the poses of the avatar anna cannot be read any more: "):
            await shelf.add("bert", image(), poses_of="anna")


async def test_an_avatar_that_cannot_be_deleted_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    async with library(tmp_path) as shelf:
        await shelf.add("anna", image())
        await shelf.add("bert", image())
        shutil.rmtree(tmp_path / "bert")
        await shelf.delete("bert")
        monkeypatch.setattr(shutil, "rmtree", denied)
        with pytest.raises(FolderError, match=r"anna is offered no more, but .* cannot be deleted .*Permission denied"):
            await shelf.delete("anna")
        assert [entry.name for entry in shelf.entries()] == ["default"]


async def test_what_is_broken_in_the_folder_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with library(tmp_path) as shelf:
        await shelf.add("anna", image())
        await shelf.add("bert", image())
    (tmp_path / ".anna-1234").mkdir()
    (tmp_path / "Not A Name").mkdir()
    (tmp_path / "default").mkdir()
    (tmp_path / "note.txt").touch()

    class Picky(TestCardEngine):
        async def prepare_avatar(self, files: AvatarFiles) -> Avatar:
            if files.name == "bert":
                raise RenderError("the avatar bert could not be prepared: it is too much")
            raise InputError(f"the reference image {files.reference_image} does not exist")

    async with library(tmp_path, Picky(FORMAT)) as shelf:
        assert [entry.name for entry in shelf.entries()] == ["default"]
    assert "avatar anna in" in caplog.text
    assert "avatar bert in" in caplog.text
    assert "avatar default in" in caplog.text
    assert "Not A Name" not in caplog.text


async def test_configured_avatars_are_prepared_or_the_reason_is_given(tmp_path: Path) -> None:
    config = tmp_path / "two.yaml"
    config.write_text(
        (ROOT / "configs" / "testcard.yaml").read_text()
        + f"avatars:\n  my-friend:\n    reference_image: {EMBEDDED / 'reference.png'}\n"
    )
    settings = load_settings(["--config", str(config)], {})
    shelf = Shelf.of(settings)
    assert [files.name for files in shelf.configured] == ["default", "my-friend"]
    assert shelf.configured[1].pose_dir == settings.pose_dir
    engine = TestCardEngine(FORMAT)
    await engine.start(lambda _: None)
    lines: list[str] = []
    try:
        made = AvatarLibrary(engine, shelf)
        await made.prepare(lines.append)
        assert made.entries() == [Entry("default", False), Entry("my-friend", False)]
    finally:
        await engine.close()
    assert lines == ["preparing avatar my-friend"]
    go = asyncio.Event()
    go.set()
    broken = SlowEngine(go, InputError("the reference image x does not exist"))
    await broken.start(lambda _: None)
    try:
        with pytest.raises(InputError, match=r"avatars\.my-friend cannot be prepared: the reference image x"):
            await AvatarLibrary(broken, shelf).prepare(lines.append)
    finally:
        await broken.close()
