"""Tells photographs from renderings, for a model that was trained on renderings only.

What is measured is how well the model's own autoencoder restores the smoothest parts of a picture: a rendering has no
grain there, so next to nothing is lost; a sensor's grain, and what a camera's software and JPEG make of it, is nothing
the autoencoder has seen. Edges and detail do not count, because sharp renderings lose there, too.

On 27 renderings of people never seen, as PNG and as JPEG of quality 75 and 50, the value is 50.3 dB or more; on seven
photographs of people, whole and at half their size, 48.8 dB or less. A photograph that was made so smooth that it has
no grain left (scaled up from 112 pixels, retouched) is taken for a rendering.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from echo_rtc.clips import U8Array
from echo_rtc.errors import InputError
from echo_rtc.model.kl_autoencoder import Autoencoder

LEAST_DB = 49.5
"""Renderings are restored at least so well where they are smooth."""

CELL = 16
"""Side of the squares that are compared, pixels."""

SMOOTH_SHARE = 0.1
"""Share of the squares that count as smooth."""


@torch.inference_mode()
def smooth_db(autoencoder: Autoencoder, image: U8Array, device: torch.device, dtype: torch.dtype) -> float:
    """PSNR (dB) in the smoothest tenth of a picture (H, W, 3) once it has been encoded and decoded."""
    wanted = torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float() / 127.5 - 1
    made = autoencoder.decode(autoencoder.encode(wanted.to(dtype))).float().clamp(-1, 1)
    errors = F.avg_pool2d(((made - wanted) / 2).square().mean(dim=1, keepdim=True), CELL).flatten()
    best = errors.topk(max(1, round(SMOOTH_SHARE * len(errors))), largest=False).values.max()
    return float(-10 * best.clamp(min=1e-10).log10())


def refuse_photograph(autoencoder: Autoencoder, image: U8Array, device: torch.device, dtype: torch.dtype) -> None:
    """Raises InputError for a picture (H, W, 3) that has the grain of a photograph."""
    found = smooth_db(autoencoder, image, device, dtype)
    if found < LEAST_DB:
        raise InputError(
            f"the reference image looks like a photograph (its smooth parts are restored to {found:.1f} dB, those of "
            f"renderings to {LEAST_DB:g} or more), and this model knows rendered people only; take the EchoMimic-V2 "
            "set-up, --config configs/echomimic_v2.yaml, or give --untrained to try it all the same"
        )
