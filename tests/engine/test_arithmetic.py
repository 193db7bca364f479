"""Whether float32 or 8-bit integers compute, by scripted times."""

from __future__ import annotations

import numpy as np
import pytest

from echo_rtc.engine.arithmetic import TIMED_CLIPS, settle
from echo_rtc.errors import SettingsError
from echo_rtc.rendering import RenderRequest
from tests.engine.test_worker import TimedRenderer

CLIP = RenderRequest("first", np.zeros(8, np.float32), 12, pose_position=0, seed=0)
FPS = 24


class Machine(TimedRenderer):
    """Renders clips of 12 frames in ``float_s`` or ``integer_s`` seconds, the first of each form more slowly."""

    def __init__(self, float_s: float, integer_s: float | None) -> None:
        super().__init__([2 * float_s, *[float_s] * TIMED_CLIPS])
        self.integer_s = integer_s
        self.form = "float32"

    def use_integers(self, avatar: str) -> None:
        assert avatar == "first"
        if self.integer_s is None:
            raise SettingsError("there are none")
        self.form = "int8"
        self._times_s = [5 * self.integer_s, *[self.integer_s] * TIMED_CLIPS]

    def use_floats(self) -> None:
        self.form = "float32"


@pytest.mark.parametrize(
    ("float_s", "integer_s", "form"),
    [
        (0.4, 0.2, "float32"),  # in real time anyway
        (0.45, 0.2, "int8"),  # in real time, but without the margin of admission
        (0.8, 0.3, "int8"),
        (1.2, 0.6, "int8"),  # slower than real time, but less so
        (0.8, 0.9, "float32"),
        (0.8, None, "float32"),
    ],
)
def test_the_quicker_form_computes_where_floats_are_too_slow(
    float_s: float, integer_s: float | None, form: str
) -> None:
    machine = Machine(float_s, integer_s)
    said = settle(machine, machine, CLIP, FPS, machine.clock)
    assert machine.form == form
    assert bool(said) == (form == "int8")


def test_it_says_both_speeds_and_what_keeps_the_picture() -> None:
    machine = Machine(0.8, 0.3)
    assert settle(machine, machine, CLIP, FPS, machine.clock) == (
        "The model computes in 8-bit integers, 40.0 frames/s: this CPU has no bfloat16, and float32 reaches 15.0 of "
        "the 24 frames/s of real time. --dtype float32 gives the exact picture."
    )


def test_a_model_that_is_far_too_slow_keeps_its_picture() -> None:
    """And is not measured for longer than a clip."""
    machine = Machine(60.0, 20.0)
    assert settle(machine, machine, CLIP, FPS, machine.clock) == ""
    assert len(machine.requests) == 1
