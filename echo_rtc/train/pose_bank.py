"""Draws gesture sequences as the pose images the networks see: ``python -m echo_rtc.train pose-bank``.

The images come from the very code that draws poses at run time, so that training sees what rendering will. Drawing is
CPU work and the images are nearly all black, so the bank is made once and kept compressed.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from echo_rtc.errors import InputError
from echo_rtc.model.pose import Pose
from echo_rtc.model.pose_drawing import draw_pose
from echo_rtc.train.gestures import sample_gestures
from echo_rtc.train.loop import make_folder
from echo_rtc.train.recipe import FPS


def draw_sequence(hands: NDArray[np.float32], scores: NDArray[np.float32], size: int) -> NDArray[np.uint8]:
    """Draws hands (F, 2, 21, 2) with scores (F, 2, 21) on square canvases. Returns (F, size, size, 3) uint8."""
    poses = [Pose(frame, score) for frame, score in zip(hands, scores, strict=True)]
    return np.stack([draw_pose(pose, size, size) for pose in poses])


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="echo-rtc train pose-bank", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help=".npz file")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--frames", type=int, default=60, help="frames of each sequence, at 24 fps")
    parser.add_argument(
        "--loop",
        action="store_true",
        help="make closed loops, each twice over; seed 0, one sequence of 144 frames is the default avatar's",
    )
    parser.add_argument("--size", type=int, default=256, help="side of the images, pixels")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    for name in ("sequences", "frames", "size", "processes"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}; it must be at least 1")
    make_folder(options.output.parent)
    generator = torch.Generator().manual_seed(options.seed)
    gestures = sample_gestures(options.sequences, options.frames, FPS, generator, loop=options.loop)
    if options.loop:
        # Sessions may run over a loop's end into its beginning.
        again = {field.name: getattr(gestures, field.name) for field in fields(gestures)}
        again = {name: torch.cat([value, value], dim=1) for name, value in again.items()}
        gestures = replace(gestures, **again)
    hands, scores = gestures.hands.numpy(), gestures.scores.numpy()
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        images = list(pool.map(draw_sequence, hands, scores, [options.size] * options.sequences))
    try:
        # An open file, because NumPy would append .npz to a name without it.
        with options.output.open("wb") as file:
            np.savez_compressed(
                file,
                images=np.stack(images),
                hands=hands,
                scores=scores,
                head=gestures.head.numpy(),
                blink=gestures.blink.numpy(),
            )
    except OSError as error:
        raise InputError(f"--output {options.output} cannot be written ({error.strerror}); name another") from error
    return 0
