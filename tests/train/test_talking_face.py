"""The command talking-face, small: its mathematics against the live sampler's, and fresh, resumed and frozen runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from echo_rtc.errors import InputError
from echo_rtc.model.audio import frame_tokens
from echo_rtc.model.sampler import ClipConditions, Sampler, initial_latents
from echo_rtc.train.gestures import sample_gestures
from echo_rtc.train.pose_bank import draw_sequence
from echo_rtc.train.recipe import (
    CLIP_FRAMES,
    FPS,
    HISTORY_FRAMES,
    HISTORY_SAMPLES,
    MARGIN,
    NETWORKS,
    SAMPLE_RATE,
    WINDOW_SAMPLES,
)
from echo_rtc.train.scenes import PoseBank
from echo_rtc.train.takes import Takes
from echo_rtc.train.talking_face import (
    FILES,
    MOUTH_WEIGHT,
    SESSION_FRAMES,
    Batch,
    SessionMaker,
    Sessions,
    Trainer,
    build_networks,
    load_frozen,
    main,
    restore,
    turned,
)
from tests.train.small import shrink, step_clock, write_corpus, write_frozen

CPU = torch.device("cpu")
SIZE = 64
BANK_FRAMES = SESSION_FRAMES + 3


def write_bank(path: Path, frames: int = BANK_FRAMES, size: int = SIZE) -> Path:
    gestures = sample_gestures(2, frames, FPS, torch.Generator().manual_seed(0))
    hands, scores = gestures.hands.numpy(), gestures.scores.numpy()
    images = np.stack([draw_sequence(*one, size) for one in zip(hands, scores, strict=True)])
    np.savez(path, images=images, hands=hands, scores=scores, head=gestures.head, blink=gestures.blink)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and a pose bank; nobody writes to it."""
    folder = tmp_path_factory.mktemp("made")
    write_corpus(folder / "corpus")
    write_bank(folder / "bank.npz")
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A training folder with small frozen parts, and a recipe of small networks."""
    torch.set_num_threads(1)
    shrink(monkeypatch)
    write_frozen(tmp_path)
    return tmp_path


def randomise(module: torch.nn.Module) -> None:
    """Gives what starts at zero random values, so that every input has an influence."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


@dataclass
class Bench:
    trainer: Trainer
    sessions: Sessions

    def batch(self, count: int = 5) -> Batch:
        torch.manual_seed(1)
        return self.trainer.batch(self.sessions, count)


@pytest.fixture
def bench(folder: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A trainer with random networks, two sessions, and sound that is not augmented."""
    monkeypatch.setattr("echo_rtc.train.talking_face.augment", lambda sound, generator: sound)
    autoencoder, encoder = load_frozen(folder, CPU)
    torch.manual_seed(0)
    networks = build_networks(NETWORKS, CPU)
    for module in networks.modules():
        randomise(module)
    takes, bank = Takes.load(made / "corpus", CPU), PoseBank.load(made / "bank.npz", CPU)
    maker = SessionMaker(autoencoder, takes, bank, SIZE, torch.Generator().manual_seed(0))
    return Bench(Trainer(maker, encoder, networks), maker.make(2))


def relative_error(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


# ------------------------------------------------------------------------------------------------------ sessions


def test_sessions_are_latents_with_their_places(bench: Bench) -> None:
    sessions = bench.sessions
    assert sessions.references.shape == (2, 32, 4, 4)
    assert sessions.frames.shape == (2, SESSION_FRAMES, 32, 4, 4)
    assert sessions.frames.dtype == torch.float16
    assert torch.all(sessions.place >= HISTORY_SAMPLES)
    assert torch.all(sessions.pose_frame + SESSION_FRAMES <= BANK_FRAMES)
    assert set(sessions.weights.flatten().tolist()) == {1.0, MOUTH_WEIGHT}
    # The mouth is in the second of four rows of cells; its neighbours count as much, because the head moves.
    assert torch.all(sessions.weights[:, 0, 0, 1, 1:3] == MOUTH_WEIGHT)
    own = Sessions(*(getattr(sessions, name).clone() for name in Sessions.__dataclass_fields__))
    own.replace(1, bench.trainer.maker.make(1))
    assert torch.equal(own.frames[0], sessions.frames[0])
    assert not torch.equal(own.frames[1], sessions.frames[1])
    assert own.place[0] == sessions.place[0] != own.place[1]


def test_a_batch_is_cut_where_its_sessions_say(bench: Bench) -> None:
    batch, sessions = bench.batch(6), bench.sessions
    assert batch.x0.shape == (6, CLIP_FRAMES, 32, 4, 4)
    assert batch.poses.shape == (6, CLIP_FRAMES, 3, SIZE, SIZE)
    images = bench.trainer.maker.bank.images
    for row in range(6):
        session = next(s for s in range(2) if torch.equal(sessions.references[s].float(), batch.references[row]))
        frames = sessions.frames[session].float()
        offset = next(o for o in range(SESSION_FRAMES) if torch.equal(frames[o], batch.x0[row, 0]))
        assert torch.equal(frames[offset : offset + CLIP_FRAMES], batch.x0[row])
        assert torch.equal(frames[offset - 1], batch.before[row])
        first = sessions.pose_frame[session] + offset
        poses = images[sessions.sequence[session], first : first + CLIP_FRAMES].permute(0, 3, 1, 2) / 255
        assert torch.equal(poses, batch.poses[row])


def test_tokens_are_those_of_live_rendering(bench: Bench) -> None:
    takes = bench.trainer.maker.takes
    take, place = torch.tensor([0, 1, 1]), torch.tensor([32_000, 40_123, 50_000])
    tokens = bench.trainer.audio_tokens(take, place)
    for row in range(3):
        start = int(place[row]) - HISTORY_SAMPLES
        window = takes.audio[take[row], start : start + WINDOW_SAMPLES].float() / 32768
        hidden = bench.trainer.encoder.hidden_states(window)
        expected = frame_tokens(hidden, CLIP_FRAMES, FPS, MARGIN, HISTORY_FRAMES)
        assert relative_error(tokens[row], expected) < 1e-4
    assert HISTORY_SAMPLES + CLIP_FRAMES * SAMPLE_RATE // FPS == WINDOW_SAMPLES


# ----------------------------------------------------------------------------------------------------- diffusion


def test_turning_is_taking_frames_and_can_be_undone() -> None:
    x = torch.randn(2, 4, 3, 2, 2, requires_grad=True)
    index = torch.tensor([[3, 0, 1, 2], [2, 3, 0, 1]])
    out = turned(x, index)
    assert torch.equal(out[0], x[0, [3, 0, 1, 2]])
    assert torch.equal(out[1], x[1, [2, 3, 0, 1]])
    (out * torch.arange(4.0)[None, :, None, None, None]).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad[1, :, 0, 0, 0].tolist() == [2.0, 3.0, 0.0, 1.0]


def test_the_noise_is_the_live_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = bench.batch(2)
    noise = 2 * torch.randn_like(batch.x0)
    monkeypatch.setattr(torch, "randn_like", lambda x: noise)
    made = bench.trainer.initial_noise(batch, torch.tensor([True, False]))
    for row, latent in enumerate((batch.before[0], None)):
        expected = initial_latents(noise[row : row + 1].transpose(1, 2), latent)
        assert torch.equal(made[row : row + 1].transpose(1, 2), expected)


def test_two_steps_are_those_of_the_live_sampler(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, batch = bench.trainer, bench.batch(1)
    noise = torch.randn_like(batch.x0).clamp(-1.5, 1.5)
    monkeypatch.setattr(trainer, "initial_noise", lambda batch, chained: noise)
    with torch.no_grad():
        tokens, pose, bank = trainer.condition(batch)
        denoiser = trainer.networks.denoiser
        given = ClipConditions(denoiser.project_audio(tokens), denoiser.project_bank(bank), pose.transpose(1, 2))
        live = list(Sampler(denoiser, steps=2, cfg=1.0).steps(noise.transpose(1, 2), given))[-1].latents
        ours = trainer.sample(batch, chained=True)
        unturned = trainer.velocity(noise, torch.tensor([499]), torch.tensor([0]), (tokens, pose, bank))
        shifted = trainer.velocity(noise, torch.tensor([499]), torch.tensor([3]), (tokens, pose, bank))
    assert relative_error(ours.transpose(1, 2), live) < 1e-4
    assert relative_error(shifted, unturned) > 1e-3  # the shift is one that shows


@pytest.mark.parametrize("shares", [(0.4, 0.4), (1.0, 0.0), (0.0, 0.0)])
def test_whoever_knows_the_velocity_is_right_at_every_timestep(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, shares: tuple[float, float]
) -> None:
    trainer, batch = bench.trainer, bench.batch(5)
    noise = torch.randn_like(batch.x0)
    seen: list[int] = []

    def oracle(noisy: Tensor, timestep: Tensor, shift: Tensor, given: object) -> Tensor:
        seen.extend(timestep.tolist())
        alpha, sigma = (table[timestep][:, None, None, None, None] for table in (trainer.alpha, trainer.sigma))
        rows = batch.x0[2:4] if len(noisy) == 2 else batch.x0
        own = noise[2:4] if len(noisy) == 2 else noise
        assert torch.allclose(noisy, alpha * rows + sigma * own, atol=1e-5)
        velocity: Tensor = alpha * own - sigma * rows
        return velocity

    monkeypatch.setattr(trainer, "initial_noise", lambda batch, chained: noise)
    monkeypatch.setattr(trainer, "velocity", oracle)
    trainer.shares = shares
    predicted = trainer.predict(batch, trainer.condition(batch))
    assert torch.allclose(predicted, batch.x0, atol=1e-4)
    if shares == (0.4, 0.4):
        assert seen[:6] == [999, 999, 999, 999, 499, 499]
    elif shares == (1.0, 0.0):
        assert seen == [999] * 5
    monkeypatch.setattr(trainer, "predict", lambda batch, given: batch.x0)
    loss, parts = trainer.loss(*batch)
    assert loss == 0
    assert set(parts) == {"latent", "pixel", "jump"}


def test_every_network_is_taught(bench: Bench) -> None:
    trainer = bench.trainer
    loss, parts = trainer.loss(*bench.batch(5))
    assert loss.item() == pytest.approx(float(parts["latent"] + 4 * parts["pixel"] + 0.5 * parts["jump"]), rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    for module in trainer.networks.modules():
        taught = [p for p in module.parameters() if p.grad is not None and p.grad.any()]
        assert len(taught) > 0.9 * len(list(module.parameters())), type(module).__name__
    for frozen in (trainer.maker.autoencoder, trainer.encoder):
        assert all(p.grad is None for p in frozen.parameters())


def test_a_new_pose_encoder_keeps_the_poses_apart(folder: Path, made: Path) -> None:
    """Nine layers must not weaken what differs between poses to nothing, or training never finds it."""
    images = PoseBank.load(made / "bank.npz", CPU).images[0].permute(0, 3, 1, 2) / 255
    torch.manual_seed(3)
    pose = build_networks(NETWORKS, CPU).pose
    randomise(pose.conv_out)
    with torch.no_grad():
        torch.nn.init.zeros_(pose.conv_out.bias)  # type: ignore[arg-type]  # it has one
        features = pose(images)
    assert features.std(0).mean() > 0.03 * features.abs().mean()
    assert features.std(0).mean() > 1e-5


# ------------------------------------------------------------------------------------------------------ the command


def command(folder: Path, made: Path, *flags: str) -> list[str]:
    files = ["--folder", str(folder), "--corpus", str(made / "corpus"), "--pose-bank", str(made / "bank.npz")]
    sizes = ["--size", str(SIZE), "--sessions", "2", "--refresh", "1", "--batch", "3", "--device", "cpu"]
    return [*files, *sizes, "--minutes", "1", *flags]


def weights(folder: Path) -> dict[str, dict[str, Tensor]]:
    return {file: load_file(folder / f"{file}.safetensors") for file in FILES.values()}


def changed(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The share of the parameters that differ."""
    return sum(not torch.equal(a[name], b[name]) for name in a) / len(a)


def test_a_fresh_run_a_resumed_one_and_one_with_frozen_poses(
    folder: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_clock(monkeypatch, steps=12)
    assert main(command(folder, made)) == 0
    fresh = weights(folder)
    networks = build_networks(NETWORKS, CPU)
    for name, file in FILES.items():
        assert all(value.dtype == torch.float32 for value in fresh[file].values())
        restore(getattr(networks, name), folder / f"{file}.safetensors")
    assert json.loads((folder / "config.json").read_text()) == json.loads(json.dumps(NETWORKS))
    assert Image.open(folder / "preview.png").size == (SIZE * CLIP_FRAMES // 2, SIZE * 8)

    step_clock(monkeypatch, steps=5)
    assert main(command(folder, made, "--resume", "--default-share", "1")) == 0
    resumed = weights(folder)
    for file in FILES.values():
        assert changed(fresh[file], resumed[file]) > 0.8
        # It goes on from where it was.
        moved = sum(float((fresh[file][n] - resumed[file][n]).square().sum()) for n in fresh[file])
        assert moved < 0.05 * sum(float(value.square().sum()) for value in fresh[file].values())

    step_clock(monkeypatch, steps=5)
    assert main(command(folder, made, "--resume", "--freeze-pose", "--first-share", "1", "--second-share", "0")) == 0
    frozen = weights(folder)
    assert changed(resumed["pose_encoder"], frozen["pose_encoder"]) == 0
    assert changed(resumed["denoising_unet"], frozen["denoising_unet"]) > 0.8
    assert changed(resumed["reference_unet"], frozen["reference_unet"]) > 0.8


def test_a_pose_encoder_that_tells_nothing_is_not_frozen(folder: Path, made: Path) -> None:
    networks = build_networks(NETWORKS, CPU)
    for name, file in FILES.items():
        save_file(getattr(networks, name).state_dict(), folder / f"{file}.safetensors")
    # Fresh, its output is nothing at all; with a bias alone, it is the same for every pose.
    for bias in (0.0, 0.3):
        torch.nn.init.constant_(networks.pose.conv_out.bias, bias)  # type: ignore[arg-type]  # it has one
        save_file(networks.pose.state_dict(), folder / "pose_encoder.safetensors")
        with pytest.raises(InputError, match="the pose encoder tells no pose from another; train it first"):
            main(command(folder, made, "--resume", "--freeze-pose"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--graph"], "--graph needs a CUDA device; this one is cpu"),
        (["--batch", "0"], "--batch is 0; it must be at least 1"),
        (["--sessions", "0"], "--sessions is 0; it must be at least 1"),
        (["--first-share", "0.7"], "--first-share plus --second-share"),
        (["--default-share", "1.5"], "--default-share must lie in 0 to 1"),
    ],
)
def test_flags_that_cannot_be(
    flags: list[str], message: str, folder: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(command(folder, made, *flags))
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_files_that_do_not_fit_are_told_in_one_sentence(folder: Path, made: Path, tmp_path: Path) -> None:
    def complaint(*flags: str) -> str:
        with pytest.raises(InputError) as caught:
            main(command(folder, made, *flags))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    short, large = (
        write_bank(tmp_path / "short.npz", frames=SESSION_FRAMES - 1),
        write_bank(tmp_path / "l.npz", size=80),
    )
    assert f"sequences of {SESSION_FRAMES - 1} frames of 64 pixels" in complaint("--pose-bank", str(short))
    assert "of 80 pixels; at least 25 of 64 are needed" in complaint("--pose-bank", str(large))
    assert "reference_unet.safetensors does not exist" in complaint("--resume")
    (folder / "autoencoder.safetensors").write_bytes(b"nothing")
    assert "autoencoder.safetensors is damaged" in complaint()
    save_file({"weight": torch.zeros(1)}, folder / "autoencoder.safetensors")
    assert "does not fit the PixelShuffleAutoencoder" in complaint()
    (folder / "autoencoder.safetensors").unlink()
    assert "autoencoder.safetensors does not exist" in complaint()
