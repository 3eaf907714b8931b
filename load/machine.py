"""What this machine can do at best: read memory, and multiply matrices."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from serve_app.kernels import library
from serve_app.models.packed_blocks import pack

__all__ = ["Machine", "measure_machine"]

# For each of the two measurements.
_SECONDS = 1.0
# Far beyond any cache.
_LARGE = (8192, 8192)
# Stays, with its rows and their products, in the caches near the cores.
_ROWS, _SMALL = 128, (576, 1536)


@dataclass(frozen=True, slots=True)
class Machine:
    """What some threads of this machine reach with matrices.

    Attributes:
        threads: how many threads.
        read_bytes_per_s: memory bandwidth, reading.
        ops_per_s: operations, of which a multiplication with its addition is two.
        arithmetic: what they were measured with.
    """

    threads: int
    read_bytes_per_s: float
    ops_per_s: float
    arithmetic: str


def measure_machine(threads: int, *, integers: bool) -> Machine:
    """Measure with matrix products as a decoder uses them.

    One row times a large matrix reads memory and does little else; many rows times a small matrix
    multiply and do little else. It takes two seconds and 270 MB.

    Args:
        threads: threads that share a product.
        integers: multiply blocks of 8-bit integers with Parley's own operator, whose best case this
            is then; else in single precision, with the runtime's.
    """
    large, small = np.ones(_LARGE, np.float32), np.ones(_SMALL, np.float32)
    read = _session(threads)
    row = np.ones((1, large.shape[0]), np.float32)
    read_s = _best(read, {"rows": row, "matrix": large})
    multiply = _integer_session(threads, small) if integers else _session(threads, small)
    rows = np.ones((_ROWS, small.shape[0]), np.float32)
    multiply_s = _best(multiply, {"rows": rows})
    return Machine(
        threads=threads,
        read_bytes_per_s=large.nbytes / read_s,
        ops_per_s=2 * _ROWS * small.size / multiply_s,
        arithmetic="8-bit blocks" if integers else "fp32",
    )


def _session(threads: int, matrix: NDArray[np.float32] | None = None) -> ort.InferenceSession:
    """Return rows @ matrix in single precision; the matrix is an input where none is given."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    node = helper.make_node("MatMul", ["rows", "matrix"], ["product"])
    return _open(options, node, {} if matrix is None else {"matrix": matrix})


def _integer_session(threads: int, matrix: NDArray[np.float32]) -> ort.InferenceSession:
    """Return rows @ matrix in blocks."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    library.register(options, threads=threads)
    node = helper.make_node(
        "Linear",
        ["rows", "nothing", "matrix", "nothing", "nothing"],
        ["product"],
        domain=library.DOMAIN,
        width=matrix.shape[1],
        swiglu=0,
        epsilon=0.0,
    )
    packed = pack("matrix", matrix.T)
    return _open(options, node, {"matrix": packed, "nothing": np.zeros(0, np.float32)})


def _open(
    options: ort.SessionOptions, node: onnx.NodeProto, weights: dict[str, NDArray[Any]]
) -> ort.InferenceSession:
    """Open a graph of one node; what it reads and no weight gives is an input."""

    def declare(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None])

    graph = helper.make_graph(
        [node],
        "product",
        [declare(name) for name in node.input if name not in weights],
        [declare("product")],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    domains = {library.DOMAIN: 1, "": 21}
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in domains.items()],
        ir_version=10,
    )
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _best(session: ort.InferenceSession, inputs: dict[str, NDArray[np.float32]]) -> float:
    """Return the seconds of the fastest run: what else the machine does only makes them slower."""
    runs: list[float] = []
    until = time.perf_counter() + _SECONDS
    while not runs or time.perf_counter() < until:
        began = time.perf_counter()
        session.run(None, inputs)
        runs.append(time.perf_counter() - began)
    return min(runs)
