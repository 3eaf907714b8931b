"""What the backend asks of a GPU and of TensorRT: the border behind which nothing runs without them.

Work is *enqueued* on a stream and done later, in order. Only `Event.wait` and `Stream.synchronize` wait
for it. Names of methods are those of what stands behind them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

__all__ = [
    "ALIGNMENT",
    "Device",
    "DeviceEngine",
    "DeviceFault",
    "Event",
    "ExecutionContext",
    "Graph",
    "Stream",
]

ALIGNMENT = 256
"""Bytes at whose multiples TensorRT wants the address of every tensor."""


class DeviceFault(RuntimeError):
    """The device or its runtime failed; nothing that was enqueued can be relied on any more."""


class Event(Protocol):
    """A point in a stream."""

    def wait(self) -> None:
        """Have the host wait until all work before it is done.

        Raises:
            DeviceFault: some of that work failed.
        """
        ...


class Graph(Protocol):
    """Work that was captured: it can be enqueued again as one, on the same memory."""

    def replay(self) -> None:
        """Enqueue it on the stream that it was captured on."""
        ...


class Stream(Protocol):
    """A queue of work of one device."""

    def launch(self, work: Callable[[], None]) -> None:
        """Enqueue torch operations.

        Args:
            work: called once, now or later. It writes into tensors of the device, and neither reads
                their contents on the host nor anything on the host that may change.
        """
        ...

    def copy_to_host(self, host: torch.Tensor, source: torch.Tensor) -> None:
        """Enqueue a copy into pinned memory, which holds nothing of use until it is done."""
        ...

    def copy_to_device(self, target: torch.Tensor, host: torch.Tensor) -> None:
        """Enqueue a copy out of pinned memory, which must not change until it is done."""
        ...

    def record(self) -> Event:
        """Return the point behind everything enqueued so far."""
        ...

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record what `work` enqueues on this stream; it is done once as well.

        Nothing else may be enqueued meanwhile, and nobody may wait.
        """
        ...

    def synchronize(self) -> None:
        """Wait until everything enqueued is done.

        Raises:
            DeviceFault: some of it failed.
        """
        ...


class ExecutionContext(Protocol):
    """One way to run an engine: an optimization profile, shapes, and addresses."""

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Set the shape of an input; it must be within the profile."""
        ...

    def set_tensor_address(self, name: str, address: int) -> None:
        """Say where an input or output lies, at a multiple of `ALIGNMENT`."""
        ...

    def execute_async_v3(self) -> None:
        """Enqueue a run with the shapes and addresses as they are.

        Raises:
            DeviceFault: TensorRT refuses.
        """
        ...


class DeviceEngine(Protocol):
    """A loaded engine; its weights are there once, however many contexts there are.

    Attributes:
        streamable_weights_size: bytes of weights that may stay on the host, 0 unless it was built so.
        weights_bytes: bytes of all its weights.
    """

    @property
    def streamable_weights_size(self) -> int: ...  # noqa: D102

    @property
    def weights_bytes(self) -> int: ...  # noqa: D102

    def set_weight_streaming_budget_v2(self, size: int) -> None:
        """Say how many bytes of those weights stay on the device; every run reads the rest from the host.

        Only before there is a context. It changes `activation_bytes`: streaming takes memory to work in.

        Raises:
            DeviceFault: the device has no room for them.
        """
        ...

    def get_tensor_profile_shape(
        self, name: str, profile: int
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Return the least, the tuned and the most dimensions of an input in a profile."""
        ...

    def activation_bytes(self, profile: int) -> int:
        """Return the memory that a context of a profile works in."""
        ...

    def create_execution_context(
        self, profile: int, activations: torch.Tensor, stream: Stream
    ) -> ExecutionContext:
        """Create a context.

        Args:
            profile: number of its optimization profile, for good.
            activations: memory to work in, bytes. Contexts that never run at the same time may share it.
            stream: what it runs on.
        """
        ...


class Device(Protocol):
    """One GPU."""

    def free_bytes(self) -> int:
        """Return the memory that is free now, whoever has the rest."""
        ...

    def total_bytes(self) -> int:
        """Return all of its memory."""
        ...

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Allocate memory of the device, aligned, all zero."""
        ...

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Allocate memory of the host that the device copies from and to."""
        ...

    def stream(self) -> Stream:
        """Create a stream."""
        ...

    def load_engine(self, path: Path) -> DeviceEngine:
        """Load a serialized engine.

        Raises:
            TensorRTEngineError: it can't be loaded.
        """
        ...
