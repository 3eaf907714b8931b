"""What kind of decoder a checkpoint holds: every number that the graph and the engine depend on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from serve_app.errors import ModelError

__all__ = ["FAMILIES", "Architecture", "Family", "RopeScaling"]

Family = Literal["llama", "mistral", "qwen2", "qwen3"]
FAMILIES: tuple[Family, ...] = get_args(Family)

# Far above any real model and far below what would make a loop or an allocation dangerous: a
# broken file must be refused before its numbers are believed.
_LARGEST = {
    "layers": 1_024,
    "heads": 4_096,
    "kv_heads": 4_096,
    "head_dim": 4_096,
    "hidden": 1 << 20,
    "intermediate": 1 << 22,
    "vocab_size": 1 << 23,
    "context_length": 1 << 31,
}


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts longer than the model was first trained on.

    Attributes:
        kind: "linear" divides every frequency by `factor`; "llama3" divides the low ones, keeps
            the high ones and blends between them.
        factor: how far the context is stretched.
        low_freq_factor: llama3: wavelengths above original_context_length / low_freq_factor count
            as low frequencies.
        high_freq_factor: llama3: wavelengths below original_context_length / high_freq_factor
            count as high frequencies.
        original_context_length: llama3: tokens of context before stretching.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_context_length: int | None = None

    def __post_init__(self) -> None:
        if not self.factor > 0:
            msg = f"Rope scaling needs a factor above 0, not {self.factor}."
            raise ModelError(msg)
        if self.kind == "llama3":
            low, high = self.low_freq_factor, self.high_freq_factor
            if low is None or high is None or not self.original_context_length:
                msg = (
                    "Rope scaling of kind llama3 needs low_freq_factor, high_freq_factor and "
                    "the original context length."
                )
                raise ModelError(msg)
            if not 0 < low < high:
                msg = (
                    f"Rope scaling needs 0 < low_freq_factor < high_freq_factor, not {low}, {high}."
                )
                raise ModelError(msg)


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape of a decoder-only transformer: RMSNorm, rotary embedding, grouped queries, SwiGLU.

    Attributes:
        family: which of the supported families the weights belong to.
        layers: decoder layers.
        heads: query heads per layer.
        kv_heads: key and value heads per layer; divides `heads`.
        head_dim: width of one head; even.
        hidden: width of the residual stream.
        intermediate: width of the feed-forward layer.
        vocab_size: rows of the embedding.
        context_length: most tokens in one sequence.
        rope_theta: base of the rotary frequencies.
        rope_scaling: how the frequencies are stretched, or None.
        norm_eps: epsilon of every RMSNorm.
        tied_embeddings: the output head is the embedding transposed.
        attention_bias: q, k and v projections have biases (the o projection never has).
        qk_norm: queries and keys are normalised per head before the rotary embedding.
        sliding_window: tokens that a position attends to, itself included; None for all.
    """

    family: Family
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    vocab_size: int
    context_length: int
    rope_theta: float
    rope_scaling: RopeScaling | None
    norm_eps: float
    tied_embeddings: bool
    attention_bias: bool
    qk_norm: bool
    sliding_window: int | None

    def __post_init__(self) -> None:
        for name, largest in _LARGEST.items():
            value = getattr(self, name)
            if not 0 < value <= largest:
                msg = f"The architecture's {name} must be between 1 and {largest}, not {value}."
                raise ModelError(msg)
        if self.heads % self.kv_heads:
            msg = f"{self.heads} query heads can't be shared by {self.kv_heads} key-value heads."
            raise ModelError(msg)
        if self.head_dim % 2:
            msg = f"The rotary embedding needs an even head size, not {self.head_dim}."
            raise ModelError(msg)
        if not (self.rope_theta > 0 and self.norm_eps > 0):
            msg = f"rope_theta ({self.rope_theta}) and norm_eps ({self.norm_eps}) must be above 0."
            raise ModelError(msg)
        if self.sliding_window is not None and self.sliding_window <= 0:
            msg = f"The sliding window must be above 0, not {self.sliding_window}."
            raise ModelError(msg)

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield (name, shape) of every weight, with Hugging Face's names and [out, in] layout."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield "model.embed_tokens.weight", (self.vocab_size, self.hidden)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}"
            yield f"{prefix}.input_layernorm.weight", (self.hidden,)
            for letter, width in (("q", queries), ("k", keys), ("v", keys)):
                yield f"{prefix}.self_attn.{letter}_proj.weight", (width, self.hidden)
                if self.attention_bias:
                    yield f"{prefix}.self_attn.{letter}_proj.bias", (width,)
            if self.qk_norm:
                yield f"{prefix}.self_attn.q_norm.weight", (self.head_dim,)
                yield f"{prefix}.self_attn.k_norm.weight", (self.head_dim,)
            yield f"{prefix}.self_attn.o_proj.weight", (self.hidden, queries)
            yield f"{prefix}.post_attention_layernorm.weight", (self.hidden,)
            yield f"{prefix}.mlp.gate_proj.weight", (self.intermediate, self.hidden)
            yield f"{prefix}.mlp.up_proj.weight", (self.intermediate, self.hidden)
            yield f"{prefix}.mlp.down_proj.weight", (self.hidden, self.intermediate)
        yield "model.norm.weight", (self.hidden,)
        if not self.tied_embeddings:
            yield "lm_head.weight", (self.vocab_size, self.hidden)
