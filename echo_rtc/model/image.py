"""The reference image: any picture a user has, as the RGB array of the size that the model reads.

Knows nothing of the autoencoder that turns it into latents, nor of where the file came from.
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from echo_rtc.clips import U8Array
from echo_rtc.errors import InputError

logger = logging.getLogger(__name__)

MAX_PIXELS = 100_000_000
"""The largest image that is decoded, width x height; a JPEG may have twice as many."""

# What Pillow's readers raise on bytes that are not theirs; RuntimeError is the AVIF reader's.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    RuntimeError,
    AttributeError,
    ArithmeticError,
    struct.error,
    zlib.error,
)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to turn a picture upright, by its orientation (EXIF 2.3, tag 0x0112)."""

NEUTRAL_RGB = (128, 128, 128)
"""What shows through where an image is transparent."""

# Still pictures only: some of Pillow's other readers start programs (EPS) or fetch nothing a reference could be.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM", "TGA")
UNTRUSTED_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "BMP", "GIF")
"""Formats accepted from uploads. TIFF is left out: a file of 200 bytes can ask for 2 GB (a tile that is larger than the
picture), and libtiff writes to the console."""


FACE_HEIGHT = 0.4
"""Where a picture is cropped to another shape, this share of what goes is at the top: faces are above the middle."""

_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_HALVED_PIXELS = 16_000_000
"""A JPEG of more pixels is decoded at half its size, in a quarter of the memory: no model reads more than that."""
_MAX_MISSING = 0.25
"""The share of a JPEG's height that may be missing at its end."""
_MAX_PROFILE_BYTES = 4 * 1024 * 1024
_PROFILE_SPACES = {"RGB": "RGB", "CMYK": "CMYK", "L": "GRAY"}
"""The colour space that a profile must be of, by the mode of the picture."""


def load_reference_image(path: Path, width: int, height: int) -> U8Array:
    """Read an image as (height, width, 3) uint8 RGB.

    The first frame of an animation, turned as its EXIF orientation says, in sRGB, transparency over neutral grey,
    cropped to the shape of ``width`` x ``height`` and resized to it with Lanczos. Raises InputError if the file is
    missing, is not an image, is damaged or has too many pixels (found out from its header, before decoding).
    """
    path = Path(path)
    if not path.is_file():
        why = "is not a file; name a picture" if path.exists() else "does not exist"
        raise InputError(f"the reference image {path} {why}")
    picture = read_picture(path, f"the reference image {path}")
    cropped = crop_to_shape(picture, width, height)
    if cropped.size != picture.size:
        logger.info(
            "the reference image %s is cropped from %d x %d to %d x %d pixels, the shape of the stream",
            *(path, *picture.size, *cropped.size),
        )
    return np.array(resize_lanczos(cropped, width, height), dtype=np.uint8)


def crop_to_shape(picture: Image.Image, width: int, height: int) -> Image.Image:
    """The largest part of a picture that has the shape of ``width`` x ``height``, with more cut off below than above:
    a face stays whole and keeps its proportions."""
    scale = min(picture.width / width, picture.height / height)
    kept = max(1, round(width * scale)), max(1, round(height * scale))
    left = round((picture.width - kept[0]) / 2)
    top = round((picture.height - kept[1]) * FACE_HEIGHT)
    return picture if kept == picture.size else picture.crop((left, top, left + kept[0], top + kept[1]))


def read_picture(
    file: Path | BinaryIO,
    what: str,
    max_pixels: int = MAX_PIXELS,
    min_side: int = 1,
    still: bool = False,
    formats: Sequence[str] = _FORMATS,
) -> Image.Image:
    """Read a picture of any common kind as 8-bit sRGB, upright, transparency over neutral grey. Messages begin with
    ``what``.

    A JPEG may have twice ``max_pixels``, because a large one is decoded at half its size, and may lack its last bytes,
    as browsers allow it. Raises InputError if it is not an image, is damaged, has more pixels or a side of less than
    ``min_side``, or moves where a ``still`` is wanted. Size and movement are found out before anything is decoded, and
    no further than they have to be: frames are not counted.
    """
    Image.init()
    known = [name for name in formats if name in Image.OPEN]
    try:
        with warnings.catch_warnings():
            # Pillow warns below our own limit, which is checked next, and of each damage in words of the file.
            warnings.simplefilter("ignore")
            with Image.open(file, formats=known) as image:
                jpeg = image.format in ("JPEG", "MPO")
                if image.width * image.height > max_pixels * (2 if jpeg else 1):
                    raise Image.DecompressionBombError(f"{image.width} x {image.height}")
                if min(image.size) < min_side:
                    raise InputError(
                        f"{what} has {image.width} x {image.height} pixels; its sides must have at least {min_side}"
                    )
                # A photo with a thumbnail or a depth map in it (MPO) is a still all the same.
                if still and image.format != "MPO" and getattr(image, "is_animated", False):
                    raise InputError(f"{what} moves: it has more than one frame; choose a still picture")
                return _upright_rgb(_decoded(image, file, jpeg), what)
    except Image.DecompressionBombError as error:
        raise InputError(f"{what} has more than {max_pixels // 1_000_000} megapixels; make it smaller") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{what} is not an image that can be read; use PNG or JPEG") from error
    except _DAMAGE as error:
        raise InputError(f"{what} is damaged or cannot be read: {' '.join(str(error).split())[:200]}") from error


def _decoded(image: Image.Image, file: Path | BinaryIO, jpeg: bool) -> Image.Image:
    """The image with its pixels, the end of a JPEG as grey where it is missing. Raises what Pillow raises."""
    _halve(image, jpeg)
    try:
        image.load()
        return image
    except OSError as error:
        if not jpeg or "truncated" not in str(error):
            raise
        completed = Image.open(io.BytesIO(_content(file) + _JPEG_END), formats=["JPEG"])
        _halve(completed, jpeg)
        completed.load()
        if _missing(completed) > _MAX_MISSING:
            raise
        return completed


def _halve(image: Image.Image, jpeg: bool) -> None:
    """Has a large JPEG decoded at half its size."""
    if jpeg and image.width * image.height > _HALVED_PIXELS:
        image.draft(image.mode, (image.width // 2, image.height // 2))


def _content(file: Path | BinaryIO) -> bytes:
    if isinstance(file, Path):
        return file.read_bytes()
    file.seek(0)
    return file.read()


def _missing(image: Image.Image) -> float:
    """The share of the height at the end whose rows are all alike, as the decoder fills in what a JPEG lacks."""
    grey = np.asarray(image.convert("L"), dtype=np.int16)
    changed = np.flatnonzero(np.abs(np.diff(grey, axis=0)).max(axis=1) > 0)
    last = int(changed[-1]) + 1 if len(changed) else 0
    return (image.height - 1 - last) / image.height


def resize_lanczos(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resize with Lanczos, columns first and then rows, which is the order of all Pillow before 13.

    Newer ones take the cheaper order, which moves pixels at sharp edges by up to some tens of levels, because the
    picture between the two passes is rounded and limited to 0..255.
    """
    columns = image.resize((width, image.height), Image.Resampling.LANCZOS)
    return columns.resize((width, height), Image.Resampling.LANCZOS)


def _upright_rgb(image: Image.Image, what: str) -> Image.Image:
    """A decoded image turned as its orientation says, as 8-bit sRGB over neutral grey."""
    # Only a decoded image tells its orientation: Pillow turns a TIFF itself and forgets the tag, and a PNG may have it
    # behind the pixels. Pillow's own function also rewrites the EXIF data, and fails where some of it is odd.
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    profile = image.info.get("icc_profile")
    turned = image.transpose(_TURNS[orientation]) if orientation in _TURNS else image
    return _to_rgb(_to_srgb(turned, profile), what)


def _to_srgb(image: Image.Image, profile: object) -> Image.Image:
    """The image in sRGB, by the colour profile that came with it; the image itself where there is no profile, it is
    sRGB's, or it cannot be used."""
    if not isinstance(profile, bytes) or not 0 < len(profile) <= _MAX_PROFILE_BYTES:
        return image
    try:
        if image.mode in ("P", "PA", "LA", "RGBA"):
            alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
            colours = _converted(image.convert("L" if image.mode == "LA" else "RGB"), profile)
            if alpha is not None:
                colours.putalpha(alpha)
            return colours
        return _converted(image, profile)
    except (ImageCms.PyCMSError, *_DAMAGE) as error:
        logger.info("a colour profile is left out of account: %s", " ".join(str(error).split())[:200])
        return image


def _converted(image: Image.Image, profile: bytes) -> Image.Image:
    """The image, converted by a profile. Raises ValueError where the profile is of another kind of picture."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    if _PROFILE_SPACES.get(image.mode) != space:
        raise ValueError(f"it is for {space}, and the picture is {image.mode}")
    if "sRGB" in ImageCms.getProfileDescription(source):
        return image
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    done = ImageCms.profileToProfile(image, source, srgb, intent, "RGB", flags=ImageCms.Flags.BLACKPOINTCOMPENSATION)
    if done is None:
        raise ValueError("it converts nothing")
    return done


def _to_rgb(image: Image.Image, what: str) -> Image.Image:
    """Decode to 8-bit RGB, transparency over neutral grey, 16-bit greys scaled to 8 bits."""
    if image.mode == "F":
        raise InputError(f"{what} has floating-point pixels; save it as PNG or JPEG")
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.int64).clip(0, 65535)
        image = Image.fromarray((grey // 257).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    opaque = image.convert("RGBA")
    ground = Image.new("RGBA", opaque.size, (*NEUTRAL_RGB, 255))
    return Image.alpha_composite(ground, opaque).convert("RGB")
