"""The standard form of the decoder graph: ONNX's own operators alone, as TensorRT's parser takes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from serve_app.models.architecture import Architecture
from serve_app.models.checkpoint import FloatArray
from serve_app.models.decoder_interface import (
    INPUT_IDS,
    WRITE_INDICES,
    past_key,
    past_value,
    present_key,
    present_value,
)
from serve_app.models.element_types import FloatName, float_dtype
from serve_app.models.graph_builder import GraphBuilder
from serve_app.models.rotary import rotary_tables

__all__ = ["StandardForm"]


class StandardForm:
    """Attention over a cache of fixed length, written in place by TensorScatter.

    What a query may see is a boolean mask, shared by all layers: TensorRT reads `is_causal` from the
    upper left corner, which is wrong as soon as there is a past, and takes no lengths.

    Args:
        graph: where to append it.
        architecture: what the checkpoint is.
        dtype: element type of the states and of the cache.
        cache_length: tokens of a slot.
    """

    def __init__(
        self,
        graph: GraphBuilder,
        architecture: Architecture,
        *,
        dtype: FloatName,
        cache_length: int,
    ) -> None:
        self._graph = graph
        self._architecture = architecture
        self._element = float_dtype(dtype)
        self._starts = graph.input(WRITE_INDICES, "int64", ["batch"])
        cache: list[int | str] = [
            "batch",
            architecture.kv_heads,
            cache_length,
            architecture.head_dim,
        ]
        for layer in range(architecture.layers):
            graph.input(past_key(layer), dtype, cache)
            graph.input(past_value(layer), dtype, cache)
            graph.output(present_key(layer), dtype, cache)
            graph.output(present_value(layer), dtype, cache)
        cosine, sine = rotary_tables(architecture)
        self._rotary = (
            self._weight("rotary.cosine", cosine[:cache_length]),
            self._weight("rotary.sine", sine[:cache_length]),
        )
        sizes = graph.node("Shape", [INPUT_IDS], "sequences.sizes")
        # Of the packed q, k and v: batch and sequence as in the input, then heads.
        heads = architecture.heads + 2 * architecture.kv_heads
        by_head = self._integers("sequences.heads", [heads, architecture.head_dim])
        self._sequences = graph.node("Concat", [sizes, by_head], "sequences.shape", axis=0)
        self._positions = self._new_positions(sizes)
        self._mask = self._visible(cache_length)

    def norm(self, name: str, states: str, weight: FloatArray) -> str:
        """Append an RMSNorm over the last axis, computed in fp32 whatever the states are.

        Source: Zhang and Sennrich 2019.
        """
        return self._graph.node(
            "RMSNormalization",
            [states, self._weight(f"{name}.weight", weight)],
            name,
            axis=-1,
            epsilon=self._architecture.norm_eps,
        )

    def norm_sum(
        self, name: str, residual: str, update: str, weight: FloatArray
    ) -> tuple[str, str]:
        """Append residual + update and the RMSNorm of that; return (normed, sum)."""
        total = self._graph.node("Add", [residual, update], f"{name}.sum")
        return self.norm(name, total, weight), total

    def attention(
        self, name: str, layer: int, qkv: str, qk_norm: tuple[FloatArray, FloatArray] | None
    ) -> str:
        """Append a layer's attention over its cache; see `LayerOperators.attention`."""
        shape, graph = self._architecture, self._graph
        by_head = graph.node("Reshape", [qkv, self._sequences], f"{name}.heads")
        by_head = graph.node("Transpose", [by_head], f"{name}.packed", perm=[0, 2, 1, 3])
        sizes = self._integers("qkv.sizes", [shape.heads, shape.kv_heads, shape.kv_heads])
        query, key, value = (f"{name}.{part}" for part in ("query", "key", "value"))
        graph.node("Split", [by_head, sizes], [query, key, value], axis=1)
        if qk_norm is not None:
            query, key = (
                self.norm(f"{part}.norm", part, weight)
                for part, weight in zip((query, key), qk_norm, strict=True)
            )
        attended = graph.node(
            "Attention",
            [
                self._rotated(query),
                self._written(past_key(layer), self._rotated(key), present_key(layer)),
                self._written(past_value(layer), value, present_value(layer)),
                self._mask,
            ],
            f"{name}.attended",
        )
        by_token = graph.node("Transpose", [attended], f"{name}.tokens", perm=[0, 2, 1, 3])
        rows = self._integers("attended.rows", [-1, shape.heads * shape.head_dim])
        return graph.node("Reshape", [by_token, rows], name)

    def swiglu(self, name: str, gate_up: str) -> str:
        """Append silu(gate) * up from [..., 2 * intermediate], gate first.

        Source: Shazeer 2020.
        """
        graph, width = self._graph, self._architecture.intermediate
        gate, up = f"{name}.gate", f"{name}.up"
        graph.node(
            "Split", [gate_up, self._integers("gate_up.sizes", [width, width])], [gate, up], axis=-1
        )
        sigmoid = graph.node("Sigmoid", [gate], f"{name}.sigmoid")
        active = graph.node("Mul", [gate, sigmoid], f"{name}.silu")
        return graph.node("Mul", [active, up], name)

    def _new_positions(self, sizes: str) -> str:
        """Append the positions of the new tokens, [batch, sequence]."""
        graph = self._graph
        zero, one = (
            graph.constant(f"positions.{name}", np.array(value, np.int64))
            for name, value in (("zero", 0), ("one", 1))
        )
        count = graph.node("Gather", [sizes, one], "positions.count")
        offsets = graph.node("Range", [zero, count, one], "positions.offsets")
        last = self._integers("positions.last", [-1])
        starts = graph.node("Unsqueeze", [self._starts, last], "positions.starts")
        return graph.node("Add", [starts, offsets], "positions")

    def _visible(self, cache_length: int) -> str:
        """Append what each new token sees of its slot, [batch, 1, sequence, cache_length]."""
        graph, window = self._graph, self._architecture.sliding_window
        axes = self._integers("mask.axes", [1, 3])
        positions = graph.node("Unsqueeze", [self._positions, axes], "mask.positions")
        places = np.arange(cache_length, dtype=np.int64).reshape(1, 1, 1, cache_length)
        cached = graph.weight("mask.places", places)
        if window is None:
            return graph.node("LessOrEqual", [cached, positions], "mask")
        past = graph.node("LessOrEqual", [cached, positions], "mask.past")
        width = graph.constant("mask.window", np.array(window, np.int64))
        edge = graph.node("Sub", [positions, width], "mask.edge")
        near = graph.node("Greater", [cached, edge], "mask.near")
        return graph.node("And", [past, near], "mask")

    def _rotated(self, heads: str) -> str:
        """Append the rotary embedding of [batch, heads, sequence, head_dim]."""
        return self._graph.node(
            "RotaryEmbedding", [heads, *self._rotary, self._positions], f"{heads}.rotated"
        )

    def _written(self, past: str, update: str, present: str) -> str:
        """Append a cache with an update written into it."""
        return self._graph.node(
            "TensorScatter", [past, update, self._starts], present, axis=-2, mode="linear"
        )

    def _weight(self, name: str, array: FloatArray) -> str:
        return self._graph.weight(name, array.astype(self._element))

    def _integers(self, name: str, values: Sequence[int]) -> str:
        return self._graph.constant(name, np.array(values, np.int64))
