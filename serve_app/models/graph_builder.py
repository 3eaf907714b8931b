"""Write one ONNX graph whose weights stream into a data file beside it, one tensor at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from serve_app import __version__
from serve_app.models.element_types import FloatName, float_dtype

__all__ = ["CONTRIB", "IR_VERSION", "OPSET", "GraphBuilder"]

OPSET = 24
CONTRIB = "com.microsoft"

# The newest IR version that knows every type used here; readers refuse versions newer than theirs.
IR_VERSION = 11
# Runtimes map the data file into memory page by page; on a page border a tensor needs no copy.
_ALIGNMENT = 4096
# What is smaller stays in the graph, where a runtime can fold it.
_INLINE_BYTES = 1024

DType = FloatName | Literal["int32", "int64"]
Dimension = int | str


class GraphBuilder:
    """A graph under construction; a context manager around its open data file.

    Weights go to the data file at once, so only the tensor at hand is in memory. Nodes are kept in
    the order of the calls, which must be an order they can run in.
    """

    def __init__(self, graph: Path, data: Path) -> None:
        """Start a graph.

        Args:
            graph: where `save` writes the model.
            data: where weights go; in the folder of `graph`.
        """
        self._path = graph
        self._data = data
        self._file = data.open("wb")
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def input(self, name: str, dtype: DType, shape: Sequence[Dimension]) -> str:
        """Declare an input of the graph and return its name."""
        self._inputs.append(_value_info(name, dtype, shape))
        return name

    def output(self, name: str, dtype: DType, shape: Sequence[Dimension]) -> str:
        """Declare an output of the graph, which some node must produce, and return its name."""
        self._outputs.append(_value_info(name, dtype, shape))
        return name

    def weight(self, name: str, array: NDArray[Any]) -> str:
        """Append an array to the data file and return the initializer's name."""
        array = np.ascontiguousarray(array)
        if array.nbytes < _INLINE_BYTES:
            return self.constant(name, array)
        self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
        offset = self._file.tell()
        # Types of ml_dtypes don't give out their memory; bytes do.
        self._file.write(array.view(np.uint8).data)
        self._add_external(name, array.dtype, array.shape, offset, array.nbytes)
        return name

    def view(self, name: str, of: str, shape: Sequence[int]) -> str:
        """Give a weight another shape under another name; both read the same bytes of the file.

        Unlike a Reshape node, this leaves both of them initializers, which some operators ask for.
        """
        tensor = self._initializers[of]
        if tensor.data_location == TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            self._add_external(name, dtype, shape, int(place["offset"]), int(place["length"]))
            return name
        return self.constant(name, numpy_helper.to_array(tensor).reshape(shape))

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Keep a small array in the graph itself and return its name; equal calls share it."""
        self._initialize(numpy_helper.from_array(array, name))
        return name

    def node(
        self,
        operator: str,
        inputs: Sequence[str],
        outputs: str | Sequence[str],
        *,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Append a node and return the name of its first output, which names the node too.

        An empty name among inputs or outputs stands for an optional one that is left out.
        """
        names = [outputs] if isinstance(outputs, str) else list(outputs)
        self._nodes.append(
            helper.make_node(operator, inputs, names, name=names[0], domain=domain, **attributes)
        )
        return names[0]

    def save(self) -> None:
        """Write the graph and close the data file.

        Raises:
            OSError: the disk is full or the folder can't be written.
        """
        self._file.close()
        # A weight may be read through its views alone.
        read = {name for node in self._nodes for name in node.input}
        initializers = [tensor for name, tensor in self._initializers.items() if name in read]
        graph = helper.make_graph(self._nodes, "decoder", self._inputs, self._outputs, initializers)
        domains = {node.domain for node in self._nodes} - {""}
        model = helper.make_model(
            graph,
            opset_imports=[
                helper.make_opsetid("", OPSET),
                *(helper.make_opsetid(domain, 1) for domain in sorted(domains)),
            ],
            ir_version=IR_VERSION,
            producer_name="parley",
            producer_version=__version__,
        )
        self._path.write_bytes(model.SerializeToString(deterministic=True))

    def _add_external(
        self, name: str, dtype: np.dtype[Any], shape: Sequence[int], offset: int, length: int
    ) -> None:
        tensor = TensorProto(
            name=name,
            data_type=helper.np_dtype_to_tensor_dtype(dtype),
            dims=shape,
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (
            ("location", self._data.name),
            ("offset", str(offset)),
            ("length", str(length)),
        ):
            tensor.external_data.add(key=key, value=value)
        self._initialize(tensor)

    def _initialize(self, tensor: TensorProto) -> None:
        if self._initializers.setdefault(tensor.name, tensor) != tensor:
            msg = f"two initializers want the name {tensor.name}"
            raise ValueError(msg)


def _value_info(name: str, dtype: DType, shape: Sequence[Dimension]) -> onnx.ValueInfoProto:
    element = np.dtype(dtype) if dtype == "int32" or dtype == "int64" else float_dtype(dtype)
    return helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(element), list(shape)
    )
