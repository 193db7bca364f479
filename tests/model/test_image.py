"""The reference image: orientation, transparency, size, and what is refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from echo_rtc.errors import InputError
from echo_rtc.model.image import MAX_PIXELS, NEUTRAL_RGB, load_reference_image, resize_lanczos

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quarters(width: int = 64, height: int = 32) -> Image.Image:
    """Red and green above, blue and white below."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2], pixels[: height // 2, width // 2 :] = RED, GREEN
    pixels[height // 2 :, : width // 2], pixels[height // 2 :, width // 2 :] = BLUE, WHITE
    return Image.fromarray(pixels)


def corners(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> list[tuple[int, ...]]:
    """Colours at top left, top right, bottom left, bottom right."""
    return [tuple(int(v) for v in pixels[y, x]) for y in (0, -1) for x in (0, -1)]


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = (header, data, b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


def test_size_is_width_by_height(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.png")
    pixels = load_reference_image(tmp_path / "a.png", 48, 96)
    assert pixels.shape == (96, 48, 3)
    assert pixels.dtype == np.uint8
    assert corners(pixels) == [RED, GREEN, BLUE, WHITE]


def test_own_size_is_kept_exactly(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    assert np.array_equal(load_reference_image(tmp_path / "a.png", 40, 24), noise)


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [RED, GREEN, BLUE, WHITE]),
        (2, [GREEN, RED, WHITE, BLUE]),
        (3, [WHITE, BLUE, GREEN, RED]),
        (6, [BLUE, RED, WHITE, GREEN]),
        (8, [GREEN, WHITE, RED, BLUE]),
    ],
)
def test_exif_orientation_is_honoured(tmp_path: Path, orientation: int, expected: list[tuple[int, int, int]]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    quarters().save(tmp_path / "a.png", exif=exif)
    assert corners(load_reference_image(tmp_path / "a.png", 32, 32)) == expected


def test_odd_exif_data_is_no_reason_to_refuse_a_photo(tmp_path: Path) -> None:
    """The name of a camera's maker as a fraction: who writes it anew as text cannot."""
    exif = Image.Exif()
    exif[0x0112] = 3
    exif[0x010F] = "a maker of cameras"
    odd = bytearray(exif.tobytes())
    at = odd.index(b"\x0f\x01\x02\x00" if b"II" in odd[:10] else b"\x01\x0f\x00\x02")
    odd[at + 2 : at + 8] = b"\x05\x00\x01\x00\x00\x00" if b"II" in odd[:10] else b"\x00\x05\x00\x00\x00\x01"
    upright = corners(load_reference_image(saved(tmp_path / "plain.png"), 32, 32))
    assert corners(load_reference_image(saved(tmp_path / "odd.png", bytes(odd)), 32, 32)) == upright[::-1]


def saved(path: Path, exif: bytes = b"") -> Path:
    quarters().save(path, exif=exif)
    return path


def test_transparency_lies_over_neutral_grey(tmp_path: Path) -> None:
    image = Image.new("RGBA", (16, 16), (*RED, 0))
    image.paste((*BLUE, 255), (8, 0, 16, 16))
    image.save(tmp_path / "a.png")
    assert corners(load_reference_image(tmp_path / "a.png", 16, 16)) == [NEUTRAL_RGB, BLUE, NEUTRAL_RGB, BLUE]


def test_palette_with_a_transparent_entry(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([*RED, *GREEN])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "a.png", transparency=0)
    assert corners(load_reference_image(tmp_path / "a.png", 8, 8)) == [NEUTRAL_RGB, GREEN, GREEN, GREEN]


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in (GREEN, RED, BLUE)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=40)
    assert corners(load_reference_image(tmp_path / "a.gif", 16, 16)) == [GREEN] * 4


def test_sixteen_bit_grey_is_scaled(tmp_path: Path) -> None:
    ramp = np.full((8, 8), 257 * 100, np.uint16)
    ramp[0, 0] = 65535
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert corners(load_reference_image(tmp_path / "a.png", 8, 8)) == [WHITE, *[(100, 100, 100)] * 3]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    assert corners(load_reference_image(tmp_path / "a.tif", 8, 8)) == [RED] * 4


@pytest.mark.parametrize("size", [(90, 31), (31, 90), (64, 64)])
def test_lanczos_goes_columns_first(size: tuple[int, int]) -> None:
    """The middle picture is rounded and limited, so the order shows at sharp edges; ours must not depend on shape."""
    noise = (np.random.default_rng(1).random((size[1], size[0], 3)) < 0.1).astype(np.uint8) * 255
    image = Image.fromarray(noise)
    half = Image.fromarray(np.asarray(image.resize((16, size[1]), Image.Resampling.LANCZOS)))
    expected = np.asarray(half.resize((16, 20), Image.Resampling.LANCZOS))
    assert np.array_equal(np.asarray(resize_lanczos(image, 16, 20)), expected)
    rows_first = image.resize((size[0], 20), Image.Resampling.LANCZOS).resize((16, 20), Image.Resampling.LANCZOS)
    assert not np.array_equal(np.asarray(rows_first), expected)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nobody\.png does not exist"):
        load_reference_image(tmp_path / "nobody.png", 8, 8)


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_reference_image(tmp_path, 8, 8)


@pytest.mark.parametrize("content", [b"", b"not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match="not an image that can be read"):
        load_reference_image(tmp_path / "a.png", 8, 8)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tif"])
def test_truncated_image_is_one_sentence(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=f"a.{suffix}") as caught:
        load_reference_image(path, 8, 8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(10_001, 10_000), (30_000, 30_000)])
def test_too_many_pixels_are_refused_by_the_header(tmp_path: Path, size: tuple[int, int]) -> None:
    assert size[0] * size[1] > MAX_PIXELS
    (tmp_path / "a.png").write_bytes(png_header(*size))
    with pytest.raises(InputError, match="more than 100 megapixels"):
        load_reference_image(tmp_path / "a.png", 8, 8)


def test_just_under_the_limit_is_decoded(tmp_path: Path) -> None:
    """The same file with an admitted size gets as far as its missing pixels."""
    (tmp_path / "a.png").write_bytes(png_header(10_000, 10_000))
    with pytest.raises(InputError, match="damaged"):
        load_reference_image(tmp_path / "a.png", 8, 8)
