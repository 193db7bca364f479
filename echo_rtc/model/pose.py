"""Poses: the hands of one frame, and where their drawing goes. Knows nothing of files, of drawing or of the encoder."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

F64Array = NDArray[np.float64]

PICTURE_SIDE = 768
"""Pixels of the square picture into which regions are placed; a region that reaches beyond it makes it larger."""


_MAX_SIDE = 8192
_MAX_ASPECT = 8
_MAX_VALUE = 100.0


@dataclass(frozen=True, slots=True)
class Region:
    """Where the drawing goes: resized to ``height`` x ``width`` and placed at rows and columns (end exclusive) of the
    picture, all in pixels. The published files' ``draw_pose_params``, in their order."""

    height: int = PICTURE_SIDE
    width: int = PICTURE_SIDE
    row_begin: int = 0
    row_end: int = PICTURE_SIDE
    col_begin: int = 0
    col_end: int = PICTURE_SIDE

    def __post_init__(self) -> None:
        if not (0 < self.height <= _MAX_SIDE and 0 < self.width <= _MAX_SIDE):
            raise ValueError(f"draw_pose_params has size {self.width}x{self.height}; sides of 1 to {_MAX_SIDE} can be")
        if max(self.height, self.width) > _MAX_ASPECT * min(self.height, self.width):
            raise ValueError(
                f"draw_pose_params has size {self.width}x{self.height}; at most {_MAX_ASPECT} to 1 can be drawn"
            )
        for name, begin, end, length in (
            ("rows", self.row_begin, self.row_end, self.height),
            ("columns", self.col_begin, self.col_end, self.width),
        ):
            if begin < 0 or end - begin != length or end > _MAX_SIDE:
                raise ValueError(f"draw_pose_params places {length} {name} at {begin}..{end}")


@dataclass(frozen=True, slots=True, eq=False)
class Pose:
    """One frame's hands.

    ``hands`` (2, 21, 2) float64: x, y of each joint as a share of the drawing area (beyond 0..1 is outside of it, -1
    is a joint that was not found). ``hands_score`` (2, 21) float64: how sure each joint is; it becomes its brightness.
    Both are kept as read-only copies. Raises ValueError where they are not that.
    """

    hands: F64Array
    hands_score: F64Array
    region: Region = field(default_factory=Region)

    def __post_init__(self) -> None:
        for name, shape in (("hands", (2, 21, 2)), ("hands_score", (2, 21))):
            value = np.array(getattr(self, name), dtype=np.float64)
            if value.shape != shape:
                raise ValueError(f"{name} has shape {value.shape}; {shape} is expected")
            if not np.isfinite(value).all() or np.abs(value).max() > _MAX_VALUE:
                raise ValueError(f"{name} has values that are not finite or beyond {_MAX_VALUE:g}")
            value.flags.writeable = False
            object.__setattr__(self, name, value)
