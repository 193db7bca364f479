"""Which of the attention kernels that are there computes which attention.

They differ by factors, in an order that depends on the card and on the shape, so the fastest is found by measuring.
Knows no networks: queries, keys and values are (N, L, H, d).
"""

from __future__ import annotations

import logging
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from echo_rtc.errors import SettingsError, first_line
from echo_rtc.model.kernels.narrow_attention import narrow_attention
from echo_rtc.model.options import choices_of

log = logging.getLogger(__name__)

CHOICES = choices_of("attention")

_BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
_TRIALS = 5
_MOST_SCORES = 1 << 28
"""Scores that the plain product may write: half a gigabyte."""

_CANNOT = (RuntimeError, ValueError, NotImplementedError)
"""What kernels raise for shapes that they are not made for."""

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(N, L, H, d), (N, S, H, d), (N, S, H, d) -> (N, L, H, d)."""


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's, with PyTorch's own choice of kernel."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _only(backend: SDPBackend) -> Kernel:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return _sdpa(q, k, v)

    return attend


def _product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two products with a softmax between them, all scores in memory: for heads too wide for the others."""
    images, rows, heads, width = q.shape
    if images * heads * rows * k.shape[1] > _MOST_SCORES:
        raise ValueError("too many scores")
    q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (q, k, v))
    shares = torch.softmax(torch.bmm(q * width**-0.5, k.transpose(1, 2)), dim=-1)
    return torch.bmm(shares, v).view(images, heads, rows, -1).transpose(1, 2)


def _xformers() -> Kernel:
    try:
        ops: Any = import_module("xformers.ops")
    except ImportError as error:
        raise SettingsError(
            "attention is xformers, which is not installed; install the extra gpu or choose auto"
        ) from error

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        result: Tensor = ops.memory_efficient_attention(q, k, v)
        return result

    return attend


@dataclass
class AttentionChoice:
    """Attention by the kernel that ``kind`` names: "sdpa", "xformers", or "auto" for the fastest of all there are.

    What xformers cannot compute, as the decoder's one head of width 512, is computed by the fastest of the others.
    ``chosen`` tells which, by (N, L, S, H, d). Raises SettingsError for xformers where it is not installed.
    """

    kind: str = "auto"
    chosen: dict[tuple[int, ...], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in CHOICES:
            raise SettingsError(f"attention is {self.kind!r}; it must be one of {', '.join(CHOICES)}")
        self._said = False
        self._kernels: dict[str, Kernel] = {}
        if self.kind == "sdpa":
            self._kernels["sdpa"] = _sdpa
            return
        self._kernels = {name: _only(backend) for name, backend in _BACKENDS.items()}
        self._kernels |= {"narrow": narrow_attention, "product": _product}
        try:
            self._kernels["xformers"] = _xformers()
        except SettingsError:
            if self.kind == "xformers":
                raise
            log.debug("xformers is not installed; it is not measured")

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of q (N, L, H, d) over k and v (N, S, H, d) -> (N, L, H, d)."""
        if self.kind == "sdpa" or (self.kind == "auto" and not q.is_cuda):
            return _sdpa(q, k, v)
        key = (*q.shape[:2], k.shape[1], *q.shape[2:])
        if key not in self.chosen:
            self.chosen[key] = self._fastest(q, k, v) if self.kind == "auto" else self._wanted(q, k, v)
        return self._kernels[self.chosen[key]](q, k, v)

    def _wanted(self, q: Tensor, k: Tensor, v: Tensor) -> str:
        """The name of the kernel that was asked for, or of another where it cannot compute these."""
        try:
            self._kernels[self.kind](q, k, v)
            return self.kind
        except _CANNOT as error:
            instead = self._fastest(q, k, v)
            what = f"{q.shape[2]} heads of width {q.shape[3]} over {k.shape[1]} places"
            # A library that was built for another PyTorch computes nothing: the first line says why.
            level = logging.INFO if self._said else logging.WARNING
            log.log(level, "%s cannot compute %s (%s); %s does", self.kind, what, first_line(error), instead)
            self._said = True
            return instead

    def _fastest(self, q: Tensor, k: Tensor, v: Tensor) -> str:
        """The name of the kernel that takes the least time (median of a few) among those that can compute it."""
        times_ms: dict[str, float] = {}
        for name, kernel in self._kernels.items():
            try:
                with warnings.catch_warnings():  # PyTorch warns of what a kernel cannot do, at length
                    warnings.simplefilter("ignore")
                    times_ms[name] = _time_ms(lambda kernel=kernel: kernel(q, k, v))  # type: ignore[misc]
            except _CANNOT:
                log.debug("the attention kernel %s cannot compute %s over %s", name, tuple(q.shape), tuple(k.shape))
        if not times_ms:
            raise SettingsError(f"no attention kernel here computes {tuple(q.shape)} over {tuple(k.shape)}")
        return min(times_ms, key=lambda name: times_ms[name])


def _time_ms(compute: Callable[[], object]) -> float:
    """The median time (ms) of a computation on the current CUDA device, after one that is not counted."""
    compute()
    times: list[float] = []
    for _ in range(_TRIALS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        compute()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)
