"""The GPU and the TensorRT that engines are built with."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.errors import GpuUnavailable, TensorRTUnavailable
from serve_app.gpu.driver import Gpu, read_driver
from serve_app.gpu.tensorrt_package import require_supported, tensorrt_version
from serve_app.models.engine_build.compiler import EngineCompiler
from serve_app.models.engine_build.engine_manifest import EngineEnvironment, GpuArchitecture

__all__ = ["Machine", "open_machine"]


@dataclass(frozen=True, slots=True)
class Machine:
    """What engines are built with.

    Attributes:
        gpu: the GPU that TensorRT takes, the first that this process sees.
        compiler: TensorRT.
    """

    gpu: Gpu
    compiler: EngineCompiler

    @property
    def environment(self) -> EngineEnvironment:
        """What an engine must fit to run here."""
        return EngineEnvironment(self.compiler.version, GpuArchitecture.of(self.gpu))


def open_machine() -> Machine:
    """Find the GPU and TensorRT of this machine.

    Raises:
        GpuUnavailable: there is no driver, or no GPU.
        TensorRTUnavailable: TensorRT is not there or not whole, or has nothing for the GPU.
    """
    try:
        gpu = read_driver().gpus[0]
    except GpuUnavailable as error:
        raise GpuUnavailable(f"{error.message}{_tensorrt_too()}") from error
    require_supported(gpu)
    tensorrt_version()
    from serve_app.models.engine_build.tensorrt_adapter import TensorRTCompiler

    return Machine(gpu, TensorRTCompiler())


def _tensorrt_too() -> str:
    """Say what TensorRT lacks, for whoever lacks a GPU as well: all of it is to be got at once."""
    try:
        tensorrt_version()
    except TensorRTUnavailable as error:
        return f" {error.message}"
    return ""
