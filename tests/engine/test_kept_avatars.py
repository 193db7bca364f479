"""What a worker keeps of its avatars: what a second start reads, and what makes it compute again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from echo_rtc.clips import ClipFormat, U8Array, YuvFrames
from echo_rtc.engine.kept_avatars import KeptAvatars, avatar_digest, loop_arrays, loop_of
from echo_rtc.engine.kept_files import Arrays
from echo_rtc.engine.worker import ModelLoader, ModelSource, _ModelRenderer
from echo_rtc.model.options import GeneratorSettings, ModelOptions
from echo_rtc.model.trained import Trained
from echo_rtc.rendering import Avatar, AvatarFiles

FORMAT = ClipFormat(width=32, height=48, fps=24, clip_frames=12)
POSES = np.arange(48, dtype=np.uint8).reshape(4, 2, 2, 3)


def loop(frames: int = 30, size: tuple[int, int] = (32, 48)) -> Avatar:
    """An avatar with leaps of different numbers."""
    drawn = np.random.default_rng(0)
    width, height = size
    planes = (drawn.integers(0, 256, (frames, height // n, width // n), np.uint8) for n in (1, 2, 2))
    leaps = tuple(tuple(range(n % 4)) for n in range(frames))
    return Avatar("mia", YuvFrames(*planes), drawn.normal(size=(frames, 4, 6, 4)).astype(np.float16), leaps)


def same(a: Avatar, b: Avatar) -> bool:
    planes = all(np.array_equal(getattr(a.idle, plane), getattr(b.idle, plane)) for plane in ("y", "u", "v"))
    if a.idle_latents is None or b.idle_latents is None:
        latents = a.idle_latents is b.idle_latents
    else:
        latents = np.array_equal(a.idle_latents, b.idle_latents)
    return planes and latents and (a.name, a.leaps) == (b.name, b.leaps)


def kept_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*/*"))


def test_a_loop_comes_back_from_its_arrays() -> None:
    for avatar in (loop(), replace(loop(), idle_latents=None), replace(loop(), leaps=())):
        assert same(loop_of(loop_arrays(avatar), "omar", FORMAT), replace(avatar, name="omar"))


def test_arrays_that_are_no_loop_are_refused() -> None:
    whole = dict(loop_arrays(loop()))
    for wrong in (
        {name: plane[:0] for name, plane in whole.items()},
        dict(loop_arrays(loop(size=(48, 32)))),
        {**whole, "u": whole["y"]},
        {**whole, "latents": whole["latents"][:7]},
        {**whole, "latents": whole["latents"].astype(np.float32)},
        {**whole, "leaps": whole["leaps"][:7]},
        {**whole, "leaps": whole["leaps"] + 30},
        {**whole, "leaps": whole["leaps"].astype(np.float32)},
        {"y": whole["y"]},
    ):
        with pytest.raises((ValueError, KeyError)):
            loop_of(wrong, "mia", FORMAT)


class FakeGenerator:
    """A generator as far as idle loops concern it."""

    def __init__(self, settings: GeneratorSettings, trained: Trained) -> None:
        self.settings, self.trained = settings, trained
        self.device = SimpleNamespace(type="cpu")
        self.prepared: list[str] = []
        self.rendered: list[str] = []
        self.given: dict[str, U8Array] = {}
        """Poses that were read from disk."""
        self.fits = True
        self.encoded: U8Array | None = POSES
        self.asked: list[str] = []
        self.meanwhile: Callable[[], object] = lambda: None

    def avatar_pieces(self, name: str, *files: object) -> Iterator[None]:
        self.prepared.append(name)
        yield
        self.meanwhile()

    def forget_avatar(self, name: str) -> None: ...

    @property
    def avatars(self) -> tuple[str, ...]:
        return tuple(self.prepared)

    def work_ahead(self) -> bool:
        return False

    def poses(self, name: str, most_bytes: int) -> U8Array | None:
        self.asked.append(name)
        return self.encoded

    def take_poses(self, name: str, poses: U8Array) -> bool:
        if self.fits:
            self.given[name] = poses
        return self.fits

    def idle_loop(self, name: str, chained: bool = True) -> Iterator[Avatar]:
        self.rendered.append(name)
        whole = loop(size=(self.settings.format.width, self.settings.format.height))
        assert whole.idle_latents is not None
        for start, end in [(0, 0), *zip(range(0, 30, 7), range(7, 37, 7), strict=True), (30, 30)]:
            yield Avatar(name, whole.idle[start:end], whole.idle_latents[start:end], whole.leaps if start == 30 else ())


def fake_generator() -> FakeGenerator:
    return FakeGenerator(GeneratorSettings(FORMAT), Trained())


class Start:
    """One start of a worker with files below ``folder``; its attributes may be changed before :meth:`shown`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.options = ModelOptions(steps=1, cfg=1.0)
        self.device, self.format, self.trained, self.dtype = "cpu", FORMAT, Trained(), "float32"
        self.chained, self.config = True, {"denoising_unet": {"widths": [8]}}
        self.files = AvatarFiles("mia", folder / "face.png", folder / "poses", folder / "idle_poses")
        self.first: AvatarFiles | None = None
        self.encoded: U8Array | None = POSES
        self.fits = True
        self.meanwhile: Callable[[], object] = lambda: None
        """Called while its avatar is being prepared."""
        self.poses_read: U8Array | None = None
        """Of its avatar, by :meth:`shown`, as are these: whose poses the generator was asked for."""
        self.poses_asked: list[str] = []
        for path in ("face.png", "poses/0.npy", "idle_poses/0.npy", "weights/unet.safetensors", "weights/vae/a.bin"):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            if not (folder / path).exists():
                (folder / path).write_bytes(path.encode())

    def shown(self) -> tuple[Avatar, bool]:
        """The idle loop of its avatar, and whether it was rendered."""
        settings = GeneratorSettings.for_device(self.options, self.format, self.device, self.dtype)
        generator: Any = FakeGenerator(settings, self.trained)
        generator.encoded, generator.fits, generator.meanwhile = self.encoded, self.fits, self.meanwhile
        loader = ModelLoader(
            model={},
            model_base=self.folder,
            reference_image=self.files.reference_image,
            pose_dir=self.files.pose_dir,
            format=self.format,
            device=self.device,
            options=self.options,
            use_init_latent=self.chained,
            compile_cache=self.folder / "cache",
        )
        weights = [self.folder / "weights" / "unet.safetensors", self.folder / "weights" / "vae", self.folder / "none"]
        source = ModelSource(lambda settings, progress: generator, weights, self.config)
        kept = loader._kept_avatars(generator, source)
        assert kept is not None
        renderer = _ModelRenderer(generator, self.chained, kept)
        for files in [self.first, self.files]:
            assert files is None or list(renderer.prepare_avatar(files)) == [None]
        pieces = list(renderer.idle(self.files.name))
        assert all(len(piece.idle) <= self.format.clip_frames for piece in pieces)
        for _ in range(2):
            assert not renderer.work_ahead()
        kept.wait()
        self.poses_read, self.poses_asked = generator.given.get(self.files.name), generator.asked
        return Avatar.joined(pieces), generator.rendered == [self.files.name]


@pytest.fixture
def start(tmp_path: Path) -> Callable[[], Start]:
    return lambda: Start(tmp_path)


def test_a_second_start_does_not_render(start: Callable[[], Start]) -> None:
    first, rendered = start().shown()
    assert rendered
    again, rendered = start().shown()
    assert not rendered
    assert same(first, again)
    assert same(first, loop())


def test_another_name_of_the_same_avatar_is_the_same_loop(start: Callable[[], Start]) -> None:
    start().shown()
    other = start()
    other.files = replace(other.files, name="omar")
    avatar, rendered = other.shown()
    assert (avatar.name, rendered) == ("omar", False)


def written(path: str, content: bytes = b"other") -> Callable[[Start], object]:
    return lambda start: (start.folder / path).write_bytes(content)


def option(name: str, value: object) -> Callable[[Start], object]:
    changes: dict[str, Any] = {name: value}
    return changed(options=replace(ModelOptions(steps=1, cfg=1.0), **changes))


def changed(**changes: Any) -> Callable[[Start], object]:
    return lambda start: vars(start).update(changes)


DECISIVE: dict[str, Callable[[Start], object]] = {
    "the picture": written("face.png"),
    "a pose": written("poses/0.npy"),
    "one more pose": written("poses/1.npy"),
    "an idle pose": written("idle_poses/0.npy"),
    "no idle poses": lambda start: setattr(start, "files", replace(start.files, idle_pose_dir=None)),
    "weights of the same size": written("weights/unet.safetensors", b"WEIGHTS/unet.safetensors"),
    "weights in a folder": written("weights/vae/a.bin"),
    "further weights": written("weights/vae/b.bin"),
    "widths": changed(config={"denoising_unet": {"widths": [16]}}),
    "training": changed(trained=Trained(bridged=True)),
    "number format": changed(dtype="bfloat16"),
    "chaining": changed(chained=False),
    "picture size": changed(format=replace(FORMAT, width=64)),
    "frame rate": changed(format=replace(FORMAT, fps=25)),
    "clip length": changed(format=replace(FORMAT, clip_frames=13)),
    "steps": option("steps", 2),
    "guidance": option("cfg", 2.0),
    "guided steps": option("guided_steps", 1),
    "audio margin": option("audio_margin", 6),
    "audio model": option("audio_model_type", "wav2vec2"),
    "decoder": option("vae", "tiny"),
    "kernels": option("kernels", "torch"),
    "attention": option("attention", "sdpa"),
    "8-bit floating point": option("quantize_fp8", True),
    "its form": option("quantize_fp8_mode", "dynamic"),
}


@pytest.mark.parametrize("what", DECISIVE)
def test_what_decides_how_it_looks_has_it_rendered_again(what: str, start: Callable[[], Start]) -> None:
    start().shown()
    other = start()
    DECISIVE[what](other)
    _, rendered = other.shown()
    assert rendered
    _, rendered = start_like(other).shown()
    assert not rendered


def start_like(other: Start) -> Start:
    again = Start(other.folder)
    again.__dict__.update(other.__dict__)
    return again


def test_the_release_of_torch_and_the_code_decide(start: Callable[[], Start], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    start().shown()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "99.0")
        assert start().shown()[1]
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another CPU")
        assert start().shown()[1]
    monkeypatch.setattr("echo_rtc.engine.worker.code_digest", lambda folder: "another release")
    assert start().shown()[1]


@pytest.mark.parametrize(("dtype", "rendered"), [("int8", True), ("float32", False)])
def test_integers_are_fitted_to_the_first_avatar(dtype: str, rendered: bool, start: Callable[[], Start]) -> None:
    one, other = start(), start()
    one.dtype = other.dtype = dtype
    one.shown()
    (other.folder / "first.png").write_bytes(b"first")
    other.first = replace(other.files, name="first", reference_image=other.folder / "first.png")
    assert other.shown()[1] == rendered


def test_a_second_start_does_not_encode_poses(start: Callable[[], Start]) -> None:
    one = start()
    one.shown()
    assert (one.poses_read, one.poses_asked) == (None, ["mia"]), "once, as soon as all are there"
    for change in (option("steps", 2), option("cfg", 2.0), changed(dtype="int8")):
        again = start()
        change(again)
        again.shown()
        assert again.poses_read is not None
        assert np.array_equal(again.poses_read, POSES)
        assert again.poses_asked == []


@pytest.mark.parametrize("what", ["the picture", "a pose", "weights of the same size", "number format", "frame rate"])
def test_what_decides_how_poses_look_has_them_encoded(what: str, start: Callable[[], Start]) -> None:
    start().shown()
    other = start()
    DECISIVE[what](other)
    other.shown()
    assert (other.poses_read, other.poses_asked) == (None, ["mia"])


def test_poses_that_are_not_all_there_are_not_kept(start: Callable[[], Start]) -> None:
    one = start()
    one.encoded = None
    one.shown()
    assert one.poses_asked == ["mia", "mia"], "they may be there the next time"
    again = start()
    again.shown()
    assert again.poses_read is None


def test_poses_that_do_not_fit_are_encoded_and_kept(start: Callable[[], Start]) -> None:
    start().shown()
    one = start()
    one.fits, one.encoded = False, POSES + 1
    one.shown()
    assert (one.poses_read, one.poses_asked) == (None, ["mia"])
    again = start()
    again.shown()
    assert again.poses_read is not None
    assert np.array_equal(again.poses_read, POSES + 1)


def test_an_avatar_is_forgotten_after_what_is_being_written(start: Callable[[], Start], tmp_path: Path) -> None:
    one, go_on = start(), threading.Event()
    kept = KeptAvatars(tmp_path / "cache", {}, FORMAT)
    kept.note("mia", avatar_digest(one.files))
    put = kept._poses.put

    def slow(digest: str, content: Arrays) -> None:
        assert go_on.wait(10)
        put(digest, content)

    kept._poses.put = slow  # type: ignore[method-assign]
    kept.keep_poses("mia", {}, POSES)
    forgetting = threading.Thread(target=kept.forget, args=("mia",))
    forgetting.start()
    go_on.set()
    forgetting.join()
    assert kept_files(tmp_path) == []


@pytest.mark.parametrize("other", [False, True])
def test_nothing_is_written_of_an_avatar_once_forgotten(
    other: bool, start: Callable[[], Start], tmp_path: Path
) -> None:
    one = start()
    kept = KeptAvatars(tmp_path / "cache", {}, FORMAT)
    kept.note("mia", avatar_digest(one.files))
    pieces = kept.idle_loop("mia", {}, fake_generator().idle_loop("mia"))
    next(pieces)
    kept.forget("mia")
    if other:  # of the same name
        (tmp_path / "face.png").write_bytes(b"other")
        kept.note("mia", avatar_digest(one.files))
    assert len(list(pieces)) > 1
    kept.wait()
    assert not (tmp_path / "cache").exists()


def test_files_replaced_while_they_are_read_keep_nothing(start: Callable[[], Start], tmp_path: Path) -> None:
    one = start()
    one.meanwhile = lambda: (tmp_path / "face.png").write_bytes(b"other")
    one.shown()
    later = start()
    assert later.shown()[1], "what is there now was never rendered"
    assert later.poses_read is None


def test_a_deleted_avatar_is_deleted_on_disk(start: Callable[[], Start], tmp_path: Path) -> None:
    one, other = start(), start()
    (tmp_path / "other.png").write_bytes(b"other")
    other.files = replace(other.files, name="omar", reference_image=tmp_path / "other.png")
    other.first = one.files
    one.shown()
    coarser = start()
    option("steps", 2)(coarser)
    coarser.shown()
    other.shown()
    assert len(kept_files(tmp_path)) == 5, "three loops, and the poses of two"
    kept = KeptAvatars(tmp_path / "cache", {}, FORMAT)
    kept.note(one.files.name, avatar_digest(one.files))
    kept.note(one.files.name, avatar_digest(one.files))
    assert len(kept_files(tmp_path)) == 5, "three loops, and the poses of two"
    kept.forget("mia")
    kept.forget("unknown")
    assert len(kept_files(tmp_path)) == 2
    other.first = None
    assert other.shown()[1] is False
    kept.note(other.files.name, avatar_digest(other.files))
    kept.note(other.files.name, avatar_digest(replace(other.files, reference_image=one.files.reference_image)))
    assert kept_files(tmp_path) == [], "another picture has taken its place"


def test_a_loop_that_was_given_up_is_not_kept(start: Callable[[], Start], tmp_path: Path) -> None:
    one = start()
    kept = KeptAvatars(tmp_path / "cache", {}, FORMAT)
    kept.note(one.files.name, avatar_digest(one.files))
    pieces = kept.idle_loop("mia", {}, fake_generator().idle_loop("mia"))
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    kept.wait()
    assert not (tmp_path / "cache").exists()


def test_an_avatar_whose_files_are_gone_is_rendered(
    start: Callable[[], Start], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = KeptAvatars(tmp_path / "cache", {}, FORMAT)
    kept.note("mia", avatar_digest(AvatarFiles("mia", tmp_path / "gone.png", tmp_path)))
    assert "idle loop and poses of avatar mia are not kept" in caplog.text
    avatar = Avatar.joined(list(kept.idle_loop("mia", {}, fake_generator().idle_loop("mia"))))
    assert same(avatar, loop())
    kept.wait()
