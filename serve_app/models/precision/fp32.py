"""Single precision."""

from __future__ import annotations

from serve_app.models.graph_builder import GraphBuilder
from serve_app.models.precision.base import FloatArray, Table

__all__ = ["Fp32"]


class Fp32:
    """Single precision, as read from the checkpoint."""

    def linear(
        self,
        graph: GraphBuilder,
        name: str,
        states: str,
        weight: FloatArray,
        bias: FloatArray | None = None,
    ) -> str:
        """Append a MatMul, and an Add for the bias."""
        stored = graph.weight(f"{name}.weight", weight.T)
        if bias is None:
            return graph.node("MatMul", [states, stored], name)
        product = graph.node("MatMul", [states, stored], f"{name}.product")
        return graph.node("Add", [product, graph.weight(f"{name}.bias", bias)], name)

    def table(self, graph: GraphBuilder, name: str, weight: FloatArray) -> Table:
        """Store the matrix as it is."""
        return Table(graph.weight(name, weight), *weight.shape)

    def look_up(self, graph: GraphBuilder, name: str, table: Table, indices: str) -> str:
        """Append a Gather."""
        return graph.node("Gather", [table.name, indices], name)

    def project(self, graph: GraphBuilder, name: str, table: Table, states: str) -> str:
        """Append a Gemm that takes the rows as they are stored, so a tied table is stored once."""
        return graph.node("Gemm", [states, table.name], name, transB=1)
