"""Counts for operators: histograms that can be added up, quantiles over a whole call, names with a bound on how many,
and the declaration of a counter as a metric.

Pure bookkeeping of bounded size. Knows nothing of what is counted, nor of how it is shown.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

OTHER = "other"
"""The name under which everything is counted once there are too many names."""


class Histogram:
    """How many values fell at or below each of ``bounds`` (rising), and how many above all; and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    @property
    def count(self) -> int:
        return sum(self.counts)

    def observe(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value

    def add(self, other: Histogram) -> None:
        """Counts all that ``other`` has counted. Raises ValueError if its bounds are different."""
        if other.bounds != self.bounds:
            raise ValueError(f"a histogram with bounds {other.bounds} cannot be added to one with {self.bounds}")
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum

    def cumulative(self) -> list[tuple[str, int]]:
        """(upper bound, how many values are at or below it), the last bound being +Inf, as Prometheus has it."""
        total, rows = 0, []
        for bound, count in zip((*self.bounds, math.inf), self.counts, strict=True):
            total += count
            rows.append(("+Inf" if bound == math.inf else repr(float(bound)), total))
        return rows


@dataclass(frozen=True, slots=True)
class Metric:
    """How counters are published, declared once for all that differ in the value of one label only.

    ``name``: without the server's prefix and "_total". ``meaning``: one sentence or more. ``label``: what tells several
    counters of this name apart; "" where there is one.
    """

    name: str
    meaning: str
    label: str = ""


@dataclass(frozen=True, slots=True)
class CounterMetric(Metric):
    """The metric of counters. ``scale`` turns their unit into the metric's."""

    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class HistogramMetric(Metric):
    """The metric of histograms."""


def counter(metric: CounterMetric, value: str = "") -> Any:
    """Declares a dataclass field that counts from 0; ``value`` of the metric's label."""
    return field(default=0, metadata={_DECLARED: (metric, (value,))})


def counters(metric: CounterMetric, *values: str) -> Any:
    """Declares a dataclass field that is a dictionary of counters by label value; ``values`` are published from the
    start, with 0."""
    return field(default_factory=dict, metadata={_DECLARED: (metric, values)})


def histogram(metric: HistogramMetric, bounds: Sequence[float]) -> Any:
    """Declares a dataclass field that is a histogram."""
    return field(default_factory=lambda: Histogram(bounds), metadata={_DECLARED: (metric, ("",))})


def histograms(metric: HistogramMetric) -> Any:
    """Declares a dataclass field that is a dictionary of histograms by label value."""
    return field(default_factory=dict, metadata={_DECLARED: (metric, ())})


_DECLARED = "metric"


def published(declared: object) -> Iterator[tuple[Metric, Mapping[str, Any]]]:
    """Every field that is declared as a metric in a dataclass, in the dataclasses that it holds, and in tuples of such:
    the metric, and the numbers or histograms by the value of its label ("" where it has none)."""
    if isinstance(declared, tuple):
        for part in declared:
            yield from published(part)
        return
    if not is_dataclass(declared):
        return
    for item in fields(declared):
        value = getattr(declared, item.name)
        if _DECLARED not in item.metadata:
            yield from published(value)
            continue
        metric, labels = item.metadata[_DECLARED]
        if isinstance(value, Mapping):
            yield metric, {**dict.fromkeys(labels, 0), **value}
        else:
            yield metric, {labels[0]: value}


class Quantiles:
    """Values rounded to ``step`` and counted, so that quantiles over hours take little memory: at most ``limit``
    different values are kept, and further ones count as the nearest of them."""

    def __init__(self, step: float, limit: int = 4_000) -> None:
        self._step = step
        self._limit = limit
        self._counts: Counter[int] = Counter()

    def observe(self, value: float) -> None:
        key = round(value / self._step)
        if key not in self._counts and len(self._counts) >= self._limit:
            key = min(self._counts, key=lambda known: abs(known - key))
        self._counts[key] += 1

    def quantile(self, share: float) -> float | None:
        """The smallest value that ``share`` (0..1) of the values do not exceed; None before the first."""
        wanted = math.ceil(share * self._counts.total())
        for key in sorted(self._counts):
            wanted -= self._counts[key]
            if wanted <= 0:
                return key * self._step
        return None


def percentile(values: Iterable[float], percent: float) -> float:
    """The nearest-rank percentile: the smallest value that ``percent`` of a hundred values do not exceed. Raises
    IndexError without values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


class Names:
    """Counts by name. Once there are ``limit`` different names, new ones count as OTHER, so that clients cannot make
    the list grow."""

    def __init__(self, limit: int = 32) -> None:
        self._limit = limit
        self._counts: Counter[str] = Counter()

    def count(self, name: str, by: int = 1) -> None:
        known = name in self._counts or len(self._counts) < self._limit
        self._counts[name if known else OTHER] += by

    def items(self) -> Iterable[tuple[str, int]]:
        return sorted(self._counts.items())
