"""A recording's file plays from its first packet to its last, whatever happens to the disk and to the process."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from echo_rtc.codec.picture import VideoCodec
from echo_rtc.errors import InputError, StorageError
from echo_rtc.recording.facts import RecordingFacts, RecordingState
from echo_rtc.recording.options import FinishingStep, RecordingLimits
from echo_rtc.recording.recorder import STREAM_ENDED, TOO_SLOW, Recorder
from echo_rtc.recording.shelf import KILLED, Shelf
from echo_rtc.recording.tape import Tape
from tests.recording.film import FORMAT, film, watch

NO_LIMITS = RecordingLimits()


class Session:
    """A recorder with the reason of its end, as it is told."""

    def __init__(self, shelf: Shelf, limits: RecordingLimits = NO_LIMITS) -> None:
        self.shelf = shelf
        self.reasons: list[str] = []
        self.recorder = Recorder(shelf.new("studio", "ann"), shelf, limits, FORMAT.fps, self.reasons.append)

    @property
    def facts(self) -> RecordingFacts:
        return self.recorder.facts

    async def end(self) -> Path:
        """Ends it; where the complete file is, if there is one."""
        self.recorder.close()
        await self.recorder.finished()
        return self.shelf.complete(self.facts)


async def test_the_file_is_in_sync_and_outlives_new_bitrates(tmp_path: Path) -> None:
    session = Session(Shelf(tmp_path))
    async with film() as reel:
        await reel.play(session.recorder, 60)
        reel.bank.use([VideoCodec.H264], [VideoCodec.H264])
        reel.bank.estimate(VideoCodec.H264, 0, 400_000)
        await reel.play(session.recorder, 90)
        assert reel.bank.counters.builds == 2
    path = await session.end()
    seen = watch(path)
    assert seen.frames == 150
    assert seen.duration_s == pytest.approx(6.0, abs=0.05)
    assert len(seen.light_s) == 6
    assert max(map(abs, seen.offsets_ms)) < 5
    assert session.facts.state is RecordingState.COMPLETE
    assert session.reasons == [STREAM_ENDED]
    assert [facts.as_json() for facts in Shelf(tmp_path).list()] == [session.facts.as_json()]
    assert json.loads(path.with_suffix(".json").read_text())["stream"] == "studio"
    assert path.stat().st_mode & 0o077 == 0


async def test_what_a_killed_server_leaves_is_finished(tmp_path: Path) -> None:
    session = Session(Shelf(tmp_path / "first"))
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    async with film() as reel:
        await reel.play(session.recorder, 120)
        partial = session.shelf.partial(session.facts)
        await asyncio.to_thread(_until_bytes, partial, 20_000)
        left = partial.read_bytes()
    assert watch(partial).frames >= 50
    second = Shelf(tmp_path / "second")
    about = session.shelf.complete(session.facts).with_suffix(".json")
    (second.folder / about.name).write_bytes(about.read_bytes())
    (second.folder / partial.name).write_bytes(left + left[-500:])
    (second.folder / "20260101T000000Z-0123456789abcdef.partial.mp4").write_bytes(left[:700])
    (second.folder / f"{partial.name}.signed").write_bytes(left)
    (second.folder / "notes.txt").write_text("not ours")
    (second.folder / "20269999T000000Z-0123456789abcdef.mp4").symlink_to(tmp_path / "nothing")
    second.recover()
    [facts] = second.list()
    assert (facts.state, facts.reason, facts.stream) == (RecordingState.COMPLETE, KILLED, "studio")
    found = second.find(facts.id)
    assert found is not None
    seen = watch(found)
    assert seen.frames >= 50
    assert facts.seconds == pytest.approx(seen.duration_s, abs=0.01)
    assert seen.duration_s == pytest.approx(seen.frames / FORMAT.fps, abs=0.1)
    assert sorted(path.suffix for path in second.folder.iterdir()) == [".json", ".mp4", ".mp4", ".txt"]
    await session.end()


async def test_a_full_disk_ends_the_recording_and_nothing_else(tmp_path: Path) -> None:
    session = Session(Shelf(tmp_path))
    async with film() as reel:
        with files_of_at_most(40_000):
            await reel.play(session.recorder, 150)
            await session.recorder.finished()
        assert session.reasons == ["the disk is full"]
        await reel.play(session.recorder, 5)
    path = session.shelf.complete(session.facts)
    assert path.stat().st_size <= 40_000
    assert 20 < watch(path).frames < 150


@pytest.mark.parametrize(
    ("limits", "free", "reason"),
    [
        (RecordingLimits(most_s=2.0), 1 << 40, "it lasts --max-recording-time (2 s)"),
        (RecordingLimits(most_bytes=1 << 15), 1 << 40, "it would be larger than --max-recording-size (0 MiB)"),
        (RecordingLimits(least_free_bytes=1 << 30), 1 << 20, "the disk has less than --min-free-disk left (1024 MiB)"),
    ],
)
async def test_limits_end_a_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: RecordingLimits, free: int, reason: str
) -> None:
    monkeypatch.setattr(Shelf, "free_bytes", lambda _: free)
    session = Session(Shelf(tmp_path), limits)
    async with film() as reel:
        await reel.play(session.recorder, 100)
        await session.recorder.finished()
    assert session.reasons == [reason]
    if limits.least_free_bytes:
        assert session.facts.state is RecordingState.EMPTY
        assert os.listdir(tmp_path) == []
        with pytest.raises(StorageError, match="1 MiB left"):
            session.shelf.require_free(limits.least_free_bytes)
    else:
        assert watch(session.shelf.complete(session.facts)).frames >= 25


async def test_a_disk_that_hangs_holds_up_no_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()
    monkeypatch.setattr(Tape, "write", lambda *_: answers.wait())
    session = Session(Shelf(tmp_path))
    async with film() as reel:
        await reel.play(session.recorder, 250)
    assert session.reasons == [TOO_SLOW]
    assert session.recorder.dropped_packets > 0
    answers.set()
    await session.recorder.finished()
    assert session.facts.state is RecordingState.EMPTY


async def test_finishing_steps_run_before_a_file_is_listed(tmp_path: Path) -> None:
    states: list[RecordingState] = []
    tries = 0

    def sign(path: Path) -> None:
        nonlocal tries
        tries += 1
        states.append(next(facts.state for facts in shelf.list()))
        if tries == 1:
            raise OSError("no key")
        with path.open("ab") as file:
            file.write(b"\0\0\0\x0cfreesign")

    steps: tuple[FinishingStep, ...] = (sign,)
    shelf = Shelf(tmp_path, steps)
    session = Session(shelf)
    async with film() as reel:
        await reel.play(session.recorder, 30)
    await session.end()
    assert session.facts.state is RecordingState.UNFINISHED
    assert shelf.find(session.facts.id) is None
    shelf.recover()
    assert states == [RecordingState.UNFINISHED] * 2
    path = shelf.find(session.facts.id)
    assert path is not None
    assert path.read_bytes().endswith(b"sign")
    assert shelf.list()[0].reason == STREAM_ENDED
    assert shelf.delete(session.facts.id)
    assert os.listdir(tmp_path) == []


async def test_a_recording_without_a_picture_leaves_nothing(tmp_path: Path) -> None:
    session = Session(Shelf(tmp_path))
    await session.end()
    assert session.facts.state is RecordingState.EMPTY
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("fails", ["ftruncate", "fsync"])
async def test_a_disk_that_fails_leaves_no_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def fail(*_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    session = Session(Shelf(tmp_path))
    async with film() as reel:
        await reel.play(session.recorder, 60)
        monkeypatch.setattr(os, fails, fail)
        with files_of_at_most(10_000 if fails == "ftruncate" else 1 << 30):
            await reel.play(session.recorder, 60)
            await session.end()
    monkeypatch.undo()
    reason, state = session.facts.reason, session.facts.state
    if fails == "ftruncate":
        assert (reason, state) == ("the disk is full", RecordingState.COMPLETE)
    else:
        assert (reason, state) == (STREAM_ENDED, RecordingState.UNFINISHED)
    assert [each for each in os.listdir("/proc/self/fd") if _opens(each, tmp_path)] == []
    session.shelf.recover()
    assert watch(session.shelf.complete(session.facts)).frames > 20


async def test_a_failing_writer_closes_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(Shelf(tmp_path))
    async with film() as reel:
        await reel.play(session.recorder, 60)
        monkeypatch.setattr(Tape, "_add", lambda *_: 1 / 0)
        await reel.play(session.recorder, 60)
        await session.end()
    assert session.facts.state is not RecordingState.FINISHING
    assert [each for each in os.listdir("/proc/self/fd") if _opens(each, tmp_path)] == []


def test_clients_are_not_told_where_recordings_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shelf = Shelf(tmp_path / "gone")
    for ask in (shelf.free_bytes, shelf.list):
        caplog.clear()
        with pytest.raises(StorageError, match="No such file or directory") as refused:
            ask()
        assert str(tmp_path) not in str(refused.value)
        assert str(tmp_path) in caplog.text
    folder = tmp_path / f"20260101T000000Z-{'0' * 16}.mp4"
    folder.mkdir()
    with pytest.raises(StorageError, match="cannot be deleted") as refused:
        Shelf(tmp_path).delete("0" * 16)
    assert str(tmp_path) not in str(refused.value)


def test_what_was_deleted_meanwhile_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shelf, "find", lambda *_: tmp_path / "deleted by another request.mp4")
    assert not Shelf(tmp_path).delete("0" * 16)


def test_two_servers_do_not_share_a_folder(tmp_path: Path) -> None:
    with Shelf(tmp_path).locked(), pytest.raises(InputError, match="--recording-dir"), Shelf(tmp_path).locked():
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="--recording-dir"), Shelf(tmp_path / "file").locked():
        pass


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """While inside, no file of this process may grow beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _opens(descriptor: str, folder: Path) -> bool:
    """Whether an open file of this process is in the folder."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(folder))
    except FileNotFoundError:
        return False


def _until_bytes(path: Path, size: int) -> None:
    """Waits until a thread has written so many bytes."""
    paused = threading.Event()
    for _ in range(200):
        if path.exists() and path.stat().st_size >= size:
            return
        paused.wait(0.02)
    raise AssertionError(f"{path} does not grow")
