"""8-bit products as explicit quantization: weights, and what they are multiplied with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from serve_app.models.graph_builder import GraphBuilder
from serve_app.models.precision.base import FloatArray
from serve_app.models.precision.quantized import FP8, INT8, QuantizedWeights

__all__ = ["QuantizedProducts"]


class QuantizedProducts(QuantizedWeights):
    """`QuantizedWeights` that are multiplied with inputs in 8 bits too, in the decoder's layers.

    A linear's input is rounded to 8 bits with one scale, which is a constant: a runtime may multiply
    the 8 bits themselves then. The output head keeps its input, which decides between tokens.

    Args:
        stored: see `QuantizedWeights`.
        largest: see `QuantizedWeights`.
        inputs: see `measure_inputs`.
        rounds: says by a linear's name whether its input is rounded.
    """

    def __init__(
        self,
        stored: np.dtype[Any],
        largest: float,
        inputs: Mapping[str, FloatArray],
        *,
        rounds: Callable[[str], bool],
    ) -> None:
        super().__init__(stored, largest)
        self._inputs = inputs
        self._rounds = rounds

    @classmethod
    def int8_calibrated(cls, inputs: Mapping[str, FloatArray]) -> QuantizedProducts:
        """Return integers. The input of `down_proj` isn't rounded: some of it is too large for even steps."""
        return cls(*INT8, inputs, rounds=lambda name: _in_layers(name) and "down_proj" not in name)

    @classmethod
    def fp8_calibrated(cls, inputs: Mapping[str, FloatArray]) -> QuantizedProducts:
        """Return floats, E4M3, whose steps grow with the number."""
        return cls(*FP8, inputs, rounds=_in_layers)

    def linear(
        self,
        graph: GraphBuilder,
        name: str,
        states: str,
        weight: FloatArray,
        bias: FloatArray | None = None,
    ) -> str:
        """Append what rounds the input, then the product as with weights alone."""
        if self._rounds(name):
            states = self._rounded(graph, f"{name}.input", states, self._inputs[name])
        return super().linear(graph, name, states, weight, bias)

    def _rounded(self, graph: GraphBuilder, name: str, states: str, largest: FloatArray) -> str:
        least = float(np.finfo(self._scale).smallest_normal)
        step = max(float(largest.max()) / self._largest, least)
        scale = graph.constant(f"{name}.scale", np.array(step, self._scale))
        # It is what says which 8 bits these are.
        zero = graph.constant("input.zero", np.zeros((), self._stored))
        values = graph.node("QuantizeLinear", [states, scale, zero], f"{name}.quantized")
        return graph.node("DequantizeLinear", [values, scale], f"{name}.restored")


def _in_layers(name: str) -> bool:
    return name.startswith("model.layers.")
