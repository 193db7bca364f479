"""How fast full-size EchoMimic-V2 is on a GPU: ``python -m echo_rtc.bench generation [settings of the model]``.

Networks of the published sizes with random weights, made on the device; no file is read but the embedded model's
reference image and poses. Speed does not depend on what the weights are. Each clip is chained to the one before, with
fresh sound, and measured from its request in memory to its planes in the host's memory. Warm-up is not counted, but
told: it is what a user waits for at the start.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from echo_rtc.bench.support.kernels import Kernel, kernels_of, parts_of
from echo_rtc.bench.support.report import report, table
from echo_rtc.clips import ClipFormat
from echo_rtc.engine.arrivals import Arrivals
from echo_rtc.errors import SettingsError
from echo_rtc.model.audio import WhisperAudioEncoder, WhisperDims
from echo_rtc.model.config import PUBLISHED
from echo_rtc.model.generator import (
    DTYPES,
    AudioEncoder,
    ClipGenerator,
    GeneratorSettings,
)
from echo_rtc.model.kl_autoencoder import KLAutoencoder
from echo_rtc.model.loading import Networks
from echo_rtc.model.options import add_flags, flags_of
from echo_rtc.model.pose_encoder import PoseEncoder
from echo_rtc.model.tiny_decoder import TinyDecoder
from echo_rtc.model.unet2d import ReferenceUNet
from echo_rtc.model.unet3d import ClipConditions, DenoisingUNet
from echo_rtc.rendering import RenderRequest

AVATAR = "bench"

_ASSETS = Path(__file__).resolve().parents[1] / "assets" / "embedded"
_WARM_UP_CLIPS = 3
_PROFILED_CLIPS, _PROFILED_RUNS = 8, 2
_LONGEST = 16
"""Kernels that are told of a profile."""
_CEILING_SIDE = 8192
_WHISPER_TINY = WhisperDims(n_mels=80, n_audio_ctx=1500, n_audio_state=384, n_audio_head=6, n_audio_layer=4)
_VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
}
"""The sizes of the published autoencoder."""


def empty_networks(part: int = 1, tiny: bool = False) -> tuple[Networks, WhisperAudioEncoder]:
    """Networks without weights, of 1 / ``part`` of the published widths; the distilled decoder only if it is wanted."""

    def narrower(section: str) -> dict[str, Any]:
        config = dict(PUBLISHED[section])
        config["block_out_channels"] = [width // part for width in config["block_out_channels"]]
        return config

    pose = PUBLISHED["pose_encoder"]
    pose = {**pose, "conditioning_embedding_channels": pose["conditioning_embedding_channels"] // part}
    vae = {**_VAE, "block_out_channels": [max(32, width // part // 32 * 32) for width in _VAE["block_out_channels"]]}
    with torch.device("meta"):
        reference = ReferenceUNet(narrower("reference_unet"))
        denoiser = DenoisingUNet(narrower("denoising_unet"), PUBLISHED["denoising_unet_additional"])
        decoder = TinyDecoder({}) if tiny else None
        networks = Networks(reference, denoiser, PoseEncoder(pose), KLAutoencoder(vae), decoder)
        return networks, WhisperAudioEncoder(_WHISPER_TINY)


def weights_gb(dtype: torch.dtype) -> float:
    """What the weights of the published sizes take (10^9 bytes)."""
    networks, audio = empty_networks()
    count = sum(value.numel() for network in _modules(networks, audio) for value in network.parameters())
    return count * dtype.itemsize / 1e9


def _modules(networks: Networks, audio: WhisperAudioEncoder) -> list[nn.Module]:
    assert isinstance(networks.autoencoder, KLAutoencoder)
    always = (networks.reference, networks.denoiser, networks.pose, networks.autoencoder, audio)
    return [*always, *([] if networks.tiny is None else [networks.tiny.vae])]


def random_networks(
    device: torch.device, dtype: torch.dtype, seed: int = 0, part: int = 1, tiny: bool = False
) -> tuple[Networks, WhisperAudioEncoder]:
    """Networks of 1 / ``part`` of the published widths with random weights, made on the device, that keep the scale of
    what passes through them: the same weights for a seed, rounded to ``dtype``."""
    networks, audio = empty_networks(part, tiny)
    generator = torch.Generator(device).manual_seed(seed)
    for network in _modules(networks, audio):
        network.to(dtype).to_empty(device=device).eval().requires_grad_(False)
        _randomise(network, generator)
        for parameter in network.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return networks, audio


@torch.no_grad()
def _randomise(network: nn.Module, generator: torch.Generator) -> None:
    for name, value in (*network.named_parameters(), *network.named_buffers()):
        drawn = torch.empty(value.shape, device=value.device)
        if value.ndim > 1:
            drawn.normal_(0.0, 1 / math.sqrt(value[0].numel()), generator=generator)
        else:
            drawn.normal_(1.0 if name.endswith("weight") else 0.0, 0.05, generator=generator)
        value.copy_(drawn)


@dataclass
class Figures:
    """What was measured of one set of settings. ``shown_s``: after how long each clip could be shown, because the rest
    of its frames came in time."""

    settings: GeneratorSettings
    start_s: float = 0.0
    clip_s: list[float] = field(default_factory=list)
    shown_s: list[float] = field(default_factory=list)
    stages_ms: list[dict[str, float]] = field(default_factory=list)
    memory_gb: float = 0.0
    tflop: float = 0.0

    @property
    def fps(self) -> float:
        return self.settings.format.clip_frames / statistics.median(self.clip_s)

    @property
    def clip_ms(self) -> float:
        return 1000 * statistics.median(self.clip_s)

    @property
    def shown_ms(self) -> float:
        return 1000 * statistics.median(self.shown_s)

    @property
    def p95_ms(self) -> float:
        return float(1000 * np.percentile(self.clip_s, 95))

    @property
    def stages(self) -> dict[str, float]:
        return {name: statistics.median(clip[name] for clip in self.stages_ms) for name in self.stages_ms[0]}


def measure(networks: Networks, audio: AudioEncoder, settings: GeneratorSettings, clips: int) -> Figures:
    """Renders ``clips`` chained clips after the warm-up and measures each."""
    figures = Figures(settings)
    begun = time.perf_counter()
    generator = _generator(networks, audio, settings)
    clip, request = settings.format, _request(settings)
    samples, noise = len(request.audio), np.random.default_rng(0)
    cuda = generator.device.type == "cuda"
    for index in range(_WARM_UP_CLIPS + clips):
        sound = noise.normal(0.0, 0.1, samples).astype(np.float32)
        request = replace(request, audio=sound)  # the poses stay: those of a speaking loop are drawn before its clips
        arrivals = Arrivals(clip, request, lambda frames: None, time.perf_counter)
        before = time.perf_counter()
        arrivals.begin()
        result = generator.generate(request, on_frames=arrivals.take)
        taken = time.perf_counter() - before
        arrivals.note(result.frames)
        request = replace(request, init_latent=result.final_latent)
        if index == _WARM_UP_CLIPS - 1:
            figures.start_s = time.perf_counter() - begun
        if index >= _WARM_UP_CLIPS:
            figures.clip_s.append(taken)
            figures.shown_s.append(arrivals.need_s)
            figures.stages_ms.append(result.stages_ms)
    if cuda:
        free, total = torch.cuda.mem_get_info(generator.device)
        figures.memory_gb = (total - free) / 1e9
    return figures


def _generator(networks: Networks, audio: AudioEncoder, settings: GeneratorSettings) -> ClipGenerator:
    generator = ClipGenerator(networks, audio, settings)
    generator.prepare_avatar(AVATAR, _ASSETS / "reference.png", _ASSETS / "poses")
    return generator


def _request(settings: GeneratorSettings) -> RenderRequest:
    """A clip of silence."""
    clip = settings.format
    samples = round(clip.history_s * clip.sample_rate) + clip.sample_of_frame(clip.clip_frames, clip.sample_rate)
    return RenderRequest(AVATAR, np.zeros(samples, np.float32), clip.clip_frames, pose_position=0, seed=0)


@dataclass(frozen=True, slots=True)
class Profile:
    """Where the time of a clip goes: the kernels of all its steps and of its decoder; and what steps and decoder take
    alone, one after the other, and at the same time in two streams of the device (ms), the most that decoding a clip
    under the first steps of the next could save."""

    steps: list[Kernel]
    decoder: list[Kernel]
    steps_ms: float
    decoder_ms: float
    in_turn_ms: float
    at_once_ms: float

    @property
    def parts(self) -> dict[str, dict[str, float]]:
        """The sums of the parts of both (ms)."""
        named = {"steps": self.steps, "decoder": self.decoder}
        return {name: {part: round(ms, 2) for part, ms in parts_of(each).items()} for name, each in named.items()}

    @property
    def facts(self) -> dict[str, object]:
        """All of it for programs; of the kernels, those that take longest."""
        return {
            "parts_ms": self.parts,
            "kernels": [
                [where, kernel.name, kernel.calls, round(kernel.ms, 3)]
                for where, each in (("steps", self.steps), ("decoder", self.decoder))
                for kernel in each[:_LONGEST]
            ],
            "steps_ms": round(self.steps_ms, 1),
            "decoder_ms": round(self.decoder_ms, 1),
            "in_turn_ms": round(self.in_turn_ms, 1),
            "at_once_ms": round(self.at_once_ms, 1),
        }


@torch.inference_mode()
def profiled(networks: Networks, audio: AudioEncoder, settings: GeneratorSettings, clips: int) -> Profile:
    """Profiles ``clips`` clips, warmed up, after as many that have the device as hot as a run of clips has it."""
    generator, beside = (_generator(networks, audio, settings) for _ in range(2))
    request, device, run = _request(settings), generator.device, settings.decode_frames or settings.format.clip_frames
    prepared = generator.prepare(request)
    given = generator.latents(request).clone()

    def steps() -> None:
        generator.latents(request, prepared)

    def decode(by: ClipGenerator = generator) -> None:
        for _ in by.images(given, run):
            pass

    def in_turn() -> None:
        steps()
        decode()

    def at_once() -> None:
        # Of its own generator, because what one generator has recorded shares memory.
        with _beside(device):
            decode(beside)
        steps()

    for each in (in_turn, at_once):
        each()
    in_turn_ms, at_once_ms, steps_ms, decoder_ms = (
        _taken_ms(each, device, clips) for each in (in_turn, at_once, steps, decode)
    )
    found = [kernels_of(each, device, min(clips, _PROFILED_RUNS)) for each in (steps, decode)]
    return Profile(found[0], found[1], steps_ms, decoder_ms, in_turn_ms, at_once_ms)


@contextmanager
def _beside(device: torch.device) -> Iterator[None]:
    """What is computed inside goes to a stream of its own, where the device has any."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        yield


def _taken_ms(compute: Callable[[], object], device: torch.device, times: int) -> float:
    """The median of so many ``times`` (ms), each until the device is done, after one that is not counted."""
    taken = []
    for _ in range(times + 1):
        begun = time.perf_counter()
        compute()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(1000 * (time.perf_counter() - begun))
    return statistics.median(taken[1:])


def count_tflop(settings: GeneratorSettings) -> float:
    """Floating-point operations (10^12) that the model's mathematics takes for one clip: products, convolutions and
    attention of all steps and of the decoder, as the plain networks compute them. Audio and colour are left out."""
    clip = settings.format
    height, width, frames = clip.height // 8, clip.width // 8, clip.clip_frames
    tokens = (4 * settings.audio_margin + 2) * (_WHISPER_TINY.n_audio_layer + 1)
    with torch.device("meta"):
        reference = ReferenceUNet(PUBLISHED["reference_unet"]).half()
        denoiser = DenoisingUNet(PUBLISHED["denoising_unet"], PUBLISHED["denoising_unet_additional"]).half()
        autoencoder = KLAutoencoder(_VAE)
        autoencoder.half()
        latents = torch.empty(1, 4, frames, height, width, dtype=torch.half)
        bank = denoiser.project_bank(reference(latents[:, :, 0]))
        audio = denoiser.project_audio(torch.empty(1, frames, tokens, 384, dtype=torch.half))
        pose = torch.empty(1, 320, frames, height, width, dtype=torch.half)
        with FlopCounterMode(display=False) as step:
            denoiser.halves(latents, 1.0, ClipConditions(audio, bank, pose), 0, settings.cfg > 1)
        with FlopCounterMode(display=False) as decode:
            autoencoder.decode(latents[0, :, :1].transpose(0, 1))
    total: int = settings.steps * step.get_total_flops() + frames * decode.get_total_flops()
    return total / 1e12


def ceiling_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """The rate (10^12 operations a second) of a large matrix product of random numbers on this card; 0 on the CPU."""
    if device.type != "cuda":
        return 0.0
    a, b = (torch.randn(_CEILING_SIDE, _CEILING_SIDE, device=device).to(dtype) for _ in range(2))
    times_ms: list[float] = []
    for _ in range(13):
        with _timed(times_ms):
            torch.mm(a, b)
    return float(2 * _CEILING_SIDE**3 / statistics.median(times_ms[3:]) / 1e9)


@contextmanager
def _timed(times_ms: list[float]) -> Iterator[None]:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    yield
    end.record()
    end.synchronize()
    times_ms.append(begin.elapsed_time(end))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="echo-rtc bench generation", description="Measures full-size generation with random weights."
    )
    parser.add_argument("--size", type=int, default=512, help="width and height [512 pixels]")
    parser.add_argument("--clip-frames", type=int, default=12, help="frames of a clip [12]")
    parser.add_argument("--clips", type=int, default=10, help="clips that are measured [10]")
    parser.add_argument("--device", default="cuda", help="device, as PyTorch names it [cuda]")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float16", help="number format [float16]")
    add_flags(parser, "dtype", "audio_model_type", "low_ram")
    parser.add_argument(
        "--sweep",
        nargs="?",
        const="all",
        choices=("all", "guided"),
        help="also measure other sizes, steps, lengths and flags, or numbers of guided steps [no]",
    )
    parser.add_argument("--profile", action="store_true", help="also tell where a clip's time goes, by kernels [no]")
    return parser


def main(argv: list[str]) -> int:
    """Prints a table of the stages, and the figures as JSON."""
    arguments = _parser().parse_args(argv)
    if arguments.clips < 1:
        raise SettingsError(f"--clips is {arguments.clips}; at least one must be measured")
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError("--device is cuda, but PyTorch sees no CUDA device; --device cpu takes minutes a clip")
    settings = GeneratorSettings(
        format=ClipFormat(width=arguments.size, height=arguments.size, clip_frames=arguments.clip_frames),
        device=arguments.device,
        **flags_of(arguments),
    )
    distilled = settings.vae == "tiny" or arguments.sweep == "all"
    networks, audio = random_networks(device, DTYPES[settings.dtype], tiny=distilled)
    figures = measure(networks, audio, settings, arguments.clips)
    figures.tflop = count_tflop(settings)
    times = figures.stages | {"whole clip": figures.clip_ms, "until it can be shown": figures.shown_ms}
    rows: list[Sequence[object]] = [(name, ms, ms / arguments.clip_frames) for name, ms in times.items()]
    result: dict[str, object] = {
        "fps": round(figures.fps, 2),
        "clip_ms": round(figures.clip_ms, 1),
        "p95_ms": round(figures.p95_ms, 1),
        "shown_ms": round(figures.shown_ms, 1),
        "stages_ms": {name: round(value, 2) for name, value in figures.stages.items()},
        "tflops": round(figures.tflop / figures.clip_ms * 1e3, 1),
        "ceiling_tflops": round(ceiling_tflops(device, DTYPES[settings.dtype]), 1),
        "memory_gb": round(figures.memory_gb, 2),
        "start_s": round(figures.start_s, 1),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "size": f"{arguments.size}x{arguments.size}",
        "steps": settings.steps,
        "cfg": settings.cfg,
        "clip_frames": arguments.clip_frames,
    }
    if arguments.profile:
        profile = profiled(networks, audio, settings, _PROFILED_CLIPS)
        sums = [(where, part, ms) for where, parts in profile.parts.items() for part, ms in parts.items()]
        sys.stdout.write(f"{table(('kernels of the', 'part', 'ms a clip'), sums)}\n\n")
        result["profile"] = profile.facts
    if arguments.sweep:
        wanted = _guided(settings) if arguments.sweep == "guided" else _sweep(settings)
        measured = [("as asked", figures)]
        for name, other in wanted:
            measured.append((name, _swept(networks, audio, other, arguments.clips)))
            sys.stderr.write(f"{name}: {measured[-1][1].fps:.1f} frames/s\n")
        sys.stdout.write(f"{_sweep_table(measured)}\n\n")
        result["sweep"] = {name: round(each.fps, 2) for name, each in measured}
    report(("stage", "ms a clip", "ms a frame"), rows, result)
    return 0


def _guided(asked: GeneratorSettings) -> Iterator[tuple[str, GeneratorSettings]]:
    """Fewer and fewer guided steps, without and with eight bits."""
    for eight_bits in (False, True):
        for guided in (None, *range(asked.steps // 2, -1, -1)):
            name = "all steps guided" if guided is None else f"{guided} of {asked.steps} steps guided"
            yield f"{name}{', fp8' * eight_bits}", replace(asked, quantize_fp8=eight_bits, guided_steps=guided)


def _sweep(asked: GeneratorSettings) -> Iterator[tuple[str, GeneratorSettings]]:
    """What differs from the settings that were asked for, in words, and the settings."""
    clip = asked.format
    yield "cfg 1.0", replace(asked, cfg=1.0)
    yield "fp8", replace(asked, quantize_fp8=True)
    yield "fp8, cfg 1.0", replace(asked, quantize_fp8=True, cfg=1.0)
    yield "tiny decoder", replace(asked, vae="tiny")
    yield "fp8, tiny decoder", replace(asked, quantize_fp8=True, vae="tiny")
    yield "fp8, tiny decoder, cfg 1.0", replace(asked, quantize_fp8=True, vae="tiny", cfg=1.0)
    yield "decoded 2 frames at a time", replace(asked, decode_frames=2)
    yield "decoded whole", replace(asked, decode_frames=0)
    yield "4 steps", replace(asked, steps=4)
    for frames in (6, 18, 24):
        yield f"clips of {frames} frames", replace(asked, format=replace(clip, clip_frames=frames))
    large = replace(clip, width=768, height=768)
    yield "768 x 768, cfg 1.0", replace(asked, format=large, cfg=1.0)
    yield "768 x 768, cfg 1.0, fp8", replace(asked, format=large, cfg=1.0, quantize_fp8=True)
    yield "768 x 768", replace(asked, format=large)
    yield "no graphs", replace(asked, cuda_graphs=False)
    yield "PyTorch's kernels", replace(asked, kernels="torch")
    yield "PyTorch's kernels, no graphs", replace(asked, kernels="torch", cuda_graphs=False, attention="sdpa")


def _swept(networks: Networks, audio: WhisperAudioEncoder, settings: GeneratorSettings, clips: int) -> Figures:
    """Measured like the others, in memory that those before have given back."""
    gc.collect()
    if torch.device(settings.device).type == "cuda":
        torch.cuda.empty_cache()
    return measure(networks, audio, settings, clips)


def _sweep_table(measured: Sequence[tuple[str, Figures]]) -> str:
    rows = [
        (
            *(name, each.fps, each.clip_ms, each.p95_ms, each.shown_ms),
            *(each.stages["denoise"], each.stages["decode"], each.memory_gb),
        )
        for name, each in measured
    ]
    return table(("changed", "fps", "clip ms", "p95 ms", "shown ms", "denoise ms", "decode ms", "memory GB"), rows)
