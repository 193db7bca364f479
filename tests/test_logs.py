"""Logging: console and file, and that a file which cannot be written never stops anything."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from echo_rtc import logs
from echo_rtc.bench.stream import babble
from echo_rtc.bench.support.calls import Caller
from echo_rtc.engine.card import CardFacts, read_card
from echo_rtc.logs import LogOptions, RunFileHandler, logging_to
from tests.rtc.test_calls import STARVED_S, house, until

FULL_DISK = Path("/dev/full")


@pytest.fixture(autouse=True)
def handlers_are_put_back() -> Iterator[None]:
    before = (list(logging.getLogger().handlers), logging.getLogger().level, logging.getLogger("aioice").level)
    yield
    assert (list(logging.getLogger().handlers), logging.getLogger().level, logging.getLogger("aioice").level) == before


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("test", logging.INFO, __file__, 1, text, None, None)


def test_lines_go_to_console_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to(LogOptions("info", tmp_path / "deep" / "logs")) as file:
        logging.getLogger("echo_rtc.x").info("stream %s opened", "é")
        logging.getLogger("echo_rtc.x").debug("unseen")
        logging.getLogger("aioice.ice").info("chatter")
    assert file.path is not None
    assert re.fullmatch(r"run_\d{8}_\d{6}\.log", file.path.name)
    line = file.path.read_text(encoding="utf-8")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} INFO +echo_rtc\.x: stream é opened\n", line)
    assert "stream é" in capsys.readouterr().err


def test_debug_shows_the_libraries_too(tmp_path: Path) -> None:
    with logging_to(LogOptions("debug", tmp_path)) as file:
        logging.getLogger("aioice.ice").info("candidate")
        logging.getLogger("aioice.ice").debug("packet")
        logging.getLogger("libav.h264").warning("quantiser")
    assert file.path is not None
    text = file.path.read_text()
    assert "candidate" in text
    assert "packet" not in text
    assert "quantiser" not in text


def test_two_runs_in_a_second_have_two_files(tmp_path: Path) -> None:
    with logging_to(LogOptions("info", tmp_path)) as one, logging_to(LogOptions("info", tmp_path)) as two:
        assert one.path is not None
        assert two.path is not None
        assert one.path != two.path


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    with logging_to(LogOptions("info", tmp_path / "file" / "logs")) as file:
        logging.getLogger("echo_rtc.x").info("going on")
    assert file.path is None
    assert not file.writable
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "cannot be written" in lines[0]
    assert "name another with --log-dir" in lines[0]
    assert lines[1].endswith("going on")


@pytest.mark.skipif(not FULL_DISK.exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_costs_lines_and_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.log"
    handler = RunFileHandler(path, 1_000_000, 3)
    try:
        handler.emit(record("before"))
        assert handler.stream is not None
        handler.stream.close()
        handler.stream = FULL_DISK.open("w", encoding="utf-8")
        handler.emit(record("lost 1"))
        path.rename(tmp_path / "kept.log")
        path.symlink_to(FULL_DISK)
        handler.emit(record("lost 2"))
        assert handler.lost == 2
        assert handler.failing
        path.unlink()
        handler.emit(record("after"))
        assert not handler.failing
        handler.emit(record("later, of \udcff"))  # part of a file name that is not UTF-8
    finally:
        handler.close()
    assert capsys.readouterr().err.count("cannot be written") == 1
    assert (tmp_path / "kept.log").read_text() == "before\n"
    assert path.read_text() == "after\n2 lines so far could not be written to this file\nlater, of \\udcff\n"


def test_neither_disk_nor_console_being_there_ends_the_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hung:
        def write(self, text: str) -> None:
            raise BrokenPipeError("nobody reads any more")

    monkeypatch.setattr(sys, "stderr", Hung())
    folder = tmp_path / "logs"
    folder.mkdir()
    handler = RunFileHandler(folder / "run.log", 1_000_000, 3)
    folder.rmdir()
    handler.handle(record("lost"))
    assert handler.failing
    folder.mkdir()
    handler.handle(record("after"))
    handler.close()
    assert (folder / "run.log").read_text().startswith("after\n")


def test_the_file_is_bounded(tmp_path: Path) -> None:
    handler = RunFileHandler(tmp_path / "run.log", file_bytes=1000, old_files=2)
    for number in range(300):
        handler.emit(record(f"line {number} of a long run"))
    handler.close()
    files = sorted(os.listdir(tmp_path))
    assert files == ["run.log", "run.log.1", "run.log.2"]
    assert all((tmp_path / name).stat().st_size <= 1000 for name in files)


def test_a_faulty_message_is_no_disk_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    handler = RunFileHandler(tmp_path / "run.log", 1_000_000, 3)
    handler.emit(logging.LogRecord("test", logging.INFO, __file__, 1, "%d", ("x",), None))
    handler.close()
    assert handler.lost == 0


def test_json_lines_have_the_fields_of_the_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to(LogOptions("info", tmp_path, as_json=True)) as file:
        logging.getLogger("echo_rtc.x").info(
            "%d frames\nof \udcff", 3, extra={"stream": "ab", "held": 2, "level": "no"}
        )
        try:
            raise ZeroDivisionError("of the test")
        except ZeroDivisionError:
            logging.getLogger("echo_rtc.x").exception("a fault", extra={"where": tmp_path})
    assert file.path is not None
    text = file.path.read_text(encoding="ascii")
    assert capsys.readouterr().err == text
    first, second = (json.loads(line) for line in text.splitlines())
    assert datetime.fromisoformat(first.pop("time")).utcoffset() == timedelta(0)
    assert first == {
        "level": "info",
        "logger": "echo_rtc.x",
        "message": "3 frames\nof \udcff",
        "stream": "ab",
        "held": 2,
    }
    assert second["level"] == "error"
    assert second["where"] == str(tmp_path)
    assert second["exception"].endswith("ZeroDivisionError: of the test")


def test_a_folder_that_becomes_read_only_costs_lines_and_no_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with logging_to(LogOptions("info", tmp_path, file_bytes=1_000)) as file:

        def read_only(*_: object) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        logging.getLogger("echo_rtc.x").info("before")
        monkeypatch.setattr(os, "rename", read_only)
        for number in range(50):
            logging.getLogger("echo_rtc.x").info(
                "line %d, after which the file is full and another is to be begun", number
            )
    assert not file.writable
    assert 20 < file.lost < 50
    told = capsys.readouterr().err
    assert told.count("cannot be written (Read-only file system); going on without") == 1
    assert told.count("is to be begun") == 50
    assert file.path is not None
    assert file.path.stat().st_size <= 1_000


class Stuck:
    """A console whose reader has stopped reading: a write does not return until it is freed."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.text = ""

    def write(self, text: str) -> int:
        self.free.wait()
        self.text += text
        return len(text)

    def flush(self) -> None: ...


def test_a_blocked_console_delays_no_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Stuck()
    monkeypatch.setattr(sys, "stderr", console)
    monkeypatch.setattr(logs, "MAX_WAITING_LINES", 100)
    changing = ["as it was"]
    with logging_to(LogOptions("info", tmp_path)) as file:
        logging.getLogger("echo_rtc.x").info("%s", changing)
        changing[0] = "as it is"
        for number in range(200):
            logging.getLogger("echo_rtc.x").info("line %d", number)
        lost = file.lost
        assert 98 <= lost <= 101
        console.free.set()
    assert len(console.text.splitlines()) == 201 - lost
    assert "as it was" in console.text
    assert "as it is" not in console.text


def test_the_end_does_not_wait_for_such_a_console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Stuck()
    monkeypatch.setattr(sys, "stderr", console)
    monkeypatch.setattr(logs, "LAST_LINES_S", 0.05)
    with logging_to(LogOptions("info", tmp_path)):
        logging.getLogger("echo_rtc.x").info("the last words")
    assert console.text == ""
    console.free.set()


@pytest.mark.skipif(not FULL_DISK.exists(), reason="needs /dev/full")
async def test_a_full_disk_disturbs_no_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cards: list[CardFacts] = []
    with logging_to(LogOptions("debug", tmp_path)) as file:
        assert file.path is not None
        file.path.unlink()
        file.path.symlink_to(FULL_DISK)
        async with house() as home:
            stream_id = await home.call(Caller(babble, on_picture=lambda seen: cards.append(read_card(seen.luma))))
            [stream] = home.manager.streams.values()
            noisy = asyncio.create_task(_talk())
            await until(lambda: len(cards) > 72)
            noisy.cancel()
            statistics, vitals = home.statistics(stream_id), stream.vitals
    assert file.lost > 50
    assert not file.writable
    assert capsys.readouterr().err.count("cannot be written (No space left on device); going on without") == 1
    assert vitals.viewers == 1
    if statistics["output"]["worst_late_s"] < STARVED_S:
        assert statistics["output"]["skipped_blocks"] == 0
        assert abs(vitals.offset_ms or 0.0) < 1000 * STARVED_S


async def _talk() -> None:
    while True:
        logging.getLogger("echo_rtc.x").info("one of many lines")
        await asyncio.sleep(0.02)
