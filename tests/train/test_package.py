"""The command package: half precision, all parts or none, the size limit, picture and poses."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from echo_rtc.errors import InputError
from echo_rtc.train import package
from echo_rtc.train.package import PARTS, main
from echo_rtc.train.recipe import NETWORKS


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A folder with a few random numbers for each part."""
    folder = tmp_path / "trained"
    folder.mkdir()
    for number, part in enumerate(PARTS):
        torch.manual_seed(number)
        save_file({"weight": torch.randn(10, 4).t().contiguous()}, folder / f"{part}.safetensors")
    return folder


def run(folder: Path, output: Path, *flags: str) -> int:
    return main(["--folder", str(folder), "--output", str(output), *flags])


def test_weights_are_halved_with_their_widths(trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "embedded"
    assert run(trained, output) == 0
    for part in PARTS:
        whole, half = (load_file(folder / f"{part}.safetensors")["weight"] for folder in (trained, output))
        assert half.dtype == torch.float16
        assert torch.equal(half, whole.half())
        # Whoever installs the package may read it, whoever made it.
        assert stat.S_IMODE((output / f"{part}.safetensors").stat().st_mode) & stat.S_IROTH
    assert json.loads((output / "config.json").read_text()) == json.loads(json.dumps(NETWORKS))


def test_nothing_else_is_written(trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "embedded"
    assert run(trained, output) == 0
    assert sorted(path.name for path in output.iterdir()) == sorted(
        [*(f"{p}.safetensors" for p in PARTS), "config.json"]
    )


def assert_nothing_written(trained: Path, output: Path, message: str) -> None:
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    with pytest.raises(InputError, match=message) as caught:
        run(trained, output)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def test_parts_of_two_models_are_never_mixed(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "embedded"
    assert run(trained, output) == 0
    for part in PARTS:
        save_file({"weight": torch.zeros(4, 10)}, trained / f"{part}.safetensors")

    with monkeypatch.context() as patch:
        patch.setattr(package, "MAX_BYTES", 500)
        assert_nothing_written(trained, output, r"the weights take \d+ bytes; the package has room for 500")

    last = trained / f"{PARTS[-1]}.safetensors"
    save_file({"weight": torch.tensor([1.0, 1e6])}, last)
    assert_nothing_written(trained, output, "weight is not finite in half precision; train audio_encoder again")
    last.write_bytes(b"nothing")
    assert_nothing_written(trained, output, "audio_encoder.safetensors is damaged")
    last.unlink()
    assert_nothing_written(trained, output, "audio_encoder.safetensors does not exist; train audio_encoder first")


def test_the_limit_is_what_the_package_may_hold() -> None:
    assert package.MAX_BYTES == 40_000_000
