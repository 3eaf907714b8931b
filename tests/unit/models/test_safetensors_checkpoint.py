from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoints import Make

from serve_app.errors import ModelError
from serve_app.models.architecture import RopeScaling
from serve_app.models.safetensors_checkpoint import SafetensorsCheckpoint
from serve_app.models.safetensors_file import SafetensorsFile

FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def state_of(folder: Path) -> dict[str, np.ndarray]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_equals_what_transformers_loads(
    tiny_folder: Make, family: str, tied: bool
) -> None:
    folder = tiny_folder(family, tie_word_embeddings=tied)
    checkpoint = SafetensorsCheckpoint(folder)
    assert checkpoint.architecture.tied_embeddings is tied
    expected = state_of(folder)
    if tied:
        del expected["lm_head.weight"]
    assert {name for name, _ in checkpoint.architecture.tensors()} == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(checkpoint.tensor(name), value, err_msg=name)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_widened_exactly(tiny_folder: Make, dtype: str) -> None:
    import torch

    folder = tiny_folder("llama", dtype=getattr(torch, dtype))
    checkpoint, expected = SafetensorsCheckpoint(folder), state_of(folder)
    for name, value in expected.items():
        read = checkpoint.tensor(name)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, value, err_msg=name)


def test_shards_are_read_through_their_index(tiny_folder: Make) -> None:
    folder = tiny_folder("qwen3", shard="60KB")
    checkpoint, expected = SafetensorsCheckpoint(folder), state_of(folder)
    assert len([path for path in checkpoint.files if path.suffix == ".safetensors"]) > 1
    for name, value in expected.items():
        np.testing.assert_array_equal(checkpoint.tensor(name), value, err_msg=name)


def test_config_of_transformers_4_means_the_same(tiny_folder: Make) -> None:
    folder = tiny_folder("llama", rope_parameters=LLAMA3)
    new = SafetensorsCheckpoint(folder).architecture
    old_style = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    edit(folder, rope_parameters=..., rope_theta=500_000, rope_scaling=old_style)
    assert SafetensorsCheckpoint(folder).architecture == new
    assert new.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 64)
    edit(folder, rope_scaling={"type": "linear", "factor": 2})
    assert SafetensorsCheckpoint(folder).architecture.rope_scaling == RopeScaling("linear", 2.0)
    edit(folder, rope_scaling=None)
    assert SafetensorsCheckpoint(folder).architecture.rope_scaling is None


@pytest.mark.parametrize(
    ("family", "config", "window"),
    [
        ("mistral", {"sliding_window": 32}, 32),
        ("mistral", {"sliding_window": None}, None),
        ("llama", {"sliding_window": 32}, None),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 32}, None),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 0}, 32),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 2}, None),
    ],
)
def test_sliding_window_is_what_transformers_applies(
    tiny_folder: Make, family: str, config: dict[str, Any], window: int | None
) -> None:
    assert (
        SafetensorsCheckpoint(tiny_folder(family, **config)).architecture.sliding_window == window
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "gemma3"}, "'gemma3' are not supported"),
        ({"model_type": ...}, "None are not supported"),
        ({"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, "no remote code"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "'yarn' is not supported"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 4.0}}, "low_freq_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**9}, "layers must be between"),
        ({"num_hidden_layers": -1}, "layers must be between"),
        ({"num_attention_heads": 0, "head_dim": ...}, "heads"),
        ({"num_key_value_heads": 3}, "can't be shared"),
        ({"head_dim": 15}, "even head size"),
        ({"hidden_size": ...}, "hidden_size"),
        ({"vocab_size": 321}, r"model\.embed_tokens\.weight has shape \[320, 64\]"),
        ({"num_hidden_layers": 3}, r"model\.layers\.2\..* is missing"),
        ({"num_hidden_layers": 1}, r"model\.layers\.1\..* is not part"),
    ],
)
def test_configs_that_cannot_be_served_are_refused_by_key(
    tiny_folder: Make, change: dict[str, Any], reason: str
) -> None:
    folder = tiny_folder("llama")
    edit(folder, **change)
    with pytest.raises(ModelError, match=reason) as caught:
        SafetensorsCheckpoint(folder)
    assert str(folder) in caught.value.message


def test_sliding_window_in_some_layers_is_refused(tiny_folder: Make) -> None:
    folder = tiny_folder("qwen2", use_sliding_window=True, sliding_window=32, max_window_layers=1)
    with pytest.raises(ModelError, match="some layers only"):
        SafetensorsCheckpoint(folder)


def test_bias_that_the_graph_has_no_place_for_is_refused(tiny_folder: Make) -> None:
    with pytest.raises(ModelError, match=r"o_proj\.bias is not part"):
        SafetensorsCheckpoint(tiny_folder("llama", attention_bias=True))


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_broken_config_is_refused_with_its_path(tiny_folder: Make, content: bytes) -> None:
    folder = tiny_folder("llama")
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        SafetensorsCheckpoint(folder)


def test_every_truncation_of_the_weights_is_refused(tiny_folder: Make) -> None:
    folder = tiny_folder("llama")
    path = folder / "model.safetensors"
    content = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, 2000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ModelError, match=r"model\.safetensors"):
            SafetensorsCheckpoint(folder)


def tensor_file(path: Path, header: Any, data: bytes = bytes(16)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        [],
        {"w": []},
        {"w": {"dtype": "F32", "shape": [4]}},
        {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0]}},
        {"w": {"dtype": "F32", "shape": ["4"], "data_offsets": [0, 16]}},
        {"w": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}},
        {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 17]}},
        {"w": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}},
        {"w": {"dtype": "F32", "shape": [4], "data_offsets": [2**60, 2**60 + 16]}},
        {"w": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 16]}},
        {"w": {"dtype": "I8", "shape": [16], "data_offsets": [0, 16]}},
        {"w": {"dtype": ["F32"], "shape": [4], "data_offsets": [0, 16]}},
    ],
)
def test_absurd_tensor_headers_are_refused(tmp_path: Path, header: Any) -> None:
    with pytest.raises(ModelError, match=r"w\.safetensors"):
        SafetensorsFile(tensor_file(tmp_path / "w.safetensors", header))


def test_a_sound_header_is_accepted(tmp_path: Path) -> None:
    header = {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, "__metadata__": {}}
    file = SafetensorsFile(tensor_file(tmp_path / "w.safetensors", header))
    np.testing.assert_array_equal(file.read("w"), np.zeros(4, np.float32))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../outside.safetensors", "not a safetensors file of its folder"),
        ("/etc/passwd", "not a safetensors file of its folder"),
        ("sub/x.safetensors", "not a safetensors file of its folder"),
        ("model.bin", "not a safetensors file of its folder"),
        ("gone.safetensors", "which is not there"),
    ],
)
def test_index_reaches_only_files_of_its_folder(tiny_folder: Make, name: str, reason: str) -> None:
    folder = tiny_folder("llama")
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    index = {"weight_map": {"model.norm.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=reason):
        SafetensorsCheckpoint(folder)


def test_index_that_disagrees_with_its_shards_is_refused(tiny_folder: Make) -> None:
    folder = tiny_folder("llama", shard="60KB")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    shards = sorted(set(index["weight_map"].values()))
    first = next(name for name, shard in index["weight_map"].items() if shard == shards[0])
    index["weight_map"][first] = shards[1]
    path.write_text(json.dumps(index))
    with pytest.raises(ModelError, match="doesn't hold it"):
        SafetensorsCheckpoint(folder)


def test_pickled_weights_are_refused(tiny_folder: Make) -> None:
    folder = tiny_folder("llama")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is a pickle"):
        SafetensorsCheckpoint(folder)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        SafetensorsCheckpoint(tmp_path)
