"""Large libraries that few settings need: each is imported by what needs it, when it is needed.

transformers and diffusers take seconds to import, and look for TensorFlow and JAX while they do so, which take seconds
more where they are installed.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

_UNUSED_FRAMEWORKS = ("USE_TF", "USE_FLAX")
"""Variables of the environment by which those libraries are told to leave TensorFlow and JAX alone."""


def import_library(name: str) -> Any:
    """The module ``transformers`` or ``diffusers``, with torch as its only framework unless the environment says
    otherwise."""
    for variable in _UNUSED_FRAMEWORKS:
        os.environ.setdefault(variable, "0")
    return import_module(name)
