"""How a request or a result passes between two processes: its arrays through shared memory, the rest as a short pickle.

A pipe that carries megabytes has a bad moment: a process killed halfway through a write leaves its reader waiting for
the other half for ever. Messages of a few hundred bytes are written whole or not at all, and the copy costs less. This
file knows neither workers nor clips; one area serves one direction of one worker, one value at a time or several side
by side.
"""

from __future__ import annotations

import ctypes
import pickle
from dataclasses import dataclass
from multiprocessing.context import SpawnContext

ALIGNMENT = 64
"""Bytes to which every array is aligned in the area, so that vector instructions can read it in place."""


@dataclass(frozen=True, slots=True)
class Payload:
    """What travels through the pipe: the pickle without its arrays' bytes, how many bytes each array has, and from
    which byte of the area on they lie."""

    body: bytes
    sizes: tuple[int, ...]
    start: int = 0

    @property
    def end(self) -> int:
        """The byte of the area behind the last array."""
        return _places(self.sizes, self.start)[1]


class Area:
    """Anonymous shared memory of ``size`` bytes. It is passed to a process as an argument at spawn, has no name
    that could be left over, and is freed with the last process that holds it."""

    def __init__(self, context: SpawnContext, size: int) -> None:
        self._memory = context.RawArray(ctypes.c_uint8, size)

    @property
    def _bytes(self) -> memoryview:
        return memoryview(self._memory).cast("B")

    def put(self, value: object, start: int = 0) -> Payload:
        """Copies the arrays of ``value`` into the area, from byte ``start`` on. Raises ValueError if they do not
        fit."""
        arrays: list[pickle.PickleBuffer] = []
        body = pickle.dumps(value, protocol=5, buffer_callback=arrays.append)
        views = [array.raw() for array in arrays]
        places, end = _places([view.nbytes for view in views], start)
        area = self._bytes
        if end > len(area):
            raise ValueError(f"arrays of {end} bytes do not fit into the {len(area)} bytes shared with a worker")
        for place, view in zip(places, views, strict=True):
            area[place : place + view.nbytes] = view
        return Payload(body, tuple(view.nbytes for view in views), start)

    def take(self, payload: Payload) -> object:
        """The value of a payload that the other side has just put here; its arrays are copies."""
        places, _ = _places(payload.sizes, payload.start)
        area = self._bytes
        arrays = [bytearray(area[place : place + size]) for place, size in zip(places, payload.sizes, strict=True)]
        return pickle.loads(payload.body, buffers=arrays)


def _places(sizes: list[int] | tuple[int, ...], start: int) -> tuple[list[int], int]:
    """Where arrays of these sizes begin, one after another from ``start`` on and aligned, and where the last ends."""
    places, end = [], start
    for size in sizes:
        place = -(-end // ALIGNMENT) * ALIGNMENT
        places.append(place)
        end = place + size
    return places, end
