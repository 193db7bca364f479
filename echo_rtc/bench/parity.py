"""Compares the model room with numbers computed elsewhere: ``python -m echo_rtc.bench parity FOLDER``.

FOLDER holds ``pretrained_weights/`` in the published layout, ``config.json`` with the widths, and
``expected.safetensors`` with inputs and what each stage must make of them. Sizes, frames, steps, guidance scales,
margins and frame rate are found out from these.

Each stage is computed from the *expected* results of the stages before it, so that a difference shows in the stage that
makes it; the rows ``whole`` are computed from the inputs alone. The relative error of a tensor is the Euclidean norm of
the difference over that of the expected tensor.

A network with random weights can be chaotic: where a group norm sees two nearly equal values, rounding decides between
+1 and -1, and two correct programs (or one program with one and with two threads) differ by percents. So a stage beyond
the tolerance is computed again with its input changed by as much as float32 rounding does; if that alone changes the
result as much as the difference in question, the stage says nothing, is marked and is not counted.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from echo_rtc.bench.support.report import report
from echo_rtc.clips import ClipFormat
from echo_rtc.errors import InputError
from echo_rtc.model.audio import SAMPLE_RATE, frame_tokens
from echo_rtc.model.description import ModelDescription
from echo_rtc.model.generator import ClipGenerator, GeneratorSettings
from echo_rtc.model.sampler import SHIFT_PER_STEP, Sampler, initial_latents
from echo_rtc.model.unet3d import ClipConditions, KeysValues

TOLERANCE = 1e-3
"""The largest relative error that rounding explains in a well-behaved network."""

_ROUNDING = 2e-6
_TRIALS = 12
_EXPLAINED = 4.0
_HOPELESS = 50.0
"""How the effect of rounding is looked for: relative change of the input, how often, how many times the largest change
seen an error may be, and how many times it makes further trials pointless."""

_INPUTS = ("audio", "image", "poses", "noise", "whisper_hidden")
_MARGIN = re.compile(r"audio_tokens_margin(\d+)")
_CASE = re.compile(r"cfg(\d+(?:\.\d+)?)_(fresh|init)")
_FRAME_RATES: tuple[int, ...] = (24, *range(1, 121))


@dataclass(frozen=True, slots=True)
class Comparison:
    """One tensor of ours against the expected one.

    ``rounding`` is how much our own tensor changes, relatively, when its input changes by float32 rounding. It is
    looked for until it explains the error, and not at all (0) where the error is within the tolerance anyway.
    """

    stage: str
    shape: tuple[int, ...]
    relative_error: float
    largest_difference: float
    rounding: float = 0.0

    @classmethod
    def of(
        cls, stage: str, ours: Tensor, expected: Tensor, again: Callable[[Perturb], Tensor] | None = None
    ) -> Comparison:
        """Compares in float64. A tensor of another shape, or one that is not finite, is infinitely wrong.

        ``again`` computes ours once more from inputs put through the function it is given.
        """
        shape = tuple(expected.shape)
        if ours.shape != expected.shape or not torch.isfinite(ours).all():
            return cls(stage, shape, math.inf, math.inf)
        error = relative_error(ours, expected)
        difference = float((ours.double() - expected.double()).abs().max())
        rounding = 0.0
        if again is not None and error > TOLERANCE:
            change = partial(perturb, torch.Generator().manual_seed(0))
            for trial in range(1, _TRIALS + 1):
                rounding = max(rounding, relative_error(again(change), ours))
                if error <= _EXPLAINED * rounding or (trial >= _TRIALS // 3 and error > _HOPELESS * rounding):
                    break
        return cls(stage, shape, error, difference, rounding)

    @property
    def counts(self) -> bool:
        """Whether the error means anything: not where rounding alone explains one beyond the tolerance."""
        return self.relative_error <= TOLERANCE or self.relative_error > _EXPLAINED * self.rounding


Perturb = Callable[[Tensor], Tensor]


def perturb(generator: torch.Generator, tensor: Tensor) -> Tensor:
    """The tensor, each element changed at random by about the error of a hundred float32 operations."""
    return tensor * (1 + _ROUNDING * torch.randn(tensor.shape, generator=generator))


def relative_error(ours: Tensor, expected: Tensor) -> float:
    """|ours - expected| / |expected|, Euclidean norms."""
    scale = expected.double().norm().clamp(min=1e-12)
    return float((ours.double() - expected.double()).norm() / scale)


class Expected:
    """The tensors of ``expected.safetensors``, and what they tell of how they were made."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise InputError(f"the file {path} does not exist; a parity folder holds it beside pretrained_weights")
        try:
            self.tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"the file {path} is damaged or no safetensors file: {error}") from error
        for key in _INPUTS:
            if key not in self.tensors:
                raise InputError(f"the file {path} lacks the tensor {key}")
        self.margins = [int(match[1]) for key in self.tensors if (match := _MARGIN.fullmatch(key))]
        self.cases = sorted({match[0] for key in self.tensors if (match := _CASE.match(key))})
        if not self.margins or not self.cases:
            raise InputError(f"the file {path} lacks the tensors audio_tokens_marginN or cfgN_fresh.*")
        self.fps = self._frame_rate(path)

    def __getitem__(self, key: str) -> Tensor:
        tensor = self.tensors[key]
        return tensor.float() if tensor.is_floating_point() else tensor

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    @property
    def frames(self) -> int:
        return int(self["noise"].shape[2])

    def steps(self, case: str) -> int:
        """Denoising steps of a case: as many as it has entries."""
        entries = [key for key in self.tensors if re.fullmatch(rf"{re.escape(case)}\.step\d+\.latents", key)]
        return len(entries) or len(self["timesteps"])

    def margin(self, case: str) -> int:
        """The audio margin of a case, by the number of its tokens: (4 m + 2) * hidden states a position."""
        tokens = self[f"{case}.unet0.audio"].shape[2] if f"{case}.unet0.audio" in self else 0
        states = self["whisper_hidden"].shape[1]
        found = [margin for margin in self.margins if (4 * margin + 2) * states == tokens]
        return found[0] if found else min(self.margins)

    def bank(self) -> dict[str, Tensor]:
        """The expected reference bank, empty if there is none."""
        prefix = "reference_bank."
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}

    def _frame_rate(self, path: Path) -> int:
        """The frame rate at which the hidden states become the expected tokens."""
        margin = self.margins[0]
        tokens = self[f"audio_tokens_margin{margin}"]
        for fps in _FRAME_RATES:
            dealt = frame_tokens(self["whisper_hidden"], len(tokens), fps, margin, 0)
            if dealt.shape == tokens.shape and torch.equal(dealt, tokens):
                return fps
        raise InputError(f"no frame rate makes the audio tokens in {path} from its whisper_hidden")


@torch.inference_mode()
def compare(folder: Path) -> Iterator[Comparison]:
    """Computes every stage in float32 on the CPU and compares it.

    Raises InputError if the folder is of another form.
    """
    expected = Expected(folder / "expected.safetensors")
    mapping = {"weights": "pretrained_weights", "config": "config.json"}
    description = ModelDescription.from_mapping(mapping, folder)
    height, width = expected["image"].shape[:2]
    clip = ClipFormat(expected.fps, expected.frames, width, height, SAMPLE_RATE)
    settings = GeneratorSettings(clip, audio_margin=min(expected.margins), untrained=True)
    generator = ClipGenerator.load(description, settings, lambda _: None)
    networks = generator.networks

    hidden = generator.audio_encoder.hidden_states(expected["audio"])
    yield Comparison.of("whisper_hidden", hidden, expected["whisper_hidden"])
    for margin in expected.margins:
        key = f"audio_tokens_margin{margin}"
        tokens = frame_tokens(hidden, len(expected[key]), expected.fps, margin, 0)
        yield Comparison.of(key, tokens, expected[key])

    drawn = expected["poses"][0].transpose(0, 1)  # (F, 3, H, W)
    pose = generator.encode_poses(drawn).transpose(0, 1)[None]  # (1, C0, F, h, w)
    if "pose_features" in expected:
        yield Comparison.of("pose_features", pose, expected["pose_features"])

    latents = generator.encode_image(expected["image"].numpy())
    if "reference_latents" in expected:
        yield Comparison.of("reference_latents", latents, expected["reference_latents"])
        latents = expected["reference_latents"]
    bank = networks.reference(latents)
    for name in expected.bank():
        if name not in bank:
            raise InputError(f"the model has no transformer block {name}, for which a bank is expected")

        def again(change: Perturb, name: str = name) -> Tensor:
            changed: dict[str, Tensor] = networks.reference(change(latents))
            return changed[name]

        yield Comparison.of(f"reference_bank.{name}", bank[name], expected[f"reference_bank.{name}"], again)

    given = expected.bank() or bank
    keys = networks.denoiser.project_bank(generator.stored(given))
    for case in expected.cases:
        tokens = frame_tokens(hidden, clip.clip_frames, clip.fps, expected.margin(case), clip.history_frames)[None]
        yield from _Case(generator, expected, case, ClipInputs(tokens, pose, keys)).compare()


@dataclass(frozen=True, slots=True)
class ClipInputs:
    """Our own audio tokens (1, F, T, W) and pose features (1, C0, F, h, w), and the keys and values of the bank."""

    tokens: Tensor
    pose: Tensor
    bank: KeysValues


class _Case:
    """One guidance scale, fresh or chained to a clip before."""

    def __init__(self, generator: ClipGenerator, expected: Expected, name: str, inputs: ClipInputs) -> None:
        scale, start = name.removeprefix("cfg").split("_")
        self._name, self._expected, self._inputs = name, expected, inputs
        self._cfg = float(scale)
        self._init = expected["init_latents"][0] if start == "init" else None
        self._denoiser = generator.networks.denoiser
        self._autoencoder = generator.networks.autoencoder
        self._sampler = Sampler(self._denoiser, expected.steps(name), self._cfg)
        self._halves = 2 if self._cfg > 1 else 1

    def compare(self) -> Iterator[Comparison]:
        """The stages of the case, then all of it from its inputs."""
        timesteps = torch.tensor(self._sampler.timesteps)
        if "timesteps" in self._expected and self._expected["timesteps"].tolist() != timesteps.tolist():
            yield Comparison.of("timesteps", timesteps, self._expected["timesteps"])
        start = initial_latents(self._expected["noise"], self._init)
        yield from self._compare_first_call(start)
        yield from self._compare_steps(start)
        whole = self._run(start)
        again = self._again(start, self._run)
        yield from self._against("final_latents", whole, again, "whole.")
        again = self._again(start, lambda latents: self._decode(self._run(latents)))
        yield from self._against("video", self._decode(whole), again, "whole.")

    def _compare_first_call(self, start: Tensor) -> Iterator[Comparison]:
        inputs = self._inputs
        sample = start.expand(self._halves, *start.shape[1:])
        yield from self._against("unet0.sample", sample)
        yield from self._against("unet0.audio", self._doubled(inputs.tokens))
        yield from self._against("unet0.pose", self._doubled(inputs.pose))

        def call(latents: Tensor) -> Tensor:
            first = self._sampler.timesteps[0]
            return self._sampler.halves(latents, first, self._given(), 0)

        yield from self._against("unet0.output", call(start), self._again(start, call))

    def _compare_steps(self, latents: Tensor) -> Iterator[Comparison]:
        given = self._given()
        for index, timestep in enumerate(self._sampler.timesteps):

            def predict(sample: Tensor, index: int = index, timestep: int = timestep) -> Tensor:
                return self._sampler.predict(sample, timestep, given, SHIFT_PER_STEP * index)

            prediction = predict(latents)
            yield from self._against(f"step{index}.guided_prediction", prediction, self._again(latents, predict))
            prediction = self._known(f"step{index}.guided_prediction", prediction)
            latents = self._sampler.advance(prediction, timestep, latents)
            yield from self._against(f"step{index}.latents", latents)
            latents = self._known(f"step{index}.latents", latents)
        yield from self._against("final_latents", latents)
        yield from self._against("video", self._decode(self._known("final_latents", latents)))

    def _given(self) -> ClipConditions:
        """The conditions of the case: the expected ones where there are any."""
        tokens = self._known("unet0.audio", self._inputs.tokens)[-1:]
        pose = self._known("unet0.pose", self._inputs.pose)[-1:]
        return ClipConditions(self._denoiser.project_audio(tokens), self._inputs.bank, pose)

    def _run(self, latents: Tensor) -> Tensor:
        """All steps, from nothing but the inputs."""
        inputs = self._inputs
        given = ClipConditions(self._denoiser.project_audio(inputs.tokens), inputs.bank, inputs.pose)
        for step in self._sampler.steps(latents, given):
            latents = step.latents
        return latents

    def _decode(self, latents: Tensor) -> Tensor:
        """Final latents (1, C, F, h, w) -> video (1, 3, F, H, W) in 0..1."""
        images = self._autoencoder.decode(latents[0].transpose(0, 1))
        return (images / 2 + 0.5).clamp(0, 1).transpose(0, 1)[None]

    def _doubled(self, condition: Tensor) -> Tensor:
        """A condition as the published code hands it over: zeros for the unconditional half before it."""
        return condition if self._halves == 1 else torch.cat((torch.zeros_like(condition), condition))

    def _known(self, key: str, ours: Tensor) -> Tensor:
        """The expected tensor if there is one, else ours."""
        name = f"{self._name}.{key}"
        return self._expected[name] if name in self._expected else ours  # noqa: SIM401 - not a mapping

    def _against(
        self, key: str, ours: Tensor, again: Callable[[Perturb], Tensor] | None = None, prefix: str = ""
    ) -> Iterator[Comparison]:
        name = f"{self._name}.{key}"
        if name in self._expected:
            yield Comparison.of(f"{self._name}.{prefix}{key}", ours, self._expected[name], again)

    @staticmethod
    def _again(latents: Tensor, compute: Callable[[Tensor], Tensor]) -> Callable[[Perturb], Tensor]:
        return lambda change: compute(change(latents))


def main(argv: list[str]) -> int:
    """Prints a table of all stages and the worst relative error; 1 if it is beyond the tolerance."""
    parser = argparse.ArgumentParser(prog="echo-rtc bench parity", description="Compares stage by stage.")
    parser.add_argument("folder", type=Path, help="folder with pretrained_weights, config.json, expected.safetensors")
    comparisons = list(compare(parser.parse_args(argv).folder))
    worst = max((c.relative_error for c in comparisons if c.counts), default=math.inf)
    rows = [
        (
            c.stage,
            "x".join(str(side) for side in c.shape),
            f"{c.relative_error:.1e}",
            f"{c.largest_difference:.1e}",
            "" if not c.rounding else f"{c.rounding:.1e}" + ("" if c.counts else ", not counted"),
        )
        for c in comparisons
    ]
    figures = {
        "worst_relative_error": worst,
        "stages": len(rows),
        "not_counted": sum(not c.counts for c in comparisons),
    }
    report(("stage", "shape", "relative error", "largest difference", "rounding alone"), rows, figures)
    return 0 if worst <= TOLERANCE else 1
