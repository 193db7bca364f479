"""Tells photographs from renderings, for a model that was trained on renderings only.

What is measured is the grain in the smoothest parts of a picture: how far its pixels are from a plane through each
square. A rendering has no grain there, only the steps of its levels; a photograph has a sensor's grain, and what a
camera's software makes of it. Edges and detail do not count, because sharp renderings have those, too.

On 27 renderings of people never seen, as PNG and as JPEG of quality 75 and 50, the value is 52.4 dB or more; on six
photographs of people, whole and at half their size, 51.4 dB or less. A photograph that was made so smooth that it has
no grain left (scaled up from 112 pixels, retouched, saved as JPEG of low quality at this very size) is taken for a
rendering.
"""

from __future__ import annotations

import math

import numpy as np

from echo_rtc.clips import U8Array
from echo_rtc.errors import InputError

LEAST_DB = 52.0
"""Renderings are at least so close to a plane where they are smooth."""

CELL = 8
"""Side of the squares, pixels: that of JPEG's blocks."""

SMOOTH_SHARE = 0.1
"""Share of the squares that count as smooth."""


def smooth_db(image: U8Array) -> float:
    """PSNR (dB) of the smoothest tenth of a picture (H, W, 3) against a plane through each of its squares.

    JPEG flattens its blocks, which hides grain, and leaves steps between them: squares in line with its blocks and
    squares half a side off are both looked at, and the lower value counts. Infinite for a picture that holds no square.
    """
    half = CELL // 2
    return min(_smooth_db(image), _smooth_db(image[half:-half, half:-half]))


def _smooth_db(image: U8Array) -> float:
    height, width = (side // CELL * CELL for side in image.shape[:2])
    if not height * width:
        return math.inf
    squares = image[:height, :width].reshape(height // CELL, CELL, width // CELL, CELL, 3)
    values = np.moveaxis(squares, 1, 2).reshape(-1, CELL * CELL, 3).astype(np.float32) / 255
    ramp = np.linspace(-1, 1, CELL, dtype=np.float32)
    plane = np.stack([np.ones(CELL * CELL, np.float32), np.tile(ramp, CELL), np.repeat(ramp, CELL)], 1)
    plane /= np.linalg.norm(plane, axis=0)  # its columns are orthogonal already
    rest = values - plane @ (plane.T @ values)
    errors = np.sort(np.square(rest).mean(axis=(1, 2)))
    return float(-10 * np.log10(max(errors[max(1, round(SMOOTH_SHARE * len(errors))) - 1], 1e-10)))


def refuse_photograph(image: U8Array) -> None:
    """Raises InputError for a picture (H, W, 3) that has the grain of a photograph."""
    found = smooth_db(image)
    if found < LEAST_DB:
        raise InputError(
            f"the reference image looks like a photograph (its smooth parts have grain, {found:.1f} dB, those of "
            f"renderings {LEAST_DB:g} or more), and this model knows rendered people only; take the EchoMimic-V2 "
            "set-up, --config configs/echomimic_v2.yaml, or give --untrained to try it all the same"
        )
