"""Contact sheets: truth and what a model made of it side by side, for the eye.

Pictures are (N, 3, H, W) uint8.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def grid(rows: Sequence[Tensor]) -> Image.Image:
    """Rows of pictures, all of one size."""
    lines = [row.permute(2, 0, 3, 1).flatten(1, 2) for row in rows]
    return Image.fromarray(np.ascontiguousarray(torch.cat(lines).numpy()))


def compare(true: Tensor, made: Tensor, reference: Tensor, path: Path, columns: int = 6, side: int = 256) -> None:
    """Writes a JPEG: the reference before rows of true frames, each above what was made of it."""
    count = min(len(true), len(made))
    numbers = torch.linspace(0, count - 1, min(count, 2 * columns)).round().long()
    rows = []
    for part in torch.split(numbers, columns):
        blank = torch.zeros(columns - len(part), *true.shape[1:], dtype=torch.uint8)
        for frames, first in ((true, reference), (made, torch.zeros_like(reference))):
            rows.append(torch.cat([first[None], frames[part], blank]))
    image = grid(rows)
    size = (side * (columns + 1), side * len(rows))
    image.resize(size, Image.Resampling.LANCZOS).save(path, quality=90)
