"""The worker's side, called in this process: what a loader refuses before it loads, and how speed is measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from echo_rtc.clips import ClipFormat, YuvFrames
from echo_rtc.engine.worker import MEASURED_CLIPS, ClipWorker, ModelLoader, Renderer, WorkerSpec, measure
from echo_rtc.errors import InputError, RenderError, SettingsError
from echo_rtc.model.choreography import activity
from echo_rtc.model.options import ModelOptions
from echo_rtc.rendering import Avatar, AvatarFiles, Progress, RenderRequest, RenderResult, TakeFrames

FORMAT = ClipFormat(width=64, height=64, fps=25, clip_frames=10)


@pytest.fixture
def loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelLoader:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # which loading sets for good in a worker
    (tmp_path / "weights").mkdir()
    (tmp_path / "poses").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "face.png")
    return ModelLoader(
        model={"weights": "weights"},
        model_base=tmp_path,
        reference_image=tmp_path / "face.png",
        pose_dir=tmp_path / "poses",
        format=FORMAT,
        device="cpu",
        options=ModelOptions(steps=1, cfg=1.0, dtype="float32"),
        use_init_latent=True,
    )


def test_what_a_user_got_wrong_is_told_before_anything_is_loaded(loader: ModelLoader, tmp_path: Path) -> None:
    wrong = {
        "nowhere does not exist": replace(loader, model={"weights": "nowhere"}),
        "holds no poses": loader,
        "other does not exist": replace(loader, pose_dir=tmp_path / "other"),
        "none.png": replace(loader, reference_image=tmp_path / "none.png"),
    }
    for complaint, bad in wrong.items():
        with pytest.raises(InputError, match=complaint):
            bad(lambda line: pytest.fail(f"loading had begun: {line}"))
    with pytest.raises(SettingsError, match=r"model\.weight is unknown"):
        replace(loader, model={"weight": "weights"})(lambda line: None)


class TimedRenderer:
    """Takes a scripted time, on a clock of its own, for each clip."""

    avatars = ("first", "second")

    def __init__(self, times_s: list[float]) -> None:
        self._times_s = times_s
        self.now_s = 0.0
        self.prepared = 0
        self.requests: list[RenderRequest] = []

    def clock(self) -> float:
        return self.now_s

    def prepare(self, request: RenderRequest) -> None:
        self.prepared += 1

    def render(self, request: RenderRequest, prepared: None, on_frames: TakeFrames | None = None) -> RenderResult:
        self.requests.append(request)
        self.now_s += self._times_s.pop(0)
        frames = YuvFrames(*(np.zeros((request.frames, side, side), np.uint8) for side in (64, 32, 32)))
        return RenderResult(frames, np.full((1, 1, 1), len(self.requests), np.float16))

    def idle(self, avatar: str) -> Iterator[Avatar]:
        raise AssertionError("not asked for here")

    def prepare_avatar(self, files: AvatarFiles) -> Iterator[None]:
        raise AssertionError("not asked for here")

    def forget_avatar(self, name: str) -> None:
        raise AssertionError("not asked for here")

    def work_ahead(self) -> bool:
        raise AssertionError("not asked for here")


def test_speed_is_that_of_warm_chained_clips_with_history() -> None:
    renderer = TimedRenderer([7.0, 6.0, 0.5, 0.25, 0.25, 0.25, 1.0])
    speed = measure(renderer, FORMAT, 10, clock=renderer.clock)
    assert speed.clip_s == (0.5, 0.25, 0.25, 0.25, 1.0)
    assert len(speed.clip_s) == MEASURED_CLIPS
    assert speed.frames_per_second == 40.0
    for number, request in enumerate(renderer.requests):
        assert (request.avatar, request.frames) == ("first", 10)
        assert len(request.audio) == 50 * 640 + 10 * 640  # 2.0 s of history and the clip
        latent = request.init_latent
        assert (latent is None) if number == 0 else (latent is not None and latent.flat[0] == number)


def test_speed_is_that_of_speech_with_pauses() -> None:
    """In speech the poses are known beforehand; on the way from rest to it they are drawn for the clip."""
    renderer = TimedRenderer([0.5] * 7)
    measure(renderer, FORMAT, 10, clock=renderer.clock)
    spoken = [activity(request.audio, 10, FORMAT.fps, FORMAT.sample_rate).min() for request in renderer.requests]
    assert spoken == [0, 1, 1, 0, 1, 0, 1]


def test_work_ahead_waits_for_clips() -> None:
    class Renderer(TimedRenderer):
        left = 2

        def work_ahead(self) -> bool:
            self.left -= 1
            return self.left > 0

    renderer = Renderer([0.5] * 9)
    worker = ClipWorker(WorkerSpec("one", lambda progress: renderer), FORMAT)
    assert worker.work_ahead(), "there may be some once it is loaded"
    worker.load(lambda line: None)
    request = RenderRequest("first", np.zeros(16_000, np.float32), 10, 0, 0)
    worker.prepare(1, request)
    assert worker.work_ahead()
    assert renderer.left == 2
    worker.render(1, None)
    assert worker.work_ahead()
    assert not worker.work_ahead()
    assert renderer.left == 0


def test_it_is_warm_for_other_steps_too() -> None:
    """For clips that begin from noise and for chained ones: what is recorded for one may not do for the other."""
    renderer = TimedRenderer([2.0, 2.0, 3.0, 3.0, 7.0, 7.0, 60.0])
    assert measure(renderer, FORMAT, 10, (4, 5), clock=renderer.clock).clip_s == (60.0,)
    asked = [(request.steps, request.init_latent is not None) for request in renderer.requests]
    assert asked == [(4, False), (4, True), (5, False), (5, True), (None, False), (None, True), (None, True)]


def test_a_slow_renderer_is_not_measured_for_long() -> None:
    renderer = TimedRenderer([60.0, 60.0, 30.0])
    assert measure(renderer, FORMAT, 10, clock=renderer.clock).clip_s == (30.0,)


def test_a_warm_up_error_reaches_the_server_as_a_sentence(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its own classes may not even be known there."""

    class Overfull(TimedRenderer):
        def render(self, request: RenderRequest, prepared: None, on_frames: TakeFrames | None = None) -> RenderResult:
            if request.frames > 10:
                raise MemoryError("out of memory\nand a dump")
            return super().render(request, prepared, on_frames)

    def load(progress: Progress) -> Renderer:
        return Overfull([0.1] * (2 + MEASURED_CLIPS))

    worker = ClipWorker(WorkerSpec("w0", load), FORMAT)
    worker.load(lambda line: None)
    with pytest.raises(RenderError, match=r"^worker w0 could not warm up: MemoryError: out of memory$"):
        worker.measure(16)
    assert "w0 could not warm up" in caplog.text
