"""Audio conditioning: from mono sound at 16 kHz to the tokens that each frame's cross-attention reads.

Two encoders, one shape: Whisper's encoder (the published one or a smaller one of the same form, also trainable) and
wav2vec2 with a trained adapter. Both give hidden states (positions, tokens per position, width), 50 positions a second,
and :func:`frame_tokens` deals them out to frames. Knows nothing of clips' places in media time, of devices' scheduling
or of where weights come from beyond the path it is given.
"""

from __future__ import annotations

import functools
import json
import math
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from echo_rtc.clips import F32Array
from echo_rtc.errors import InputError, first_line
from echo_rtc.model.libraries import import_library
from echo_rtc.model.weights import CHECK_PATH, read_file, refuse_pointer
from echo_rtc.model.whisper import WhisperEncoder

SAMPLE_RATE = 16_000
"""Hz of the sound that both encoders were made for."""

POSITIONS_PER_S = 50
"""Hidden states per second of sound, of both encoders."""

_STFT_SAMPLES = 400
_HOP_SAMPLES = 160
_POSITION_SAMPLES = SAMPLE_RATE // POSITIONS_PER_S

_WHISPER_FETCH = (
    "curl -L --create-dirs -o {path} https://openaipublic.azureedge.net/main/whisper/models/"
    "65147644a518d12f04e32d6f3b26facc3f8dd46e5390956a9424a650c0ce22b9/tiny.pt"
)
_WAV2VEC2_FETCH = "hf download facebook/wav2vec2-base-960h --local-dir {path}"

# In every file of OpenAI's, of no use here: the hidden states are taken before the final norm.
_UNUSED_PARAMETERS = frozenset({"encoder.ln_post.weight", "encoder.ln_post.bias"})


def log_mel_spectrogram(audio: Tensor, n_mels: int = 80) -> Tensor:
    """Log-mel spectrogram as Whisper's: audio (samples,) at 16 kHz -> (n_mels, samples // 160), or a batch of each.

    STFT of 400 samples every 160 with a Hann window, the last frame dropped, power, Slaney mel filters, log10 with a
    floor of 1e-10, no more than 8 below the loudest value of the whole audio given (each of a batch by itself), then
    (x + 4) / 4. Computed in float32 on the audio as it is, without padding to 30 s (Radford et al. 2022, section 2.2).

    Raises ValueError if the audio is not mono, alone or as a batch, of at least one position (320 samples).
    """
    if audio.ndim not in (1, 2) or audio.shape[-1] < _POSITION_SAMPLES:
        raise ValueError(f"audio has shape {tuple(audio.shape)}; one channel of {_POSITION_SAMPLES} samples or more")
    audio = audio.float()
    window = torch.hann_window(_STFT_SAMPLES, device=audio.device)
    spectrum = torch.stft(audio, _STFT_SAMPLES, _HOP_SAMPLES, window=window, return_complex=True)  # (..., 201, T + 1)
    power = spectrum[..., :-1].abs().square()
    mels = mel_filters(n_mels, audio.device) @ power  # (..., n_mels, T)
    log_mels = mels.clamp(min=1e-10).log10()
    log_mels = torch.maximum(log_mels, log_mels.amax(dim=(-2, -1), keepdim=True) - 8.0)
    return (log_mels + 4.0) / 4.0


@functools.cache
def mel_filters(n_mels: int, device: torch.device) -> Tensor:
    """Triangular mel filters (n_mels, 201) float32, Slaney scale and norm, 0 to 8 kHz."""
    top = _mel(SAMPLE_RATE / 2)
    edges = _hertz(np.linspace(0.0, top, n_mels + 2))
    bins = np.linspace(0.0, SAMPLE_RATE / 2, _STFT_SAMPLES // 2 + 1)
    slopes = edges - bins[:, None]  # (201, n_mels + 2)
    rising, falling = -slopes[:, :-2] / np.diff(edges)[:-1], slopes[:, 2:] / np.diff(edges)[1:]
    filters = np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])
    return torch.from_numpy(np.ascontiguousarray(filters.T, dtype=np.float32)).to(device)


_LINEAR_BELOW_HZ, _LINEAR_BELOW_MEL, _MEL_PER_E = 1000.0, 15.0, 27.0 / math.log(6.4)
"""Slaney's scale: 200/3 Hz for each mel up to 1 kHz, and logarithmic above."""


def _mel(hertz: float) -> float:
    """The mel of a frequency above 1 kHz."""
    return _LINEAR_BELOW_MEL + _MEL_PER_E * math.log(hertz / _LINEAR_BELOW_HZ)


def _hertz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    """The frequencies (Hz) of mels."""
    above = _LINEAR_BELOW_HZ * np.exp((mels - _LINEAR_BELOW_MEL) / _MEL_PER_E)
    return np.where(mels < _LINEAR_BELOW_MEL, mels * _LINEAR_BELOW_HZ / _LINEAR_BELOW_MEL, above)


def frame_tokens(hidden: Tensor, frames: int, fps: int, margin: int, drop_frames: int) -> Tensor:
    """Deal hidden states out to frames: hidden (P, L, C) -> tokens (frames, (4 * margin + 2) * L, C).

    Frame i of the window is centred on position floor(i * 50 / fps) and reads 2 * ``margin`` positions before it and
    2 * ``margin`` + 1 after it, each clamped to 0..P-1, all L states of each. A window of P positions has frames up to
    the first whose centre lies beyond P; the first ``drop_frames`` of them (the history) are left out, and where fewer
    than ``frames`` remain the last one is repeated.

    Raises ValueError if there are no positions or a number is out of its range.
    """
    positions, states, width = hidden.shape
    if positions < 1:
        raise ValueError("there are no hidden states; the audio is shorter than one position (20 ms)")
    if frames < 1 or fps < 1 or margin < 0 or drop_frames < 0:
        raise ValueError(f"frames {frames}, fps {fps}, margin {margin}, drop_frames {drop_frames} cannot be")
    last_frame = math.ceil(Fraction((positions + 1) * fps, POSITIONS_PER_S))  # the first with a centre beyond P
    frame = torch.arange(drop_frames, drop_frames + frames, device=hidden.device).clamp(max=last_frame)
    centre = frame * POSITIONS_PER_S // fps  # (F,)
    offset = torch.arange(-2 * margin, 2 * margin + 2, device=hidden.device)  # (4 m + 2,)
    index = (centre[:, None] + offset).clamp(0, positions - 1)  # (F, 4 m + 2)
    return hidden[index].reshape(frames, offset.shape[0] * states, width)


@dataclass(frozen=True, slots=True)
class WhisperDims:
    """Sizes of a Whisper encoder, by the names of OpenAI's files.

    ``n_mels`` mel filters, ``n_audio_ctx`` positions (50 a second) it always computes, ``n_audio_state`` width,
    ``n_audio_head`` attention heads, ``n_audio_layer`` layers.
    """

    n_mels: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{name} of the audio encoder is {value!r}; a whole number of at least 1 is expected")
        if self.n_audio_state % self.n_audio_head:
            raise InputError(
                f"n_audio_state of the audio encoder is {self.n_audio_state}; "
                f"it must be a multiple of n_audio_head, {self.n_audio_head}"
            )
        if self.n_audio_state % 2 or self.n_audio_state < 4:
            raise InputError(f"n_audio_state of the audio encoder is {self.n_audio_state}; it must be even, 4 or more")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, object]) -> WhisperDims:
        """Take the encoder's sizes out of a mapping that may hold the decoder's as well. Raises InputError."""
        missing = [name for name in cls.__dataclass_fields__ if name not in mapping]
        if missing:
            raise InputError(f"the sizes of the audio encoder lack {', '.join(missing)}")
        return cls(**{name: cast(int, mapping[name]) for name in cls.__dataclass_fields__})


class WhisperAudioEncoder(nn.Module):
    """Whisper's encoder, giving the input of its first layer and the output of every layer, before the final norm.

    A new one has random weights and the sinusoidal positions of the paper, ready to be trained; :meth:`load` reads one.
    """

    def __init__(self, dims: WhisperDims) -> None:
        super().__init__()
        self.dims = dims
        self.encoder = WhisperEncoder(
            dims.n_mels, dims.n_audio_ctx, dims.n_audio_state, dims.n_audio_head, dims.n_audio_layer
        )

    @property
    def width(self) -> int:
        """Size of one token."""
        return self.dims.n_audio_state

    @property
    def tokens_per_position(self) -> int:
        """Hidden states kept of each position: the embedding and each layer's output."""
        return self.dims.n_audio_layer + 1

    @property
    def max_samples(self) -> int:
        """The longest audio it can read, in samples at 16 kHz."""
        return (2 * self.dims.n_audio_ctx + 1) * _HOP_SAMPLES - 1

    def forward(self, mels: Tensor) -> Tensor:
        """Hidden states of log-mels: (B, n_mels, T) -> (B, T // 2, n_audio_layer + 1, n_audio_state).

        The mels are padded with zeros to 2 * n_audio_ctx frames, all of which take part in the attention; only the
        positions of the T given are returned. Differentiable. Raises ValueError if T is more than the context.
        """
        frames = mels.shape[-1]
        context = 2 * self.dims.n_audio_ctx
        if frames > context:
            raise ValueError(f"{frames} mel frames are more than the {context} that the audio encoder reads")
        padded = nn.functional.pad(mels.to(self.encoder.conv1.weight.dtype), (0, context - frames))
        states = self.encoder(padded)  # n_audio_layer + 1 times (B, n_audio_ctx, C)
        return torch.stack([state[:, : frames // 2] for state in states], dim=2)

    @torch.no_grad()
    def hidden_states(self, audio: Tensor | F32Array) -> Tensor:
        """Hidden states of mono float32 audio at 16 kHz: (samples,) -> (positions, n_audio_layer + 1, n_audio_state).

        positions = samples // 160 // 2. Computed on the encoder's device and in its type. Raises InputError if the
        audio is longer than the context, ValueError if it is not one channel of at least 320 samples.
        """
        sound = torch.as_tensor(audio)
        if sound.ndim != 1:
            raise ValueError(f"audio has shape {tuple(sound.shape)}; one channel is expected")
        if sound.shape[-1] > self.max_samples:
            raise InputError(
                f"the audio window of {sound.shape[-1] / SAMPLE_RATE:.2f} s is longer than the "
                f"{self.dims.n_audio_ctx / POSITIONS_PER_S:.2f} s that this audio encoder reads; use shorter clips"
            )
        mels = log_mel_spectrogram(sound.to(self.encoder.conv1.weight.device), self.dims.n_mels)
        return cast(Tensor, self(mels[None])[0])

    @classmethod
    def load(cls, path: Path, dims: Mapping[str, object] | WhisperDims | None = None) -> WhisperAudioEncoder:
        """Read an encoder, float32, in evaluation mode.

        ``path`` is OpenAI's file (``{"dims", "model_state_dict"}``; its own dims hold, its decoder is not read), or a
        ``.safetensors`` file with the same ``encoder.*`` names, for which ``dims`` must be given. Raises InputError if
        the file is missing, cannot be read, or does not hold exactly the parameters that its sizes ask for.
        """
        path = Path(path)
        content = _read_weights(path, "Whisper's audio encoder", _WHISPER_FETCH)
        tensors: Mapping[str, Any] = content
        if path.suffix != ".safetensors":
            state = content.get("model_state_dict")
            stored_dims = content.get("dims")
            if not isinstance(state, Mapping) or not isinstance(stored_dims, Mapping):
                raise InputError(f"{path} is not a Whisper file: it lacks dims or model_state_dict")
            tensors, dims = state, stored_dims
        if dims is None:
            raise InputError(f"{path} does not say the encoder's sizes; give them as 'whisper' in the model's config")
        if not isinstance(dims, WhisperDims):
            dims = WhisperDims.from_mapping(dims)

        parameters = {name: value for name, value in tensors.items() if name.startswith("encoder.")}
        with torch.device("meta"):
            encoder = cls(dims)
        expected = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
        _check_parameters(path, parameters, expected)
        encoder.load_state_dict({name: parameters[name].float() for name in expected}, assign=True)
        encoder.encoder.positional_embedding.requires_grad_(False)
        return encoder.eval()

    def save_encoder(self, path: Path) -> None:
        """Write the parameters under OpenAI's names as safetensors, in their own type; :meth:`load` reads it back."""
        save_file({name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}, path)


class Wav2Vec2AudioEncoder(nn.Module):
    """wav2vec2's last hidden state, mapped to the width of the cross-attention by a trained linear adapter.

    ``normalise``: whether the sound is brought to zero mean and unit variance first, as the model's feature extractor
    does where its configuration says so.
    """

    tokens_per_position = 1

    def __init__(self, model: Any, adapter: nn.Linear, normalise: bool) -> None:
        super().__init__()
        self.model = model
        self.adapter = adapter
        self.normalise = normalise

    @property
    def width(self) -> int:
        """Size of one token."""
        return self.adapter.out_features

    @torch.no_grad()
    def hidden_states(self, audio: Tensor | F32Array) -> Tensor:
        """Hidden states of mono float32 audio at 16 kHz: (samples,) -> (positions, 1, width), 50 positions a second.

        Raises ValueError if the audio is shorter than one window of the feature encoder (400 samples).
        """
        sound = torch.as_tensor(audio).to(self.adapter.weight.device, torch.float32)
        if sound.ndim != 1 or sound.shape[0] < _STFT_SAMPLES:
            raise ValueError(f"audio has shape {tuple(sound.shape)}; one channel of {_STFT_SAMPLES} samples or more")
        if self.normalise:
            sound = (sound - sound.mean()) / torch.sqrt(sound.var(unbiased=False) + 1e-7)
        last = self.model(sound[None].to(self.adapter.weight.dtype)).last_hidden_state  # (1, P, 768)
        return cast(Tensor, self.adapter(last[0])[:, None])

    @classmethod
    def load(cls, folder: Path, adapter_path: Path | None) -> Wav2Vec2AudioEncoder:
        """Read a local transformers folder and the adapter (keys ``weight`` and ``bias``), float32, evaluation mode.

        Raises InputError if there is no adapter, or if either is missing, cannot be read or does not fit the other.
        """
        if adapter_path is None:
            raise InputError(
                "audio-model-type wav2vec2 needs a trained adapter: the model was trained on Whisper's features and "
                "nothing else maps wav2vec2's onto them; set model.wav2vec2_adapter or use audio-model-type whisper"
            )
        adapter = _read_adapter(Path(adapter_path))
        folder = Path(folder)
        model = _read_wav2vec2(folder)
        if adapter.in_features != model.config.hidden_size:
            raise InputError(
                f"the adapter {adapter_path} reads {adapter.in_features} values, "
                f"but the wav2vec2 model in {folder} gives {model.config.hidden_size}"
            )
        return cls(model, adapter, _normalises(folder)).eval()


def _read_wav2vec2(folder: Path) -> Any:
    """The Wav2Vec2Model of a local transformers folder, float32. Raises InputError."""
    if not (folder / "config.json").is_file():
        if folder.is_file():
            raise InputError(f"the wav2vec2 model {folder} is a file; name the folder with its config.json")
        fetch = _WAV2VEC2_FETCH.format(path=folder)
        raise InputError(f"the wav2vec2 model {folder / 'config.json'} does not exist; fetch it with: {fetch}")
    for file in sorted(folder.glob("*.safetensors")):
        refuse_pointer(file, "the wav2vec2 model")
    plain = any((folder / name).exists() for name in ("model.safetensors", "pytorch_model.bin"))
    transformers = import_library("transformers")
    try:
        config = transformers.Wav2Vec2Config.from_pretrained(folder, local_files_only=True)
        model, report = transformers.Wav2Vec2Model.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            output_loading_info=True,
            variant=None if plain else "fp16",
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        reason = first_line(error)
        raise InputError(f"the wav2vec2 model in {folder} cannot be read: {reason}") from error
    except SafetensorError as error:
        raise InputError(f"the wav2vec2 model in {folder} cannot be read: {error}") from error
    # Only training masks its input, so that vector is absent from many published files.
    missing = sorted(set(report["missing_keys"]) - {"masked_spec_embed"})
    if missing:
        raise InputError(f"the wav2vec2 model in {folder} lacks {_listed(missing)}")
    return model.float()


def _read_adapter(path: Path) -> nn.Linear:
    """A linear layer of a file that holds ``weight`` (out, in) and ``bias`` (out,). Raises InputError."""
    content = _read_weights(path, "the wav2vec2 adapter", None)
    weight, bias = content.get("weight"), content.get("bias")
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor) or len(content) != 2:
        raise InputError(f"the wav2vec2 adapter {path} must hold the tensors weight and bias, and nothing else")
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise InputError(
            f"the wav2vec2 adapter {path} has weight {tuple(weight.shape)} and bias {tuple(bias.shape)}; "
            "(out, in) and (out,) are expected"
        )
    adapter = nn.Linear(weight.shape[1], weight.shape[0])
    adapter.load_state_dict({"weight": weight, "bias": bias})
    return adapter


def _normalises(folder: Path) -> bool:
    """Whether the folder's feature extractor normalises; True is the extractor's default. Raises InputError."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return False
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    value = settings.get("do_normalize", True) if isinstance(settings, dict) else None
    if not isinstance(value, bool):
        raise InputError(f"do_normalize in {path} is {value!r}; true or false is expected")
    return value


def _read_weights(path: Path, what: str, fetch: str | None) -> Mapping[str, Any]:
    """The mapping in a weight file, on the CPU. Raises InputError.

    ``what`` names the file's content in the message; ``fetch`` is the command that fetches it, where there is one.
    """
    mend = CHECK_PATH
    if fetch is not None and path.suffix != ".safetensors":  # what can be fetched is in OpenAI's format
        mend = f"fetch it with: {fetch.format(path=path)}"
    return read_file(path, what, mend, "cannot be read: it is damaged or not a file of plain tensors")


def _check_parameters(path: Path, found: Mapping[str, object], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise InputError unless exactly the expected parameters were found, each a tensor of its shape."""
    problems = []
    if missing := [name for name in expected if name not in found]:
        problems.append(f"missing {_listed(missing)}")
    if unexpected := [name for name in found if name not in expected and name not in _UNUSED_PARAMETERS]:
        problems.append(f"unexpected {_listed(unexpected)}")
    misshapen = []
    for name, shape in expected.items():
        value = found.get(name)
        if name in found and (not isinstance(value, Tensor) or tuple(value.shape) != shape):
            actual = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            misshapen.append(f"{name} {actual} instead of {shape}")
    if misshapen:
        problems.append(f"misshapen {_listed(misshapen)}")
    if problems:
        raise InputError(f"the audio encoder {path} does not fit its sizes: {'; '.join(problems)}")


def _listed(names: list[str], limit: int = 8) -> str:
    """The first names and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
