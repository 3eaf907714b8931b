"""New weights of the same shape go into an engine; anything else is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_fakes import FakeCompiler, prepare

from serve_app.errors import TensorRTEngineError
from serve_app.models.engine_build.compiler import CompilerRefusal
from serve_app.models.engine_build.engine_store import Engine
from serve_app.models.engine_build.graph_identity import prepared_sha256, structure_sha256
from serve_app.models.engine_build.machine import Machine
from serve_app.models.engine_build.model_engine import build_model_engine, find_model_engine
from serve_app.models.engine_build.options import BuildOptions, Refit
from serve_app.models.engine_build.refit import refit_engine
from serve_app.models.store import PreparedModel


def built(model: PreparedModel, machine: Machine, home: Path, refit: Refit) -> Engine:
    options = BuildOptions(refit=refit)
    return build_model_engine(model, machine, slots=8, prefill_chunk=32, options=options, home=home)


def test_other_weights_make_an_engine_of_their_own(
    model: PreparedModel, machine: Machine, compiler: FakeCompiler, home: Path, tmp_path: Path
) -> None:
    engine = built(model, machine, home, "full")
    other = prepare(home, tmp_path / "tuned", scale=2)
    graph = other.path / "decoder.onnx"
    refitted = refit_engine(engine, graph, name="tuned", machine=machine)
    assert compiler.refits == [(engine.plan, graph)]
    assert refitted.path.parent == other.path / "engines"
    assert refitted.manifest.model == "tuned"
    assert refitted.manifest.model_sha256 == prepared_sha256(other)
    assert refitted.manifest.model_sha256 != engine.manifest.model_sha256
    assert find_model_engine(other, machine.environment) == refitted
    refitted.verify()
    engine.verify()


def test_a_stripped_engine_gets_its_weights(
    model: PreparedModel, machine: Machine, home: Path
) -> None:
    stripped = built(model, machine, home, "stripped")
    assert stripped.manifest.needs_weights
    with pytest.raises(
        TensorRTEngineError, match="without its weights, which `parley model refit`"
    ):
        find_model_engine(model, machine.environment)
    whole = refit_engine(stripped, model.path / "decoder.onnx", machine=machine)
    assert not whole.manifest.needs_weights
    assert whole.path != stripped.path
    assert find_model_engine(model, machine.environment) == whole


def test_structure_is_all_but_the_weights(model: PreparedModel, home: Path, tmp_path: Path) -> None:
    graph = model.path / "decoder.onnx"
    scaled = prepare(home, tmp_path / "scaled", scale=3).path / "decoder.onnx"
    longer = prepare(home, tmp_path / "longer", cache_length=32).path / "decoder.onnx"
    assert structure_sha256(scaled) == structure_sha256(graph)
    assert structure_sha256(longer) != structure_sha256(graph)


def test_an_engine_that_was_built_for_good_is_refused(
    model: PreparedModel, machine: Machine, home: Path
) -> None:
    engine = built(model, machine, home, "none")
    with pytest.raises(TensorRTEngineError, match="was built without --refit"):
        refit_engine(engine, model.path / "decoder.onnx", machine=machine)


def test_another_structure_or_machine_is_refused(
    model: PreparedModel, machine: Machine, home: Path, tmp_path: Path
) -> None:
    engine = built(model, machine, home, "full")
    longer = prepare(home, tmp_path / "longer", cache_length=32)
    with pytest.raises(TensorRTEngineError, match="operators, names and shapes must agree"):
        refit_engine(engine, longer.path / "decoder.onnx", machine=machine)
    later = Machine(machine.gpu, FakeCompiler(version="11.5.0.1"))
    with pytest.raises(TensorRTEngineError, match=r"this is 11\.5\.0\.1"):
        refit_engine(engine, model.path / "decoder.onnx", machine=later)


def test_a_refit_that_fails_says_why_and_leaves_nothing(
    model: PreparedModel, machine: Machine, compiler: FakeCompiler, home: Path, tmp_path: Path
) -> None:
    engine = built(model, machine, home, "full")
    other = prepare(home, tmp_path / "tuned", scale=2)
    compiler.refusal = CompilerRefusal(["weights are missing"])
    with pytest.raises(TensorRTEngineError, match="weights are missing"):
        refit_engine(engine, other.path / "decoder.onnx", machine=machine)
    assert not [*(other.path / "engines").glob("sm*")]
