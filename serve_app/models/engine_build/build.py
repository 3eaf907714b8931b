"""Build the TensorRT engine of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import serve_app
from serve_app.errors import TensorRTEngineError
from serve_app.models.checkpoint import Progress, no_progress
from serve_app.models.engine_build.compiler import BuildRequest, TimingCacheRefusal
from serve_app.models.engine_build.engine_manifest import (
    ENGINE_FORMAT_VERSION,
    EngineManifest,
    no_plan,
)
from serve_app.models.engine_build.engine_store import Engine, EngineStore
from serve_app.models.engine_build.graph_identity import content_sha256, structure_sha256
from serve_app.models.engine_build.machine import Machine, open_machine
from serve_app.models.engine_build.options import BuildOptions
from serve_app.models.engine_build.profiles import EngineProfile
from serve_app.models.engine_build.progress import BuildProgress
from serve_app.models.engine_build.timing_cache import TimingCacheFile
from serve_app.models.engine_build.writing import write_engine
from serve_app.models.tensorrt_lint import lint_graph
from serve_app.settings import parley_home

__all__ = ["build_engine"]

_SHOWN_OFFENCES = 3


def build_engine(
    onnx_path: Path,
    *,
    profiles: Sequence[EngineProfile],
    options: BuildOptions | None = None,
    store: Path | None = None,
    home: Path | None = None,
    name: str | None = None,
    sha256: str | None = None,
    machine: Machine | None = None,
    rebuild: bool = False,
    progress: Progress = no_progress,
) -> Engine:
    """Return the TensorRT engine of a graph for this machine, building it where it isn't there yet.

    Networks are strongly typed: precision is in the graph. An engine is there if one in the store was
    built from this very graph, with these profiles and options, by this TensorRT on this kind of GPU.
    Whoever builds the same one at the same time, on another machine too, is waited for.

    Args:
        onnx_path: an .onnx file, its data files beside it.
        profiles: the optimization profiles, see `decoder_profiles`.
        options: how to build; None takes the defaults.
        store: folder that several machines share engines through; None keeps them beside the graph.
        home: folder that keeps timing caches; None takes PARLEY_HOME.
        name: name of the model, for the manifest; None takes the file's.
        sha256: the graph's `content_sha256` where that is known; None reads the files.
        machine: GPU and TensorRT; None takes this machine's.
        rebuild: build even if the engine is there.
        progress: told of stages, in bytes or thousandths.

    Returns:
        The engine, whole on the disk.

    Raises:
        GpuUnavailable: there is no GPU.
        TensorRTUnavailable: there is no TensorRT, or none for this GPU.
        TensorRTEngineError: the graph can't be read or built, or the options contradict each other.
            Nothing half-written is left.
    """
    machine = machine or open_machine()
    options = options or BuildOptions()
    options.require_possible(machine.gpu.compute_capability)
    sha256 = sha256 or content_sha256(onnx_path, progress)
    environment = machine.environment
    draft = EngineManifest(
        format_version=ENGINE_FORMAT_VERSION,
        model=name or onnx_path.stem,
        model_sha256=sha256,
        structure_sha256=structure_sha256(onnx_path),
        tensorrt=environment.tensorrt,
        gpu=environment.gpu,
        options=options,
        profiles=tuple(profiles),
        plan=no_plan(),
        created=0,
        parley=serve_app.__version__,
    )
    cache = TimingCacheFile(
        home or parley_home(), gpu=environment.gpu.name, tensorrt=environment.tensorrt
    )

    def compile_plan(plan: Path) -> None:
        _require_parsable(onnx_path)
        with cache.held(progress):
            cache.write(_compile(onnx_path, plan, machine, draft, cache.read(), progress))

    where = EngineStore.of(onnx_path.parent, sha256, store)
    return write_engine(where, draft, compile_plan, reuse=not rebuild, progress=progress)


def _compile(
    graph: Path,
    plan: Path,
    machine: Machine,
    draft: EngineManifest,
    timing_cache: bytes,
    progress: Progress,
) -> bytes:
    """Build the plan and return the new timing cache; a cache that TensorRT refuses is begun anew."""
    request = BuildRequest(graph, plan, draft.profiles, draft.options, timing_cache)
    listener = BuildProgress(progress)
    progress("reading the graph", 0, 0)
    try:
        return machine.compiler.build(request, listener)
    except TimingCacheRefusal:
        if not timing_cache:
            raise
        return _compile(graph, plan, machine, draft, b"", progress)
    finally:
        listener.raise_interruption()


def _require_parsable(graph: Path) -> None:
    offences = lint_graph(graph)
    if offences:
        shown = " ".join(str(offence) for offence in offences[:_SHOWN_OFFENCES])
        msg = (
            f"TensorRT's parser would not take {graph}, for {len(offences)} reasons. {shown} "
            "`parley model lint` shows all; `parley model prepare --form standard` writes a graph "
            "that it should take."
        )
        raise TensorRTEngineError(msg)
