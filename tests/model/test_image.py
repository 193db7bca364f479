"""The reference image: orientation, transparency, size, and what is refused."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from echo_rtc.errors import InputError
from echo_rtc.model.image import MAX_PIXELS, NEUTRAL_RGB, load_reference_image, read_picture, resize_lanczos

FAULTS = Path(__file__).parents[1] / "data" / "faults"
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


UPRIGHT = {
    1: [RED, GREEN, BLUE, WHITE],
    2: [GREEN, RED, WHITE, BLUE],
    3: [WHITE, BLUE, GREEN, RED],
    4: [BLUE, WHITE, RED, GREEN],
    5: [RED, BLUE, GREEN, WHITE],
    6: [BLUE, RED, WHITE, GREEN],
    7: [WHITE, GREEN, BLUE, RED],
    8: [GREEN, WHITE, RED, BLUE],
}
"""The corners of quarters(), by its orientation."""


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "avif", "mpo"])
def test_exif_orientation_is_honoured(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {"quality": 95} if suffix in ("jpg", "avif", "mpo") else {}
    quarters().save(tmp_path / f"a.{suffix}", exif=exif, **options)
    found = corners(load_reference_image(tmp_path / f"a.{suffix}", 32, 32))
    assert np.abs(np.array(found) - np.array(UPRIGHT[orientation])).max() < 24


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
    with pytest.raises(InputError, match="is not a file; name a picture"):
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


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (300, 300), (1000, 100)])
def test_another_shape_is_cropped_and_not_squeezed(tmp_path: Path, size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, WHITE)
    radius = min(size) // 4
    centre = (size[0] // 2, size[1] // 2)
    ImageDraw.Draw(picture).circle(centre, radius, BLUE)
    picture.save(tmp_path / "a.png")
    for width, height in ((128, 128), (160, 128), (128, 160)):
        blue = load_reference_image(tmp_path / "a.png", width, height)[:, :, 0] < 128
        columns, rows = np.flatnonzero(blue.any(axis=0)), np.flatnonzero(blue.any(axis=1))
        assert 0.98 <= np.ptp(columns) / np.ptp(rows) <= 1.02


def test_a_crop_keeps_more_above_and_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture = Image.new("RGB", (100, 200), WHITE)
    picture.paste(RED, (0, 40, 100, 41))  # 40 of the 100 rows that go are above
    picture.save(tmp_path / "a.png")
    with caplog.at_level("INFO"):
        pixels = load_reference_image(tmp_path / "a.png", 100, 100)
    assert tuple(pixels[0, 0]) == RED
    assert "is cropped from 100 x 200 to 100 x 100 pixels" in caplog.text


def test_a_colour_profile_is_converted_to_srgb() -> None:
    pixels = load_reference_image(FAULTS / "display_p3.jpg", 64, 64)
    assert np.abs(pixels.reshape(-1, 3).mean(axis=0) - (218, 138, 110)).max() < 3


def display_p3() -> bytes:
    with Image.open(FAULTS / "display_p3.jpg") as image:
        return bytes(image.info["icc_profile"])


@pytest.mark.parametrize(
    ("suffix", "mode"), [("png", "RGB"), ("png", "RGBA"), ("png", "P"), ("tif", "RGB"), ("webp", "RGB")]
)
def test_profiles_count_in_every_format(tmp_path: Path, suffix: str, mode: str) -> None:
    picture = Image.new("RGB", (16, 16), (205, 140, 115))
    picture = picture.quantize(2) if mode == "P" else picture.convert(mode)
    picture.save(tmp_path / f"a.{suffix}", icc_profile=display_p3(), lossless=suffix == "webp")
    pixels = load_reference_image(tmp_path / f"a.{suffix}", 16, 16)
    assert np.abs(pixels.reshape(-1, 3).mean(axis=0) - (218, 138, 110)).max() < 3


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "LA", "P"])
@pytest.mark.parametrize("profile", [b"no profile", bytes(128), b"cut off", b"of something else"])
def test_a_profile_that_cannot_be_used_refuses_nothing(tmp_path: Path, mode: str, profile: bytes) -> None:
    if profile == b"cut off":
        profile = display_p3()[:300]
    elif profile == b"of something else":
        profile = display_p3() if mode in ("L", "CMYK", "LA") else cmyk_profile()
    picture = Image.new("RGB", (16, 16), (200, 100, 50)).convert("CMYK" if mode == "CMYK" else mode)
    plain, profiled = tmp_path / "plain.tif", tmp_path / "profiled.tif"
    picture.save(plain)
    picture.save(profiled, icc_profile=profile)
    assert np.array_equal(load_reference_image(profiled, 16, 16), load_reference_image(plain, 16, 16))


def cmyk_profile() -> bytes:
    """A printer's profile (ICC version 2) by which every ink makes the paper of Lab 50, 60, 40 whatever its amount."""
    colour = bytes((128, 128 + 60, 128 + 40))
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + struct.pack(">9i", *(65536 * (n % 4 == 0) for n in range(9)))
    ramp = bytes(range(256))
    table += ramp * 4 + colour * 16 + ramp * 3
    about = b"desc" + bytes(4) + struct.pack(">I", 5) + b"inks\0" + bytes(78)
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    parts = [(b"desc", about), (b"wtpt", white), (b"A2B0", table)]
    listed, body, at = struct.pack(">I", len(parts)), b"", 128 + 4 + 12 * len(parts)
    for name, content in parts:
        padded = content + bytes(-len(content) % 4)
        listed += name + struct.pack(">II", at + len(body), len(content))
        body += padded
    date = struct.pack(">6H", 2026, 1, 1, 0, 0, 0)
    header = struct.pack(
        ">I4sI4s4s4s12s4s", at + len(body), bytes(4), 0x02400000, b"prtr", b"CMYK", b"Lab ", date, b"acsp"
    )
    header += bytes(68 - len(header)) + struct.pack(">3i", 63190, 65536, 54061) + bytes(48)
    return header + listed + body


def test_a_profile_of_inks_is_used(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (255, 255, 255, 255)).save(tmp_path / "a.tif", icc_profile=cmyk_profile())
    red, green, blue = (int(value) for value in load_reference_image(tmp_path / "a.tif", 16, 16)[8, 8])
    assert red > green + 80, "Lab 50, 60, 40 is a strong red, and without the profile this is black"
    assert red > blue + 80


def photo(size: tuple[int, int] = (256, 256), **options: bool) -> bytes:
    """A JPEG in which no two rows are alike."""
    noise = np.random.default_rng(3).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90, **options)
    return file.getvalue()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("lost", [1, 2, 50, 500])
def test_a_jpeg_without_its_last_bytes_is_taken(tmp_path: Path, lost: int, progressive: bool) -> None:
    whole = photo(progressive=progressive)
    (tmp_path / "whole.jpg").write_bytes(whole)
    (tmp_path / "cut.jpg").write_bytes(whole[:-lost])
    full, cut = (load_reference_image(tmp_path / f"{name}.jpg", 256, 256).astype(int) for name in ("whole", "cut"))
    assert np.abs(full - cut)[:200].mean() < 4


def test_a_jpeg_of_which_much_is_missing_is_damaged(tmp_path: Path) -> None:
    whole = photo()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged"):
        load_reference_image(tmp_path / "a.jpg", 64, 64)


def test_a_large_photo_is_decoded_at_half_its_size() -> None:
    """48 megapixels of a phone, which would be 146 MB of pixels."""
    file = io.BytesIO()
    Image.new("RGB", (8064, 6048), (90, 120, 150)).save(file, "JPEG")
    picture = read_picture(file, "image", max_pixels=32_000_000)
    assert picture.size == (4032, 3024)
    assert np.abs(np.array(picture.getpixel((2000, 1500))) - (90, 120, 150)).max() < 3
