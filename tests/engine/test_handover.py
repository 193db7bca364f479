"""Values through shared memory: what is put is what is taken, and no array's bytes go through the pipe."""

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest

from echo_rtc.clips import YuvFrames
from echo_rtc.engine.handover import Area
from echo_rtc.rendering import RenderRequest, RenderResult

CONTEXT = multiprocessing.get_context("spawn")


def test_a_result_comes_back_as_it_was_and_is_the_takers_own() -> None:
    rng = np.random.default_rng(1)
    planes = [rng.integers(0, 256, (3, *shape), np.uint8) for shape in ((34, 50), (17, 25), (17, 25))]
    result = RenderResult(YuvFrames(*planes), rng.normal(size=(4, 3, 5)).astype(np.float16), {"decode": 1.5})
    area = Area(CONTEXT, 100_000)
    payload = area.put(result)
    assert len(payload.body) < 4096  # one write to a pipe, whole or not at all
    taken = area.take(payload)
    area.put(RenderResult(YuvFrames(*(plane * 0 for plane in planes))))  # the next one overwrites the area
    assert isinstance(taken, RenderResult)
    for plane in "yuv":
        assert np.array_equal(getattr(taken.frames, plane), getattr(result.frames, plane))
    assert np.array_equal(taken.final_latent, result.final_latent)  # type: ignore[arg-type]
    assert taken.stages_ms == {"decode": 1.5}
    taken.frames.y[:] = 0  # writable


def test_views_and_transposed_arrays_keep_their_values() -> None:
    sound = np.arange(1000, dtype=np.float32)[::2]
    latent = np.arange(24, dtype=np.float16).reshape(2, 3, 4).transpose(2, 0, 1)
    area = Area(CONTEXT, 10_000)
    taken = area.take(area.put(RenderRequest("default", sound, 12, 0, 7, latent)))
    assert isinstance(taken, RenderRequest)
    assert np.array_equal(taken.audio, sound)
    assert taken.init_latent is not None
    assert np.array_equal(taken.init_latent, latent)


def test_what_does_not_fit_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="arrays of 4000 bytes do not fit into the 3999 bytes"):
        Area(CONTEXT, 3999).put(np.zeros(1000, np.float32))
