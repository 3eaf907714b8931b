"""Which backend runs a prepared model."""

from __future__ import annotations

from pathlib import Path

from serve_app.generation.backends.base import Backend
from serve_app.generation.backends.native import NativeBackend
from serve_app.generation.backends.onnxruntime import OnnxRuntimeBackend
from serve_app.models.store import PreparedModel

__all__ = ["open_backend"]


def open_backend(
    model: PreparedModel,
    *,
    threads: int,
    engines: Path | None = None,
    gpu_weights_mb: int | None = None,
    gpu_share: float = 1.0,
) -> Backend:
    """Load a prepared model into the backend for its graph's form.

    Args:
        model: the model.
        threads: threads that compute on a CPU, at least 1.
        engines: folder that machines share TensorRT engines through; None looks beside the model.
        gpu_weights_mb: MiB of weights on the GPU, where an engine was built to leave some on the host;
            None takes as many as slots leave room for.
        gpu_share: of a GPU's memory, how much is for this backend.

    Raises:
        ModelError: the graph can't be loaded.
        GpuUnavailable: it has the standard form, and there is no GPU.
        TensorRTUnavailable: it has, and TensorRT or torch's part for GPUs is missing.
        TensorRTEngineError: it has, and there is no engine of it for this GPU.
    """
    manifest = model.manifest
    if manifest.form == "standard":
        # torch and TensorRT are there on GPU machines alone.
        from serve_app.generation.backends.tensorrt.opening import open_tensorrt

        weights_bytes = None if gpu_weights_mb is None else gpu_weights_mb << 20
        return open_tensorrt(model, engines, weights_bytes=weights_bytes, share=gpu_share)
    kind = NativeBackend if manifest.form == "native" else OnnxRuntimeBackend
    return kind(model.path, manifest.interface, threads=threads)
