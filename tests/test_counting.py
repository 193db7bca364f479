"""Histograms, quantiles and names: what they say, and that they stay small whatever is counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo_rtc.counting import OTHER, Histogram, Names, Quantiles


def test_a_histogram_counts_up_to_and_including_its_bounds() -> None:
    histogram = Histogram((1, 2.5))
    for value in (-3, 1, 1.1, 2.5, 99):
        histogram.observe(value)
    assert histogram.cumulative() == [("1.0", 2), ("2.5", 4), ("+Inf", 5)]
    assert histogram.count == 5
    assert histogram.sum == pytest.approx(100.6)


def test_histograms_add_up_if_they_are_alike() -> None:
    one, two = Histogram((1, 2)), Histogram((1, 2))
    one.observe(0.5)
    two.observe(1.5)
    two.observe(9)
    one.add(two)
    assert one.counts == [1, 1, 1]
    assert one.sum == 11
    with pytest.raises(ValueError, match="cannot be added"):
        one.add(Histogram((1, 3)))


@given(st.lists(st.floats(0, 30), min_size=1, max_size=200), st.sampled_from([0.5, 0.95, 1.0]))
def test_quantiles_are_right_to_the_step(values: list[float], share: float) -> None:
    quantiles = Quantiles(0.01)
    for value in values:
        quantiles.observe(value)
    found = quantiles.quantile(share)
    assert found is not None
    exact = next(v for v in sorted(values) if sum(other <= v for other in values) >= share * len(values))
    assert found == pytest.approx(exact, abs=0.0051)


def test_before_the_first_value_there_is_no_quantile() -> None:
    assert Quantiles(0.01).quantile(0.5) is None


def test_quantiles_tell_a_limited_number_of_values_apart() -> None:
    quantiles = Quantiles(1, limit=10)
    for value in [*range(10), *range(100, 200)]:
        quantiles.observe(value)
    assert quantiles.quantile(0.05) == 5
    assert quantiles.quantile(1.0) == 9


def test_names_are_limited_in_number() -> None:
    names = Names(limit=2)
    for name in ("b", "a", "c", "d", "a"):
        names.count(name)
    assert list(names.items()) == [("a", 2), ("b", 1), (OTHER, 2)]
