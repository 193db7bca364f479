"""Trains the embedded model's networks: ``python -m echo_rtc.train talking-face``.

Reference UNet, denoising UNet and pose encoder are trained together, from scratch, on drawn people who speak the
corpus; autoencoder and audio encoder are frozen. Clips of a session follow each other, so that the model learns to go
on from the previous clip's last latent.

The diffusion is the published one (v-prediction, zero terminal SNR, noise clamped, frames shifted by three a step).
Because the embedded model is sampled in very few steps, a share of each batch starts at the last timestep, another
takes the sampler's second step from the model's own first prediction, and only the rest draws any timestep.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from echo_rtc.errors import InputError
from echo_rtc.model.audio import WhisperAudioEncoder, frame_tokens, log_mel_spectrogram
from echo_rtc.model.autoencoder import AutoencoderConfig, PixelShuffleAutoencoder
from echo_rtc.model.pose_encoder import PoseEncoder
from echo_rtc.model.sampler import make_scheduler
from echo_rtc.model.unet2d import ReferenceUNet
from echo_rtc.model.unet3d import DenoisingUNet
from echo_rtc.model.weights import check, read_state
from echo_rtc.train.augment import augment
from echo_rtc.train.loop import GraphedStep, Run, Schedule, best_device, start_log
from echo_rtc.train.person import Motion
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
from echo_rtc.train.scenes import PoseBank, crowd, draw_all, random_mouths, to_network
from echo_rtc.train.takes import Takes

log = logging.getLogger(__name__)

SESSION_FRAMES = 2 * CLIP_FRAMES + 1
SESSION_SAMPLES = -(-SESSION_FRAMES * SAMPLE_RATE // FPS)
NOISE_BOUND = 1.5
SHIFT = 3
INIT_LATENT_SHARE = 0.6
MOUTH_WEIGHT = 8.0
"""How much more an error in the latent cells of the mouth counts than one elsewhere."""


@dataclass
class Sessions:
    """S drawn sessions of T frames, as latents on the accelerator.

    ``references`` (S, C, h, w) and ``frames`` (S, T, C, h, w) are float16 latents, ``weights`` (S, 1, 1, h, w) the
    loss's weights, ``take`` and ``place`` (S,) where each session starts in the corpus, ``sequence`` and
    ``pose_frame`` (S,) where its gestures start in the pose bank.
    """

    references: Tensor
    frames: Tensor
    weights: Tensor
    take: Tensor
    place: Tensor
    sequence: Tensor
    pose_frame: Tensor

    def replace(self, start: int, other: Sessions) -> None:
        stop = start + other.references.shape[0]
        for name in self.__dataclass_fields__:
            getattr(self, name)[start:stop] = getattr(other, name)


def turned(x: Tensor, index: Tensor) -> Tensor:
    """The frames of x (B, F, ...) at ``index`` (B, G) of each row: (B, G, ...). Its gradient needs no sorting."""
    return x.take_along_dim(index.view(*index.shape, *(1,) * (x.ndim - 2)), dim=1)


class SessionMaker:
    """Draws sessions and encodes them."""

    def __init__(
        self, autoencoder: PixelShuffleAutoencoder, takes: Takes, bank: PoseBank, size: int, generator: torch.Generator
    ) -> None:
        self.autoencoder, self.takes, self.bank, self.size, self.generator = autoencoder, takes, bank, size, generator
        self.device = bank.images.device
        self.default_share = 0.0

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> (N, C, h, w) float16."""
        parts = [self.autoencoder.encode(to_network(part)) for part in torch.split(images, 256)]
        return torch.cat(parts).half()

    @torch.inference_mode()
    def make(self, count: int) -> Sessions:
        device, generator = self.device, self.generator
        frames = SESSION_FRAMES
        people = crowd(count, self.default_share, generator).to(device)
        take, place = self.takes.random_places(count, HISTORY_SAMPLES, SESSION_SAMPLES, generator)
        sequences, length = self.bank.blink.shape
        sequence = torch.randint(sequences, (count,), generator=generator).to(device)
        pose_frame = torch.randint(length - frames + 1, (count,), generator=generator).to(device)

        steps = torch.arange(frames, device=device)
        at = (sequence[:, None], pose_frame[:, None] + steps)
        motion = Motion(
            mouth=self.takes.mouths(take, place, (steps + 0.5) / FPS).flatten(0, 1),
            blink=self.bank.blink[at].flatten(0, 1),
            head=self.bank.head[at].flatten(0, 1),
            hands=self.bank.hands[at].flatten(0, 1),
            hands_score=self.bank.scores[at].flatten(0, 1),
        )
        drawn = draw_all(people.repeat_interleave(frames), motion, self.size)
        references = draw_all(people, Motion.rest(count).to(device), self.size)
        talking = Motion.rest(count).to(device)
        talking.mouth.copy_(random_mouths(count, generator).clamp(min=0.5))
        moved = (draw_all(people, talking, self.size).int() - references.int()).abs().amax(1, keepdim=True) > 24
        scale = self.autoencoder.scale
        mouth = F.max_pool2d(moved.float(), scale)
        # One cell more on each side: the head moves within a session.
        mouth = F.max_pool2d(mouth, 3, stride=1, padding=1)
        latents = rearrange(self.encode(drawn), "(s t) c h w -> s t c h w", s=count)
        return Sessions(
            references=self.encode(references),
            frames=latents,
            weights=(1 + (MOUTH_WEIGHT - 1) * mouth)[:, None],
            take=take,
            place=place,
            sequence=sequence,
            pose_frame=pose_frame,
        )


@dataclass
class Networks:
    """What is trained."""

    reference: ReferenceUNet
    denoiser: DenoisingUNet
    pose: PoseEncoder

    def modules(self) -> list[torch.nn.Module]:
        return [self.reference, self.denoiser, self.pose]


class Batch(NamedTuple):
    """One step's clips: references (B, C, h, w), clean latents x0 (B, F, C, h, w), the frame before (B, C, h, w),
    weights (B, 1, 1, h, w), audio tokens (B, F, N, D), and poses: images (B, F, 3, H, W) in 0..1, or features
    (B, F, C0, h, w) where the pose encoder is frozen."""

    references: Tensor
    x0: Tensor
    before: Tensor
    weights: Tensor
    tokens: Tensor
    poses: Tensor


Given = tuple[Tensor, Tensor, Mapping[str, Tensor]]
"""Audio tokens (B, F, N, D), pose features (B, F, C0, h, w) and reference bank of a batch."""


class Trainer:
    """Makes batches of clips from sessions and the loss of the networks on them."""

    def __init__(self, maker: SessionMaker, encoder: WhisperAudioEncoder, networks: Networks) -> None:
        self.maker, self.encoder, self.networks = maker, encoder, networks
        self.device = maker.device
        alphas = make_scheduler().alphas_cumprod.to(self.device)
        self.alpha, self.sigma = alphas.sqrt(), (1 - alphas).clamp(min=0).sqrt()
        self.noise = torch.Generator(device=self.device).manual_seed(1)
        self.timestep_zero = torch.zeros(1, device=self.device)
        self.pose_features: Tensor | None = None
        self.shares = (0.4, 0.4)

    @torch.no_grad()
    def freeze_pose(self) -> None:
        """Computes the pose features of the whole bank once; from then on the pose encoder is not trained."""
        images = self.maker.bank.images
        parts = [
            self.networks.pose(rearrange(sequence, "f h w c -> f c h w").float() / 255).half() for sequence in images
        ]
        self.pose_features = torch.stack(parts)
        few = self.pose_features[:8].float()
        if few.std(dim=(0, 1)).mean() < 1e-3 * few.square().mean().sqrt() or not few.any():
            raise InputError("the pose encoder tells no pose from another; train it first, without --freeze-pose")

    @torch.no_grad()
    def audio_tokens(self, take: Tensor, place: Tensor) -> Tensor:
        """Tokens (B, F, N, D) of the clips that start at ``place`` (B,) of their takes, the sound augmented."""
        windows = self.maker.takes.windows(take, place - HISTORY_SAMPLES, WINDOW_SAMPLES)
        windows = augment(windows, self.noise)
        hidden = self.encoder(log_mel_spectrogram(windows)).float()
        batch = hidden.shape[0]
        # The batch rides in the layers' place, because the tokens of a frame are cut along positions only.
        flat = rearrange(hidden, "b p l c -> p (b l) c")
        tokens = frame_tokens(flat, CLIP_FRAMES, FPS, MARGIN, HISTORY_FRAMES)
        return rearrange(tokens, "f (p b l) c -> b f (p l) c", b=batch, l=hidden.shape[2])

    @torch.no_grad()
    def batch(self, sessions: Sessions, count: int) -> Batch:
        device = self.device
        index = torch.randint(sessions.references.shape[0], (count,), device=device)
        offset = torch.randint(1, SESSION_FRAMES - CLIP_FRAMES + 1, (count,), device=device)
        steps = torch.arange(CLIP_FRAMES, device=device)
        at = (sessions.sequence[index, None], sessions.pose_frame[index, None] + offset[:, None] + steps)
        if self.pose_features is None:
            poses = rearrange(self.maker.bank.images[at], "b f h w c -> b f c h w").float() / 255
        else:
            poses = self.pose_features[at].float()
        return Batch(
            references=sessions.references[index].float(),
            x0=sessions.frames[index[:, None], offset[:, None] + steps].float(),
            before=sessions.frames[index, offset - 1].float(),
            weights=sessions.weights[index],
            tokens=self.audio_tokens(sessions.take[index], sessions.place[index] + offset * SAMPLE_RATE // FPS),
            poses=poses,
        )

    def initial_noise(self, batch: Batch, chained: Tensor) -> Tensor:
        """(B, F, C, h, w): clamped noise, its first frame mixed with the frame before where ``chained`` (B,)."""
        noise = torch.randn_like(batch.x0).clamp(-NOISE_BOUND, NOISE_BOUND)
        mixed = INIT_LATENT_SHARE * batch.before + (1 - INIT_LATENT_SHARE) * noise[:, 0]
        first = torch.where(chained[:, None, None, None], mixed, noise[:, 0])
        return torch.cat([first[:, None], noise[:, 1:]], dim=1)

    def velocity(self, noisy: Tensor, timestep: Tensor, shift: Tensor, given: Given) -> Tensor:
        """The denoiser's v (B, F, C, h, w) for ``noisy``, whose frames enter shifted by ``shift`` (B,)."""
        tokens, pose, bank = given
        frames = torch.arange(noisy.shape[1], device=self.device)
        there = (frames + shift[:, None]) % len(frames)
        back = (frames - shift[:, None]) % len(frames)
        output = self.networks.denoiser(
            rearrange(turned(noisy, there), "b f c h w -> b c f h w"),
            timestep,
            turned(tokens, there),
            rearrange(turned(pose, there), "b f c h w -> b c f h w"),
            bank,
        )
        return turned(rearrange(output, "b c f h w -> b f c h w").float(), back)

    def condition(self, batch: Batch) -> Given:
        """Audio tokens, pose features and reference bank of a batch."""
        bank = self.networks.reference(batch.references, self.timestep_zero)
        pose = batch.poses
        if self.pose_features is None:
            pose = self.networks.pose(pose.flatten(0, 1)).unflatten(0, pose.shape[:2])
        return batch.tokens, pose, bank

    def predict(self, batch: Batch, given: Given) -> Tensor:
        """The predicted x0 (B, F, C, h, w) of every clip: the first ones from the last timestep, the next ones from
        the sampler's second step, the rest from any timestep, in the shares that the trainer was given."""
        count = batch.x0.shape[0]
        device = self.device
        first = slice(0, round(self.shares[0] * count))
        second = slice(first.stop, first.stop + round(self.shares[1] * count))
        noise = self.initial_noise(batch, torch.rand(count, device=device) < 0.7)
        third = count - second.stop
        anywhere = torch.randint(0, 1000, (third,), device=device)
        last, middle = (
            torch.full((part.stop - part.start,), step, device=device) for part, step in ((first, 999), (second, 499))
        )
        timestep = torch.cat([last, middle, anywhere])
        turns = torch.randint(0, 4, (third,), device=device) * SHIFT
        shift = torch.cat([torch.zeros_like(last), torch.full_like(middle, SHIFT), turns])
        alpha, sigma = self.alpha[timestep][:, None, None, None, None], self.sigma[timestep][:, None, None, None, None]
        tokens, pose, bank = given
        clean = batch.x0
        if len(middle):
            with torch.no_grad():
                part = (tokens[second], pose[second], {name: value[second] for name, value in bank.items()})
                own = -self.velocity(noise[second], torch.full_like(middle, 999), torch.zeros_like(middle), part)
                clean = torch.cat([batch.x0[first], own, batch.x0[second.stop :]])
        noisy = alpha * clean + sigma * noise
        predicted: Tensor = alpha * noisy - sigma * self.velocity(noisy, timestep, shift, given)
        return predicted

    def loss(self, *tensors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted error of the latents predicted for a :class:`Batch` of tensors, of their change from frame to
        frame, and of one decoded frame of each clip."""
        batch = Batch(*tensors)
        prediction = self.predict(batch, self.condition(batch))
        error = (prediction - batch.x0).square()
        latent_loss = (error * batch.weights).sum() / (batch.weights.expand_as(error)).sum()
        pick = torch.randint(CLIP_FRAMES, (batch.x0.shape[0], 1), device=self.device)
        decoder = self.maker.autoencoder
        with torch.no_grad():
            target = decoder.decode(turned(batch.x0, pick)[:, 0])
        weights = F.interpolate(batch.weights[:, 0], scale_factor=decoder.scale)
        pixels = (decoder.decode(turned(prediction, pick)[:, 0]) - target).abs() * weights
        pixel_loss = pixels.sum() / (3 * weights.sum())
        jumps = ((prediction.diff(dim=1) - batch.x0.diff(dim=1)).square() * batch.weights).sum()
        jumps = jumps / batch.weights.expand_as(error[:, 1:]).sum()
        loss = latent_loss + 4.0 * pixel_loss + 0.5 * jumps
        return loss, {"latent": latent_loss.detach(), "pixel": pixel_loss.detach(), "jump": jumps.detach()}

    @torch.no_grad()
    def sample(self, batch: Batch, chained: bool) -> Tensor:
        """Two sampler steps from noise, as the embedded model is run. Returns x0 (B, F, C, h, w)."""
        given = self.condition(batch)
        count = batch.x0.shape[0]
        flags = torch.full((count,), chained, device=self.device)
        noise = self.initial_noise(batch, flags)
        zeros = torch.zeros(count, dtype=torch.long, device=self.device)
        clean = -self.velocity(noise, zeros + 999, zeros, given)
        noisy = self.alpha[499] * clean + self.sigma[499] * noise
        predicted: Tensor = self.alpha[499] * noisy
        predicted -= self.sigma[499] * self.velocity(noisy, zeros + 499, zeros + SHIFT, given)
        return predicted


def preview(trainer: Trainer, sessions: Sessions, path: Path, clips: int = 4) -> None:
    """Writes a picture: for each of a few clips a row of drawn frames above the row that the model makes of it."""
    batch = trainer.batch(sessions, clips)
    made = trainer.sample(batch, chained=True)
    decoder = trainer.maker.autoencoder
    rows = []
    for clip in range(clips):
        for latents in (batch.x0[clip], made[clip]):
            with torch.no_grad():
                images = ((decoder.decode(latents[::2]).clamp(-1, 1) + 1) * 127.5).byte()
            rows.append(rearrange(images, "f c h w -> h (f w) c").cpu().numpy())
    Image.fromarray(np.concatenate(rows)).save(path)


def load_frozen(folder: Path, device: torch.device) -> tuple[PixelShuffleAutoencoder, WhisperAudioEncoder]:
    """The parts trained before, from ``folder``. Raises InputError."""
    autoencoder = PixelShuffleAutoencoder(AutoencoderConfig())
    restore(autoencoder, folder / "autoencoder.safetensors")
    encoder = WhisperAudioEncoder.load(folder / "audio_encoder.safetensors", NETWORKS["whisper"])
    for module in (autoencoder, encoder):
        module.to(device).eval().requires_grad_(False)
    return autoencoder, encoder


def restore(network: nn.Module, path: Path) -> None:
    """Puts the weights of a file into a network. Raises InputError unless they are all there and fit."""
    state = read_state(path)
    check(network, state, path)
    network.load_state_dict(state)


def build_networks(networks: dict[str, Any], device: torch.device) -> Networks:
    """Networks of the widths in a config.json, their weights random."""
    return Networks(
        reference=ReferenceUNet(networks["reference_unet"]).to(device),
        denoiser=DenoisingUNet(networks["denoising_unet"], networks["denoising_unet_additional"]).to(device),
        pose=PoseEncoder(networks["pose_encoder"]).to(device),
    )


FILES = {"reference": "reference_unet", "denoiser": "denoising_unet", "pose": "pose_encoder"}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="echo-rtc train talking-face", description=__doc__)
    parser.add_argument(
        "--folder", type=Path, required=True, help="has autoencoder and audio encoder; gets the networks"
    )
    parser.add_argument("--corpus", type=Path, required=True, help="file of the command speech")
    parser.add_argument("--pose-bank", type=Path, required=True, help="file of the command pose-bank")
    parser.add_argument(
        "--minutes", type=float, default=20.0, help="training time, drawing the first sessions excluded"
    )
    parser.add_argument("--sessions", type=int, default=6000, help=f"sessions of {SESSION_FRAMES} frames kept ready")
    parser.add_argument("--refresh", type=int, default=16, help="sessions redrawn at every fortieth step")
    parser.add_argument("--batch", type=int, default=48, help="clips a step")
    parser.add_argument("--size", type=int, default=256, help="side of the frames, pixels")
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--resume", action="store_true", help="go on from the networks in the folder")
    parser.add_argument("--default-share", type=float, default=0.0, help="share of sessions with the default avatar")
    parser.add_argument("--first-share", type=float, default=0.4, help="share of clips that start at the last timestep")
    parser.add_argument("--second-share", type=float, default=0.4, help="share of clips at the sampler's second step")
    parser.add_argument("--freeze-pose", action="store_true", help="keep the folder's pose encoder as it is")
    parser.add_argument("--graph", action="store_true", help="capture the step as a CUDA graph (several times faster)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    for name in ("sessions", "batch"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}; it must be at least 1")
    shares = (options.first_share, options.second_share)
    if not 0 <= options.default_share <= 1 or min(shares) < 0 or sum(shares) > 1:
        parser.error("--default-share must lie in 0 to 1, and so must --first-share plus --second-share")
    start_log()
    device = best_device(options.device)
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)

    autoencoder, encoder = load_frozen(options.folder, device)
    takes = Takes.load(options.corpus, device)
    bank = PoseBank.load(options.pose_bank, device)
    _, frames, side, *_ = bank.images.shape
    if frames < SESSION_FRAMES or side != options.size:
        raise InputError(
            f"{options.pose_bank} has sequences of {frames} frames of {side} pixels; "
            f"at least {SESSION_FRAMES} of {options.size} are needed"
        )
    if options.graph and device.type != "cuda":
        parser.error(f"--graph needs a CUDA device; this one is {device}")
    networks = build_networks(NETWORKS, device)
    for name, file in FILES.items():
        if options.resume or (options.freeze_pose and name == "pose"):
            restore(getattr(networks, name), options.folder / f"{file}.safetensors")
    for name in FILES:
        size = sum(p.numel() for p in getattr(networks, name).parameters())
        log.info("%s: %.2f million parameters", FILES[name], size / 1e6)
    maker = SessionMaker(autoencoder, takes, bank, options.size, generator)
    maker.default_share = options.default_share
    trainer = Trainer(maker, encoder, networks)
    trainer.shares = shares
    modules = networks.modules()
    if options.freeze_pose:
        modules.remove(networks.pose)
        trainer.freeze_pose()
    run = Run(modules, Schedule(options.minutes, options.learning_rate), "talking-face")

    def loss_of(*tensors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        # A captured step must not keep casts of one replay for the next.
        cuda = device.type == "cuda"
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda, cache_enabled=not options.graph):
            return trainer.loss(*tensors)

    sessions = maker.make(min(64, options.sessions))
    graphed = GraphedStep(run, trainer.batch(sessions, options.batch), loss_of) if options.graph else None
    log.info("drawing %d sessions", options.sessions)
    chunks = [sessions]
    chunks += [maker.make(min(64, options.sessions - start)) for start in range(64, options.sessions, 64)]
    sessions = Sessions(*(torch.cat([getattr(c, f) for c in chunks]) for f in Sessions.__dataclass_fields__))
    del chunks
    log.info("drawn")

    cursor = 0
    for step in run:
        if options.refresh and step % 40 == 39 and run.progress < 0.85:
            count = min(options.refresh, options.sessions - cursor)
            sessions.replace(cursor, maker.make(count))
            cursor = (cursor + count) % options.sessions
        batch = trainer.batch(sessions, options.batch)
        if graphed is not None:
            graphed(*batch)
        else:
            loss, figures = loss_of(*batch)
            run.descend(loss, **figures)

    preview(trainer, maker.make(8), options.folder / "preview.png")
    for name, file in FILES.items():
        state = {key: value.float().contiguous().cpu() for key, value in getattr(networks, name).state_dict().items()}
        save_file(state, options.folder / f"{file}.safetensors")
    (options.folder / "config.json").write_text(json.dumps(NETWORKS, indent=1) + "\n")
    return 0
