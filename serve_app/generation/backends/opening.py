"""Which backend runs a prepared model."""

from __future__ import annotations

from serve_app.errors import ModelError
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
        ModelError: nothing here runs the form, or the graph can't be loaded.
    """
    manifest = model.manifest
    if manifest.form == "standard":
        msg = (
            f"{model.path.name} has the standard form, which is for TensorRT on a GPU; prepare the "
            "model in the cpu form, with `parley model prepare --form cpu`, to run it here."
        )
        raise ModelError(msg)
    kind = NativeBackend if manifest.form == "native" else OnnxRuntimeBackend
    return kind(model.path, manifest.interface, threads=threads)
