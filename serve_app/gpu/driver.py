"""NVIDIA's driver and the GPUs that this process may use, asked through the driver's own libraries.

libcuda and libnvidia-ml come with the driver, so nothing has to be installed to learn that there is
none. Only functions are called that both have had unchanged for years. libcuda heeds
CUDA_VISIBLE_DEVICES, so its first GPU is the one that TensorRT takes; libnvidia-ml adds what libcuda
doesn't tell without taking memory on a device.
"""

from __future__ import annotations

import ctypes
import os
import uuid
from dataclasses import dataclass

from serve_app.errors import GpuUnavailable

__all__ = ["CUDA_LIBRARY", "MANAGEMENT_LIBRARY", "Driver", "Gpu", "read_driver"]

CUDA_LIBRARY = "libcuda.so.1"
MANAGEMENT_LIBRARY = "libnvidia-ml.so.1"

# CUdevice_attribute
_MEMORY_CLOCK_KHZ = 36
_MEMORY_BUS_BITS = 37
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76
# CUresult
_NO_DEVICE = 100

_INSTALL = (
    "install NVIDIA's driver, 580 or later; in a container, start it with NVIDIA's Container Toolkit "
    "(`docker run --gpus all`), on Kubernetes ask for nvidia.com/gpu"
)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Attributes:
        name: as the driver gives it, such as "NVIDIA H100 80GB HBM3".
        compute_capability: (major, minor) of its architecture.
        memory_bytes: its memory.
        free_bytes: what nobody has taken of that, or None where that can't be told.
        memory_bytes_per_s: what its memory's clock and width make possible, or None where the driver
            doesn't tell them.
    """

    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int
    free_bytes: int | None = None
    memory_bytes_per_s: float | None = None

    @property
    def architecture(self) -> str:
        """The architecture as compilers name it, such as "sm_90"."""
        major, minor = self.compute_capability
        return f"sm_{major}{minor}"


@dataclass(frozen=True, slots=True)
class Driver:
    """The driver, and what it lets this process use.

    Attributes:
        version: the driver's own version, such as "580.65.06", or None where that can't be told.
        cuda: the latest (major, minor) of CUDA that it runs.
        gpus: the GPUs that this process sees, at least one; the first is what CUDA takes.
    """

    version: str | None
    cuda: tuple[int, int]
    gpus: tuple[Gpu, ...]


class _Memory(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


def read_driver(
    *, cuda_library: str = CUDA_LIBRARY, management_library: str = MANAGEMENT_LIBRARY
) -> Driver:
    """Ask the driver for its version and its GPUs.

    Args:
        cuda_library: name or path of libcuda.
        management_library: name or path of libnvidia-ml; what only it knows is None without it.

    Raises:
        GpuUnavailable: there is no driver, it doesn't work, or it shows this process no GPU.
    """
    try:
        library = ctypes.CDLL(cuda_library)
    except OSError as error:
        msg = f"There is no NVIDIA driver here ({error}): {_INSTALL}."
        raise GpuUnavailable(msg) from None
    cuda = _Cuda(library)
    cuda.call("cuInit", ctypes.c_uint(0))
    number = ctypes.c_int()
    cuda.call("cuDriverGetVersion", ctypes.byref(number))
    count = ctypes.c_int()
    cuda.call("cuDeviceGetCount", ctypes.byref(count))
    if not count.value:
        raise _no_gpu("it has none")
    with _Management(management_library) as management:
        return Driver(
            version=management.driver_version(),
            cuda=(number.value // 1000, number.value % 1000 // 10),
            gpus=tuple(_gpu(cuda, management, ordinal) for ordinal in range(count.value)),
        )


class _Cuda:
    """libcuda, whose functions return 0 or a number that it has a sentence for."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def call(self, function: str, *arguments: object) -> None:
        """Call a function.

        Raises:
            GpuUnavailable: it fails, or this driver has no such function.
        """
        try:
            result = getattr(self._library, function)(*arguments)
        except AttributeError:
            msg = f"NVIDIA's driver is too old, it has no {function}: {_INSTALL}."
            raise GpuUnavailable(msg) from None
        if result == _NO_DEVICE:
            raise _no_gpu(self._sentence(result))
        if result:
            msg = (
                f"NVIDIA's driver doesn't work: {function} says {self._sentence(result)!r} ({result}). "
                "Look at `nvidia-smi` and the kernel's log; a driver that was just replaced needs a "
                "restart of the machine."
            )
            raise GpuUnavailable(msg)

    def attribute(self, attribute: int, device: ctypes.c_int) -> int | None:
        """Return one of a device's attributes, or None where the driver doesn't know it."""
        number = ctypes.c_int()
        failed = self._library.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        return None if failed else number.value

    def _sentence(self, result: int) -> str:
        text = ctypes.c_char_p()
        self._library.cuGetErrorString(result, ctypes.byref(text))
        return (text.value or b"unknown error").decode(errors="replace")


class _Management:
    """libnvidia-ml, as far as it is there: nothing that it fails at is worth failing for."""

    def __init__(self, name: str) -> None:
        try:
            self._library: ctypes.CDLL | None = ctypes.CDLL(name)
        except OSError:
            self._library = None

    def __enter__(self) -> _Management:
        if self._library is not None and self._library.nvmlInit_v2():
            self._library = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._library is not None:
            self._library.nvmlShutdown()

    def driver_version(self) -> str | None:
        """Return the driver's version."""
        text = ctypes.create_string_buffer(80)
        if self._library is None or self._library.nvmlSystemGetDriverVersion(text, len(text)):
            return None
        return text.value.decode(errors="replace")

    def free_bytes(self, identifier: str) -> int | None:
        """Return the free memory of the GPU with an identifier like "GPU-8f…"."""
        handle, memory = ctypes.c_void_p(), _Memory()
        if (
            self._library is None
            or self._library.nvmlDeviceGetHandleByUUID(identifier.encode(), ctypes.byref(handle))
            or self._library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
        ):
            return None
        return int(memory.free)


def _gpu(cuda: _Cuda, management: _Management, ordinal: int) -> Gpu:
    device = ctypes.c_int()
    cuda.call("cuDeviceGet", ctypes.byref(device), ordinal)
    name = ctypes.create_string_buffer(256)
    cuda.call("cuDeviceGetName", name, len(name), device)
    size = ctypes.c_size_t()
    cuda.call("cuDeviceTotalMem_v2", ctypes.byref(size), device)
    identifier = (ctypes.c_ubyte * 16)()
    cuda.call("cuDeviceGetUuid", ctypes.byref(identifier), device)
    capability = []
    for attribute in (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR):
        number = ctypes.c_int()
        cuda.call("cuDeviceGetAttribute", ctypes.byref(number), attribute, device)
        capability.append(number.value)
    return Gpu(
        name=name.value.decode(errors="replace"),
        compute_capability=(capability[0], capability[1]),
        memory_bytes=size.value,
        free_bytes=management.free_bytes(f"GPU-{uuid.UUID(bytes=bytes(identifier))}"),
        memory_bytes_per_s=_memory_bytes_per_s(cuda, device),
    )


def _memory_bytes_per_s(cuda: _Cuda, device: ctypes.c_int) -> float | None:
    clock = cuda.attribute(_MEMORY_CLOCK_KHZ, device) or 0
    width = cuda.attribute(_MEMORY_BUS_BITS, device) or 0
    # It moves data twice in each of the clock's cycles.
    return 2 * clock * 1000 * width / 8 if clock > 0 and width > 0 else None


def _no_gpu(reason: str) -> GpuUnavailable:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hint = (
        f"CUDA_VISIBLE_DEVICES is {visible!r}: unset it, or name a GPU there"
        if visible is not None
        else "see whether `nvidia-smi` lists one, and whether this container was given it"
    )
    return GpuUnavailable(f"NVIDIA's driver shows this process no GPU ({reason}); {hint}.")
