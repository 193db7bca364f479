"""``render``: a file's voice to a movie. With the test card everything in the movie can be read back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from echo_rtc.cli.main import main
from echo_rtc.clips import ClipFormat, F16Array, S16Array, YuvFrames
from echo_rtc.engine.fleet import FleetOptions
from echo_rtc.engine.testcard import CardFacts, CardWorker, ScriptedFaults, TestCardEngine, read_card
from echo_rtc.engine.worker import WorkerReport
from echo_rtc.errors import RenderError
from echo_rtc.offline.files import MovieFile, SoundFile
from echo_rtc.offline.render import ATTEMPTS, PART_CLIPS, OfflineOptions, even_parts, render_voice
from echo_rtc.rendering import (
    Avatar,
    AvatarFiles,
    ClipPlan,
    Continuity,
    Progress,
    RenderRequest,
    RenderResult,
    TakeFrames,
    WorkerStatus,
)
from tests.offline.test_files import read, tone, write_wav

FORMAT = ClipFormat(width=64, height=64)
TESTCARD = ["--engine", "testcard", "--width", "64", "--height", "64"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("ECHO_RTC_"):
            monkeypatch.delenv(name)


def beeps(seconds: float, rate: int, at_frames: list[int]) -> S16Array:
    """Silence with beeps as long as a frame (24 frames/s)."""
    pcm = np.zeros((round(seconds * rate), 1), np.int16)
    for frame in at_frames:
        begin, end = frame * rate // 24, (frame + 1) * rate // 24
        pcm[begin:end] = tone(1.0, rate)[: end - begin]
    return pcm


def cards(movie: Path) -> list[CardFacts]:
    with av.open(str(movie)) as container:
        pictures = container.decode(container.streams.video[0])
        return [read_card(picture.to_ndarray().astype(np.uint8)[: FORMAT.height]) for picture in pictures]


@pytest.mark.parametrize("rate", [48_000, 16_000, 44_100])
def test_every_frame_shows_its_own_sound(rate: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = [3, 11, 12, 30, 59]
    audio = write_wav(tmp_path / "voice.wav", beeps(61.3 / 24, rate, at), rate)
    output = tmp_path / "face.mp4"
    assert main(["render", "--audio", str(audio), "--output", str(output), "--vad-threshold", "0", *TESTCARD]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{output}: 62 frames, 2.6 s of video in ")
    assert err == ""
    seen = cards(output)
    assert [card.frame for card in seen] == list(range(62))  # 61.3 frames of sound
    assert not any(card.idle for card in seen)
    assert {n for n, card in enumerate(seen) if card.level > 0.7} == set(at)
    heard = np.abs(read(output)[:, 0].astype(np.int32))
    assert len(heard) == pytest.approx(61.3 * 2000, abs=1024 + 48)
    for frame in (3, 30, 59):
        onset = np.flatnonzero(heard[(frame - 1) * 2000 :] > 1500)[0] + (frame - 1) * 2000
        assert onset == pytest.approx(frame * 2000, abs=480)  # 10 ms
    assert sorted(file.name for file in tmp_path.iterdir()) == ["face.mp4", "voice.wav"]


def test_silence_shows_the_idle_loop(tmp_path: Path) -> None:
    audio = write_wav(tmp_path / "voice.wav", beeps(6.0, 16_000, [72, 73, 74, 75]), 16_000)
    output = tmp_path / "face.mkv"
    assert main(["render", "--audio", str(audio), "--output", str(output), *TESTCARD]) == 0
    seen = cards(output)
    speaking = [n for n, card in enumerate(seen) if not card.idle]
    assert speaking == list(range(72, 96))  # the clip with speech and the one after
    assert [card.frame for card in seen] == [n if n in speaking else n % 48 for n in range(144)]


def test_it_says_how_the_model_chose_to_compute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start = CardWorker.start

    async def choosing(self: CardWorker, timeout_s: float) -> WorkerReport:
        return replace(await start(self, timeout_s), notice="Computed in 8-bit integers.")

    monkeypatch.setattr(CardWorker, "start", choosing)
    audio = write_wav(tmp_path / "voice.wav", tone(0.1, 16_000), 16_000)
    assert main(["render", "--audio", str(audio), "--output", str(tmp_path / "a.mp4"), *TESTCARD]) == 0
    assert capsys.readouterr().err == "echo-rtc render: Computed in 8-bit integers.\n"


def test_the_mark_is_burned_into_every_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audio = write_wav(tmp_path / "voice.wav", tone(0.3, 16_000), 16_000)
    pictures = []
    for name, flags in (("plain.mp4", []), ("burned.mp4", ["--burn-mark"])):
        size = ["--engine", "testcard", "--width", "128", "--height", "128"]
        assert main(["render", "--audio", str(audio), "--output", str(tmp_path / name), *size, *flags]) == 0
        with av.open(str(tmp_path / name)) as container:
            shown = [frame.to_ndarray()[:128] for frame in container.decode(container.streams.video[0])]
        pictures.append(np.stack(shown).astype(np.int16))
    changed = np.abs(pictures[0] - pictures[1])
    assert changed[:, 106:122, 30:122].mean(axis=(1, 2)).min() > 20
    assert changed[:, :96].mean() < 2
    capsys.readouterr()
    assert main(["render", "--audio", str(audio), "--output", str(tmp_path / "a.mp4"), *TESTCARD, "--burn-mark"]) == 2
    assert "burn_mark needs pictures of at least" in capsys.readouterr().err


def test_a_video_may_be_the_voice_and_stereo_stays_stereo(tmp_path: Path) -> None:
    audio = write_wav(tmp_path / "voice.wav", tone(1.0, 48_000, channels=2), 48_000)
    first, second = tmp_path / "first.mp4", tmp_path / "second.mov"
    assert main(["render", "--audio", str(audio), "--output", str(first), *TESTCARD]) == 0
    assert main(["render", "--audio", str(first), "--output", str(second), *TESTCARD]) == 0
    with av.open(str(second)) as container:
        assert container.streams.audio[0].channels == 2
    assert len(cards(second)) == pytest.approx(24, abs=1)


def test_a_voice_shorter_than_a_frame(tmp_path: Path) -> None:
    audio = write_wav(tmp_path / "voice.wav", tone(0.001, 48_000), 48_000)
    output = tmp_path / "face.mp4"
    assert main(["render", "--audio", str(audio), "--output", str(output), "--vad-threshold", "0", *TESTCARD]) == 0
    assert [card.frame for card in cards(output)] == [0]


class NotingEngine:
    """Notes the requests and answers with the latent's number: the pose position of the clip's last frame."""

    def __init__(self, failures: int = 0) -> None:
        self.format = FORMAT
        self.capacity = 1
        self.expected_render_s = 0.0
        self.ready = True
        self.trouble = ""
        self.continuity = Continuity(chained=True)
        self.capacity_steps = 1
        self.workers: list[WorkerStatus] = []
        self.noted: list[tuple[int, float | None]] = []
        self._failures = failures
        idle = YuvFrames(*(np.zeros((10, side, side), np.uint8) for side in (64, 32, 32)))
        latents = -np.arange(10, dtype=np.float16)[:, None, None, None]
        self.avatars = {"default": Avatar("default", idle, latents)}

    def plan(self, stream: str) -> ClipPlan:
        raise AssertionError("not asked for here")

    async def start(self, progress: Progress) -> None: ...

    async def remove_avatar(self, name: str) -> None:
        raise AssertionError("not asked for here")

    async def prepare_avatar(self, files: AvatarFiles) -> Avatar:
        raise AssertionError("not asked for here")

    async def failed(self) -> RenderError:
        raise AssertionError("not asked for here")

    async def close(self) -> None: ...

    async def render(self, request: RenderRequest, on_frames: TakeFrames | None = None) -> RenderResult:
        if self._failures:
            self._failures -= 1
            raise RenderError("the worker is gone")
        latent: F16Array | None = request.init_latent
        self.noted.append((request.pose_position, None if latent is None else float(latent.flat[0])))
        frames = YuvFrames(*(np.zeros((request.frames, side, side), np.uint8) for side in (64, 32, 32)))
        last = request.pose_position + request.frames - 1
        return RenderResult(frames, np.full((1, 1, 1), last, np.float16))


async def rendered(engine: NotingEngine | TestCardEngine, pcm: S16Array, folder: Path, chained: bool = True) -> int:
    audio = write_wav(folder / "voice.wav", pcm, 48_000)
    ticks: list[int] = []
    with SoundFile(audio) as source, MovieFile(folder / "face.mp4", FORMAT, 1) as movie:
        options = OfflineOptions("default", chained=chained)
        frames = await render_voice(engine, source, movie, options, ticks.append)
    assert sum(ticks) == frames
    return frames


async def test_clips_chain_from_the_one_before_or_from_the_idle_loop(tmp_path: Path) -> None:
    engine = NotingEngine()
    pcm = np.concatenate([tone(0.9, 48_000), beeps(2.1, 48_000, []), tone(0.6, 48_000)])
    assert await rendered(engine, pcm, tmp_path) == 87
    after_idle = {0: -9.0, 72: -1.0}  # the frame before in the idle loop of ten
    expected = {0: after_idle[0], 12: 11.0, 24: 23.0, 72: after_idle[72], 84: 83.0}
    assert dict(engine.noted) == expected
    assert len(engine.noted) == len(expected)


async def test_without_chaining_every_clip_starts_fresh(tmp_path: Path) -> None:
    engine = NotingEngine()
    await rendered(engine, tone(1.0, 48_000), tmp_path, chained=False)
    assert sorted(engine.noted) == [(0, None), (12, None)]


async def test_a_clip_that_fails_is_tried_again(tmp_path: Path) -> None:
    engine = NotingEngine(failures=ATTEMPTS - 1)
    assert await rendered(engine, tone(1.0, 48_000), tmp_path) == 24
    assert [position for position, _ in engine.noted] == [0, 12]


async def test_a_clip_that_fails_for_good_ends_the_rendering(tmp_path: Path) -> None:
    with pytest.raises(RenderError, match="the worker is gone"):
        await rendered(NotingEngine(failures=ATTEMPTS), tone(1.0, 48_000), tmp_path)
    assert os.listdir(tmp_path) == ["voice.wav"]


async def test_slow_workers_in_any_order_leave_the_frames_in_theirs(tmp_path: Path) -> None:
    script = ScriptedFaults(delay_s=0.001, stalls_s={0: 0.08, 3: 0.05})
    engine = TestCardEngine(FORMAT, script, workers=3)
    async with started(engine):
        assert await rendered(engine, tone(5.0, 48_000), tmp_path, chained=False) == 120
        assert [card.frame for card in cards(tmp_path / "face.mp4")] == list(range(120))


@asynccontextmanager
async def started(engine: TestCardEngine) -> AsyncIterator[TestCardEngine]:
    await engine.start(lambda line: None)
    try:
        yield engine
    finally:
        await engine.close()


async def test_long_speech_is_cut_into_parts_that_begin_a_clip_early(tmp_path: Path) -> None:
    engine = NotingEngine()
    audio = write_wav(tmp_path / "voice.wav", tone(20.0, 48_000), 48_000)
    with SoundFile(audio) as source, MovieFile(tmp_path / "face.mp4", FORMAT, 1) as movie:
        options = OfflineOptions("default")
        assert await render_voice(engine, source, movie, options, lambda frames: None, lambda: 3) == 480
    positions = [position for position, _ in engine.noted]
    leads = [12 * (PART_CLIPS - 1) * n for n in (1, 2)]  # of the sixteen of a part, one is the lead
    assert sorted(positions) == sorted([*range(0, 480, 12), *leads])
    for lead in leads:
        latents = [latent for position, latent in engine.noted if position == lead]
        assert -float((lead - 1) % 10) in latents, "the part begins from the idle loop"


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("clips", [1, 2, 15, 48, 500, 7000])
def test_parts_are_even_and_there_are_as_many_for_each_worker(clips: int, workers: int) -> None:
    size = even_parts(clips, workers)
    assert 2 <= size <= PART_CLIPS
    if clips > workers * PART_CLIPS:
        count = -(-clips // (size - 1))
        assert count % workers == 0 or clips / count < size - 1
        assert count <= -(-clips // (PART_CLIPS - 1)) + workers


async def test_parts_on_several_workers_keep_every_frame_in_its_place(tmp_path: Path) -> None:
    """Frames that were blended with those of another moment would not read as cards."""
    script = ScriptedFaults(delay_s=0.002, stalls_s={3: 0.1, 17: 0.15, 40: 0.05}, failures=frozenset())
    engine = TestCardEngine(FORMAT, script, workers=3)
    async with started(engine):
        audio = write_wav(tmp_path / "voice.wav", tone(30.0, 48_000), 48_000)
        with SoundFile(audio) as source, MovieFile(tmp_path / "face.mp4", FORMAT, 1) as movie:
            await render_voice(engine, source, movie, OfflineOptions("default"), lambda frames: None, lambda: 4)
        assert [card.frame for card in cards(tmp_path / "face.mp4")] == list(range(720))
        assert {worker.clips > 5 for worker in engine.workers} == {True}


async def test_unchained_clips_of_several_workers_are_cross_faded(tmp_path: Path) -> None:
    engine = TestCardEngine(FORMAT, workers=2, options=FleetOptions(use_init_latent=False))
    async with started(engine):
        assert engine.continuity == Continuity(chained=False, overlap_frames=6)
        assert await rendered(engine, tone(4.0, 48_000), tmp_path, chained=False) == 96
        assert [card.frame for card in cards(tmp_path / "face.mp4")] == list(range(96))


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err.strip()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--audio", "{voice}"], "output"),
        (["--audio", "{voice}", "--output", "{folder}/o.mp4", "--stepz", "3"], "--stepz"),
        (["--audio", "{voice}", "--output", "{folder}/o.mp4", "--fps", "0"], "fps"),
        (["--audio", "{voice}", "--output", "{folder}/o.mp4", "--port", "80"], "--port"),
        (["--audio", "{voice}", "--output", "{folder}/o.mp4", "--config", "{folder}/none.yaml"], "none.yaml"),
    ],
)
def test_bad_flags_exit_with_2(
    flags: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voice = write_wav(tmp_path / "voice.wav", tone(0.2, 16_000), 16_000)
    words = [flag.format(voice=voice, folder=tmp_path) for flag in flags]
    assert main(["render", *words]) == 2
    assert complaint in sentence(capsys)
    assert list(tmp_path.iterdir()) == [voice]


@pytest.mark.parametrize(
    ("audio", "output", "complaint"),
    [
        ("missing.wav", "o.mp4", "No such file"),
        ("text.wav", "o.mp4", "no file of sound"),
        ("nan.wav", "o.mp4", "not all numbers"),
        ("voice.wav", "o.gif", "ending is unknown"),
        ("voice.wav", "nowhere/o.mp4", "does not exist; make it first"),
        ("voice.mkv", "voice.mkv", "is the audio file itself"),
    ],
)
def test_bad_files_exit_with_1_and_leave_nothing(
    audio: str, output: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voice = write_wav(tmp_path / "voice.wav", tone(0.2, 16_000), 16_000)
    (tmp_path / "voice.mkv").write_bytes(voice.read_bytes())
    (tmp_path / "text.wav").write_text("no sound")
    not_a_number = np.full(16_000, np.nan, "<f4").tobytes()
    header = bytearray(voice.read_bytes()[:44])
    header[20:22], header[28:32] = b"\x03\0", (64_000).to_bytes(4, "little")
    header[32:36], header[40:44] = b"\x04\0\x20\0", len(not_a_number).to_bytes(4, "little")
    (tmp_path / "nan.wav").write_bytes(bytes(header) + not_a_number)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    assert main(["render", "--audio", str(tmp_path / audio), "--output", str(tmp_path / output), *TESTCARD]) == 1
    assert complaint in sentence(capsys)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_worker_that_fails_to_start_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voice = write_wav(tmp_path / "voice.wav", tone(0.2, 16_000), 16_000)
    config = tmp_path / "set-up.yaml"
    config.write_text("engine: local\ndevices: cpu\nmodel:\n  weights: nowhere\n")
    words = ["render", "--audio", str(voice), "--output", str(tmp_path / "o.mp4"), "--config", str(config)]
    assert main(words) == 1
    assert "nowhere does not exist" in sentence(capsys)
    assert set(tmp_path.iterdir()) == {voice, config}


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Shells start what runs in the background with SIGINT ignored, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_halfway_leaves_nothing(number: signal.Signals, code: int, tmp_path: Path) -> None:
    audio = write_wav(tmp_path / "voice.wav", np.tile(tone(1.0, 16_000), (600, 1)), 16_000)
    words = ["-m", "echo_rtc", "render", "--audio", str(audio), "--output", str(tmp_path / "face.mp4"), *TESTCARD]
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while not any(file.suffix == ".part" and file.stat().st_size for file in tmp_path.iterdir()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (code, b"", b"")
    assert list(tmp_path.iterdir()) == [audio]


def test_help_of_render_lists_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["render", "--help-all"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: echo-rtc render --audio FILE --output FILE [flags]")
    assert "--audio" in text
    assert "--steps" in text
    assert "--port" not in text
