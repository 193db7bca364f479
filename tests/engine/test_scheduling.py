"""The order of clips, in virtual time: deadlines, homes, fairness, what is given up, and what is never broken."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_rtc.engine.scheduling import HOME_S, NO_STREAM, Action, Done, Drop, Prepare, Recall, Scheduler, Start, Ticket

CLIP_S = 0.5


@dataclass
class Fleet:
    """Workers in virtual time under a scheduler. ``seconds(worker, ticket)``: what a clip takes."""

    seconds: Callable[[str, Ticket], float]
    scheduler: Scheduler = field(default_factory=Scheduler)
    now: float = 0.0
    done: dict[int, tuple[str, float]] = field(default_factory=dict)
    dropped: list[Ticket] = field(default_factory=list)
    started: list[tuple[str, Ticket, float]] = field(default_factory=list)
    prepared: dict[str, int | None] = field(default_factory=dict)
    running: dict[str, Ticket] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), act))

    def up(self, *workers: str, clip_s: float = 0.1) -> None:
        for worker in workers:
            self.scheduler.add_worker(worker, clip_s)
        self.act()

    def submit(self, ticket: Ticket) -> None:
        self.scheduler.submit(ticket, self.now)
        self.act()

    def run(self, until: float = 1e9) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, act = heapq.heappop(self._events)
            act()
        if until < 1e9:
            self.now = until

    def act(self) -> list[Action]:
        actions = self.scheduler.decide(self.now)
        for action in actions:
            match action:
                case Start(worker, ticket, taken_from):
                    assert worker not in self.running, "one clip runs at a time"
                    assert ticket.after not in {running.number for running in self.running.values()}
                    if taken_from is not None:
                        assert self.prepared[taken_from] == ticket.number
                        self.prepared[taken_from] = None
                    if self.prepared.get(worker) is not None:
                        assert self.prepared[worker] == ticket.number, "what is prepared runs next"
                    self.prepared[worker] = None
                    self.running[worker] = ticket
                    self.started.append((worker, ticket, self.now))
                    took = self.seconds(worker, ticket)
                    self.at(self.now + took, lambda w=worker, t=ticket, s=took: self.finish(w, t, s))  # type: ignore[misc]
                case Prepare(worker, ticket):
                    assert worker in self.running
                    assert self.prepared.get(worker) is None, "one clip is prepared at a time"
                    self.prepared[worker] = ticket.number
                case Recall(worker, ticket):
                    assert self.prepared[worker] == ticket.number
                    self.prepared[worker] = None
                case Drop(ticket, worker):
                    if worker is not None:
                        assert self.prepared[worker] == ticket.number
                        self.prepared[worker] = None
                    self.dropped.append(ticket)
        return actions

    def finish(self, worker: str, ticket: Ticket, took: float) -> None:
        if self.running.get(worker) != ticket:
            return  # the worker died meanwhile
        del self.running[worker]
        self.done[ticket.number] = (worker, self.now)
        self.scheduler.finished(worker, ticket, self.now, Done(took, took))
        self.act()

    def die(self, worker: str) -> None:
        self.scheduler.remove_worker(worker)
        self.prepared[worker] = None
        lost = self.running.pop(worker, None)
        if lost is not None:
            self.scheduler.finished(worker, lost, self.now, None)
        self.act()

    def speak(self, stream: str, clips: int, delay_s: float, first_s: float = 0.0, chained: bool = False) -> list[int]:
        """A clip every CLIP_S, each due ``delay_s`` after it was handed in; their numbers."""
        numbers: list[int] = []
        for n in range(clips):
            number = next(self._order)
            after = numbers[-1] if chained and numbers else None
            when = first_s + n * CLIP_S
            ticket = Ticket(number, stream, when + delay_s, after=after)
            self.at(when, lambda t=ticket: self.submit(t))  # type: ignore[misc]
            numbers.append(number)
        return numbers

    def workers_of(self, numbers: list[int]) -> set[str]:
        return {self.done[number][0] for number in numbers if number in self.done}


def steady(seconds: float) -> Callable[[str, Ticket], float]:
    return lambda worker, ticket: seconds


def test_the_earliest_deadline_goes_first() -> None:
    fleet = Fleet(steady(0.1))
    fleet.up("a")
    fleet.submit(Ticket(0, NO_STREAM))
    for number, deadline in ((1, 9.0), (2, 7.0), (3, 8.0)):
        fleet.submit(Ticket(number, f"stream {number}", deadline))
    fleet.run()
    # Clip 1 was the only one there when the worker was to prepare its next.
    assert [ticket.number for _, ticket, _ in fleet.started] == [0, 1, 2, 3]
    fleet.submit(Ticket(4, NO_STREAM))
    fleet.submit(Ticket(5, "x", 99.0))
    for number, deadline in ((6, 9.0), (7, 7.0), (8, 8.0)):
        fleet.submit(Ticket(number, f"stream {number}", deadline))
    fleet.run()
    assert [ticket.number for _, ticket, _ in fleet.started][-3:] == [7, 8, 6]


def test_a_worker_runs_one_clip_and_prepares_one() -> None:
    fleet = Fleet(steady(1.0))
    fleet.up("a")
    for number in range(4):
        fleet.submit(Ticket(number, NO_STREAM))
    assert [ticket.number for _, ticket, _ in fleet.started] == [0]
    assert fleet.prepared["a"] == 1
    assert fleet.scheduler.queue_of("a") == 2
    assert fleet.scheduler.waiting == 2


def test_without_prefetch_nothing_is_prepared() -> None:
    fleet = Fleet(steady(1.0), Scheduler(prefetch=False))
    fleet.up("a")
    for number in range(3):
        fleet.submit(Ticket(number, NO_STREAM))
    assert fleet.scheduler.waiting == 2
    fleet.run()
    assert sorted(fleet.done) == [0, 1, 2]


def test_each_stream_keeps_to_a_worker_of_its_own() -> None:
    fleet = Fleet(steady(0.3))
    fleet.up("a", "b", "c")
    streams = [fleet.speak(name, 40, 0.8, first_s=n * 0.11, chained=True) for n, name in enumerate("xyz")]
    fleet.run()
    assert not fleet.dropped
    homes = [fleet.workers_of(numbers) for numbers in streams]
    assert [len(home) for home in homes] == [1, 1, 1]
    assert set.union(*homes) == {"a", "b", "c"}


def test_a_single_stream_that_one_worker_holds_does_not_spread() -> None:
    fleet = Fleet(steady(0.4))
    fleet.up("a", "b")
    numbers = fleet.speak("x", 20, 0.8)
    fleet.run()
    assert len(fleet.workers_of(numbers)) == 1
    assert len(fleet.done) == 20


def test_a_stream_too_much_for_one_worker_spreads_in_time() -> None:
    fleet = Fleet(steady(0.8))
    fleet.up("a", "b", clip_s=0.8)
    deadlines = {}
    for n in range(40):
        ticket = Ticket(n, "x", n * CLIP_S + 1.0)
        deadlines[n] = ticket.deadline_s
        fleet.at(n * CLIP_S, lambda t=ticket: fleet.submit(t))  # type: ignore[misc]
    fleet.run()
    assert not fleet.dropped
    assert fleet.workers_of(list(range(40))) == {"a", "b"}
    assert all(fleet.done[n][1] <= deadlines[n] for n in deadlines)


def test_more_streams_than_workers_share_them_all() -> None:
    fleet = Fleet(steady(0.3))
    fleet.up("a", "b", clip_s=0.3)
    streams = [fleet.speak(name, 60, 0.9, first_s=n * 0.13, chained=True) for n, name in enumerate("xyz")]
    fleet.run()
    assert not fleet.dropped
    assert sum(len(fleet.workers_of(numbers)) for numbers in streams) > 3


def test_streams_that_stay_settle_on_workers_of_their_own() -> None:
    fleet = Fleet(steady(0.1))
    fleet.up("a", "b")
    fleet.speak("x", 10, 1.0)
    fleet.speak("y", 10, 1.0)
    fleet.speak("gone", 4, 1.0)
    late = 4 * CLIP_S + HOME_S + 1.0
    streams = [fleet.speak(name, 10, 1.0, first_s=late) for name in "xy"]
    fleet.run()
    homes = [fleet.workers_of(numbers) for numbers in streams]
    assert sorted(map(sorted, homes)) == [["a"], ["b"]]


def test_a_late_clip_is_not_started_unless_it_is_the_newest() -> None:
    fleet = Fleet(steady(2.0))
    fleet.up("a", clip_s=0.4)
    numbers = fleet.speak("x", 6, 0.6)
    fleet.run()
    started = [ticket.number for _, ticket, _ in fleet.started]
    # Clip 1 was prepared while clip 0 took too long; when it was over, clips 1 to 3 were late and clip 4 the newest.
    assert started == [numbers[0], numbers[4], numbers[5]]
    assert sorted(ticket.number for ticket in fleet.dropped) == numbers[1:4]
    assert fleet.scheduler.dropped == 3


@pytest.mark.parametrize("streams", [2, 3, 5])
def test_overload_is_shared_fairly(streams: int) -> None:
    """Streams that together ask for far more than there is get about the same, whatever their deadlines."""
    fleet = Fleet(steady(0.45))
    fleet.up("a", clip_s=0.45)
    # Some clips come a moment before others, and some streams have longer delays: neither may decide who is served.
    numbers = [fleet.speak(str(n), 400, 0.6 + 0.2 * n, first_s=0.01 * n) for n in range(streams)]
    fleet.run()
    served = [sum(number in fleet.done for number in mine) for mine in numbers]
    assert sum(served) >= 400 * CLIP_S / 0.45 * 0.9, "the worker is kept busy"
    assert min(served) >= 0.75 * max(served), served


def test_workers_that_finish_out_of_order_lose_nothing() -> None:
    fleet = Fleet(lambda worker, ticket: 0.9 if worker == "a" else 0.2)
    fleet.up("a", "b", clip_s=0.5)
    for n in range(20):
        fleet.at(n * CLIP_S, lambda n=n: fleet.submit(Ticket(n, "x", n * CLIP_S + 2.0)))  # type: ignore[misc]
    fleet.run()
    ends = [fleet.done[n][1] for n in range(20)]
    assert ends != sorted(ends)
    assert len(fleet.done) == 20


def test_an_idle_worker_takes_what_a_busy_one_has_prepared() -> None:
    fleet = Fleet(lambda worker, ticket: 5.0 if ticket.number == 0 else 0.1)
    fleet.up("a", "b")
    fleet.submit(Ticket(0, NO_STREAM))
    fleet.submit(Ticket(1, NO_STREAM))
    fleet.submit(Ticket(2, NO_STREAM))
    fleet.submit(Ticket(3, NO_STREAM))
    fleet.run()
    assert {fleet.done[number][0] for number in (1, 2, 3)} != {fleet.done[0][0]}
    assert max(fleet.done[number][1] for number in (1, 2, 3)) < 1.0


def test_what_a_stuck_worker_has_prepared_goes_to_the_others() -> None:
    fleet = Fleet(lambda worker, ticket: 60.0 if ticket.number == 0 else 0.1)
    fleet.up("a", "b")
    for number in range(2):
        fleet.submit(Ticket(number, NO_STREAM))
    for number in range(2, 12):
        fleet.submit(Ticket(number, NO_STREAM))
    fleet.run(2.0)
    assert sorted(fleet.done) == list(range(1, 12))


def test_streams_of_a_stuck_worker_are_served_by_others() -> None:
    fleet = Fleet(lambda worker, ticket: 60.0 if ticket.number == 1 else 0.1)
    fleet.up("a", "b")
    fleet.submit(Ticket(0, "x"))
    fleet.run(0.2)
    (home,) = fleet.workers_of([0])
    fleet.submit(Ticket(1, NO_STREAM, cost=0.0, worker=home, droppable=False))
    fleet.submit(Ticket(2, "x"))
    fleet.run(0.3)
    assert 2 not in fleet.done, "a piece of ordinary length is waited for"
    fleet.run(1.0)
    fleet.submit(Ticket(3, "x"))
    fleet.run(2.0)
    assert {2, 3} <= set(fleet.done)
    assert home not in fleet.workers_of([2, 3])


def test_what_a_dead_worker_had_prepared_is_not_lost() -> None:
    fleet = Fleet(steady(0.4))
    fleet.up("a", "b")
    chained = [Ticket(0, "x"), Ticket(1, "x", after=0), Ticket(2, "x", after=1)]
    for ticket in chained:
        fleet.submit(ticket)
    (home,) = fleet.running
    assert fleet.prepared[home] == 1
    fleet.run(0.2)
    fleet.die(home)
    fleet.run()
    assert sorted(fleet.done) == [1, 2]
    assert home not in fleet.workers_of([1, 2])
    fleet.up(home)
    fleet.submit(Ticket(3, "x"))
    fleet.submit(Ticket(4, "y"))
    fleet.run()
    assert fleet.workers_of([3]) != fleet.workers_of([4])


def test_a_task_for_one_worker_waits_for_that_worker() -> None:
    fleet = Fleet(steady(1.0))
    fleet.up("a", "b")
    fleet.submit(Ticket(0, NO_STREAM))
    (busy,) = fleet.running
    fleet.submit(Ticket(1, NO_STREAM, worker=busy, droppable=False))
    assert fleet.scheduler.waiting == 1, "it is no clip and cannot be prepared"
    fleet.run()
    assert fleet.done[1] == (busy, 2.0)


def test_a_cancelled_clip_is_not_started() -> None:
    fleet = Fleet(steady(1.0))
    fleet.up("a")
    for number in range(3):
        fleet.submit(Ticket(number, NO_STREAM))
    assert fleet.scheduler.withdraw(2) is None
    assert fleet.scheduler.withdraw(1) == "a"
    fleet.prepared["a"] = None
    assert fleet.scheduler.withdraw(0) is None  # it runs, and runs on
    fleet.run()
    assert list(fleet.done) == [0]


def test_the_expected_time_follows_the_clips() -> None:
    fleet = Fleet(steady(0.8))
    fleet.up("a", clip_s=0.2)
    for number in range(20):
        fleet.submit(Ticket(number, NO_STREAM, cost=2.0))
    fleet.run()
    assert fleet.scheduler.clip_s("a") == pytest.approx(0.4, rel=0.01)


EVENTS = st.lists(
    st.tuples(st.sampled_from(["clip", "chained", "die", "up", "withdraw", "wait"]), st.integers(0, 5)), max_size=120
)


@settings(max_examples=200, deadline=None)
@given(EVENTS, st.booleans(), st.integers(1, 4))
def test_nothing_is_lost_or_done_twice_whatever_happens(
    events: list[tuple[str, int]], spread: bool, workers: int
) -> None:
    """Each clip is started, dropped or withdrawn in the end, once; no clip begins before the one that it continues."""
    fleet = Fleet(lambda worker, ticket: 0.1 + 0.37 * (ticket.number % 4))
    names = [f"w{n}" for n in range(workers)]
    fleet.up(*names)
    up = set(names)
    last: dict[str, int] = {}
    streams: dict[int, str] = {}
    withdrawn: set[int] = set()
    numbers = itertools.count()
    for what, which in events:
        worker = names[which % workers]
        if what in ("clip", "chained"):
            number, stream = next(numbers), f"s{which % 4}"
            after = last.get(stream) if what == "chained" else None
            streams[number], last[stream] = stream, number
            deadline = fleet.now + 0.3 + which * 0.2
            fleet.submit(Ticket(number, stream, deadline, after=after))
        elif what == "die" and worker in up:
            up.discard(worker)
            fleet.die(worker)
        elif what == "up" and worker not in up:
            up.add(worker)
            fleet.up(worker)
        elif what == "withdraw" and streams:
            number = which * len(streams) // 6
            before = {ticket.number for _, ticket, _ in fleet.started} | {ticket.number for ticket in fleet.dropped}
            holder = fleet.scheduler.withdraw(number)
            if holder is not None:
                fleet.prepared[holder] = None
            if number not in before:
                withdrawn.add(number)
            fleet.act()
        else:
            fleet.run(fleet.now + 0.17 * which)
    for worker in names:
        if worker not in up:
            fleet.up(worker)
    fleet.run()
    started = Counter(ticket.number for _, ticket, _ in fleet.started)
    dropped = Counter(ticket.number for ticket in fleet.dropped)
    assert fleet.scheduler.waiting == 0
    for number in streams:
        assert started[number] + dropped[number] + (number in withdrawn) == 1, number
    places = {ticket.number: place for place, (_, ticket, _) in enumerate(fleet.started)}
    assert all(places.get(t.after, -1) < places[t.number] for _, t, _ in fleet.started if t.after is not None)
