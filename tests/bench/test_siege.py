"""The table of named attacks: what counts as withstood, and which attacks a command line asks for."""

from __future__ import annotations

import pytest

from echo_rtc.bench import hostile
from echo_rtc.bench.support.siege import Outcome, judged, rows
from echo_rtc.bench.support.witness import NO_ANSWER_S, Watch
from echo_rtc.errors import InputError

CALM = Outcome("calm", 0.05, 0.01, 2.0, 100)


def test_what_an_honest_call_bears_is_withstood() -> None:
    assert judged(CALM, None).failures == ()
    assert judged(CALM, "it got in").failures == ("it got in",)
    worst = judged(Outcome("worst", 1.5, 3.0, 400.0, 10**6), None)
    assert [words.split()[0] for words in worst.failures] == ["no", "/healthz", "400", "1000"]
    assert hostile.figures_of([CALM, worst]) == {
        "attacks": 2,
        "failed": 1,
        "worst_gap_s": 1.5,
        "worst_healthz_s": 3.0,
        "memory_mb": 400.0,
    }
    assert [row[-1] for row in rows([judged(CALM, None), judged(CALM, "it got in")])] == ["withstood", "it got in"]
    assert hostile.figures_of([])["failed"] == 0


def test_gaps_count_as_far_as_they_have_come() -> None:
    watch = Watch(10.0)
    for now in (10.02, 10.04, 10.30):
        watch.heard(now)
    watch.asked_s = 10.31
    watch.answered(10.35, 200)
    watch.asked_s = 10.4
    seen = watch.take(10.5)
    assert (round(seen.gap_s, 2), round(seen.healthz_s, 2), seen.blocks) == (0.26, 0.1, 3)
    watch.answered(10.6, None)
    seen = watch.take(11.0)
    assert (round(seen.gap_s, 2), seen.healthz_s, seen.blocks) == (0.7, NO_ANSWER_S, 0)


def test_attacks_are_chosen_by_the_beginnings_of_names() -> None:
    assert hostile.chosen("all") == list(hostile.ATTACKS)
    assert hostile.chosen("none") == []
    names = [attack.name for attack in hostile.chosen("compressed, idle connections")]
    assert names == ["compressed bodies", "idle connections of one address", "idle connections of many addresses"]
    assert len({attack.name for attack in hostile.ATTACKS}) == len(hostile.ATTACKS)
    with pytest.raises(InputError, match="no attack; there are compressed bodies"):
        hostile.chosen("nonsense")


def test_a_failed_attack_is_the_exit_code() -> None:
    fuzzed = {"failures": 0.0, "sockets_left": 0.0, "rss_growth_mb": 1.0}
    assert hostile.withstood(fuzzed, [CALM])
    assert hostile.withstood({}, [])
    assert not hostile.withstood({**fuzzed, "failures": 1.0}, [])
    assert not hostile.withstood({**fuzzed, "rss_growth_mb": 25.0}, [])
    assert not hostile.withstood(fuzzed, [judged(CALM, "it got in")])
