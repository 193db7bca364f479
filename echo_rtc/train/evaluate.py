"""Measures a model folder against rendered takes of people and voices held out: ``echo-rtc train evaluate``.

A take is made again clip by clip as live: the same windows of sound, the same poses, each clip from the last latent of
the one before, the first from the reference alone. How open mouth and lids are is read off the pictures by a ridge
regression that was fitted to the true pictures of the same take, where both are known.

With ``--voice`` the person of the first take also says a recording, head and hands still: how far the mouth is open is
compared with how loud it is, because nothing more is known of it.

Knows nothing of how the model was trained.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from echo_rtc.bench.support.report import report
from echo_rtc.clips import MEDIA_RATE, ClipFormat, F32Array
from echo_rtc.errors import InputError
from echo_rtc.model.description import ModelDescription
from echo_rtc.model.generator import ClipGenerator, GeneratorSettings, fitting_dtype, resample
from echo_rtc.model.sampler import bridged, reference_latents
from echo_rtc.model.unet3d import ClipConditions
from echo_rtc.offline.files import SoundFile
from echo_rtc.resources import PACKAGE
from echo_rtc.train.footage import read
from echo_rtc.train.loop import best_device, start_log
from echo_rtc.train.recipe import CLIP_FRAMES, FPS, HISTORY_SAMPLES, SAMPLE_RATE, SIDE, WINDOW_SAMPLES
from echo_rtc.train.visemes import relative_loudness

log = logging.getLogger(__name__)

EMBEDDED = PACKAGE / "assets" / "embedded"
"""The model that ships."""

PATCH = 16
"""Side to which a mouth or an eye is reduced before it is read."""

SHUT = 0.15
"""A mouth that is less open than this counts as shut."""

PRESSED = 0.7
"""Lips are pressed together from here on (p, b, m)."""

CLOSED = 0.6
"""Lids are closed from here on."""

QUIET = 0.15
"""Loudness (see ``visemes.relative_loudness``) of the noise of a room, between the words of a recording."""

PAUSE_FRAMES = 6
"""Frames of silence around a frame that is in a pause."""

VOICE_S = 60.0
"""How much of a recording is used."""

TIP_PATCH, TIP_REACH = 9, 12
"""Half the side of the patch around a fingertip, and how far it is looked for, pixels of the picture."""

TIPS = (4, 8, 12, 16, 20)

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Played:
    """A take, and ``made`` (N, 3, S, S) uint8: what the model shows of it."""

    take: dict[str, Tensor]
    made: Tensor


def load_generator(folder: Path, device: str) -> ClipGenerator:
    """The model in ``folder`` as the server would run it."""
    mapping: dict[str, str | None] = {"weights": str(folder.absolute()), "motion_module": None, "base_unet": None}
    description = ModelDescription.from_mapping(mapping, Path())
    clip = ClipFormat(width=SIDE, height=SIDE, fps=FPS, clip_frames=CLIP_FRAMES)
    settings = GeneratorSettings(format=clip, steps=1, cfg=1.0, device=device, dtype=fitting_dtype(device))
    return ClipGenerator.load(description, settings, log.info)


@torch.inference_mode()
def play(generator: ClipGenerator, take: dict[str, Tensor]) -> Played:
    """Makes a take again, whole clips of it."""
    networks, sampler = generator.networks, generator.sampler(1)
    reference = generator.encode_image(take["reference"].permute(1, 2, 0).contiguous().numpy())
    bank = networks.denoiser.project_bank(generator.stored(networks.reference(reference)))
    sound: F32Array = (take["sound"].float() / 32768).numpy()
    last: Tensor | None = None
    parts = []
    for first in range(0, len(take["frames"]) - CLIP_FRAMES + 1, CLIP_FRAMES):
        place = first * SAMPLE_RATE // FPS
        tokens = generator.audio_tokens(sound[place : place + WINDOW_SAMPLES], CLIP_FRAMES)
        drawn = take["poses"][first : first + CLIP_FRAMES].float() / 255
        pose = generator.encode_poses(drawn).transpose(0, 1)[None]
        latents = reference_latents(reference, CLIP_FRAMES, last)
        given = ClipConditions(networks.denoiser.project_audio(tokens), bank, pose)
        for step in sampler.steps(latents, given):
            latents = step.latents
        if generator.trained.bridged:
            latents = bridged(latents, last)
        last = latents[0, :, -1].half()
        pictures = torch.cat([part.float() for part in generator.images(latents)])
        parts.append(((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().cpu())
    return Played(take, torch.cat(parts))


def patches(frames: Tensor, boxes: Tensor) -> F64:
    """(N, PATCH * PATCH) grey patches of frames (N, 3, S, S) in boxes (N, 4) of 0..1, each of zero mean."""
    side, out = frames.shape[-1], []
    for frame, box in zip(frames, boxes, strict=True):
        x0, y0, x1, y1 = (int(value) for value in (box * side).round().clamp(0, side))
        part = frame[:, y0 : max(y1, y0 + 2), x0 : max(x1, x0 + 2)].float().mean(0)[None, None]
        small = F.interpolate(part, (PATCH, PATCH), mode="bilinear", antialias=True, align_corners=False)
        out.append((small - small.mean()).flatten().numpy())
    return np.stack(out).astype(np.float64) / 64


def reading(true: F64, values: F64, made: F64) -> F64:
    """What a ridge regression from ``true`` (N, D) to ``values`` (N,) says of ``made`` (N, D)."""
    centre, level = true.mean(0), values.mean()
    centred = true - centre
    weights = np.linalg.solve(centred @ centred.T + 2.0 * np.eye(len(true)), values - level)
    result: F64 = (made - centre) @ (centred.T @ weights) + level
    return result


def runs_of(closed: NDArray[np.bool_], least: int) -> int:
    """How many stretches of at least ``least`` frames there are."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], closed, [False])).astype(int)))
    return int(sum(stop - start >= least for start, stop in zip(edges[::2], edges[1::2], strict=True)))


def sharpness(true: Tensor, made: Tensor, boxes: Tensor) -> float | None:
    """The made pictures' high-frequency energy over the true ones' in boxes (N, 4); None where none is seen."""
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    energies = []
    for pictures in (true, made):
        edges = F.conv2d(pictures.float().mean(1, keepdim=True), kernel, padding=1)[:, 0]
        total = 0.0
        for picture, box in zip(edges, boxes, strict=True):
            if not box.isfinite().all():
                continue
            x0, y0, x1, y1 = (int(value) for value in (box * picture.shape[-1]).round().clamp(0, picture.shape[-1]))
            total += float(picture[y0:y1, x0:x1].square().sum())
        energies.append(total)
    return energies[1] / energies[0] if energies[0] > 0 else None


def tip_distances(true: Tensor, made: Tensor, hands: Tensor) -> list[float]:
    """Pixels of a picture of 256 between fingertips and where their true patch fits best in what was made; every sixth
    frame."""
    side, found = true.shape[-1], []
    half, reach = TIP_PATCH, TIP_REACH
    for number in range(0, len(true), 6):
        grey = [picture[number].float().mean(0).numpy() for picture in (true, made)]
        for x, y, score in hands[number][:, TIPS].reshape(-1, 3).tolist():
            column, row = round(x * side), round(y * side)
            inside = half + reach <= column < side - half - reach and half + reach <= row < side - half - reach
            if score < 0.3 or not inside:
                continue
            patch = grey[0][row - half : row + half + 1, column - half : column + half + 1]
            around = half + reach
            place = grey[1][row - around : row + around + 1, column - around : column + around + 1]
            fit = cv2.matchTemplate(place, patch, cv2.TM_CCOEFF_NORMED)
            dy, dx = np.unravel_index(int(fit.argmax()), fit.shape)
            found.append(float(np.hypot(dx - reach, dy - reach)) * 256 / side)
    return found


def steady_db(true: Tensor, made: Tensor, boxes: Tensor) -> float:
    """PSNR (dB) above the shoulders' half and outside mouth and hands, grown by a twentieth."""
    side, values = true.shape[-1], []
    for wanted, picture, around in zip(true, made, boxes, strict=True):
        mask = torch.ones(side, side, dtype=torch.bool)
        for box in around[[0, 3, 4]]:
            if box.isfinite().all():
                grown = box + torch.tensor([-0.05, -0.05, 0.05, 0.4])
                x0, y0, x1, y1 = (int(value) for value in (grown * side).round().clamp(0, side))
                mask[y0:y1, x0:x1] = False
        error = (wanted.float() - picture.float()).square().mean(0)[mask].mean() / 255**2
        values.append(float(-10 * error.clamp(min=1e-10).log10()))
    return fmean(values)


def measure(played: Played) -> dict[str, Any]:
    """The figures of one take; None where there is nothing to measure them on."""
    made, take = played.made, played.take
    count = len(made)
    true, boxes = take["frames"][:count], take["boxes"][:count]
    mouth = take["mouth"][:count].double().numpy()
    opening = reading(*_mouths(true, made, boxes[:, 0], mouth[:, 0]))
    lids_true = take["lids"][:count].double().numpy()
    lids = np.mean([reading(*_mouths(true, made, boxes[:, eye], lids_true)) for eye in (1, 2)], axis=0)
    pressed = mouth[:, 2] >= PRESSED
    silent = np.convolve(mouth[:, 0] + mouth[:, 2], np.ones(7), "same") < 0.05
    changes = (made[1:].float() - made[:-1].float()).abs().mean(dim=(1, 2, 3)).numpy()
    wanted = (true[1:].float() - true[:-1].float()).abs().mean(dim=(1, 2, 3)).numpy()
    border = np.arange(1, count) % CLIP_FRAMES == 0
    # The true picture changes more at some frames than at others: what counts is the change against its own.
    ratio = changes / np.maximum(wanted, 0.05)
    face = torch.cat([boxes[:, :3, :2].amin(1) - 0.03, boxes[:, :3, 2:].amax(1) + 0.03], dim=1)
    hands = [value for hand in (3, 4) if (value := sharpness(true, made, boxes[:, hand])) is not None]
    return {
        "r": float(np.corrcoef(opening, mouth[:, 0])[0, 1]) if mouth[:, 0].std() > 0.02 else None,
        "lips_touch": float((opening[pressed] < SHUT).mean()) if pressed.any() else None,
        "shut_in_silence": float((opening[silent] < SHUT).mean()) if silent.any() else None,
        "join_ratio": float(ratio[border].mean() / ratio[~border].mean()),
        "blinks_per_minute": runs_of(lids > CLOSED, 2) * 60 * FPS / count,
        "true_blinks_per_minute": runs_of(lids_true > CLOSED, 2) * 60 * FPS / count,
        "sharpness_face": sharpness(true, made, face),
        "sharpness_hands": fmean(hands) if hands else None,
        "fingertip_px": fmean(tips) if "hands" in take and (tips := tip_distances(true, made, take["hands"])) else None,
        "identity_db": steady_db(true, made, boxes),
    }


def recorded(path: Path) -> F32Array:
    """The first minute of a recording at 16 kHz, mono. Raises InputError."""
    parts, count = [], 0
    with SoundFile(path) as file:
        for block in file.blocks():
            parts.append(block.astype(np.float32).mean(axis=1) / 32768)
            count += len(block)
            if count >= VOICE_S * MEDIA_RATE:
                break
    return resample(np.concatenate(parts), MEDIA_RATE, SAMPLE_RATE)


def mouth_windows(boxes: Tensor) -> Tensor:
    """(N, 4) the part of each frame in which the mouth is at its widest, of boxes (N, 5, 4): it goes with the eyes. The
    boxes of the mouth itself, which open with it, tell too much where it is the same for all frames."""
    eyes = (boxes[:, 1:3, :2] + boxes[:, 1:3, 2:]).mean(dim=1) / 2
    eyes = eyes.repeat(1, 2)
    away = boxes[:, 0] - eyes
    return eyes + torch.cat([away[:, :2].amin(dim=0), away[:, 2:].amax(dim=0)])


def say(generator: ClipGenerator, take: dict[str, Tensor], sound: F32Array) -> dict[str, Any]:
    """How the person of ``take`` follows the recording ``sound`` (samples,) in the pose in which the take is most like
    its reference: the correlation of mouth and loudness, and how often the mouth is shut in pauses."""
    unlike = (take["frames"].float() - take["reference"].float()).abs().mean(dim=(1, 2, 3))
    still = int((unlike + 1000 * (take["lids"] > 0.1)).argmin())
    count = len(sound) * FPS // SAMPLE_RATE // CLIP_FRAMES * CLIP_FRAMES
    heard = np.concatenate([np.zeros(HISTORY_SAMPLES, np.float32), sound])
    told = {
        "reference": take["reference"],
        "frames": torch.empty(count),
        "poses": take["poses"][still].expand(count, -1, -1, -1),
        "sound": torch.from_numpy((heard.clip(-1, 1) * 32767).astype(np.int16)),
    }
    made = play(generator, told).made
    values = take["mouth"][:, 0].double().numpy()
    around_mouth = mouth_windows(take["boxes"])
    opening = reading(
        patches(take["frames"], around_mouth), values, patches(made, around_mouth[still].expand(count, -1))
    )
    loud = relative_loudness(sound, SAMPLE_RATE, ((np.arange(count) + 0.5) / FPS).astype(np.float32))
    around = np.convolve(loud > QUIET, np.ones(2 * PAUSE_FRAMES + 1), "same")
    # Where the sound begins or ends, nothing is known of what was before or will be.
    around[:PAUSE_FRAMES] = around[-PAUSE_FRAMES:] = 1
    pause = around == 0
    return {
        "voice_r": round(float(np.corrcoef(opening, loud)[0, 1]), 3),
        "voice_shut_in_pauses": round(float((opening[pause] < SHUT).mean()), 3) if pause.any() else None,
    }


def _mouths(true: Tensor, made: Tensor, boxes: Tensor, values: F64) -> tuple[F64, F64, F64]:
    return patches(true, boxes), values, patches(made, boxes)


def mean(figures: Sequence[dict[str, Any]], key: str) -> float | None:
    """The mean of a figure over the takes that have it."""
    values = [one[key] for one in figures if one[key] is not None]
    return round(fmean(values), 3) if values else None


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="echo-rtc train evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, default=EMBEDDED, help="folder of the model (default: the embedded one)")
    parser.add_argument("--named", type=Path, required=True, help="folder of takes of the people that ship")
    parser.add_argument("--unseen", type=Path, help="folder of takes of people who appear in no training")
    parser.add_argument("--voice", type=Path, nargs="+", default=[], help="recordings that the first person says, too")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N")
    options = parser.parse_args(argv)
    start_log()
    # What is no sound is known before anything is measured.
    pause = np.zeros(SAMPLE_RATE // 2, np.float32)
    voices = [np.concatenate([pause, recorded(path), pause]) for path in options.voice]
    generator = load_generator(options.model, str(best_device(options.device)))
    measured: dict[str, list[dict[str, Any]]] = {}
    rows = []
    for kind in ("named", "unseen"):
        folder: Path | None = getattr(options, kind)
        paths = [] if folder is None else sorted(folder.glob("*.npz"))
        if folder is not None and not paths:
            raise InputError(f"--{kind} {folder} holds no takes; render some with the command film")
        measured[kind] = []
        for path in paths:
            log.info("%s %s", kind, path.name)
            figures = measure(play(generator, read(path)))
            measured[kind].append(figures)
            rows.append((f"{kind} {path.stem}", *(round(v, 3) if v is not None else "-" for v in figures.values())))
    every = measured["named"] + measured["unseen"]
    summary: dict[str, object] = {
        "r_default": mean(measured["named"], "r"),
        "r_unseen": mean(measured["unseen"], "r"),
        **{key: mean(every, key) for key in every[0] if key not in ("r", "identity_db")},
        "identity_db": mean(measured["unseen"] or every, "identity_db"),
    }
    if voices:
        first = read(min(options.named.glob("*.npz")))
        summary |= say(generator, first, np.concatenate(voices))
    report(("take", *every[0]), rows, summary)
    return 0
