"""What a model was trained at, as its config.json says under ``trained``.

Without that section a model is the published one: any size, clips of 6 to 24 frames, any frame rate. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from echo_rtc.clips import ClipFormat
from echo_rtc.errors import InputError, SettingsError

_KEYS = (
    *("size", "pose_size", "frame_rates", "clip_frames", "steps"),
    *("start_timestep", "bridged", "liveliness", "renderings_only"),
)


@dataclass(frozen=True, slots=True)
class Trained:
    """``size`` (width, height) of the only pictures that the model makes; None: those that are asked for. ``pose_size``
    likewise of the drawn poses. ``frame_rates``, ``clip_frames`` and ``steps`` that were tested (None: any).
    ``start_timestep``: where its single step begins, from the reference's latents; None: from noise. ``bridged``:
    whether the first frame of a clip is taken from between its neighbours, but for what moves fast (see
    ``sampler.bridged``). ``liveliness``: how much head and gaze move of what speech usually has, for a model that is
    shown blinks and turns of the head; None: it is shown hands only. ``renderings_only``: it knows rendered people, no
    photographs."""

    size: tuple[int, int] | None = None
    pose_size: tuple[int, int] | None = None
    frame_rates: tuple[int, ...] | None = None
    clip_frames: tuple[int, ...] | None = tuple(range(6, 25))
    steps: tuple[int, ...] | None = None
    start_timestep: int | None = None
    bridged: bool = False
    liveliness: float | None = None
    renderings_only: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Trained:
        """Reads a model's config.json. Raises InputError."""
        section = config.get("trained")
        if section is None:
            return cls()
        if not isinstance(section, Mapping):
            raise InputError(f"trained is {section!r} in config.json; a mapping is needed")
        for key in section:
            if key not in _KEYS:
                raise InputError(f"trained.{key} is unknown in config.json; known are {', '.join(_KEYS)}")
        start = section.get("start_timestep")
        if start is not None and not (isinstance(start, int) and 0 < start < 1000):
            raise InputError(f"trained.start_timestep is {start!r} in config.json; it must lie in 1 to 999")
        return cls(
            size=_pair(section, "size"),
            pose_size=_pair(section, "pose_size"),
            frame_rates=_numbers(section, "frame_rates"),
            clip_frames=_numbers(section, "clip_frames"),
            steps=_numbers(section, "steps"),
            start_timestep=start,
            bridged=_flag(section, "bridged"),
            liveliness=_share(section, "liveliness"),
            renderings_only=_flag(section, "renderings_only"),
        )

    def render_size(self, clip_format: ClipFormat) -> tuple[int, int]:
        """Width and height of the pictures that the model makes for this output."""
        return self.size or (clip_format.width, clip_format.height)

    def check(self, clip_format: ClipFormat, steps: int) -> None:
        """Raises SettingsError for a format that was not tested."""
        for key, value, tested in (
            ("fps", clip_format.fps, self.frame_rates),
            ("clip_frames", clip_format.clip_frames, self.clip_frames),
            ("steps", steps, self.steps),
        ):
            if tested is not None and value not in tested:
                raise SettingsError(
                    f"{key} is {value}, at which this model was not tested; choose {_listed(tested)}, or give "
                    "--untrained to try it all the same"
                )


def _listed(values: tuple[int, ...]) -> str:
    if len(values) > 2 and values == tuple(range(values[0], values[-1] + 1)):
        return f"{values[0]} to {values[-1]}"
    return " or ".join(map(str, values))


def _numbers(section: Mapping[str, Any], key: str) -> tuple[int, ...] | None:
    value = section.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or not value or not all(isinstance(item, int) and item > 0 for item in value):
        raise InputError(f"trained.{key} is {value!r} in config.json; a list of whole numbers above 0 is needed")
    return tuple(value)


def _flag(section: Mapping[str, Any], key: str) -> bool:
    value = section.get(key, False)
    if not isinstance(value, bool):
        raise InputError(f"trained.{key} is {value!r} in config.json; it must be true or false")
    return value


def _share(section: Mapping[str, Any], key: str) -> float | None:
    value = section.get(key)
    if value is not None and not (isinstance(value, int | float) and 0 <= value <= 2):
        raise InputError(f"trained.{key} is {value!r} in config.json; it must lie in 0 to 2")
    return None if value is None else float(value)


def _pair(section: Mapping[str, Any], key: str) -> tuple[int, int] | None:
    values = _numbers(section, key)
    if values is not None and len(values) != 2:
        raise InputError(f"trained.{key} is {list(values)} in config.json; width and height are needed")
    return None if values is None else (values[0], values[1])
