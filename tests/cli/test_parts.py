"""Settings as the packages of a server receive them."""

from __future__ import annotations

from pathlib import Path

import pytest

from echo_rtc.cli.parts import access_of, log_options, manager_options, network_of, output_options, recording_options
from echo_rtc.errors import SettingsError
from echo_rtc.settings import Settings

MIB = 1024 * 1024


def test_sizes_are_bytes() -> None:
    settings = Settings(recording_dir=Path("r"), max_recording_size=1.5, min_free_disk=2, log_file_size=0.25)
    options = recording_options(settings)
    assert options is not None
    assert (options.limits.most_bytes, options.limits.least_free_bytes) == (3 * MIB // 2, 2 * MIB)
    assert log_options(settings).file_bytes == MIB // 4


def test_what_has_no_place_is_off() -> None:
    settings = Settings()
    assert recording_options(settings) is None
    assert output_options(settings, network_of(settings)) is None
    with pytest.raises(SettingsError, match="output_host"):
        output_options(Settings(output_host=("https://",)), network_of(settings))


def test_each_limit_has_a_setting_of_its_own() -> None:
    settings = Settings(
        max_offers_per_minute=1, max_texts_per_minute=2, max_peers_per_address=3, max_streams=4, max_peers_per_stream=5
    )
    limits = access_of(settings).limits
    assert (limits.offers_per_minute, limits.texts_per_minute, limits.peers) == (1, 2, 3)
    manager = manager_options(settings, network_of(settings))
    assert (manager.max_streams, manager.max_peers) == (4, 5)
