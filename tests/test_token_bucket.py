"""The token bucket: its burst, its rate, and how long a refused request has to wait."""

from __future__ import annotations

import pytest

from echo_rtc.token_bucket import TokenBucket


def test_a_bucket_refills_up_to_its_burst() -> None:
    bucket = TokenBucket(10.0, 5.0, now=0.0)
    assert bucket.take(3, 0.0) == 3
    assert bucket.take(9, 0.0) == 2
    assert bucket.take(1, 0.05) == 0
    assert bucket.take(9, 0.25) == 2
    assert bucket.take(9, 1000.0) == 5


def test_the_wait_is_the_time_until_the_next_token() -> None:
    bucket = TokenBucket(0.1, 2.0, now=5.0)
    assert bucket.wait_s(5.0) == 0
    assert bucket.take(2, 5.0) == 2
    assert bucket.wait_s(5.0) == pytest.approx(10)
    assert bucket.wait_s(12.0) == pytest.approx(3)
    assert bucket.take(1, 12.0) == 0
    assert bucket.wait_s(12.0) == pytest.approx(3)
    assert bucket.take(1, 15.0) == 1
