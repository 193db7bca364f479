"""Reading and writing the published pose files.

A pose file is a pickle, and a pickle can run code: these are read by an unpickler that knows NumPy's arrays and plain
containers and nothing else.
"""

from __future__ import annotations

import io
import math
import operator
import pickle
import pickletools
import re
import struct
import tokenize
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from echo_rtc.errors import InputError, first_line
from echo_rtc.model.pose import Pose, Region

_MAX_FILE_BYTES = 4_000_000
_MAX_STEPS = 10_000
"""Of a pickle; a published pose takes 300. Each can make an object of 200 bytes, or put a tuple into a tuple, and a
tuple within a million others ends the process where it becomes a key: its hash is taken by recursion in C."""
_MAX_REASON = 200
"""Letters that a message repeats from a file."""
PACKED_POSES = "poses.npz"
"""A whole sequence in one file: ``hands`` (N, 2, 21, 2) and ``hands_score`` (N, 2, 21)."""
_MAX_PACKED_BYTES = 16_000_000
_MAX_PACKED_POSES = 20_000
POSE_FILE_NAME = r"[0-9]{1,9}\.npy"


def load_pose(path: Path) -> Pose:
    """Read a published pose file: a ``.npy`` whose one object is a dict with hands, hands_score, draw_pose_params.

    Nothing in the file is run. Raises InputError if it is missing, damaged, asks for a class other than NumPy's arrays
    and plain containers (the message names it), or holds something that is not a pose.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise InputError(f"the pose file {path} is not a file")  # opening a pipe would wait for its writer
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
    """Read ``0.npy``, ``1.npy``, ... of a folder in numeric order, or its :data:`PACKED_POSES` if it has one.

    Hidden files and files of other kinds are left alone. Raises InputError if the folder is missing or holds no poses,
    a number is missing or double, a ``.npy`` is not named by a number, or a pose cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"the pose folder {folder} does not exist")
    if (folder / PACKED_POSES).is_file():
        return _load_packed(folder / PACKED_POSES)
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


def _load_packed(path: Path) -> list[Pose]:
    """The poses of a file of :func:`save_pose_sequence`. Raises InputError."""
    try:
        if path.stat().st_size > _MAX_PACKED_BYTES:
            raise InputError(f"the pose file {path} is larger than {_MAX_PACKED_BYTES // 1_000_000} MB")
        with np.load(path, allow_pickle=False) as file:
            hands, scores = file["hands"].astype(np.float64), file["hands_score"].astype(np.float64)
        if len(hands) != len(scores) or not 0 < len(hands) <= _MAX_PACKED_POSES:
            raise ValueError(f"{len(hands)} hands and {len(scores)} scores; as many of both, up to {_MAX_PACKED_POSES}")
        return [Pose(frame, score) for frame, score in zip(hands, scores, strict=True)]
    except OSError as error:
        raise InputError(f"the pose file {path} cannot be read: {error}") from error
    except (ValueError, TypeError, KeyError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError) as error:
        raise InputError(f"the pose file {path} is damaged: {_reason(error)}") from error


def save_pose_sequence(folder: Path, poses: Sequence[Pose]) -> None:
    """Write many poses drawn over the whole picture as one small file in ``folder``."""
    with (Path(folder) / PACKED_POSES).open("wb") as file:
        np.savez_compressed(
            file,
            hands=np.stack([pose.hands for pose in poses]).astype(np.float16),
            hands_score=np.stack([pose.hands_score for pose in poses]).astype(np.float16),
        )


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
