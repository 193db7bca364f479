"""The label "AI-generated" in the pixels, which stays when pictures are encoded again.

It is drawn once, with the typeface that Pillow contains, and blended into the lower right corner of each frame. NumPy
and Pillow.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from echo_rtc.clips import ClipFormat, U8Array, YuvFrames
from echo_rtc.errors import SettingsError

TEXT = "AI-generated"
TEXT_SIZE = 0.7
"""Pixels of the type's size, times the square root of the shorter side: letters that can be read in small pictures, and
are small in large ones."""
LEAST_TEXT_SIZE = 11
WHITE, BLACK, NEUTRAL = 235, 16, 128
"""Luma and chroma in limited range."""
PLATE_OPACITY = 0.62
_SHIFT = 8
"""Weights are whole numbers of 1/256."""

U16Array = NDArray[np.uint16]


class BurnedMark:
    """Lays the mark over frames of one size. Raises SettingsError where they are too small for it."""

    def __init__(self, clip_format: ClipFormat) -> None:
        opacity, brightness = _drawn(
            max(LEAST_TEXT_SIZE, round(TEXT_SIZE * math.sqrt(min(clip_format.width, clip_format.height))))
        )
        height, width = opacity.shape
        margin = 2 * max(2, height // 4)
        top, left = clip_format.height - height - margin, clip_format.width - width - margin
        if top < 0 or left < 0:
            raise SettingsError(
                f"burn_mark needs pictures of at least {width + margin} x {height + margin}, and they have "
                f"{clip_format.width} x {clip_format.height}; raise width and height, or leave burn_mark out"
            )
        top, left = top - top % 2, left - left % 2
        self._luma = _Block(slice(top, top + height), slice(left, left + width), opacity, brightness)
        coarse = opacity.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))
        rows, columns = slice(top // 2, (top + height) // 2), slice(left // 2, (left + width) // 2)
        self._chroma = _Block(rows, columns, coarse, np.full(coarse.shape, float(NEUTRAL)))

    def on(self, frames: YuvFrames) -> YuvFrames:
        """A copy of the frames with the mark on each."""
        return YuvFrames(self._luma.on(frames.y), self._chroma.on(frames.u), self._chroma.on(frames.v))


class _Block:
    """What covers a rectangle of a plane: ``opacity`` 0..1 and ``value`` 0..255, (H, W) each."""

    def __init__(self, rows: slice, columns: slice, opacity: NDArray[np.float64], value: NDArray[np.float64]) -> None:
        self._place = (slice(None), rows, columns)
        covered = np.rint(opacity * 2**_SHIFT)
        self._kept: U16Array = (2**_SHIFT - covered).astype(np.uint16)
        self._added: U16Array = np.rint(covered * value).astype(np.uint16)

    def on(self, plane: U8Array) -> U8Array:
        """A copy of a plane (F, H, W) with the block on it."""
        made = plane.copy()
        made[self._place] = (made[self._place] * self._kept + self._added) >> _SHIFT
        return made


def _drawn(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mark in type of ``size`` pixels: opacity 0..1 and luma, (H, W) each, of even height and width."""
    type_face = ImageFont.load_default(size)
    left, top, right, bottom = type_face.getbbox(TEXT)
    inset = max(3, size // 3)
    width, height = (2 * math.ceil((side + 2 * inset) / 2) for side in (right - left, bottom - top))
    plate, text = Image.new("L", (width, height)), Image.new("L", (width, height))
    ImageDraw.Draw(plate).rounded_rectangle((0, 0, width - 1, height - 1), radius=height // 3, fill=255)
    ImageDraw.Draw(text).text((inset - left, inset - top), TEXT, font=type_face, fill=255)
    ink = np.asarray(text, np.float64) / 255
    opacity = np.maximum(np.asarray(plate, np.float64) / 255 * PLATE_OPACITY, ink)
    return opacity, BLACK + ink * (WHITE - BLACK)
