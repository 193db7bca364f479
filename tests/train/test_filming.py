"""Handing out blocks to the processes that film."""

from __future__ import annotations

import time
from multiprocessing import get_context
from pathlib import Path

from echo_rtc.train.filming import MAX_FAILURES, Plan, film_blocks

PLAN = Plan(Path("asset"), Path("corpus"), Path("out"), time.time() + 86_400, 9, 96, 0, 0, "training")


def test_a_worker_that_always_fails_leaves_blocks_to_others() -> None:
    counter = get_context("spawn").Value("i", 0)

    def broken(block: int) -> None:
        raise RuntimeError("the device is lost")

    film_blocks(PLAN, counter, broken)
    assert counter.value == MAX_FAILURES < PLAN.blocks


def test_a_block_that_fails_costs_no_other() -> None:
    counter, filmed = get_context("spawn").Value("i", 0), list[int]()

    def film(block: int) -> None:
        if block % 2:
            raise RuntimeError("this person cannot be made")
        filmed.append(block)

    film_blocks(PLAN, counter, film)
    assert filmed == [0, 2, 4, 6, 8]
