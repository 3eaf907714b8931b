"""What a device can do at best: move memory, and multiply matrices as its model multiplies them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from serve_app.errors import GeneratorLost
from serve_app.generation.backends.tensorrt.device import Device, Stream

__all__ = ["DeviceSpeed", "measure_device"]

# For each of the two measurements.
_SECONDS = 0.5
# Beyond any cache of a device, and little beside its memory.
_COPIED_BYTES = 256 << 20
# Sides of square matrices: doubled until a product takes long enough to be told from its launch.
_LEAST_SIDE, _MOST_SIDE = 256, 8192
_LONG_ENOUGH_S = 0.005
# Enqueued at once, so that a device never waits for the host.
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class DeviceSpeed:
    """What one device reaches.

    Attributes:
        name: of the device.
        stated_bytes_per_s: memory bandwidth by its clock and width, or None where nobody tells them.
        copied_bytes_per_s: memory bandwidth of a copy within the device, bytes read and written.
        ops_per_s: operations in a product, of which a multiplication with its addition is two.
        arithmetic: element type of that product.
    """

    name: str
    stated_bytes_per_s: float | None
    copied_bytes_per_s: float
    ops_per_s: float
    arithmetic: str

    @property
    def read_bytes_per_s(self) -> float:
        """The bandwidth that floors are reckoned with: what is stated, else what was measured."""
        return self.stated_bytes_per_s or self.copied_bytes_per_s


def measure_device(
    device: Device, *, name: str, stated_bytes_per_s: float | None, dtype: torch.dtype
) -> DeviceSpeed:
    """Measure by a copy and by products of square matrices; it takes about a second and 0.9 GB.

    Args:
        device: where. Its memory should not be taken yet.
        name: of the device.
        stated_bytes_per_s: memory bandwidth as the driver states it, or None.
        dtype: element type that the model computes in.

    Raises:
        GeneratorLost: the device failed.
    """
    stream = device.stream()
    size = min(_COPIED_BYTES, device.free_bytes() // 8)
    try:
        copy_s = _copy_s(device, stream, size)
        side = _LEAST_SIDE
        multiply_s = _product_s(device, stream, side, dtype)
        while (
            multiply_s < _LONG_ENOUGH_S
            and side < _MOST_SIDE
            and 3 * (2 * side) ** 2 * dtype.itemsize < device.free_bytes()
        ):
            side *= 2
            multiply_s = _product_s(device, stream, side, dtype)
    except RuntimeError as error:
        msg = f"{name} failed while its speed was measured ({error}); free memory on it, and try again."
        raise GeneratorLost(msg) from error
    return DeviceSpeed(
        name=name,
        stated_bytes_per_s=stated_bytes_per_s,
        copied_bytes_per_s=2 * size / copy_s,
        ops_per_s=2 * side**3 / multiply_s,
        arithmetic=str(dtype).removeprefix("torch."),
    )


def _copy_s(device: Device, stream: Stream, size: int) -> float:
    source, target = (device.zeros((size,), torch.uint8) for _ in range(2))
    return _fastest(stream, lambda: _copy(target, source))


def _product_s(device: Device, stream: Stream, side: int, dtype: torch.dtype) -> float:
    one, other, product = (device.zeros((side, side), dtype) for _ in range(3))
    return _fastest(stream, lambda: _multiply(product, one, other))


def _fastest(stream: Stream, work: Callable[[], None]) -> float:
    """Return the seconds of a piece of work at its fastest: whatever else goes on only makes it slower."""
    stream.launch(work)
    stream.synchronize()
    fastest = float("inf")
    until = time.perf_counter() + _SECONDS
    while time.perf_counter() < until:
        began = time.perf_counter()
        for _ in range(_AT_ONCE):
            stream.launch(work)
        stream.record().wait()
        fastest = min(fastest, (time.perf_counter() - began) / _AT_ONCE)
    return fastest


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    target.copy_(source)


def _multiply(product: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> None:
    torch.mm(one, other, out=product)
