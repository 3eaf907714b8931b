"""A Hugging Face config.json as an architecture, of transformers 4 and 5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from serve_app.errors import ModelError
from serve_app.models.architecture import FAMILIES, Architecture, Family, RopeScaling

__all__ = ["architecture_from_config"]


class _Rope(BaseModel):
    """`rope_parameters` (transformers 5) or `rope_scaling` (transformers 4)."""

    model_config = ConfigDict(extra="ignore", strict=True)

    rope_type: str | None = None
    type: str | None = None  # the older name of rope_type
    rope_theta: float | None = None
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None
    partial_rotary_factor: float = 1.0

    @property
    def kind(self) -> str:
        return self.rope_type or self.type or "default"


class _Config(BaseModel):
    """The keys that decide what the weights compute."""

    model_config = ConfigDict(extra="ignore", strict=True)

    model_type: Family
    hidden_act: Literal["silu", "swish"] = "silu"
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope_theta: float | None = None
    rope_scaling: _Rope | None = None
    rope_parameters: _Rope | None = None
    partial_rotary_factor: float = 1.0
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    sliding_window: int | None = None
    use_sliding_window: bool = False
    max_window_layers: int = 28
    layer_types: list[str] | None = None


def architecture_from_config(config: Mapping[str, Any], *, where: str) -> Architecture:
    """Read what a config.json says about the decoder.

    Args:
        config: the parsed file.
        where: its name for the error.

    Raises:
        ModelError: naming the key that is missing, wrong, or asks for something that is not
            supported (another family, remote code, quantized weights, another rope scaling).
    """
    family = config.get("model_type")
    if "auto_map" in config:
        msg = f"{where} asks for code of its own (auto_map); Parley runs no remote code."
        raise ModelError(msg)
    if family not in FAMILIES:
        msg = f"{where}: models of type {family!r} are not supported, only {', '.join(FAMILIES)}."
        raise ModelError(msg)
    if "quantization_config" in config:
        msg = f"{where}: the weights are quantized (quantization_config); use the original model."
        raise ModelError(msg)
    try:
        parsed = _Config.model_validate(config)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
            for fault in error.errors(include_input=False, include_url=False)
        )
        msg = f"{where} is not usable: {faults}."
        raise ModelError(msg) from None
    try:
        return _architecture(parsed)
    except ModelError as error:
        msg = f"{where}: {error.message}"
        raise ModelError(msg) from error


def _architecture(config: _Config) -> Architecture:
    rope = config.rope_parameters or config.rope_scaling or _Rope()
    if min(config.partial_rotary_factor, rope.partial_rotary_factor) != 1.0:
        msg = "A rotary embedding of a part of each head (partial_rotary_factor) is not supported."
        raise ModelError(msg)
    return Architecture(
        family=config.model_type,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads or config.num_attention_heads,
        head_dim=config.head_dim or _head_dim(config),
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        vocab_size=config.vocab_size,
        context_length=config.max_position_embeddings,
        rope_theta=rope.rope_theta or config.rope_theta or 10_000.0,
        rope_scaling=_rope_scaling(rope, config.max_position_embeddings),
        norm_eps=config.rms_norm_eps,
        tied_embeddings=config.tie_word_embeddings,
        attention_bias=config.attention_bias or config.model_type == "qwen2",
        qk_norm=config.model_type == "qwen3",
        sliding_window=_sliding_window(config),
    )


def _head_dim(config: _Config) -> int:
    if config.model_type == "qwen3":
        return 128  # the family's default, whatever the hidden size
    if config.num_attention_heads <= 0 or config.hidden_size % config.num_attention_heads:
        msg = f"hidden_size {config.hidden_size} can't be split into {config.num_attention_heads} heads."
        raise ModelError(msg)
    return config.hidden_size // config.num_attention_heads


def _rope_scaling(rope: _Rope, context_length: int) -> RopeScaling | None:
    if rope.kind == "default":
        return None
    if rope.kind not in ("linear", "llama3"):
        msg = f"Rope scaling of type {rope.kind!r} is not supported, only linear and llama3."
        raise ModelError(msg)
    if rope.factor is None:
        msg = f"Rope scaling of type {rope.kind} needs a factor."
        raise ModelError(msg)
    if rope.kind == "linear":
        return RopeScaling("linear", rope.factor)
    return RopeScaling(
        "llama3",
        rope.factor,
        low_freq_factor=rope.low_freq_factor,
        high_freq_factor=rope.high_freq_factor,
        original_context_length=rope.original_max_position_embeddings or context_length,
    )


def _sliding_window(config: _Config) -> int | None:
    if config.model_type == "llama":
        return None  # the family has no window, whatever the key says
    if config.model_type == "mistral":
        return config.sliding_window if "sliding_window" in config.model_fields_set else 4096
    if not config.use_sliding_window or config.sliding_window is None:
        return None
    # Qwen's first max_window_layers layers see everything; newer files say it layer by layer.
    types = config.layer_types or [
        "full_attention" if layer < config.max_window_layers else "sliding_attention"
        for layer in range(min(config.num_hidden_layers, config.max_window_layers + 1))
    ]
    if set(types) == {"full_attention"}:
        return None
    if set(types) == {"sliding_attention"}:
        return config.sliding_window
    msg = "A sliding window in some layers only (max_window_layers, layer_types) is not supported."
    raise ModelError(msg)
