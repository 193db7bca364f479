"""The embedded model, loaded once for all tests that only look at it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from echo_rtc.model.generator import ClipGenerator
from echo_rtc.resources import EMBEDDED
from echo_rtc.train.evaluate import load_generator


@cache
def _loaded() -> ClipGenerator:
    return load_generator(EMBEDDED, "cpu")


def shipped_generator(untrained: bool = False) -> ClipGenerator:
    """A generator over the shared networks, without avatars."""
    loaded = _loaded()
    settings = replace(loaded.settings, untrained=untrained)
    return ClipGenerator(loaded.networks, loaded.audio_encoder, settings, loaded.trained)
