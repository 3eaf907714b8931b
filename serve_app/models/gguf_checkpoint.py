"""A GGUF file as a checkpoint: its architecture, and its tensors under Hugging Face's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from serve_app.errors import ModelError
from serve_app.models.architecture import FAMILIES, Architecture, Family, RopeScaling
from serve_app.models.checkpoint import FloatArray, check_tensors
from serve_app.models.gguf_file import GgufFile
from serve_app.models.gguf_tokenizer import tokenizer_from_gguf
from serve_app.models.tokenizer_files import TokenizerFiles

__all__ = ["GgufCheckpoint"]

_QUANT_SUFFIX = re.compile(r"[.-](I?Q\d\w*|F16|F32|BF16)$", re.IGNORECASE)

_ROPE_FACTORS = "rope_freqs.weight"
_MODEL_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_MODEL_NAME = re.compile(r"(\w+)\.(weight|bias)")
_ROTARY_NAME = re.compile(r"self_attn\.([qk])_proj\.(?:weight|bias)$")


class GgufCheckpoint:
    """The weights and tokenizer of one GGUF file.

    Attributes:
        architecture: what the weights are for.
        name: the file's name without its ending and its quantization.
        source: the file's path, or "bundled".
        files: the file.

    Raises:
        ModelError: the file is broken, or holds a model that is not supported.
    """

    def __init__(self, path: Path, *, source: str | None = None) -> None:
        self._file = GgufFile(path)
        self.source = source or str(path)
        self.name = _QUANT_SUFFIX.sub("", path.stem)
        self.files = (path,)
        self._names = {_hf_name(stored): stored for stored in self._file.shapes}
        self._names.pop(_ROPE_FACTORS, None)
        self.architecture = _read_architecture(self._file)
        # llama.cpp pairs neighbouring elements of a head in the rotary embedding, Hugging Face
        # pairs the halves; its conversion reorders the rows of q and k for this family only.
        self._interleaved = self._file.metadata["general.architecture"] in ("llama", "mistral")
        shapes = {name: self._file.shapes[stored] for name, stored in self._names.items()}
        check_tensors(self.architecture, shapes, where=str(path))

    def has(self, name: str) -> bool:
        """Say whether the tensor is in the checkpoint."""
        return name in self._names

    def tensor(self, name: str) -> FloatArray:
        """Read one tensor as float32, dequantized and in Hugging Face's layout.

        Raises:
            ModelError: there is no such tensor.
        """
        if name not in self._names:
            msg = f"{self._file.path} holds no tensor {name}."
            raise ModelError(msg)
        stored = self._file.read(self._names[name])
        if self._interleaved and (rotary := _ROTARY_NAME.search(name)):
            heads = self.architecture.heads if rotary[1] == "q" else self.architecture.kv_heads
            return _halves(stored, heads)
        return stored

    def tokenizer(self) -> TokenizerFiles:
        """Rebuild the tokenizer from the file's metadata.

        Raises:
            ModelError: it is incomplete or of a kind that can't be rebuilt exactly.
        """
        return tokenizer_from_gguf(self._file.metadata, where=str(self._file.path))


def _halves(rows: FloatArray, heads: int) -> FloatArray:
    """Reorder the rows of each head from (pair, half) to (half, pair)."""
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _hf_name(stored: str) -> str:
    """Translate a tensor's name; one that has no translation stays and is refused by name."""
    if (match := _LAYER_NAME.fullmatch(stored)) and match[2] in _LAYER_TENSORS:
        return f"model.layers.{match[1]}.{_LAYER_TENSORS[match[2]]}.{match[3]}"
    if (match := _MODEL_NAME.fullmatch(stored)) and match[1] in _MODEL_TENSORS:
        return f"{_MODEL_TENSORS[match[1]]}.{match[2]}"
    return stored


def _read_architecture(file: GgufFile) -> Architecture:
    where = str(file.path)
    name = file.metadata.get("general.architecture")
    if name not in FAMILIES:
        msg = f"{where}: models of type {name!r} are not supported, only {', '.join(FAMILIES)}."
        raise ModelError(msg)
    family = cast("Family", name)
    numbers = _Numbers(file.metadata, family, where)
    if numbers.integer("expert_count", 0):
        msg = f"{where}: mixtures of experts are not supported."
        raise ModelError(msg)
    embedding = file.shapes.get("token_embd.weight", ())
    if len(embedding) != 2:
        msg = f"{where}: tensor token_embd.weight is missing or is not a matrix."
        raise ModelError(msg)
    hidden, heads = numbers.integer("embedding_length"), numbers.integer("attention.head_count")
    head_dim = numbers.integer("attention.key_length", hidden // heads if heads else 0)
    for key in ("attention.value_length", "rope.dimension_count"):
        if numbers.integer(key, head_dim) != head_dim:
            msg = f"{where}: {family}.{key} differs from the head size {head_dim}; not supported."
            raise ModelError(msg)
    try:
        return Architecture(
            family=family,
            layers=numbers.integer("block_count"),
            heads=heads,
            kv_heads=numbers.integer("attention.head_count_kv", heads),
            head_dim=head_dim,
            hidden=hidden,
            intermediate=numbers.integer("feed_forward_length"),
            vocab_size=embedding[0],
            context_length=numbers.integer("context_length"),
            rope_theta=numbers.real("rope.freq_base", 10_000.0),
            rope_scaling=_rope_scaling(numbers, file, head_dim),
            norm_eps=_decimal(numbers.real("attention.layer_norm_rms_epsilon")),
            tied_embeddings="output.weight" not in file.shapes,
            attention_bias="blk.0.attn_q.bias" in file.shapes,
            qk_norm=family == "qwen3",
            sliding_window=numbers.integer("attention.sliding_window", 0) or None,
        )
    except ModelError as error:
        if error.message.startswith(where):
            raise
        msg = f"{where}: {error.message}"
        raise ModelError(msg) from error


def _decimal(value: float) -> float:
    """Undo the rounding of a decimal number to float32: 1e-5, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _rope_scaling(numbers: _Numbers, file: GgufFile, head_dim: int) -> RopeScaling | None:
    kind = file.metadata.get(f"{numbers.family}.rope.scaling.type", "none")
    if kind == "linear":
        return RopeScaling("linear", numbers.real("rope.scaling.factor"))
    if kind != "none":
        msg = f"Rope scaling of type {kind!r} is not supported, only linear and llama3."
        raise ModelError(msg)
    if _ROPE_FACTORS not in file.shapes:
        return None
    return _llama3_scaling(file.read(_ROPE_FACTORS), numbers.real("rope.freq_base", 1e4), head_dim)


def _llama3_scaling(factors: FloatArray, theta: float, head_dim: int) -> RopeScaling:
    """Find the parameters behind the divisors of each frequency, which are all a GGUF file keeps.

    Every Llama 3.x model blends between the same wavelengths; its largest divisor is the factor.
    """
    scaling = RopeScaling("llama3", float(factors.max(initial=1.0)), 1.0, 4.0, 8192)
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    blend = np.clip((8192 / wavelengths - 1.0) / (4.0 - 1.0), 0.0, 1.0)
    expected = 1 / ((1 - blend) / scaling.factor + blend)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4):
        msg = f"The frequency divisors in {_ROPE_FACTORS} are not those of a Llama 3.x model."
        raise ModelError(msg)
    return scaling


class _Numbers:
    """The metadata's numbers under the architecture's prefix."""

    def __init__(self, metadata: Mapping[str, Any], family: Family, where: str) -> None:
        self.family = family
        self._metadata = metadata
        self._where = where

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._metadata.get(f"{self.family}.{key}", default)
        if isinstance(value, list) and value and len(set(map(str, value))) == 1:
            value = value[0]  # one number per layer, all the same
        if not isinstance(value, int) or isinstance(value, bool):
            msg = f"{self._where}: {self.family}.{key} is missing or is not one whole number."
            raise ModelError(msg)
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self._metadata.get(f"{self.family}.{key}", default)
        if not isinstance(value, float):
            msg = f"{self._where}: {self.family}.{key} is missing or is not a number."
            raise ModelError(msg)
        return value
