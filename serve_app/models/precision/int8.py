"""8-bit weights in blocks, near-lossless."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from serve_app.errors import ModelError
from serve_app.models.element_types import FloatName
from serve_app.models.graph_builder import CONTRIB, GraphBuilder
from serve_app.models.precision.base import FloatArray, Table

__all__ = ["Int8Blocks"]


class Int8Blocks:
    """8-bit integers with one scale per block of 32 inputs, symmetric: GGUF's Q8_0 with fp32 scales.

    Rounding a Q8_0 tensor again gives back its own integers, so nothing is lost on those.

    Attributes:
        dtype: element type of the states.
    """

    dtype: FloatName = "float32"

    _BLOCK = 32
    # The runtime's stored bytes are unsigned, with this zero point unless told otherwise.
    _ZERO = 128
    # Lets the kernel quantize its input to int8, by the same blocks. Level 0 keeps the input in fp32
    # and has about a third of the KL, but the CPU kernel then unpacks the whole matrix in every call:
    # decoding is more than ten times slower.
    _ACCURACY_LEVEL = 4
    # Rows quantized at once: the temporaries of a whole vocabulary would take several times its size.
    _ROWS_AT_ONCE = 4096

    def linear(
        self,
        graph: GraphBuilder,
        name: str,
        states: str,
        weight: FloatArray,
        bias: FloatArray | None = None,
    ) -> str:
        """Append a MatMulNBits."""
        table = self.table(graph, f"{name}.weight", weight)
        stored_bias = None if bias is None else graph.weight(f"{name}.bias", bias)
        return self._matmul(graph, name, table, states, stored_bias)

    def table(self, graph: GraphBuilder, name: str, weight: FloatArray) -> Table:
        """Store integers [rows, width / 32, 32] and scales [rows, width / 32]."""
        rows, width = weight.shape
        if width % self._BLOCK:
            msg = (
                f"{name} has rows of {width} elements; precision int8 stores blocks of "
                f"{self._BLOCK}. Prepare this model with precision fp32."
            )
            raise ModelError(msg)
        values = np.empty((rows, width // self._BLOCK, self._BLOCK), np.uint8)
        scales = np.empty((rows, width // self._BLOCK), np.float32)
        for start in range(0, rows, self._ROWS_AT_ONCE):
            part = slice(start, start + self._ROWS_AT_ONCE)
            values[part], scales[part] = self._quantize(weight[part])
        graph.weight(name, values)
        graph.weight(_scales(name), scales)
        return Table(name, rows, width)

    def look_up(self, graph: GraphBuilder, name: str, table: Table, indices: str) -> str:
        """Append a GatherBlockQuantized over the very bytes that `project` multiplies by."""
        rows = graph.view(f"{table.name}.rows", table.name, (table.rows, table.width))
        return graph.node(
            "GatherBlockQuantized",
            [rows, indices, _scales(table.name)],
            name,
            domain=CONTRIB,
            bits=8,
            block_size=self._BLOCK,
            gather_axis=0,
            quantize_axis=1,
        )

    def project(self, graph: GraphBuilder, name: str, table: Table, states: str) -> str:
        """Append a MatMulNBits."""
        return self._matmul(graph, name, table, states, None)

    def _matmul(
        self, graph: GraphBuilder, name: str, table: Table, states: str, bias: str | None
    ) -> str:
        optional = [] if bias is None else ["", "", bias]
        return graph.node(
            "MatMulNBits",
            [states, table.name, _scales(table.name), *optional],
            name,
            domain=CONTRIB,
            K=table.width,
            N=table.rows,
            bits=8,
            block_size=self._BLOCK,
            accuracy_level=self._ACCURACY_LEVEL,
        )

    def _quantize(self, weight: FloatArray) -> tuple[NDArray[np.uint8], FloatArray]:
        blocks = weight.reshape(len(weight), -1, self._BLOCK)
        scales = np.abs(blocks).max(axis=2) / np.float32(127)
        # A block of zeros has scale 0; any divisor gives zeros then.
        divisors = np.where(scales == 0, np.float32(1), scales)
        values = np.rint(blocks / divisors[:, :, None]) + self._ZERO
        return values.astype(np.uint8), scales


def _scales(table: str) -> str:
    return f"{table}.scales"
