"""Takes and single pictures of rendered people, and the commands that write them.

A take is a pure function of its number, the corpus and the asset: who is seen, how they are dressed and lit, what they
say and do. Take ``number`` shows the random person ``number // TAKES_PER_PERSON`` or a named one.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from echo_rtc.clips import F32Array
from echo_rtc.errors import InputError
from echo_rtc.model.life import Life, make_life
from echo_rtc.train.people.asset import F32, Asset, Bool
from echo_rtc.train.people.face import emphasis_of, facial_actions
from echo_rtc.train.people.figure import Anatomy, Figure
from echo_rtc.train.people.light import U8, Camera, Look, backdrop, sample_background, sample_look
from echo_rtc.train.people.motion import FPS, Habit, gesture_hands, rest_hands, sample_habit
from echo_rtc.train.people.person import NAMED, Spec, sample_spec
from echo_rtc.train.people.renderer import Renderer, Scene
from echo_rtc.train.people.skeleton import Pose

SIDE = 384
HISTORY_S = 2.0
TAKES_PER_PERSON = 3
NAMED_SHARE = 0.2
"""Share of takes that show one of the named people."""

HELD_OUT_PEOPLE = 1_000_000
"""Random people from this number on appear in no training."""

_GAZE = 0.20
"""Turn of the eyes at a gaze of 1, rad."""

Take = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Speech:
    """A corpus of the command ``speech``: ``audio`` (T, S) int16, ``mouth`` (T, M, 5), ``voice`` (T,) of ``voices``."""

    audio: NDArray[np.int16]
    mouth: NDArray[np.float16]
    voice: NDArray[np.int32]
    voices: tuple[str, ...]
    rate: int = 16_000
    track_rate: int = 100

    @classmethod
    def load(cls, path: Path) -> Speech:
        """Raises InputError."""
        try:
            with safe_open(path, framework="numpy") as file:
                about = file.metadata()
                return cls(
                    file.get_tensor("audio"),
                    file.get_tensor("mouth"),
                    file.get_tensor("voice"),
                    tuple(json.loads(about["voices"])),
                    int(about["sample_rate"]),
                    int(about["track_rate"]),
                )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is not a speech corpus ({error}); make one with the command speech") from error

    @classmethod
    def silence(cls) -> Speech:
        """One take of ten silent seconds."""
        return cls(np.zeros((1, 160_000), np.int16), np.zeros((1, 1000, 5), np.float16), np.zeros(1, np.int32), ("",))

    def cut(self, rng: np.random.Generator, frames: int) -> tuple[F32Array, F32Array, str]:
        """Sound (S,) from :data:`HISTORY_S` before a random place on, mouths (frames, 5) from there, and the voice."""
        take = int(rng.integers(len(self.audio)))
        before, length = round(HISTORY_S * self.rate), round(frames / FPS * self.rate)
        spare = self.audio.shape[1] - length
        if spare < 0:
            raise InputError(f"the corpus has takes of {self.audio.shape[1]} samples; {length} are needed")
        place = int(rng.integers(spare + 1))
        sound = np.zeros(before + length, np.float32)
        first = max(0, before - place)
        sound[first:] = self.audio[take, place - before + first : place + length].astype(np.float32) / 32768
        at = (place / self.rate + (np.arange(frames) + 0.5) / FPS) * self.track_rate - 0.5
        track = self.mouth[take].astype(np.float32)
        grid = np.arange(len(track))
        mouth = np.stack([np.interp(at, grid, column) for column in track.T], 1).astype(np.float32)
        return sound, mouth, self.voices[self.voice[take]]


class Studio:
    """Renders people with one OpenGL context; figures are kept while the same person is asked for."""

    def __init__(
        self, asset: Asset, device: torch.device, side: int = SIDE, device_index: int | None = None, kept: int = 4
    ) -> None:
        self.anatomy = Anatomy(asset)
        self.device = device
        self.renderer = Renderer(side, device_index)
        self._kept = kept
        self._figures: OrderedDict[str, Figure] = OrderedDict()

    def close(self) -> None:
        """Frees the context."""
        self.renderer.close()

    def figure(self, spec: Spec) -> Figure:
        """The geometry of a person, made once while it is in use."""
        key = repr(spec)
        if key not in self._figures:
            self._figures[key] = Figure(self.anatomy, spec, self.device)
            while len(self._figures) > self._kept:
                self._figures.popitem(last=False)
        self._figures.move_to_end(key)
        return self._figures[key]

    def shoot(self, shot: Shot) -> tuple[U8, F32, F32]:
        """Renders a shot: frames (N, side, side, 3), hands (N, 2, 21, 3) and boxes (N, 5, 4), NaN where not seen."""
        figure, batch = shot.figure, 12 if self.device.type == "cpu" else 24
        scene = Scene(
            figure.meshes,
            figure.attributes,
            figure.strands,
            figure.hair_uniforms,
            shot.look,
            shot.camera,
            shot.background,
        )
        self.renderer.load(scene)
        pose = shot.pose(self.device)
        count = len(shot.actions)
        actions = torch.from_numpy(shot.actions).to(self.device)
        gaze = torch.from_numpy(shot.gaze)
        pictures = np.empty((count, self.renderer.side, self.renderer.side, 3), np.uint8)
        mouth, eyes = np.empty((count, 4), np.float32), np.empty((count, 2, 4), np.float32)
        states = zip(figure.frames(pose, actions, batch), figure.models(pose, gaze), strict=True)
        for index, (vertices, (models, centre)) in enumerate(states):
            pictures[index] = self.renderer.draw(vertices, models, centre)
            mouth[index] = _box(shot.camera.project(vertices[figure.lips, :3]), 0.02, 0.02)
            for eye, name in enumerate(("eye_right", "eye_left")):  # the picture's left eye first
                reach = float(figure.body.eye_radius[0]) * 1.35 / shot.camera.height
                eyes[index, eye] = _box(shot.camera.project(models[name][None, :3, 3]), 1.15 * reach, 0.85 * reach)
        joints = shot.camera.project(figure.skeleton.hand_joints(pose).cpu().numpy())  # (N, 2, 21, 2)
        hands = np.concatenate([joints, np.broadcast_to(shot.confidence[:, :, None], joints.shape[:3])[..., None]], -1)
        boxes = np.empty((count, 5, 4), np.float32)
        boxes[:, 0], boxes[:, 1:3] = mouth, eyes
        for index in range(count):
            for box, hand in ((3, 1), (4, 0)):  # the picture's left hand is the person's right one
                boxes[index, box] = _box(joints[index, hand], 0.02, 0.02)
        unseen = (boxes[..., 0] > 1) | (boxes[..., 2] < 0) | (boxes[..., 1] > 0.99) | (boxes[..., 3] < 0)
        boxes = np.clip(boxes, 0, 1)
        boxes[unseen] = np.nan
        return pictures, hands.astype(np.float32), boxes


def _box(points: F32, margin_x: float, margin_y: float) -> F32:
    low, high = points.min(0), points.max(0)
    return np.array([low[0] - margin_x, low[1] - margin_y, high[0] + margin_x, high[1] + margin_y], np.float32)


@dataclass(frozen=True, eq=False)
class Shot:
    """N frames of a figure before a camera: ``life`` (N, 6), ``hands`` (N, 2, 17), facial ``actions`` (N, A) and how
    sure the drawn hands are, ``confidence`` (N, 2)."""

    figure: Figure
    camera: Camera
    look: Look
    background: U8
    life: F32
    hands: F32
    actions: F32
    confidence: F32

    @property
    def _life(self) -> Life:
        return Life.from_table(self.life)

    @property
    def gaze(self) -> F32:
        """(N, 2) turns of the eyes against the head: they stay on the viewer while the head turns."""
        life = self._life
        return np.stack([_GAZE * life.gaze - 0.8 * life.yaw, -0.8 * life.pitch], 1).astype(np.float32)

    def pose(self, device: torch.device) -> Pose:
        """Where the bones are."""
        life, skeleton = self._life, self.figure.skeleton

        def tensor(values: F32) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(device)

        turns = skeleton.neck(tensor(np.stack([life.yaw, -life.pitch, life.roll], 1)))
        eyes = torch.tensor([0.0, 0.0, self.figure.eye_level], device=device)
        turns |= skeleton.arms(tensor(self.hands), eyes, tensor(0.02 + 0.022 * life.breath))
        return skeleton.pose(turns, len(self.life))


def frame_person(figure: Figure, rng: np.random.Generator | None = None) -> Camera:
    """A lens that shows head and hands with headroom; with ``rng`` a little off."""
    height = 0.485 * figure.spec.head**0.5
    headroom = 0.045
    shift = np.zeros(3)
    eye = np.array([0.0, -2.1, 0.02])
    if rng is not None:
        height *= rng.uniform(0.95, 1.10)
        headroom = rng.uniform(0.03, 0.085)
        shift[0] = rng.normal() * 0.008
        eye += np.array([rng.normal() * 0.12, 0, rng.normal() * 0.06])
    highest = min(figure.top, figure.eye_level + 0.20 * figure.spec.head)
    at = np.array([0.0, -0.03, highest + (headroom - 0.5) * height]) + shift
    return Camera(at + eye, at, height)


def speaking_of(mouth: F32Array) -> Bool:
    """(N,) where someone speaks: the mouth moves within a fifth of a second."""
    moving = (mouth[:, 0] > 0.03) | (mouth[:, 2:].max(1) > 0.08)
    return np.asarray(np.convolve(moving, np.ones(9))[4 : 4 + len(mouth)] > 0.5)


def make_take(studio: Studio, speech: Speech, number: int, frames: int = 96, person: str | int | None = None) -> Take:
    """Take ``number`` as the training reads it: frames, reference, waveform, hands, mouth, lids, life, boxes, speaking,
    and person and voice, which are strings. ``person`` forces who is seen; a named one then is in the usual setting."""
    rng = np.random.default_rng([number, 11])
    named = rng.random() < NAMED_SHARE
    who: str | int = str(rng.choice(list(NAMED))) if named else number // TAKES_PER_PERSON
    who = who if person is None else person
    figure = studio.figure(NAMED[who] if isinstance(who, str) else sample_spec(who))
    usual = isinstance(who, str) and (rng.random() < 0.7 or person is not None)
    sound, mouth, voice = speech.cut(rng, frames)
    speaking = speaking_of(mouth)
    # Pose files do not know when someone speaks: half of the takes gesture by another voice's time, or not at all.
    gesturing = speaking if rng.random() < 0.5 else _other_time(rng, frames)
    habit = NAMED_HABITS[who] if isinstance(who, str) and usual else sample_habit(rng)
    hands = gesture_hands(rng, gesturing, habit)
    start = int(rng.integers(1440 - frames))
    life = make_life(int(rng.integers(1 << 30)), 1440, FPS, rng.uniform(0.4, 1.3)).table()[start : start + frames]
    times = (HISTORY_S + (np.arange(frames) + 0.5) / FPS).astype(np.float32)
    actions = facial_actions(mouth, life[:, 3], emphasis_of(sound, speech.rate, times), figure.spec.smile)
    setting = _setting(studio, figure, rng, usual)
    still = resting_face(figure.spec)
    confidence = np.repeat(rng.uniform(0.75, 1.0, (1, 2)), frames + 1, 0).astype(np.float32)
    shot = Shot(
        figure,
        *setting,
        np.concatenate([np.zeros((1, 6), np.float32), life]),
        np.concatenate([rest_hands(habit)[None], hands]),
        np.concatenate([still, actions]),
        confidence,
    )
    pictures, joints, boxes = studio.shoot(shot)
    return {
        "frames": pictures[1:],
        "reference": pictures[0],
        "waveform": sound,
        "hands": joints[1:],
        "mouth": mouth,
        "lids": life[:, 3],
        "life": life,
        "boxes": boxes[1:],
        "speaking": speaking,
        "person": str(who),
        "voice": voice,
    }


def resting_face(spec: Spec) -> F32:
    """(1, A) the face of a reference picture: mouth shut, eyes open."""
    nothing = np.zeros(1, np.float32)
    return facial_actions(np.zeros((1, 5), np.float32), nothing, nothing, spec.smile)


def _other_time(rng: np.random.Generator, frames: int) -> Bool:
    """Speech and pauses (frames,) that nothing else knows of."""
    speaking = np.zeros(frames, bool)
    at, on = -rng.uniform(0, 2.0) * FPS, bool(rng.random() < 0.5)
    while at < frames:
        length = (rng.uniform(1.0, 4.0) if on else rng.uniform(0.8, 3.0)) * FPS
        speaking[max(0, round(at)) : max(0, round(at + length))] = on
        at, on = at + length, not on
    return speaking


def _setting(studio: Studio, figure: Figure, rng: np.random.Generator, usual: bool) -> tuple[Camera, Look, U8]:
    side = studio.renderer.side
    if usual:
        return frame_person(figure), Look(), backdrop(side)
    return frame_person(figure, rng), sample_look(rng), sample_background(rng, side)


NAMED_HABITS: dict[str, Habit] = {
    "mia": Habit(0, 0.6, 0.9),
    "omar": Habit(2, 0.5, 0.95),
    "nia": Habit(5, 0.6, 0.9),
}
"""How the named people move."""


def make_picture(studio: Studio, number: int, person: str | int | None = None) -> tuple[U8, F32]:
    """Picture ``number`` for the autoencoder: one person in any state (side, side, 3), and boxes (5, 4)."""
    rng = np.random.default_rng([number, 13])
    who = person if person is not None else number // 4
    figure = studio.figure(NAMED[who] if isinstance(who, str) else sample_spec(who))
    mouth = random_mouth(rng)[None]
    lids = np.array([1.0 if rng.random() < 0.1 else rng.uniform(0.2, 0.9) if rng.random() < 0.1 else 0.0], np.float32)
    actions = facial_actions(mouth, lids, np.array([max(0.0, rng.normal() * 0.5)], np.float32), figure.spec.smile)
    frames = 60
    hands = gesture_hands(rng, np.full(frames, rng.random() < 0.75), sample_habit(rng))[-1:]
    life = np.array(
        [
            [
                rng.normal() * 0.08,
                rng.normal() * 0.045,
                rng.normal() * 0.035,
                lids[0],
                rng.uniform(-1, 1),
                rng.normal() * 0.4,
            ]
        ]
    )
    setting = _setting(studio, figure, rng, False)
    shot = Shot(figure, *setting, life.astype(np.float32), hands, actions, np.ones((1, 2), np.float32))
    pictures, _, boxes = studio.shoot(shot)
    return pictures[0], boxes[0]


def random_mouth(rng: np.random.Generator) -> F32:
    """(5,) any mouth, shut in one of five."""
    mouth = rng.random(5).astype(np.float32)
    mouth[1] = 2 * mouth[1] - 1
    mouth[2:] = np.clip(2.5 * mouth[2:] - 1.5, 0, 1)
    mouth[0] *= 1 - mouth[2]
    if rng.random() < 0.2:
        mouth[:] = 0
    return mouth
