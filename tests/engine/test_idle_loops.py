"""Idle loops on disk: what a second start reads, what makes it render again, and files that cannot be used."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from echo_rtc.clips import ClipFormat, YuvFrames
from echo_rtc.engine import idle_loops
from echo_rtc.engine.idle_loops import IdleLoopFiles, code_digest, digest_of
from echo_rtc.engine.worker import ModelLoader, ModelSource, _ModelRenderer
from echo_rtc.model.options import GeneratorSettings, ModelOptions
from echo_rtc.model.trained import Trained
from echo_rtc.rendering import Avatar, AvatarFiles

FORMAT = ClipFormat(width=32, height=48, fps=24, clip_frames=12)
DIGEST, OTHER = digest_of({"steps": 1}), digest_of({"steps": 2})


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


@pytest.fixture
def shelf(tmp_path: Path) -> IdleLoopFiles:
    return IdleLoopFiles(tmp_path / "cache" / "idle", FORMAT)


def kept_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "idle").iterdir())


# ------------------------------------------------------------------------------------------------------- the shelf


def test_what_is_kept_is_read(shelf: IdleLoopFiles) -> None:
    assert shelf.get(DIGEST, "mia") is None
    for avatar in (loop(), replace(loop(), idle_latents=None), replace(loop(), leaps=())):
        shelf.put(DIGEST, avatar)
        found = shelf.get(DIGEST, "omar")
        assert found is not None
        assert same(found, replace(avatar, name="omar"))
        assert shelf.get(OTHER, "mia") is None


def damaged(path: Path, content: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """What can be wrong with a file, by name."""
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    method = bytearray(whole)
    method[whole.index(b"PK\x01\x02") + 10] = 99

    def with_(**changes: Any) -> Callable[[], object]:
        return lambda: np.savez(path, **{**content, **changes})

    return {
        "truncated": lambda: path.write_bytes(whole[: len(whole) // 2]),
        "a flipped byte": lambda: path.write_bytes(flipped),
        "of another compression": lambda: path.write_bytes(method),
        "of a shape that is no expression": lambda: path.write_bytes(whole.replace(b"(30, 48, 32)", b"(30, 48, 32 ")),
        "of a huge shape": lambda: path.write_bytes(whole.replace(b"(30, 48, 32), ", b"(30, 48, 9**9)")),
        "empty": lambda: path.write_bytes(b""),
        "foreign": lambda: path.write_bytes(b"\x80\x04 no archive"),
        "pickled": with_(y=np.array([print], object)),
        "of another digest": with_(digest=np.frombuffer(OTHER.encode(), np.uint8)),
        "without frames": with_(**{plane: content[plane][:0] for plane in "yuv"}),
        "of another size": with_(
            **{plane: content[plane][:, :8, :8] if plane == "y" else content[plane][:, :4, :4] for plane in "yuv"}
        ),
        "of wrong planes": with_(u=content["u"][:, :2]),
        "of wrong types": with_(y=content["y"].astype(np.int32)),
        "of wrong latents": with_(latents=content["latents"].astype(np.float32)),
        "of fewer latents": with_(latents=content["latents"][:3]),
        "with leaps beyond its end": with_(leaps=content["leaps"] + 100),
        "of fewer leaps": with_(leaps=content["leaps"][:3]),
        "without leaps": lambda: np.savez(path, **{name: value for name, value in content.items() if name != "leaps"}),
    }


def test_a_file_that_cannot_be_used_is_one_line(
    shelf: IdleLoopFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.put(DIGEST, loop())
    (path,) = kept_files(tmp_path)
    with np.load(path) as archive:
        content = {name: archive[name] for name in archive.files}
    for what, damage in damaged(path, content).items():
        caplog.clear()
        damage()
        assert shelf.get(DIGEST, "mia") is None, what
        (record,) = caplog.records
        assert f"{path} cannot be used" in record.getMessage()
        assert "\n" not in record.getMessage()
        shelf.put(DIGEST, loop())
        assert shelf.get(DIGEST, "mia") is not None


def test_a_huge_file_is_not_unpacked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    IdleLoopFiles(tmp_path, FORMAT).put(DIGEST, loop())
    assert IdleLoopFiles(tmp_path, FORMAT, limit_bytes=50_000).get(DIGEST, "mia") is None
    assert "it is too large" in caplog.text


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "idle"
    one = IdleLoopFiles(folder, FORMAT)
    digests = [digest_of({"number": number}) for number in range(4)]
    for age, digest in zip((400, 300, 200), digests, strict=False):
        one.put(digest, loop())
        os.utime(folder / f"{digest}.npz", (1e9 - age, 1e9 - age))
    assert one.get(digests[0], "mia") is not None, "now it is the one used last"
    size = kept_files(tmp_path)[0].stat().st_size
    IdleLoopFiles(folder, FORMAT, limit_bytes=3 * size + 100).put(digests[3], loop())
    assert [one.get(digest, "mia") is not None for digest in digests] == [True, False, True, True]


def test_a_loop_beyond_the_limit_is_not_kept(tmp_path: Path) -> None:
    IdleLoopFiles(tmp_path / "cache" / "idle", FORMAT, limit_bytes=1000).put(DIGEST, loop())
    assert kept_files(tmp_path) == []


def test_what_a_killed_process_left_is_removed(shelf: IdleLoopFiles, tmp_path: Path) -> None:
    shelf.put(DIGEST, loop())
    for name, age in (("old.part", 7200.0), ("new.part", 0.0)):
        path = tmp_path / "cache" / "idle" / name
        path.write_bytes(b"half")
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    shelf.put(OTHER, loop())
    assert [path.name for path in kept_files(tmp_path)] == sorted([f"{DIGEST}.npz", f"{OTHER}.npz", "new.part"])


def test_several_may_write_at_once(tmp_path: Path) -> None:
    shelves = [IdleLoopFiles(tmp_path / "cache" / "idle", FORMAT) for _ in range(4)]
    threads = [threading.Thread(target=shelf.put, args=(DIGEST, loop())) for shelf in shelves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = shelves[0].get(DIGEST, "mia")
    assert found is not None
    assert same(found, loop())
    assert len(kept_files(tmp_path)) == 1


def test_a_write_that_fails_leaves_nothing(
    shelf: IdleLoopFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(file: Any, **content: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    shelf.put(DIGEST, loop())
    shelf.put(OTHER, loop())
    assert kept_files(tmp_path) == []
    (record,) = caplog.records
    assert "cannot be kept" in record.getMessage()


def test_a_folder_that_cannot_be_made_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    shelf = IdleLoopFiles(tmp_path / "file" / "idle", FORMAT)
    for digest in (DIGEST, OTHER):
        shelf.put(digest, loop())
        assert shelf.get(digest, "mia") is None
    assert sum("cannot be kept" in record.getMessage() for record in caplog.records) == 1


# ---------------------------------------------------------------------------------------------------- in a worker


class FakeGenerator:
    """A generator as far as idle loops concern it."""

    def __init__(self, settings: GeneratorSettings, trained: Trained) -> None:
        self.settings, self.trained = settings, trained
        self.device = SimpleNamespace(type="cpu")
        self.rendered: list[str] = []

    def avatar_pieces(self, name: str, *files: object) -> Iterator[None]:
        yield

    def forget_avatar(self, name: str) -> None: ...

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
        for path in ("face.png", "poses/0.npy", "idle_poses/0.npy", "weights/unet.safetensors", "weights/vae/a.bin"):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            if not (folder / path).exists():
                (folder / path).write_bytes(path.encode())

    def shown(self) -> tuple[Avatar, bool]:
        """The idle loop of its avatar, and whether it was rendered."""
        settings = GeneratorSettings.for_device(self.options, self.format, self.device, self.dtype)
        generator: Any = FakeGenerator(settings, self.trained)
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
        loops = loader._kept_loops(generator, source)
        assert loops is not None
        renderer = _ModelRenderer(generator, self.chained, loops)
        for files in [self.first, self.files]:
            assert files is None or list(renderer.prepare_avatar(files)) == [None]
        pieces = list(renderer.idle(self.files.name))
        assert all(len(piece.idle) <= self.format.clip_frames for piece in pieces)
        if loops.writing is not None:
            loops.writing.join()
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


def test_sources_are_known_by_name_and_content(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no sources"):
        code_digest(tmp_path)
    seen = set()
    for name, content in (("a.py", "1"), ("a.py", "2"), ("kernels/a.py", "2"), ("kernels/a.cu", "2"), ("b.txt", "2")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
        seen.add(code_digest(tmp_path))
    assert len(seen) == 4


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
    assert len(kept_files(tmp_path)) == 3
    loops = idle_loops.KeptLoops(IdleLoopFiles(tmp_path / "cache" / "idle", FORMAT), {}, 12)
    loops.note(one.files)
    loops.note(one.files)
    assert len(kept_files(tmp_path)) == 3
    loops.forget("mia")
    loops.forget("unknown")
    assert len(kept_files(tmp_path)) == 1
    assert other.shown()[1] is False
    loops.note(other.files)
    loops.note(replace(other.files, reference_image=one.files.reference_image))
    assert kept_files(tmp_path) == [], "another picture has taken its place"


def test_a_loop_that_was_given_up_is_not_kept(start: Callable[[], Start], tmp_path: Path) -> None:
    shelf = IdleLoopFiles(tmp_path / "cache" / "idle", FORMAT)
    one = start()
    loops = idle_loops.KeptLoops(shelf, {}, 12)
    loops.note(one.files)
    pieces = loops.through("mia", {}, fake_generator().idle_loop("mia"))
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert loops.writing is None
    assert not (tmp_path / "cache").exists()


def test_an_avatar_whose_files_are_gone_is_rendered(
    start: Callable[[], Start], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loops = idle_loops.KeptLoops(IdleLoopFiles(tmp_path / "cache" / "idle", FORMAT), {}, 12)
    loops.note(AvatarFiles("mia", tmp_path / "gone.png", tmp_path))
    assert "the idle loop of avatar mia is not kept" in caplog.text
    avatar = Avatar.joined(list(loops.through("mia", {}, fake_generator().idle_loop("mia"))))
    assert same(avatar, loop())
    assert loops.writing is None
