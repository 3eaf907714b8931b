"""Engines on a GPU: built, with weights on the host, and refitted. Skipped without one."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_driver import request
from models_on_a_gpu import SLOTS, ModelsOnGpu, asked, replies

from serve_app.errors import TensorRTEngineError
from serve_app.models.decoder_interface import GRAPH_FILE
from serve_app.models.engine_build.model_engine import find_model_engine
from serve_app.models.engine_build.options import BuildOptions
from serve_app.models.engine_build.refit import refit_engine


def test_an_engine_says_what_it_was_built_for_and_is_found_again(gpu: ModelsOnGpu) -> None:
    model = gpu.prepared()
    engine = gpu.built(model)
    assert engine.manifest.tensorrt == gpu.machine.compiler.version
    assert engine.manifest.gpu.name == gpu.machine.gpu.name
    assert gpu.built(model) == engine
    assert find_model_engine(model, gpu.machine.environment) == engine


def test_a_second_build_takes_what_the_first_has_measured(gpu: ModelsOnGpu) -> None:
    gpu.built(gpu.prepared(name="first"))
    (cache,) = (gpu.home / "timing-caches").glob("*.bin")
    measured = cache.read_bytes()
    assert measured
    gpu.built(gpu.prepared(name="second"))
    assert len(cache.read_bytes()) >= len(measured)


def test_what_every_step_reads_from_the_host_computes_the_same(gpu: ModelsOnGpu) -> None:
    model = gpu.prepared(name="streamed")
    gpu.built(model, BuildOptions(weight_streaming=True))
    expected = replies(gpu.on_cpu("streamed"), asked())
    all_on_the_host = gpu.opened(model, gpu_weights_mb=0)
    assert replies(all_on_the_host, asked(), slots=SLOTS) == expected
    assert all_on_the_host.streamed_bytes > 0
    as_many_as_fit = gpu.opened(model)
    assert replies(as_many_as_fit, asked(), slots=SLOTS) == expected
    assert as_many_as_fit.streamed_bytes == 0


def test_an_engine_with_other_weights_computes_the_other_model(gpu: ModelsOnGpu) -> None:
    engine = gpu.built(gpu.prepared(name="original"), BuildOptions(refit="full"))
    tuned = gpu.prepared(name="tuned")
    refit_engine(engine, tuned.path / GRAPH_FILE, machine=gpu.machine)
    expected = replies(gpu.on_cpu("tuned"), asked())
    assert expected != replies(gpu.on_cpu("original"), asked())
    assert replies(gpu.opened(tuned), asked(), slots=SLOTS) == expected


def test_a_stripped_engine_runs_once_it_has_its_weights(gpu: ModelsOnGpu, tmp_path: Path) -> None:
    model = gpu.prepared(name="stripped")
    engine = gpu.built(model, BuildOptions(refit="stripped"))
    assert engine.plan.stat().st_size < (model.path / "decoder.onnx.data").stat().st_size
    with pytest.raises(TensorRTEngineError, match="refit"):
        gpu.opened(model)
    refit_engine(engine, model.path / GRAPH_FILE, machine=gpu.machine)
    each = request(tuple(range(5, 30)), max_tokens=20)
    (expected,) = replies(gpu.on_cpu("stripped"), [each])
    assert replies(gpu.opened(model), [each], slots=SLOTS) == [expected]
