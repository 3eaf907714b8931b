"""Floating point that tells how large the inputs of its products get."""

from __future__ import annotations

import numpy as np

from serve_app.models.graph_builder import GraphBuilder
from serve_app.models.precision.base import FloatArray
from serve_app.models.precision.floating_point import FloatingPoint

__all__ = ["ObservedInputs"]


class ObservedInputs(FloatingPoint):
    """fp32, in a graph with one more output per linear: the largest magnitude of each of its inputs.

    Attributes:
        observed: by the linear's name, the output's.
    """

    def __init__(self) -> None:
        super().__init__("float32")
        self.observed: dict[str, str] = {}

    def linear(
        self,
        graph: GraphBuilder,
        name: str,
        states: str,
        weight: FloatArray,
        bias: FloatArray | None = None,
    ) -> str:
        """Append the product, and the largest magnitudes, float32 [in]."""
        rows = graph.constant("observed.rows", np.array([0], np.int64))
        magnitudes = graph.node("Abs", [states], f"{name}.magnitudes")
        largest = graph.node("ReduceMax", [magnitudes, rows], f"{name}.largest", keepdims=0)
        self.observed[name] = graph.output(largest, "float32", [weight.shape[1]])
        return super().linear(graph, name, states, weight, bias)
