"""Whether a CPU without bfloat16 computes in float32 or in 8-bit integers: both are measured, and the exact one stays
unless it is too slow for real time and the other is quicker. Knows neither networks nor number formats.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from echo_rtc.engine.pace import ADMISSION
from echo_rtc.errors import SettingsError
from echo_rtc.rendering import RenderRequest

if TYPE_CHECKING:
    from echo_rtc.engine.worker import Renderer

MOST_GAIN = 4.0
"""Integers are never quicker than float32 by more than this factor: where that is not enough, the picture is kept."""

TIMED_CLIPS = 3
"""Clips that are timed in each form, after one that is not; the quickest counts, because others may be running."""


class Forms(Protocol):
    """A model whose layers compute in either form."""

    def use_integers(self, avatar: str) -> None:
        """Raises SettingsError where there are none."""
        ...

    def use_floats(self) -> None: ...


def settle(
    renderer: Renderer, forms: Forms, request: RenderRequest, fps: int, clock: Callable[[], float] = time.perf_counter
) -> str:
    """Chooses the form for clips like ``request``, by ``clock`` (s). Returns what users should know of it, as a
    sentence; empty where float32 stays."""
    enough = fps / ADMISSION
    before = _frames_per_second(renderer, request, enough / MOST_GAIN, clock)
    if not enough / MOST_GAIN <= before < enough:
        return ""
    try:
        forms.use_integers(request.avatar)
    except SettingsError:  # this build of PyTorch has no such layers
        return ""
    after = _frames_per_second(renderer, request, 0.0, clock)
    if after <= before:
        forms.use_floats()
        return ""
    return (
        f"The model computes in 8-bit integers, {after:.1f} frames/s: this CPU has no bfloat16, and float32 reaches "
        f"{before:.1f} of the {fps} frames/s of real time. --dtype float32 gives the exact picture."
    )


def _frames_per_second(renderer: Renderer, request: RenderRequest, least: float, clock: Callable[[], float]) -> float:
    """Of the quickest of a few chained clips; of the first, which takes longer, if even twice that is below
    ``least``."""
    best = 0.0
    for number in range(1 + TIMED_CLIPS):
        prepared = renderer.prepare(request)
        begun = clock()
        result = renderer.render(request, prepared, lambda frames: None)
        speed = request.frames / max(clock() - begun, 1e-6)
        if number == 0 and 2 * speed < least:
            return speed
        best = best if number == 0 else max(best, speed)
        request = replace(request, init_latent=result.final_latent)
    return best
