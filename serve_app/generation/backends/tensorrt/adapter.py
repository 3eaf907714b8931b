"""TensorRT and CUDA behind the interface: the only lines of the runtime that need a GPU.

Everything that could be decided elsewhere is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tensorrt as trt
import torch

from serve_app.errors import TensorRTEngineError
from serve_app.generation.backends.tensorrt.device import DeviceFault, Stream

__all__ = ["CudaDevice"]


class CudaDevice:
    """The `Device` that is the first GPU which this process sees.

    Args:
        host_code: whether engines may run code of their own on the host, as version compatible ones do.
    """

    def __init__(self, *, host_code: bool = False) -> None:
        self._device = torch.device("cuda", 0)
        self._log = _Log()
        self._runtime = trt.Runtime(self._log)
        self._runtime.engine_host_code_allowed = host_code

    def free_bytes(self) -> int:
        """See `Device`."""
        free, _ = torch.cuda.mem_get_info(self._device)
        return free

    def total_bytes(self) -> int:
        """See `Device`."""
        _, total = torch.cuda.mem_get_info(self._device)
        return total

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """See `Device`."""
        tensor = torch.zeros(shape, dtype=dtype, device=self._device)
        # It was cleared on another stream than the one that is going to use it.
        torch.cuda.synchronize(self._device)
        return tensor

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """See `Device`."""
        return torch.zeros(shape, dtype=dtype, pin_memory=True)

    def stream(self) -> _Stream:
        """See `Device`."""
        return _Stream(torch.cuda.Stream(self._device))

    def load_engine(self, path: Path) -> _Engine:
        """See `Device`."""
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            msg = (
                f"TensorRT can't load {path} ({'; '.join(self._log.errors)}); build it anew with "
                "`parley model build --rebuild`."
            )
            raise TensorRTEngineError(msg)
        return _Engine(engine, self._log)


class _Stream:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream = stream

    def launch(self, work: Callable[[], None]) -> None:
        with torch.cuda.stream(self.stream):
            work()

    def copy_to_host(self, host: torch.Tensor, source: torch.Tensor) -> None:
        with torch.cuda.stream(self.stream):
            host.copy_(source, non_blocking=True)

    def copy_to_device(self, target: torch.Tensor, host: torch.Tensor) -> None:
        with torch.cuda.stream(self.stream):
            target.copy_(host, non_blocking=True)

    def record(self) -> _Event:
        event = torch.cuda.Event()
        event.record(self.stream)
        return _Event(event)

    def capture(self, work: Callable[[], None]) -> _Graph:
        # What TensorRT puts off until a context's first run must not become part of the graph.
        work()
        self.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            work()
        return _Graph(graph, self.stream)

    def synchronize(self) -> None:
        self.stream.synchronize()


class _Event:
    def __init__(self, event: torch.cuda.Event) -> None:
        self._event = event

    def wait(self) -> None:
        self._event.synchronize()


class _Graph:
    def __init__(self, graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> None:
        self._graph = graph
        self._stream = stream

    def replay(self) -> None:
        with torch.cuda.stream(self._stream):
            self._graph.replay()


class _Engine:
    def __init__(self, engine: trt.ICudaEngine, log: _Log) -> None:
        self._engine = engine
        self._log = log

    def get_tensor_profile_shape(
        self, name: str, profile: int
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        least, tuned, most = self._engine.get_tensor_profile_shape(name, profile)
        return _sizes(least), _sizes(tuned), _sizes(most)

    @property
    def streamable_weights_size(self) -> int:
        return self._engine.streamable_weights_size

    @property
    def weights_bytes(self) -> int:
        return self._engine.get_engine_stat(trt.EngineStat.TOTAL_WEIGHTS_SIZE)

    def set_weight_streaming_budget_v2(self, size: int) -> None:
        self._engine.weight_streaming_budget_v2 = size
        if self._engine.weight_streaming_budget_v2 != size:
            raise DeviceFault("; ".join(self._log.errors))

    def activation_bytes(self, profile: int) -> int:
        return self._engine.get_device_memory_size_for_profile_v2(profile)

    def create_execution_context(
        self, profile: int, activations: torch.Tensor, stream: Stream
    ) -> _Context:
        assert isinstance(stream, _Stream)  # noqa: S101 - a device's streams are its own
        context = self._engine.create_execution_context(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if context is None:
            raise DeviceFault("; ".join(self._log.errors))
        created = _Context(context, stream, self._log)
        created.require(context.set_optimization_profile_async(profile, stream.stream.cuda_stream))
        stream.synchronize()
        context.set_device_memory(activations.data_ptr(), activations.nbytes)
        return created


class _Context:
    def __init__(self, context: trt.IExecutionContext, stream: _Stream, log: _Log) -> None:
        self._context = context
        self._stream = stream
        self._log = log

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.require(self._context.set_input_shape(name, shape))

    def set_tensor_address(self, name: str, address: int) -> None:
        self.require(self._context.set_tensor_address(name, address))

    def execute_async_v3(self) -> None:
        self.require(self._context.execute_async_v3(self._stream.stream.cuda_stream))

    def require(self, done: bool) -> None:
        if not done:
            raise DeviceFault("; ".join(self._log.errors))


def _sizes(dims: trt.Dims) -> tuple[int, ...]:
    return tuple(dims[place] for place in range(len(dims)))


class _Log(trt.ILogger):
    """Keeps what goes wrong, for whoever must be told."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
            self.errors.append(msg)
