"""A GPU that isn't there: the graph on ONNX Runtime, in host memory, as late as a GPU might be.

Nothing that is enqueued happens before somebody waits for it, and then in order, so that whoever reads
too early, or changes what has yet to be read, gets other results than he wants. Pinned memory that a
copy is on its way to holds poison. Addresses, shapes and alignment are checked as TensorRT checks them,
or ought to.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from serve_app.errors import TensorRTEngineError
from serve_app.generation.backends.tensorrt.device import ALIGNMENT, DeviceFault, Stream
from serve_app.models.engine_build.profiles import EngineProfile, ShapeRange

__all__ = ["SimulatedDevice"]

Work = Callable[[], None]

_TYPES = {
    "tensor(int64)": np.int64,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}


class SimulatedDevice:
    """Stands in for a GPU, and for TensorRT on it.

    Args:
        profiles: what engines that are loaded here were built with; their "plan" is the .onnx file.
        memory_bytes: memory that it pretends to have.
        activation_bytes: memory that each profile pretends to work in.
        streamable_bytes: weights that its engines pretend to be able to leave on the host.
        weights_bytes: weights that its engines pretend to hold beside those.

    Attributes:
        launched: pieces of work that were done.
        fail_at: number of the piece of work that fails, or None; all that come after it fail too.
    """

    def __init__(
        self,
        profiles: Sequence[EngineProfile],
        *,
        memory_bytes: int = 1 << 30,
        activation_bytes: int = 1 << 20,
        streamable_bytes: int = 0,
        weights_bytes: int = 0,
    ) -> None:
        self.launched = 0
        self.fail_at: int | None = None
        self._profiles = profiles
        self._memory_bytes = memory_bytes
        self._activation_bytes = activation_bytes
        self._streamable_bytes = streamable_bytes
        self._weights_bytes = weights_bytes
        self._allocations: list[torch.Tensor] = []
        self._engines: list[_Engine] = []

    def free_bytes(self) -> int:
        """See `Device`."""
        taken = sum(memory.nbytes for memory in self._allocations)
        weights = sum(self._weights_bytes + each.resident_bytes for each in self._engines)
        return self._memory_bytes - taken - weights

    def total_bytes(self) -> int:
        """See `Device`."""
        return self._memory_bytes

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """See `Device`."""
        size = math.prod(shape) * dtype.itemsize
        if size > self.free_bytes():
            msg = f"out of memory: {size} bytes are wanted, {self.free_bytes()} are free"
            raise DeviceFault(msg)
        memory = torch.zeros(size + ALIGNMENT, dtype=torch.uint8)
        offset = -memory.data_ptr() % ALIGNMENT
        aligned = memory[offset : offset + size]
        self._allocations.append(aligned)
        return aligned.view(dtype).view(shape)

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """See `Device`."""
        return torch.zeros(shape, dtype=dtype)

    def stream(self) -> _Stream:
        """See `Device`."""
        return _Stream(self)

    def load_engine(self, path: Path) -> _Engine:
        """See `Device`."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's exceptions have no common base of their own
            msg = f"{path} can't be loaded ({error}); prepare the model anew."
            raise TensorRTEngineError(msg) from error
        engine = _Engine(
            session,
            self,
            self._profiles,
            self._activation_bytes,
            self._streamable_bytes,
            self._weights_bytes,
        )
        self._engines.append(engine)
        return engine

    def perform(self, work: Work) -> None:
        """Do a piece of work, unless the device has failed."""
        if self.fail_at is not None and self.launched >= self.fail_at:
            msg = "the simulated device failed"
            raise DeviceFault(msg)
        self.launched += 1
        work()

    def require_own(self, name: str, address: int, size: int) -> None:
        """Refuse an address that is misaligned, or memory that was never allocated.

        Raises:
            DeviceFault: naming the tensor.
        """
        if address % ALIGNMENT:
            msg = f"{name} lies at {address:#x}, which is no multiple of {ALIGNMENT}"
            raise DeviceFault(msg)
        if not any(
            memory.data_ptr() <= address and address + size <= memory.data_ptr() + memory.nbytes
            for memory in self._allocations
        ):
            msg = f"{name} reaches beyond the memory at {address:#x}"
            raise DeviceFault(msg)


class _Stream:
    def __init__(self, device: SimulatedDevice) -> None:
        self._device = device
        self._queue: deque[Work] = deque()
        self._enqueued = self._done = 0
        self._captured: list[Work] | None = None

    def launch(self, work: Work) -> None:
        if self._captured is not None:
            self._captured.append(work)
        self._queue.append(work)
        self._enqueued += 1

    def copy_to_host(self, host: torch.Tensor, source: torch.Tensor) -> None:
        host.fill_(math.nan if host.is_floating_point() else torch.iinfo(host.dtype).min)
        self.launch(lambda: _copy(host, source))

    def copy_to_device(self, target: torch.Tensor, host: torch.Tensor) -> None:
        self.launch(lambda: _copy(target, host))

    def record(self) -> _Event:
        return _Event(self, self._enqueued)

    def capture(self, work: Work) -> _Graph:
        self._captured = []
        try:
            work()
            return _Graph(self, tuple(self._captured))
        finally:
            self._captured = None

    def synchronize(self) -> None:
        self.advance(self._enqueued)

    def advance(self, count: int) -> None:
        """Do the work that was enqueued, up to a count."""
        if self._captured is not None:
            msg = "nobody may wait while work is captured"
            raise DeviceFault(msg)
        while self._done < count:
            # What fails stays in front: every later wait fails as well.
            self._device.perform(self._queue[0])
            self._queue.popleft()
            self._done += 1


class _Event:
    def __init__(self, stream: _Stream, count: int) -> None:
        self._stream = stream
        self._count = count

    def wait(self) -> None:
        self._stream.advance(self._count)


class _Graph:
    def __init__(self, stream: _Stream, work: tuple[Work, ...]) -> None:
        self._stream = stream
        self._work = work

    def replay(self) -> None:
        for piece in self._work:
            self._stream.launch(piece)


class _Engine:
    def __init__(
        self,
        session: Any,
        device: SimulatedDevice,
        profiles: Sequence[EngineProfile],
        activation_bytes: int,
        streamable_bytes: int,
        weights_bytes: int,
    ) -> None:
        self.streamable_weights_size = streamable_bytes
        self.weights_bytes = weights_bytes + streamable_bytes
        # Nothing is uploaded before somebody says how much.
        self.resident_bytes = 0
        self._session = session
        self._device = device
        self._profiles = profiles
        self._activation_bytes = activation_bytes
        self._contexts = 0

    def set_weight_streaming_budget_v2(self, size: int) -> None:
        if self._contexts:
            msg = "the budget of weights can't change while there are contexts"
            raise DeviceFault(msg)
        if size > self._device.free_bytes() + self.resident_bytes:
            msg = f"out of memory: {size} bytes are wanted for weights"
            raise DeviceFault(msg)
        self.resident_bytes = size

    def get_tensor_profile_shape(
        self, name: str, profile: int
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        shapes = self._profiles[profile].inputs[name]
        return shapes.least, shapes.tuned, shapes.most

    def activation_bytes(self, profile: int) -> int:
        streams = self.resident_bytes < self.streamable_weights_size
        return self._activation_bytes * (profile + 1) * (2 if streams else 1)

    def create_execution_context(
        self, profile: int, activations: torch.Tensor, stream: Stream
    ) -> _Context:
        assert isinstance(stream, _Stream)  # noqa: S101 - a device's streams are its own
        size = self.activation_bytes(profile)
        self._device.require_own("activations", activations.data_ptr(), size)
        self._contexts += 1
        return _Context(self._session, self._device, self._profiles[profile].inputs, stream)


class _Context:
    def __init__(
        self,
        session: Any,
        device: SimulatedDevice,
        ranges: Mapping[str, ShapeRange],
        stream: _Stream,
    ) -> None:
        self._session = session
        self._device = device
        self._ranges = ranges
        self._stream = stream
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        allowed = self._ranges[name]
        if len(shape) != len(allowed.most) or not all(
            least <= size <= most
            for least, size, most in zip(allowed.least, shape, allowed.most, strict=True)
        ):
            msg = f"{name} of {shape} is not within {allowed.least} and {allowed.most}"
            raise DeviceFault(msg)
        self._shapes[name] = shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self._device.require_own(name, address, 1)
        self._addresses[name] = address

    def execute_async_v3(self) -> None:
        binding = self._session.io_binding()
        for tensor in self._session.get_inputs():
            self._bind(binding.bind_input, tensor, self._shapes.get(tensor.name))
        sizes = _sizes(self._session.get_inputs(), self._shapes)
        for tensor in self._session.get_outputs():
            shape = tuple(sizes.get(dim, dim) for dim in tensor.shape)
            self._bind(binding.bind_output, tensor, shape)
        self._stream.launch(lambda: self._run(binding))

    def _bind(self, bind: Callable[..., None], tensor: Any, shape: tuple[int, ...] | None) -> None:
        address = self._addresses.get(tensor.name)
        if address is None or shape is None:
            msg = f"{tensor.name} has no address or no shape"
            raise DeviceFault(msg)
        kind = _TYPES[tensor.type]
        size = math.prod(shape) * np.dtype(kind).itemsize
        self._device.require_own(tensor.name, address, size)
        bind(tensor.name, "cpu", 0, kind, shape, address)

    def _run(self, binding: Any) -> None:
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # the runtime's exceptions have no common base of their own
            raise DeviceFault(str(error)) from error


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    target.copy_(source)


def _sizes(inputs: Sequence[Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return what the names of dynamic dimensions stand for."""
    return {
        name: size
        for tensor in inputs
        for name, size in zip(tensor.shape, shapes[tensor.name], strict=True)
        if isinstance(name, str)
    }
