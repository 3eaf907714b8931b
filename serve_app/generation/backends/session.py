"""Sessions of ONNX Runtime as the backends open and bind them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from serve_app.errors import ModelError
from serve_app.kernels import library
from serve_app.models.decoder_interface import GRAPH_FILE, DecoderInterface

__all__ = ["bind_input", "bind_output", "open_session"]


def open_session(directory: Path, interface: DecoderInterface, *, threads: int) -> Any:
    """Load a prepared model's graph.

    Args:
        directory: its folder.
        interface: what the graph looks like.
        threads: threads that share an operator, at least 1.

    Raises:
        ModelError: it can't be loaded.
    """
    native = interface.form == "native"
    options = ort.SessionOptions()
    # Parley's own operators bring their own threads.
    options.intra_op_num_threads = 1 if native else threads
    options.inter_op_num_threads = 1
    # Between two steps the cores belong to sampling and to the other processes.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    path = directory / GRAPH_FILE
    try:
        if native:
            library.register(options, threads=threads)
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions have no common base of their own
        msg = (
            f"{path} can't be loaded ({error}); remove the model with `parley model remove "
            f"{path.parent.name}`, and it is prepared anew at the next start."
        )
        raise ModelError(msg) from error


def bind_input(binding: Any, name: str, array: NDArray[Any]) -> None:
    """Bind an input to an array's memory, which must outlive the runs."""
    binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def bind_output(binding: Any, name: str, array: NDArray[Any]) -> None:
    """Bind an output to an array's memory, which must outlive the runs."""
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
