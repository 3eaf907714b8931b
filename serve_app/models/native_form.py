"""The native form of the decoder graph: Parley's own operators, five of them per layer."""

from __future__ import annotations

import numpy as np

from serve_app.errors import ModelError
from serve_app.kernels.library import DOMAIN
from serve_app.models.checkpoint import FloatArray
from serve_app.models.decoder_interface import (
    INPUT_IDS,
    LOGIT_ROWS,
    LOGITS,
    POSITIONS,
    SLOTS,
    past_key,
    past_value,
)
from serve_app.models.graph_builder import GraphBuilder
from serve_app.models.packed_blocks import pack, paired
from serve_app.models.rotary import rotary_tables
from serve_app.models.weights import Weights

__all__ = ["NativeDecoder"]

# What the attention operator has room for.
_MOST_HEAD_DIM = 1024


class NativeDecoder:
    """The decoder's layers in the order in which they run, in 8-bit blocks.

    A Linear takes the norm before it and the addition behind it along, and rounds its inputs to 8
    bits by blocks of 32. Attention writes the new keys and values into the cache in half precision.
    Rows know their slot and position and nothing of each other, so a step may hold any mix of them.

    Args:
        graph: where to append it.
        weights: the checkpoint's tensors.

    Raises:
        ModelError: the operators can't take the architecture.
    """

    def __init__(self, graph: GraphBuilder, weights: Weights) -> None:
        shape = weights.architecture
        if shape.head_dim % 16 or shape.head_dim > _MOST_HEAD_DIM:
            msg = (
                f"The native form needs heads of a multiple of 16 elements up to {_MOST_HEAD_DIM}, "
                f"not {shape.head_dim}; choose another model."
            )
            raise ModelError(msg)
        self._graph = graph
        self._weights = weights
        self._architecture = shape
        cosine, sine = rotary_tables(shape)
        self._rotary = graph.weight("rotary.cosine", cosine), graph.weight("rotary.sine", sine)
        self._nothing = graph.constant("nothing", np.zeros(0, np.float32))

    def write(self) -> None:
        """Append the whole decoder, from token ids to logits."""
        graph, weights, shape = self._graph, self._weights, self._architecture
        tokens = graph.input(INPUT_IDS, "int64", ["tokens"])
        places = (
            graph.input(SLOTS, "int32", ["tokens"]),
            graph.input(POSITIONS, "int32", ["tokens"]),
        )
        rows = graph.input(LOGIT_ROWS, "int64", ["rows"])
        graph.output(LOGITS, "float32", ["rows", shape.vocab_size])
        cache: list[int | str] = ["slots", shape.kv_heads, "max_len", shape.head_dim]
        for layer in range(shape.layers):
            graph.input(past_key(layer), "float16", cache)
            graph.input(past_value(layer), "float16", cache)

        name = "model.embed_tokens"
        table = self._packed(f"{name}.weight", weights(f"{name}.weight"))
        residual = graph.node("Embed", [tokens, table], name, domain=DOMAIN, width=shape.hidden)
        for layer in range(shape.layers):
            attended = self._attention(layer, residual, places)
            if layer == shape.layers - 1:
                # Behind the last attention, positions no longer see each other: those whose logits
                # nobody asked for need no feed-forward and no output head.
                attended = graph.node("Gather", [attended, rows], f"{attended}.wanted")
                residual = graph.node("Gather", [residual, rows], f"{residual}.wanted")
            residual = self._feed_forward(layer, attended, residual)
        if not shape.tied_embeddings:
            table = self._packed("lm_head.weight", weights("lm_head.weight"))
        self._linear(LOGITS, residual, table, shape.vocab_size, norm="model.norm.weight")

    def _attention(self, layer: int, residual: str, places: tuple[str, str]) -> str:
        weights, shape, name = self._weights, self._architecture, f"model.layers.{layer}.self_attn"
        projections = [f"{name}.{letter}_proj" for letter in "qkv"]
        weight = weights.stacked(f"{projection}.weight" for projection in projections)
        bias = self._nothing
        if shape.attention_bias:
            stacked = weights.stacked(f"{projection}.bias" for projection in projections)
            bias = self._graph.weight(f"{name}.qkv_proj.bias", stacked)
        qkv = self._linear(
            f"{name}.qkv_proj",
            residual,
            self._packed(f"{name}.qkv_proj.weight", weight),
            len(weight),
            norm=f"model.layers.{layer}.input_layernorm.weight",
            bias=bias,
        )
        norms = [self._nothing] * 2
        if shape.qk_norm:
            norms = [self._vector(f"{name}.{letter}_norm.weight") for letter in "qk"]
        return self._graph.node(
            "Attention",
            [qkv, past_key(layer), past_value(layer), *places, *self._rotary, *norms],
            name,
            domain=DOMAIN,
            num_heads=shape.heads,
            kv_num_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            window=shape.sliding_window or 0,
            epsilon=shape.norm_eps,
        )

    def _feed_forward(self, layer: int, attended: str, residual: str) -> str:
        weights, shape, name = self._weights, self._architecture, f"model.layers.{layer}"
        o, gate, up, down = (
            f"{name}.{part}_proj.weight"
            for part in ("self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
        )
        residual = self._linear(
            f"{name}.self_attn.o_proj",
            attended,
            self._packed(o, weights(o)),
            shape.hidden,
            residual=residual,
        )
        gate_up = f"{name}.mlp.gate_up_proj"
        active = self._linear(
            gate_up,
            residual,
            self._packed(f"{gate_up}.weight", paired(weights(gate), weights(up))),
            shape.intermediate,
            norm=f"{name}.post_attention_layernorm.weight",
            swiglu=True,
        )
        return self._linear(
            f"{name}.mlp.down_proj",
            active,
            self._packed(down, weights(down)),
            shape.hidden,
            residual=residual,
        )

    def _linear(
        self,
        name: str,
        states: str,
        packed: str,
        width: int,
        *,
        norm: str | None = None,
        bias: str | None = None,
        residual: str | None = None,
        swiglu: bool = False,
    ) -> str:
        """Append a Linear, with what it takes along.

        Args:
            name: name of the result, [rows, width].
            states: [rows, in].
            packed: the packed weights.
            width: outputs of a row.
            norm: name of the RMSNorm's weight that the states go through first.
            bias: added to the product, [width].
            residual: added as well, [rows, width].
            swiglu: whether the product is paired gates and ups, of which silu(gate) * up is the result.
        """
        nothing = self._nothing
        normed = nothing if norm is None else self._vector(norm)
        return self._graph.node(
            "Linear",
            [states, normed, packed, bias or nothing, residual or nothing],
            name,
            domain=DOMAIN,
            width=width,
            swiglu=int(swiglu),
            epsilon=self._architecture.norm_eps,
        )

    def _packed(self, name: str, weight: FloatArray) -> str:
        return self._graph.weight(f"{name}.blocks", pack(name, weight))

    def _vector(self, name: str) -> str:
        return self._graph.weight(name, self._weights(name))
