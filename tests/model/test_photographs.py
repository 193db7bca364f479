"""Photographs are told from renderings: by the shipped people, by grain, and through the generator."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from echo_rtc.clips import U8Array
from echo_rtc.errors import InputError
from echo_rtc.model.image import load_reference_image
from echo_rtc.model.photographs import CELL, LEAST_DB, smooth_db
from echo_rtc.resources import EMBEDDED
from tests.model.shipped import shipped_generator

PEOPLE = (EMBEDDED, EMBEDDED / "omar", EMBEDDED / "nia")


def reference(folder: Path = EMBEDDED) -> U8Array:
    return load_reference_image(folder / "reference.png", 384, 384)


def photographed(image: U8Array, grain: float, seed: int = 0) -> U8Array:
    """A picture as a camera gives it: more grain where it is bright, in every channel; a third of it spread over
    neighbouring pixels, as demosaicing does."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=image.shape) * np.sqrt(0.3 + image / 255)
    noise = 0.67 * noise + 0.33 * (np.roll(noise, 1, 0) + np.roll(noise, 1, 1))
    return (image + grain * noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("folder", PEOPLE, ids=lambda path: path.name)
def test_renderings_are_taken(folder: Path) -> None:
    assert smooth_db(reference(folder)) > LEAST_DB + 1


def test_a_rendering_saved_as_jpeg_is_taken() -> None:
    file = io.BytesIO()
    Image.fromarray(reference()).save(file, "JPEG", quality=70)
    assert smooth_db(np.array(Image.open(file))) > LEAST_DB


@pytest.mark.parametrize("grain", [2.0, 4.0, 8.0])
@pytest.mark.parametrize("folder", PEOPLE[:2], ids=lambda path: path.name)
def test_grain_is_told(folder: Path, grain: float) -> None:
    """Two levels of grain are those of a small camera in good light."""
    assert smooth_db(photographed(reference(folder), grain)) < LEAST_DB


@pytest.mark.parametrize("shape", [(4, 4), (7, 40), (8, 8), (15, 9), (16, 16), (387, 385)])
def test_a_picture_of_any_size_is_looked_at(shape: tuple[int, int]) -> None:
    grain = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
    assert (smooth_db(grain) < LEAST_DB) == (min(shape) >= CELL)
    assert smooth_db(np.full_like(grain, 90)[:, ::-1]) > LEAST_DB


def test_a_photograph_is_refused_unless_it_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "me.png"
    Image.fromarray(photographed(reference(), 3.0)).save(path)
    generator = shipped_generator()
    with pytest.raises(InputError, match=r"looks like a photograph .*configs/echomimic_v2\.yaml, or give --untrained"):
        next(generator.avatar_pieces("me", path, EMBEDDED / "poses"))
    generator = shipped_generator(untrained=True)
    next(generator.avatar_pieces("me", path, EMBEDDED / "poses"))


def test_what_jpeg_does_to_a_photograph_hides_nothing() -> None:
    file = io.BytesIO()
    Image.fromarray(photographed(reference(), 4.0)).save(file, "JPEG", quality=85)
    assert smooth_db(np.array(Image.open(file))) < LEAST_DB
