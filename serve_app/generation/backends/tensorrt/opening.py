"""From a prepared model to the TensorRT backend: GPU, engine, and what runs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from serve_app.errors import TensorRTUnavailable
from serve_app.models.engine_build.machine import open_machine
from serve_app.models.engine_build.model_engine import find_model_engine
from serve_app.models.store import PreparedModel

if TYPE_CHECKING:
    from serve_app.generation.backends.tensorrt.backend import TensorRTBackend
    from serve_app.generation.backends.tensorrt.device import Device

__all__ = ["open_tensorrt"]


def open_tensorrt(
    model: PreparedModel,
    engines: Path | None,
    *,
    weights_bytes: int | None = None,
    share: float = 1.0,
) -> TensorRTBackend:
    """Load the engine of a prepared model for this machine's GPU.

    Args:
        model: one in the standard form.
        engines: folder that machines share engines through; None looks beside the model.
        weights_bytes: see `TensorRTBackend`.
        share: see `TensorRTBackend`.

    Raises:
        GpuUnavailable: there is no driver, or no GPU.
        TensorRTUnavailable: TensorRT or torch is missing, or has nothing for the GPU.
        TensorRTEngineError: there is no engine that fits, or TensorRT can't load it.
    """
    machine = open_machine()
    engine = find_model_engine(model, machine.environment, engines)
    device = _open_device(host_code=engine.manifest.holds_host_code)
    from serve_app.generation.backends.tensorrt.backend import TensorRTBackend

    return TensorRTBackend(
        device,
        device.load_engine(engine.plan),
        model.manifest.interface,
        weights_bytes=weights_bytes,
        share=share,
    )


def _open_device(*, host_code: bool) -> Device:
    try:
        import torch
    except ImportError as error:
        msg = f"PyTorch can't be loaded ({error}); `pip install 'parley[gpu]'` brings it."
        raise TensorRTUnavailable(msg) from error
    if not torch.cuda.is_available():
        msg = (
            f"PyTorch {torch.__version__} can't use the GPU: install the build of `parley[gpu]`, for "
            "CUDA 13, and NVIDIA's driver 580 or later."
        )
        raise TensorRTUnavailable(msg)
    from serve_app.generation.backends.tensorrt.adapter import CudaDevice

    return CudaDevice(host_code=host_code)
