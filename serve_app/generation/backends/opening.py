"""Which backend runs a prepared model."""

from __future__ import annotations

from serve_app.generation.backends.native import NativeBackend
from serve_app.generation.backends.onnxruntime import OnnxRuntimeBackend
from serve_app.models.store import PreparedModel

__all__ = ["open_backend"]


def open_backend(model: PreparedModel, *, threads: int) -> NativeBackend | OnnxRuntimeBackend:
    """Load a prepared model into the backend for its graph's form.

    Args:
        model: the model.
        threads: threads that compute, at least 1.

    Raises:
        ModelError: the graph can't be loaded.
    """
    manifest = model.manifest
    kind = NativeBackend if manifest.form == "native" else OnnxRuntimeBackend
    return kind(model.path, manifest.interface, threads=threads)
