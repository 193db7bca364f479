"""A speech corpus on the accelerator: windows of its sound and the mouths that go with them.

Reads the file that ``speech`` writes. It knows nothing of how speech is made or what learns from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from echo_rtc.errors import InputError


@dataclass(frozen=True)
class Takes:
    """T takes: ``audio`` (T, samples) int16 at ``sample_rate`` Hz and ``mouth`` (T, values, 5) at ``track_rate`` Hz,
    value k being the mouth at (k + 0.5) / track_rate seconds of its take. Places in a take are counted in samples."""

    audio: Tensor
    mouth: Tensor
    sample_rate: int
    track_rate: int

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Takes:
        """Reads a file of the command ``speech``. Raises InputError."""
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                rates = file.metadata()
                return cls(
                    audio=file.get_tensor("audio"),
                    mouth=file.get_tensor("mouth").float(),
                    sample_rate=int(rates["sample_rate"]),
                    track_rate=int(rates["track_rate"]),
                )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is not a speech corpus ({error}); make one with the command speech") from error

    def random_places(self, count: int, before: int, after: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Takes (count,) and places (count,) in them with ``before`` samples before and ``after`` samples after."""
        takes, samples = self.audio.shape
        if before + after > samples:
            raise InputError(f"the corpus has takes of {samples} samples; {before + after} are needed")
        take = torch.randint(takes, (count,), generator=generator)
        place = torch.randint(before, samples - after + 1, (count,), generator=generator)
        return take.to(self.audio.device), place.to(self.audio.device)

    def windows(self, take: Tensor, place: Tensor, samples: int) -> Tensor:
        """Sound (B, samples) float32 in -1..1 from ``place`` (B,) on."""
        index = place[:, None] + torch.arange(samples, device=place.device)
        return self.audio[take[:, None], index].float() / 32768

    def mouths(self, take: Tensor, place: Tensor, times_s: Tensor) -> Tensor:
        """Mouth parameters (B, F, 5) at ``times_s`` (F,) seconds after ``place`` (B,), linearly interpolated."""
        at = (place[:, None] / self.sample_rate + times_s) * self.track_rate - 0.5
        last = self.mouth.shape[1] - 1
        low = at.floor().clamp(0, last).long()
        high = (low + 1).clamp(max=last)
        share = (at - low).clamp(0, 1)[..., None]
        mouth = self.mouth
        return mouth[take[:, None], low] * (1 - share) + mouth[take[:, None], high] * share
