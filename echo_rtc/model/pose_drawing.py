"""Drawing poses as the pose encoder was trained to see them. Only hands are drawn."""

from __future__ import annotations

import colorsys
import math
import operator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from echo_rtc.clips import U8Array
from echo_rtc.model.image import resize_lanczos
from echo_rtc.model.pose import PICTURE_SIDE, F64Array, Pose

I64Array = NDArray[np.int64]
_Point = tuple[int, int]
_Color = tuple[int, int, int]

HAND_EDGES: tuple[tuple[int, int], ...] = tuple(
    (0 if bone == 0 else 4 * finger + bone, 4 * finger + bone + 1) for finger in range(5) for bone in range(4)
)
"""The bones of a hand as pairs of its 21 joints: wrist 0, then four joints of each finger from the thumb on."""

_CANVAS_SHORT_SIDE = 800
# Channels swapped: the published drawing takes the hue's red for OpenCV's first channel, blue, and then swaps them.
_LINE_RGB = tuple(colorsys.hsv_to_rgb(edge / len(HAND_EDGES), 1.0, 1.0)[::-1] for edge in range(len(HAND_EDGES)))
_LINE_WIDTH = 2
_JOINT_RADIUS = 4
_INK_MARGIN = 8  # a joint's radius or a line's half width, and what bilinear resizing spreads them by
_LANCZOS_RADIUS = 3


def draw_pose(pose: Pose, width: int, height: int) -> U8Array:
    """Draw a pose's hands on black as (height, width, 3) uint8 RGB.

    Bones are lines 2 px wide in the hue of their number, joints filled circles of radius 4, each as bright as its
    score, on a canvas whose short side is 800 px; a joint at or beyond the top or left edge is left out, with its
    bones. The canvas is resized to the pose's region (bilinear), placed in the picture and resized to the size asked
    for (Lanczos). Only the parts around the hands are computed, at offsets where both resizings take the same samples
    as over the whole.
    """
    drawing = _Drawing(pose, width, height)
    parts = [drawing.part((hand,)) for hand in range(2)]
    if parts[0] and parts[1] and parts[0].meets(parts[1]):
        parts = [drawing.part((0, 1))]
    picture = np.zeros((height, width, 3), np.uint8)
    for part in parts:
        if part:
            drawing.draw(part, picture)
    return picture


class _Drawing:
    """One pose on its way to a picture of width x height: canvas, region, whole picture, picture asked for."""

    def __init__(self, pose: Pose, width: int, height: int) -> None:
        self._region = pose.region
        self._size = (width, height)
        enlargement = _CANVAS_SHORT_SIDE / min(pose.region.height, pose.region.width)
        self._canvas_size = (int(pose.region.width * enlargement), int(pose.region.height * enlargement))
        self._joints = (pose.hands * self._canvas_size).astype(np.int64)  # (2, 21, 2), cut towards zero
        self._visible: NDArray[np.bool_] = np.all(self._joints > 0, axis=2)  # (2, 21)
        self._scores = pose.hands_score

    def part(self, hands: tuple[int, ...]) -> _Part | None:
        """What has to be computed for some of the hands; None where nothing of them is to be seen."""
        joints = self._joints[list(hands)][self._visible[list(hands)]]  # (n, 2)
        if len(joints) == 0:
            return None
        region = self._region
        low, high = joints.min(axis=0) - _INK_MARGIN, joints.max(axis=0) + _INK_MARGIN + 1
        columns = _AxisPlan.around(
            (int(low[0]), int(high[0])),
            (self._canvas_size[0], region.width),
            (region.col_begin, max(PICTURE_SIDE, region.col_end), self._size[0]),
        )
        rows = _AxisPlan.around(
            (int(low[1]), int(high[1])),
            (self._canvas_size[1], region.height),
            (region.row_begin, max(PICTURE_SIDE, region.row_end), self._size[1]),
        )
        return None if columns is None or rows is None else _Part(hands, columns, rows)

    def draw(self, part: _Part, picture: U8Array) -> None:
        """Compute one part and put it into the picture (height, width, 3)."""
        columns, rows = part.columns, part.rows
        canvas = _Canvas(self._canvas_size, columns.canvas, rows.canvas)
        for hand in part.hands:
            canvas.draw_hand(self._joints[hand], self._visible[hand], self._scores[hand])
        drawn = cv2.resize(canvas.pixels, (_length(columns.region), _length(rows.region)))
        # Lanczos along the columns first, without the empty rows above and below: they would only cost time there.
        wide = np.zeros((_length(rows.region), _length(columns.source), 3), np.uint8)
        wide[:, _within(columns.region, self._region.col_begin - columns.source.start)] = drawn
        narrow = np.zeros((_length(rows.source), _length(columns.target), 3), np.uint8)
        narrow_rows = _within(rows.region, self._region.row_begin - rows.source.start)
        narrow[narrow_rows] = _resize(wide, narrow.shape[1], len(wide))
        picture[rows.target, columns.target] = _resize(narrow, narrow.shape[1], _length(rows.target))


def _resize(pixels: U8Array, width: int, height: int) -> U8Array:
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(resize_lanczos(Image.fromarray(pixels), width, height))


def _length(part: slice) -> int:
    return int(part.stop - part.start)


def _within(part: slice, offset: int) -> slice:
    """The same part, counted from elsewhere."""
    return slice(part.start + offset, part.stop + offset)


@dataclass(frozen=True, slots=True)
class _AxisPlan:
    """Along one axis, which part of each picture is computed: of the canvas, of the region it is resized to, of the
    whole picture (``source``) and of the picture asked for (``target``)."""

    canvas: slice
    region: slice
    source: slice
    target: slice

    @classmethod
    def around(cls, ink: tuple[int, int], bilinear: tuple[int, int], lanczos: tuple[int, int, int]) -> _AxisPlan | None:
        """Plan for ink between two canvas pixels, or None if it lies outside of the canvas.

        ``bilinear``: lengths of the canvas and of the region. ``lanczos``: where the region begins in the whole
        picture, and the lengths of the whole picture and of the one asked for.
        """
        begin, whole, length = lanczos
        low, high = max(ink[0], 0), min(ink[1], bilinear[0])
        if low >= high:
            return None
        canvas, region = _matching(low, high, *bilinear)
        # Twice the kernel's reach: once for the pixels that see the ink, once for all that those pixels see.
        reach = 2 * math.ceil(_LANCZOS_RADIUS * max(1.0, whole / length)) + 1
        source, target = _matching(begin + region.start - reach, begin + region.stop + reach, whole, length)
        return cls(canvas, region, source, target)


@dataclass(frozen=True, slots=True)
class _Part:
    """Some of the hands and what has to be computed for them."""

    hands: tuple[int, ...]
    columns: _AxisPlan
    rows: _AxisPlan

    def meets(self, other: _Part) -> bool:
        """Whether the two lie so close together that they can only be computed as one."""
        return all(
            mine.source.start < theirs.source.stop and theirs.source.start < mine.source.stop
            for mine, theirs in ((self.columns, other.columns), (self.rows, other.rows))
        )


def _matching(low: int, high: int, source: int, target: int) -> tuple[slice, slice]:
    """The smallest run of ``source`` pixels holding low..high whose ends are also whole pixels of ``target``.

    Resizing just that run samples at the same fractions of a pixel as resizing everything does.
    """
    blocks = math.gcd(source, target)
    source_block, target_block = source // blocks, target // blocks
    first = max(low // source_block, 0)
    last = min(-(-high // source_block), blocks)
    return slice(first * source_block, last * source_block), slice(first * target_block, last * target_block)


class _Canvas:
    """A part of the canvas, drawn on in RGB: ``pixels`` are its rows and columns of a canvas of ``size`` (w, h)."""

    def __init__(self, size: tuple[int, int], columns: slice, rows: slice) -> None:
        self._size = size
        self._origin = (columns.start, rows.start)
        self.pixels: U8Array = np.zeros((_length(rows), _length(columns), 3), np.uint8)

    def draw_hand(self, joints: I64Array, visible: NDArray[np.bool_], scores: F64Array) -> None:
        """Draw one hand: joints (21, 2) in canvas pixels, visible (21,), scores (21,)."""
        points: list[_Point] = [(int(x), int(y)) for x, y in joints]
        for color, (a, b) in zip(_LINE_RGB, HAND_EDGES, strict=True):
            if visible[a] and visible[b]:
                level = int(scores[a] * scores[b] * 255)
                red, green, blue = (min(max(round(part * level), 0), 255) for part in color)
                self._line(points[a], points[b], (red, green, blue))
        for index, (x, y) in enumerate(points):
            if visible[index]:
                cv2.circle(self.pixels, self._at(x, y), _JOINT_RADIUS, (int(scores[index] * 255), 0, 0), -1)

    def _at(self, x: int, y: int) -> _Point:
        return x - self._origin[0], y - self._origin[1]

    def _line(self, start: _Point, end: _Point, color: _Color) -> None:
        width, height = self._size
        low_x, high_x = sorted((start[0], end[0]))
        low_y, high_y = sorted((start[1], end[1]))
        if min(low_x, low_y, width - 1 - high_x, height - 1 - high_y) >= _LINE_WIDTH:
            cv2.line(self.pixels, self._at(*start), self._at(*end), color, _LINE_WIDTH)
        else:
            self._line_at_edge(start, end, color)

    def _line_at_edge(self, start: _Point, end: _Point, color: _Color) -> None:
        """A line of 2 px that meets the canvas's edge, as OpenCV 4 draws it.

        Away from the edge all versions of OpenCV draw the same pixels, but each clips in its own way, and the clipping
        moves pixels far from the edge. So the line is taken apart into what OpenCV makes it of: the outline of a
        rectangle, clipped here, its filling and a dot at either end.
        """
        across, along = start[0] - end[0], end[1] - start[1]
        if across or along:
            half = _ONE * (_LINE_WIDTH / 2) / math.hypot(across, along)
            offset = round(along * half), round(across * half)
            (x0, y0), (x1, y1) = ((x * _ONE, y * _ONE) for x, y in (start, end))
            corners = [
                (x0 + offset[0], y0 + offset[1]),
                (x0 - offset[0], y0 - offset[1]),
                (x1 - offset[0], y1 - offset[1]),
                (x1 + offset[0], y1 + offset[1]),
            ]
            for index, corner in enumerate(corners):
                self._outline(corners[index - 1], corner, color)
            self._fill(corners, color)
        for point in (start, end):
            cv2.circle(self.pixels, self._at(*point), _LINE_WIDTH // 2, color, -1)

    def _outline(self, start: _Point, end: _Point, color: _Color) -> None:
        """One side of the rectangle, clipped to the canvas, a pixel wide; points in 1/65536 px."""
        clipped = _clip(start, end, (self._size[0] * _ONE - 1, self._size[1] * _ONE - 1))
        if clipped is None:
            return
        major = 0 if abs(clipped[1][0] - clipped[0][0]) > abs(clipped[1][1] - clipped[0][1]) else 1
        first, last = sorted(clipped, key=operator.itemgetter(major))
        length = last[major] - first[major]
        step = _divide((last[1 - major] - first[1 - major]) * _ONE, length | 1)
        index = np.arange((length >> _ONE_BITS) + 1)
        pixels = np.empty((len(index) + 1, 2), np.int64)
        pixels[:-1, major] = _nearest(first[major]) + index
        pixels[:-1, 1 - major] = (first[1 - major] + _ONE // 2 + index * step) >> _ONE_BITS
        pixels[-1] = _nearest(last[0]), _nearest(last[1])
        x, y = pixels[(pixels < self._size).all(axis=1)].T
        self.pixels[y - self._origin[1], x - self._origin[0]] = color

    def _fill(self, corners: list[_Point], color: _Color) -> None:
        """The inside of the rectangle, row by row; corners in 1/65536 px."""
        spans: dict[int, list[int]] = {}
        for index, corner in enumerate(corners):
            (x0, y0), (x1, y1) = sorted((corners[index - 1], corner), key=operator.itemgetter(1))
            first, last = _nearest(y0), _nearest(y1)
            if first == last:
                continue
            step = _divide(2 * (x1 - x0) + (last - first), 2 * (last - first))
            for row in range(max(first, 0), min(last, self._size[1])):
                spans.setdefault(row, []).append(_nearest(x0 + (row - first) * step))
        for row, edges in spans.items():
            left, right = max(min(edges), 0), min(max(edges), self._size[0] - 1)
            if left <= right:
                x, y = self._at(left, row)
                self.pixels[y, x : x + right - left + 1] = color


_ONE_BITS = 16
_ONE = 1 << _ONE_BITS  # OpenCV's fixed point: this many parts of a pixel


def _nearest(value: int) -> int:
    """The nearest whole pixel."""
    return (value + _ONE // 2) >> _ONE_BITS


def _divide(dividend: int, divisor: int) -> int:
    """Integer division that cuts towards zero."""
    quotient = abs(dividend) // abs(divisor)
    return quotient if (dividend < 0) == (divisor < 0) else -quotient


def _clip(start: _Point, end: _Point, limit: _Point) -> tuple[_Point, _Point] | None:
    """The part of a line within 0..limit (inclusive, both axes), or None: rows first, then columns (Cohen and
    Sutherland's order), each step in whole numbers from where the last one left the line."""
    points = [list(start), list(end)]
    for axis in (1, 0):
        sides = [-1 if point[axis] < 0 else int(point[axis] > limit[axis]) for point in points]
        if sides[0] == sides[1] != 0:
            return None
        for index, side in enumerate(sides):
            if side:
                bound = 0 if side < 0 else limit[axis]
                point = points[index]
                run = points[1][1 - axis] - points[0][1 - axis]
                rise = points[1][axis] - points[0][axis]
                point[1 - axis] += _divide((bound - point[axis]) * run, rise)
                point[axis] = bound
    return (points[0][0], points[0][1]), (points[1][0], points[1][1])
