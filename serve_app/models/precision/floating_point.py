"""Floating point of one width throughout: weights, states and products."""

from __future__ import annotations

from serve_app.models.element_types import FloatName, float_dtype
from serve_app.models.graph_builder import GraphBuilder
from serve_app.models.precision.base import FloatArray, Table

__all__ = ["FloatingPoint"]


class FloatingPoint:
    """Weights as read from the checkpoint, rounded to `dtype` where that is narrower.

    Attributes:
        dtype: element type of the weights, and of the states they are multiplied with.
    """

    def __init__(self, dtype: FloatName) -> None:
        self.dtype: FloatName = dtype
        self._element = float_dtype(dtype)

    def linear(
        self,
        graph: GraphBuilder,
        name: str,
        states: str,
        weight: FloatArray,
        bias: FloatArray | None = None,
    ) -> str:
        """Append a MatMul, and an Add for the bias."""
        stored = self._stored(graph, f"{name}.weight", weight.T)
        if bias is None:
            return graph.node("MatMul", [states, stored], name)
        product = graph.node("MatMul", [states, stored], f"{name}.product")
        return graph.node("Add", [product, self._stored(graph, f"{name}.bias", bias)], name)

    def table(self, graph: GraphBuilder, name: str, weight: FloatArray) -> Table:
        """Store the matrix as it is."""
        return Table(self._stored(graph, name, weight), *weight.shape)

    def look_up(self, graph: GraphBuilder, name: str, table: Table, indices: str) -> str:
        """Append a Gather."""
        return graph.node("Gather", [table.name, indices], name)

    def project(self, graph: GraphBuilder, name: str, table: Table, states: str) -> str:
        """Append a Gemm that takes the rows as they are stored, so a tied table is stored once."""
        return graph.node("Gemm", [states, table.name], name, transB=1)

    def _stored(self, graph: GraphBuilder, name: str, array: FloatArray) -> str:
        return graph.weight(name, array.astype(self._element, copy=False))
