"""The test card's picture: how it is drawn, and how a program reads it back.

A card shows, for people, a lamp and a meter that follow the loudness of the frame's own sound, the frame's number and
time, and the number of its stream; for programs, the same facts as a strip of black and white cells along the top
edge that survives H.264 and VP8 at low bit rates. It knows pixels and numbers only: no audio, no streams, no clocks.

All luma is BT.601 limited range (16..235), as decoders give it; full-range luma (a browser's canvas) reads equally
well for the strip, and for the level after ``16 + luma * 219 / 255``.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from echo_rtc.clips import ClipFormat, U8Array, YuvFrames

BLACK, WHITE = 16, 235
"""The ends of limited-range luma."""

FLOOR_DB = -60.0
"""Level 0 is this many dB below full scale (RMS 1), or quieter; level 1 is full scale."""

COUNTER_BITS, MARK_BITS, CHECK_BITS = 24, 16, 7
CELLS_A_ROW, CELL_ROWS = 16, 3
CELL_DARK, CELL_LIGHT = 40, 210
_CHECK_MODULUS = 127  # no power of two is a multiple of it, so any single wrong cell shows

_INK, _PAPER, _PANEL, _LINE = (222, 226, 230), (38, 43, 49), (27, 31, 36), (62, 69, 77)
_BARS = ((191, 191, 191), (191, 191, 0), (0, 191, 191), (0, 191, 0), (191, 0, 191), (191, 0, 0), (0, 0, 191))
_GLYPHS = "0123456789:"


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What one card shows: the frame's number in media time (modulo 2**24), the level 0..1 of its sound, the mark of
    its stream, and whether it belongs to the idle loop (whose frames count within the loop)."""

    frame: int
    level: float
    mark: int
    idle: bool


class CardError(ValueError):
    """A picture that is not a readable test card."""


def level_of(rms: float) -> float:
    """The level 0..1 shown for an RMS of -1..1 samples: linear in dB from ``FLOOR_DB`` to 0."""
    return min(1.0, max(0.0, 1.0 - 20.0 * math.log10(max(rms, 1e-9)) / FLOOR_DB))


def rms_of(level: float) -> float:
    """The RMS that shows as ``level``; inverse of :func:`level_of` within its range."""
    return float(10.0 ** ((1.0 - level) * FLOOR_DB / 20.0))


def mark_of_seed(seed: int) -> int:
    """The stream mark 0..65535 of a request's seed."""
    return seed % (1 << MARK_BITS)


@dataclass(frozen=True, slots=True)
class _Box:
    """Pixels x0 <= x < x1, y0 <= y < y1, all even."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def luma(self) -> tuple[slice, slice]:
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    @property
    def chroma(self) -> tuple[slice, slice]:
        return slice(self.y0 // 2, self.y1 // 2), slice(self.x0 // 2, self.x1 // 2)

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """As Pillow counts: both ends belong to the box."""
        return self.x0, self.y0, self.x1 - 1, self.y1 - 1


def _even(value: float) -> int:
    return 2 * round(value / 2)


@functools.lru_cache(maxsize=16)
def _strip_edges(height: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows (CELL_ROWS + 1) and columns (CELLS_A_ROW + 1) at which cells begin and end."""
    rows = np.arange(CELL_ROWS + 1) * max(2, _even(height / 28))
    columns = np.array([_even(i * width / CELLS_A_ROW) for i in range(CELLS_A_ROW + 1)])
    return rows, columns


@functools.lru_cache(maxsize=16)
def _lamp_box(height: int, width: int) -> _Box:
    return _Box(_even(width * 0.08), _even(height * 0.30), _even(width * 0.50), _even(height * 0.64))


def _check(payload: int) -> int:
    """1..127, so that neither an all-dark nor an all-light strip reads as a card."""
    return _CHECK_MODULUS - payload % _CHECK_MODULUS


def _strip_bits(frame: int, mark: int, idle: bool) -> list[list[int]]:
    """The cells of a card, row by row, most significant bit first: idle, counter, mark, check."""
    payload = (int(idle) << COUNTER_BITS | frame % (1 << COUNTER_BITS)) << MARK_BITS | mark
    word = payload << CHECK_BITS | _check(payload)
    cells = CELLS_A_ROW * CELL_ROWS
    bits = [word >> (cells - 1 - i) & 1 for i in range(cells)]
    return [bits[start : start + CELLS_A_ROW] for start in range(0, cells, CELLS_A_ROW)]


def _middle(area: U8Array) -> float:
    """Mean of the middle half of an area, away from the edges that a codec smears."""
    height, width = area.shape
    return float(area[height // 4 : height - height // 4, width // 4 : width - width // 4].mean())


def read_level(luma: U8Array) -> float:
    """The level 0..1 that the card's lamp shows. ``luma`` (H, W) uint8, limited range."""
    height, width = luma.shape
    value = _middle(luma[_lamp_box(height, width).luma])
    return min(1.0, max(0.0, (value - BLACK) / (WHITE - BLACK)))


def read_card(luma: U8Array) -> CardFacts:
    """Everything a card says. ``luma`` (H, W) uint8 of the decoded picture at the size it was drawn.

    Raises CardError if the strip's check does not fit: the picture is not a test card, or is damaged beyond reading.
    """
    rows, columns = _strip_edges(*luma.shape)
    word = 0
    for top, bottom in itertools.pairwise(rows):
        for left, right in itertools.pairwise(columns):
            word = word << 1 | int(_middle(luma[top:bottom, left:right]) > (CELL_DARK + CELL_LIGHT) / 2)
    payload, check = word >> CHECK_BITS, word & ((1 << CHECK_BITS) - 1)
    if _check(payload) != check:
        raise CardError("the strip of cells along the top edge does not read as a test card")
    mark, counted = payload & ((1 << MARK_BITS) - 1), payload >> MARK_BITS
    return CardFacts(
        frame=counted & ((1 << COUNTER_BITS) - 1),
        level=read_level(luma),
        mark=mark,
        idle=bool(counted >> COUNTER_BITS & 1),
    )


def read_counter(luma: U8Array) -> int:
    """The frame number of a card, modulo 2**24. ``luma`` (H, W) uint8. Raises CardError as :func:`read_card`."""
    return read_card(luma).frame


def yuv_from_rgb(rgb: U8Array) -> tuple[U8Array, U8Array, U8Array]:
    """(H, W, 3) uint8 to planes y (H, W), u and v (H/2, W/2), BT.601 limited range (ITU-R BT.601-7, 8 bits)."""
    r, g, b = np.moveaxis(rgb.astype(np.float32) / 255.0, -1, 0)
    luma = 0.299 * r + 0.587 * g + 0.114 * b

    def halved(plane: NDArray[np.float32]) -> NDArray[np.float32]:
        height, width = plane.shape
        mean: NDArray[np.float32] = plane.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))
        return mean

    planes = 16 + 219 * luma, 128 + 224 * halved((b - luma) / 1.772), 128 + 224 * halved((r - luma) / 1.402)
    y, u, v = (np.clip(np.rint(plane), 0, 255).astype(np.uint8) for plane in planes)
    return y, u, v


class _Numbers:
    """A line of digits and colons from ``x`` on, centred on the row ``middle``, blitted from glyphs drawn once."""

    def __init__(self, x: int, middle: int, height: int) -> None:
        font = ImageFont.load_default(size=max(6, height))
        self._pitch = max(2, math.ceil(max(font.getlength(glyph) for glyph in _GLYPHS)))
        self._rows = max(2, math.ceil(height * 1.2))
        self._x, self._y = x, middle - self._rows // 2
        glyphs = []
        for glyph in _GLYPHS:
            tile = Image.new("RGB", (_even(self._pitch + 1), _even(self._rows + 1)), _PANEL)
            ImageDraw.Draw(tile).text((self._pitch / 2, self._rows / 2), glyph, fill=_INK, font=font, anchor="mm")
            glyphs.append(yuv_from_rgb(np.asarray(tile))[0][: self._rows, : self._pitch])
        self._glyphs = np.stack(glyphs)

    def draw(self, y: U8Array, texts: list[str]) -> None:
        """Writes one text a frame into ``y`` (F, H, W); what passes the picture's edge is cut."""
        codes = np.array([[_GLYPHS.index(character) for character in text] for text in texts])
        line = self._glyphs[codes].transpose(0, 2, 1, 3).reshape(len(texts), self._rows, -1)
        place = y[:, self._y : self._y + self._rows, self._x : self._x + line.shape[2]]
        place[:] = line[:, : place.shape[1], : place.shape[2]]


class CardArtist:
    """Draws cards of one format. Everything that does not change from frame to frame is drawn once, here."""

    def __init__(self, clip_format: ClipFormat) -> None:
        self._format = clip_format
        width, height = clip_format.width, clip_format.height
        unit = min(width, height)
        self._lamp = _lamp_box(height, width)
        self._meter = _Box(_even(width * 0.60), self._lamp.y0, _even(width * 0.68), self._lamp.y1)
        self._patch = _Box(_even(width * 0.08), _even(height * 0.815), _even(width * 0.14), _even(height * 0.86))
        self._time = _Numbers(self._lamp.x0, round(height * 0.74), round(unit * 0.075))
        self._frame = _Numbers(round(width * 0.735), round(height * 0.74), round(unit * 0.042))
        self._mark = _Numbers(round(width * 0.735), round(height * 0.8375), round(unit * 0.042))
        self._planes = {idle: yuv_from_rgb(np.asarray(self._background(idle))) for idle in (False, True)}
        self._lit = yuv_from_rgb(np.asarray(self._lit_meter()))

    def draw(self, first_frame: int, levels: list[float], mark: int, idle: bool = False) -> YuvFrames:
        """The cards of ``len(levels)`` frames in a row, the first of them number ``first_frame``."""
        frames = len(levels)
        y, u, v = (np.repeat(plane[np.newaxis], frames, axis=0) for plane in self._planes[idle])
        numbers = range(first_frame, first_frame + frames)
        self._draw_strip(y, numbers, mark, idle)
        y[:, *self._lamp.luma] = np.array([BLACK + round(level * (WHITE - BLACK)) for level in levels])[:, None, None]
        for i, level in enumerate(levels):
            self._draw_meter(y[i], u[i], v[i], level)
        self._time.draw(y, [self._timecode(number) for number in numbers])
        self._frame.draw(y, [f"{number % 10**7:07d}" for number in numbers])
        self._mark.draw(y, [f"{mark:05d}"] * frames)
        angle = mark * math.pi * (3 - math.sqrt(5))  # the golden angle: neighbouring marks differ most
        y[:, *self._patch.luma] = 128
        u[:, *self._patch.chroma] = round(128 + 80 * math.cos(angle))
        v[:, *self._patch.chroma] = round(128 + 80 * math.sin(angle))
        return YuvFrames(y, u, v)

    def _draw_strip(self, y: U8Array, numbers: range, mark: int, idle: bool) -> None:
        rows, columns = _strip_edges(self._format.height, self._format.width)
        bits = np.array([_strip_bits(number, mark, idle) for number in numbers])
        values = np.where(bits, CELL_LIGHT, CELL_DARK).astype(np.uint8)  # (F, rows, cells)
        pixels = np.repeat(values, np.diff(columns), axis=2)  # (F, rows, W)
        y[:, : rows[-1]] = np.repeat(pixels, np.diff(rows), axis=1)

    def _draw_meter(self, y: U8Array, u: U8Array, v: U8Array, level: float) -> None:
        box = self._meter
        dark = _even((box.y1 - box.y0) * (1.0 - level))
        lit = _Box(box.x0, box.y0 + dark, box.x1, box.y1)
        y[lit.luma] = self._lit[0][dark:]
        u[lit.chroma] = self._lit[1][dark // 2 :]
        v[lit.chroma] = self._lit[2][dark // 2 :]

    def _timecode(self, frame: int) -> str:
        seconds, rest = divmod(frame, self._format.fps)
        return f"{seconds // 3600 % 100:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}:{rest % 100:02d}"

    def _lit_meter(self) -> Image.Image:
        """The meter at full scale: green, amber from -12 dB, red from -6 dB."""
        box = self._meter
        height = box.y1 - box.y0
        image = Image.new("RGB", (box.x1 - box.x0, height), (72, 160, 104))
        pen = ImageDraw.Draw(image)
        for over_db, colour in ((-12.0, (214, 164, 62)), (-6.0, (204, 82, 70))):
            pen.rectangle((0, 0, box.x1 - box.x0, round(height * over_db / FLOOR_DB)), fill=colour)
        return image

    def _background(self, idle: bool) -> Image.Image:
        width, height = self._format.width, self._format.height
        unit = min(width, height)
        image = Image.new("RGB", (width, height), _PAPER)
        pen = ImageDraw.Draw(image)
        for i in range(1, 16):  # a quiet grid, which shows at a glance whether the picture is stretched
            pen.line((i * width // 16, 0, i * width // 16, height), fill=_PANEL)
            pen.line((0, i * height // 16, width, i * height // 16), fill=_PANEL)
        small = ImageFont.load_default(size=max(6, round(unit * 0.034)))
        title = ImageFont.load_default(size=max(6, round(unit * 0.058)))
        middle = height * 0.175
        pen.text((self._lamp.x0, middle), "echo_rtc test card", fill=_INK, font=title, anchor="lm")
        size = f"{width} x {height}, {self._format.fps} fps"
        pen.text((width * 0.94, middle), size, fill=_INK, font=small, anchor="rm")
        above = self._lamp.y0 - unit * 0.03
        pen.text((self._lamp.x0, above), "sound of this frame", fill=_INK, font=small, anchor="lm")
        pen.text((self._meter.x0, above), "dB", fill=_INK, font=small, anchor="lm")
        for box in (self._lamp, self._meter):
            x0, y0, x1, y1 = box.corners
            pen.rectangle((x0 - 2, y0 - 2, x1 + 2, y1 + 2), fill=_PANEL, outline=_LINE)
        # Of these only the luma is drawn frame by frame; their chroma must be neutral.
        pen.rectangle(self._lamp.corners, fill="black")
        pen.rectangle((0, 0, width, int(_strip_edges(height, width)[0][-1]) - 1), fill="black")
        for db in range(0, round(FLOOR_DB) - 1, -12):
            at = self._meter.y0 + (self._meter.y1 - self._meter.y0) * db / FLOOR_DB
            pen.line((self._meter.x1 + 4, at, self._meter.x1 + 4 + unit // 64, at), fill=_LINE)
            pen.text((self._meter.x1 + unit * 0.04, at), str(db), fill=_INK, font=small, anchor="lm")
        panel_top = height * 0.68
        pen.rectangle((self._lamp.x0 - unit // 50, panel_top, width * 0.94, height * 0.88), fill=_PANEL, outline=_LINE)
        labels = width * 0.715
        pen.text((labels, height * 0.74), "frame", fill=_INK, font=small, anchor="rm")
        pen.text((labels, height * 0.8375), "stream", fill=_INK, font=small, anchor="rm")
        state = "idle: no speech" if idle else "speaking"
        pen.text((self._patch.x1 + unit * 0.03, height * 0.8375), state, fill=_INK, font=small, anchor="lm")
        edges = [round(i * width / len(_BARS)) for i in range(len(_BARS) + 1)]
        for left, right, colour in zip(edges[:-1], edges[1:], _BARS, strict=True):
            pen.rectangle((left, height * 0.92, right, height), fill=colour)
        return image
