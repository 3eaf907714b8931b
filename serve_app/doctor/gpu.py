"""The GPU: driver, CUDA, memory, TensorRT and PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec

from serve_app.doctor.finding import Finding, State
from serve_app.errors import GpuUnavailable, TensorRTUnavailable
from serve_app.gpu.driver import Driver, Gpu
from serve_app.gpu.tensorrt_package import require_supported

__all__ = ["GpuReport", "gpu_report"]

_LEAST_CUDA = (13, 0)


class GpuReport:
    """What there is of a GPU.

    Attributes:
        findings: line by line.
        gpu: the GPU that CUDA takes, or None.
        tensorrt: version of TensorRT, or None.
    """

    def __init__(
        self, findings: tuple[Finding, ...], gpu: Gpu | None, tensorrt: str | None
    ) -> None:
        self.findings = findings
        self.gpu = gpu
        self.tensorrt = tensorrt


def gpu_report(
    *,
    wanted: bool,
    read_driver: Callable[[], Driver],
    tensorrt_version: Callable[[], str],
) -> GpuReport:
    """Look at the GPU and at what computes on it.

    Args:
        wanted: whether the settings have a GPU compute.
        read_driver: see `serve_app.gpu.driver`.
        tensorrt_version: see `serve_app.gpu.tensorrt_package`.
    """
    lacking: State = "missing" if wanted else "optional"
    findings: list[Finding] = []
    gpu = version = None
    try:
        driver = read_driver()
    except GpuUnavailable as error:
        findings.append(Finding("GPU", lacking, "none", error.message))
    else:
        gpu = driver.gpus[0]
        findings += [_driver(driver, lacking), *_devices(driver, lacking)]
    try:
        version = tensorrt_version()
        findings.append(Finding("TensorRT", "ok", version))
    except TensorRTUnavailable as error:
        findings.append(Finding("TensorRT", lacking, "none that can be used", error.message))
    findings.append(_torch(lacking))
    return GpuReport(tuple(findings), gpu, version)


def _driver(driver: Driver, lacking: State) -> Finding:
    major, minor = driver.cuda
    found = f"{driver.version or 'of unknown version'}, CUDA up to {major}.{minor}"
    if driver.cuda < _LEAST_CUDA:
        advice = (
            "`parley[gpu]` is for CUDA 13: install driver 580 or later, or the packages for CUDA 12, "
            "tensorrt-cu12 and a build of torch."
        )
        return Finding("driver", lacking, found, advice)
    return Finding("driver", "ok", found)


def _devices(driver: Driver, lacking: State) -> list[Finding]:
    findings = []
    for number, gpu in enumerate(driver.gpus):
        free = "" if gpu.free_bytes is None else f", {gpu.free_bytes / 1e9:.1f} GB free"
        major, minor = gpu.compute_capability
        found = (
            f"{gpu.name}, compute capability {major}.{minor}, {gpu.memory_bytes / 1e9:.1f} GB{free}"
        )
        try:
            require_supported(gpu)
            findings.append(Finding(f"GPU {number}", "ok", found))
        except TensorRTUnavailable as error:
            findings.append(Finding(f"GPU {number}", lacking, found, error.message))
    return findings


def _torch(lacking: State) -> Finding:
    """Look for PyTorch, whose tensors are the memory on the device, without the seconds of its import."""
    if find_spec("torch") is None:
        return Finding(
            "PyTorch", lacking, "not installed", "`pip install 'parley[gpu]'` brings it."
        )
    version = metadata.version("torch")
    if "+cpu" in version:
        advice = "This build knows no CUDA: install torch from PyPI, without an index for CPUs."
        return Finding("PyTorch", lacking, version, advice)
    return Finding("PyTorch", "ok", version)
