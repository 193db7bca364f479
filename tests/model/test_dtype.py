"""Which number format suits a device."""

from __future__ import annotations

import pytest
import torch

from echo_rtc.model.generator import fitting_dtype


@pytest.mark.parametrize(
    ("avx512", "amx", "expected"),
    [(False, False, "float32"), (True, False, "bfloat16"), (False, True, "bfloat16"), (True, True, "bfloat16")],
)
def test_the_cpu_gets_bfloat16_where_it_multiplies_it(
    avx512: bool, amx: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert fitting_dtype("cpu") == expected


def test_the_cpu_gets_float32_where_pytorch_knows_no_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert fitting_dtype("cpu") == "float32"


def test_a_gpu_gets_float16() -> None:
    assert fitting_dtype("cuda:1") == "float16"
