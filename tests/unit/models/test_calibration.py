"""How large inputs get is measured, and what is too large of them moves into weights without a trace."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from decoder_run import DecoderRun, open_session
from random_checkpoint import RandomCheckpoint, tiny_architecture

from serve_app.errors import ModelError
from serve_app.models import calibration
from serve_app.models.calibration import measure_inputs
from serve_app.models.decoder_graph import build_decoder
from serve_app.models.decoder_interface import (
    GRAPH_FILE,
    INPUT_IDS,
    LOGIT_ROWS,
    WRITE_INDICES,
    DecoderInterface,
)
from serve_app.models.decoder_layers import write_decoder
from serve_app.models.precision.observed import ObservedInputs
from serve_app.models.smoothing import SmoothedCheckpoint

QWEN2 = {"family": "qwen2", "attention_bias": True, "tied_embeddings": True}
QWEN3 = {"family": "qwen3", "qk_norm": True, "head_dim": 32}
MISTRAL = {"family": "mistral", "sliding_window": 8}
FAMILIES = pytest.mark.parametrize(
    "changes", [{}, MISTRAL, QWEN2, QWEN3], ids=["llama", "mistral", "qwen2", "qwen3"]
)
TOKENS = list(range(3, 30))
BEHIND_NORMS = tuple(f"{part}_proj.weight" for part in ("q", "k", "v", "gate", "up"))


class Uneven(RandomCheckpoint):
    """The same model, whose norms make a few states fifty times as large, for weights that are as small."""

    def tensor(self, name: str) -> np.ndarray:
        tensor = super().tensor(name).copy()
        if name.endswith("layernorm.weight"):
            tensor[[5, 41]] *= 50
        elif name.endswith(BEHIND_NORMS):
            tensor[:, [5, 41]] /= 50
        return tensor


def logits(folder: Path, checkpoint: Any, precision: Any = "fp32") -> np.ndarray:
    folder.mkdir()
    build_decoder(
        checkpoint, form="standard", precision=precision, directory=folder, cache_length=32
    )
    dtype = "float32" if precision == "fp32" else "float16"
    interface = DecoderInterface.of(
        checkpoint.architecture, "standard", dtype=dtype, cache_length=32
    )
    return DecoderRun(open_session(folder), interface, slots=1, max_len=32).step([TOKENS])


def test_inputs_are_those_of_the_whole_text(tmp_path: Path) -> None:
    checkpoint = RandomCheckpoint(tiny_architecture())
    found = measure_inputs(checkpoint, tmp_path)
    assert [*tmp_path.iterdir()] == []
    ids = {token for window in calibration._windows(checkpoint) for token in window}
    rows = checkpoint.tensor("model.embed_tokens.weight")[sorted(ids)]
    normed = rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + 1e-5)
    expected = normed * checkpoint.tensor("model.layers.0.input_layernorm.weight")
    np.testing.assert_allclose(
        found["model.layers.0.self_attn.qkv_proj"], np.abs(expected).max(axis=0), rtol=1e-4
    )
    layers = checkpoint.architecture.layers
    assert len(found) == 4 * layers + 1  # and the output head
    assert found["model.layers.1.mlp.down_proj"].shape == (checkpoint.architecture.intermediate,)


@FAMILIES
def test_inputs_are_those_that_each_layer_sees(tmp_path: Path, changes: dict[str, Any]) -> None:
    """A layer's values and keys have memory of their own: what one is given is not another one's."""
    checkpoint = RandomCheckpoint(tiny_architecture(**changes))
    found = measure_inputs(checkpoint, tmp_path)
    # The same windows, each in a run without memory that is bound.
    again = {name: np.zeros_like(seen) for name, seen in found.items()}
    windows = list(calibration._windows(checkpoint))
    precision, length = ObservedInputs(), max(map(len, windows))
    write_decoder(checkpoint, precision, form="standard", directory=tmp_path, cache_length=length)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(tmp_path / GRAPH_FILE), options)
    interface = DecoderInterface.of(checkpoint.architecture, "standard", cache_length=length)
    shape = interface.cache_shape(1, length)
    for window in windows:
        seen = session.run(
            list(precision.observed.values()),
            {
                INPUT_IDS: np.array([window]),
                WRITE_INDICES: np.zeros(1, np.int64),
                LOGIT_ROWS: np.arange(len(window)),
                **{past: np.zeros(shape, np.float32) for past, _ in interface.cache_names},
            },
        )
        for name, values in zip(precision.observed, seen, strict=True):
            again[name] = np.maximum(again[name], values)
    for name, seen_before in found.items():
        np.testing.assert_allclose(seen_before, again[name], rtol=1e-5, err_msg=name)


def test_a_checkpoint_of_broken_weights_is_refused(tmp_path: Path) -> None:
    class Broken(RandomCheckpoint):
        def tensor(self, name: str) -> np.ndarray:
            return super().tensor(name) * (np.nan if "down_proj" in name else 1)

    with pytest.raises(ModelError, match="no finite numbers"):
        measure_inputs(Broken(tiny_architecture()), tmp_path)


@FAMILIES
def test_a_smoothed_checkpoint_computes_the_same_from_evener_inputs(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    checkpoint = Uneven(tiny_architecture(**changes))
    smoothed = SmoothedCheckpoint(checkpoint, measure_inputs(checkpoint, tmp_path))
    expected = logits(tmp_path / "exact", checkpoint)
    np.testing.assert_allclose(logits(tmp_path / "same", smoothed), expected, atol=2e-3)
    measured = measure_inputs(smoothed, tmp_path)
    before = measure_inputs(checkpoint, tmp_path)
    for name in ("model.layers.0.self_attn.qkv_proj", "model.layers.1.mlp.gate_up_proj"):
        np.testing.assert_allclose(measured[name], smoothed.inputs[name], rtol=1e-3)
        uneven, even = (each[name].max() / np.median(each[name]) for each in (before, measured))
        assert uneven > 4 * even


def test_int8_products_of_uneven_inputs_take_smoothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Uneven(tiny_architecture())
    exact = logits(tmp_path / "exact", checkpoint)
    smooth = logits(tmp_path / "smooth", checkpoint, "int8-w8a8")
    monkeypatch.setattr(
        "serve_app.models.smoothing.SmoothedCheckpoint._chosen",
        lambda _, inputs, __: np.ones_like(inputs),
    )
    rough = logits(tmp_path / "rough", checkpoint, "int8-w8a8")
    assert (smooth - exact).std() < 0.5 * (rough - exact).std()


def test_a_smoothed_checkpoint_is_the_same_model_otherwise(tmp_path: Path) -> None:
    checkpoint = dataclasses.replace(RandomCheckpoint(tiny_architecture()), name="n", source="s")
    smoothed = SmoothedCheckpoint(checkpoint, measure_inputs(checkpoint, tmp_path))
    for part in ("architecture", "name", "source", "files"):
        assert getattr(smoothed, part) == getattr(checkpoint, part)
    assert smoothed.has("model.norm.weight")
    np.testing.assert_array_equal(
        smoothed.tensor("model.norm.weight"), checkpoint.tensor("model.norm.weight")
    )
