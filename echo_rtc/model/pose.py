"""Poses: reading and writing the published pose files, and drawing them as the pose encoder was trained to see them.

A pose file is a pickle, and a pickle can run code: these are read by an unpickler that knows NumPy's arrays and plain
containers and nothing else. Only hands are drawn. Knows nothing of the pose encoder, of clips or of media time.
"""

from __future__ import annotations

import colorsys
import io
import math
import operator
import pickle
import pickletools
import re
import struct
import tokenize
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from echo_rtc.clips import U8Array
from echo_rtc.errors import InputError, first_line
from echo_rtc.model.image import resize_lanczos

F64Array = NDArray[np.float64]
I64Array = NDArray[np.int64]
_Point = tuple[int, int]
_Color = tuple[int, int, int]

HAND_EDGES: tuple[tuple[int, int], ...] = tuple(
    (0 if bone == 0 else 4 * finger + bone, 4 * finger + bone + 1) for finger in range(5) for bone in range(4)
)
"""The bones of a hand as pairs of its 21 joints: wrist 0, then four joints of each finger from the thumb on."""

PICTURE_SIDE = 768
"""Pixels of the square picture into which regions are placed; a region that reaches beyond it makes it larger."""

_CANVAS_SHORT_SIDE = 800
# Channels swapped: the published drawing takes the hue's red for OpenCV's first channel, blue, and then swaps them.
_LINE_RGB = tuple(colorsys.hsv_to_rgb(edge / len(HAND_EDGES), 1.0, 1.0)[::-1] for edge in range(len(HAND_EDGES)))
_LINE_WIDTH = 2
_JOINT_RADIUS = 4
_INK_MARGIN = 8  # a joint's radius or a line's half width, and what bilinear resizing spreads them by
_LANCZOS_RADIUS = 3

_MAX_SIDE = 8192
_MAX_ASPECT = 8
_MAX_VALUE = 100.0
_MAX_FILE_BYTES = 4_000_000
_MAX_STEPS = 10_000
"""Of a pickle; a published pose takes 300. Each can make an object of 200 bytes, or put a tuple into a tuple, and a
tuple within a million others ends the process where it becomes a key: its hash is taken by recursion in C."""
_MAX_REASON = 200
"""Letters that a message repeats from a file."""
POSE_FILE_NAME = r"[0-9]{1,9}\.npy"


@dataclass(frozen=True, slots=True)
class Region:
    """Where the drawing goes: resized to ``height`` x ``width`` and placed at rows and columns (end exclusive) of the
    picture, all in pixels. The published files' ``draw_pose_params``, in their order."""

    height: int = PICTURE_SIDE
    width: int = PICTURE_SIDE
    row_begin: int = 0
    row_end: int = PICTURE_SIDE
    col_begin: int = 0
    col_end: int = PICTURE_SIDE

    def __post_init__(self) -> None:
        if not (0 < self.height <= _MAX_SIDE and 0 < self.width <= _MAX_SIDE):
            raise ValueError(f"draw_pose_params has size {self.width}x{self.height}; sides of 1 to {_MAX_SIDE} can be")
        if max(self.height, self.width) > _MAX_ASPECT * min(self.height, self.width):
            raise ValueError(
                f"draw_pose_params has size {self.width}x{self.height}; at most {_MAX_ASPECT} to 1 can be drawn"
            )
        for name, begin, end, length in (
            ("rows", self.row_begin, self.row_end, self.height),
            ("columns", self.col_begin, self.col_end, self.width),
        ):
            if begin < 0 or end - begin != length or end > _MAX_SIDE:
                raise ValueError(f"draw_pose_params places {length} {name} at {begin}..{end}")


@dataclass(frozen=True, slots=True, eq=False)
class Pose:
    """One frame's hands.

    ``hands`` (2, 21, 2) float64: x, y of each joint as a share of the drawing area (beyond 0..1 is outside of it, -1
    is a joint that was not found). ``hands_score`` (2, 21) float64: how sure each joint is; it becomes its brightness.
    Both are kept as read-only copies. Raises ValueError where they are not that.
    """

    hands: F64Array
    hands_score: F64Array
    region: Region = field(default_factory=Region)

    def __post_init__(self) -> None:
        for name, shape in (("hands", (2, 21, 2)), ("hands_score", (2, 21))):
            value = np.array(getattr(self, name), dtype=np.float64)
            if value.shape != shape:
                raise ValueError(f"{name} has shape {value.shape}; {shape} is expected")
            if not np.isfinite(value).all() or np.abs(value).max() > _MAX_VALUE:
                raise ValueError(f"{name} has values that are not finite or beyond {_MAX_VALUE:g}")
            value.flags.writeable = False
            object.__setattr__(self, name, value)


# --------------------------------------------------------------------------------------------------------- files


def load_pose(path: Path) -> Pose:
    """Read a published pose file: a ``.npy`` whose one object is a dict with hands, hands_score, draw_pose_params.

    Nothing in the file is run. Raises InputError if it is missing, damaged, asks for a class other than NumPy's arrays
    and plain containers (the message names it), or holds something that is not a pose.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"the pose file {path} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_FILE_BYTES:
        raise InputError(f"the pose file {path} is larger than {_MAX_FILE_BYTES // 1_000_000} MB; it is not a pose")
    try:
        return _pose_of(_read_object(data))
    except _RefusedError as error:
        raise InputError(
            f"the pose file {path} asks for {_reason(error)}, which is refused; "
            "it may hold NumPy arrays and plain lists only"
        ) from error
    except _NotAPoseError as error:
        raise InputError(f"the pose file {path} is not a pose: {_reason(error)}") from error
    except _DAMAGE as error:
        raise InputError(f"the pose file {path} is damaged: {_reason(error)}") from error
    except (OverflowError, RecursionError, MemoryError) as error:
        raise InputError(f"the pose file {path} is damaged: it asks for more than a pose can hold") from error


def load_pose_sequence(folder: Path) -> list[Pose]:
    """Read ``0.npy``, ``1.npy``, ... of a folder in numeric order.

    Hidden files and files of other kinds are left alone. Raises InputError if the folder is missing or holds no poses,
    a number is missing or double, a ``.npy`` is not named by a number, or a pose cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"the pose folder {folder} does not exist")
    paths: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix != ".npy" or path.name.startswith("."):
            continue
        if not re.fullmatch(POSE_FILE_NAME, path.name):
            raise InputError(f"{path} is not named by its frame number; poses are 0.npy, 1.npy, ...")
        number = int(path.stem)
        if number in paths:
            raise InputError(f"the pose folder {folder} has frame {number} twice: {paths[number].name} and {path.name}")
        paths[number] = path
    if not paths:
        raise InputError(f"the pose folder {folder} holds no poses; 0.npy, 1.npy, ... are expected")
    for number in range(len(paths)):
        if number not in paths:
            raise InputError(f"the pose folder {folder} lacks {number}.npy; its poses go on to {max(paths)}.npy")
    return [load_pose(paths[number]) for number in range(len(paths))]


def save_pose(path: Path, pose: Pose) -> None:
    """Write a pose in the published form, body and face marked as not found (they are not drawn)."""
    region = pose.region
    content = {
        "bodies": {
            "candidate": np.full((18, 2), -1.0),
            "subset": np.full((1, 18), -1.0),
            "score": np.zeros((1, 18)),
        },
        "hands": np.array(pose.hands),
        "hands_score": np.array(pose.hands_score),
        "faces": np.full((1, 68, 2), -1.0),
        "faces_score": np.zeros((1, 68)),
        "num": 1,
        "draw_pose_params": [
            region.height,
            region.width,
            region.row_begin,
            region.row_end,
            region.col_begin,
            region.col_end,
        ],
    }
    holder = np.empty((), dtype=object)
    holder[()] = content
    with Path(path).open("wb") as file:
        np.save(file, holder, allow_pickle=True)


# What NumPy's header reader (the last two) and the unpickler raise on bytes that are not theirs.
_DAMAGE = (
    pickle.UnpicklingError,
    struct.error,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    EOFError,
    SyntaxError,
    tokenize.TokenError,
)


def _reason(error: Exception) -> str:
    """What an error says, as part of one line: much of it may be the file's own words."""
    line = first_line(error)[:_MAX_REASON]
    return line if line.isprintable() else repr(line)


def _shown(value: object) -> str:
    """A value of a file as part of a message. Of what is no text only the type: written out, it can have any size."""
    return repr(value[:_MAX_REASON]) if isinstance(value, str) else f"a {type(value).__name__}"


class _RefusedError(Exception):
    """A pickle asks for a class or function that is not on the list; the message is its name."""


class _NotAPoseError(Exception):
    """A well-formed file whose content is not a pose."""


class _StoredDtype:
    """Stands in for numpy.dtype while unpickling: keeps the type's code and byte order, of plain types only.

    A real dtype takes its state, flags of its memory layout among it, from the pickle without checking it.
    """

    def __init__(self, code: object, _align: object = False, _copy: object = False) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"b1|[iu][1248]|f[248]|c(8|16)|O8?|[SU][0-9]{1,4}", code):
            raise _RefusedError(f"the NumPy type {_shown(code)}")
        self._type = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self._type = self._type.newbyteorder(state[1])

    @property
    def is_object(self) -> bool:
        return self._type.kind == "O"

    def numbers(self, raw: object) -> NDArray[Any]:
        """The values (n,) in the bytes of an array."""
        if self.is_object or not isinstance(raw, bytes | bytearray | memoryview):
            raise pickle.UnpicklingError("an array's values are not bytes")
        return np.frombuffer(raw, self._type)


class _StoredArray:
    """Stands in for numpy.ndarray while unpickling, for the same reason: shape and values, put together by reading."""

    def __init__(self) -> None:
        self._shape: tuple[int, ...] = ()
        self._dtype: _StoredDtype | None = None
        self._fortran = False
        self._values: object = b""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, fortran, values = state
        self._set(shape, dtype, bool(fortran), values)

    def _set(self, shape: object, dtype: object, fortran: bool, values: object) -> None:
        if not isinstance(dtype, _StoredDtype) or not isinstance(shape, tuple):
            raise pickle.UnpicklingError("an array has no type or no shape")
        self._shape = tuple(operator.index(length) for length in shape)
        self._dtype, self._fortran, self._values = dtype, fortran, values

    @classmethod
    def reconstruct(cls, _subtype: object, _shape: object, _code: object) -> _StoredArray:
        """NumPy's ``_reconstruct``: an empty array whose state follows."""
        return cls()

    @classmethod
    def from_buffer(cls, values: object, dtype: object, shape: object, order: object) -> _StoredArray:
        """NumPy's ``_frombuffer`` of pickle protocol 5."""
        array = cls()
        array._set(shape, dtype, order == "F", bytes(cast(bytes, values)))
        return array

    def array(self) -> NDArray[Any]:
        """The array it stands for. Raises ValueError where the values do not fill the shape."""
        if self._dtype is None:
            raise pickle.UnpicklingError("an array has no values")
        return self._dtype.numbers(self._values).reshape(self._shape, order="F" if self._fortran else "C")

    def only_object(self) -> object:
        """The one object of an object array."""
        if self._dtype is None or not self._dtype.is_object or not isinstance(self._values, list):
            raise _NotAPoseError("it holds plain numbers")
        if len(self._values) != 1:
            raise _NotAPoseError(f"it holds {len(self._values)} objects instead of one")
        return self._values[0]


def _scalar(dtype: object, raw: object) -> object:
    """NumPy's ``scalar``."""
    if not isinstance(dtype, _StoredDtype):
        raise pickle.UnpicklingError("a scalar has no type")
    return dtype.numbers(raw)[0]


def _encode(text: object, encoding: object) -> bytes:
    """``_codecs.encode``, which is how pickle protocols 0 to 2 write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _RefusedError(f"the encoding {_shown(encoding)}")
    return text.encode("latin1")


def _checked_keys(keys: Iterable[object]) -> None:
    """Raises UnpicklingError unless each key is of a kind that is hashed at once.

    The hash of a tuple is that of all that it holds, each time: 60 tuples, each twice in the next, would take for ever.
    """
    for key in keys:
        if not (isinstance(key, str | bytes | float | None) or (isinstance(key, int) and key.bit_length() <= 64)):
            raise pickle.UnpicklingError(f"a {type(key).__name__} is a key or in a set")


def _set(items: Iterable[object] = ()) -> set[object]:
    kept = list(items)
    _checked_keys(kept)
    return set(kept)


def _ordered(items: Iterable[tuple[object, object]] = ()) -> OrderedDict[object, object]:
    pairs = [(key, value) for key, value in items]
    _checked_keys(key for key, _value in pairs)
    return OrderedDict(pairs)


_NDARRAY = object()  # only ever handed to reconstruct(), and not callable

_ADMITTED: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _StoredDtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): _ordered,
}
for _builtins in ("builtins", "__builtin__"):  # Python 3's name, and the one in protocols 0 to 2
    _ADMITTED[_builtins, "set"] = _set
    _ADMITTED[_builtins, "frozenset"] = _set
for _core in ("numpy.core", "numpy._core"):  # NumPy 1.x and 2.x
    _ADMITTED[_core + ".multiarray", "_reconstruct"] = _StoredArray.reconstruct
    _ADMITTED[_core + ".multiarray", "scalar"] = _scalar
    _ADMITTED[_core + ".numeric", "_frombuffer"] = _StoredArray.from_buffer


_InPython: Any = pickle._Unpickler


class _PoseUnpickler(_InPython):  # type: ignore[misc]  # the class has no type
    """Admits what ``_ADMITTED`` names, each by a stand-in of ours; anything else is refused before it is looked up.

    The implementation in Python, whose steps can be looked at before they are done; that in C hashes whatever is made
    a key, and gives any object any attribute.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(_InPython.dispatch)

    def load_build(self) -> None:
        if not isinstance(self.stack[-2], _StoredDtype | _StoredArray):
            raise pickle.UnpicklingError(f"a {type(self.stack[-2]).__name__} is given a state")
        super().load_build()

    def load_setitem(self) -> None:
        _checked_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        _checked_keys(self.stack[::2])
        super().load_setitems()

    def load_dict(self) -> None:
        _checked_keys(self.stack[::2])
        super().load_dict()

    def load_additems(self) -> None:
        _checked_keys(self.stack)
        super().load_additems()

    def load_frozenset(self) -> None:
        _checked_keys(self.stack)
        super().load_frozenset()

    dispatch |= {
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.ADDITEMS[0]: load_additems,
        pickle.FROZENSET[0]: load_frozenset,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise _RefusedError(f"{module}.{name}") from None


def _read_object(data: bytes) -> object:
    """The one object of a ``.npy`` file's bytes."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read_header:
        raise _NotAPoseError(f"its format version is {version}")
    shape, _fortran, dtype = read_header[version](file)
    if not dtype.hasobject or math.prod(shape) != 1:
        raise _NotAPoseError(f"it holds an array of {dtype} with shape {shape} instead of one dict")
    body = data[file.tell() :]
    for step, (opcode, argument, _position) in enumerate(pickletools.genops(body)):
        if step >= _MAX_STEPS:
            raise _NotAPoseError(f"it is made in more than {_MAX_STEPS} steps")
        # The memo is allocated up to the highest place that is named, however little the file puts there.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and cast(int, argument) > len(body):
            raise pickle.UnpicklingError(f"it names place {argument} of its memo")
    stored = _PoseUnpickler(io.BytesIO(body)).load()
    if not isinstance(stored, _StoredArray):
        raise _NotAPoseError(f"it holds a {type(stored).__name__}")
    return stored.only_object()


def _pose_of(content: object) -> Pose:
    """The pose in a published dict."""
    if not isinstance(content, dict):
        raise _NotAPoseError(f"it holds a {type(content).__name__} instead of a dict")
    missing = [key for key in ("hands", "hands_score", "draw_pose_params") if key not in content]
    if missing:
        raise _NotAPoseError(f"it lacks {', '.join(missing)}")
    arrays = []
    for key in ("hands", "hands_score"):
        if not isinstance(content[key], _StoredArray):
            raise _NotAPoseError(f"{key} is not an array")
        array = content[key].array()
        if array.dtype.kind not in "iuf":
            raise _NotAPoseError(f"{key} is an array of {array.dtype} instead of numbers")
        arrays.append(array)
    params = content["draw_pose_params"]
    if isinstance(params, _StoredArray):
        params = params.array().tolist()
    if not isinstance(params, list | tuple) or len(params) != 6:
        raise _NotAPoseError("draw_pose_params is not a list of six numbers")
    try:
        region = Region(*(operator.index(value) for value in params))
        return Pose(arrays[0], arrays[1], region)
    except TypeError as error:
        raise _NotAPoseError("draw_pose_params has values that are not whole numbers") from error
    except ValueError as error:
        raise _NotAPoseError(str(error)) from error


# ------------------------------------------------------------------------------------------------------- drawing


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
