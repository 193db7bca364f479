"""``python -m echo_rtc.bench.support.random_server``: ``echo-rtc serve`` with networks of the published sizes and
random weights instead of files, to measure set-ups whose weights are not there."""

from __future__ import annotations

import sys
from dataclasses import replace

from echo_rtc.bench.engine import RandomLoader
from echo_rtc.cli.serve import main
from echo_rtc.engine.factory import worker_specs
from echo_rtc.engine.worker import ModelLoader, WorkerSpec
from echo_rtc.errors import SettingsError
from echo_rtc.settings import Settings


def random_specs(settings: Settings) -> list[WorkerSpec]:
    """The workers of the settings, without files. Blocks while it looks for devices. Raises SettingsError for another
    engine than the local one."""
    if settings.engine != "local":
        raise SettingsError(f"engine is {settings.engine}, but random weights are for the local engine; leave it out")
    specs = []
    for spec in worker_specs(settings):
        assert isinstance(spec.loader, ModelLoader)
        specs.append(replace(spec, loader=RandomLoader.of(spec.loader)))
    return specs


if __name__ == "__main__":
    sys.exit(main(specs=random_specs))
