"""An avatar of a named person: ``echo-rtc train avatar``.

Writes what a running server needs: the reference picture, a long pose sequence of gestures for speech and a calm one
for silence. Both are closed loops, and neither repeats itself within. Blinks, breath and the head are no part of the
poses: the server makes them.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

from echo_rtc.errors import InputError
from echo_rtc.model.pose import Pose
from echo_rtc.model.pose_files import save_pose_sequence
from echo_rtc.train.people.asset import F32, Asset, Bool
from echo_rtc.train.people.figure import Figure
from echo_rtc.train.people.light import U8, Camera, Look, backdrop
from echo_rtc.train.people.motion import FPS, gesture_hands, rest_hands
from echo_rtc.train.people.person import NAMED
from echo_rtc.train.people.shoot import NAMED_HABITS, SIDE, Shot, Studio, frame_person, resting_face

GESTURES_S = 72.0
IDLE_S = 8.0
"""Short, because a server renders the whole of it before the first stream; it leaps between like frames of it, so that
nothing is seen to come again."""


def speaking_pattern(rng: np.random.Generator, frames: int) -> Bool:
    """(frames,) sentences of 2 to 5 s with short pauses, quiet at both ends so that a loop of it closes."""
    speaking = np.zeros(frames, bool)
    at = 0.6 * FPS
    while at < frames - 3.5 * FPS:
        length = rng.uniform(2.0, 5.0) * FPS
        speaking[round(at) : round(min(at + length, frames - 2 * FPS))] = True
        at += length + rng.uniform(0.7, 1.4) * FPS
    return speaking


def pose_sequence(figure: Figure, camera: Camera, hands: F32) -> F32:
    """(N, 2, 21, 2) joints in 0..1 of the picture of hands (N, 2, 17), the body upright and still."""
    eyes = torch.tensor([0.0, 0.0, figure.eye_level], device=figure.device)
    posed = torch.from_numpy(hands).to(figure.device)
    turns = figure.skeleton.arms(posed, eyes, torch.full((len(hands),), 0.02, device=figure.device))
    pose = figure.skeleton.pose(turns, len(hands))
    return camera.project(figure.skeleton.hand_joints(pose).cpu().numpy())


def gestures_of(name: str) -> F32:
    """The named person's hands (N, 2, 17) while they speak: slower and smaller than in training, because what moves
    fast is blurred."""
    rng = np.random.default_rng([NAMED[name].seed, 31])
    frames = round(GESTURES_S * FPS)
    habit = replace(NAMED_HABITS[name], rate=0.5, size=0.75, slowness=2.0)
    return gesture_hands(rng, speaking_pattern(rng, frames), habit, loop=True)


def idle_of(name: str) -> F32:
    """The named person's hands (N, 2, 17) in silence."""
    frames = round(IDLE_S * FPS)
    rng = np.random.default_rng([NAMED[name].seed, 32])
    return gesture_hands(rng, np.zeros(frames, bool), replace(NAMED_HABITS[name], sway=0.6), loop=True)


def portrait(studio: Studio, name: str) -> U8:
    """The reference picture (side, side, 3) of a named person."""
    figure = studio.figure(NAMED[name])
    shot = Shot(
        figure,
        frame_person(figure),
        Look(),
        backdrop(studio.renderer.side),
        np.zeros((1, 6), np.float32),
        rest_hands(NAMED_HABITS[name])[None],
        resting_face(NAMED[name]),
        np.ones((1, 2), np.float32),
    )
    picture: U8 = studio.shoot(shot)[0][0]
    return picture


def _write_poses(folder: Path, joints: F32) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_pose_sequence(folder, [Pose(points.astype(np.float64), np.ones((2, 21))) for points in joints])


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="echo-rtc train avatar", description="Writes a named person's reference picture and poses."
    )
    parser.add_argument("--asset", type=Path, required=True, help="file of the command people-asset")
    parser.add_argument("--person", choices=tuple(NAMED), required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder for reference.png, poses/ and idle/")
    parser.add_argument("--side", type=int, default=SIDE, help=f"side of the picture, pixels (default {SIDE})")
    options = parser.parse_args(argv)
    if options.side < 64:
        parser.error(f"--side is {options.side}; give at least 64")
    studio = Studio(Asset.load(options.asset), torch.device("cpu"), options.side)
    try:
        figure = studio.figure(NAMED[options.person])
        camera = frame_person(figure)
        picture = portrait(studio, options.person)
    finally:
        studio.close()
    try:
        _write_poses(options.output / "poses", pose_sequence(figure, camera, gestures_of(options.person)))
        _write_poses(options.output / "idle", pose_sequence(figure, camera, idle_of(options.person)))
        if not cv2.imwrite(str(options.output / "reference.png"), picture[..., ::-1]):
            raise InputError(f"--output: no picture can be written to {options.output}")
    except OSError as error:
        raise InputError(f"--output {options.output} cannot be written ({error.strerror}); name another") from error
    return 0
