"""A machine whose GPU is simulated: what builds engines there, and what they run on."""

from __future__ import annotations

from pathlib import Path

import onnx

from serve_app.gpu.driver import Gpu
from serve_app.models.engine_build.compiler import BuildRequest, PhaseListener
from serve_app.models.engine_build.machine import Machine


class CopyingCompiler:
    """A TensorRT whose plan is the graph with its weights, which the simulated device loads."""

    version = "11.4.0.106"

    def build(self, request: BuildRequest, listener: PhaseListener) -> bytes:
        whole = request.options.refit != "stripped"
        onnx.save(onnx.load(request.graph, load_external_data=whole), request.plan)
        return request.timing_cache + b"measured"

    def refit(self, plan: Path, graph: Path, refitted: Path) -> None:
        onnx.save(onnx.load(graph), refitted)


def simulated_machine(*, memory_bytes: int = 1 << 30) -> Machine:
    """Return a machine with a simulated GPU."""
    return Machine(Gpu("simulated", (9, 0), memory_bytes), CopyingCompiler())
