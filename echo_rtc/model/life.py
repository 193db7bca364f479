"""Small movements of a living person: blinks, gaze, breath and turns of the head, and how a model gets them as input.

The published pose files hold hands only. A model whose description asks for it (``life``) is shown the rest as levels
of the pose picture's background, so that it never has to guess when a lid shuts: in bands of :data:`BAND` rows, those
with even numbers carry yaw, roll and lids in red, green and blue, those with odd ones pitch, breath and gaze. Where a
hand is drawn, the drawing stays.

Knows no networks and no clips.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echo_rtc.clips import F32Array, U8Array

YAW, PITCH, ROLL = 0.30, 0.18, 0.14
"""Largest angles of the head that the levels can tell, rad."""

BAND = 4
"""Rows of a band, of a pose picture of any size."""

BLINK = (0.5, 1.0, 1.0, 0.85, 0.35)
"""How far the lids are shut from frame to frame of a blink at 24 frames/s: 0 open, 1 shut."""

_BLINK_GAP_S = (1.6, 7.0)
"""Least and most time between two blinks; the mean makes about 16 a minute."""

_BLINKS_PER_MINUTE = (12, 20)

_ATTEMPTS = 20
"""How often blinks are drawn again; a loop of less than three seconds can have no usual number of them."""

_HEAD = (0.055, 0.030, 0.024)
"""Standard deviations of yaw, pitch and roll in speech, rad."""

COLUMNS = ("yaw", "pitch", "roll", "lids", "breath", "gaze")


@dataclass(frozen=True, slots=True, eq=False)
class Life:
    """N frames: ``yaw`` (to the image's right), ``pitch`` (up), ``roll`` (clockwise as seen), each (N,) rad against the
    reference picture; ``lids`` 0 open to 1 shut, ``breath`` -1..1, ``gaze`` -1..1 to the image's right."""

    yaw: F32Array
    pitch: F32Array
    roll: F32Array
    lids: F32Array
    breath: F32Array
    gaze: F32Array

    def __len__(self) -> int:
        return len(self.yaw)

    def table(self) -> F32Array:
        """(N, 6), columns as :data:`COLUMNS`."""
        return np.stack([getattr(self, name) for name in COLUMNS], axis=1).astype(np.float32)

    @classmethod
    def from_table(cls, table: F32Array) -> Life:
        """The reverse of :meth:`table`."""
        return cls(*(np.asarray(column, np.float32) for column in table.T))


def make_life(seed: int, frames: int, fps: int, liveliness: float = 1.0) -> Life:
    """A loop of ``frames`` frames that continues from its end into its beginning: the same for the same arguments.

    ``liveliness`` scales the head's movement and the gaze: 1 in speech, about 0.4 at rest. Blinks come 12 to 20 times a
    minute at irregular times.
    """
    rng = np.random.default_rng([seed, frames, fps])
    duration_s = frames / fps
    breaths = max(1, round(duration_s / rng.uniform(3.4, 4.4)))
    phase = 2 * np.pi * (np.arange(frames) / frames)
    drift = _wander(rng, frames, duration_s, 0.05, 0.15)
    breath = np.sin(breaths * phase + 0.8 * drift)
    head = [
        np.clip(liveliness * deviation * _wander(rng, frames, duration_s, 0.08, 0.55), -limit, limit)
        for deviation, limit in zip(_HEAD, (0.9 * YAW, 0.9 * PITCH, 0.9 * ROLL), strict=True)
    ]
    head[1] = np.clip(head[1] + 0.006 * breath, -PITCH, PITCH)
    yaw, pitch, roll = (value.astype(np.float32) for value in head)
    return Life(
        yaw,
        pitch,
        roll,
        lids=_usual_blinks(rng, frames, fps),
        breath=breath.astype(np.float32),
        gaze=_gaze(rng, frames, fps, liveliness),
    )


def _wander(
    rng: np.random.Generator, frames: int, duration_s: float, low_hz: float, high_hz: float
) -> NDArray[np.float64]:
    """A smooth closed curve (frames,) of unit variance with periods of 1 / high_hz to 1 / low_hz seconds."""
    cycles = np.arange(max(1, round(low_hz * duration_s)), max(1, round(high_hz * duration_s)) + 1)
    size = rng.normal(size=len(cycles)) / np.sqrt(cycles)
    angle = 2 * np.pi * (np.arange(frames)[:, None] / frames * cycles + rng.uniform(size=len(cycles)))
    curve = (size * np.sin(angle)).sum(axis=1)
    return np.asarray(curve / max(float(curve.std()), 1e-6))


def _usual_blinks(rng: np.random.Generator, frames: int, fps: int) -> F32Array:
    """Lids (frames,) of a usual number of blinks: a loop of a few seconds can have too many or too few by chance."""
    for _ in range(_ATTEMPTS):
        lids = _blinks(rng, frames, fps)
        rate = 60 * fps / frames * np.count_nonzero(np.diff((lids > 0.8).astype(int)) == 1)
        if _BLINKS_PER_MINUTE[0] <= rate <= _BLINKS_PER_MINUTE[1]:
            break
    return lids


def _blinks(rng: np.random.Generator, frames: int, fps: int) -> F32Array:
    """Lids (frames,), a blink never across the loop's end."""
    lids = np.zeros(frames, np.float32)
    curve = _stretched(BLINK, fps)
    # Gaps of a skewed distribution: most are short, some are long.
    position = round(fps * rng.uniform(0.5, 2.5))
    while position + len(curve) <= frames:
        lids[position : position + len(curve)] = curve
        gap_s = _BLINK_GAP_S[0] + min(rng.gamma(1.8, 1.2), _BLINK_GAP_S[1] - _BLINK_GAP_S[0])
        position += round(fps * gap_s)
    return lids


def _stretched(curve: tuple[float, ...], fps: int) -> F32Array:
    """A curve at 24 frames/s, at another rate."""
    count = max(3, round(len(curve) * fps / 24))
    at = (np.arange(count) + 0.5) * len(curve) / count - 0.5
    stretched: F32Array = np.interp(at, np.arange(len(curve)), curve).astype(np.float32)
    return stretched


def _gaze(rng: np.random.Generator, frames: int, fps: int, liveliness: float) -> F32Array:
    """Gaze (frames,): fixations of 0.6 to 3 s, mostly at the viewer, joined by quick turns."""
    gaze = np.zeros(frames)
    position = 0
    while position < frames:
        length = round(fps * rng.uniform(0.6, 3.0))
        away = rng.random() < 0.35 and position > 0 and position + length < frames - fps // 2
        gaze[position : position + length] = liveliness * rng.normal() * 0.45 if away else 0.0
        position += length
    smooth = np.convolve(np.pad(gaze, 1, mode="wrap"), (0.25, 0.5, 0.25), mode="valid")
    clipped: F32Array = np.clip(smooth, -1, 1).astype(np.float32)
    return clipped


def paint_life(picture: U8Array, moment: F32Array) -> U8Array:
    """A pose picture (H, W, 3) with the levels of one moment (6,), columns as :data:`COLUMNS`, where it is black."""
    yaw, pitch, roll, lids, breath, gaze = (float(value) for value in moment)
    even = (_level(yaw / YAW), _level(roll / ROLL), round(255 * min(1.0, max(0.0, lids))))
    odd = (_level(pitch / PITCH), _level(breath), _level(gaze))
    bands = (np.arange(len(picture)) // BAND) % 2
    levels = np.where(bands[:, None] == 0, np.array(even, np.uint8), np.array(odd, np.uint8))
    painted: U8Array = np.where(picture.any(axis=2, keepdims=True), picture, levels[:, None])
    return painted


def _level(value: float) -> int:
    """-1..1 to a level around 128."""
    return round(128 + 127 * min(1.0, max(-1.0, value)))
