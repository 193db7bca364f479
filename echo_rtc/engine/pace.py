"""Which workers render a stream's clips, with how many denoising steps, and how the clips join.

Decided for each stream again whenever anything changes, so that it holds at the edge of real time.

The rules, in the order of their weight:

1. A stream stays on one worker, chained, wherever one can hold it at some number of steps that is allowed.
2. All streams get as many steps as can be held for all of them; on one worker they get the same number.
3. Where streams do not divide evenly among workers, all of them share those workers that can hold a stream, chained.
4. Only streams that no worker can hold at the fewest steps are spread over several workers, and their clips overlap.

Pure arithmetic over the time that a clip takes on each worker. Knows no clips, no clock and no processes.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

ADMISSION = 0.85
"""The share of the measured speed at the fewest steps that streams are admitted to; the rest is for clips that take
longer than usual."""

SHARED = 0.95
"""The share of one or several workers' time that streams without a worker of their own may fill: their clips wait for
each other, and a full worker does not catch up with what is late."""

RAISE = 0.99
RETURN = 0.95
"""A worker that has become quicker gets more steps once it would be busy for no more than the first share of the time,
and holds a stream by itself again that was spread, below the second. Otherwise its whole time counts."""

ROUNDING = 1e-9

DENOISING_SHARE = 0.85
"""About this part of a clip's time is in proportion to its steps; the rest is decoding."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What the clips of any stream have in common.

    ``clip_s``: media time of a clip, and so the time in which one has to be rendered. ``steps``, ``min_steps``: the
    most and the fewest denoising steps. ``overlap``: frames that a clip of a spread stream renders once more, as a part
    of its own. ``chained``: whether clips may begin with the last latent of the one before.
    """

    clip_s: float
    steps: int = 1
    min_steps: int = 1
    overlap: float = 0.0
    chained: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.min_steps <= self.steps:
            raise ValueError(f"min_steps is {self.min_steps} of {self.steps} steps; it must be from 1 to these")

    def cost(self, steps: int, frames: float = 1.0) -> float:
        """What a clip of ``steps`` steps takes against one of all steps; ``frames``: its frames against a clip's."""
        return frames * (DENOISING_SHARE * steps / self.steps + 1.0 - DENOISING_SHARE)

    @property
    def downwards(self) -> range:
        """The numbers of steps that are allowed, the best first."""
        return range(self.steps, self.min_steps - 1, -1)


@dataclass(frozen=True, slots=True)
class Place:
    """How a stream is rendered. ``workers``: those that may take its clips. ``steps``: the most that its clips get.
    ``spread``: whether clips are rendered independently of each other, and overlap."""

    workers: frozenset[str]
    steps: int
    spread: bool = False


Times = Mapping[int, float]
"""Seconds that a clip takes on a worker, by its denoising steps; for at least one number of steps."""


def seconds(budget: Budget, times: Times, steps: int) -> float:
    """Seconds that a clip of ``steps`` steps takes: as measured, else in proportion to what is measured for the next
    number."""
    measured = times.get(steps)
    if measured is not None:
        return measured
    nearest = min(times, key=lambda known: abs(known - steps))
    return times[nearest] * budget.cost(steps) / budget.cost(nearest)


def plan(
    budget: Budget,
    workers: Mapping[str, Times],
    homes: Mapping[str, str | None],
    before: Mapping[str, Place] | None = None,
) -> dict[str, Place]:
    """The place of each stream.

    ``workers``: those that are up. ``homes``: the streams in the order of their age, and the worker on which each was
    rendered last. ``before``: the places that they have so far; a change for the better needs some room to spare.
    """
    if not workers or not homes:
        return {}
    return _Planning(budget, workers, before or {}).places(homes)


def capacity(budget: Budget, workers: Iterable[Times]) -> int:
    """How many streams workers hold at the fewest steps, with margin; at least 1."""
    named = {str(number): times for number, times in enumerate(workers)}
    planning = _Planning(budget, named, {}, ADMISSION)
    able = planning.able(budget.min_steps) if budget.chained or len(named) < 2 else frozenset()
    others = frozenset(named) - able
    return max(1, planning.held(able, budget.min_steps) + planning.held(others, budget.min_steps, overlapping=True))


def steps_of(budget: Budget, workers: Sequence[Times], streams: int) -> int:
    """The fewest denoising steps that any of ``streams`` streams gets."""
    named = {str(number): times for number, times in enumerate(workers)}
    places = plan(budget, named, dict.fromkeys(map(str, range(streams))))
    return min((place.steps for place in places.values()), default=budget.steps)


class _Planning:
    """One plan in the making. ``most``: the share of a worker's time that may be filled, but for what came before."""

    def __init__(
        self, budget: Budget, workers: Mapping[str, Times], before: Mapping[str, Place], most: float = 1.0
    ) -> None:
        self._budget = budget
        self._workers = workers
        self._most = most
        self._reached = min((place.steps for place in before.values()), default=budget.steps)
        self._steps = {worker: place.steps for place in before.values() for worker in place.workers}
        self._spread = {worker for place in before.values() if place.spread for worker in place.workers}

    def places(self, homes: Mapping[str, str | None]) -> dict[str, Place]:
        """The best that holds for all, or what comes next to it."""
        budget, streams = self._budget, len(homes)
        if not budget.chained and len(self._workers) > 1:
            return dict.fromkeys(homes, self._spread_over(frozenset(self._workers), streams))
        for steps in budget.downwards:
            room = self._room(steps)
            if sum(room.values()) >= streams:
                return self._settled(homes, room)
            able = frozenset(worker for worker in room if room[worker])
            share = RAISE if steps > self._reached else 1.0
            if share * SHARED * self._rate(able, steps) >= streams:
                return dict.fromkeys(homes, Place(able, steps))
        return self._beyond([*homes])

    def able(self, steps: int) -> frozenset[str]:
        """The workers that hold a stream by themselves."""
        return frozenset(worker for worker, room in self._room(steps).items() if room)

    def held(self, workers: frozenset[str], steps: int, overlapping: bool = False) -> int:
        """How many streams these workers hold together."""
        share = min(self._most, SHARED) if len(workers) > 1 else self._most
        return math.floor(share * self._rate(workers, steps, overlapping) + ROUNDING)

    def _seconds(self, worker: str, steps: int) -> float:
        return seconds(self._budget, self._workers[worker], steps)

    def _share(self, worker: str, steps: int) -> float:
        if worker in self._spread:
            return RETURN
        return RAISE if steps > self._reached else self._most

    def _room(self, steps: int) -> dict[str, int]:
        """How many streams each worker holds by itself."""
        return {worker: self._holds(worker, steps, self._share(worker, steps)) for worker in self._workers}

    def _holds(self, worker: str, steps: int, share: float) -> int:
        """How many streams a ``share`` of a worker's time is enough for; several leave some of it free."""
        rate = self._budget.clip_s / self._seconds(worker, steps)
        several = math.floor((share * SHARED if share > SHARED else share) * rate + ROUNDING)
        return several if several > 1 else min(1, math.floor(share * rate + ROUNDING))

    def _rate(self, workers: Iterable[str], steps: int, overlapping: bool = False) -> float:
        """How many streams' clips these workers render in the time of one."""
        frames = 1.0 + self._budget.overlap * overlapping
        return sum(self._budget.clip_s / (self._seconds(worker, steps) * frames) for worker in workers)

    def _settled(self, homes: Mapping[str, str | None], room: Mapping[str, int]) -> dict[str, Place]:
        """Each stream on a worker of its own, or shared with as few others as possible; where it is, if that can be."""
        crowd = next(
            most for most in itertools.count(1) if sum(min(most, each) for each in room.values()) >= len(homes)
        )
        guests: Counter[str] = Counter()
        found: dict[str, str] = {}
        for stream, home in homes.items():
            if home is not None and home in room and guests[home] < min(crowd, room[home]):
                found[stream] = home
                guests[home] += 1
        full = self._budget.steps
        for stream in homes:
            if stream not in found:
                free = (worker for worker in room if guests[worker] < min(crowd, room[worker]))
                found[stream] = worker = min(free, key=lambda name: (guests[name] + 1) * self._seconds(name, full))
                guests[worker] += 1
        steps = {worker: self._steps_on(worker, count) for worker, count in guests.items()}
        return {stream: Place(frozenset({found[stream]}), steps[found[stream]]) for stream in homes}

    def _steps_on(self, worker: str, streams: int) -> int:
        """The most steps at which one worker holds ``streams`` streams; the fewest if none is few enough."""
        before = self._steps.get(worker, self._budget.steps)

        def holds(steps: int) -> bool:
            return self._holds(worker, steps, RAISE if steps > before else 1.0) >= streams

        return self._best(holds)

    def _spread_over(self, workers: frozenset[str], streams: int) -> Place:
        """The place of ``streams`` streams spread over workers, with the most steps that these hold."""
        steps = self._best(lambda steps: SHARED * self._rate(workers, steps, overlapping=True) >= streams)
        return Place(workers, steps, spread=True)

    def _best(self, holds: Callable[[int], bool]) -> int:
        return next((steps for steps in self._budget.downwards if holds(steps)), self._budget.min_steps)

    def _beyond(self, streams: Sequence[str]) -> dict[str, Place]:
        """More than the workers hold one by one: those that can hold a stream share as many as they can, and the others
        take what is left among them; what even they cannot hold is shared by those that can."""
        all_workers, least = frozenset(self._workers), self._budget.min_steps
        if len(all_workers) == 1:
            return dict.fromkeys(streams, Place(all_workers, least))
        able = self.able(least)
        if not able:
            return dict.fromkeys(streams, self._spread_over(all_workers, len(streams)))
        others = all_workers - able
        first = max(1, self.held(able, least), len(streams) - self.held(others, least, overlapping=True))
        places = dict.fromkeys(streams[:first], Place(able, least))
        if streams[first:]:
            places |= dict.fromkeys(streams[first:], self._spread_over(others, len(streams[first:])))
        return places
