"""Put other weights of the same shape into an engine, in seconds instead of minutes."""

from __future__ import annotations

from pathlib import Path

from serve_app.errors import TensorRTEngineError
from serve_app.models.checkpoint import Progress, no_progress
from serve_app.models.engine_build.engine_store import Engine, EngineStore
from serve_app.models.engine_build.graph_identity import content_sha256, structure_sha256
from serve_app.models.engine_build.machine import Machine, open_machine
from serve_app.models.engine_build.writing import write_engine

__all__ = ["refit_engine"]


def refit_engine(
    engine: Engine,
    onnx_path: Path,
    *,
    store: Path | None = None,
    name: str | None = None,
    machine: Machine | None = None,
    progress: Progress = no_progress,
) -> Engine:
    """Put the weights of a graph into an engine that was built from one of the same structure.

    A stripped engine gets its weights so too.

    Args:
        engine: built with `refit`.
        onnx_path: an .onnx file, its data files beside it.
        store: folder that several machines share engines through; None keeps them beside the graph.
        name: name of the new model, for the manifest; None keeps the engine's.
        machine: GPU and TensorRT; None takes this machine's.
        progress: told of stages.

    Returns:
        A new engine that holds its weights and can be refitted again.

    Raises:
        GpuUnavailable: there is no GPU.
        TensorRTUnavailable: there is no TensorRT, or none for this GPU.
        TensorRTEngineError: the engine can't be refitted, the graph's structure is another, or the
            engine doesn't run here.
    """
    old = engine.manifest
    if old.options.refit == "none":
        msg = (
            f"{engine.path} was built without --refit: build an engine of {onnx_path}, with --refit "
            "full if its weights shall be replaced later."
        )
        raise TensorRTEngineError(msg)
    machine = machine or open_machine()
    engine.require_fit(old.model_sha256, machine.environment, to_run=False)
    engine.verify(progress)
    if structure_sha256(onnx_path) != old.structure_sha256:
        msg = (
            f"{onnx_path} is not of the structure that {engine.path} was built from: operators, names "
            "and shapes must agree. `parley model build` builds an engine of its own."
        )
        raise TensorRTEngineError(msg)
    sha256 = content_sha256(onnx_path, progress)
    draft = old.model_copy(
        update={
            "model": name or old.model,
            "model_sha256": sha256,
            "options": old.options.model_copy(update={"refit": "full"}),
        }
    )

    def compile_plan(plan: Path) -> None:
        progress("refitting", 0, 0)
        machine.compiler.refit(engine.plan, onnx_path, plan)

    where = EngineStore.of(onnx_path.parent, sha256, store)
    return write_engine(where, draft, compile_plan, reuse=False, progress=progress)
