"""Audio tokens: the spectrogram, both encoders and the dealing out, against plain arithmetic written here."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2Model, WhisperConfig
from transformers.audio_utils import mel_filter_bank
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from echo_rtc.errors import InputError
from echo_rtc.model.audio import (
    SAMPLE_RATE,
    Wav2Vec2AudioEncoder,
    WhisperAudioEncoder,
    WhisperDims,
    frame_tokens,
    log_mel_spectrogram,
    mel_filters,
)

DIMS = WhisperDims(n_mels=80, n_audio_ctx=60, n_audio_state=32, n_audio_head=4, n_audio_layer=2)


def noise(samples: int, seed: int = 0, level: float = 0.1) -> Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed)) * level


@pytest.fixture
def whisper() -> WhisperAudioEncoder:
    torch.manual_seed(0)
    encoder = WhisperAudioEncoder(DIMS)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return encoder.eval()


# --------------------------------------------------------------------------------------------------- spectrogram


def slaney_filters() -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """80 triangles (80, 201) of equal area, linear below 1 kHz and logarithmic above."""

    def hertz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    top = 15 + 27 * np.log(8) / np.log(6.4)
    edges = np.array([hertz(mel) for mel in np.linspace(0, top, 82)])
    bins = np.arange(201) * 40.0
    filters = np.zeros((80, 201))
    for index, (low, centre, high) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        rising, falling = (bins - low) / (centre - low), (high - bins) / (high - centre)
        filters[index] = np.clip(np.minimum(rising, falling), 0, None) * 2 / (high - low)
    return filters


def plain_log_mel(audio: Tensor) -> Tensor:
    padded = np.pad(audio.double().numpy(), 200, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    count = len(audio) // 160
    power = np.stack([np.abs(np.fft.rfft(padded[i * 160 : i * 160 + 400] * window)) ** 2 for i in range(count)], axis=1)
    logs = np.log10(np.maximum(slaney_filters() @ power, 1e-10))
    return torch.from_numpy((np.maximum(logs, logs.max() - 8) + 4) / 4)


@pytest.mark.parametrize("samples", [320, 1600, 4999, 40_000])
def test_log_mel_is_the_plain_arithmetic(samples: int) -> None:
    audio = noise(samples) + 0.3 * torch.sin(torch.arange(samples) * 0.1)
    mels = log_mel_spectrogram(audio)
    assert mels.shape == (80, samples // 160)
    assert mels.dtype == torch.float32
    torch.testing.assert_close(mels.double(), plain_log_mel(audio), atol=1e-4, rtol=0)


@pytest.mark.parametrize("mels", [80, 128])
def test_the_mel_filters_are_the_published_ones(mels: int) -> None:
    expected = mel_filter_bank(201, mels, 0.0, 8000.0, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
    found = mel_filters(mels, torch.device("cpu"))
    torch.testing.assert_close(found.double().T, torch.from_numpy(expected), atol=1e-9, rtol=1e-6)


def test_the_floor_follows_the_loudest_sound_of_the_whole() -> None:
    quiet, loud = noise(8000, level=1e-5), noise(8000, 1, level=0.5)
    alone = log_mel_spectrogram(quiet)
    together = log_mel_spectrogram(torch.cat([quiet, loud]))
    assert together[:, :48].min() > alone[:, :48].min()
    assert float(together.max() - together.min()) == pytest.approx(2.0)


def test_silence_is_finite() -> None:
    mels = log_mel_spectrogram(torch.zeros(3200))
    assert torch.equal(mels, torch.full((80, 20), -1.5))


def test_each_of_a_batch_has_its_own_floor() -> None:
    batch = torch.stack([noise(8000, level=1e-5), noise(8000, 1, level=0.5)])
    together = log_mel_spectrogram(batch)
    assert together.shape == (2, 80, 50)
    for index in range(2):
        torch.testing.assert_close(together[index], log_mel_spectrogram(batch[index]))


@pytest.mark.parametrize("shape", [(0,), (319,), (2, 319), (1, 2, 1600)])
def test_what_is_no_sound_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="audio has shape"):
        log_mel_spectrogram(torch.zeros(shape))


# --------------------------------------------------------------------------------------------------- frame tokens


def plain_frame_tokens(hidden: Tensor, frames: int, fps: int, margin: int, drop: int) -> Tensor:
    window: list[Tensor] = []
    while True:
        centre = int(len(window) * 50 / fps)
        positions = range(centre - 2 * margin, centre + 2 * margin + 2)
        window.append(torch.cat([hidden[min(max(p, 0), len(hidden) - 1)] for p in positions]))
        if centre > len(hidden):
            break
    kept = window[drop : drop + frames]
    kept += [window[-1]] * (frames - len(kept))
    return torch.stack(kept)


@given(
    positions=st.integers(1, 130),
    states=st.integers(1, 5),
    frames=st.integers(1, 30),
    fps=st.sampled_from([1, 10, 12, 24, 25, 30, 50, 60]),
    margin=st.integers(0, 7),
    drop=st.integers(0, 150),
)
@settings(max_examples=150, deadline=None)
def test_frame_tokens_are_the_plain_loop(
    positions: int, states: int, frames: int, fps: int, margin: int, drop: int
) -> None:
    hidden = torch.arange(positions * states * 2, dtype=torch.float32).reshape(positions, states, 2)
    tokens = frame_tokens(hidden, frames, fps, margin, drop)
    assert tokens.shape == (frames, (4 * margin + 2) * states, 2)
    assert torch.equal(tokens, plain_frame_tokens(hidden, frames, fps, margin, drop))


@pytest.mark.parametrize(("margin", "tokens"), [(2, 50), (6, 130)])
def test_the_published_numbers_of_tokens(margin: int, tokens: int) -> None:
    assert frame_tokens(torch.zeros(125, 5, 384), 12, 24, margin, 48).shape == (12, tokens, 384)


def test_history_is_dropped() -> None:
    hidden = torch.randn(125, 3, 4)
    assert torch.equal(frame_tokens(hidden, 12, 24, 2, 48), frame_tokens(hidden, 60, 24, 2, 0)[48:])


@pytest.mark.parametrize("numbers", [(0, 24, 2, 0), (1, 0, 2, 0), (1, 24, -1, 0), (1, 24, 2, -1)])
def test_impossible_numbers_are_refused(numbers: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        frame_tokens(torch.zeros(5, 1, 4), *numbers)


def test_no_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="no hidden states"):
        frame_tokens(torch.zeros(0, 1, 4), 12, 24, 2, 0)


# -------------------------------------------------------------------------------------------------------- whisper


def plain_whisper(p: Mapping[str, Tensor], mels: Tensor) -> Tensor:
    """The encoder by OpenAI's names: mels (B, 80, 2 * context) -> (B, context, layers + 1, width)."""
    x = F.gelu(F.conv1d(mels, p["encoder.conv1.weight"], p["encoder.conv1.bias"], padding=1))
    x = F.gelu(F.conv1d(x, p["encoder.conv2.weight"], p["encoder.conv2.bias"], stride=2, padding=1))
    x = x.transpose(1, 2) + p["encoder.positional_embedding"]
    kept = [x]

    def linear(name: str, value: Tensor) -> Tensor:
        return F.linear(value, p[f"{name}.weight"], p.get(f"{name}.bias"))

    def norm(name: str, value: Tensor) -> Tensor:
        return F.layer_norm(value, value.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"])

    for layer in range(DIMS.n_audio_layer):
        block = f"encoder.blocks.{layer}"
        y = norm(f"{block}.attn_ln", x)
        q, k, v = (
            linear(f"{block}.attn.{part}", y).reshape(*y.shape[:2], DIMS.n_audio_head, -1).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)
        x = x + linear(f"{block}.attn.out", (weights @ v).transpose(1, 2).flatten(-2))
        y = F.gelu(linear(f"{block}.mlp.0", norm(f"{block}.mlp_ln", x)))
        x = x + linear(f"{block}.mlp.2", y)
        kept.append(x)
    return torch.stack(kept, dim=2)


def test_the_encoder_is_the_plain_arithmetic(whisper: WhisperAudioEncoder, tmp_path: Path) -> None:
    whisper.save_encoder(tmp_path / "a.safetensors")
    parameters = load_file(tmp_path / "a.safetensors")
    mels = torch.randn(2, 80, 51)
    hidden = whisper(mels)
    assert hidden.shape == (2, 25, 3, 32)
    expected = plain_whisper(parameters, F.pad(mels, (0, 120 - 51)))[:, :25]
    torch.testing.assert_close(hidden, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@torch.no_grad()
def test_the_encoder_is_the_published_one(whisper: WhisperAudioEncoder, dtype: torch.dtype, tmp_path: Path) -> None:
    config = WhisperConfig(
        num_mel_bins=80,
        max_source_positions=60,
        d_model=32,
        encoder_attention_heads=4,
        encoder_ffn_dim=128,
        encoder_layers=2,
    )
    theirs = WhisperEncoder(config).eval()
    names = {
        "blocks": "layers",
        "attn.": "self_attn.",
        "query": "q_proj",
        "key": "k_proj",
        "value": "v_proj",
        "out.": "out_proj.",
        "attn_ln": "self_attn_layer_norm",
        "mlp.0": "fc1",
        "mlp.2": "fc2",
        "mlp_ln": "final_layer_norm",
        "positional_embedding": "embed_positions.weight",
    }
    state = {}
    for name, value in whisper.encoder.state_dict().items():
        for ours, published in names.items():
            name = name.replace(ours, published)
        state[name] = value
    state |= {name: value for name, value in theirs.state_dict().items() if name.startswith("layer_norm.")}
    theirs.load_state_dict(state)
    mels = torch.randn(2, 80, 120).to(dtype)
    expected = theirs.to(dtype)(mels, output_hidden_states=True).hidden_states
    found = whisper.to(dtype)(mels)
    torch.testing.assert_close(found[:, :, 0], expected[0])
    torch.testing.assert_close(found[:, :, 1], expected[1])


def test_hidden_states_of_sound(whisper: WhisperAudioEncoder) -> None:
    audio = noise(9000)
    hidden = whisper.hidden_states(audio)
    assert hidden.shape == (28, whisper.tokens_per_position, whisper.width)
    assert not hidden.requires_grad
    assert torch.equal(hidden, whisper(log_mel_spectrogram(audio)[None])[0])
    assert torch.equal(hidden, whisper.hidden_states(audio.numpy()))


def test_padding_is_of_the_mels_not_of_the_sound(whisper: WhisperAudioEncoder) -> None:
    """Zeros behind the sound would be -1.5 or less in its mels; the published code puts zeros there."""
    audio = noise(8000)
    padded = whisper.hidden_states(F.pad(audio, (0, 8000)))[:25]
    assert (padded - whisper.hidden_states(audio)).abs().max() > 1e-3


def test_the_longest_sound_and_one_sample_more(whisper: WhisperAudioEncoder) -> None:
    assert whisper.hidden_states(noise(whisper.max_samples)).shape[0] == DIMS.n_audio_ctx
    with pytest.raises(InputError, match=r"longer than the 1\.20 s"):
        whisper.hidden_states(noise(whisper.max_samples + 1))
    with pytest.raises(ValueError, match="121 mel frames"):
        whisper(torch.zeros(1, 80, 121))
    with pytest.raises(ValueError, match="one channel"):
        whisper.hidden_states(noise(8000)[None])


def test_it_learns() -> None:
    torch.manual_seed(0)
    encoder = WhisperAudioEncoder(DIMS).train()
    encoder(torch.randn(3, 80, 50)).square().sum().backward()
    without = {name for name, parameter in encoder.named_parameters() if parameter.grad is None}
    assert without == {"encoder.positional_embedding"}


def test_new_positions_are_sinusoids() -> None:
    table = WhisperAudioEncoder(DIMS).encoder.positional_embedding
    steps = 10_000.0 ** (-torch.arange(16) / 15)
    angles = torch.arange(60)[:, None] * steps
    torch.testing.assert_close(table, torch.cat([angles.sin(), angles.cos()], dim=1), atol=1e-4, rtol=0)


def openai_file(whisper: WhisperAudioEncoder, path: Path, change: Mapping[str, Any] | None = None) -> Path:
    """OpenAI's layout, half precision, decoder and final norm included; a change to None takes a name out."""
    whisper.save_encoder(path.with_suffix(".tmp.safetensors"))
    state: dict[str, Any] = {k: v.half() for k, v in load_file(path.with_suffix(".tmp.safetensors")).items()}
    state |= {"encoder.ln_post.weight": torch.ones(32), "encoder.ln_post.bias": torch.zeros(32)}
    state |= {"decoder.token_embedding.weight": torch.zeros(16, 32)} | dict(change or {})
    state = {name: value for name, value in state.items() if value is not None}
    dims = {name: getattr(DIMS, name) for name in DIMS.__dataclass_fields__} | {"n_vocab": 16}
    torch.save({"dims": dims, "model_state_dict": state}, path)
    return path


def test_openais_file_is_read(whisper: WhisperAudioEncoder, tmp_path: Path) -> None:
    loaded = WhisperAudioEncoder.load(openai_file(whisper, tmp_path / "tiny.pt"))
    assert loaded.dims == DIMS
    assert not loaded.training
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    halves = whisper.half().float()
    audio = noise(8000)
    torch.testing.assert_close(loaded.hidden_states(audio), halves.hidden_states(audio))


def test_our_own_file_is_read(whisper: WhisperAudioEncoder, tmp_path: Path) -> None:
    whisper.save_encoder(tmp_path / "a.safetensors")
    dims = {"n_mels": 80, "n_audio_ctx": 60, "n_audio_state": 32, "n_audio_head": 4, "n_audio_layer": 2}
    loaded = WhisperAudioEncoder.load(tmp_path / "a.safetensors", dims)
    audio = noise(8000)
    assert torch.equal(loaded.hidden_states(audio), whisper.hidden_states(audio))
    with pytest.raises(InputError, match="does not say the encoder's sizes"):
        WhisperAudioEncoder.load(tmp_path / "a.safetensors")


def test_a_loaded_encoder_can_be_trained_on(whisper: WhisperAudioEncoder, tmp_path: Path) -> None:
    loaded = WhisperAudioEncoder.load(openai_file(whisper, tmp_path / "tiny.pt"))
    loaded(torch.randn(1, 80, 20)).sum().backward()
    assert loaded.encoder.conv1.weight.grad is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.conv2.bias": None}, r"missing encoder\.conv2\.bias$"),
        ({"encoder.blocks.2.attn_ln.bias": torch.zeros(32)}, r"unexpected encoder\.blocks\.2\.attn_ln\.bias$"),
        ({"encoder.blocks.0.attn.key.bias": torch.zeros(32)}, r"unexpected encoder\.blocks\.0\.attn\.key\.bias$"),
        ({"encoder.conv1.bias": torch.zeros(31)}, r"misshapen encoder\.conv1\.bias \(31,\) instead of \(32,\)$"),
        ({"encoder.conv1.bias": 5}, r"misshapen encoder\.conv1\.bias int instead of \(32,\)$"),
    ],
)
def test_parameters_that_do_not_fit_are_named(
    whisper: WhisperAudioEncoder, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = openai_file(whisper, tmp_path / "tiny.pt", change)
    with pytest.raises(InputError, match=message):
        WhisperAudioEncoder.load(path)


def test_a_missing_file_names_the_command(tmp_path: Path) -> None:
    path = tmp_path / "audio_processor" / "tiny.pt"
    with pytest.raises(InputError, match=rf"{path} does not exist; fetch it with: curl .* -o {path} https://"):
        WhisperAudioEncoder.load(path)
    with pytest.raises(InputError, match=r"a\.safetensors does not exist; check its path"):
        WhisperAudioEncoder.load(tmp_path / "a.safetensors", DIMS)


@pytest.mark.parametrize("name", ["tiny.pt", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 not a zip", b"\xff" * 64])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} cannot be read") as caught:
        WhisperAudioEncoder.load(tmp_path / name, DIMS)
    assert "\n" not in str(caught.value)


class Payload:
    """Pickles as a command."""

    def __init__(self, mark: Path) -> None:
        self.command = f"touch {mark}"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_a_file_with_code_is_refused(tmp_path: Path) -> None:
    torch.save({"dims": Payload(tmp_path / "ran")}, tmp_path / "tiny.pt")
    with pytest.raises(InputError, match="not a file of plain tensors"):
        WhisperAudioEncoder.load(tmp_path / "tiny.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [[1, 2], {"dims": {}}, {"model_state_dict": {}, "dims": 3}])
def test_other_files_are_not_whispers(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "tiny.pt")
    with pytest.raises(InputError, match=r"tiny\.pt"):
        WhisperAudioEncoder.load(tmp_path / "tiny.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_audio_head": 5}, "multiple of n_audio_head, 5"),
        ({"n_audio_layer": 0}, "n_audio_layer .* is 0"),
        ({"n_audio_ctx": "60"}, "n_audio_ctx .* is '60'"),
        ({"n_audio_state": 33, "n_audio_head": 3}, "must be even"),
        ({"n_mels": None}, "n_mels"),
    ],
)
def test_sizes_that_cannot_be_are_refused(change: dict[str, object], message: str) -> None:
    sizes = {"n_mels": 80, "n_audio_ctx": 60, "n_audio_state": 32, "n_audio_head": 4, "n_audio_layer": 2} | change
    with pytest.raises(InputError, match=message):
        WhisperDims.from_mapping(sizes)


def test_sizes_that_are_missing_are_named() -> None:
    with pytest.raises(InputError, match="lack n_mels, n_audio_layer"):
        WhisperDims.from_mapping({"n_audio_ctx": 60, "n_audio_state": 32, "n_audio_head": 4})


# ------------------------------------------------------------------------------------------------------- wav2vec2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny wav2vec2 with random weights, saved as transformers saves it."""
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    path = tmp_path / "wav2vec2"
    Wav2Vec2Model(config).save_pretrained(path)
    return path


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    save_file({"weight": torch.randn(384, 24), "bias": torch.randn(384)}, tmp_path / "adapter.safetensors")
    return tmp_path / "adapter.safetensors"


def test_wav2vec2_is_the_model_then_the_adapter(folder: Path, adapter: Path) -> None:
    encoder = Wav2Vec2AudioEncoder.load(folder, adapter)
    audio = noise(16_000)
    hidden = encoder.hidden_states(audio)
    assert hidden.shape == (49, encoder.tokens_per_position, encoder.width)
    assert encoder.width == 384
    assert not hidden.requires_grad
    weights = load_file(adapter)
    with torch.no_grad():
        last = Wav2Vec2Model.from_pretrained(folder).eval()(audio[None]).last_hidden_state[0]
    torch.testing.assert_close(hidden[:, 0], last @ weights["weight"].T + weights["bias"])
    assert frame_tokens(hidden, 12, 24, 2, 0).shape == (12, 10, 384)


def test_an_adapter_in_torchs_format(folder: Path, adapter: Path, tmp_path: Path) -> None:
    torch.save(load_file(adapter), tmp_path / "adapter.pt")
    audio = noise(8000)
    expected = Wav2Vec2AudioEncoder.load(folder, adapter).hidden_states(audio)
    assert torch.equal(Wav2Vec2AudioEncoder.load(folder, tmp_path / "adapter.pt").hidden_states(audio), expected)


@pytest.mark.parametrize(
    ("settings_of_it", "normalised"),
    [(None, False), ({"do_normalize": False}, False), ({"do_normalize": True}, True), ({}, True)],
)
def test_sound_is_normalised_where_the_extractor_does(
    folder: Path, adapter: Path, settings_of_it: dict[str, bool] | None, normalised: bool
) -> None:
    if settings_of_it is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(settings_of_it))
    encoder = Wav2Vec2AudioEncoder.load(folder, adapter)
    audio = noise(8000, level=0.01) + 0.2
    by_hand = (audio - audio.mean()) / (audio.var(unbiased=False) + 1e-7).sqrt()
    assert encoder.normalise is normalised
    encoder_input = by_hand if normalised else audio
    with torch.no_grad():
        expected = encoder.adapter(encoder.model(encoder_input[None]).last_hidden_state[0])
    torch.testing.assert_close(encoder.hidden_states(audio)[:, 0], expected)


def test_without_an_adapter_there_is_no_meaning(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"needs a trained adapter.*model\.wav2vec2_adapter"):
        Wav2Vec2AudioEncoder.load(folder, None)
    with pytest.raises(InputError, match=r"adapter\.pt does not exist"):
        Wav2Vec2AudioEncoder.load(folder, tmp_path / "adapter.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.zeros(384, 24)}, "weight and bias"),
        ({"weight": torch.zeros(384, 24), "bias": torch.zeros(384), "more": torch.zeros(1)}, "nothing else"),
        ({"weight": torch.zeros(384, 24), "bias": torch.zeros(24)}, r"bias \(24,\)"),
        ({"weight": torch.zeros(384, 25), "bias": torch.zeros(384)}, "reads 25 values, .* gives 24"),
    ],
)
def test_an_adapter_that_does_not_fit(folder: Path, tmp_path: Path, content: dict[str, Tensor], message: str) -> None:
    save_file(content, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=message):
        Wav2Vec2AudioEncoder.load(folder, tmp_path / "a.safetensors")


def test_a_missing_folder_names_the_command(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json does not exist; fetch it with: hf download facebook/wav2vec2"):
        Wav2Vec2AudioEncoder.load(tmp_path / "nowhere", adapter)


def test_a_folder_without_weights_or_with_damaged_ones(folder: Path, adapter: Path) -> None:
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:100])
    with pytest.raises(InputError, match="cannot be read") as caught:
        Wav2Vec2AudioEncoder.load(folder, adapter)
    assert "\n" not in str(caught.value)
    weights.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        Wav2Vec2AudioEncoder.load(folder, adapter)


def test_a_folder_that_lacks_a_parameter(folder: Path, adapter: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["feature_projection.projection.bias"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks feature_projection\.projection\.bias"):
        Wav2Vec2AudioEncoder.load(folder, adapter)


@pytest.mark.parametrize("content", ["{", "[]", '{"do_normalize": 1}'])
def test_a_damaged_extractor_file_is_named(folder: Path, adapter: Path, content: str) -> None:
    (folder / "preprocessor_config.json").write_text(content)
    with pytest.raises(InputError, match=r"preprocessor_config\.json"):
        Wav2Vec2AudioEncoder.load(folder, adapter)


def test_sound_shorter_than_a_window(folder: Path, adapter: Path) -> None:
    with pytest.raises(ValueError, match="400 samples"):
        Wav2Vec2AudioEncoder.load(folder, adapter).hidden_states(noise(399))
