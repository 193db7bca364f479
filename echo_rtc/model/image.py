"""The reference image: any picture a user has, as the RGB array of the size that the model reads.

Knows nothing of the autoencoder that turns it into latents, nor of where the file came from.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from echo_rtc.clips import U8Array
from echo_rtc.errors import InputError

MAX_PIXELS = 100_000_000
"""The largest image that is decoded, width x height."""

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
STRANGERS_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "BMP", "GIF")
"""What is read of those whom nobody knows: a TIFF of 200 bytes can ask for 2 GB (a tile that is larger than the
picture), and libtiff writes to the console."""


def load_reference_image(path: Path, width: int, height: int) -> U8Array:
    """Read an image as (height, width, 3) uint8 RGB.

    The first frame of an animation, turned as its EXIF orientation says, transparency over neutral grey, then resized
    with Lanczos to exactly ``width`` x ``height``. Raises InputError if the file is missing, is no image, is damaged
    or has more than ``MAX_PIXELS`` pixels (found out from its header, before decoding).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"the reference image {path} does not exist")
    rgb = read_picture(path, f"the reference image {path}")
    return np.array(resize_lanczos(rgb, width, height), dtype=np.uint8)


def read_picture(
    file: Path | BinaryIO,
    what: str,
    max_pixels: int = MAX_PIXELS,
    min_side: int = 1,
    still: bool = False,
    formats: Sequence[str] = _FORMATS,
) -> Image.Image:
    """Read a picture of any common kind as 8-bit RGB, upright, transparency over neutral grey. Messages begin with
    ``what``.

    Raises InputError if it is no image, is damaged, has more than ``max_pixels`` pixels or a side of less than
    ``min_side``, or moves where a ``still`` is wanted. Size and movement are found out before anything is decoded,
    and no further than they have to be: frames are not counted.
    """
    Image.init()
    known = [name for name in formats if name in Image.OPEN]
    try:
        with warnings.catch_warnings():
            # Pillow warns below our own limit, which is checked next, and of each damage in words of the file.
            warnings.simplefilter("ignore")
            with Image.open(file, formats=known) as image:
                if image.width * image.height > max_pixels:
                    raise Image.DecompressionBombError(f"{image.width} x {image.height}")
                if min(image.size) < min_side:
                    raise InputError(
                        f"{what} has {image.width} x {image.height} pixels; its sides must have at least {min_side}"
                    )
                # A photo with a thumbnail or a depth map in it (MPO) is a still all the same.
                if still and image.format != "MPO" and getattr(image, "is_animated", False):
                    raise InputError(f"{what} moves: it has more than one frame; choose a still picture")
                return _to_rgb(_upright(image), what)
    except Image.DecompressionBombError as error:
        raise InputError(f"{what} has more than {max_pixels // 1_000_000} megapixels; make it smaller") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{what} is not an image that can be read; use PNG or JPEG") from error
    except _DAMAGE as error:
        raise InputError(f"{what} is damaged or cannot be read: {' '.join(str(error).split())[:200]}") from error


def resize_lanczos(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resize with Lanczos, columns first and then rows, which is the order of all Pillow before 13.

    Newer ones take the cheaper order, which moves pixels at sharp edges by up to some tens of levels, because the
    picture between the two passes is rounded and limited to 0..255.
    """
    columns = image.resize((width, image.height), Image.Resampling.LANCZOS)
    return columns.resize((width, height), Image.Resampling.LANCZOS)


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says. Pillow's own function also writes the EXIF data anew, and fails where some
    of it is odd."""
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


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
