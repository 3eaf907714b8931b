"""Names, types and shapes of the decoder graph's inputs and outputs: the border between models and engine.

The cpu form runs one *step* over a batch of sequences, each with its own slot of the K/V cache:

| tensor | type | shape |
| --- | --- | --- |
| `input_ids` | int64 | [batch, sequence] |
| `seqlens_k` | int32 | [batch], tokens in the cache after the step, minus 1 |
| `total_sequence_length` | int32 | scalar, the most tokens any sequence has after the step |
| `logit_rows` | int64 | [rows], rows of the flattened [batch * sequence] whose logits are wanted |
| `past.{layer}.key`, `past.{layer}.value` | float32 | [batch, kv_heads, max_len, head_dim] |
| `logits` (output) | float32 | [rows, vocab_size] |
| `present.{layer}.key`, `present.{layer}.value` (output) | float32 | like past |

The caller binds past and present of a layer to the same memory, so the step writes in place. More
than one new token per sequence on top of a past needs batch 1; a decode step has sequence 1 and any
batch, with lengths that differ.

The native form takes rows that know where they belong, any mix of sequences and positions, and the
whole cache. It has no present: it writes into the past.

| tensor | type | shape |
| --- | --- | --- |
| `input_ids` | int64 | [tokens] |
| `slots`, `positions` | int32 | [tokens], where each token's K/V goes |
| `logit_rows` | int64 | [rows], tokens whose logits are wanted |
| `past.{layer}.key` | float16 | [slots, kv_heads, max_len, head_dim], in tiles [head_dim, 16] of 16 positions |
| `past.{layer}.value` | float16 | [slots, kv_heads, max_len, head_dim] |
| `logits` (output) | float32 | [rows, vocab_size] |

The standard form runs a step over a batch too, but its cache has one length, fixed in the graph. A
float is whatever the precision computes in.

| tensor | type | shape |
| --- | --- | --- |
| `input_ids` | int64 | [batch, sequence] |
| `write_indices` | int64 | [batch], tokens in the cache before the step |
| `logit_rows` | int64 | [rows], rows of the flattened [batch * sequence] whose logits are wanted |
| `past.{layer}.key`, `past.{layer}.value` | float | [batch, kv_heads, cache_length, head_dim] |
| `logits` (output) | float32 | [rows, vocab_size] |
| `present.{layer}.key`, `present.{layer}.value` (output) | float | like past |

Past and present are the same memory, as in the cpu form. Any batch may have any number of new tokens
each, as long as they end within the cache. What the cache holds where nothing has been written has no
weight in the result, but must be finite: take zeroed memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.models.architecture import Architecture
from serve_app.models.element_types import FloatName, float_dtype
from serve_app.settings import FormName

__all__ = [
    "DATA_FILE",
    "GRAPH_FILE",
    "INPUT_IDS",
    "KEY_TILE",
    "LOGITS",
    "LOGIT_ROWS",
    "POSITIONS",
    "SEQLENS_K",
    "SLOTS",
    "TOTAL_SEQUENCE_LENGTH",
    "WRITE_INDICES",
    "DecoderInterface",
    "Form",
    "past_key",
    "past_value",
    "present_key",
    "present_value",
]

Form = FormName

GRAPH_FILE = "decoder.onnx"
DATA_FILE = "decoder.onnx.data"

INPUT_IDS = "input_ids"
SEQLENS_K = "seqlens_k"
TOTAL_SEQUENCE_LENGTH = "total_sequence_length"
LOGIT_ROWS = "logit_rows"
LOGITS = "logits"
SLOTS = "slots"
POSITIONS = "positions"
WRITE_INDICES = "write_indices"

# Positions whose keys lie together in the native form's cache, [head_dim, KEY_TILE].
KEY_TILE = 16


def past_key(layer: int) -> str:
    """Return the name of the input that holds a layer's cached keys."""
    return f"past.{layer}.key"


def past_value(layer: int) -> str:
    """Return the name of the input that holds a layer's cached values."""
    return f"past.{layer}.value"


def present_key(layer: int) -> str:
    """Return the name of the output that holds a layer's keys after the step."""
    return f"present.{layer}.key"


def present_value(layer: int) -> str:
    """Return the name of the output that holds a layer's values after the step."""
    return f"present.{layer}.value"


@dataclass(frozen=True, slots=True)
class DecoderInterface:
    """What an engine must know of a decoder graph to feed it.

    Attributes:
        form: form of the graph.
        layers: number of K/V cache pairs.
        kv_heads: heads in the cache.
        head_dim: elements of one head.
        hidden: elements of one hidden state.
        vocab_size: width of the logits.
        context_length: most tokens one sequence may hold; also the limit of `max_len`.
        cache_dtype: name of the cache's element type.
        cache_length: tokens of a slot where the graph fixes them, else None.
    """

    form: Form
    layers: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab_size: int
    context_length: int
    cache_dtype: FloatName = "float32"
    cache_length: int | None = None

    @classmethod
    def of(
        cls,
        architecture: Architecture,
        form: Form = "cpu",
        *,
        dtype: FloatName = "float32",
        cache_length: int | None = None,
    ) -> DecoderInterface:
        """Return the interface of the graph that `build_decoder` writes for an architecture.

        Args:
            architecture: what the checkpoint is.
            form: form of the graph.
            dtype: element type of the states, which the standard form caches as they are.
            cache_length: tokens of a slot in the standard form, else None.
        """
        return cls(
            form=form,
            layers=architecture.layers,
            kv_heads=architecture.kv_heads,
            head_dim=architecture.head_dim,
            hidden=architecture.hidden,
            vocab_size=architecture.vocab_size,
            context_length=cache_length or architecture.context_length,
            cache_dtype="float16" if form == "native" else dtype,
            cache_length=cache_length,
        )

    @property
    def token_bytes(self) -> int:
        """Bytes of K/V that one token takes."""
        itemsize = float_dtype(self.cache_dtype).itemsize
        return 2 * self.layers * self.kv_heads * self.head_dim * itemsize

    def cache_shape(self, batch: int, max_len: int) -> tuple[int, int, int, int]:
        """Return the shape of one layer's key or value cache."""
        return (batch, self.kv_heads, max_len, self.head_dim)

    @property
    def cache_names(self) -> tuple[tuple[str, str], ...]:
        """(past, present) names, in the order key, value of layer 0, then of layer 1, and so on."""
        return tuple(
            names
            for layer in range(self.layers)
            for names in (
                (past_key(layer), present_key(layer)),
                (past_value(layer), present_value(layer)),
            )
        )
