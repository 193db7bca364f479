"""Makes the engine that the settings ask for. Starts nothing and loads nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from echo_rtc.engine.devices import resolve_devices
from echo_rtc.engine.fleet import FleetOptions
from echo_rtc.engine.local import LocalEngine
from echo_rtc.engine.ray_environment import RayOptions, prepare_environment
from echo_rtc.engine.testcard import TestCardEngine
from echo_rtc.engine.worker import CPU_NICENESS, ModelLoader, WorkerSpec
from echo_rtc.errors import SettingsError
from echo_rtc.model.options import ModelOptions
from echo_rtc.model.quality import AUTO, RUNGS
from echo_rtc.rendering import Engine
from echo_rtc.settings import Settings

MakeSpecs = Callable[[Settings], Sequence[WorkerSpec]]
"""Which workers the local engine has with these settings. May block, and raise SettingsError."""


def create_engine(settings: Settings, specs: MakeSpecs | None = None) -> Engine:
    """The engine of ``settings.engine``, to be started in the loop that will use it; the local one has workers of
    ``specs``, which are those of :func:`worker_specs` if it is None."""
    if settings.engine == "testcard":
        return TestCardEngine(settings.clip_format, options=fleet_options(settings))
    if settings.engine == "ray":
        return _ray_engine(settings)
    make_specs = specs or worker_specs
    return LocalEngine(settings.clip_format, lambda: make_specs(settings), fleet_options(settings))


def fleet_options(settings: Settings) -> FleetOptions:
    """How workers of any kind are driven."""
    return FleetOptions(
        render_timeout_s=settings.render_timeout,
        use_init_latent=settings.use_init_latent,
        overlap_frames=min(settings.overlap_frames, settings.clip_frames, settings.clip_format.history_frames),
        steps=settings.steps,
        min_steps=settings.min_steps,
        avatar_name=settings.avatar_name,
    )


def worker_specs(settings: Settings) -> list[WorkerSpec]:
    """One worker per device. Blocks while it looks for devices; raises SettingsError if one is not there, or if the
    quality is still to be found out, as :func:`echo_rtc.engine.ladder.settled` does."""
    if settings.quality == AUTO:
        raise SettingsError(f"quality is auto, which is for live streams; name one of {', '.join(RUNGS)}")
    return [worker_spec(settings, device, device) for device in resolve_devices(settings.devices)]


def worker_spec(settings: Settings, name: str, device: str, cores: float | None = None) -> WorkerSpec:
    """The worker of this name on a device, limited to ``cores`` processor cores (None: all)."""
    return WorkerSpec(
        name,
        _loader(settings, device, cores),
        niceness=CPU_NICENESS if device == "cpu" else 0,
        other_steps=tuple(range(min(settings.min_steps, settings.steps), settings.steps)),
    )


def _ray_engine(settings: Settings) -> Engine:
    """Raises SettingsError where Ray is not installed."""
    options = RayOptions(settings.ray_address or "", settings.devices, settings.ray_workers)
    prepare_environment(options.address)
    try:
        from echo_rtc.engine.ray_engine import RayEngine
    except ImportError as error:
        raise SettingsError(
            f'engine is ray, but Ray cannot be imported ({error}); install it with pip install "echo-rtc[ray]", or '
            "choose --engine local"
        ) from error

    return RayEngine(settings.clip_format, partial(worker_spec, settings), options, fleet_options(settings))


def _loader(settings: Settings, device: str, cores: float | None) -> ModelLoader:
    return ModelLoader(
        model=dict(settings.model),
        model_base=settings.model_base,
        avatar_name=settings.avatar_name,
        reference_image=settings.reference_image,
        pose_dir=settings.pose_dir,
        idle_pose_dir=settings.idle_pose_dir,
        format=settings.clip_format,
        device=device,
        options=ModelOptions.of(settings),
        use_init_latent=settings.use_init_latent,
        compile_cache=settings.compile_cache,
        keep_idle_loops=settings.keep_idle_loops,
        cores=cores,
    )
