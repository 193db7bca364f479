"""The engine that settings ask for, and what its workers are told."""

from __future__ import annotations

import os
import pickle
from dataclasses import asdict, replace
from pathlib import Path

from echo_rtc.engine.factory import create_engine, worker_spec, worker_specs
from echo_rtc.engine.local import LocalEngine
from echo_rtc.engine.testcard import TestCardEngine
from echo_rtc.engine.worker import CPU_NICENESS, ModelLoader
from echo_rtc.model.options import ModelOptions
from echo_rtc.settings import Settings

MODEL = ModelOptions(
    steps=3,
    cfg=1.5,
    guided_steps=2,
    audio_margin=4,
    audio_model_type="wav2vec2",
    dtype="bfloat16",
    low_ram=True,
    kernels="torch",
    attention="sdpa",
    cuda_graphs=False,
    compile_unet=True,
    compile_unet_mode="max-autotune",
    quantize_fp8=True,
    quantize_fp8_mode="weight-only",
    vae="tiny",
)


def settings(engine: str, tmp_path: Path) -> Settings:
    return Settings(
        engine=engine,  # type: ignore[arg-type]
        devices="cpu",
        config=tmp_path / "set-up.yaml",
        reference_image=tmp_path / "face.png",
        pose_dir=tmp_path / "poses",
        width=256,
        height=192,
        use_init_latent=False,
        **asdict(MODEL),
        compile_cache=tmp_path / "cache",
        keep_idle_loops=False,
        model={"weights": "weights"},
    )


def test_the_test_card() -> None:
    engine = create_engine(Settings(engine="testcard", width=320, height=240))
    assert isinstance(engine, TestCardEngine)
    assert (engine.format.width, engine.format.height) == (320, 240)


def test_the_local_engine_and_everything_its_worker_is_told(tmp_path: Path) -> None:
    chosen = settings("local", tmp_path)
    engine = create_engine(chosen)
    assert isinstance(engine, LocalEngine)
    assert engine.format == chosen.clip_format
    (spec,) = worker_specs(chosen)
    assert (spec.name, spec.niceness) == ("cpu", CPU_NICENESS)
    assert spec.other_steps == (), "three steps are fewer than --min-steps"
    assert worker_specs(replace(chosen, steps=6, min_steps=4))[0].other_steps == (4, 5)
    assert worker_spec(replace(chosen, steps=6, min_steps=4), "ray-0", "cuda:0").other_steps == (4, 5)
    loader = pickle.loads(pickle.dumps(spec.loader))  # as it travels to the worker
    assert loader == ModelLoader(
        model={"weights": "weights"},
        model_base=tmp_path,
        reference_image=tmp_path / "face.png",
        pose_dir=tmp_path / "poses",
        format=chosen.clip_format,
        device="cpu",
        options=MODEL,
        use_init_latent=False,
        compile_cache=tmp_path / "cache",
        keep_idle_loops=False,
    )


def test_niceness_is_one_that_a_process_may_have() -> None:
    assert 0 < CPU_NICENESS <= 19 - os.nice(0)
