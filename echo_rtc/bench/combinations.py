"""Compares every way to compute the model with the slowest: ``python -m echo_rtc.bench combinations [FOLDER]``.

FOLDER holds ``pretrained_weights/`` in the published layout, with ``config.json`` beside it: the tests' miniature, or
the real thing. Without it the networks have random weights: of a tenth of the published widths, or with ``--full-size``
of all of them. The slowest way is the plain networks in float32, one kernel at a time. Each other one renders the same
clip from the same request, and decodes the same latents; the relative error is the Euclidean norm of the difference
over that of the slowest way's result, PSNR and SSIM are those of its own pictures. What is lossless must stay within
the tolerance in float32, and in half precision within twice what the plain networks lose to half precision; what is
lossy is only told.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echo_rtc.bench.generation import random_networks, weights_gb
from echo_rtc.bench.parity import TOLERANCE, relative_error
from echo_rtc.bench.support.pictures import luma, psnr, ssim
from echo_rtc.bench.support.report import report
from echo_rtc.clips import ClipFormat
from echo_rtc.errors import SettingsError, first_line
from echo_rtc.model.description import ModelDescription
from echo_rtc.model.generator import DTYPES, ClipGenerator, GeneratorSettings
from echo_rtc.model.kernels import launch
from echo_rtc.model.options import INTEGERS
from echo_rtc.model.quantised import ADA, HOPPER
from echo_rtc.rendering import RenderRequest

AVATAR = "bench"

_ASSETS = Path(__file__).resolve().parents[1] / "assets" / "embedded"
REDUCED = 10
"""Without a folder and --full-size, widths are a part of so many of the published ones."""

FULL_SIZE_GB = 20
"""Weights in float32, their fused form, and what a clip of 12 frames at 512 x 512 takes."""

_SLACK = 2.0
_LEAST = 1e-3
"""Times, and at least how much, half precision may lose of what the plain networks lose to it."""


@dataclass(frozen=True, slots=True)
class Combination:
    """One way to compute: its name, the settings, and whether it changes the picture on purpose."""

    name: str
    settings: GeneratorSettings
    lossy: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """The relative errors of a combination: of the final latents, and of images of the same latents. ``psnr_db`` and
    ``ssim``: of the pictures of its own latents.

    ``allowed`` is the most that either error may be; None where nothing is promised. ``why``: why it could not be
    computed here; its errors are not a number then.
    """

    combination: Combination
    latents: float
    images: float
    allowed: float | None
    psnr_db: float = math.inf
    ssim: float = 1.0
    why: str = ""

    @property
    def passed(self) -> bool:
        worst = max(self.latents, self.images)
        return bool(np.isfinite(worst)) and (self.allowed is None or worst <= self.allowed)


def combinations(slowest: GeneratorSettings, compiled: bool) -> list[Combination]:
    """All ways that this machine has, those of half precision's plain networks first among theirs."""
    if torch.device(slowest.device).type != "cuda":
        found = [
            Combination("bfloat16", replace(slowest, dtype="bfloat16")),
            Combination("int8", replace(slowest, dtype=INTEGERS), lossy=True),
        ]
        if compiled:
            found.append(Combination("float32, compiled", replace(slowest, compile_unet=True)))
        return found
    found = []
    ours = ("sdpa", "auto", *(("xformers",) if find_spec("xformers") else ()))
    attentions: dict[str, tuple[str, ...]] = {
        "torch": ("sdpa",),
        "triton": ours,
    }  # the plain networks have PyTorch's attention
    for dtype in ("float32", "float16"):
        for kernels in ("torch", "triton") if launch.AVAILABLE else ("torch",):
            for graphs in (False, True):
                for attention in attentions[kernels]:
                    changes: dict[str, Any] = {
                        "dtype": dtype,
                        "kernels": kernels,
                        "cuda_graphs": graphs,
                        "attention": attention,
                    }
                    name = f"{dtype}, {kernels} kernels, {attention} attention{', graphs' if graphs else ''}"
                    found.append(Combination(name, replace(slowest, **changes)))
        if compiled:
            changes = {"dtype": dtype, "kernels": "auto", "cuda_graphs": True, "compile_unet": True}
            found.append(Combination(f"{dtype}, compiled, graphs", replace(slowest, **changes)))
    half = replace(slowest, dtype="float16", cuda_graphs=True, attention="auto", kernels="auto", quantize_fp8=True)
    capability = torch.cuda.get_device_capability(slowest.device)
    if launch.AVAILABLE and capability >= HOPPER:
        found.append(Combination("float16, triton kernels, graphs, fp8", half, lossy=True))
    if find_spec("torchao") and capability >= ADA:
        for mode in ("dynamic", "weight-only"):
            settings = replace(half, kernels="torch", quantize_fp8_mode=mode)
            found.append(Combination(f"float16, torch kernels, graphs, fp8 {mode}", settings, lossy=True))
    return found


Make = Callable[[GeneratorSettings], ClipGenerator]
"""Makes the generator of these settings. Raises InputError or SettingsError."""


def from_folder(folder: Path) -> Make:
    """Generators with the weights of a folder. Raises InputError or SettingsError."""
    description = ModelDescription.from_mapping({"weights": str(folder / "pretrained_weights")}, Path())
    return lambda settings: ClipGenerator.load(description, settings, lambda _: None)


def random_weights(part: int) -> Make:
    """Generators with the same random weights, of 1 / ``part`` of the published widths."""

    def make(settings: GeneratorSettings) -> ClipGenerator:
        device, tiny = torch.device(settings.device), settings.vae == "tiny"
        networks, audio = random_networks(device, DTYPES[settings.dtype], part=part, tiny=tiny)
        return ClipGenerator(networks, audio, settings)

    return make


def compare(make: Make, slowest: GeneratorSettings, wanted: Sequence[Combination]) -> Iterator[Outcome]:
    """Computes the wanted combinations and compares each with the slowest. Raises InputError or SettingsError."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    latents, images, _ = _render(make, slowest)
    expected = luma(images)
    plain = 0.0
    for combination in wanted:
        try:
            ours = _render(make, combination.settings, latents)
        except Exception as error:  # whatever a library raises that cannot do it here; the others can
            failed = Outcome(combination, math.nan, math.nan, None, math.nan, math.nan, first_line(error))
            sys.stderr.write(f"{combination.name}: {failed.why}\n")
            yield failed
            continue
        errors = relative_error(ours[0], latents), relative_error(ours[1], images)
        pictures = luma(ours[2])
        half = combination.settings.dtype != "float32"
        if half and not plain:
            plain = max(errors)
        allowed = max(_SLACK * plain, _LEAST) if half else TOLERANCE
        likeness = psnr(pictures, expected), ssim(pictures, expected)
        sys.stderr.write(f"{combination.name}: {errors[0]:.1e}, {likeness[0]:.1f} dB\n")
        yield Outcome(combination, *errors, None if combination.lossy else allowed, *likeness)


@torch.inference_mode()
def _render(make: Make, settings: GeneratorSettings, given: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The final latents, the images of ``given`` latents or of these, and the images of these: float32 on the CPU."""
    gc.collect()  # the one before is let go of first
    generator = make(settings)
    generator.prepare_avatar(AVATAR, _ASSETS / "reference.png", _ASSETS / "poses")
    sound = np.random.default_rng(0).normal(0.0, 0.1, 40_000).astype(np.float32)
    request = RenderRequest(AVATAR, sound, settings.format.clip_frames, pose_position=1, seed=2)
    generator.latents(request)  # a recorded clip must come out of a second run, too
    latents = generator.latents(request).float().cpu()
    own = _images(generator, latents)
    return latents, own if given is None else _images(generator, given), own


def _images(generator: ClipGenerator, latents: Tensor) -> Tensor:
    return torch.cat([part.float().cpu() for part in generator.images(latents.to(generator.device))])


def main(argv: list[str]) -> int:
    """Prints the errors of all combinations, and the worst as JSON; 1 if one is beyond what it may be or fails."""
    parser = argparse.ArgumentParser(
        prog="echo-rtc bench combinations", description="Compares every way to compute with the slowest."
    )
    parser.add_argument(
        "folder", type=Path, nargs="?", help="folder with pretrained_weights and config.json [random weights]"
    )
    parser.add_argument(
        "--full-size",
        action="store_true",
        help=f"random weights of the published sizes; needs about {FULL_SIZE_GB} GB of the device's memory [no]",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--size", type=int, default=256, help="width and height [256 pixels]")
    parser.add_argument("--steps", type=int, default=1, help="denoising steps [1]")
    parser.add_argument("--frames", type=int, default=12, help="frames of the clip [12]")
    parser.add_argument("--compiled", action="store_true", help="torch.compile, too, which takes a while [no]")
    parser.add_argument("--only", default="", help="those with these letters in their names, as float16 [all]")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("--device is cuda, but PyTorch sees no CUDA device; choose cpu")
    if arguments.folder is not None and arguments.full_size:
        raise SettingsError("--full-size has random weights, and a folder has its own; leave one of them out")
    slowest = GeneratorSettings(
        ClipFormat(width=arguments.size, height=arguments.size, clip_frames=arguments.frames),
        steps=arguments.steps,
        device=arguments.device,
        kernels="torch",
        attention="sdpa",
        cuda_graphs=False,
        untrained=True,
        low_ram=True,
    )
    if arguments.full_size:
        sys.stderr.write(f"the weights take {weights_gb(torch.float32):.1f} GB in float32\n")
    reduced = 1 if arguments.full_size else REDUCED
    make = from_folder(arguments.folder) if arguments.folder is not None else random_weights(reduced)
    wanted = [each for each in combinations(slowest, arguments.compiled) if arguments.only in each.name]
    if not wanted:
        raise SettingsError(
            f"--only is {arguments.only}, which no combination here has in its name; leave it out to compare all"
        )
    outcomes = list(compare(make, slowest, wanted))
    rows = [
        (
            each.combination.name,
            f"{each.latents:.1e}",
            f"{each.images:.1e}",
            f"{each.psnr_db:.1f}",
            f"{each.ssim:.4f}",
            "" if each.why else "lossy" if each.allowed is None else f"{each.allowed:.1e}",
            each.why or ("" if each.passed else "TOO MUCH"),
        )
        for each in outcomes
    ]
    computed = [each for each in outcomes if not each.why]
    exact = [max(each.latents, each.images) for each in computed if each.combination.settings.dtype == "float32"]
    half = [
        max(each.latents, each.images)
        for each in computed
        if each.combination.settings.dtype != "float32" and not each.combination.lossy
    ]
    figures: dict[str, object] = {
        "combinations": len(outcomes),
        "failed": sum(not each.passed for each in outcomes),
        "worst_float32": max(exact, default=0.0),
        "worst_half": max(half, default=0.0),
    }
    lossless = [each for each in computed if not each.combination.lossy]
    figures |= {
        "least_psnr_db": min((each.psnr_db for each in lossless), default=math.inf),
        "least_ssim": min((each.ssim for each in lossless), default=1.0),
        "lossy": {
            each.combination.name: [each.latents, each.psnr_db, each.ssim]
            for each in computed
            if each.combination.lossy
        },
        "not_computed": {each.combination.name: each.why for each in outcomes if each.why},
    }
    report(("combination", "latents", "images", "PSNR, dB", "SSIM", "allowed", ""), rows, figures)
    return 1 if figures["failed"] else 0
