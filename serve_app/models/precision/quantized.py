"""8-bit weights as explicit quantization: constants behind a DequantizeLinear."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from serve_app.models.element_types import FloatName, float_dtype
from serve_app.models.graph_builder import GraphBuilder
from serve_app.models.precision.base import FloatArray, Table
from serve_app.models.precision.floating_point import FloatingPoint

__all__ = ["FP8", "INT8", "QuantizedWeights"]

INT8 = np.dtype(np.int8), 127.0
FP8 = np.dtype(ml_dtypes.float8_e4m3fn), 448.0
"""numpy's type, and what the largest number becomes."""


class QuantizedWeights:
    """Projections in 8 bits with one scale per output, symmetric; all else in fp16.

    A runtime that takes precision from the graph alone finds the 8 bits there. The embedding stays in
    fp16, and with it the output head that is tied to it.

    Attributes:
        dtype: element type of the states, and of the scales.
    """

    # Rows quantized at once: the temporaries of a whole vocabulary would take several times its size.
    _ROWS_AT_ONCE = 4096

    def __init__(self, stored: np.dtype[Any], largest: float) -> None:
        """Choose the type of the weights; see `int8` and `fp8`.

        Args:
            stored: numpy's type.
            largest: what the largest weight of an output becomes.
        """
        self.dtype: FloatName = "float16"
        self._scale = float_dtype(self.dtype)
        self._stored = stored
        self._largest = largest
        self._exact = FloatingPoint(self.dtype)

    @classmethod
    def int8(cls) -> QuantizedWeights:
        """Return integers from -127 to 127."""
        return cls(*INT8)

    @classmethod
    def fp8(cls) -> QuantizedWeights:
        """Return floats of 4 bits of exponent and 3 of mantissa, up to 448.

        Source: Micikevicius et al. 2022 (FP8 formats for deep learning), E4M3.
        """
        return cls(*FP8)

    def linear(
        self,
        graph: GraphBuilder,
        name: str,
        states: str,
        weight: FloatArray,
        bias: FloatArray | None = None,
    ) -> str:
        """Append a DequantizeLinear of the weights, a MatMul, and an Add for the bias."""
        values, scales = self._quantize(weight)
        restored = graph.node(
            "DequantizeLinear",
            [
                graph.weight(f"{name}.weight", values.T),
                graph.weight(f"{name}.weight.scales", scales),
            ],
            f"{name}.weight.restored",
            axis=1,
        )
        if bias is None:
            return graph.node("MatMul", [states, restored], name)
        product = graph.node("MatMul", [states, restored], f"{name}.product")
        stored = graph.weight(f"{name}.bias", bias.astype(self._scale))
        return graph.node("Add", [product, stored], name)

    def table(self, graph: GraphBuilder, name: str, weight: FloatArray) -> Table:
        """Store the matrix in fp16."""
        return self._exact.table(graph, name, weight)

    def look_up(self, graph: GraphBuilder, name: str, table: Table, indices: str) -> str:
        """Append a Gather."""
        return self._exact.look_up(graph, name, table, indices)

    def project(self, graph: GraphBuilder, name: str, table: Table, states: str) -> str:
        """Append a Gemm with the table's rows."""
        return self._exact.project(graph, name, table, states)

    def _quantize(self, weight: FloatArray) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return values like [out, in] and scales [out]."""
        values = np.empty(weight.shape, self._stored)
        scales = np.empty(len(weight), self._scale)
        for start in range(0, len(weight), self._ROWS_AT_ONCE):
            part = slice(start, start + self._ROWS_AT_ONCE)
            values[part], scales[part] = self._quantized_rows(weight[part])
        return values, scales

    def _quantized_rows(self, rows: FloatArray) -> tuple[NDArray[Any], NDArray[Any]]:
        steps = np.abs(rows).max(axis=1) / np.float32(self._largest)
        # A scale must be above 0, and keep its precision: the type's smaller numbers have fewer bits.
        least = np.finfo(self._scale).smallest_normal
        scales = np.maximum(steps, np.float32(least)).astype(self._scale)
        # With the scale as it is stored, whose own rounding then costs nothing.
        scaled = rows / scales.astype(np.float32)[:, None]
        np.clip(scaled, -self._largest, self._largest, out=scaled)
        if self._stored == np.int8:
            np.rint(scaled, out=scaled)
        return scaled.astype(self._stored), scales
