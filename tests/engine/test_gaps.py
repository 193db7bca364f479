"""Gaps between clips: pieces of something else go where they delay nobody, and never starve where there is room."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest

from echo_rtc.engine.gaps import JUST_S, REST_CLIPS, Gaps

CLIP_S = 0.5
STEP_S = 0.001


@dataclass
class Day:
    """A worker that gets a clip of ``clip_s`` every CLIP_S, and pieces of ``piece_s`` whenever they may begin."""

    clip_s: float
    piece_s: float
    gaps: Gaps = field(default_factory=Gaps)
    late_s: list[float] = field(default_factory=list)
    """How long each clip had to wait for the worker."""
    pieces: int = 0

    def live(self, seconds: float, pieces_from_s: float = 3.0) -> None:
        ends = math.inf
        arrived: list[float] = []
        for step in range(round(seconds / STEP_S)):
            now = step * STEP_S
            if step % round(CLIP_S / STEP_S) == 0:
                arrived.append(now)
            if now >= ends:
                self.gaps.ended(now)
                ends = math.inf
            if ends < math.inf:
                continue
            if arrived:
                self.late_s.append(now - arrived.pop(0))
                self.gaps.began(now, is_clip=True)
                ends = now + self.clip_s
            elif now >= pieces_from_s and self.gaps.wait_s(now, CLIP_S) <= 0:
                self.gaps.began(now, is_clip=False)
                self.pieces += 1
                ends = now + self.piece_s


def test_a_worker_without_clips_does_piece_after_piece() -> None:
    gaps = Gaps()
    for n in range(5):
        assert gaps.wait_s(n * 0.2, CLIP_S) == 0
        gaps.began(n * 0.2, is_clip=False)
        assert gaps.wait_s(n * 0.2 + 0.1, CLIP_S) == math.inf
        gaps.ended(n * 0.2 + 0.2)


def test_pieces_wait_for_a_while_after_the_last_clip() -> None:
    gaps = Gaps()
    for n in range(20):
        gaps.began(n * CLIP_S, is_clip=True)
        gaps.ended(n * CLIP_S + 0.45)
    gaps.began(10.0, is_clip=True)
    gaps.ended(10.2)
    gaps.began(10.2, is_clip=False)
    gaps.ended(10.49)  # so long is a piece, and the next clip is due at 10.5
    assert gaps.wait_s(10.49, CLIP_S) == pytest.approx(10.0 + REST_CLIPS * CLIP_S - 10.49)
    assert gaps.wait_s(10.0 + REST_CLIPS * CLIP_S, CLIP_S) == 0


@pytest.mark.parametrize(("clip_s", "piece_s"), [(0.3, 0.09), (0.3, 0.19), (0.1, 0.05)])
def test_pieces_that_fit_between_clips_delay_none(clip_s: float, piece_s: float) -> None:
    day = Day(clip_s, piece_s)
    day.live(60.0)
    assert max(day.late_s) <= JUST_S
    # Nearly all of what is free is used.
    assert day.pieces >= 0.8 * 57 / CLIP_S * int((CLIP_S - clip_s) / piece_s)


def test_pieces_too_long_for_a_gap_are_made_up_for() -> None:
    day = Day(clip_s=0.45, piece_s=0.2)
    day.live(60.0)
    assert max(day.late_s) <= 0.2 - 0.05 + 2 * STEP_S
    assert sum(late > JUST_S for late in day.late_s) < 0.8 * len(day.late_s)
    # Half of what is free goes to making up for the delays.
    assert day.pieces >= 0.45 * 57 / CLIP_S * 0.05 / 0.2


def test_a_worker_without_a_pause_does_none() -> None:
    day = Day(clip_s=CLIP_S, piece_s=0.1)
    day.live(30.0)
    assert day.pieces <= 2
