"""Types that all packages share: small, frozen, their invariants checked on construction.

Media time is counted in samples at 48 kHz since a stream's first audio sample; frame ``n`` is due at ``n / fps`` of it.
Wall clocks never enter here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

MEDIA_RATE = 48_000
"""Samples per second of media time, of the microphone's blocks and of the echo."""

DEFAULT_AVATAR = "default"
"""Another name of the first avatar, whatever it is called."""

U8Array = NDArray[np.uint8]
S16Array = NDArray[np.int16]
F16Array = NDArray[np.float16]
F32Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ClipFormat:
    """What the clips of a stream have in common.

    ``fps`` frames per second, ``clip_frames`` frames in a clip, ``width`` x ``height`` pixels (even, for YUV 4:2:0),
    ``sample_rate`` of the audio that goes to the model (Hz), ``history_s`` seconds of audio before the clip that go
    with it.
    """

    fps: int = 24
    clip_frames: int = 12
    width: int = 512
    height: int = 512
    sample_rate: int = 16_000
    history_s: float = 2.0

    def __post_init__(self) -> None:
        for name in ("fps", "clip_frames", "width", "height", "sample_rate"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if self.width % 2 or self.height % 2:
            raise ValueError(f"the size {self.width}x{self.height} is odd; YUV 4:2:0 needs even sides")
        if self.history_s < 0:
            raise ValueError(f"history_s is {self.history_s}; it must not be negative")

    @property
    def clip_duration(self) -> Fraction:
        """Seconds of one clip, exactly."""
        return Fraction(self.clip_frames, self.fps)

    @property
    def history_frames(self) -> int:
        """Whole frames of history before a clip."""
        return int(self.history_s * self.fps)

    def sample_of_frame(self, frame: int, rate: int) -> int:
        """The first sample at ``rate`` Hz that belongs to frame ``frame``: floor(frame / fps * rate)."""
        return frame * rate // self.fps

    def frame_of_sample(self, sample: int, rate: int) -> int:
        """The frame to which sample number ``sample`` at ``rate`` Hz belongs; inverse of :meth:`sample_of_frame`."""
        return ((sample + 1) * self.fps - 1) // rate


@dataclass(frozen=True, slots=True)
class YuvFrames:
    """F frames as YUV 4:2:0 planes, BT.601 limited range: y (F, H, W), u and v (F, H/2, W/2), all uint8."""

    y: U8Array
    u: U8Array
    v: U8Array

    def __post_init__(self) -> None:
        if self.y.ndim != 3:
            raise ValueError(f"y has shape {self.y.shape}; (F, H, W) is expected")
        frames, height, width = self.y.shape
        chroma = (frames, height // 2, width // 2)
        if height % 2 or width % 2 or self.u.shape != chroma or self.v.shape != chroma:
            raise ValueError(f"y {self.y.shape}, u {self.u.shape}, v {self.v.shape} are not planes of YUV 4:2:0")
        for name in ("y", "u", "v"):
            if getattr(self, name).dtype != np.uint8:
                raise ValueError(f"{name} has type {getattr(self, name).dtype}; uint8 is expected")

    def __len__(self) -> int:
        return int(self.y.shape[0])

    def __getitem__(self, index: int | slice) -> YuvFrames:
        """A view of one frame (F = 1) or of a run of frames."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"frame {index} of {len(self)}")
            index %= len(self)
            index = slice(index, index + 1)
        return YuvFrames(self.y[index], self.u[index], self.v[index])

    def __iter__(self) -> Iterator[YuvFrames]:
        return (self[i] for i in range(len(self)))

    @classmethod
    def joined(cls, runs: Sequence[YuvFrames]) -> YuvFrames:
        """The frames of ``runs``, at least one, in their order; a copy if there are several."""
        if len(runs) == 1:
            return runs[0]
        return cls(*(np.concatenate([getattr(run, plane) for run in runs]) for plane in ("y", "u", "v")))

    @property
    def width(self) -> int:
        return int(self.y.shape[2])

    @property
    def height(self) -> int:
        return int(self.y.shape[1])


@dataclass(frozen=True, slots=True)
class AudioClip:
    """The audio side of clip ``index``, as the clipper cuts it.

    ``first_frame`` is the number of the clip's first frame in media time, ``frames`` how many frames it spans.
    ``window`` is mono float32 in -1..1 at the format's ``sample_rate``: the history, then the clip itself, whose
    samples are the last ``own_samples``.
    """

    index: int
    first_frame: int
    frames: int
    window: F32Array
    own_samples: int

    def __post_init__(self) -> None:
        if self.index < 0 or self.first_frame < 0 or self.frames < 1:
            raise ValueError(f"clip {self.index} with {self.frames} frames from frame {self.first_frame} cannot be")
        if self.window.ndim != 1 or self.window.dtype != np.float32:
            raise ValueError(
                f"the window has shape {self.window.shape} and type {self.window.dtype}; mono float32 is expected"
            )
        if not 0 < self.own_samples <= len(self.window):
            raise ValueError(f"own_samples is {self.own_samples} of a window of {len(self.window)}")

    @property
    def own(self) -> F32Array:
        """The clip's own samples, without the history."""
        return self.window[len(self.window) - self.own_samples :]
