"""Write the decoder as an ONNX graph: its layers in the order in which they run."""

from __future__ import annotations

from pathlib import Path

from onnx import TensorProto

from serve_app.errors import ModelError
from serve_app.models.architecture import Architecture
from serve_app.models.checkpoint import Checkpoint, Progress, no_progress
from serve_app.models.cpu_form import CpuForm
from serve_app.models.decoder_interface import (
    DATA_FILE,
    GRAPH_FILE,
    INPUT_IDS,
    LOGIT_ROWS,
    LOGITS,
    Form,
)
from serve_app.models.graph_builder import GraphBuilder
from serve_app.models.layer_operators import LayerOperators
from serve_app.models.native_form import NativeDecoder
from serve_app.models.precision.base import Precision
from serve_app.models.standard_form import StandardForm
from serve_app.models.weights import Weights

__all__ = ["write_decoder"]


def write_decoder(
    checkpoint: Checkpoint,
    precision: Precision,
    *,
    form: Form,
    directory: Path,
    cache_length: int | None = None,
    progress: Progress = no_progress,
) -> None:
    """Write `decoder.onnx` and `decoder.onnx.data` into a folder that exists.

    Weights are read, converted and written one tensor (one fused group) at a time.

    Args:
        checkpoint: where the weights come from.
        precision: stores and multiplies them.
        form: which operators the graph is made of.
        directory: where the two files go.
        cache_length: tokens of a slot, which the standard form needs and the others don't fix.
        progress: told of every tensor read, out of all tensors.

    Raises:
        ModelError: form and precision can't take this architecture, the cache is longer than the
            context, or a tensor can't be read.
        OSError: the disk is full or the folder can't be written.
    """
    weights = Weights(checkpoint, progress)
    with GraphBuilder(directory / GRAPH_FILE, directory / DATA_FILE) as graph:
        if form == "native":
            NativeDecoder(graph, weights).write()
        else:
            operators = _operators(graph, checkpoint.architecture, precision, form, cache_length)
            _Decoder(graph, operators, precision, weights).write()
        graph.save()


def _operators(
    graph: GraphBuilder,
    architecture: Architecture,
    precision: Precision,
    form: Form,
    cache_length: int | None,
) -> LayerOperators:
    if form != "standard":
        return CpuForm(graph, architecture)
    if cache_length is None or not 0 < cache_length <= architecture.context_length:
        msg = (
            "The standard form needs a cache length of at least 1 and at most the context of "
            f"{architecture.context_length} tokens, not {cache_length}."
        )
        raise ModelError(msg)
    return StandardForm(graph, architecture, dtype=precision.dtype, cache_length=cache_length)


class _Decoder:
    """The decoder's layers in the order in which they run.

    Values and weights are named as the checkpoint names them, fused ones in its style.
    `residual` is the stream that every layer adds to; `states` are its norm, which linears take.
    """

    def __init__(
        self, graph: GraphBuilder, form: LayerOperators, precision: Precision, weights: Weights
    ) -> None:
        self._graph = graph
        self._form = form
        self._precision = precision
        self._weights = weights
        self._architecture = weights.architecture

    def write(self) -> None:
        """Append the whole decoder, from token ids to logits."""
        graph, form, precision, weights = self._graph, self._form, self._precision, self._weights
        layers = self._architecture.layers
        tokens = graph.input(INPUT_IDS, "int64", ["batch", "sequence"])
        rows = graph.input(LOGIT_ROWS, "int64", ["rows"])
        graph.output(LOGITS, "float32", ["rows", self._architecture.vocab_size])

        name = "model.embed_tokens"
        embedding = precision.table(graph, f"{name}.weight", weights(f"{name}.weight"))
        looked_up = precision.look_up(graph, f"{name}.looked_up", embedding, tokens)
        # From here on a state is a row; only attention cares which sequence it belongs to.
        residual = graph.node("Flatten", [looked_up], name, axis=2)
        # A layer's first norm is fused with the addition that ends the layer before it.
        norms = [
            *(f"model.layers.{layer}.input_layernorm" for layer in range(layers)),
            "model.norm",
        ]
        states = form.norm(norms[0], residual, weights(f"{norms[0]}.weight"))
        for layer in range(layers):
            attended = self._attend(layer, states)
            if layer == layers - 1:
                # Behind the last attention, positions no longer see each other: those whose logits
                # nobody asked for need no feed-forward and no output head.
                attended = self._only(rows, attended)
                residual = self._only(rows, residual)
            update, residual = self._feed_forward(layer, residual, attended)
            norm = norms[layer + 1]
            states, residual = form.norm_sum(norm, residual, update, weights(f"{norm}.weight"))
        exact = precision.dtype == "float32"
        logits = LOGITS if exact else f"{LOGITS}.{precision.dtype}"
        if self._architecture.tied_embeddings:
            precision.project(graph, logits, embedding, states)
        else:
            precision.linear(graph, logits, states, weights("lm_head.weight"))
        if not exact:
            graph.node("Cast", [logits], LOGITS, to=TensorProto.FLOAT)

    def _attend(self, layer: int, states: str) -> str:
        """Append a layer's fused q/k/v projection and its attention."""
        weights, name = self._weights, f"model.layers.{layer}.self_attn"
        projections = [f"{name}.{letter}_proj" for letter in "qkv"]
        weight = weights.stacked(f"{projection}.weight" for projection in projections)
        bias = None
        if self._architecture.attention_bias:
            bias = weights.stacked(f"{projection}.bias" for projection in projections)
        qkv = self._precision.linear(self._graph, f"{name}.qkv_proj", states, weight, bias)
        norms = None
        if self._architecture.qk_norm:
            norms = weights(f"{name}.q_norm.weight"), weights(f"{name}.k_norm.weight")
        return self._form.attention(name, layer, qkv, norms)

    def _feed_forward(self, layer: int, residual: str, attended: str) -> tuple[str, str]:
        """Append what follows a layer's attention; return (update, residual) still to be added."""
        graph, form, precision, weights = self._graph, self._form, self._precision, self._weights
        name = f"model.layers.{layer}"
        o, norm = f"{name}.self_attn.o_proj", f"{name}.post_attention_layernorm"
        gate, up, down = (f"{name}.mlp.{part}_proj.weight" for part in ("gate", "up", "down"))
        update = precision.linear(graph, o, attended, weights(f"{o}.weight"))
        states, residual = form.norm_sum(norm, residual, update, weights(f"{norm}.weight"))
        gate_up = weights.stacked((gate, up))
        wide = precision.linear(graph, f"{name}.mlp.gate_up_proj", states, gate_up)
        active = form.swiglu(f"{name}.mlp", wide)
        return precision.linear(graph, f"{name}.mlp.down_proj", active, weights(down)), residual

    def _only(self, rows: str, values: str) -> str:
        """Append the wanted rows of [batch * sequence, width], as [rows, width]."""
        return self._graph.node("Gather", [values, rows], f"{values}.wanted")
