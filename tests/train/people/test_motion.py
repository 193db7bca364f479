from __future__ import annotations

from dataclasses import replace

import numpy as np

from echo_rtc.train.people.motion import FPS, RESTS, Habit, gesture_hands, rest_hands
from echo_rtc.train.people.portrait import speaking_pattern

HABIT = Habit(rest=0, rate=1.0, size=0.9)


def hands_of(
    seed: int, speaking: bool, seconds: float = 10.0, loop: bool = False
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return gesture_hands(np.random.default_rng(seed), np.full(round(seconds * FPS), speaking), HABIT, loop=loop)


def test_the_same_seed_moves_the_same_way() -> None:
    assert np.array_equal(hands_of(1, True), hands_of(1, True))
    assert not np.array_equal(hands_of(1, True), hands_of(2, True))


def test_silence_is_calm_and_speech_is_not() -> None:
    rest = rest_hands(HABIT)[:, :3]
    for seed in range(4):
        silent, speaking = hands_of(seed, False), hands_of(seed, True)
        assert np.abs(silent[:, :, :3] - rest).max() < 0.03
        assert np.abs(speaking[:, :, :3] - rest).max() > 0.04
        assert np.abs(np.diff(silent[:, :, :3], axis=0)).max() < 0.002


def test_hands_come_to_rest_when_speech_ends() -> None:
    speaking = np.zeros(8 * FPS, bool)
    speaking[FPS : 4 * FPS] = True
    hands = gesture_hands(np.random.default_rng(3), speaking, HABIT)
    assert np.abs(hands[-1, :, :3] - rest_hands(HABIT)[:, :3]).max() < 0.03


def test_loops_close() -> None:
    rng = np.random.default_rng(5)
    speaking = speaking_pattern(rng, 40 * FPS)
    for hands in (gesture_hands(rng, speaking, HABIT, loop=True), hands_of(6, False, 30.0, loop=True)):
        step = np.abs(np.diff(hands, axis=0)).max()
        assert np.abs(hands[0] - hands[-1]).max() <= 1.5 * step + 1e-3


def test_idle_has_no_period_within_20_seconds() -> None:
    idle = gesture_hands(np.random.default_rng(7), np.zeros(30 * FPS, bool), replace(HABIT, sway=0.6), loop=True)
    flat = idle.reshape(len(idle), -1)[:, :6]
    spread = np.sqrt(((flat - flat.mean(0)) ** 2).mean())
    for lag in range(FPS, 20 * FPS, 6):
        apart = np.sqrt(((flat - np.roll(flat, lag, 0)) ** 2).mean())
        assert apart > 0.35 * spread, lag


def test_folded_hands_lie_one_before_the_other() -> None:
    for left, right in RESTS[:2]:
        assert abs(left[1] - right[1]) >= 0.05


def test_movement_is_smooth() -> None:
    hands = hands_of(8, True)[:, :, :3]
    assert np.abs(np.diff(hands, axis=0)).max() < 0.06
    assert np.abs(np.diff(hands, n=2, axis=0)).max() < 0.02
