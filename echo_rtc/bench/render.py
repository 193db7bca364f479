"""How fast the model renders, and what it costs: ``python -m echo_rtc.bench render [settings]``.

Renders clips one after the other as a worker does for a speaking stream (same loader, same threads, each clip chained
to the one before), in this process. Every setting of the server is a flag here too; the default is the embedded model.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from dataclasses import dataclass, field, replace

import numpy as np

from echo_rtc.bench.support.report import report
from echo_rtc.clips import ClipFormat, F32Array
from echo_rtc.engine.arrivals import Arrivals
from echo_rtc.engine.factory import worker_specs
from echo_rtc.engine.worker import Choosing, Renderer
from echo_rtc.errors import SettingsError
from echo_rtc.rendering import RenderRequest
from echo_rtc.settings import SettingsParser, settings_from

WARM_UP_CLIPS = 2
"""Clips rendered first and not counted: kernels are chosen and memory is taken at the first."""


@dataclass
class Measured:
    """What each clip took: wall clock and processor time (s, all threads), and its stages (ms). ``shown_s``: after how
    long it could be shown, because the rest of its frames came in time."""

    wall_s: list[float] = field(default_factory=list)
    shown_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    stages_ms: list[dict[str, float]] = field(default_factory=list)

    def stage_ms(self, stage: str) -> float:
        return statistics.median(clip[stage] for clip in self.stages_ms)


def measure(renderer: Renderer, clip: ClipFormat, clips: int) -> Measured:
    """Renders ``clips`` chained clips and measures each, after the warm-up and what a worker does ahead in pauses."""
    while renderer.work_ahead():
        pass
    request = RenderRequest(renderer.avatars[0], _voice(clip), clip.clip_frames, pose_position=0, seed=0)
    measured = Measured()
    for index in range(WARM_UP_CLIPS + clips):
        arrivals = Arrivals(clip, request, lambda frames: None, time.perf_counter)
        arrivals.begin()
        wall, cpu = time.perf_counter(), time.process_time()
        result = renderer.render(request, renderer.prepare(request), arrivals.take)
        arrivals.note(result.frames)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        request = replace(
            request,
            pose_position=request.pose_position + clip.clip_frames,
            seed=request.seed + 1,
            init_latent=result.final_latent,
        )
        if index >= WARM_UP_CLIPS:
            measured.wall_s.append(wall)
            measured.shown_s.append(arrivals.need_s)
            measured.cpu_s.append(cpu)
            measured.stages_ms.append(result.stages_ms)
    return measured


def _voice(clip: ClipFormat) -> F32Array:
    """A window of sound (history and clip) as loud as speech; what is said costs no more or less."""
    samples = round(clip.history_s * clip.sample_rate) + clip.sample_of_frame(clip.clip_frames, clip.sample_rate)
    sound: F32Array = np.random.default_rng(0).normal(0.0, 0.1, samples).astype(np.float32)
    return sound


def main(argv: list[str]) -> int:
    """Prints the median time of each stage, and fps, shown_ms, cpu_share and stages_ms as JSON.

    ``cpu_share`` is processor seconds per second of video, over all cores of the machine.
    """
    parser = SettingsParser("python -m echo_rtc.bench render", "Measures how fast the model renders.")
    parser.add_argument("--clips", type=int, default=10, help="clips that are measured [10]")
    arguments = parser.arguments(argv)
    if arguments.clips < 1:
        raise SettingsError(f"--clips is {arguments.clips}; at least one must be measured")
    settings = settings_from(arguments, os.environ)
    if settings.engine != "local":
        raise SettingsError(f"engine is {settings.engine}; only the local engine has a model to measure")
    spec = worker_specs(settings)[0]
    renderer = spec.loader(_progress)
    if isinstance(renderer, Choosing) and renderer.notice:
        _progress(renderer.notice)
    clip = settings.clip_format
    measured = measure(renderer, clip, arguments.clips)
    stages = {name: measured.stage_ms(name) for name in measured.stages_ms[0]}
    wall_s, cpu_s = statistics.median(measured.wall_s), statistics.median(measured.cpu_s)
    duration_s = float(clip.clip_duration)
    cores = os.cpu_count() or 1
    rows = [(name, value, value / clip.clip_frames) for name, value in stages.items()]
    shown_ms = 1000 * statistics.median(measured.shown_s)
    rows.append(("whole clip", 1000 * wall_s, 1000 * wall_s / clip.clip_frames))
    rows.append(("until it can be shown", shown_ms, shown_ms / clip.clip_frames))
    figures = {
        "fps": round(clip.clip_frames / wall_s, 2),
        "shown_ms": round(shown_ms, 1),
        "cpu_share": round(cpu_s / duration_s / cores, 3),
        "stages_ms": {name: round(value, 1) for name, value in stages.items()},
        "device": spec.name,
        "dtype": settings.dtype,
        "size": f"{clip.width}x{clip.height}",
        "steps": settings.steps,
        "cfg": settings.cfg,
    }
    report(("stage", "ms a clip", "ms a frame"), rows, figures)
    return 0


def _progress(line: str) -> None:
    sys.stderr.write(f"{line}\n")
