"""A computation on a CUDA device, recorded once and replayed: thousands of small launches become one.

Knows of what is computed only that it is always the same on tensors of the same shapes, without waiting for
the device and without looking at values.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from echo_rtc.model.unet3d import KeysValues

_RECORDING = threading.Lock()
"""One recording at a time, whichever device or thread it is for."""


class Captured:
    """``compute`` as a CUDA graph. ``inputs`` are examples; calls take tensors of the same shapes and types.

    What a call returns is overwritten by the next call, of this or of any other graph in the same ``pool``.
    """

    def __init__(self, compute: Callable[..., Any], inputs: Sequence[Tensor], pool: Any) -> None:
        self._inputs = [torch.empty_like(value) for value in inputs]
        self._fill(inputs)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # Kernels are compiled and chosen, and what is computed once is computed, before the recording.
            compute(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Another thread may be preparing the next clip on this device meanwhile.
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self._outputs = compute(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Any:
        self._fill(inputs)
        self._graph.replay()
        return self._outputs

    def _fill(self, inputs: Sequence[Tensor]) -> None:
        torch._foreach_copy_(self._inputs, list(inputs), non_blocking=True)


class Captures:
    """Graphs by key, each recorded when it is first asked for; where ``active`` is false, plain calls."""

    def __init__(self, active: bool) -> None:
        self.active = active
        self._graphs: dict[tuple[object, ...], Captured] = {}
        self._pool: Any = torch.cuda.graph_pool_handle() if active else None

    def run(self, key: tuple[object, ...], compute: Callable[..., Any], *inputs: Tensor) -> Any:
        """``compute(*inputs)``. Equal keys must mean the same computation; the shapes of the inputs need not be in
        them."""
        if not self.active:
            return compute(*inputs)
        whole = (*key, *(tuple(value.shape) for value in inputs))
        if whole not in self._graphs:
            with _RECORDING:
                self._graphs[whole] = Captured(compute, inputs, self._pool)
        return self._graphs[whole](*inputs)


class StaticBank:
    """Fixed-address buffer from which CUDA graphs read the current avatar's keys and values."""

    def __init__(self) -> None:
        self._shelf: KeysValues | None = None
        self._there: KeysValues | None = None

    def put(self, bank: KeysValues) -> KeysValues:
        """Puts a bank there, unless it is there already, and returns the place."""
        if self._shelf is None:
            self._shelf = KeysValues({name: (k.clone(), v.clone()) for name, (k, v) in bank.blocks.items()})
        elif bank is not self._there:
            for name, pair in bank.blocks.items():
                for own, value in zip(self._shelf.blocks[name], pair, strict=True):
                    own.copy_(value)
        self._there = bank
        return self._shelf
