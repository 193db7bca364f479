"""The options of the model, declared once: what a user may choose, and what a generator is told.

The server's settings are composed of them, workers hold them as they are, and the benches take their flags from here.
Imports no torch.
"""

from __future__ import annotations

import argparse
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal, Self

from echo_rtc.clips import ClipFormat
from echo_rtc.errors import SettingsError
from echo_rtc.options import Option, about

INTEGERS = "int8"
DTYPE_NAMES = ("float32", "float16", "bfloat16", INTEGERS)
"""Number formats of the networks. The option's ``auto`` is decided where the device is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """What a user may choose of the model; each field's metadata says what it means and may be."""

    low_ram: bool = field(
        default=False,
        metadata=about("avatar", "Draw each pose when it is needed instead of keeping the pose sequence in memory."),
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = field(
        default="auto",
        metadata=about(
            "model",
            "Number format of the networks: auto takes float16 on a GPU and bfloat16 on a CPU that multiplies it "
            "natively (half the time, the same picture to the eye); on other CPUs it measures float32 at the start, "
            "and takes int8 where that is too slow for real time and int8 is quicker. int8 = 8-bit integers in the "
            "layers that cost most, on a CPU. Lossy: int8 is faster, and the picture changes a little.",
            choices=("auto", "float32", "bfloat16", "float16", "int8"),
        ),
    )
    audio_model_type: Literal["whisper", "wav2vec2"] = field(
        default="whisper",
        metadata=about("model", "Audio model that turns sound into mouth shapes.", choices=("whisper", "wav2vec2")),
    )
    audio_margin: int = field(
        default=2,
        metadata=about(
            "model",
            "Frames of audio context on each side of a frame. More follows the lips better and costs time; "
            "6 is recommended for the published weights.",
            unit="frames",
            low=0,
            high=24,
        ),
    )
    steps: int = field(default=6, metadata=about("model", "Denoising steps of a clip.", unit="steps", low=1, high=100))
    cfg: float = field(
        default=2.5,
        metadata=about(
            "model",
            "Classifier-free guidance scale; 1 or less turns guidance off and halves the work, which is what the "
            "accelerated weights are published for.",
            low=0,
            high=20,
        ),
    )
    guided_steps: int | None = field(
        default=None,
        metadata=about(
            "model",
            "Denoising steps, the first ones of each clip, that use guidance; none guides all, 0 is as --cfg 1. Lossy: "
            "fewer are faster, and the picture changes.",
            kind=int,
            unit="steps",
            low=0,
            high=100,
        ),
    )
    kernels: Literal["auto", "triton", "torch"] = field(
        default="auto",
        metadata=about(
            "model",
            "Kernels that compute the networks: triton = our own fused kernels, on an NVIDIA GPU; torch = PyTorch's "
            "only; auto = triton where it runs, torch elsewhere.",
            choices=("auto", "triton", "torch"),
        ),
    )
    attention: Literal["auto", "sdpa", "xformers"] = field(
        default="auto",
        metadata=about(
            "model",
            "Attention in our own kernels on a GPU: auto measures all kernels there are, for each shape, at the start; "
            "sdpa leaves the choice to PyTorch; xformers takes that library's where it can (extra gpu).",
            choices=("auto", "sdpa", "xformers"),
        ),
    )
    cuda_graphs: bool = field(
        default=True,
        metadata=about(
            "model", "Record a clip's work on a GPU once and replay it, so that its thousands of launches cost nothing."
        ),
    )
    compile_unet: bool = field(
        default=False,
        metadata=about(
            "model",
            "Compile PyTorch's networks with torch.compile instead of using our kernels: for GPUs on which it is the "
            "quicker of the two. Takes minutes at the first start.",
        ),
    )
    compile_unet_mode: Literal["default", "reduce-overhead", "max-autotune"] = field(
        default="reduce-overhead",
        metadata=about(
            "model",
            "How torch.compile compiles: reduce-overhead and default are one while --cuda-graphs records the whole "
            "clip; max-autotune measures kernels and takes several times as long.",
            choices=("default", "reduce-overhead", "max-autotune"),
        ),
    )
    quantize_fp8: bool = field(
        default=False,
        metadata=about(
            "model",
            "Multiply in 8-bit floating point, on GPUs that have it (Ada, Hopper and later). Lossy: faster, and the "
            "picture changes.",
        ),
    )
    quantize_fp8_mode: Literal["auto", "dynamic", "weight-only"] = field(
        default="auto",
        metadata=about(
            "model",
            "Which 8-bit form: auto = our kernels' own on Hopper and later, else dynamic; dynamic = torchao's of "
            "weights and activations; weight-only = torchao's of weights, which saves memory rather than time.",
            choices=("auto", "dynamic", "weight-only"),
        ),
    )
    vae: Literal["full", "tiny"] = field(
        default="full",
        metadata=about(
            "model",
            "Decoder of the picture: full = the model's own; tiny = a distilled one, at model.tiny_vae. Lossy: tiny is "
            "faster and softer.",
            choices=("full", "tiny"),
        ),
    )
    decode_frames: int = field(
        default=4,
        metadata=about(
            "model",
            "Frames that are decoded at a time and sent on at once, so that a clip is shown while its last frames are "
            "being decoded; 0 decodes clips whole.",
            unit="frames",
            low=0,
            high=96,
        ),
    )
    untrained: bool = field(
        default=False,
        metadata=about(
            "model",
            "Allow frame rates, clip lengths and steps at which the model was not tested, and photographs where it "
            "knows renderings only.",
        ),
    )

    @classmethod
    def of(cls, options: ModelOptions) -> ModelOptions:
        """These options alone, out of settings that have others too."""
        return ModelOptions(**{item.name: getattr(options, item.name) for item in fields(ModelOptions)})


@dataclass(frozen=True, slots=True)
class GeneratorSettings(ModelOptions):
    """What a generator is told beyond the model's files: its options, the ``format`` of clips and the ``device`` as
    PyTorch names it. Raises SettingsError where an option is not what it may be, or two contradict each other."""

    format: ClipFormat
    device: str = "cpu"
    dtype: str = field(default="float32", kw_only=True)  # type: ignore[assignment]  # decided: no "auto"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_NAMES:
            raise SettingsError(f"dtype is {self.dtype!r}; it must be one of {', '.join(DTYPE_NAMES)}")
        for item in fields(ModelOptions):
            option, value = option_of(item), getattr(self, item.name)
            if item.name == "dtype" or (value is None and item.default is None) or option.admits(value):
                continue
            limits = f"one of {', '.join(option.choices)}" if option.choices else f"{option.low:g} to {option.high:g}"
            raise SettingsError(f"{item.name} is {value!r}; it must be {limits}")
        if self.compile_unet and self.kernels == "triton":
            raise SettingsError(
                "compile_unet is set, but kernels is triton: what is compiled are the plain networks; choose one"
            )
        if self.compile_unet and self.dtype == INTEGERS:
            raise SettingsError(f"compile_unet is set, but dtype is {INTEGERS}, which is not compiled; choose one")

    @classmethod
    def for_device(cls, options: ModelOptions, clip_format: ClipFormat, device: str, dtype: str) -> Self:
        """The options as a generator on a device takes them, with the number format ``dtype``."""
        chosen: dict[str, Any] = {item.name: getattr(options, item.name) for item in fields(ModelOptions)}
        return cls(**{**chosen, "format": clip_format, "device": device, "dtype": dtype})


def option_of(item: Field[Any]) -> Option:
    """The metadata of an option's field."""
    option: Option = item.metadata["option"]
    return option


def choices_of(name: str) -> tuple[str, ...]:
    """What an option may be."""
    return next(option_of(item).choices for item in fields(ModelOptions) if item.name == name)


def add_flags(parser: argparse.ArgumentParser, *without: str) -> None:
    """Gives a benchmark's parser the options' flags, with the options' defaults, but for those ``without``."""
    for item in fields(ModelOptions):
        if item.name in without:
            continue
        option, flag = option_of(item), "--" + item.name.replace("_", "-")
        meaning = f"{option.help} [{'none' if item.default is None else item.default}]".replace("%", "%%")
        if isinstance(item.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=item.default, help=meaning)
            continue
        kind = option.kind or type(item.default)
        parser.add_argument(flag, type=kind, choices=option.choices or None, default=item.default, help=meaning)


def flags_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a parser with these flags has read, by the options' names."""
    return {item.name: getattr(arguments, item.name) for item in fields(ModelOptions) if item.name in arguments}
