"""Which clip is rendered where, and when: pure bookkeeping over workers, streams and the clips that wait.

The rules, in the order of their weight:

1. A worker runs one clip and holds at most one further clip prepared. A clip that continues another one, still on its
   way, is prepared where that one runs and runs when it is done.
2. A stream's clips go to the workers that ``pace.py`` has chosen for it: one (its home) wherever one can hold it. The
   choice is made again whenever streams or workers come and go or clips take another time.
3. A stream that lost clips since its last picture goes first, so that none starves where all cannot be served; then
   the earliest deadline.
4. A clip that cannot be done by its deadline any more is not started, as long as its stream has a newer one waiting.
   The newest is rendered in any case: only so does its stream learn how slow the workers have become.
5. While clips come late, all streams that share workers get fewer steps, one by one (``steps.py``).
6. A worker that takes much longer than expected may be stuck: what it has prepared goes back to the others, and they
   take the clips of the streams at home there.

Knows no processes, no asyncio and no clock: time is an argument, in seconds of any monotonic clock.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from echo_rtc.engine.pace import Budget, Place, plan
from echo_rtc.engine.steps import StepLadder

HOME_S = 10.0
"""A stream without clips for this long is taken for silent or gone: its worker is free for another to settle on."""

OVERDUE = 2.0
"""A worker at a clip for this many times as long as expected may be stuck."""

SMOOTHING = 0.3
"""Weight of the latest clip in what a worker is expected to take for the next one."""

TYPICAL_CLIPS = 5
"""Number of a worker's latest clips whose median time places streams: one slow clip moves no stream."""

HANDOVERS = 12
"""Number of a worker's latest hand-overs; the quickest of them is the time of a hand-over."""

KNOWN_S = 15.0
"""What a worker took for a number of steps that it has not been given for so long (s) is not known any more."""

DEFAULT_BUDGET = Budget(0.5)

NO_STREAM = ""
"""The stream of clips that belong to none: any worker takes them, and they have no home."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A clip's place in the order.

    ``number`` is its own alone. ``cost``: what it takes against an ordinary clip (more frames, fewer steps); ``steps``:
    its denoising steps, 0 for all. ``deadline_s``: when it must be done not to be given up for a newer one, infinity if
    it may take any time; ``due_s``: when it must be done for no frame to be late. ``after``: the number of the clip
    that it continues. ``worker``: the only one that can do it. ``unable``: those that cannot. ``droppable``: whether it
    may be given up when it is late.
    """

    number: int
    stream: str
    deadline_s: float = math.inf
    due_s: float = math.inf
    cost: float = 1.0
    steps: int = 0
    after: int | None = None
    worker: str | None = None
    unable: frozenset[str] = frozenset()
    droppable: bool = True


@dataclass(frozen=True, slots=True)
class Done:
    """A clip took ``took_s`` seconds from hand-over to hand-back, ``render_s`` of them on the worker. ``slack_s``: the
    least time by which one of its frames came before it was due; None: they came all at once, just now."""

    took_s: float
    render_s: float
    slack_s: float | None = None


@dataclass(frozen=True, slots=True)
class Prepare:
    """``worker``, which is busy, is to prepare the clip; it starts there later, unless it is dropped."""

    worker: str
    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Start:
    """``worker`` is to render the clip now, whether it had it prepared or not. ``taken_from``: another worker, which
    had it prepared and can forget it."""

    worker: str
    ticket: Ticket
    taken_from: str | None = None


@dataclass(frozen=True, slots=True)
class Drop:
    """The clip cannot be done by its deadline any more. ``worker`` has it prepared, if it is not None."""

    ticket: Ticket
    worker: str | None


@dataclass(frozen=True, slots=True)
class Recall:
    """``worker`` can forget the clip that it has prepared; it waits again."""

    worker: str
    ticket: Ticket


Action = Prepare | Start | Drop | Recall


@dataclass(slots=True)
class _Recent:
    """What the latest clips of one number of steps took (s), and when the last of them ended."""

    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=TYPICAL_CLIPS))
    at_s: float = -math.inf


@dataclass(slots=True)
class _Worker:
    """``clip_s``: expected seconds of an ordinary clip. ``began_s``, ``free_s``: when the one that runs was begun, and
    should be done."""

    clip_s: float
    began_s: float = 0.0
    free_s: float = 0.0
    running: Ticket | None = None
    prepared: Ticket | None = None
    recent: dict[int, _Recent] = field(default_factory=dict)
    handovers_s: deque[float] = field(default_factory=lambda: deque(maxlen=HANDOVERS))

    def took(self, steps: int, seconds: float, now: float) -> None:
        """Records that a clip of ``steps`` steps, with as many frames as an ordinary one, took ``seconds``."""
        recent = self.recent.setdefault(steps, _Recent())
        recent.seconds.append(seconds)
        recent.at_s = now
        for other in [other for other, old in self.recent.items() if now - old.at_s > KNOWN_S]:
            del self.recent[other]

    def times(self) -> dict[int, float]:
        """Seconds of a clip by its steps, lately: what rendering takes, and a hand-over at its quickest. What a busy
        machine adds to that now and then takes no steps off a worker that is quick enough."""
        handover_s = min(self.handovers_s) if len(self.handovers_s) == HANDOVERS else 0.0
        return {steps: statistics.median(recent.seconds) + handover_s for steps, recent in self.recent.items()}

    def overdue(self, now: float) -> bool:
        """Whether it should have been done long ago."""
        return self.running is not None and now - self.began_s > OVERDUE * (self.free_s - self.began_s)

    def stuck(self, now: float) -> bool:
        """Whether it has been at anything, clip or call, for so long that its streams should not wait for it."""
        return self.running is not None and now - self.began_s > OVERDUE * max(self.free_s - self.began_s, self.clip_s)


@dataclass(slots=True)
class _Stream:
    """``home``: the worker that rendered its latest clip. ``missed``: clips lost since the last one that was rendered;
    ``seen_s``: when it last had one."""

    home: str | None = None
    missed: int = 0
    seen_s: float = -math.inf
    waiting: set[int] = field(default_factory=set)


class Scheduler:
    """The order of one fleet of workers. Tell it what happens; :meth:`decide` says what to do next."""

    def __init__(self, prefetch: bool = True, budget: Budget = DEFAULT_BUDGET) -> None:
        """``prefetch``: whether busy workers are given a clip to prepare."""
        self._prefetch = prefetch
        self._budget = budget
        self._places: dict[str, Place] = {}
        self._places_stand = True
        self._ladders: dict[frozenset[str], StepLadder] = {}
        self._newest = -1
        self._workers: dict[str, _Worker] = {}
        self._streams: dict[str, _Stream] = {}
        self._waiting: dict[int, Ticket] = {}
        self._unfinished: set[int] = set()
        self.dropped = 0
        """Clips that were never started because they could not be done by their deadlines."""

    @property
    def waiting(self) -> int:
        """Clips that no worker has yet."""
        return len(self._waiting)

    def queue_of(self, worker: str) -> int:
        """How many clips a worker has: running and prepared."""
        state = self._workers.get(worker)
        return 0 if state is None else (state.running is not None) + (state.prepared is not None)

    def clip_s(self, worker: str) -> float:
        """Seconds that an ordinary clip is expected to take on a worker that is up."""
        return self._workers[worker].clip_s

    def place(self, stream: str) -> Place:
        """How the next clip of a stream is to be rendered, with the steps that it gets now. One that has no clips yet
        is told what it would be given."""
        place = self._places.get(stream)
        if place is None:
            homes: dict[str, str | None] = {name: each.home for name, each in self._live()}
            place = plan(self._budget, self.times(), homes | {stream: None}, self._places).get(stream)
        if place is None:
            return Place(frozenset(), self._budget.steps, spread=False)
        ladder = self._ladders.get(place.workers)
        return place if ladder is None else replace(place, steps=min(place.steps, ladder.steps))

    def times(self) -> dict[str, dict[int, float]]:
        """Seconds that a clip takes lately on each worker that is up, by its steps."""
        return {name: worker.times() for name, worker in self._workers.items()}

    def sharing(self, workers: frozenset[str]) -> int:
        """How many streams have their clips rendered by any of these workers."""
        return sum(not place.workers.isdisjoint(workers) for place in self._places.values())

    # What happens

    def add_worker(self, worker: str, clip_s: float) -> None:
        """A worker is up and free; an ordinary clip is expected to take it ``clip_s`` seconds."""
        self._workers[worker] = _Worker(clip_s)
        self._workers[worker].recent[self._budget.steps] = _Recent(deque([clip_s], TYPICAL_CLIPS))
        self._places_stand = False

    def measured(self, worker: str, clip_s: float) -> None:
        """An ordinary clip was found to take ``clip_s`` on a worker; what is known of it does not count any more."""
        state = self._workers.get(worker)
        if state is not None:
            state.clip_s = clip_s
            state.recent = {self._budget.steps: _Recent(deque([clip_s], TYPICAL_CLIPS))}
            self._places_stand = False

    def remove_worker(self, worker: str) -> None:
        """A worker is no more. What it had prepared waits again; tell what it was rendering by :meth:`finished`,
        before or after."""
        state = self._workers.pop(worker, None)
        self._places_stand = False
        if state is not None and state.prepared is not None:
            self._wait(state.prepared)

    def submit(self, ticket: Ticket, now: float) -> None:
        """A clip to render. Those of a stream are numbered and come in order."""
        if ticket.stream not in self._streams:
            self._streams[ticket.stream] = _Stream()
            self._places_stand = False
        self._streams[ticket.stream].seen_s = now
        self._newest = max(self._newest, ticket.number)
        self._unfinished.add(ticket.number)
        self._wait(ticket)

    def withdraw(self, number: int) -> str | None:
        """Withdraws a clip. Returns the worker that has it prepared, if one has. One that is being
        rendered stays until it is finished."""
        if number in self._waiting:
            self._take(self._waiting[number])
            self._unfinished.discard(number)
            return None
        for name, worker in self._workers.items():
            if worker.prepared is not None and worker.prepared.number == number:
                worker.prepared = None
                self._unfinished.discard(number)
                return name
        return None

    def finished(self, worker: str, ticket: Ticket, now: float, done: Done | None) -> None:
        """A worker is done with a clip that it had started; None: without a result."""
        self._unfinished.discard(ticket.number)
        stream = self._streams.get(ticket.stream)
        if stream is not None:
            stream.seen_s = now
            stream.missed = 0 if done is not None else stream.missed + 1
        state = self._workers.get(worker)
        if state is None or state.running != ticket:
            return
        state.running = None
        if done is not None and ticket.cost > 0:
            state.clip_s += SMOOTHING * (max(done.took_s / ticket.cost, 1e-6) - state.clip_s)
            steps = ticket.steps or self._budget.steps
            state.took(steps, max(done.render_s / ticket.cost, 1e-6) * self._budget.cost(steps), now)
            state.handovers_s.append(done.took_s - done.render_s)
            self._places_stand = False
            if stream is not None:
                stream.home = worker
            self._judge(ticket, ticket.due_s - now if done.slack_s is None else done.slack_s, done.took_s)

    # What to do

    def decide(self, now: float) -> list[Action]:
        """What is to be done now. It is taken as done with the answer."""
        self._settle(now)
        actions: list[Action] = [*self._recall(now), *self._drop_late(now)]
        for name, worker in self._workers.items():
            if worker.running is None and worker.prepared is not None:
                ticket, worker.prepared = worker.prepared, None
                actions.append(self._start(name, ticket, now))
        # The quickest worker first, so that a clip that any may take does not go to the slowest.
        for name, worker in sorted(self._workers.items(), key=lambda item: item[1].clip_s):
            if worker.running is not None:
                continue
            if (best := self._best(name, now)) is not None:
                self._take(best)
                actions.append(self._start(name, best, now))
            elif (holder := self._prepared_elsewhere(name, now)) is not None:
                other = self._workers[holder]
                assert other.prepared is not None
                ticket, other.prepared = other.prepared, None
                actions.append(self._start(name, ticket, now, holder))
        if self._prefetch:
            # The worker that is done soonest first.
            for name, worker in sorted(self._workers.items(), key=lambda item: item[1].free_s):
                if worker.running is None or worker.prepared is not None or worker.overdue(now):
                    continue
                if (best := self._best(name, now, worker.running.number)) is not None:
                    self._take(best)
                    worker.prepared = best
                    actions.append(Prepare(name, best))
        return actions

    # Inside

    def _wait(self, ticket: Ticket) -> None:
        self._waiting[ticket.number] = ticket
        self._streams.setdefault(ticket.stream, _Stream()).waiting.add(ticket.number)

    def _take(self, ticket: Ticket) -> None:
        del self._waiting[ticket.number]
        self._streams[ticket.stream].waiting.discard(ticket.number)

    def _recall(self, now: float) -> Iterator[Recall]:
        for name, worker in self._workers.items():
            ticket = worker.prepared
            if ticket is not None and worker.overdue(now) and ticket.after not in self._unfinished:
                worker.prepared = None
                self._wait(ticket)
                yield Recall(name, ticket)

    def _drop_late(self, now: float) -> Iterator[Drop]:
        for ticket in [*self._waiting.values()]:
            if self._hopeless(ticket, now) and max(self._streams[ticket.stream].waiting) > ticket.number:
                self._take(ticket)
                yield self._given_up(ticket, None)
        for name, worker in self._workers.items():
            ticket_or_none = worker.prepared
            if ticket_or_none is None or worker.running is not None:
                continue
            if self._hopeless(ticket_or_none, now) and self._streams[ticket_or_none.stream].waiting:
                worker.prepared = None
                yield self._given_up(ticket_or_none, name)

    def _given_up(self, ticket: Ticket, worker: str | None) -> Drop:
        self._unfinished.discard(ticket.number)
        self._streams[ticket.stream].missed += 1
        self._judge(ticket, -math.inf, 0.0)
        self.dropped += 1
        return Drop(ticket, worker)

    def _hopeless(self, ticket: Ticket, now: float) -> bool:
        """Whether the clip would be late even if the quickest worker began it now."""
        quickest = min((worker.clip_s for worker in self._workers.values()), default=0.0)
        return ticket.droppable and now + quickest * ticket.cost > ticket.deadline_s

    def _start(self, name: str, ticket: Ticket, now: float, taken_from: str | None = None) -> Start:
        worker = self._workers[name]
        worker.running = ticket
        worker.began_s = now
        worker.free_s = now + worker.clip_s * ticket.cost
        return Start(name, ticket, taken_from)

    def _may(self, name: str, ticket: Ticket, now: float, running: int | None = None) -> bool:
        """Whether a worker may take a clip: to run, or to prepare while it is at clip number ``running``."""
        if ticket.worker is not None:
            return ticket.worker == name and running is None
        if name in ticket.unable:
            return False
        if ticket.after in self._unfinished:
            return ticket.after == running
        place = self._places.get(ticket.stream)
        if place is None or name in place.workers:
            return True
        return all(worker in ticket.unable or self._workers[worker].stuck(now) for worker in place.workers)

    def _best(self, name: str, now: float, running: int | None = None) -> Ticket | None:
        """What the worker should take next; see :meth:`_may`."""

        def place(ticket: Ticket) -> tuple[float, bool, float, int]:
            missed = self._streams[ticket.stream].missed
            return (-missed, self._hopeless(ticket, now), ticket.deadline_s, ticket.number)

        candidates = (ticket for ticket in self._waiting.values() if self._may(name, ticket, now, running))
        return min(candidates, key=place, default=None)

    def _prepared_elsewhere(self, name: str, now: float) -> str | None:
        """The busy worker that holds a clip prepared which ``name`` could begin at once."""
        for other, worker in self._workers.items():
            if worker.running is not None and worker.prepared is not None and self._may(name, worker.prepared, now):
                return other
        return None

    def _settle(self, now: float) -> None:
        """Forgets streams that are silent, and finds a place for each other one if anything has changed."""
        held = {
            ticket.stream
            for worker in self._workers.values()
            for ticket in (worker.running, worker.prepared)
            if ticket is not None
        }
        for name in [*self._streams]:
            stream = self._streams[name]
            if not stream.waiting and name not in held and now - stream.seen_s > HOME_S:
                del self._streams[name]
                self._places_stand = False
        if self._places_stand:
            return
        self._places_stand = True
        homes = {name: stream.home for name, stream in self._live()}
        self._places = plan(self._budget, self.times(), homes, self._places)
        for name, place in self._places.items():
            if len(place.workers) == 1:
                (self._streams[name].home,) = place.workers
        self._limit_steps()

    def _live(self) -> Iterator[tuple[str, _Stream]]:
        return ((name, stream) for name, stream in self._streams.items() if name != NO_STREAM)

    def _limit_steps(self) -> None:
        """One ladder for all streams that share workers, none higher than what the workers hold."""
        most = {place.workers: place.steps for place in self._places.values()}
        for workers in [workers for workers in self._ladders if workers not in most]:
            del self._ladders[workers]
        for workers, steps in most.items():
            if workers not in self._ladders:
                self._ladders[workers] = StepLadder(steps, min(self._budget.min_steps, steps))
            self._ladders[workers].limit(steps)

    def _judge(self, ticket: Ticket, slack_s: float, took_s: float) -> None:
        """A clip was there ``slack_s`` before it was due, negative if it was late: the steps of all streams that share
        its workers fall or climb."""
        place = self._places.get(ticket.stream)
        if place is None or math.isinf(ticket.due_s):
            return
        if slack_s < 0:
            self._ladders[place.workers].late(ticket.number, self._newest + 1)
        else:
            self._ladders[place.workers].on_time(ticket.number, slack_s, took_s, self._newest + 1)
