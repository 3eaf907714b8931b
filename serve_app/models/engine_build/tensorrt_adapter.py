"""TensorRT itself, for building: the only lines of the engine build that need a GPU.

Everything that could be decided elsewhere is. Every name in here is checked against NVIDIA's bindings.
"""

from __future__ import annotations

from pathlib import Path
from typing import SupportsInt

import tensorrt as trt

from serve_app.models.engine_build.compiler import (
    BuildRequest,
    CompilerRefusal,
    PhaseListener,
    TimingCacheRefusal,
)
from serve_app.models.engine_build.options import BuildOptions, FlagName, HardwareCompatibility
from serve_app.models.engine_build.profiles import EngineProfile

__all__ = ["TensorRTCompiler"]

_FLAGS: dict[FlagName, trt.BuilderFlag] = {
    "refit": trt.BuilderFlag.REFIT,
    "strip_plan": trt.BuilderFlag.STRIP_PLAN,
    "version_compatible": trt.BuilderFlag.VERSION_COMPATIBLE,
    "weight_streaming": trt.BuilderFlag.WEIGHT_STREAMING,
}
_HARDWARE: dict[HardwareCompatibility, trt.HardwareCompatibilityLevel] = {
    "none": trt.HardwareCompatibilityLevel.NONE,
    "same_compute_capability": trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY,
    "ampere_plus": trt.HardwareCompatibilityLevel.AMPERE_PLUS,
}


class TensorRTCompiler:
    """The `EngineCompiler` that is TensorRT."""

    @property
    def version(self) -> str:
        """See `EngineCompiler`."""
        return trt.__version__

    def build(self, request: BuildRequest, listener: PhaseListener) -> bytes:
        """See `EngineCompiler`."""
        log = _Log()
        builder = trt.Builder(log)
        network = builder.create_network()  # strongly typed, as all of TensorRT 11's
        parser = trt.OnnxParser(network, log)
        if not parser.parse_from_file(str(request.graph)):
            faults = [parser.get_error(number) for number in range(parser.num_errors)]
            raise CompilerRefusal([f"{fault.node_name()}: {fault.desc()}" for fault in faults])
        config = builder.create_builder_config()
        _configure(config, request.options)
        for wanted in request.profiles:
            _add_profile(builder, config, wanted, log)
        cache = config.create_timing_cache(request.timing_cache)
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            raise TimingCacheRefusal(log.errors)
        monitor = _Monitor(listener)
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise CompilerRefusal(log.errors)
        request.plan.write_bytes(plan)
        return bytes(config.get_timing_cache().serialize())

    def refit(self, plan: Path, graph: Path, refitted: Path) -> None:
        """See `EngineCompiler`."""
        log = _Log()
        engine = trt.Runtime(log).deserialize_cuda_engine(plan.read_bytes())
        if engine is None:
            raise CompilerRefusal(log.errors)
        refitter = trt.OnnxParserRefitter(trt.Refitter(engine, log), log)
        if not refitter.refit_from_file(str(graph)):
            faults = [refitter.get_error(number) for number in range(refitter.num_errors)]
            raise CompilerRefusal([fault.desc() for fault in faults] or log.errors)
        config = engine.create_serialization_config()
        config.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
        config.set_flag(trt.SerializationFlag.INCLUDE_REFIT)
        refitted.write_bytes(engine.serialize_with_config(config))


def _configure(config: trt.IBuilderConfig, options: BuildOptions) -> None:
    config.builder_optimization_level = options.optimization_level
    config.hardware_compatibility_level = _HARDWARE[options.hardware_compatibility]
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    for name in options.flags:
        config.set_flag(_FLAGS[name])
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)


def _add_profile(
    builder: trt.Builder, config: trt.IBuilderConfig, wanted: EngineProfile, log: _Log
) -> None:
    profile = builder.create_optimization_profile()
    for name, shapes in wanted.inputs.items():
        profile.set_shape(
            name, trt.Dims(shapes.least), trt.Dims(shapes.tuned), trt.Dims(shapes.most)
        )
    if config.add_optimization_profile(profile) < 0:
        raise CompilerRefusal([f"the profile {wanted.name} doesn't fit the graph", *log.errors])


class _Log(trt.ILogger):
    """Keeps what goes wrong, for whoever must be told."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
            self.errors.append(msg)


class _Monitor(trt.IProgressMonitor):
    """Hands the phases on."""

    def __init__(self, listener: PhaseListener) -> None:
        trt.IProgressMonitor.__init__(self)
        self._listener = listener

    def phase_start(
        self, phase_name: str, parent_phase: str | None, num_steps: SupportsInt
    ) -> None:
        self._listener.phase_started(phase_name, parent_phase, int(num_steps))

    def step_complete(self, phase_name: str, step: SupportsInt) -> bool:
        return self._listener.step_completed(phase_name, int(step))

    def phase_finish(self, phase_name: str) -> None:
        self._listener.phase_finished(phase_name)
