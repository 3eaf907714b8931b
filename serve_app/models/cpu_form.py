"""The cpu form of the decoder graph: what ONNX Runtime's CPU kernels fuse best."""

from __future__ import annotations

import numpy as np

from serve_app.errors import ModelError
from serve_app.models.architecture import Architecture
from serve_app.models.checkpoint import FloatArray
from serve_app.models.decoder_interface import (
    INPUT_IDS,
    SEQLENS_K,
    TOTAL_SEQUENCE_LENGTH,
    past_key,
    past_value,
    present_key,
    present_value,
)
from serve_app.models.graph_builder import CONTRIB, GraphBuilder
from serve_app.models.rotary import rotary_tables

__all__ = ["CpuForm"]


class CpuForm:
    """Attention, norms and activation from com.microsoft operators.

    GroupQueryAttention does the rotary embedding, writes the new keys and values into the cache in
    place, and masks by each sequence's own length. It takes q, k and v packed.
    """

    def __init__(self, graph: GraphBuilder, architecture: Architecture) -> None:
        """Declare the inputs and outputs that attention needs.

        Raises:
            ModelError: the kernels can't take the architecture.
        """
        # The rotary kernel works on whole vectors of 8 in each half of a head.
        if architecture.head_dim % 16:
            msg = (
                f"The cpu form needs heads of a multiple of 16 elements, not {architecture.head_dim}; "
                "choose another model."
            )
            raise ModelError(msg)
        self._graph = graph
        self._architecture = architecture
        self._lengths = (
            graph.input(SEQLENS_K, "int32", ["batch"]),
            graph.input(TOTAL_SEQUENCE_LENGTH, "int32", []),
        )
        # Of the packed q, k and v: batch and sequence as in the input.
        sizes = graph.node("Shape", [INPUT_IDS], "sequences.sizes")
        width = graph.constant("sequences.width", np.array([-1], np.int64))
        self._sequences = graph.node("Concat", [sizes, width], "sequences.shape", axis=0)
        cosine, sine = rotary_tables(architecture)
        self._rotary = (
            graph.weight("rotary.cosine", cosine),
            graph.weight("rotary.sine", sine),
        )
        cache: list[int | str] = ["batch", architecture.kv_heads, "max_len", architecture.head_dim]
        for layer in range(architecture.layers):
            graph.input(past_key(layer), "float32", cache)
            graph.input(past_value(layer), "float32", cache)
            graph.output(present_key(layer), "float32", cache)
            graph.output(present_value(layer), "float32", cache)

    def norm(self, name: str, states: str, weight: FloatArray) -> str:
        """Append an RMSNorm over the last axis.

        Source: Zhang and Sennrich 2019.
        """
        return self._graph.node(
            "RMSNormalization",
            [states, self._graph.weight(f"{name}.weight", weight)],
            name,
            axis=-1,
            epsilon=self._architecture.norm_eps,
        )

    def norm_sum(
        self, name: str, residual: str, update: str, weight: FloatArray
    ) -> tuple[str, str]:
        """Append residual + update and the RMSNorm of that; return (normed, sum)."""
        total = f"{name}.sum"
        normed = self._graph.node(
            "SkipSimplifiedLayerNormalization",
            [residual, update, self._graph.weight(f"{name}.weight", weight)],
            [name, "", "", total],
            domain=CONTRIB,
            epsilon=self._architecture.norm_eps,
        )
        return normed, total

    def attention(
        self, name: str, layer: int, qkv: str, qk_norm: tuple[FloatArray, FloatArray] | None
    ) -> str:
        """Append a layer's attention over its cache; see `LayerOperators.attention`."""
        shape = self._architecture
        packed = self._graph.node("Reshape", [qkv, self._sequences], f"{name}.packed")
        inputs = (packed, "", "") if qk_norm is None else self._normed_heads(name, packed, qk_norm)
        window = {} if shape.sliding_window is None else {"local_window_size": shape.sliding_window}
        attended = self._graph.node(
            "GroupQueryAttention",
            [*inputs, past_key(layer), past_value(layer), *self._lengths, *self._rotary],
            [f"{name}.sequences", present_key(layer), present_value(layer)],
            domain=CONTRIB,
            num_heads=shape.heads,
            kv_num_heads=shape.kv_heads,
            do_rotary=1,
            **window,
        )
        return self._graph.node("Flatten", [attended], name, axis=2)

    def swiglu(self, name: str, gate_up: str) -> str:
        """Append silu(gate) * up from [..., 2 * intermediate], gate first.

        Source: Shazeer 2020.
        """
        sizes = self._graph.constant(
            "gate_up.sizes", np.array([self._architecture.intermediate] * 2, np.int64)
        )
        gate, up = f"{name}.gate", f"{name}.up"
        self._graph.node("Split", [gate_up, sizes], [gate, up], axis=-1)
        # With alpha 1, QuickGelu is the SiLU.
        active = self._graph.node("QuickGelu", [gate], f"{name}.silu", domain=CONTRIB, alpha=1.0)
        return self._graph.node("Mul", [active, up], name)

    def _normed_heads(
        self, name: str, qkv: str, weights: tuple[FloatArray, FloatArray]
    ) -> tuple[str, str, str]:
        """Split packed q, k, v and norm each head of q and k."""
        shape, graph = self._architecture, self._graph
        widths = np.array([shape.heads, shape.kv_heads, shape.kv_heads], np.int64) * shape.head_dim
        parts = [f"{name}.query", f"{name}.key", f"{name}.value"]
        graph.node("Split", [qkv, graph.constant("qkv.sizes", widths)], parts, axis=-1)
        # 0 keeps a dimension as it is.
        heads = graph.constant("heads.shape", np.array([0, 0, -1, shape.head_dim], np.int64))
        packed = graph.constant("packed.shape", np.array([0, 0, -1], np.int64))
        normed = []
        for part, weight in zip(parts[:2], weights, strict=True):
            by_head = graph.node("Reshape", [part, heads], f"{part}.heads")
            by_head = self.norm(f"{part}.norm", by_head, weight)
            normed.append(graph.node("Reshape", [by_head, packed], f"{part}.normed"))
        return normed[0], normed[1], parts[2]
