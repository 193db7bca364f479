from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from echo_rtc.errors import InputError
from echo_rtc.train.people.asset import PARTS, Asset


def test_reduced_mesh_is_whole(asset: Asset) -> None:
    count = len(asset.template)
    assert asset.shapes.shape == (len(asset.shape_names), count, 3)
    assert asset.weights.shape == (count, len(asset.bones))
    assert np.allclose(asset.weights.sum(1), 1, atol=1e-4)
    assert set(asset.quads) == set(PARTS)
    assert all(quads.max() < count for quads in asset.quads.values())
    assert asset.parents[0] == -1
    assert all(parent < index for index, parent in enumerate(asset.parents))
    assert not any(name.startswith(("oris", "toe", "upperleg")) for name in asset.bones)


def test_asset_file_round_trip(asset: Asset, tmp_path: Path) -> None:
    asset.save(tmp_path / "people.npz")
    again = Asset.load(tmp_path / "people.npz")
    assert (tmp_path / "people.npz").stat().st_size < 20e6
    assert again.shape_names == asset.shape_names
    assert np.array_equal(again.shapes, asset.shapes)
    assert np.allclose(again.weights, asset.weights, atol=2e-3)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.npz"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="people-asset"):
        Asset.load(path)
    np.savez(path, template=np.zeros(3))
    with pytest.raises(InputError, match="people-asset"):
        Asset.load(path)
    with pytest.raises(InputError, match="cannot be written"):
        Asset.save(_empty(), tmp_path / "nowhere" / "people.npz")


def _empty() -> Asset:
    zeros = np.zeros((1, 3), np.float32)
    half = np.zeros((1, 1, 3), np.float16)
    return Asset(
        template=zeros,
        shapes=half,
        shape_names=("a",),
        heads=zeros,
        tails=zeros,
        head_shapes=half,
        tail_shapes=half,
        bones=("root",),
        parents=(-1,),
        weights=np.ones((1, 1), np.float32),
        quads={},
        masks=np.zeros((1, 4, 5), np.float16),
        actions=(),
    )
