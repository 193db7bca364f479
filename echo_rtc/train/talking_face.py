"""Trains the embedded model's networks: ``echo-rtc train talking-face``.

Reference UNet, denoising UNet and pose encoder are trained together on rendered people who speak; the audio encoder is
frozen. The diffusion is the published one, but starts at an early timestep from the latents of the reference, and takes
a single step: the networks only have to say what differs from the reference.

Each place of a batch is a stream: it goes through a take clip by clip, and each clip starts from the last latent that
the networks themselves made of the one before, as live. Two stages follow each other, each with its own time:

- ``latents``: weighted errors of latents, of their change from frame to frame, and of a decoded frame;
- ``pixels``: the decoder is trained along, on what the networks make, with edge terms and an adversary.

Runs on all GPUs under ``torchrun``; each rank trains on takes of its own.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor, nn

from echo_rtc.errors import InputError
from echo_rtc.model.audio import WhisperAudioEncoder, frame_tokens, log_mel_spectrogram
from echo_rtc.model.autoencoder import PixelShuffleAutoencoder
from echo_rtc.model.compiled import compile_layers
from echo_rtc.model.pose_encoder import PoseEncoder
from echo_rtc.model.sampler import signal_shares
from echo_rtc.model.unet2d import ReferenceUNet
from echo_rtc.model.unet3d import DenoisingUNet
from echo_rtc.model.weights import check, read_state
from echo_rtc.train import sheets
from echo_rtc.train.augment import augment
from echo_rtc.train.autoencoder import write as write_autoencoder
from echo_rtc.train.budget import Budget, load_checkpoint, save_checkpoint
from echo_rtc.train.flat import FlatParameters
from echo_rtc.train.footage import Footage, box_weights
from echo_rtc.train.loop import Schedule, start_log
from echo_rtc.train.pixels import Adversary, Discriminator, picture_loss, weighted
from echo_rtc.train.ranks import Ranks
from echo_rtc.train.recipe import (
    AUTOENCODER,
    CLIP_FRAMES,
    FPS,
    HISTORY_FRAMES,
    MARGIN,
    NETWORKS,
    START_TIMESTEP,
    WINDOW_SAMPLES,
)

log = logging.getLogger(__name__)

COLD_SHARE = 0.3
"""Share of streams that begin without a clip before them, from the reference."""

PICTURE_SHARE = 10.0
"""Weight of the decoded frame's error in the stage ``latents``, whose latents' error is about 5."""

PIXEL_FRAMES = 2
"""Frames of each clip that are compared as pictures in a step of the stage ``pixels``."""

FILES = {"reference": "reference_unet", "denoiser": "denoising_unet", "pose": "pose_encoder"}


@dataclass
class Networks:
    """What is trained, and the autoencoder whose decoder is trained along at last."""

    reference: ReferenceUNet
    denoiser: DenoisingUNet
    pose: PoseEncoder
    autoencoder: PixelShuffleAutoencoder

    def modules(self) -> list[nn.Module]:
        """What both stages train."""
        return [self.reference, self.pose, self.denoiser]

    def compile(self) -> None:
        """Marks all of them to be compiled when they are first used: a third less time a step, for minutes of compiling
        at the start."""
        for network in (self.reference, self.denoiser):
            compile_layers(network)
        for module in (self.pose, self.autoencoder.decoder):
            module.compile(dynamic=False)


class Batch(NamedTuple):
    """One step's clips: ``references`` (B, C, h, w), clean latents ``x0`` (B, F, C, h, w), the last latents before
    them as they are (``before``) and as the networks made them (``own``), (B, C, h, w), cell ``weights`` (B, F, 1, h,
    w), audio ``tokens`` (B, F, N, D), ``poses`` (B, F, 3, P, P) uint8, and whether a clip is ``cold`` (B,): it has
    none before it."""

    references: Tensor
    x0: Tensor
    before: Tensor
    own: Tensor
    weights: Tensor
    tokens: Tensor
    poses: Tensor
    cold: Tensor


class Streams:
    """B streams through the takes of some footage; all state is on the device and nothing waits for it."""

    def __init__(self, footage: Footage, count: int, generator: torch.Generator) -> None:
        self.footage, self.count, self.generator = footage, count, generator
        device = footage.first.device
        self.take = torch.randint(len(footage.first), (count,), generator=generator, device=device)
        spread = torch.rand(count, generator=generator, device=device)
        self.frame = (spread * (footage.length[self.take] - CLIP_FRAMES).clamp(min=1)).long()
        self.cold = torch.rand(count, generator=generator, device=device) < COLD_SHARE
        self.own = self._true_before()

    def _true_before(self) -> Tensor:
        """The latents of the frames before, or of the references where there is none or the stream begins cold."""
        footage = self.footage
        earlier = footage.latents[(footage.first[self.take] + self.frame - 1).clamp(min=0)].float()
        cold = (self.cold | (self.frame == 0))[:, None, None, None]
        return torch.where(cold, footage.reference_latents[self.take].float(), earlier)

    def advance(self, last: Tensor) -> None:
        """Goes on by a clip; ``last`` (B, C, h, w) is what the networks made of its last frame. Streams at the end of
        their take begin another."""
        footage, device, generator = self.footage, self.frame.device, self.generator
        self.frame = self.frame + CLIP_FRAMES
        over = self.frame + CLIP_FRAMES > footage.length[self.take]
        fresh = torch.randint(len(footage.first), (self.count,), generator=generator, device=device)
        place = torch.randint(CLIP_FRAMES, (self.count,), generator=generator, device=device)
        self.take = torch.where(over, fresh, self.take)
        self.frame = torch.where(over, place, self.frame)
        self.cold = over & (torch.rand(self.count, generator=generator, device=device) < COLD_SHARE)
        self.own = torch.where(over[:, None, None, None], self._true_before(), last.float())

    def state(self) -> dict[str, Tensor]:
        """Where all streams are."""
        return {
            "take": self.take,
            "frame": self.frame,
            "cold": self.cold,
            "own": self.own,
            "generator": self.generator.get_state(),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The reverse of :meth:`state`."""
        self.take, self.frame, self.cold, self.own = (state[key] for key in ("take", "frame", "cold", "own"))
        self.generator.set_state(state["generator"].cpu())

    @property
    def index(self) -> Tensor:
        """Numbers (B, F) of the present clips' frames in the footage."""
        first = self.footage.first[self.take] + self.frame
        return first[:, None] + torch.arange(CLIP_FRAMES, device=first.device)


class Trainer:
    """Batches, predictions and losses."""

    def __init__(self, networks: Networks, encoder: WhisperAudioEncoder, device: torch.device) -> None:
        self.networks, self.encoder, self.device = networks, encoder, device
        alpha = signal_shares()[START_TIMESTEP]
        self.alpha, self.sigma = float(alpha.sqrt()), float((1 - alpha).sqrt())
        self.timestep = torch.full((1,), float(START_TIMESTEP), device=device)
        self.zero = torch.zeros(1, device=device)
        self.noise = torch.Generator(device=device)

    @torch.no_grad()
    def audio_tokens(self, windows: Tensor) -> Tensor:
        """Tokens (B, F, N, D) of the clips at the end of sound (B, WINDOW_SAMPLES)."""
        hidden = self.encoder(log_mel_spectrogram(windows)).float()
        batch = hidden.shape[0]
        # The batch rides in the layers' place, because the tokens of a frame are cut along positions only.
        flat = hidden.permute(1, 0, 2, 3).flatten(1, 2)
        tokens = frame_tokens(flat, CLIP_FRAMES, FPS, MARGIN, HISTORY_FRAMES)  # (F, n * B * L, D)
        return rearrange(tokens, "f (p b l) c -> b f (p l) c", b=batch, l=hidden.shape[2])

    @torch.no_grad()
    def batch(self, streams: Streams, augmented: bool = True) -> Batch:
        footage, index = streams.footage, streams.index
        windows = footage.windows(streams.take, streams.frame, WINDOW_SAMPLES)
        if augmented:
            windows = augment(windows, self.noise)
        boxes = footage.boxes[index].flatten(0, 1)
        weights = box_weights(boxes, (footage.latents.shape[-2], footage.latents.shape[-1]))
        return Batch(
            references=footage.reference_latents[streams.take].float(),
            x0=footage.latents[index].float(),
            before=footage.latents[(index[:, 0] - 1).clamp(min=0)].float(),
            own=streams.own,
            weights=weights.view(*index.shape, *weights.shape[1:]),
            tokens=self.audio_tokens(windows),
            poses=footage.poses[index],
            cold=streams.cold | (streams.frame == 0),
        )

    def predict(self, batch: Batch) -> Tensor:
        """The clips' latents (B, F, C, h, w)."""
        bank = self.networks.reference(batch.references, self.zero)
        pose = self.networks.pose(batch.poses.flatten(0, 1).float() / 255).unflatten(0, batch.poses.shape[:2])
        start = torch.cat([batch.own[:, None], batch.references[:, None].expand(-1, CLIP_FRAMES - 1, -1, -1, -1)], 1)
        velocity = self.networks.denoiser(
            start.transpose(1, 2), self.timestep, batch.tokens, pose.transpose(1, 2), bank
        )
        made: Tensor = self.alpha * start - self.sigma * velocity.transpose(1, 2).float()
        return made

    def latent_loss(self, *tensors: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Loss, figures and prediction for a :class:`Batch` of tensors."""
        batch = Batch(*tensors)
        made = self.predict(batch)
        latent, change, join = self.errors(batch, made)
        pick = torch.randint(CLIP_FRAMES, (len(made), 1, 1, 1, 1), device=self.device)
        decoder = self.networks.autoencoder
        some, true, where = (
            x.take_along_dim(pick.expand(-1, 1, *x.shape[2:]), dim=1)[:, 0] for x in (made, batch.x0, batch.weights)
        )
        with torch.no_grad():
            wanted = decoder.decode(true).float()
        where = F.interpolate(where, scale_factor=decoder.scale)
        picture, pixels = picture_loss(decoder.decode(some).float(), wanted, where, edges=0.5)
        loss = latent + 0.5 * change + 0.5 * join + PICTURE_SHARE * picture
        figures = {"latent": latent, "change": change, "join": join, "pixel": pixels}
        return loss, {name: value.detach() for name, value in figures.items()}, made.detach()

    def errors(self, batch: Batch, made: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted errors of latents, of their change from frame to frame, and of that from the last clip's own last
        frame, which is nothing for cold clips."""
        error = made - batch.x0
        cells = batch.weights.expand_as(error)
        latent = (error.square() * cells).sum() / cells.sum()
        between = (made.diff(dim=1) - batch.x0.diff(dim=1)).square()
        change = (between * cells[:, 1:]).sum() / cells[:, 1:].sum()
        wanted = batch.x0[:, 0] - batch.before
        join = (made[:, 0] - batch.own - wanted).square()
        return latent, change, weighted(join, batch.weights[:, 0] * (~batch.cold)[:, None, None, None])


class PixelStep:
    """Forward and backward pass of a step of the stage ``pixels``; gradients are left in the parameters' own."""

    def __init__(self, trainer: Trainer, adversary: Adversary, latent_share: float) -> None:
        self.trainer, self.adversary, self.latent_share = trainer, adversary, latent_share

    def inputs(self, streams: Streams, strength: float) -> tuple[Tensor, ...]:
        """The batch's tensors; which frames of each clip are looked at as pictures (B, n), these pictures, their
        weights, and how much the adversary counts."""
        batch, index = self.trainer.batch(streams), streams.index
        footage, device = streams.footage, index.device
        pick = torch.rand(index.shape, generator=streams.generator, device=device).topk(PIXEL_FRAMES, dim=1).indices
        numbers = index.gather(1, pick).flatten()
        wanted = footage.frames[numbers].float() / 127.5 - 1
        weights = box_weights(footage.boxes[numbers], (wanted.shape[-2], wanted.shape[-1]))
        return (*batch, pick, wanted, weights, torch.tensor(strength, device=device))

    def __call__(self, *tensors: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Figures and the latents made (B, F, C, h, w)."""
        batch = Batch(*tensors[: len(Batch._fields)])
        pick, wanted, weights, strength = tensors[len(Batch._fields) :]
        cuda = wanted.is_cuda
        with torch.autocast(wanted.device.type, torch.bfloat16, enabled=cuda, cache_enabled=False):
            made = self.trainer.predict(batch)
            chosen = made.take_along_dim(pick[:, :, None, None, None], dim=1).flatten(0, 1)
            decoded = self.trainer.networks.autoencoder.decode(chosen)
        output = decoded.detach().float().requires_grad_(True)
        loss, pixels = picture_loss(output, wanted, weights)
        (gradient,) = torch.autograd.grad(loss, output)
        gradient = gradient + strength * self.adversary.gradient(output, wanted, weights, gradient, 1.0)
        latent, change, join = self.trainer.errors(batch, made)
        total = self.latent_share * (latent + 0.5 * change + 0.5 * join)
        torch.autograd.backward([decoded, total], [gradient.to(decoded.dtype), None])
        verdict = self.adversary.learn(output.detach(), wanted)
        figures = {"pixel": pixels, "latent": latent, "join": join, "judge": verdict}
        return {name: value.detach() for name, value in figures.items()}, made.detach()


def load_frozen(folder: Path, device: torch.device) -> tuple[PixelShuffleAutoencoder, WhisperAudioEncoder]:
    """The parts trained before, from ``folder``. Raises InputError."""
    autoencoder = PixelShuffleAutoencoder(AUTOENCODER)
    restore(autoencoder, folder / "autoencoder.safetensors")
    encoder = WhisperAudioEncoder.load(folder / "audio_encoder.safetensors", NETWORKS["whisper"])
    for module in (autoencoder, encoder):
        module.to(device).eval().requires_grad_(False)
    return autoencoder, encoder


def restore(network: nn.Module, path: Path) -> None:
    """Puts the weights of a file into a network. Raises InputError unless they are all there and fit."""
    state = {name: value.float() for name, value in read_state(path).items()}
    check(network, state, path)
    network.load_state_dict(state)


def build_networks(autoencoder: PixelShuffleAutoencoder, device: torch.device) -> Networks:
    """Networks of the recipe's widths, their weights random."""
    return Networks(
        reference=ReferenceUNet(NETWORKS["reference_unet"]).to(device),
        denoiser=DenoisingUNet(NETWORKS["denoising_unet"], NETWORKS["denoising_unet_additional"]).to(device),
        pose=PoseEncoder(NETWORKS["pose_encoder"]).to(device),
        autoencoder=autoencoder,
    )


def write_networks(networks: Networks, folder: Path, autoencoder: bool) -> None:
    """The weights as files, each whole or not at all; the autoencoder's too where it was trained along."""
    for name, file in FILES.items():
        state = {key: value.float().contiguous().cpu() for key, value in getattr(networks, name).state_dict().items()}
        path = folder / f"{file}.safetensors"
        save_file(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    if autoencoder:
        write_autoencoder(networks.autoencoder, folder)
    (folder / "config.json").write_text(json.dumps(NETWORKS, indent=1) + "\n")


StepOf = Callable[..., tuple[dict[str, Tensor], Tensor]]


class GraphedGradient:
    """Forward and backward pass of one step, captured as one CUDA graph: gradients are left in the parameters' own.

    Small networks are bound by the time that launching their thousands of kernels takes; a graph launches them at
    once. ``step`` is called with tensors of the shapes of ``inputs`` and must neither synchronise nor copy from the
    host nor draw from a generator other than the device's own.
    """

    def __init__(self, flat: Sequence[FlatParameters], inputs: Sequence[Tensor], step: StepOf) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step(*self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.figures, self.made = step(*self.inputs)
        for parameters in flat:
            parameters.gradient.zero_()

    def __call__(self, *inputs: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Figures and prediction of one step on fresh ``inputs``; both are overwritten by the next."""
        for own, fresh in zip(self.inputs, inputs, strict=True):
            own.copy_(fresh)
        self.graph.replay()
        return self.figures, self.made


class Training:
    """Both stages on one rank."""

    def __init__(self, options: argparse.Namespace, ranks: Ranks) -> None:
        self.options, self.ranks, self.folder = options, ranks, options.folder
        autoencoder, encoder = load_frozen(self.folder, ranks.device)
        self.networks = build_networks(autoencoder, ranks.device)
        if options.go_on:
            for name, file in FILES.items():
                restore(getattr(self.networks, name), self.folder / f"{file}.safetensors")
        if ranks.device.type == "cuda" and not options.no_compile:
            self.networks.compile()
        self.trainer = Trainer(self.networks, encoder, ranks.device)
        self.trainer.noise.manual_seed(options.seed + 7919 * ranks.rank)
        paths = sorted(path for folder in options.takes for path in folder.glob("*.npz"))
        mine = paths[ranks.rank :: ranks.count][: options.most]
        self.footage = Footage.load(mine, ranks.device, threads=8)
        self.footage.encode(autoencoder.encode)
        self.held = None
        if ranks.first and options.held_out is not None:
            self.held = Footage.load(sorted(options.held_out.glob("*.npz"))[:8], ranks.device)
            self.held.encode(autoencoder.encode)
        generator = torch.Generator(device=ranks.device).manual_seed(options.seed + ranks.rank)
        self.streams = Streams(self.footage, options.batch, generator)
        log.info("%d takes of %d frames", len(self.footage.first), len(self.footage.frames))

    @property
    def graphs(self) -> bool:
        """Whether steps are captured."""
        return self.ranks.device.type == "cuda" and not self.options.no_graph

    def autocast(self, graphed: bool = False) -> torch.autocast:
        cuda = self.ranks.device.type == "cuda"
        return torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=cuda, cache_enabled=not graphed)

    def latents(self) -> bool:
        """The first stage; whether all of its time is over."""
        options, ranks, trainer = self.options, self.ranks, self.trainer
        parameters = FlatParameters(self.networks.modules())
        ranks.share_(parameters.value.data)
        parameters.average.copy_(parameters.value.data)

        def step(*tensors: Tensor) -> tuple[dict[str, Tensor], Tensor]:
            # A captured step must not keep casts of one replay for the next.
            with self.autocast(graphed=True):
                loss, figures, made = trainer.latent_loss(*tensors)
            loss.backward()  # type: ignore[no-untyped-call]
            return figures, made

        if self.graphs:
            step = GraphedGradient([parameters], trainer.batch(self.streams), step)

        def keep() -> None:
            self._keep(budget, self.streams, {"parameters": parameters})

        minutes = options.minutes
        if options.until is not None:
            minutes = ranks.agree(max(0.1, (options.until - time.time()) / 60))
        schedule = Schedule(minutes, options.learning_rate, piece_minutes=options.piece_minutes)
        budget = Budget("latents", ranks, schedule, keep, options.save_s)
        if options.resume:
            self._take_up(budget, self.streams, {"parameters": parameters})
        for _ in budget:
            figures, made = step(*trainer.batch(self.streams))
            self.streams.advance(made[:, -1])
            ranks.mean_(parameters.gradient)
            parameters.step(budget.rate)
            budget.figures = figures
        parameters.take_average()
        return budget.over

    def pixels(self) -> bool:
        """The second stage, shorter and with a lower rate; whether all of its time is over."""
        options, ranks, trainer, networks = self.options, self.ranks, self.trainer, self.networks
        decoder = networks.autoencoder.decoder.requires_grad_(True)
        parameters = FlatParameters([*networks.modules(), decoder], decay=0.998)
        discriminator = Discriminator().to(ranks.device)
        judge = FlatParameters([discriminator], betas=(0.5, 0.95))
        for flat in (parameters, judge):
            ranks.share_(flat.value.data)
            flat.average.copy_(flat.value.data)
        # Stronger than for the autoencoder: what the networks cannot know is blurred by the other errors.
        adversary = Adversary(discriminator, adversarial=0.5, features=0.8)
        trained = {"parameters": parameters, "judge": judge}
        streams = Streams(self.footage, options.pixel_batch, self.streams.generator)

        def keep() -> None:
            self._keep(budget, streams, trained)

        schedule = Schedule(options.pixel_minutes, options.pixel_rate, piece_minutes=options.piece_minutes)
        budget = Budget("pixels", ranks, schedule, keep, options.save_s)
        if options.resume:
            self._take_up(budget, streams, trained)
        pixel_step = PixelStep(trainer, adversary, options.latent_share)
        forward: StepOf = pixel_step
        if self.graphs:
            forward = GraphedGradient([parameters, judge], pixel_step.inputs(streams, 0.0), pixel_step)
        for step in budget:
            # The adversary learns alone at first; then the networks follow it over a ramp.
            strength = min(1.0, max(0.0, (step - 100) / 300))
            figures, made = forward(*pixel_step.inputs(streams, strength))
            streams.advance(made[:, -1])
            for flat, rate in ((parameters, budget.rate), (judge, 3e-4)):
                ranks.mean_(flat.gradient)
                flat.step(rate)
            budget.figures = figures
        parameters.take_average()
        return budget.over

    def _keep(self, budget: Budget, streams: Streams, trained: Mapping[str, FlatParameters]) -> None:
        """Checkpoint, weights and contact sheet of a stage."""
        parts: dict[str, Any] = {"streams": streams.state(), "noise": self.trainer.noise.get_state()}
        if self.ranks.first:
            parts |= {name: flat.state() for name, flat in trained.items()}
        save_checkpoint(self.folder, budget.name, budget, parts)
        if not self.ranks.first:
            return
        with trained["parameters"].averaged():
            write_networks(self.networks, self.folder, autoencoder=budget.name == "pixels")
            for name, footage in (("known", self.footage), ("held-out", self.held)):
                if footage is not None:
                    self.sheet(footage, self.folder / f"{budget.name}-{name}.jpg")

    def _take_up(self, budget: Budget, streams: Streams, trained: Mapping[str, FlatParameters]) -> None:
        """Goes on from the stage's checkpoint, if there is one."""
        if not (self.folder / f"{budget.name}-0.checkpoint").exists():
            return
        parts = load_checkpoint(self.folder, budget.name, budget)
        for name, flat in trained.items():
            flat.restore(parts[name])
        streams.restore(parts["streams"])
        self.trainer.noise.set_state(parts["noise"].cpu())

    @torch.no_grad()
    def sheet(self, footage: Footage, path: Path) -> None:
        """A picture of what the model makes of the first takes, from a cold start on, beside the truth."""
        rows = min(3, len(footage.first))
        clips = min(4, int(footage.length[:rows].min()) // CLIP_FRAMES)
        made = self.play(footage, torch.arange(rows, device=self.ranks.device), clips)
        for take in range(rows):
            first = int(footage.first[take])
            true = footage.frames[first : first + made.shape[1]].cpu()
            sheets.compare(
                true, made[take].cpu(), footage.references[take].cpu(), path.with_stem(f"{path.stem}-{take}")
            )

    @torch.no_grad()
    def play(self, footage: Footage, takes: Tensor, clips: int) -> Tensor:
        """What the model shows of ``takes`` (B,) from their beginnings: (B, 12 * clips, 3, S, S) uint8."""
        streams = Streams(footage, len(takes), torch.Generator(device=self.ranks.device).manual_seed(0))
        streams.take, streams.frame = takes, torch.zeros_like(takes)
        streams.cold = torch.ones_like(takes, dtype=torch.bool)
        streams.own = footage.reference_latents[takes].float()
        parts, trainer = [], self.trainer
        for _ in range(clips):
            # Compiling for another number of clips would take longer than all that is looked at here.
            with torch.compiler.set_stance("force_eager"), self.autocast():
                made = trainer.predict(trainer.batch(streams, augmented=False))
                pictures = self.networks.autoencoder.decode(made.flatten(0, 1)).float()
            parts.append(
                ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().view(*made.shape[:2], *pictures.shape[1:])
            )
            streams.frame, streams.own = streams.frame + CLIP_FRAMES, made[:, -1]
            streams.cold = torch.zeros_like(streams.cold)
        return torch.cat(parts, dim=1)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="echo-rtc train talking-face", description=__doc__)
    parser.add_argument(
        "--folder", type=Path, required=True, help="has autoencoder and audio encoder; gets networks and checkpoints"
    )
    parser.add_argument("--takes", type=Path, nargs="+", required=True, help="folders of rendered takes")
    parser.add_argument("--held-out", type=Path, help="folder of takes of other people, for the contact sheets")
    parser.add_argument("--stages", nargs="+", choices=("latents", "pixels"), default=["latents", "pixels"])
    parser.add_argument("--minutes", type=float, default=8.0, help="time of the stage latents")
    parser.add_argument("--until", type=float, help="in place of --minutes: when to end, seconds since 1970")
    parser.add_argument("--piece-minutes", type=float, default=math.inf, help="end after this part of the time")
    parser.add_argument("--pixel-minutes", type=float, default=4.0, help="time of the stage pixels")
    parser.add_argument("--batch", type=int, default=24, help="streams on each GPU, stage latents")
    parser.add_argument("--pixel-batch", type=int, default=24, help="streams on each GPU, stage pixels")
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument("--pixel-rate", type=float, default=3e-4)
    parser.add_argument("--latent-share", type=float, default=0.05, help="weight of the latents' errors, stage pixels")
    parser.add_argument("--most", type=int, default=400, help="takes kept on each GPU")
    parser.add_argument("--save-s", type=float, default=90.0, help="seconds between two checkpoints")
    parser.add_argument("--no-compile", action="store_true", help="run PyTorch's kernels in place of compiled layers")
    parser.add_argument("--no-graph", action="store_true", help="launch each kernel instead of replaying CUDA graphs")
    parser.add_argument("--go-on", action="store_true", help="begin with the networks in the folder")
    parser.add_argument("--resume", action="store_true", help="go on from the stages' checkpoints, exactly")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    for name in ("batch", "pixel_batch", "most"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be at least 1")
    start_log()
    ranks = Ranks.join(options.device)
    torch.manual_seed(options.seed + ranks.rank)
    if ranks.device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if not any(folder.is_dir() for folder in options.takes):
        raise InputError(f"the folder {options.takes[0]} does not exist; render takes first")
    training = Training(options, ranks)
    for stage in options.stages:
        if not getattr(training, stage)():
            log.info("%s: this piece is over; go on with --resume", stage)
            break
    ranks.leave()
    return 0
