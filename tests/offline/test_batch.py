"""Many voices: their names, what is rendered again and what is not, and that a crash loses only what was under way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from echo_rtc.cli.main import main
from echo_rtc.errors import InputError
from echo_rtc.offline.batch import JOURNAL, Job, Journal, jobs_of
from echo_rtc.settings import Settings
from tests.offline.test_files import tone, write_wav
from tests.offline.test_render import ROOT, TESTCARD, cards, plain_environment

__all__ = ["plain_environment"]


@pytest.fixture
def voices(tmp_path: Path) -> Path:
    folder = tmp_path / "voices"
    folder.mkdir()
    for number in range(3):
        write_wav(folder / f"voice{number}.wav", tone(0.5 * (number + 1), 16_000), 16_000)
    (folder / "notes.txt").write_text("no sound")
    return folder


def render(*words: str) -> int:
    return main(["render", *words, *TESTCARD])


def test_a_folder_becomes_a_folder_of_movies(voices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    movies = tmp_path / "movies"
    assert render("--audio", str(voices), "--output", str(movies)) == 0
    assert sorted(file.name for file in movies.iterdir()) == [JOURNAL, *(f"voice{n}.mp4" for n in range(3))]
    assert [len(cards(movies / f"voice{number}.mp4")) for number in range(3)] == [12, 24, 36]
    assert capsys.readouterr().out.count("frames") == 3


def test_what_is_finished_is_not_rendered_again(
    voices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    movies = tmp_path / "movies"
    words = ["--audio", str(voices), "--output", str(movies)]
    assert render(*words) == 0
    before = {file: file.stat().st_mtime_ns for file in movies.glob("*.mp4")}
    capsys.readouterr()
    assert render(*words) == 0
    assert capsys.readouterr().out == "3 of 3 movies were finished before\n"
    assert {file: file.stat().st_mtime_ns for file in movies.glob("*.mp4")} == before
    # A changed voice, a movie that is gone: these two again, the third not.
    write_wav(voices / "voice0.wav", tone(0.25, 16_000), 16_000)
    (movies / "voice1.mp4").unlink()
    assert render(*words) == 0
    assert len(cards(movies / "voice0.mp4")) == 6
    assert (movies / "voice2.mp4").stat().st_mtime_ns == before[movies / "voice2.mp4"]
    assert render(*words, "--vad-threshold", "0.5") == 0
    assert (movies / "voice2.mp4").stat().st_mtime_ns != before[movies / "voice2.mp4"]
    capsys.readouterr()
    assert render(*words, "--vad-threshold", "0.5", "--again") == 0
    assert "finished before" not in capsys.readouterr().out


def test_a_deleted_voice_is_reported_after_its_movie(
    voices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    movies = tmp_path / "movies"
    words = [word for number in range(2) for word in ("--audio", str(voices / f"voice{number}.wav"))]
    assert render(*words, "--output", str(movies)) == 0
    (voices / "voice0.wav").unlink()
    assert render(*words, "--output", str(movies)) == 1
    assert "voice0.wav, which cannot be read: No such file or directory" in capsys.readouterr().err
    assert (movies / "voice0.mp4").is_file()


def test_after_a_crash_only_what_was_not_finished_is_rendered(voices: Path, tmp_path: Path) -> None:
    write_wav(voices / "long.wav", np.tile(tone(1.0, 16_000), (600, 1)), 16_000)
    movies = tmp_path / "movies"
    words = ["--audio", *(str(voices / "voice0.wav"), "--audio", str(voices / "long.wav")), "--output", str(movies)]
    command = [sys.executable, "-m", "echo_rtc", "render", *words, *TESTCARD]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (movies / JOURNAL).exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(json.loads((movies / JOURNAL).read_text())) == ["voice0.mp4"]
    finished = (movies / "voice0.mp4").stat().st_mtime_ns
    write_wav(voices / "long.wav", tone(1.0, 16_000), 16_000)
    assert render(*words) == 0
    assert (movies / "voice0.mp4").stat().st_mtime_ns == finished
    assert len(cards(movies / "long.mp4")) == 24


def test_one_file_that_fails_leaves_the_others(
    voices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = np.full(16_000, np.nan, "<f4").tobytes()
    whole = (voices / "voice0.wav").read_bytes()
    header = bytearray(whole[:44])
    header[20:22], header[28:32] = b"\x03\0", (64_000).to_bytes(4, "little")
    good = np.zeros(64_000, "<f4").tobytes()
    header[32:36], header[40:44] = b"\x04\0\x20\0", len(good + bad).to_bytes(4, "little")
    (voices / "voice1.wav").write_bytes(bytes(header) + good + bad)
    movies = tmp_path / "movies"
    assert render("--audio", str(voices), "--output", str(movies)) == 1
    assert "voice1.wav" in capsys.readouterr().err
    assert sorted(file.name for file in movies.glob("*.mp4")) == ["voice0.mp4", "voice2.mp4"]
    assert not list(movies.glob("*.part"))


def test_one_file_that_cannot_be_read_costs_itself_only(
    voices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (voices / "voice1.wav").write_bytes(b"RIFF and no more")
    movies = tmp_path / "movies"
    assert render("--audio", str(voices), "--output", str(movies)) == 1
    assert "voice1.wav" in capsys.readouterr().err
    assert sorted(file.name for file in movies.glob("*.mp4")) == ["voice0.mp4", "voice2.mp4"]
    assert render("--audio", str(voices), "--output", str(movies)) == 1  # nothing but the bad one is left
    assert "voice1.wav" in capsys.readouterr().err


def test_one_voice_into_one_movie_needs_no_folder(voices: Path, tmp_path: Path) -> None:
    voice = voices / "voice0.wav"
    assert jobs_of([voice], tmp_path / "face.mkv") == [Job(voice, tmp_path / "face.mkv")]
    assert jobs_of([voice, voice], tmp_path) == [Job(voice, tmp_path / "voice0.mp4")]
    assert jobs_of([voice], tmp_path) == [Job(voice, tmp_path / "voice0.mp4")]


def test_what_cannot_be_is_refused(voices: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="several voices need a folder"):
        jobs_of([voices], tmp_path / "face.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="a folder without any file of sound"):
        jobs_of([tmp_path / "empty"], tmp_path)
    other = tmp_path / "voice0.mp3"
    with pytest.raises(InputError, match=r"voice0\.wav and .*voice0\.mp3 would both become"):
        jobs_of([voices / "voice0.wav", other], tmp_path)


def test_a_journal_that_cannot_be_read_is_no_obstacle(
    voices: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / JOURNAL).write_text("{")
    job = Job(voices / "voice0.wav", tmp_path / "voice0.mp4")
    settings = Settings(engine="testcard")
    journal = Journal(tmp_path, settings, without=())
    assert "all files are rendered again" in caplog.text
    assert not journal.has(job)
    job.output.touch()
    journal.note(job)
    assert Journal(tmp_path, settings, without=()).has(job)
    assert Journal(tmp_path, replace(settings, explicit=frozenset({"steps", "fps"})), without=()).has(job)
    assert not Journal(tmp_path, replace(settings, steps=5), without=()).has(job)
    assert Journal(tmp_path, replace(settings, steps=5), without=("steps",)).has(job) is False
