from __future__ import annotations

import numpy as np
import torch

from echo_rtc.train.people.face import ACTIONS, emphasis_of, facial_actions
from echo_rtc.train.people.figure import Figure
from echo_rtc.train.visemes import mouth_track, visemes_of

SHAPES = {
    "rest": (0.0, 0.0, 0.0, 0.0, 0.0),
    "a": (0.9, 0.1, 0.0, 0.0, 0.0),
    "m": (0.0, 0.0, 1.0, 0.0, 0.0),
    "u": (0.2, -0.9, 0.0, 0.0, 0.0),
    "f": (0.1, 0.1, 0.4, 1.0, 0.0),
    "s": (0.14, 0.35, 0.0, 0.95, 0.0),
}


def actions_of(names: tuple[str, ...], lids: float = 0.0) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    mouth = np.array([SHAPES[name] for name in names], np.float32)
    count = len(names)
    return facial_actions(mouth, np.full(count, lids, np.float32), np.zeros(count, np.float32), 0.5)


def lip_gap(figure: Figure, names: tuple[str, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Metres between the lips at their middle; what the jaw moves far is the lower one."""
    still = figure.skeleton.pose({}, len(names))
    at = figure.positions(figure.skeleton.bone_matrices(still), torch.from_numpy(actions_of(names))).numpy()
    lips = figure.lips[np.abs(figure.attributes[figure.lips, 0]) < 0.004]
    drop = figure._actions[ACTIONS.index("jawOpen")].numpy()[lips, 2]
    lower, upper = lips[drop < 0.6 * drop.min()], lips[drop > 0.2 * drop.min()]
    return np.asarray(at[:, upper, 2].min(1) - at[:, lower, 2].max(1))


def test_lips_touch_in_m_and_at_rest_only(omar: Figure) -> None:
    rest, m, a = lip_gap(omar, ("rest", "m", "a"))
    assert rest < 0.001
    assert m < 0.001
    assert a > 0.008


def test_every_viseme_closes_and_opens_as_it_must() -> None:
    table = dict(zip(SHAPES, actions_of(tuple(SHAPES)), strict=True))
    jaw, press, pucker, tuck = (ACTIONS.index(n) for n in ("jawOpen", "mouthPress", "mouthPucker", "mouthRollLower"))
    assert table["m"][jaw] == 0
    assert table["rest"][jaw] == 0
    assert table["a"][jaw] > 0.4
    assert table["u"][pucker] > 0.5 > table["a"][pucker]
    assert table["f"][tuck] > 0.6
    assert table["s"][tuck] < 0.05
    assert table["m"][press] > 0.4
    assert table["f"][press] < 0.1


def test_f_of_the_visemes_tucks_the_lip() -> None:
    (f, _), (s, _) = visemes_of("f")[0], visemes_of("s")[0]
    mouth = np.array([f.target, s.target], np.float32)
    weights = facial_actions(mouth, np.zeros(2, np.float32), np.zeros(2, np.float32), 0.4)
    tuck = weights[:, ACTIONS.index("mouthRollLower")]
    assert tuck[0] > 0.6
    assert tuck[1] < 0.05
    assert mouth_track([], [0.0]).max() == 0


def test_lids_shut_whatever_the_mouth_does() -> None:
    weights = actions_of(tuple(SHAPES), lids=1.0)
    assert (weights[:, ACTIONS.index("eyeBlink")] == 1).all()
    assert (weights[:, ACTIONS.index("eyeWide")] == 0).all()


def test_emphasis_rises_with_the_voice() -> None:
    sound = np.zeros(32_000, np.float32)
    sound[16_000:] = 0.3 * np.sin(np.arange(16_000) / 5)
    quiet, onset = emphasis_of(sound, 16_000, np.array([0.5, 1.1], np.float32))
    assert quiet == 0
    assert onset > 0.5
